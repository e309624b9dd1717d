"""When an operation is over, by the VM's state alone."""

from __future__ import annotations

import itertools

import pytest

from qsup.instance.settle import Holder, Standing, settle
from qsup.instance.state import Level, Request, State


def standing(state: State, *, was_ready: bool = True) -> Standing:
    """A VM in a state."""
    return Standing(name="web", state=state, cause=None, was_ready=was_ready, hint="", pid=None)


def test_no_state_says_anything_of_what_has_not_begun() -> None:
    """An event that comes between a request's acceptance and its turn ends nothing: not a kill as failed, not a
    restart as done.
    """
    for request, state in itertools.product(Request, State):
        assert settle(Holder(operation="1", request=request), standing(state)) is None


@pytest.mark.parametrize("request_", [Request.STOP, Request.KILL], ids=str)
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
    second = Holder(operation="1", request=Request.RESTART, begun=True)
    assert settle(second, standing(State.SPAWNING, was_ready=False)) is None
    settled = settle(second, standing(State.RUNNING))
    assert settled is not None
    assert settled.result == {"changed": True}
