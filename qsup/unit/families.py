"""What the machines of each family can have, for the rules between keys and for plans alike.

Decides: which families there are, and what no machine of one can have, whatever the host and QEMU.
Must not: know where a device goes (`qsup.plan.board`), or which types are of a family (`qsup.unit.model`).
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from qsup.unit.model import DISK_BUSES, NIC_MODELS
from qsup.unit.quantity import alternatives, shown


@frozen(kw_only=True)
class Family:
    """What machines of one family can have.

    Args:
        disk_buses: buses that disks can be on.
        nic_models: the cards that NICs can be.
        has_graphics: a graphics card, and so a display.
        has_flash: flash memory, which UEFI is put into.
        has_memory_slots: room for memory that comes while the VM runs.
    """

    disk_buses: tuple[str, ...] = DISK_BUSES
    nic_models: tuple[str, ...] = NIC_MODELS
    has_graphics: bool = True
    has_flash: bool = True
    has_memory_slots: bool = True


FAMILIES: Mapping[str, Family] = {
    "q35": Family(disk_buses=tuple(bus for bus in DISK_BUSES if bus != "ide")),
    "pc": Family(),
    # virtio-mmio transports and no PCI bus
    "microvm": Family(
        disk_buses=("virtio", "scsi"),
        nic_models=("virtio",),
        has_graphics=False,
        has_flash=False,
        has_memory_slots=False,
    ),
}


def unplanned(machine_type: str) -> str:
    """What is said of a machine type that is of none of the families."""
    return f"qsup plans {alternatives(FAMILIES, 'and')} machines, and {shown(machine_type)} is none of them"
