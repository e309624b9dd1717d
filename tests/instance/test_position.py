"""Where a VM stands: what is remembered from one state to the next."""

from __future__ import annotations

import pytest

from qsup.instance.cause import Cause, CauseKind
from qsup.instance.position import Position
from qsup.instance.restart import RestartHistory
from qsup.instance.state import Event, State
from qsup.unit.model import ServiceSection

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
