"""What QEMU has of what was planned, and what it works on: asked of one whose monitor was out of reach, or was reset.

Decides: what is said of a disk, NIC or device that is gone, and of a job that is under way.
Must not: change or repair anything; whoever took it away had the right to.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

from qsup.plan.spec import PlanSummary
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.qmp.results import JobInfo

_TIMEOUT = 10.0
#: Jobs that are named; of more their number is told.
_JOBS_MAX = 8
_WORDS_MAX = 100


async def take_stock(summary: PlanSummary, monitor: Monitor) -> tuple[str, ...]:
    """Ask for jobs, block nodes and devices; one sentence for each thing that a person should know.

    Raises:
        MonitorError: as QEMU's monitor says.
    """
    jobs = await commands.query_jobs(monitor, timeout=_TIMEOUT)
    nodes = await commands.query_named_block_nodes(monitor, timeout=_TIMEOUT)
    devices = await commands.qom_list_peripherals(monitor, timeout=_TIMEOUT)
    return (*missing(summary, nodes, devices), *under_way(jobs))


def missing(summary: PlanSummary, nodes: Set[str], devices: Set[str]) -> Iterator[str]:
    """What was planned and is not there. Pure."""
    for disk in summary.disks:
        if disk.device not in devices:
            yield f"disk {disk.id}: its device was removed since the start"
        elif disk.node and disk.node not in nodes:
            yield f"disk {disk.id}: its image was removed since the start"
    for nic in summary.nics:
        if f"nic-{nic.id}" not in devices:
            yield f"NIC {nic.id}: its device was removed since the start"


def under_way(jobs: tuple[JobInfo, ...]) -> Iterator[str]:
    """What QEMU works on, or keeps until it is dismissed. Pure."""
    for job in jobs[:_JOBS_MAX]:
        error = f": {job.error}" if job.error else ""
        yield f"QEMU has a job {job.id[:_WORDS_MAX]} ({job.type[:_WORDS_MAX]}, {job.status[:_WORDS_MAX]}){error[:300]}"
    if len(jobs) > _JOBS_MAX:
        yield f"QEMU has {len(jobs) - _JOBS_MAX} further jobs"
