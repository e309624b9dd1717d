"""The limits of a VM: what its unit says, what its cgroup is held to, and what of it is not.

Decides: which limits a unit asks for, and the words for those that are not enforced.
Must not: know how a cgroup keeps a limit (`qsup.host.limits`), or change the unit.

They are set before QEMU is executed, and count from the moment at which it is moved into its cgroup, before its guest
runs. What it has used until then, as it does not know its guest's memory yet, is not counted against it.
Those of groups of its threads count from when QEMU has said which of them run vCPUs, before its guest runs, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import trio
from attrs import evolve

from qsup.errors import HostError, StartError
from qsup.host import blockdevice, limits, ownlimits, threadgroups
from qsup.host.cgroup import Cgroup
from qsup.host.limits import GROUPS, NAMES, Devices, Effective, Limits
from qsup.unit.kinds import DeviceLimit
from qsup.unit.model import Unit
from qsup.unit.needs import too_little_memory
from qsup.unit.sections.limits import DEFAULT_WEIGHT

#: What is not the cgroup's to keep, and is QEMU's alone.
OOM_SCORE = "oom_score_adjust"
#: The names of all that a unit can ask for, by those of the fields of `Limits`.
KEYS: Mapping[str, str] = {**NAMES, OOM_SCORE: "oom-score-adjust"}
#: Those that say where it may run at all, and where its memory must be.
FENCE = ("cpuset_cpus", "cpuset_mems")
#: Seconds for a file system to say which device it is on.
_LOOK_TIMEOUT = 5.0


def asked(unit: Unit) -> Limits:
    """What a unit wants its VM to be held to; devices are named by path."""
    section = unit.limits
    weights = {"cpu_weight": section.cpu_weight, "io_weight": section.io_weight}
    return Limits(
        cpu=section.cpu or None,
        vcpu_cpu=section.vcpu_cpu or None,
        emulator_cpu=section.emulator_cpu or None,
        memory=section.memory or None,
        memory_high=section.memory_high or None,
        pids=section.pids or None,
        swap=section.swap,
        io_read_bps=_devices(section.io_read_bps),
        io_write_bps=_devices(section.io_write_bps),
        io_read_iops=_devices(section.io_read_iops),
        io_write_iops=_devices(section.io_write_iops),
        cpuset_cpus=frozenset(section.cpuset_cpus) or None,
        cpuset_mems=frozenset(section.cpuset_mems) or None,
        **{name: None if weight == DEFAULT_WEIGHT else weight for name, weight in weights.items()},
    )


def _devices(entries: tuple[DeviceLimit, ...]) -> Devices | None:
    return tuple((entry.path, entry.amount) for entry in entries) or None


async def _by_number(named: Devices) -> Devices:
    """Devices by the numbers of their disks; of two paths on one disk the lesser amount counts. `HostError`."""
    found: dict[str, int] = {}
    for path, amount in named:
        with trio.move_on_after(_LOOK_TIMEOUT) as scope:
            look = partial(blockdevice.whole_disk, path)
            device = await trio.to_thread.run_sync(look, abandon_on_cancel=True)
            found[device] = min(amount, found.get(device, amount))
        if scope.cancelled_caught:
            raise HostError(f"the file system of {path} does not answer")
    return tuple(sorted(found.items()))


async def _resolved(wanted: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Limits with devices by number, and why some of them cannot be had."""
    found, refused = dict(wanted), {}
    for name, limit in wanted.items():
        if isinstance(limit, tuple):
            try:
                found[name] = await _by_number(limit)
            except HostError as error:
                refused[name] = error.message
                del found[name]
    return found, refused


