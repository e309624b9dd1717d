"""The driver's own part of a run record: what is running and how it got there.

Decides: what a driver needs, besides the process itself, to go on with a VM that an earlier daemon started.
Must not: say how the VM is found (`qsup.host.records.RunRecord` does), or hold anything secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import field, frozen

from qsup.host import codec
from qsup.host.pci import Binding
from qsup.host.records import LATEST, PID_MAX, TICKS_MAX, within
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.entry import Chosen
from qsup.instance.restart import RestartHistory
from qsup.plan.spec import PlanSummary

_RESETS_MAX = 1 << 53


@frozen(kw_only=True)
class CauseRecord:
    """A `Cause` in plain values."""

    kind: str
    detail: str = ""
    exit_code: int | None = None
    signal: str = ""

    @classmethod
    def of(cls, cause: Cause) -> CauseRecord:
        """Take a cause apart."""
        return cls(kind=cause.kind.value, detail=cause.detail, exit_code=cause.exit_code, signal=cause.signal)

    def cause(self) -> Cause:
        """Put it together again.

        Raises:
            ValueError: the kind is unknown to this version.
        """
        return Cause(kind=CauseKind(self.kind), detail=self.detail, exit_code=self.exit_code, signal=self.signal)


@frozen(kw_only=True)
class HelperRecord:
    """A program that serves an entry of the unit, such as ``device.data``: its process (`qsup.host.proc`)."""

    entry: str
    pid: int = field(validator=within(1, PID_MAX))
    start_time: int = field(validator=within(0, TICKS_MAX))


@frozen(kw_only=True)
class Running:
    """One life of one VM.

    Args:
        description, files: of the unit, as it was when QEMU was started.
        unit: every key with its value; what is running, whatever the files say now.
        since: wall clock of the last change of state.
        launched: the guest was let run; what stands still since then, somebody or something has stopped.
        was_ready: readiness was reached, so an adopter need not wait for it again.
        held: an operator wants it paused.
        ending: a stop that is under way, by its cause.
        told_to_end: that stop has come further than asking the guest.
        stage_by: CLOCK_BOOTTIME seconds by when that is over: asking the guest, or else waiting for QEMU's own end.
        start_by: the same by when it must be ready, once a daemon has taken a start over.
        helpers: programs that serve its devices.
        bindings: PCI devices of the host that it has, or is about to take.
        restarts: automatic restarts so far; ``restart_times`` are CLOCK_MONOTONIC seconds, valid within one boot.
        resets: how often the guest has reset itself in this life.
        chosen: the CPUs that were chosen for it.
    """

    SCHEMA: ClassVar[int] = 1
    UPGRADES: ClassVar[codec.Upgrades] = {}

    description: str
    files: tuple[str, ...]
    unit: Mapping[str, Any]
    plan: PlanSummary
    since: float = field(validator=within(0, LATEST))
    launched: bool = False
    was_ready: bool = False
    ending: CauseRecord | None = None
    told_to_end: bool = False
    stage_by: float | None = field(default=None, validator=within(0, LATEST))
    start_by: float | None = field(default=None, validator=within(0, LATEST))
    restarts: int = 0
    restart_times: tuple[float, ...] = ()
    held: bool = False
    resets: int = field(default=0, validator=within(0, _RESETS_MAX))
    helpers: tuple[HelperRecord, ...] = ()
    bindings: tuple[Binding, ...] = ()
    chosen: Chosen | None = None

    def history(self) -> RestartHistory:
        """The restart history in the form the policy uses."""
        return RestartHistory(count=self.restarts, recent=self.restart_times)
