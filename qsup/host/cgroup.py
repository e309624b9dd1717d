"""A cgroup for each VM: made before the spawn, joined while QEMU starts, emptied and removed at the end.

Decides: which of the mounted hierarchies a VM's cgroup is made in, and how all of its processes are killed.
Must not: know how a limit is kept (`qsup.host.limits`), or fail a start because the host offers no cgroup: its absence
has a reason, and that is all.

The unified hierarchy is used wherever it is mounted and writable, for `cgroup.kill` and `cgroup.events`; controllers of
version 1 beside it add what it cannot (hybrid hosts). Under systemd the daemon's own cgroup must be delegated.

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ in Linux's source.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog
import trio

from qsup.errors import HostError, from_oserror
from qsup.host import cpuset, limits, membership, threadgroups
from qsup.host.counted import OOM_FILES, CgroupStats, SharedOomKills, oom_kills, read, stats
from qsup.host.hierarchies import Hierarchies, detect
from qsup.host.limits import Limits

_log = structlog.get_logger()

_POLL = 0.005  # seconds between two looks at a cgroup that is emptying


class Cgroup:
    """One VM's cgroups, one directory in each hierarchy used. It may have none: then `absence` says why.

    Long because it is all that may be asked of them, most of it in a line: a scope of systemd's answers the same.

    Args:
        paths: the directories, the unified one first.
        absence: what cannot be had here, one sentence, or ``""``.
        shared: who counts OOM kills where none of the directories does.
        spare: a cpuset of version 1, and the daemon's own above it: made once it is needed, as joining one takes time.

    Attributes:
        trouble: what it turned out not to be, one sentence, or ``""``.
        missed: why limits are not kept, as `impose` says it, where that turned out later.
    """

    def __init__(
        self,
        paths: Sequence[Path] = (),
        *,
        absence: str = "",
        shared: SharedOomKills | None = None,
        spare: tuple[Path, Path] | None = None,
    ) -> None:
        self.paths = tuple(paths)
        self._spare = spare
        self.absence = absence
        self.trouble = ""
        self.missed: Mapping[str, str] = {}
        self.shared = shared
        self._known: tuple[Path, ...] = ()
        self._can_lose = False

    def members(self) -> frozenset[int]:
        """The pids of all processes in it."""
        return frozenset().union(*map(membership.processes, self.paths))

    def holds(self, pid: int) -> bool:
        """Whether a process is in all of its directories."""
        return membership.holds(self.paths, pid)

    async def join(self, *pids: int) -> str:
        """Move processes into it, all their threads and children; what they fork later is born inside.

        The kernel lets the mover wait for an RCU grace period, 5-15 ms; start it beside what else is to be done, and
        await it before the guest runs.

        Args:
            pids: children that have not been reaped.

        Returns:
            why one could not be moved, one sentence, or ``""``; a process that has ended is no matter.
        """
        reasons = [await trio.to_thread.run_sync(membership.join, self.paths, pid) for pid in pids]
        return next(filter(None, reasons), "")

    # limits, by the names of the fields of `Limits`

    def why_not(self, name: str) -> str:
        """See `qsup.host.limits.why_not`."""
        return "" if self._spare and name in cpuset.FILES else limits.why_not(self.paths, name)

    def impose(self, wanted: Mapping[str, Any]) -> Mapping[str, str]:
        """Hold it to limits before there is anybody in it, or once more; see `qsup.host.limits.impose`."""
        return self._complete(wanted) or limits.impose(self.paths, wanted)

    async def change(self, wanted: Mapping[str, Any]) -> Mapping[str, str]:
        """Hold those who are in it to other limits; may wait for the kernel to take memory back, or to move it."""
        before = self.paths
        if refused := self._complete(wanted):
            return refused
        if self.paths != before:
            try:
                await trio.to_thread.run_sync(membership.gather, self.paths)
            except HostError as error:
                return dict.fromkeys(wanted, error.message)
        return await trio.to_thread.run_sync(limits.impose, self.paths, wanted)

    def _complete(self, wanted: Mapping[str, Any]) -> Mapping[str, str]:
        """Make the cpuset where something of it is wanted; why that cannot be, by the name of a limit."""
        names = [name for name in cpuset.FILES if wanted.get(name) is not None]
        if self._spare is None or not names:
            return {}
        path, top = self._spare
        if why := _make(path, top):
            return dict.fromkeys(names, f"{path}: {why}")
        self.paths, self._spare = (*self.paths, path), None
        return {}

    def has_lost(self, fences: Mapping[str, frozenset[int] | None]) -> bool:
        """Whether something of its CPUs and nodes was offline and is back; only version 1 loses that for ever."""
        if self._known is not self.paths:
            self._known, self._can_lose = self.paths, any(map(cpuset.is_v1, self.paths))
        return self._can_lose and cpuset.has_lost(self.paths, fences)

    async def mend(self, fences: Mapping[str, frozenset[int] | None]) -> bool:
        """Have such a loss made good; see `qsup.host.cpuset.mend`."""

        def work() -> bool:
            mended = cpuset.mend(self.paths, fences)
            if mended:
                membership.gather(self.paths)
            return mended

        return await trio.to_thread.run_sync(work)

    def limits(self) -> Limits:
        """What the kernel says that they are; `HostError`."""
        return limits.read(self.paths)

    def memory_held(self) -> int:
        """See `qsup.host.limits.memory_held`."""
        return limits.memory_held(self.paths)

    # its end

    async def kill(self) -> None:
        """SIGKILL every process in it, at once where the kernel can (``cgroup.kill``, Linux 5.14)."""
        await trio.lowlevel.checkpoint()
        for path in self.paths:
            if (path / "cgroup.kill").exists():
                _write(path / "cgroup.kill", "1")
                self.thaw()  # beside it, version 1 may keep them from ending
                return
        self._freeze("FROZEN")  # so that little is forked meanwhile
        try:
            seen: set[int] = set()
            while pids := self.members() - seen:
                for pid in pids:
                    membership.kill(pid)
                seen |= pids
        finally:
            self._freeze("THAWED")

    def frozen(self) -> bool:
        """Whether somebody has frozen it, or a cgroup above it: its processes stand still."""
        states = (read(path / "freezer.state") or "" for path in self.paths)
        events = (read(path / "cgroup.events") or "" for path in self.paths)
        return any("THAWED" not in state for state in states if state) or any("frozen 1" in text for text in events)

    def thaw(self) -> None:
        """Let its processes take a signal: in a frozen cgroup of version 1 not even SIGKILL ends one.

        Where that is refused, or somebody has frozen a cgroup above, it stays as it is.
        """
        try:
            self._freeze("THAWED")
        except HostError:
            pass  # whoever waits for the end of the processes sees that there is none

    def _freeze(self, state: str) -> None:
        for path in self.paths:
            if (path / "freezer.state").exists():
                _write(path / "freezer.state", state)

    async def end(self) -> None:
        """Kill whoever is left in it, which is what its VM started and did not wait for, and remove it.

        Raises:
            HostError: as `kill` and `remove` say.
        """
        try:
            if self.members():
                await self.kill()
        finally:
            await self.remove()

    async def remove(self, *, seconds: float = 2.0) -> None:
        """Remove it, waiting for processes that are just ending; parents that are empty then go too.

        Raises:
            HostError: there are still processes in it after that time.
        """
        with trio.move_on_after(seconds) as scope:
            for path in self.paths:
                while not self._is_gone(path):  # noqa: ASYNC110  # the kernel announces no moment when rmdir succeeds
                    await trio.sleep(_POLL)
        if scope.cancelled_caught:
            pids = ", ".join(map(str, sorted(self.members()))) or "none to be seen"
            raise HostError(f"the cgroup {self.paths[0]} did not empty within {seconds:g} s (processes: {pids})")

    def _is_gone(self, path: Path) -> bool:
        """See that one of its directories goes."""
        if not (_remove(path) or (threadgroups.remove(path) and _remove(path))):
            return False
        _remove(path.parent)
        return True

    def stats(self) -> CgroupStats:
        """What it has used."""
        found = [stats(path) for path in self.paths]
        cpu = [stats.cpu_seconds for stats in found if stats.cpu_seconds is not None]
        memory = [stats.memory_bytes for stats in found if stats.memory_bytes is not None]
        return CgroupStats(cpu_seconds=max(cpu, default=None), memory_bytes=max(memory, default=None))

    def oom_kills(self) -> int:
        """How many processes in it the kernel has killed because memory ran out, its own limit's or the host's.

        ``oom_kill`` of ``memory.events`` (version 2) or of ``memory.oom_control`` (version 1, Linux 4.13); 0 where
        nobody counts them.
        """
        return max((oom_kills(path) for path in self.paths), default=0)

    def was_oom_killed(self, before: int) -> bool:
        """Whether a process of it that was sent SIGKILL was so because memory ran out.

        Args:
            before: what `oom_kills` was at first.
        """
        if any((path / name).exists() for path in self.paths for name in OOM_FILES):
            return self.oom_kills() > before
        return self.shared is not None and self.shared.take()


class CgroupManager(Protocol):
    """Whoever makes cgroups for VMs: a subtree of the daemon's own, or a service manager."""

    def create(self, name: str, description: str = "") -> Cgroup:
        """The cgroup of a VM that is about to start; never fails, at worst it has no directory and says why."""

    def reopen(self, name: str, paths: Sequence[str]) -> Cgroup:
        """The cgroup of a VM that was found again, by the directories its run record names."""


