"""The limits of disks: imposed before a guest runs, on what comes, and changed while it runs.

Decides: which drive of QEMU's is a disk's, and that what QEMU says of its limits is what is shown.
Must not: judge which limits go together (`qsup.unit.throttle`).

The limits are the drive's (QAPI ``block_set_io_throttle``), not those of a node in its chain: so the chain is the same
with and without, and they outlive a reset, a change of the medium and the daemon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qsup.instance.context import Context
from qsup.instance.drives import find_drives
from qsup.instance.hardware import entry_of
from qsup.plan.spec import PlanSummary
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.qmp.results import BlockInfo
from qsup.unit.compare import Change
from qsup.unit.model import Unit
from qsup.unit.sections.disks import DiskSection
from qsup.unit.throttle import NAMES, arguments, said

_TIMEOUT = 10.0


async def impose(disks: Sequence[DiskSection], summary: PlanSummary, monitor: Monitor) -> Mapping[str, BlockInfo]:
    """Have QEMU limit disks as the unit says; an empty drive gets its limits with its medium.

    Returns:
        What QEMU says of each disk afterwards, by its id.

    Raises:
        QmpCommandError: QEMU refused one.
        MonitorError: it did not answer.
    """
    if not disks:
        return {}
    names = [disk.id for disk in disks]
    for id_, drive in (await find_drives(names, summary, monitor)).items():
        if drive.node_name:
            disk = next(disk for disk in disks if disk.id == id_)
            await commands.block_set_io_throttle(monitor, drive.qdev, arguments(disk.throttle), timeout=_TIMEOUT)
    return await find_drives(names, summary, monitor)


def limited(unit: Unit) -> Sequence[DiskSection]:
    """The disks that have limits."""
    return [disk for disk in unit.disks if said(disk.throttle)]


class Throttle:
    """Changes of ``disk.ID.throttle``."""

    def concerns(self, key: str) -> bool:
        """Whether it is a limit of a disk."""
        return key.startswith("disk.") and key.rsplit(".", 2)[1] == "throttle" and key.rpartition(".")[2] in NAMES

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """See that the disk is there."""
        context.hardware.check_there(_entry(change))

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Any]:
        """Have QEMU take them; told is what it says then."""
        entries = dict.fromkeys(map(_entry, changes))
        disks = [entry_of(unit, entry) for entry in entries]
        drives = await impose(disks, context.hardware.summary, context.monitor)
        found = {f"disk.{id_}": drive.limits for id_, drive in drives.items() if drive.node_name}
        told = {}
        for change in changes:
            limits = found.get(_entry(change))
            limit = None if limits is None else limits.get(NAMES[change.key.rpartition(".")[2]], 0)
            told[change.key] = {"limit": limit}
        return told


def _entry(change: Change) -> str:
    return change.key.rsplit(".", 2)[0]
