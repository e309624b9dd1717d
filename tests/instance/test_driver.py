"""A driver without a VM: what others may rely on when it fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve

from qsup.host.claims import Claims
from qsup.host.rundir import Layout
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.driver import Driver
from qsup.instance.messages import RESET, Happened, Seen, Told
from qsup.instance.operation import OperationState
from qsup.instance.operations import OperationTable
from qsup.instance.runstate import Guest
from qsup.instance.services import Services
from qsup.instance.settle import Holder
from qsup.instance.state import Effect, Event, Request, State
from qsup.instance.teller import Teller
from qsup.unit.load import LoadedUnit
from qsup.unit.model import Unit
from qsup.unit.sections.service import ServiceSection


class _Memory:
    """A journal that keeps nothing."""

    async def append(self, *records: dict[str, Any], flush: bool = True) -> None:
        """Forget it."""


def _unused(*_arguments: Any, **_named: Any) -> Any:
    raise AssertionError("not to be called")


def driver(told: list[str]) -> Driver:
    """One whose events are put into a list."""
    services = Services(
        layout=Layout.for_root(Path("/nowhere")),
        load=_unused,
        persist=_unused,
        facts=_unused,
        capabilities=_unused,
        claims=Claims(),
        cgroups=_unused,  # type: ignore[arg-type]  # never called by these tests
        identities=_unused,  # type: ignore[arg-type]  # never called by these tests
        operations=OperationTable(_Memory()),
        publish=lambda event_type, instance, data: told.append(event_type),
        block_devices=(),
        uids=None,
        on_latency=_unused,
    )
    return Driver(LoadedUnit(name="web", unit=Unit(), files=(), etag="", text=""), services)


async def test_whoever_waits_for_an_operation_hears_of_a_driver_that_failed() -> None:
    """The operation ends as failed by a bug, and the VM is free for the next."""
    told: list[str] = []
    failed = driver(told)
    operations = failed._services.operations
    operation = operations.begin("start", "web", uid=0)
    failed.hold(Holder(operation=operation.id, request=Request.START))
    failed.abandon()
    ended = await operations.wait_final(operation.id, 0)
    assert ended.state is OperationState.FAILED
    assert ended.error is not None
    assert "by a bug" in ended.error.message
    assert (failed.holder, told) == (None, ["operation"])
    failed.abandon()
    assert told == ["operation"]


async def test_an_operation_that_has_ended_is_not_told_again() -> None:
    """Whatever ends late, one event tells the end of an operation."""
    told: list[str] = []
    late = driver(told)
    operation = late._services.operations.begin("start", "web", uid=0)
    late._hold.end(operation.id)
    late._hold.end(operation.id)
    late._hold.end("no longer kept")
    assert told == ["operation"]


PANIC = Seen(life=0, guest=Guest.PANICKED, cause=Cause(kind=CauseKind.GUEST_PANIC))


def running(policy: str) -> tuple[Driver, Any, list[Effect]]:
    """A driver whose VM runs, a body that only notes what is asked of it, and its notes."""
    found, asked = driver([]), list[Effect]()
    found.loaded = evolve(found.loaded, unit=Unit(service=ServiceSection(restart=policy)))
    body = SimpleNamespace(
        cancel_stage=lambda: None,
        cancel_start_timeout=lambda: None,
        cancel_room=lambda: None,
        perform=lambda effect, _orders: asked.append(effect),
    )
    for event in (Event.START, Event.LAUNCHED, Event.READY):
        found._position.move(event, None)
    return found, body, asked


@pytest.mark.parametrize(
    ("policy", "state", "effects"),
    [
        ("no", State.GUEST_PANICKED, []),
        ("on-failure", State.STOPPING_QUIT, [Effect.QUIT]),
        ("on-panic", State.STOPPING_QUIT, [Effect.QUIT]),
    ],
)
def test_what_no_event_told_counts_when_it_is_seen_twice(policy: str, state: State, effects: list[Effect]) -> None:
    """A panic whose event was lost is one all the same, and the policy is obeyed as if it had come."""
    found, body, asked = running(policy)
    found._on_seen(body, PANIC)
    assert (found.state, asked) == (State.RUNNING, [])
    found._on_seen(body, PANIC)
    assert (found.state, asked) == (state, effects)


def silent(kind: CauseKind) -> Cause:
    """A silence."""
    return Cause(kind=kind, detail="no answer")


async def test_a_silence_that_becomes_another_is_told_again() -> None:
    """First the main loop is busy, then the process stands still: each is told once, and told apart."""
    found, body, _ = running("no")
    told: list[Any] = []
    found._course._teller = Teller("web", lambda _type, _name, data: told.append(data["cause"]["text"]))
    kinds = (CauseKind.MAIN_LOOP_SILENT, CauseKind.MAIN_LOOP_SILENT, CauseKind.PROCESS_SILENT, CauseKind.PROCESS_SILENT)
    for kind in kinds:
        found._course.apply(body, Event.SILENT, silent(kind))
    assert told == ["main loop", "process"]


BY_OPERATOR = Cause(kind=CauseKind.OPERATOR)
WATCHED = Cause(kind=CauseKind.WATCHDOG)


@pytest.mark.parametrize(
    ("happened", "stays", "ends"),
    [
        (Happened(life=0, event=Event.GUEST_PANICKED, cause=PANIC.cause), State.GUEST_PANICKED, State.STOPPING_QUIT),
        (Happened(life=0, event=Event.GUEST_PANICKED, cause=WATCHED), State.GUEST_PANICKED, State.STOPPING_QUIT),
        (Happened(life=0, event=Event.GUEST_RESET), State.RUNNING, State.RUNNING),
        (
            Happened(life=0, event=Event.GUEST_IO_ERROR, cause=Cause(kind=CauseKind.IO_ERROR)),
            State.IO_ERROR,
            State.IO_ERROR,
        ),
    ],
    ids=["panic", "watchdog", "reset", "io-error"],
)
@pytest.mark.parametrize("policy", ["no", "on-failure", "on-panic", "always"])
async def test_what_a_policy_makes_of_a_guest_that_goes_on_or_stands_still(
    policy: str, happened: Happened, stays: State, ends: State
) -> None:
    """Only a guest that panicked is ended to be started again, by each policy but `no`."""
    found, body, _ = running(policy)
    await found._on_event(body, happened)
    assert found.state is (stays if policy == "no" else ends)


IO_ERROR = Cause(kind=CauseKind.IO_ERROR, detail="disk root: full", disk="root", nospace=True)


def test_an_operators_pause_stands_above_an_io_error() -> None:
    """Whatever comes first: the guest is `paused`, nobody looks for room, and QEMU's own word for it is not news."""
    for order in ("error-first", "pause-first"):
        found, body, asked = running("no")
        if order == "error-first":
            found._course.apply(body, Event.GUEST_IO_ERROR, IO_ERROR)
            assert (found.state, asked) == (State.IO_ERROR, [Effect.AWAIT_ROOM])
            found._position.held = True
            found._course.apply(body, Event.HELD, BY_OPERATOR)
        else:
            found._position.held = True
            found._course.apply(body, Event.GUEST_IO_ERROR, IO_ERROR)
        seen = Seen(life=0, guest=Guest.IO_ERROR, cause=None)
        for _ in range(3):
            found._on_seen(body, seen)
        cause = found._position.cause
        assert (found.state, cause and cause.kind) == (State.PAUSED, CauseKind.OPERATOR)
        assert Effect.LET_GO_ON not in asked
        found._course.apply(body, Event.GUEST_RESUMED)
        found._course.apply(body, Event.GUEST_IO_ERROR, IO_ERROR)
        assert (found.state, found._position.held) == (State.IO_ERROR, False)