class CgroupTree:
    """VMs below the daemon's own cgroup: ``OWN/TAG/NAME`` in each hierarchy.

    Args:
        tag: differs between daemons on one host; see `qsup.host.rundir.Layout.tag`.
        hierarchies: where the daemon is, found out when not given.
    """

    def __init__(self, tag: str, *, hierarchies: Hierarchies | None = None) -> None:
        self.tag = tag
        self._own = hierarchies or detect()
        top = self._own.unified
        # A controller can be handed down only by a cgroup without processes of its own. The daemon is in this one, and
        # were it to move, systemd could start no other there beside VMs (EBUSY; DelegateSubgroup= came with 254).
        self._shared = SharedOomKills(top) if top and (top / OOM_FILES[0]).exists() else None

    def create(self, name: str, description: str = "") -> Cgroup:
        """See `CgroupManager.create`."""
        tops = [self._own.unified] if self._own.unified else []
        # cpu and cpuacct may be one hierarchy
        tops += dict.fromkeys(path for controller, path in self._own.v1.items() if controller != "cpuset")
        made: list[Path] = []
        refused: list[str] = []
        for top in tops:
            path = top / self.tag / name
            reason = _make(path, top)
            if reason:
                refused.append(f"{path}: {reason}")
            else:
                made.append(path)
                if top == self._own.unified:
                    _hand_down(top, path.parent)
        if not tops:
            refused = ["no cgroup hierarchy is mounted"]
        absence = f"without a cgroup of its own in: {'; '.join(refused)}" if refused else ""
        found = self._with_cpuset(made, name, tops, absence)
        if len(found.paths) > len(made):
            found.impose(dict.fromkeys(cpuset.FILES))  # without the fence that was left there
        return found

    def _with_cpuset(self, made: list[Path], name: str, tops: Sequence[Path], absence: str) -> Cgroup:
        spare = None if any(map(cpuset.is_v1, made)) else self._spare(name, tops)
        if spare and spare[0].is_dir():  # a daemon died before it had recorded that it made it
            made, spare = [*made, spare[0]], None
        return Cgroup(made, absence=absence, shared=self._shared, spare=spare)

    def _spare(self, name: str, tops: Sequence[Path]) -> tuple[Path, Path] | None:
        """The cpuset of version 1 that a VM may come to need, beside what it has in other hierarchies."""
        top = self._own.v1.get("cpuset")
        if top is None or top in tops or not os.access(top / "cgroup.procs", os.W_OK):
            return None
        return top / self.tag / name, top

    def reopen(self, name: str, paths: Sequence[str]) -> Cgroup:
        """See `CgroupManager.reopen`."""
        # whoever is in them is killed in the end, so they must be ours, whatever a record says
        found = [path for path in map(Path, paths) if path.parent.name == self.tag and path.is_dir()]
        return self._with_cpuset(found, name, [], "" if found else "its cgroup is gone")


def _make(path: Path, own: Path) -> str:
    """Make a cgroup that we may also move a child of ours into; the reason why not, or ``""``."""
    # moving takes the right to write to both sides' common ancestor (cgroup-v2.rst, "Delegation Containment")
    if not os.access(own / "cgroup.procs", os.W_OK):
        return "not delegated to this user"
    try:
        path.mkdir(parents=True, exist_ok=True)
        cpuset.fill(path, own)
    except OSError as error:
        return os.strerror(error.errno or 0)
    return ""


def _hand_down(top: Path, tag: Path) -> None:
    try:
        limits.hand_down(top, tag)
    except HostError as error:  # limits that a VM misses for it are its warnings
        _log.warning("VMs can have no limits", why=error.message)


def _remove(path: Path) -> bool:
    """Whether a cgroup is gone now; one with processes or children stays."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # EBUSY, ENOTEMPTY
        return False
    return True


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except FileNotFoundError:
        return  # nobody is in a cgroup that is gone
    except OSError as error:
        raise from_oserror(error, f"could not write {text!r} to {path}") from error
