"""What QEMU's run states mean: all of them, each the same for an adopter and for a watcher."""

from __future__ import annotations

import pytest

from qsup.instance.runstate import ANSWERED, IMPLIED, SEEN, Guest, judge_status
from qsup.instance.state import State, step

#: QAPI's ``RunState``, of QEMU 10.0.
RUN_STATES = (
    "debug inmigrate internal-error io-error paused postmigrate prelaunch finish-migrate restore-vm running save-vm "
    "shutdown suspended watchdog guest-panicked colo"
).split()


@pytest.mark.parametrize("status", [*RUN_STATES, "one of tomorrow"])
def test_every_run_state_means_something(status: str) -> None:
    """What is not known by name stands still; what stands still for a reason names it."""
    guest, cause = judge_status(status)
    assert (guest.value == status) or guest is (Guest.PANICKED if status == "watchdog" else Guest.PAUSED)
    assert (cause is not None) == (guest in (Guest.PANICKED, Guest.IO_ERROR, Guest.SHUTDOWN))


@pytest.mark.parametrize("state", IMPLIED)
def test_what_is_seen_leads_where_it_is_implied(state: State) -> None:
    """From each state in which a guest is there, what QEMU says of it leads to the state that implies that."""
    for guest, event in SEEN.items():
        target = step(state, event).target
        # a guest that stands still for a reason does not lose it by being paused as well
        assert guest is Guest.SHUTDOWN or IMPLIED[target] is guest or (guest is Guest.PAUSED and target is state)


def test_what_is_answered_after_a_silence_does_so_too() -> None:
    """No answer leaves an unresponsive VM without a state that fits it."""
    for guest, event in ANSWERED.items():
        target = step(State.UNRESPONSIVE, event).target
        assert guest is Guest.SHUTDOWN or IMPLIED[target] is guest
