"""The one table of states: what every pair, every random walk and every request must keep to."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import UndefinedTransition
from qsup.instance.diagram import levels, page
from qsup.instance.state import (
    TRANSITIONS,
    WITH_PROCESS,
    Effect,
    Event,
    Level,
    Request,
    State,
    Verdict,
    judge,
    step,
)

ENDS = (Event.ENDED, Event.FAILED, Event.START_FAILED, Event.RESTARTING, Event.LIMIT_HIT)
END_EFFECTS = frozenset({Effect.CANCEL_READY, Effect.ARM_RESTART})


def reachable_from(start: State) -> set[State]:
    """Every state that some sequence of events leads to."""
    seen, queue = {start}, deque([start])
    while queue:
        here = queue.popleft()
        for (state, _), transition in TRANSITIONS.items():
            if state is here and transition.target not in seen:
                seen.add(transition.target)
                queue.append(transition.target)
    return seen


def test_every_state_can_be_reached_from_dead() -> None:
    """The table has no state that nothing leads to."""
    assert reachable_from(State.DEAD) == set(State)


@pytest.mark.parametrize("state", State)
def test_every_state_leads_back_to_dead(state: State) -> None:
    """No state is a trap: each can end with the VM down and startable."""
    assert State.DEAD in reachable_from(state)


@pytest.mark.parametrize("state", [state for state in State if state in WITH_PROCESS])
@pytest.mark.parametrize("event", ENDS)
def test_the_end_of_the_process_is_possible_wherever_a_process_is(state: State, event: Event) -> None:
    """QEMU may die at any time, and where it leads has no process."""
    transition = step(state, event)
    assert transition.target not in WITH_PROCESS
    assert set(transition.effects) <= END_EFFECTS


def test_every_effect_is_used_and_every_event_is_handled_somewhere() -> None:
    """The table holds nothing that is never asked for, and knows every event."""
    assert {effect for t in TRANSITIONS.values() for effect in t.effects} == set(Effect)
    assert {event for _, event in TRANSITIONS} == set(Event)


@given(st.sampled_from(list(State)), st.sampled_from(list(Event)))
def test_a_pair_without_an_edge_raises_and_names_both(state: State, event: Event) -> None:
    """`step` gives the table's edge, or a typed error; there is no third way."""
    if (state, event) in TRANSITIONS:
        assert step(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(UndefinedTransition, match=f"{state.substate}.*{event.value}"):
            step(state, event)


@given(st.lists(st.sampled_from(list(Event)), max_size=60))
def test_a_process_appears_only_by_a_launch_or_by_adoption(events: list[Event]) -> None:
    """Along any walk, a state with a process follows one without only through LAUNCH, or because one was found."""
    state = State.DEAD
    for event in events:
        try:
            transition = step(state, event)
        except UndefinedTransition:
            continue
        if transition.target in WITH_PROCESS and state not in WITH_PROCESS:
            assert Effect.LAUNCH in transition.effects or event in (Event.FOUND, Event.FOUND_STOPPING)
        state = transition.target


@given(st.lists(st.sampled_from(list(Event)), max_size=60))
def test_a_stop_only_ever_escalates(events: list[Event]) -> None:
    """Once a VM is being stopped, no event of the guest makes it active again, and stages never go back."""
    order = [State.STOPPING_GUEST, State.STOPPING_QUIT, State.STOPPING_TERM, State.STOPPING_KILL]
    state = State.STOPPING_GUEST
    for event in events:
        try:
            target = step(state, event).target
        except UndefinedTransition:
            continue
        if state.level is not Level.DEACTIVATING:
            return
        assert target.level is not Level.ACTIVE
        if state in order and target in order:
            assert order.index(target) >= order.index(state)
        state = target


@pytest.mark.parametrize("state", [state for state in State if state in WITH_PROCESS - {State.SPAWNING}])
def test_a_process_can_always_be_killed(state: State) -> None:
    """Wherever a process is, `kill` is allowed and sends SIGKILL."""
    assert judge(state, Request.KILL).verdict is Verdict.ALLOWED
    assert Effect.KILL in step(state, Event.KILL).effects


@pytest.mark.parametrize("request_", Request)
@pytest.mark.parametrize("state", State)
def test_every_request_gets_a_verdict_and_every_denial_a_reason(state: State, request_: Request) -> None:
    """`judge` is total; a denial says why, and what to do unless nothing is to be done."""
    judgement = judge(state, request_)
    if judgement.verdict is Verdict.DENIED:
        assert judgement.reason
        assert judgement.hint or state is State.RUNNING
    else:
        assert (judgement.reason, judgement.hint) == ("", "")


@pytest.mark.parametrize(
    ("request_", "event"),
    [
        (Request.START, Event.START),
        (Request.STOP, Event.STOP),
        (Request.KILL, Event.KILL),
        (Request.RESET_FAILED, Event.RESET_FAILED),
    ],
)
@pytest.mark.parametrize("state", State)
def test_what_is_allowed_has_an_edge(state: State, request_: Request, event: Event) -> None:
    """A request that is allowed never runs into an undefined pair."""
    if judge(state, request_).verdict is Verdict.ALLOWED:
        assert (state, event) in TRANSITIONS


def test_starting_an_active_vm_is_needless_and_so_is_stopping_a_dead_one() -> None:
    """Requests for what is already so succeed and do nothing, as in systemctl."""
    assert judge(State.RUNNING, Request.START).verdict is Verdict.NEEDLESS
    assert judge(State.PAUSED, Request.START).verdict is Verdict.NEEDLESS
    assert judge(State.DEAD, Request.STOP).verdict is Verdict.NEEDLESS
    assert judge(State.CRASHED, Request.KILL).verdict is Verdict.NEEDLESS
    assert judge(State.PAUSED, Request.PAUSE).verdict is Verdict.NEEDLESS
    assert judge(State.RUNNING, Request.RESUME).verdict is Verdict.NEEDLESS


@pytest.mark.parametrize("state", State)
def test_only_a_failure_that_is_understood_can_be_forgotten(state: State) -> None:
    """`reset-failed` is needless where nothing failed, leads to `dead`, and never hides a damaged record."""
    verdict = judge(state, Request.RESET_FAILED).verdict
    if state.level is not Level.FAILED:
        assert verdict is Verdict.NEEDLESS
    elif state is State.QUARANTINED:
        assert verdict is Verdict.DENIED
    else:
        assert verdict is Verdict.ALLOWED
        assert step(state, Event.RESET_FAILED).target is State.DEAD


def test_a_silent_monitor_never_ends_a_vm() -> None:
    """No edge from silence or loss of the monitor sends a signal or quits."""
    for (state, event), transition in TRANSITIONS.items():
        if event in (Event.SILENT, Event.MONITOR_LOST) and state.level is Level.ACTIVE:
            assert transition.target.level is Level.ACTIVE
            assert not {Effect.KILL, Effect.TERM, Effect.QUIT} & set(transition.effects)


def test_substates_are_unique() -> None:
    """A substate names one state."""
    assert len({state.substate for state in State}) == len(State)


def test_the_documented_states_are_those_of_the_table() -> None:
    """``docs/states.md`` is printed from the table and has not drifted from it."""
    committed = Path(__file__).parents[2] / "docs" / "states.md"
    assert committed.read_text() == page() + "\n", "run: python -m qsup.instance.diagram > docs/states.md"


def test_the_diagram_of_the_first_level_is_that_of_the_table() -> None:
    """``docs/reliability.md`` shows it as it is printed."""
    document = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    shown = document.partition("<!-- levels -->\n")[2].partition("<!-- end -->")[0]
    assert shown == levels() + "\n", "put there what python -m qsup.instance.diagram --levels prints"


@pytest.mark.parametrize("request_", [Request.ATTACH, Request.DETACH])
def test_what_is_down_is_changed_by_its_unit(request_: Request) -> None:
    """Whoever wants to attach something to it hears how."""
    assert judge(State.DEAD, request_).hint == "start it first, or change its unit by qsupctl set"
    assert judge(State.PAUSED, request_).verdict is Verdict.ALLOWED
    assert judge(State.DEAD, Request.RESIZE).hint == "start it first"
