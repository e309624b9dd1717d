"""Values that depend on another key when a unit leaves them open.

Decides: the bus of a disk, the graphics card, the most vCPUs, and which family of boards a machine type belongs to.
Must not: know the host or a QEMU binary; a machine type that no family claims is left to `qsup.plan`.
"""

from __future__ import annotations

import re

from qsup.unit.model import DiskSection, Unit

_FAMILIES = (("q35", r"(pc-)?q35(-.*)?"), ("pc", r"pc(-i440fx-.*)?"), ("microvm", r"microvm"))


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


def effective_max_vcpus(unit: Unit) -> int:
    """``max-vcpus``, else as many as ``vcpus``."""
    return unit.cpu.max_vcpus or unit.cpu.vcpus
