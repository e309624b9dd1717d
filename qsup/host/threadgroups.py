"""The two groups that the threads of a VM are parted into, each a cgroup below the VM's own: vCPUs, and all else.

Decides: how the groups are made, filled and undone, and which thread belongs in which.
Must not: know which threads run vCPUs, or when to look; nor be called for a VM that wants no group: whoever moves a
thread waits for an RCU grace period, 5-15 ms, though only once for all that are moved one behind the other.

They are made in the one hierarchy that has the cpu controller. In version 2 they are threaded cgroups, so that whatever
else the VM's cgroup keeps, and who is in it, stays as it was; only the VM's own can be killed. In version 1 they are
ordinary ones: that directory then lists none of its processes, and each of the groups those that have a thread there.

A thread begins in the group of the one that starts it: a worker with the main loop, and so a vCPU that comes later; but
what KVM starts when the guest runs for the first time (kvm-nx-lpage-recovery) with a vCPU.

Source: Documentation/admin-guide/cgroup-v2.rst, "Threads"; cgroup-v1/cgroups.rst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from qsup.errors import HostError, from_oserror
from qsup.host import affinity, limits, membership
from qsup.host.limits import GROUPS

_VCPU, _OTHERS = GROUPS["vcpu_cpu"], GROUPS["emulator_cpu"]
#: Looks at threads, of which each but the first is for those that came meanwhile.
_ROUNDS = 5


def hold(paths: Sequence[Path], wanted: Mapping[str, int | None], pid: int, vcpus: Set[int]) -> Mapping[str, str]:
    """Hold a VM's groups to limits, with every thread in its own; without any limit there are no groups.

    Args:
        paths: the directories of the VM's cgroup, which it is in.
        wanted: by the names of `GROUPS`, all of them.
        pid: QEMU's.
        vcpus: its threads that run vCPUs.

    Returns:
        Why a limit is not kept, words for after a colon, by its name.
    """
    names = [name for name, limit in wanted.items() if limit is not None]
    top = limits.directory_of(paths, "cpu")
    if top is None:
        return {name: limits.why_not(paths, name) for name in names}
    try:
        if not names:
            limits.impose([top], wanted)  # version 1 still asks a group that was just removed for its quota
            _undo(top)
            return {}
        _make(top)
        refused = limits.impose([top], wanted)
        _fill(top, pid, vcpus)
    except HostError as error:
        return dict.fromkeys(names or wanted, error.message)
    return refused


def are_filled(paths: Sequence[Path], pid: int, vcpus: Set[int]) -> bool:
    """Whether every thread still is in its group: each is read once.

    A thread that has left them all is missed where programs that serve devices have more in there.
    """
    top = limits.directory_of(paths, "cpu")
    if top is None:
        return True  # there is nothing to put right
    name = _listing(top)
    try:
        own, running, others = (_threads(directory, name) for directory in (top, top / _VCPU, top / _OTHERS))
    except HostError:  # somebody has removed one
        return False
    return not own and running == vcpus and len(running) + len(others) >= affinity.count(pid)


def remove(path: Path) -> bool:
    """Remove the groups of a cgroup that has ended; whether there are none now."""
    for group in GROUPS.values():
        try:
            (path / group).rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # EBUSY: there is still somebody in it
            return False
    return True


def _make(top: Path) -> None:
    for group in GROUPS.values():
        try:
            (top / group).mkdir(exist_ok=True)
        except OSError as error:
            raise from_oserror(error, f"could not make {top / group}") from error
        if _is_v2(top):
            _write(top / group / "cgroup.type", "threaded")
    if _is_v2(top):
        _write(top / "cgroup.subtree_control", "+cpu")


def _undo(top: Path) -> None:
    """Have all threads in the VM's own cgroup, as if there had never been groups."""
    for _ in range(_ROUNDS):
        if not any((top / group).exists() for group in GROUPS.values()):
            return
        for pid in membership.processes(top):
            _move(top / "cgroup.procs", pid)
        if remove(top):
            if _is_v2(top):
                _write(top / "cgroup.subtree_control", "-cpu")
            return
    raise HostError(f"the groups of threads in {top} do not empty")


def _fill(top: Path, pid: int, vcpus: Set[int]) -> None:
    name = _listing(top)
    for _ in range(_ROUNDS):
        there = {thread: group for group in GROUPS.values() for thread in _threads(top / group, name)}
        # what is in neither group is moved in: QEMU's, and what serves its devices
        every = {*affinity.threads(pid), *_threads(top, name), *there}
        wrong = {thread for thread in every if there.get(thread) != _group_of(thread, vcpus)}
        if not wrong:
            return
        for thread in sorted(wrong, key=lambda thread: (thread not in vcpus, thread)):
            try:
                _move(top / _group_of(thread, vcpus) / name, thread)
            except HostError as error:
                # a worker of the kernel's that is kept where it began (PF_NO_SETAFFINITY: of io_uring before 6.3)
                if error.details.get("errno") != "EINVAL" or thread in vcpus:
                    raise


def _group_of(thread: int, vcpus: Set[int]) -> str:
    return _VCPU if thread in vcpus else _OTHERS


def _is_v2(top: Path) -> bool:
    return (top / "cgroup.controllers").exists()


def _listing(top: Path) -> str:
    """The file that lists the threads of a cgroup and takes them."""
    return "cgroup.threads" if _is_v2(top) else "tasks"


def _threads(directory: Path, name: str) -> frozenset[int]:
    try:
        with open(f"{directory}/{name}", "rb", buffering=0) as file:
            return frozenset(map(int, file.readall().split()))
    except OSError as error:
        raise from_oserror(error, f"could not read {directory}/{name}") from error


def _move(path: Path, number: int) -> None:
    try:
        path.write_text(str(number))
    except ProcessLookupError:
        return  # it has ended
    except OSError as error:
        raise from_oserror(error, f"could not move {number} by {path}") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise from_oserror(error, f"could not write {text!r} to {path}") from error