def _apart(wanted: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Limits of the whole VM, and those of its groups of threads."""
    groups = {name: limit for name, limit in wanted.items() if name in GROUPS}
    return {name: limit for name, limit in wanted.items() if name not in GROUPS}, groups


def _lift(cgroup: Cgroup) -> None:
    """Let groups have all that the whole may: version 1 refuses a part that is more, whichever is changed first."""
    limits.impose(cgroup.paths, dict.fromkeys(GROUPS))


def check_enough(unit: Unit, accel: str) -> None:
    """See that a VM may have what it needs, now that its accelerator is known.

    Raises:
        StartError: it may not.
    """
    if why := too_little_memory(unit, accel):
        raise StartError(f"limits.{why}", hint="let it have more, or its guest less ([memory] size)")


class Limiting:
    """The limits of one life.

    Long because whoever changes any of them, or where its threads are, must wait for who does so already.

    Args:
        cgroup: the VM's.
        found: the pid of a QEMU that was found again, of which it is to be seen whether it is in there.

    Attributes:
        effective: as the kernel said when they were set last.
    """

    def __init__(self, cgroup: Cgroup, *, found: int | None = None) -> None:
        self.effective = Effective()
        self._cgroup = cgroup
        self._pid = self._found = found
        self._asked: dict[str, Any] = {}
        self._score = self._nofile = 0
        self._outside = ""
        self._refused: Mapping[str, str] = {}
        self._vcpus: frozenset[int] = frozenset()
        self._changing = trio.Lock()

    @property
    def is_fenced(self) -> bool:
        """Whether its unit asks for a fence: then the kernel moves its threads when they come into the cgroup."""
        return any(self._asked.get(name) for name in FENCE)

    @property
    def is_wanted(self) -> bool:
        """Whether its unit asks for any limit that a cgroup keeps."""
        return any(limit is not None for limit in self._asked.values())

    @property
    def is_divided(self) -> bool:
        """Whether its threads are to be in groups, for a limit of one of these."""
        return any(self._asked.get(name) is not None for name in GROUPS)

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is asked for and not enforced, and what its cgroup is not, one sentence each."""
        return (*([self._cgroup.trouble] if self._cgroup.trouble else []), *self._not_kept)

    @property
    def _not_kept(self) -> list[str]:
        if self._outside and self.is_wanted:
            return [f"its limits are not enforced: it {self._outside}"]
        return [f"limits.{KEYS[name]} is not enforced: {why}" for name, why in self._refused.items()]

    async def impose(self, unit: Unit) -> None:
        """Hold the VM to what its unit says; what it says nothing of stays as it is.

        Where it says nothing at all nobody is asked: that takes a third of a millisecond of each start and adoption.
        """
        self._score, self._nofile = unit.limits.oom_score_adjust, unit.limits.nofile
        self._read_own()
        self._asked = wanted = {name: limit for name, limit in asked(unit).items().items() if limit is not None}
        if not wanted:
            return
        self._look()
        found, refused = await _resolved(wanted)
        self._asked = {name: found.get(name) for name in wanted}
        whole, groups = _apart(found)
        refused |= {name: why for name in groups if (why := self._cgroup.why_not(name))}
        if groups or "cpu" in whole:
            _lift(self._cgroup)  # there may be some, of an earlier daemon that died as it changed them
        self._refused = refused | dict(self._cgroup.impose(whole))
        limits.impose(self._cgroup.paths, groups)
        self._read()

    def joined(self, reason: str, pid: int) -> None:
        """QEMU is in its cgroup, or, for a reason, is not; whoever makes cgroups may have had something to say."""
        self._pid, self._found, self._outside = pid, None, reason
        self._refused = {**self._refused, **self._cgroup.missed}
        if self._score and (why := self._adjust(self._score)):
            self._refused = {**self._refused, OOM_SCORE: why}
        self._read_own()
        if self.is_wanted:
            self._read()

    def _adjust(self, score: int) -> str:
        try:
            ownlimits.adjust(self._pid or 0, score)
        except HostError as error:
            return error.message
        return ""

    def _look(self) -> None:
        if self._found is not None:
            self._outside = "" if self._cgroup.holds(self._found) else "is not in its cgroup"

    async def divide(self, vcpus: Iterable[int]) -> None:
        """QEMU has said which of its threads run vCPUs: have them in their group, and all others in the other.

        Where no group is wanted nothing is done. It may wait for the kernel, as `qsup.host.threadgroups` says.
        """
        self._vcpus = frozenset(vcpus)
        self._read_own()  # only by now it surely is QEMU
        await self.put_right()

    def is_as_divided(self) -> bool:
        """Whether every thread is where `divide` has left it, or nothing can be done about it now."""
        if not self._can_divide or self._changing.locked():
            return True
        return threadgroups.are_filled(self._cgroup.paths, self._pid or 0, self._vcpus)

    async def put_right(self) -> None:
        """Have every thread in its group once more; what cannot be done is a trouble."""
        if self._can_divide:
            async with self._changing:
                refused = await self._hold_groups({})
                others = {name: why for name, why in self._refused.items() if name not in GROUPS}
                self._refused = others | dict(refused)
                self._read()

    @property
    def _can_divide(self) -> bool:
        return self.is_divided and bool(self._vcpus) and not self._outside

    def check_kept(self, unit: Unit) -> None:
        """See that all is enforced where the unit requires it.

        Raises:
            StartError: it is not.
        """
        if unit.limits.require and self._not_kept:
            hint = "take that out of [limits], or let it start without by require = false"
            raise StartError("; ".join(self.troubles), hint=hint)

    def why_not(self, name: str) -> str:
        """Why a limit cannot be enforced, words for after a colon, or ``""``."""
        if name == OOM_SCORE:
            return ""
        self._look()
        return f"it {self._outside}" if self._outside else self._cgroup.why_not(name)

    def memory_held(self) -> int:
        """Bytes that it holds; `HostError`."""
        return self._cgroup.memory_held()

    async def change(self, unit: Unit, names: frozenset[str]) -> Mapping[str, str]:
        """Hold the VM to some limits as a unit says, all or none; may wait for the kernel to take memory back.

        Args:
            names: by which `KEYS` has them.

        Returns:
            Why one cannot be, words for after a colon, by its name; then it is held to what it was.
        """
        async with self._changing:
            return await self._change(unit, names)

    async def _change(self, unit: Unit, names: frozenset[str]) -> Mapping[str, str]:
        every = asked(unit).items()
        wanted, refused = await _resolved({name: every[name] for name in names - {OOM_SCORE}})
        if not refused and OOM_SCORE in names and (why := self._adjust(unit.limits.oom_score_adjust)):
            refused = {OOM_SCORE: why}
        if refused:
            return refused
        refused = dict(await self._hold(wanted))
        if refused:
            await self._hold({name: self._asked.get(name) for name in wanted})
            if OOM_SCORE in names:
                self._adjust(self._score)
        else:
            self._asked = self._asked | wanted
            self._score = unit.limits.oom_score_adjust if OOM_SCORE in names else self._score
            self._refused = {name: why for name, why in self._refused.items() if name not in names}
        self._read_own()
        self._read()
        return refused

    async def _hold(self, wanted: Mapping[str, Any]) -> Mapping[str, str]:
        """Hold it to limits, and its groups to theirs; why one is not kept."""
        whole, groups = _apart(wanted)
        is_lifted = self.is_divided and "cpu" in whole
        if is_lifted:
            _lift(self._cgroup)
        refused = await self._cgroup.change(whole) if whole else {}
        if not is_lifted and (refused or not groups):
            return refused
        # what was lifted is held again whatever became of the whole
        held = await self._hold_groups({} if refused else groups)
        return refused or held

    async def _hold_groups(self, groups: Mapping[str, Any]) -> Mapping[str, str]:
        """The same of groups alone; one that is not named is held to what is asked of it."""
        wanted = {name: groups.get(name, self._asked.get(name)) for name in GROUPS}
        hold = partial(threadgroups.hold, self._cgroup.paths, wanted, self._pid or 0, self._vcpus)
        return await trio.to_thread.run_sync(hold)

    def has_lost(self) -> bool:
        """Whether something that its cgroup lost as it went offline is back, and `mend` has not begun yet."""
        return not self._changing.locked() and self._cgroup.has_lost(self._fences)

    async def mend(self) -> None:
        """Have the VM's fence be whole again where something of it was offline and is back.

        Raises:
            HostError: the kernel refused it.
        """
        async with self._changing:
            await self._cgroup.mend(self._fences)

    @property
    def _fences(self) -> dict[str, Any]:
        return {name: self._asked.get(name) for name in FENCE}

    def _read(self) -> None:
        try:
            self.effective = evolve(self.effective, **self._cgroup.limits().items())
        except HostError as error:
            wanted = [name for name, limit in self._asked.items() if limit is not None]
            self._refused = {**self._refused, **dict.fromkeys(wanted, error.message)}

    def _read_own(self) -> None:
        if self._pid is None:
            return
        score = ownlimits.score(self._pid) if self._score else None
        nofile = ownlimits.nofile(self._pid) if self._nofile else None
        if (score, nofile) != (self.effective.oom_score_adjust, self.effective.nofile):
            self.effective = evolve(self.effective, oom_score_adjust=score, nofile=nofile)
