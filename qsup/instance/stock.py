"""What QEMU works on: asked of one whose monitor was out of reach, or was reset.

Decides: what is said of a job that is under way, and of an image that is gone.
Must not: change or repair anything; whoever began it had the right to. Which devices there are is taken in by
`qsup.instance.change`.
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
    """Ask for jobs and block nodes; one sentence for each thing that a person should know.

    Raises:
        MonitorError: as QEMU's monitor says.
    """
    jobs = await commands.query_jobs(monitor, timeout=_TIMEOUT)
    nodes = await commands.query_named_block_nodes(monitor, timeout=_TIMEOUT)
    return (*missing(summary, nodes), *under_way(jobs))


def missing(summary: PlanSummary, nodes: Set[str]) -> Iterator[str]:
    """Images that were planned and are not there, though their devices may be. Pure.

    Of what comes or goes nobody expects them.
    """
    moving = {part.entry for part in summary.parts if part.state != "there"}
    for disk in summary.disks:
        if disk.node and disk.node not in nodes and f"disk.{disk.id}" not in moving:
            yield f"disk {disk.id}: its image was removed since the start"


def under_way(jobs: tuple[JobInfo, ...]) -> Iterator[str]:
    """What QEMU works on, or keeps until it is dismissed. Pure."""
    for job in jobs[:_JOBS_MAX]:
        error = f": {job.error}" if job.error else ""
        yield f"QEMU has a job {job.id[:_WORDS_MAX]} ({job.type[:_WORDS_MAX]}, {job.status[:_WORDS_MAX]}){error[:300]}"
    if len(jobs) > _JOBS_MAX:
        yield f"QEMU has {len(jobs) - _JOBS_MAX} further jobs"
