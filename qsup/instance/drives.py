"""QEMU's drives of a VM's disks.

Decides: which of QEMU's drives belongs to which disk: by its device, whatever it reads now.
Must not: change any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qsup.plan.spec import PlanSummary
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.qmp.results import BlockInfo

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
