"""What a unit leaves open when another key decides it, in one place for everyone.

Decides: values that follow from several keys of one unit.
Must not: say whether keys go together (`qsup.unit.check`), or look at the host.
"""

from __future__ import annotations

import math
import re

from qsup.unit.model import Unit
from qsup.unit.sections.devices import SHARING_DEVICES, DeviceSection
from qsup.unit.sections.disks import DiskSection
from qsup.unit.sections.memory import HUGE_PAGES

# Ubuntu's QEMU has aliases of its own for the newest of its types
_FAMILIES = (("q35", r"(pc-)?q35(-.*)?|ubuntu-q35"), ("pc", r"pc(-i440fx-.*)?|ubuntu"), ("microvm", r"microvm"))


def machine_family(machine_type: str) -> str:
    """``q35``, ``pc`` or ``microvm`` for an alias or versioned machine type of that family, else ``""``."""
    for family, pattern in _FAMILIES:
        if re.fullmatch(pattern, machine_type):
            return family
    return ""


def effective_bus(unit: Unit, disk: DiskSection) -> str:
    """How the disk is attached: its ``bus``, else ``virtio``, else for a CD drive what the machine has."""
    if disk.bus:
        return disk.bus
    if disk.type != "cdrom":
        return "virtio"
    return {"q35": "sata", "pc": "ide"}.get(machine_family(unit.machine.type), "scsi")


def effective_video(unit: Unit) -> str:
    """The graphics card: ``video``, else ``std`` with a display and ``none`` without."""
    return unit.display.video or ("none" if unit.display.type == "none" else "std")


def mount_tag(device: DeviceSection) -> str:
    """What the guest mounts a share by: its ``tag``, else its id."""
    return device.tag or device.id


def shares_memory(unit: Unit) -> bool:
    """Whether other programs than QEMU can be given the guest's memory; huge pages are in a file anyway."""
    memory = unit.memory
    return memory.shared or bool(memory.hugepages) or any(device.type in SHARING_DEVICES for device in unit.devices)


def huge_page(unit: Unit) -> int:
    """Bytes of the huge pages that the guest's memory is in, 0 for none."""
    return HUGE_PAGES.get(unit.memory.hugepages, 0)


def takes_memory_at_once(unit: Unit) -> bool:
    """Whether all of the guest's memory is taken from the host before it runs."""
    return unit.memory.prealloc or unit.memory.lock or bool(unit.memory.hugepages)


#: Seconds that a start may take, and that each GiB of memory may take that is taken at once: one thread of a busy
#: host was seen to need 0.9 to 2.8.
_START_TIMEOUT, _EACH_GIB = 90.0, 3.0


def start_timeout(unit: Unit) -> float:
    """Seconds from the start of QEMU until the VM must be ready."""
    taken = machine_memory(unit) if takes_memory_at_once(unit) else 0
    return unit.service.start_timeout or _START_TIMEOUT + _EACH_GIB * math.ceil(taken / (1 << 30))


def channel_name(device: DeviceSection) -> str:
    """What the guest finds a serial channel by: its ``name``, else its id."""
    return device.name or device.id


def effective_resize(unit: Unit) -> str:
    """How the memory changes while the VM runs, ``""`` where it cannot."""
    memory = unit.memory
    return memory.resize or ("virtio-mem" if memory.max else "balloon" if memory.balloon else "")


def machine_memory(unit: Unit) -> int:
    """Bytes of memory that the machine is started with; a balloon may leave its guest less, virtio-mem give it more."""
    memory, way = unit.memory, effective_resize(unit)
    if way == "virtio-mem":
        return min(memory.min or memory.size, memory.size)
    return memory.max or memory.size if way == "balloon" else memory.size


def effective_max_vcpus(unit: Unit) -> int:
    """``max-vcpus``, else as many as ``vcpus``."""
    return unit.cpu.max_vcpus or unit.cpu.vcpus
