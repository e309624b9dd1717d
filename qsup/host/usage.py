"""What threads and processes have had of the host: time on its CPUs, time in wait for one, memory by node.

Decides: which file says what, and how each is spelled.
Must not: know what a thread is for, or remember what it read.

Sources: proc_pid_stat(5), proc_pid_status(5), proc_pid_numa_maps(5); Documentation/scheduler/sched-stats.rst in Linux's
source for schedstat, and proc_sched_show_task() in its kernel/sched/debug.c for sched.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping

from attrs import field, frozen

from qsup.errors import HostError, from_oserror

_TICKS = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)
_MIGRATIONS = re.compile(r"^se\.nr_migrations\s*:\s*([0-9]{1,18})$", re.MULTILINE)
_SIZE = re.compile(r"^(HugetlbPages|VmSwap):\s+([0-9]{1,15}) kB$", re.MULTILINE)
_PAGES = re.compile(r"N([0-9]{1,5})=([0-9]{1,15})")
_PAGE_SIZE = re.compile(r"kernelpagesize_kB=([0-9]{1,12})")


@frozen(kw_only=True)
class Times:
    """What one thread has had of the host's CPUs.

    Args:
        seconds: time that it ran.
        waited: time that it was ready to run, and another did: for a vCPU, what its guest calls steal. ``None`` where
            the kernel keeps no such count (CONFIG_SCHED_INFO).
    """

    seconds: float
    waited: float | None


@frozen(kw_only=True)
class ThreadUsage:
    """The same, and more that costs more to read.

    Args:
        name: ``comm``, at most 15 bytes.
        cpu: the CPU that it ran on last.
        migrations: how often it went from one CPU to another; ``None`` where the kernel does not tell it.
    """

    name: str
    cpu: int
    times: Times
    migrations: int | None = None


@frozen(kw_only=True)
class Held:
    """Memory of a process that its resident memory does not have.

    Args:
        huge: bytes in pages of hugetlbfs.
        swapped: bytes that were swapped out.
    """

    huge: int = 0
    swapped: int = 0


@frozen
class NodePart:
    """What a process has of one node's memory, in bytes.

    Args:
        anonymous: of nobody else.
        huge: in pages of hugetlbfs.
        file: of files, and what is shared as if it were one (memfd).
    """

    anonymous: int = 0
    huge: int = 0
    file: int = 0


@frozen(kw_only=True)
class NodeMemory:
    """Where the memory of a process is.

    Args:
        read_at: seconds since the boot (`qsup.host.proc.uptime`).
        nodes: by number of the host's node, as far as there is any.
    """

    read_at: float
    nodes: Mapping[int, NodePart] = field(factory=dict)


def parse_schedstat(text: str) -> Times | None:
    """``schedstat`` of a thread: nanoseconds that it ran and that it waited, and a count."""
    words = text.split()
    if len(words) != 3 or not all(word.isascii() and word.isdigit() for word in words):
        return None
    return Times(seconds=int(words[0]) / 1e9, waited=int(words[1]) / 1e9)


def parse_thread(stat: str, schedstat: str = "", sched: str = "") -> ThreadUsage | None:
    """A thread by its files; the name may hold spaces and parentheses, so fields count from the last one.

    Args:
        schedstat, sched: ``""`` where the kernel has none.
    """
    head, _, tail = stat.rpartition(") ")
    fields = tail.split()
    try:
        ticks, cpu = int(fields[11]) + int(fields[12]), int(fields[36])
    except (IndexError, ValueError):
        return None
    migrations = _MIGRATIONS.search(sched)
    return ThreadUsage(
        name=head.partition("(")[2],
        cpu=cpu,
        # nanoseconds, where the other is in ticks
        times=parse_schedstat(schedstat) or Times(seconds=ticks / _TICKS, waited=None),
        migrations=int(migrations[1]) if migrations else None,
    )


def thread_usage(thread: int) -> ThreadUsage | None:
    """What /proc says of a thread of any process now, or ``None`` when it has ended."""
    files = f"/proc/{thread}/task/{thread}"  # the first is there for every thread, though none but processes are listed
    return parse_thread(_text(f"{files}/stat"), _text(f"{files}/schedstat"), _text(f"{files}/sched"))


def thread_times(pid: int, thread: int) -> Times | None:
    """What it has had, or ``None`` when it has ended."""
    files = f"/proc/{pid}/task/{thread}"
    if found := parse_schedstat(_text(f"{files}/schedstat")):
        return found
    usage = parse_thread(_text(f"{files}/stat"))
    return None if usage is None else usage.times


def process_clock(pid: int) -> int:
    """The clock of a process's CPU time, for ``clock_gettime``: of all its threads, those that have ended included.

    Source: clock_getcpuclockid(3), which Python has for threads alone; MAKE_PROCESS_CPUCLOCK() in Linux's
    include/linux/posix-timers.h, with CPUCLOCK_SCHED.
    """
    return ~pid << 3 | 2


def process_seconds(pid: int) -> float | None:
    """CPU time of all threads that a process has and had, to the nanosecond; ``None`` when it is no more."""
    try:
        return time.clock_gettime(process_clock(pid))
    except OSError:  # EINVAL
        return None


def parse_held(text: str) -> Held:
    """``status`` of a process."""
    found = {name: int(amount) << 10 for name, amount in _SIZE.findall(text)}
    return Held(huge=found.get("HugetlbPages", 0), swapped=found.get("VmSwap", 0))


def held(pid: int) -> Held:
    """What it has besides its resident memory, nothing when it is no more."""
    return parse_held(_text(f"/proc/{pid}/status"))


def parse_numa_maps(lines: Iterable[str]) -> Mapping[int, NodePart]:
    """``numa_maps`` of a process: by node, what all of its mappings have there.

    Each line is one mapping, with ``N<node>=<pages>`` and the size of these; blanks in a file's name are written as
    ``\\040``, so that none can be taken for more.
    """
    found: dict[int, list[int]] = {}
    for line in lines:
        _, _, words = line.partition(" ")
        parts = words.split()
        size = next((int(match[1]) << 10 for match in map(_PAGE_SIZE.fullmatch, parts) if match), 0)
        kind = 1 if "huge" in parts else 2 if any(part.startswith("file=") for part in parts) else 0
        for match in filter(None, map(_PAGES.fullmatch, parts)):
            found.setdefault(int(match[1]), [0, 0, 0])[kind] += int(match[2]) * size
    return {node: NodePart(*amounts) for node, amounts in sorted(found.items())}


def read_numa_maps(pid: int) -> Mapping[int, NodePart]:
    """Where a process's memory is. For a large one that takes seconds, and longer while it changes its mappings.

    Raises:
        HostError: the kernel keeps no such list (CONFIG_NUMA), or the process is no more.
    """
    try:
        with open(f"/proc/{pid}/numa_maps", encoding="ascii", errors="replace") as file:
            return parse_numa_maps(file)
    except OSError as error:
        raise from_oserror(error, f"could not read where the memory of process {pid} is") from error


def _text(path: str) -> str:
    """What a file says, ``""`` of one that is not there (any more)."""
    try:
        with open(path, "rb", buffering=0) as file:
            data = b""
            while more := file.read(1 << 14):
                data += more
            return data.decode(errors="replace")
    except _GONE:
        return ""
    except OSError as error:
        raise HostError(f"could not read {path}: {error.strerror}") from error
