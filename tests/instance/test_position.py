"""Where a VM stands: what is remembered from one state to the next."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from qsup.instance.cause import Cause, CauseKind
from qsup.instance.position import Position
from qsup.instance.restart import RestartHistory
from qsup.instance.state import Event, State
from qsup.unit.sections.service import ServiceSection

LOST = Cause(kind=CauseKind.MONITOR_LOST)
UP = (Event.START, Event.LAUNCHED)


def after(*events: Event) -> Position:
    """A VM to which all this has happened."""
    position = Position()
    for event in events:
        position.move(event, LOST if event is Event.MONITOR_LOST else None)
    return position


@pytest.mark.parametrize(
    ("events", "ready"),
    [
        ((), False),
        (UP, False),
        ((*UP, Event.MONITOR_LOST), False),
        ((*UP, Event.READY), True),
        ((*UP, Event.READY, Event.MONITOR_LOST), True),
        ((*UP, Event.READY, Event.STOP), True),
        ((*UP, Event.READY, Event.RESTARTING), True),
        ((*UP, Event.READY, Event.RESTARTING, Event.RESTART_DUE), False),
        ((*UP, Event.READY, Event.FAILED, *UP), False),
    ],
)
def test_readiness_is_remembered_until_the_next_start(events: tuple[Event, ...], ready: bool) -> None:
    """A VM whose monitor is found again need not become ready a second time; a new process must."""
    assert after(*events).was_ready is ready


def test_readiness_is_taken_over_from_an_earlier_daemon() -> None:
    """What was ready stays so through an adoption."""
    position = Position()
    position.resume(history=RestartHistory(), ending=None, since=1.0, was_ready=True)
    position.move(Event.FOUND, None)
    assert (position.state, position.was_ready, position.since) == (State.UNREACHABLE, True, 1.0)


BY_ITSELF = Cause(kind=CauseKind.SIGNAL, signal="ABRT")
BY_OPERATOR = Cause(kind=CauseKind.OPERATOR)


@pytest.mark.parametrize(
    ("told", "ended", "reason"),
    [
        (BY_ITSELF, Cause(kind=CauseKind.SIGNAL, signal="ABRT, core dumped"), "signal ABRT, core dumped"),
        (BY_ITSELF, Cause(kind=CauseKind.EXIT_UNKNOWN), "signal ABRT"),
        (BY_OPERATOR, Cause(kind=CauseKind.SIGNAL, signal="ABRT"), "operator"),
    ],
)
def test_the_cause_of_a_process_that_ended_by_itself(told: Cause, ended: Cause, reason: str) -> None:
    """What the kernel tells at the end completes what was told when it began; an operator's word stands before both."""
    position = after(*UP, Event.READY)
    position.move(Event.DYING, BY_ITSELF)
    position.move(Event.STOP, told)
    assert (position.state, position.cause) == (State.EXITING, told)
    event, cause = position.judge_end(ended, ServiceSection(restart="on-failure"), now=1.0)
    assert cause.text == reason
    assert event is (Event.ENDED if told is BY_OPERATOR else Event.RESTARTING)


def delays(service: ServiceSection, *, ran: float, ready: bool = True, ends: int = 6) -> list[float]:
    """The waits before each restart of a VM that ends by itself again and again, having run for so many seconds."""
    position, now = after(*UP), 100.0
    found = []
    for _ in range(ends):
        if ready:
            position.move(Event.READY, None)
        now += ran
        event, _ = position.judge_end(BY_ITSELF, service, now)
        position.move(event, BY_ITSELF)
        found.append(position.restart_delay)
        now += position.restart_delay
        position.move(Event.RESTART_DUE, None)
        position.move(Event.LAUNCHED, None)
    return found


@pytest.mark.parametrize(
    ("interval", "ran", "ready"),
    [(0.0, 0.5, True), (0.0, 7.9, True), (20.0, 15.0, True), (20.0, 100.0, False)],
    ids=["no-interval", "longest-delay", "slow", "never-ready"],
)
def test_the_delay_grows_with_every_consecutive_restart(interval: float, ran: float, ready: bool) -> None:
    """It does so whatever the limit's interval is, up to its maximum, for a VM that never runs well."""
    section = ServiceSection(
        restart="always", restart_max_delay=8.0, start_limit_burst=0, start_limit_interval=interval
    )
    assert delays(section, ran=ran, ready=ready) == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_the_delay_begins_anew_after_a_long_run() -> None:
    """A VM that was ready and ran for longer than the interval waits as at first, however often it was restarted."""
    section = ServiceSection(restart="always", restart_max_delay=8.0, start_limit_interval=20.0)
    assert delays(section, ran=20.1) == [1.0] * 6


@pytest.mark.parametrize(
    ("event", "state"),
    [(Event.ENDED, State.DEAD), (Event.FAILED, State.CRASHED), (Event.RESTARTING, State.AUTO_RESTART)],
)
def test_the_time_of_an_end_is_recalled(event: Event, state: State) -> None:
    """However it ended, it is down since then and not since the daemon's start; what happens next is new."""
    position = Position()
    position.recall(history=RestartHistory(), since=1.0, uptime=1.0, due=0.0, now=0.0)
    position.move(event, BY_OPERATOR)
    assert (position.state, position.since, position.cause) == (state, 1.0, BY_OPERATOR)
    position.move(Event.RESTART_DUE if state is State.AUTO_RESTART else Event.START, None)
    assert position.since > 1.0


async def test_a_state_that_lasts_for_a_moment_is_not_missed() -> None:
    """Whoever waits for it is told, although the VM has moved on before the waiter's turn."""
    position = after(*UP, Event.READY, Event.GUEST_IO_ERROR)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(position.wait, lambda state: state is State.RUNNING)
            await trio.testing.wait_all_tasks_blocked()
            position.move(Event.GUEST_RESUMED, None)
            position.move(Event.GUEST_IO_ERROR, None)
    assert position.state is State.IO_ERROR


def test_an_operators_pause_is_over_when_the_guest_runs() -> None:
    """By whomever it was let go on; and it is taken over from an earlier daemon."""
    position, held = after(*UP, Event.READY), []
    position.held = True
    for event in (Event.GUEST_STOPPED, Event.GUEST_RESUMED):
        position.move(event, None)
        held.append(position.held)
    assert held == [True, False]
    position = Position()
    position.resume(history=RestartHistory(), ending=None, since=1.0, was_ready=True, held=True)
    position.move(Event.FOUND, None)
    position.move(Event.ADOPTED_PAUSED, None)
    assert (position.state, position.held) == (State.PAUSED, True)
