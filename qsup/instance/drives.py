"""The drives of a VM: by its unit, and by QEMU.

Decides: which disk is a CD drive, and which of QEMU's drives is a disk's: by its device, whatever it reads now.
Must not: change any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qsup.errors import ChangeError, NoSuchDevice
from qsup.plan.spec import PlanSummary
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.qmp.results import BlockInfo
from qsup.unit.entries import entry_of
from qsup.unit.model import Unit
from qsup.unit.sections.disks import DiskSection

_TIMEOUT = 10.0


async def find_drives(
    disks: Iterable[str], summary: PlanSummary, monitor: Monitor, *, timeout: float = _TIMEOUT
) -> Mapping[str, BlockInfo]:
    """What QEMU says of some disks, by their ids; nothing of one that it does not have.

    Raises:
        MonitorError: as QEMU's monitor says.
    """
    devices = {plan.id: plan.device for plan in summary.disks}
    known = await commands.query_block(monitor, timeout=timeout)
    wanted = [disk for disk in disks if disk in devices]
    found = {disk: next((each for each in known if each.is_of(devices[disk])), None) for disk in wanted}
    return {disk: drive for disk, drive in found.items() if drive is not None}


def check_drive(name: str, unit: Unit, vm: str) -> None:
    """See that there is such a CD drive.

    Raises:
        NoSuchDevice: there is no disk of that name.
        ChangeError: it is no drive.
    """
    disk: DiskSection | None = entry_of(unit, f"disk.{name}")
    if disk is None:
        known = [each.id for each in unit.disks if each.type == "cdrom"]
        there = f"its CD drives: {', '.join(known)}" if known else "it has no CD drive; attach one with type=cdrom"
        raise NoSuchDevice(f"it has no disk {name}", instance=vm, hint=there)
    if disk.type != "cdrom":
        raise ChangeError(f"disk {name} is no CD drive", instance=vm, hint="attach another disk instead")
