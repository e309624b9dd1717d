"""What a change of a running VM works on.

Decides: the list of these things, and what a module that carries changes out must have.
Must not: do anything itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import trio
from attrs import field, frozen

from qsup.instance.guest import GuestChannel
from qsup.instance.hardware import Hardware
from qsup.instance.life import Life
from qsup.instance.services import Services
from qsup.plan.spec import Capabilities
from qsup.qmp.connection import Monitor
from qsup.unit.compare import Change
from qsup.unit.model import Unit

#: What a drop-in would say: sections with their keys.
Changes = Mapping[str, Any]
NOTHING: Changes = {}


class Goal(Protocol):
    """Something that QEMU can be asked for and the guest has to fulfil, in its own time or never.

    Attributes:
        key: of the unit that it makes true, such as ``memory.size``.
        besides: what the unit must say with it for it to be taken back after a restart, too, as a drop-in would.
    """

    key: str

    @property
    def besides(self) -> Changes:
        """See the attributes."""

    async def step(self, context: Context) -> str:
        """Do what can be done for it now.

        Returns:
            Where it stands, in words; ``""`` once it is reached.

        Raises:
            MonitorError: QEMU did not answer; it goes on later.
            QsupError: it will not be reached; the unit says what is.
        """

    async def result(self, context: Context) -> Mapping[str, Any]:
        """What the caller should know of it once it is reached, JSON values."""

    async def stop(self, context: Context) -> None:
        """Ask for no more of it; what the guest has given or taken stays so, and the unit says that.

        Raises:
            QsupError: QEMU has not heard of it.
        """


def _ignore(_: Any) -> None:
    """Nobody wants to know."""


@frozen(kw_only=True, eq=False)
class Context:
    """What a change works on.

    Args:
        capabilities: of the QEMU that runs.
        guest: its agent.
        keep: writes down what the VM consists of; raises `QsupError` when that cannot be done.
        progress: tells where the operation stands.
        again: an earlier daemon has begun it, and may have come to its end.
        force: whoever asked wants it done against the guest's will.
        force_after: seconds after which the guest is reset for what it has to let go by then; ``None`` for never.
        note: tells what is seen of the VM; fields of `qsup.instance.shown.Observed`.
        overtake: an earlier operation gives up its goal of a key.
        goals: what the guest has to fulfil before the operation is over; whoever carries the change out adds to it.
        reached: those that were so at once.
        drives: held by whoever changes a medium, or finds out what became of one.
    """

    life: Life
    monitor: Monitor
    capabilities: Capabilities
    guest: GuestChannel
    services: Services
    keep: Callable[[], None]
    progress: Callable[[str], None]
    again: bool = False
    force: bool = False
    force_after: float | None = None
    note: Callable[[Mapping[str, Any]], None] = _ignore
    overtake: Callable[[str], Awaitable[None]]
    goals: list[Goal] = field(factory=list)
    reached: list[Goal] = field(factory=list)
    drives: trio.Lock = field(factory=trio.Lock)

    @property
    def name(self) -> str:
        """The VM's."""
        return self.life.record.name

    @property
    def hardware(self) -> Hardware:
        """The VM's."""
        return self.life.hardware


class LiveKeys(Protocol):
    """Carries out changes of some keys while the VM runs."""

    def concerns(self, key: str) -> bool:
        """Whether a key, such as ``cpu.vcpus`` or ``disk.root.throttle.iops``, is one of them."""

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """See that a change is possible, before any is made; what QEMU must be asked for may still refuse it later.

        Args:
            unit: as it is to be.

        Raises:
            QsupError: why it is not.
        """

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Mapping[str, Any]]:
        """Carry out all changes of one request that concern it, and return once they are true.

        Returns:
            What the caller should know of a key besides that it was changed, JSON values by key.

        Raises:
            QsupError: what was not done and why; none of them was, unless the words say otherwise.
        """
