"""When an operation is over, by the VM's state alone."""

from __future__ import annotations

import itertools

import pytest
from attrs import evolve

from qsup.instance.cause import Cause, CauseKind
from qsup.instance.settle import Holder, Remains, Standing, TakenUp, Unfinished, settle, take_up
from qsup.instance.state import CHANGES, Level, Request, State


def standing(state: State, *, was_ready: bool = True) -> Standing:
    """A VM in a state."""
    return Standing(name="web", state=state, cause=None, was_ready=was_ready, stopping=False, failure=None, pid=None)


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
COMING_BACK = Remains(started=None, ended=NOW - 10, ordered=False, again=True)


@pytest.mark.parametrize(
    ("request_", "found", "expected"),
    [
        (Request.STOP, ALIVE, {"begun": True, "stopping": True}),
        (Request.STOP, DOWN_BEFORE, {"begun": True}),
        (Request.STOP, DOWN_BY_IT, {"begun": True}),
        (Request.KILL, ALIVE, {"begun": False, "stopping": True, "ask": True}),
        (Request.KILL, DOWN_BY_IT, {"begun": True}),
        # its policy is about to start it again, which neither wants
        (Request.STOP, COMING_BACK, {"begun": False, "ask": True}),
        (Request.KILL, COMING_BACK, {"begun": False, "ask": True}),
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
    taken = take_up(Unfinished(operation="1", request=request_, asked=NOW), found)
    parts = dict(expected)
    holder = Holder(
        operation="1", request=request_, begun=parts.pop("begun"), start_next=parts.pop("start_next", False)
    )
    assert taken == TakenUp(holder=holder, **parts)


COMMANDS = (Request.PAUSE, Request.RESUME, Request.RESET, Request.POWERDOWN, Request.NMI)


def left(request: Request, *, sent: bool) -> Holder:
    """One command whose daemon died, as the next one takes it up."""
    unfinished = Unfinished(operation="1", request=request, asked=NOW, sent=sent, timeout=3.0)
    taken = take_up(unfinished, ALIVE)
    assert (taken.ask, taken.stopping, taken.holder.left, taken.holder.timeout) == (False, False, unfinished, 3.0)
    return taken.holder


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("request_", COMMANDS, ids=str)
def test_a_command_whose_daemon_died_ends_by_what_qemu_says(request_: Request, sent: bool) -> None:
    """It waits for QEMU, has come true, is carried out where that is harmless, or has failed: one in every state."""
    again = request_ in (Request.PAUSE, Request.RESUME)
    for state in State:
        settled = settle(left(request_, sent=sent), standing(state))
        if state in (State.UNREACHABLE, State.UNRESPONSIVE):
            assert settled is None, state
            continue
        assert settled is not None, state
        if state.level not in (Level.ACTIVE, Level.ACTIVATING) or state in (State.SPAWNING, State.AUTO_RESTART):
            assert settled.error is not None
            assert "was overtaken" in settled.error.message
        elif (request_, state) in (
            (Request.PAUSE, State.PAUSED),
            (Request.RESUME, State.RUNNING),
            (Request.RESUME, State.WAITING_READY),
        ):
            assert (settled.error, settled.ask) == (None, False)
        elif not sent or again or (request_ is Request.RESET and state is State.GUEST_PANICKED):
            assert settled.ask
        else:
            assert settled.error is not None
            assert "whether it was carried out is not known" in settled.error.message


@pytest.mark.parametrize(
    ("sent", "kind", "obeyed"),
    [(True, CauseKind.GUEST_SHUTDOWN, True), (False, CauseKind.GUEST_SHUTDOWN, False), (True, CauseKind.SIGNAL, False)],
)
def test_a_guest_that_obeyed_its_power_button(sent: bool, kind: CauseKind, obeyed: bool) -> None:
    """It powered off while no daemon ran: by the button, if that was pressed at all."""
    settled = settle(left(Request.POWERDOWN, sent=sent), evolve(standing(State.DEAD), cause=Cause(kind=kind)))
    assert settled is not None
    assert (settled.error is None) is obeyed


def test_a_command_ends_with_the_life_it_was_for() -> None:
    """A VM that ended and is about to be started again has overtaken it, too."""
    for request in COMMANDS:
        holder = Holder(operation="1", request=request, begun=True)
        assert settle(holder, standing(State.RUNNING)) is None
        for state in (State.AUTO_RESTART, State.SPAWNING, State.CRASHED):
            settled = settle(holder, standing(state))
            assert settled is not None, state
            assert (settled.error is None) is (request is Request.POWERDOWN)


def test_a_vm_that_ends_is_no_error_of_the_daemon() -> None:
    """QEMU may die in the middle of anything, and each request has a code that says so."""
    for request in (*COMMANDS, *CHANGES):
        settled = settle(Holder(operation="1", request=request, begun=True), standing(State.CRASHED))
        assert settled is not None
        if settled.error is not None:
            assert settled.error.code == ("change-refused" if request in CHANGES else "cancelled")
            assert settled.error.hint


def test_a_restart_that_goes_on_keeps_its_timeout() -> None:
    """What the guest is given does not become the unit's for a daemon's death."""
    unfinished = Unfinished(operation="1", request=Request.RESTART, asked=NOW, timeout=3.0)
    assert take_up(unfinished, ALIVE).holder.timeout == 3.0


def test_a_stop_is_under_way_before_the_monitor_is_reached() -> None:
    """A restarted daemon has to find the monitor before it can go on; that is no stop that failed."""
    holder = Holder(operation="1", request=Request.STOP, begun=True)
    assert settle(holder, evolve(standing(State.UNREACHABLE), stopping=True)) is None


@pytest.mark.parametrize("request_", [Request.STOP, Request.RESTART], ids=str)
def test_a_stop_that_waited_for_another_is_asked_for_again(request_: Request) -> None:
    """Nothing of it has been done, so the VM is not touched before its turn; what has ended meanwhile needs no turn."""
    unfinished = Unfinished(operation="1", request=request_, asked=NOW, waits=True)
    taken = take_up(unfinished, ALIVE)
    assert (taken.ask, taken.stopping, taken.holder.begun, taken.holder.start_next) == (True, False, False, False)
    for found in (evolve(ALIVE, started=NOW + 1), Remains(started=None, ended=NOW + 1, ordered=True)):
        assert take_up(unfinished, found) == take_up(evolve(unfinished, waits=False), found)


def test_a_change_of_keys_is_asked_for_again_of_a_vm_that_has_gone_down() -> None:
    """What is left to change is its unit; a change of hardware alone ends with the life it was for."""
    settled = settle(left(Request.SET, sent=True), standing(State.DEAD))
    assert settled is not None
    assert settled.ask
    settled = settle(left(Request.ATTACH, sent=True), standing(State.DEAD))
    assert settled is not None
    assert settled.error is not None