def test_a_paused_guests_last_request_may_fail() -> None:
    """What was under way when it was paused fails: it stays paused, by whoever paused it."""
    found, body, _ = running("no")
    found._course.apply(body, Event.GUEST_STOPPED)
    found._course.apply(body, Event.GUEST_IO_ERROR, IO_ERROR)
    assert (found.state, found._position.cause) == (State.PAUSED, None)
    found, body, _ = running("no")
    found._course.apply(body, Event.GUEST_PANICKED, PANIC.cause)
    found._course.apply(body, Event.GUEST_IO_ERROR, IO_ERROR)
    assert (found.state, found._position.cause) == (State.GUEST_PANICKED, PANIC.cause)


def test_the_worse_error_of_two_is_named() -> None:
    """One that goes by itself gives way to one that does not, and a nameless one to one that names the disk."""
    found, body, _ = running("no")
    broken = evolve(IO_ERROR, disk="data", detail="disk data: broken", nospace=False)
    for cause, named in (
        (evolve(IO_ERROR, disk="", nospace=False), ""),
        (IO_ERROR, "root"),
        (evolve(IO_ERROR, disk="more"), "root"),
        (broken, "data"),
        (IO_ERROR, "data"),
    ):
        found._course.apply(body, Event.GUEST_IO_ERROR, cause)
        assert found.view.cause is not None
        assert found.view.cause.disk == named


def test_a_guest_that_panics_without_end_keeps_no_memory_in_events() -> None:
    """The newest few of its events have its last words, the older ones have none any more."""
    found, body, _ = running("no")
    told: list[Any] = []
    found._course._teller = Teller("web", lambda event_type, instance, data: told.append(data["cause"]))
    said = evolve(IO_ERROR, console=("full",))
    for _ in range(20):
        found._course.apply(body, Event.GUEST_IO_ERROR, said)
        found._course.apply(body, Event.GUEST_RESUMED)
    kept = [cause["console"] for cause in told if cause is not None]
    assert kept == [[]] * 12 + [["full"]] * 8


async def test_resets_are_counted_and_told_once_a_second_at_most() -> None:
    """A guest that resets itself without end fills nobody's events; an operator's reset is told and not counted."""
    told: list[str] = []
    found = driver(told)
    body: Any = SimpleNamespace(number=0)
    for guest in (True, True, False, True):
        await found._handle(body, Told(life=0, type=RESET, data={"guest": guest, "reason": "guest-reset"}))
    assert (found.view.resets, told) == (3, [RESET])


def test_an_answer_that_an_event_has_overtaken_does_not_count() -> None:
    """What QEMU said before it said otherwise is not believed, however often it was said."""
    found, body, asked = running("on-failure")
    found._on_seen(body, PANIC)
    found._on_seen(body, evolve(PANIC, guest=Guest.RUNNING, cause=None))
    found._on_seen(body, PANIC)
    found._course.apply(body, Event.GUEST_STOPPED)
    found._on_seen(body, PANIC)
    assert (found.state, asked) == (State.PAUSED, [])
