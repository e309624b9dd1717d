"""What is kept of a VM that is down: why, how it ran, how often it was restarted, and whether it is about to be again.

Decides: what a restarted daemon knows of a VM that has no process.
Must not: outlive the boot, after which nothing of it is true; the files are in the run directory and name their boot.

The room for it is taken when the VM is started (`reserve`), so that a disk that is full when it ends is no reason to
know less of it: a VM that was to be started again would stay down, and one that an operator stopped might be started.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, ClassVar

import structlog
from attrs import evolve, frozen

from qsup.errors import NoSpaceError, QsupError, StateFileError, from_oserror
from qsup.host import codec, proc
from qsup.host.rundir import Layout
from qsup.instance.cause import Cause
from qsup.instance.entry import Chosen
from qsup.instance.record import CauseRecord
from qsup.instance.restart import RECENT_MAX, RestartHistory
from qsup.instance.state import Event, State
from qsup.plan.spec import PlanSummary
from qsup.unit.load import LoadedUnit
from qsup.unit.parse import unit_from_values
from qsup.unit.write import values_of

_log = structlog.get_logger()

#: By the state a VM is down in: the event that brings a new driver there.
_WAY_BACK = {
    State.CRASHED: Event.FAILED,
    State.START_FAILED: Event.START_FAILED,
    State.START_LIMIT_HIT: Event.LIMIT_HIT,
    State.AUTO_RESTART: Event.RESTARTING,
    State.DEAD: Event.ENDED,
}


@frozen(kw_only=True)
class Ended:
    """How a VM ended.

    Args:
        event: the edge that brings a driver from `State.DEAD` to where the VM was.
        since: wall clock of the end, seconds since the epoch, for people.
        uptime: CLOCK_BOOTTIME seconds of when the end was known, to compare.
        due: CLOCK_MONOTONIC seconds of the next automatic restart, 0 without one.
        output, console: what QEMU printed, and the guest wrote, last.
        unit: every key with its value, as it ran; what counts when its files are gone or broken.
        files: of that unit.
        chosen: the CPUs that are kept for its restart, where they were chosen.
        plan: what of it the promise follows from that it has until then, ``None`` without one.
    """

    SCHEMA: ClassVar[int] = 1
    UPGRADES: ClassVar[codec.Upgrades] = {}

    boot_id: str
    event: str
    cause: CauseRecord | None
    since: float
    uptime: float
    due: float = 0.0
    restarts: int = 0
    restart_times: tuple[float, ...] = ()
    output: tuple[str, ...] = ()
    console: tuple[str, ...] = ()
    unit: Mapping[str, Any] | None = None
    files: tuple[str, ...] = ()
    chosen: Chosen | None = None
    plan: PlanSummary | None = None

    def why(self) -> Cause | None:
        """The cause with what was last said before it.

        Raises:
            ValueError: its kind is unknown to this version.
        """
        return evolve(self.cause.cause(), output=self.output, console=self.console) if self.cause else None

    def history(self) -> RestartHistory:
        """The restart history in the form the policy uses."""
        return RestartHistory(count=self.restarts, recent=self.restart_times)

    def loaded(self, name: str) -> LoadedUnit | None:
        """The unit as it ran, ``None`` where that was not kept.

        Raises:
            ValueError: it is no unit to this version.
        """
        if self.unit is None:
            return None
        return LoadedUnit(name=name, unit=unit_from_values(self.unit), files=self.files, etag="", text="")


def _path(layout: Layout, name: str) -> Path:
    return layout.run / "ended" / f"{name}.json"


def keep(
    layout: Layout,
    ran: LoadedUnit,
    *,
    state: State,
    cause: Cause | None,
    since: float,
    uptime: float,
    due: float,
    history: RestartHistory,
    chosen: Chosen | None = None,
    plan: PlanSummary | None = None,
) -> bool:
    """Write down how a VM ended. Without it a later daemon shows the VM as plainly inactive.

    Args:
        ran: its unit, as it ran.
        chosen, plan: see `Ended`.

    Returns:
        Whether all of it was: on a full disk what was last said may be left out, of many restarts the oldest, and what
        was kept for the next one.

    Raises:
        QsupError: it could not be written.
    """
    ended = Ended(
        boot_id=proc.boot_id(),
        event=_WAY_BACK[state].value,
        cause=CauseRecord.of(cause) if cause else None,
        since=since,
        uptime=uptime,
        due=due,
        restarts=history.count,
        restart_times=history.recent,
        output=cause.output if cause else (),
        console=cause.console if cause else (),
        unit=values_of(ran.unit),
        files=tuple(map(str, ran.files)),
        chosen=chosen,
        plan=plan,
    )
    path = _path(layout, ran.name)
    try:
        _save(ended, path)
    except NoSpaceError:
        recent = ended.restart_times[-RECENT_MAX:]
        _save(evolve(ended, restart_times=recent, output=(), console=(), chosen=None, plan=None), path)
        return False
    return True


def reserve(layout: Layout, loaded: LoadedUnit) -> None:
    """It is started, and its end will find room, whenever that comes; how it ended before is kept until it runs.

    Raises:
        QsupError: there is no room.
    """
    nothing = _nothing(loaded)
    _save(recall(layout, loaded.name, known=nothing.unit) or nothing, _path(layout, loaded.name))


def begin(layout: Layout, loaded: LoadedUnit) -> None:
    """It runs: what was is no longer of interest, and its run record counted before anyway."""
    try:
        _save(_nothing(loaded), _path(layout, loaded.name))
    except QsupError as error:
        _log.warning("what was kept of a VM's end is out of date", instance=loaded.name, why=error.message)
        forget(layout, loaded.name)


def _nothing(loaded: LoadedUnit) -> Ended:
    """As if it had ended with another boot; as large as an end of it is."""
    return Ended(
        boot_id="",
        event=Event.ENDED.value,
        cause=None,
        since=0.0,
        uptime=0.0,
        unit=values_of(loaded.unit),
        files=tuple(map(str, loaded.files)),
    )


def _save(ended: Ended, path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise from_oserror(error, f"could not make {path.parent}") from error
    codec.save_for_boot(ended, path)


def recall(layout: Layout, name: str, *, known: Mapping[str, Any] | None = None) -> Ended | None:
    """How a VM ended in this boot, ``None`` where it has not.

    Args:
        known: values that are known to be a unit: to make one of them takes longer than all else together.

    Raises:
        StateFileError: the file cannot be read; it is left as it is.
    """
    path = _path(layout, name)
    try:
        ended = codec.load(Ended, path)
        if Event(ended.event) not in _WAY_BACK.values():
            raise ValueError(f"event: {ended.event!r} is no end")
        ended.why()
        if ended.unit != known:
            ended.loaded(name)
    except StateFileError as error:
        if error.details.get("missing"):
            return None
        raise
    except ValueError as error:
        raise codec.refused(path, error) from error
    return ended if ended.boot_id == proc.boot_id() else None


def unit_of(layout: Layout, name: str) -> LoadedUnit | None:
    """The unit of a VM that is down, as it ran; ``None`` where that is not known."""
    try:
        ended = recall(layout, name)
        return ended.loaded(name) if ended else None
    except StateFileError:
        return None


def names(layout: Layout, *, besides: Container[str]) -> list[str]:
    """The VMs that have ended in this boot, and those of whom that cannot be read; sorted.

    Args:
        besides: those that are known anyway, and are left out.
    """
    found = []
    for path in sorted(_path(layout, "").parent.glob("[!.]*.json")):
        name = path.name.removesuffix(".json")
        if name in besides:
            continue
        try:
            if recall(layout, name) is None:
                continue
        except StateFileError:
            pass  # its driver says so
        found.append(name)
    return found


def forget(layout: Layout, name: str) -> None:
    """What is kept is no longer true, and what is true cannot be kept."""
    try:
        _path(layout, name).unlink(missing_ok=True)
    except OSError as error:
        _log.warning("could not forget how a VM ended", instance=name, why=str(error))
