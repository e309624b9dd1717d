"""What the machines of each family can have, for the rules between keys and for plans alike.

Decides: which families there are, and what no machine of one can have, whatever the host and QEMU.
Must not: know where a device goes (`qsup.plan.board`), or which types are of a family (`qsup.unit.effective`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from attrs import frozen

from qsup.unit.quantity import alternatives, shown
from qsup.unit.sections.devices import NIC_MODELS, DeviceSection, NicSection
from qsup.unit.sections.disks import DISK_BUSES


@frozen(kw_only=True)
class Family:
    """What machines of one family can have.

    Args:
        disk_buses: buses that disks can be on.
        nic_models: the cards that NICs can be.
        has_graphics: a graphics card, and so a display.
        has_flash: flash memory, which UEFI is put into.
        has_memory_slots: room for memory that comes while the VM runs.
        has_nodes: a way to tell the guest of NUMA nodes (ACPI's SRAT).
        room: how many there can be of each kind that has places on the board: ``disk`` (virtio and NVMe), ``nic``,
            ``legacy-nic`` where those have places of their own, and ``device``.
    """

    room: Mapping[str, int]
    disk_buses: tuple[str, ...] = DISK_BUSES
    nic_models: tuple[str, ...] = NIC_MODELS
    has_graphics: bool = True
    has_flash: bool = True
    has_memory_slots: bool = True
    has_nodes: bool = True


FAMILIES: Mapping[str, Family] = {
    "q35": Family(
        room={"disk": 64, "nic": 32, "legacy-nic": 4, "device": 32},
        disk_buses=tuple(bus for bus in DISK_BUSES if bus != "ide"),
    ),
    "pc": Family(room={"disk": 10, "nic": 8, "device": 4}),
    # virtio-mmio transports and no PCI bus
    "microvm": Family(
        room={"disk": 11, "nic": 6, "device": 4},
        disk_buses=("virtio", "scsi"),
        nic_models=("virtio",),
        has_graphics=False,
        has_flash=False,
        has_memory_slots=False,
        has_nodes=False,
    ),
}

#: Disks on one bus; the others have places of the board.
BUS_ROOM: Mapping[str, int] = {"sata": 6, "ide": 4, "scsi": 256, "usb": 14}
#: Conventional PCI cards; the others are PCI Express ones.
_LEGACY = ("e1000", "rtl8139")
#: The types of devices that need no place of their own; the controller that they are on is called so at a start.
_ON_BUSES = ("serial", "usb")


def nic_kind(nic: NicSection, room: Collection[str]) -> str:
    """Of which kind the places are that a NIC takes.

    Args:
        room: the kinds that its board has places for.
    """
    return "legacy-nic" if nic.model in _LEGACY and "legacy-nic" in room else "nic"


def needs_slot(device: DeviceSection) -> bool:
    """Whether it is on the machine's own bus."""
    return device.type not in _ON_BUSES


def unplanned(machine_type: str) -> str:
    """What is said of a machine type that is of none of the families."""
    return f"qsup plans {alternatives(FAMILIES, 'and')} machines, and {shown(machine_type)} is none of them"
