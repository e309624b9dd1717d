"""Who is in a VM's cgroups: processes that come in, with all that they have started, and that are killed.

Decides: how a process is moved, and when it counts as being inside.
Must not: make cgroups or remove them (`qsup.host.cgroup`), or move single threads (`qsup.host.threadgroups`).

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/cgroups.rst in Linux's source; proc_tid_children(5).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from qsup.errors import HostError, from_oserror
from qsup.host.counted import read
from qsup.host.limits import GROUPS
from qsup.host.pidfd import PidFd


def processes(path: Path) -> frozenset[int]:
    """The pids of all processes in a cgroup and in groups of threads below it."""
    return frozenset().union(*map(_listed, _places(path)))


def holds(paths: Sequence[Path], pid: int) -> bool:
    """Whether a process is in all of a VM's cgroups."""
    return all(any(pid in _listed(place) for place in _places(path)) for path in paths)


def join(paths: Sequence[Path], pid: int) -> str:
    """Move a process and then its children: those that it has by then, as later ones are born inside.

    Returns:
        Why one could not be moved, a sentence without its subject, or ``""``.
    """
    reason = "" if holds(paths, pid) else _move(paths, pid)
    others = [each for each in _children(pid) if not holds(paths, each)]
    return next(filter(None, [reason, *(join(paths, each) for each in others)]), "")


def gather(paths: Sequence[Path]) -> None:
    """Have whoever is in one of a VM's cgroups be in all of them; `HostError`."""
    seen: frozenset[int] = frozenset()
    while new := frozenset().union(*map(processes, paths)) - seen:
        for path in paths:
            for pid in new - processes(path):
                if reason := _move([path], pid):
                    raise HostError(f"process {pid} {reason}")
        seen |= new


def kill(pid: int) -> None:
    """Send SIGKILL to a process, if it is there; `HostError`."""
    try:
        member = PidFd.open(pid)
        try:
            member.send_signal(signal.SIGKILL)
        finally:
            member.close()
    except ProcessLookupError:
        return
    except OSError as error:
        raise from_oserror(error, f"could not kill process {pid} of a cgroup") from error


def _places(path: Path) -> Iterator[str]:
    yield str(path)
    yield from (f"{path}/{group}" for group in GROUPS.values())


def _listed(directory: str) -> frozenset[int]:
    try:
        with open(f"{directory}/cgroup.procs", "rb", buffering=0) as file:
            return frozenset(map(int, file.readall().split()))
    except OSError:  # there is none, or it is a threaded one
        return frozenset()


def _children(pid: int) -> Iterator[int]:
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, (read(listing) or "").split())


def _move(paths: Sequence[Path], pid: int) -> str:
    refused = []
    for path in paths:
        try:
            with open(f"{path}/cgroup.procs", "wb", buffering=0) as file:
                file.write(str(pid).encode())
        except ProcessLookupError:
            return ""
        except OSError as error:
            refused.append(f"{path}: {os.strerror(error.errno or 0)}")
    return f"could not be moved into its cgroup: {'; '.join(refused)}" if refused else ""
