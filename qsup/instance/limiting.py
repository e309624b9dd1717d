"""The limits of a VM: what its unit says, what its cgroup is held to, and what of it is not.

Decides: which limits a unit asks for, and the words for those that are not enforced.
Must not: know how a cgroup keeps a limit (`qsup.host.limits`), or change the unit.

They are set before QEMU is executed, and count from the moment at which it is moved into its cgroup, before its guest
runs. What it has used until then, as it does not know its guest's memory yet, is not counted against it.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from attrs import evolve

from qsup.errors import HostError, StartError
from qsup.host.cgroup import Cgroup
from qsup.host.limits import NAMES, Limits
from qsup.unit.model import Unit
from qsup.unit.needs import too_little_memory
from qsup.unit.sections.limits import DEFAULT_WEIGHT


def asked(unit: Unit) -> Limits:
    """What a unit wants its VM to be held to."""
    section = unit.limits
    weight = None if section.cpu_weight == DEFAULT_WEIGHT else section.cpu_weight
    return Limits(
        cpu=section.cpu or None,
        cpu_weight=weight,
        memory=section.memory or None,
        memory_high=section.memory_high or None,
        pids=section.pids or None,
    )


def check_enough(unit: Unit, accel: str) -> None:
    """See that a VM may have what it needs, now that its accelerator is known.

    Raises:
        StartError: it may not.
    """
    if why := too_little_memory(unit, accel):
        raise StartError(f"limits.{why}", hint="let it have more, or its guest less ([memory] size)")


class Limiting:
    """The limits of one life.

    Args:
        cgroup: the VM's.
        found: the pid of a QEMU that was found again, of which it is to be seen whether it is in there.

    Attributes:
        effective: as the kernel said when they were set last.
    """

    def __init__(self, cgroup: Cgroup, *, found: int | None = None) -> None:
        self.effective = Limits()
        self._cgroup = cgroup
        self._found = found
        self._asked = Limits()
        self._outside = ""
        self._refused: Mapping[str, str] = {}

    @property
    def is_wanted(self) -> bool:
        """Whether its unit asks for any limit."""
        return self._asked != Limits()

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is asked for and not enforced, one sentence each."""
        place = (self._cgroup.trouble,) if self._cgroup.trouble else ()
        if self._outside and self.is_wanted:
            return (*place, f"its limits are not enforced: it {self._outside}")
        return (*place, *(f"limits.{NAMES[name]} is not enforced: {why}" for name, why in self._refused.items()))

    def impose(self, unit: Unit) -> None:
        """Hold the VM to what its unit says; what it says nothing of stays as it is.

        Where it says nothing at all nobody is asked: that takes a third of a millisecond of each start and adoption.
        """
        self._asked = asked(unit)
        if not self.is_wanted:
            return
        self._look()
        wanted = {name: limit for name, limit in attrs.asdict(self._asked).items() if limit is not None}
        self._refused = self._cgroup.impose(wanted)
        self._read()

    def joined(self, reason: str) -> None:
        """QEMU is in its cgroup, or, for a reason, is not; whoever makes cgroups may have had something to say."""
        self._found, self._outside = None, reason
        self._refused = {**self._refused, **self._cgroup.missed}
        if self.is_wanted:
            self._read()

    def _look(self) -> None:
        if self._found is not None:
            self._outside = "" if self._cgroup.holds(self._found) else "is not in its cgroup"

    def check_kept(self, unit: Unit) -> None:
        """See that all is enforced where the unit requires it.

        Raises:
            StartError: it is not.
        """
        if unit.limits.require and (self._refused or (self._outside and self.is_wanted)):
            hint = "take that out of [limits], or let it start without by require = false"
            raise StartError("; ".join(self.troubles), hint=hint)

    def why_not(self, name: str) -> str:
        """Why a limit cannot be enforced, words for after a colon, or ``""``."""
        self._look()
        return f"it {self._outside}" if self._outside else self._cgroup.why_not(name)

    def memory_held(self) -> int:
        """Bytes that it holds; `HostError`."""
        return self._cgroup.memory_held()

    async def change(self, unit: Unit, names: frozenset[str]) -> Mapping[str, str]:
        """Hold the VM to some limits as a unit says, all or none; may wait for the kernel to take memory back.

        Args:
            names: of the fields of `Limits`.

        Returns:
            Why one cannot be, words for after a colon, by its name; then it is held to what it was.
        """
        wanted, before = attrs.asdict(asked(unit)), attrs.asdict(self._asked)
        refused = await self._cgroup.change({name: wanted[name] for name in names})
        if refused:
            await self._cgroup.change({name: before[name] for name in names})
        else:
            self._asked = evolve(self._asked, **{name: wanted[name] for name in names})
            self._refused = {name: why for name, why in self._refused.items() if name not in names}
        self._read()
        return refused

    def _read(self) -> None:
        try:
            self.effective = self._cgroup.limits()
        except HostError as error:
            self._refused = {**self._refused, **dict.fromkeys(self._wanted(), error.message)}

    def _wanted(self) -> list[str]:
        return [name for name, limit in attrs.asdict(self._asked).items() if limit is not None]
