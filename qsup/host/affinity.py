"""Where threads may run: what the kernel says of each, and telling it otherwise.

Decides: how a process's threads and the host's CPUs are found.
Must not: know what a thread is for.

Sources: sched_setaffinity(2), proc_pid_task(5), Documentation/ABI/testing/sysfs-devices-system-cpu in Linux's source.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Set
from pathlib import Path

from qsup.errors import from_oserror
from qsup.unit.quantity import format_cpu_set, parse_cpu_set

_ONLINE = Path("/sys/devices/system/cpu/online")


def threads(pid: int) -> tuple[int, ...]:
    """The ids of a process's threads, none of one that has ended."""
    try:
        return tuple(map(int, os.listdir(f"/proc/{pid}/task")))
    except (FileNotFoundError, ProcessLookupError):
        return ()


def family(pid: int) -> tuple[int, ...]:
    """A process and all that descend from it, those alone that live (proc_tid_children(5), CONFIG_PROC_CHILDREN)."""
    found = [pid]
    for each in found:  # it grows
        for thread in threads(each):
            try:
                found += map(int, Path(f"/proc/{each}/task/{thread}/children").read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended, or the kernel does not tell
    return tuple(found)


def count(pid: int) -> int:
    """How many threads a process has, by the links of its directory of them (proc_task_getattr() in Linux's fs/proc).

    This takes a tenth of the time that listing them does.
    """
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2
    except (FileNotFoundError, ProcessLookupError):
        return 0


def online() -> frozenset[int]:
    """The CPUs that can run something now; those that we may use where the kernel does not say (a masked /sys)."""
    try:
        return frozenset(parse_cpu_set(_ONLINE.read_text().strip()))
    except (OSError, ValueError):
        return frozenset(os.sched_getaffinity(0))


def get(thread: int) -> Set[int] | None:
    """The CPUs online that a thread may run on; ``None`` when it has ended."""
    try:
        return os.sched_getaffinity(thread)
    except ProcessLookupError:
        return None


def are(places: Iterable[tuple[int, Set[int]]]) -> bool:
    """Whether each of some threads is there, and may run on these CPUs of those online and no others."""
    try:
        return all(os.sched_getaffinity(thread) == cpus for thread, cpus in places)
    except ProcessLookupError:
        return False


def put(thread: int, cpus: Set[int]) -> bool:
    """Have a thread run on some CPUs alone, of which one at least is online.

    Returns:
        Whether it is there to do so.

    Raises:
        HostError: the kernel refused.
    """
    try:
        os.sched_setaffinity(thread, cpus)
    except ProcessLookupError:
        return False
    except OSError as error:
        raise from_oserror(error, f"could not pin thread {thread} to CPUs {format_cpu_set(cpus)}") from error
    return True
