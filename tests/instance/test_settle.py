"""When an operation is over, by the VM's state alone."""

from __future__ import annotations

import itertools

import pytest
from attrs import evolve

from qsup.instance.settle import Holder, Remains, Standing, TakenUp, Unfinished, settle, take_up
from qsup.instance.state import Level, Request, State


def standing(state: State, *, was_ready: bool = True) -> Standing:
    """A VM in a state."""
    return Standing(name="web", state=state, cause=None, was_ready=was_ready, stopping=False, hint="", pid=None)


def test_no_state_says_anything_of_what_has_not_begun() -> None:
    """An event that comes between a request's acceptance and its turn ends nothing: not a kill as failed, not a
    restart as done.
    """
    for request, state in itertools.product(Request, State):
        assert settle(Holder(operation="1", request=request), standing(state)) is None


@pytest.mark.parametrize("request_", [Request.STOP, Request.KILL, Request.RESET_FAILED], ids=str)
def test_a_stop_is_over_when_the_vm_is_down(request_: Request) -> None:
    """It succeeds in every state without a process, goes on while it is on its way, and fails in all others."""
    for state in State:
        settled = settle(Holder(operation="1", request=request_, begun=True), standing(state))
        if state.level in (Level.INACTIVE, Level.FAILED):
            assert settled is not None
            assert settled.error is None
        elif state.level is Level.DEACTIVATING and state is not State.STUCK:
            assert settled is None
        else:
            assert settled is not None
            assert settled.error is not None


def test_the_second_half_of_a_restart_begins_when_the_first_is_over() -> None:
    """A restart starts the VM again once it is down, and is over when the VM is ready."""
    first = Holder(operation="1", request=Request.RESTART, begun=True, start_next=True)
    for state in State:
        settled = settle(first, standing(state))
        down = state.level in (Level.INACTIVE, Level.FAILED) or state is State.AUTO_RESTART
        assert (settled is not None and settled.start) is down
        if state is State.STUCK:
            assert settled is not None
            assert settled.error is not None
    second = Holder(operation="1", request=Request.RESTART, begun=True)
    assert settle(second, standing(State.SPAWNING, was_ready=False)) is None
    settled = settle(second, standing(State.RUNNING))
    assert settled is not None
    assert settled.result == {"changed": True}


NOW = 1000.0
ALIVE = Remains(started=NOW - 10, ended=None, ordered=False)
ALIVE_SINCE = Remains(started=NOW + 1, ended=None, ordered=False)
DOWN_BEFORE = Remains(started=None, ended=NOW - 10, ordered=False)
DOWN_BY_IT = Remains(started=None, ended=NOW + 1, ordered=True)
DOWN_SINCE = Remains(started=None, ended=NOW + 1, ordered=False)


@pytest.mark.parametrize(
    ("request_", "found", "expected"),
    [
        (Request.STOP, ALIVE, {"begun": True, "stopping": True}),
        (Request.STOP, DOWN_BEFORE, {"begun": True}),
        (Request.STOP, DOWN_BY_IT, {"begun": True}),
        (Request.KILL, ALIVE, {"begun": False, "stopping": True, "ask": True}),
        (Request.KILL, DOWN_BY_IT, {"begun": True}),
        # the first half of a restart has yet to come, or is done: by what it was asked for, or before
        (Request.RESTART, ALIVE, {"begun": True, "start_next": True, "stopping": True}),
        (Request.RESTART, ALIVE_SINCE, {"begun": True}),
        (Request.RESTART, DOWN_BY_IT, {"begun": True, "start_next": True}),
        (Request.RESTART, DOWN_BEFORE, {"begun": True, "start_next": True}),
        (Request.RESTART, DOWN_SINCE, {"begun": True}),
        (Request.START, ALIVE_SINCE, {"begun": True}),
        (Request.START, DOWN_BEFORE, {"begun": False, "ask": True}),
        (Request.START, DOWN_SINCE, {"begun": True}),
        (Request.RESET_FAILED, DOWN_BEFORE, {"begun": False, "ask": True}),
        (Request.RESET_FAILED, ALIVE_SINCE, {"begun": False, "ask": True}),
    ],
)
def test_how_an_unfinished_operation_goes_on(request_: Request, found: Remains, expected: dict[str, bool]) -> None:
    """What is found of a VM says which half of what a dead daemon had accepted is still to be done."""
    taken = take_up(Unfinished(operation="1", request=request_, created=NOW), found)
    parts = dict(expected)
    holder = Holder(
        operation="1", request=request_, begun=parts.pop("begun"), start_next=parts.pop("start_next", False)
    )
    assert taken == TakenUp(holder=holder, **parts)


def test_a_stop_is_under_way_before_the_monitor_is_reached() -> None:
    """A restarted daemon has to find the monitor before it can go on; that is no stop that failed."""
    holder = Holder(operation="1", request=Request.STOP, begun=True)
    assert settle(holder, evolve(standing(State.UNREACHABLE), stopping=True)) is None
