"""The restart policy: delays, bursts, and what each end means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.instance.cause import FAILURES, PANICS, Cause, CauseKind
from qsup.instance.restart import RECENT_MAX, RestartHistory, delay, limit_cause, outcome, wants_restart
from qsup.instance.state import Event, State
from qsup.unit.sections.service import ServiceSection

causes = st.sampled_from(CauseKind).map(lambda kind: Cause(kind=kind))


def service(restart: str = "on-failure", **keys: float) -> ServiceSection:
    """A ``[service]`` section with the given keys."""
    return ServiceSection(restart=restart, **keys)  # type: ignore[arg-type]  # keys are of several types


@given(st.floats(0.01, 100), st.floats(0.01, 1000), st.integers(0, 10_000))
def test_delays_double_and_stay_within_their_maximum(first: float, longest: float, recent: int) -> None:
    """The n-th delay is twice the one before it, never above the maximum, whatever the numbers."""
    section = service(restart_delay=first, restart_max_delay=longest)
    here, following = delay(section, recent), delay(section, recent + 1)
    assert here <= following <= max(first, longest)
    assert following in (pytest.approx(2 * here), pytest.approx(max(first, longest)))
    assert delay(section, 0) == pytest.approx(first)


@given(causes)
def test_an_operators_stop_is_never_undone(cause: Cause) -> None:
    """`always` restarts after every cause but the operator's own, and what other VMs kept from starting."""
    final = cause.kind in (CauseKind.OPERATOR, CauseKind.DEPENDENCY)
    assert wants_restart("always", cause) is not final
    assert wants_restart("on-failure", cause) is (cause.kind in FAILURES and not final)
    assert wants_restart("on-panic", cause) is (cause.kind in PANICS)
    assert wants_restart("no", cause) is False


#: What each policy makes of each way to end, from a state in which the guest ran: no, on-failure, on-panic, always.
POLICY = {
    CauseKind.OPERATOR: (Event.ENDED, Event.ENDED, Event.ENDED, Event.ENDED),
    CauseKind.GUEST_SHUTDOWN: (Event.ENDED, Event.ENDED, Event.ENDED, Event.RESTARTING),
    CauseKind.GUEST_RESET: (Event.ENDED, Event.ENDED, Event.ENDED, Event.RESTARTING),
    CauseKind.GUEST_PANIC: (Event.FAILED, Event.RESTARTING, Event.RESTARTING, Event.RESTARTING),
    CauseKind.WATCHDOG: (Event.FAILED, Event.RESTARTING, Event.RESTARTING, Event.RESTARTING),
    CauseKind.EXIT_CODE: (Event.FAILED, Event.RESTARTING, Event.FAILED, Event.RESTARTING),
    CauseKind.SIGNAL: (Event.FAILED, Event.RESTARTING, Event.FAILED, Event.RESTARTING),
    CauseKind.OOM: (Event.FAILED, Event.RESTARTING, Event.FAILED, Event.RESTARTING),
    CauseKind.EXIT_UNKNOWN: (Event.FAILED, Event.RESTARTING, Event.FAILED, Event.RESTARTING),
    CauseKind.MONITOR_LOST: (Event.FAILED, Event.RESTARTING, Event.FAILED, Event.RESTARTING),
    CauseKind.START_FAILED: (Event.START_FAILED, Event.RESTARTING, Event.START_FAILED, Event.RESTARTING),
    CauseKind.START_TIMEOUT: (Event.START_FAILED, Event.RESTARTING, Event.START_FAILED, Event.RESTARTING),
    CauseKind.DEPENDENCY: (Event.START_FAILED, Event.START_FAILED, Event.START_FAILED, Event.START_FAILED),
}
#: Causes by which no process ends: of a state, or of a VM that has none.
NO_END = {
    CauseKind.READY_ASSUMED,
    CauseKind.IO_ERROR,
    CauseKind.MAIN_LOOP_SILENT,
    CauseKind.PROCESS_SILENT,
    CauseKind.MONITOR_SILENT,
    CauseKind.RESTART_LIMIT,
    CauseKind.RECORD_UNREADABLE,
    CauseKind.HOST_REBOOT,
}


def test_the_table_of_policies_has_every_cause() -> None:
    """A cause that is added is decided upon."""
    assert POLICY.keys() | NO_END == set(CauseKind)
    assert not POLICY.keys() & NO_END


@pytest.mark.parametrize(("kind", "events"), POLICY.items(), ids=lambda value: getattr(value, "value", None))
def test_what_each_policy_makes_of_each_cause(kind: CauseKind, events: tuple[Event, ...]) -> None:
    """The policy by cause, as the guide has it."""
    policies = ("no", "on-failure", "on-panic", "always")
    found = [outcome(State.RUNNING, Cause(kind=kind), service(name), RestartHistory(), 1.0) for name in policies]
    assert tuple(found) == events


@given(st.sampled_from(list(State)), causes, st.floats(0, 1e6))
def test_without_a_policy_a_failure_fails_and_the_rest_ends(state: State, cause: Cause, now: float) -> None:
    """`restart = "no"`: the end is FAILED or START_FAILED exactly when the cause is a failure."""
    event = outcome(state, cause, service("no"), RestartHistory(), now)
    assert (event in (Event.FAILED, Event.START_FAILED)) is cause.is_failure
    assert (event is Event.ENDED) is not cause.is_failure


def test_a_failure_before_the_guest_ran_is_a_failed_start() -> None:
    """Dying while spawning is not a crash."""
    died = Cause(kind=CauseKind.EXIT_CODE, exit_code=1)
    assert outcome(State.SPAWNING, died, service("no"), RestartHistory(), 0.0) is Event.START_FAILED
    assert outcome(State.RUNNING, died, service("no"), RestartHistory(), 0.0) is Event.FAILED
    late = Cause(kind=CauseKind.START_TIMEOUT)
    assert outcome(State.STOPPING_QUIT, late, service("no"), RestartHistory(), 0.0) is Event.START_FAILED


@given(st.integers(1, 20), st.floats(1, 1000))
def test_the_burst_limit_stops_at_its_number(burst: int, interval: float) -> None:
    """Exactly ``burst`` restarts happen within the interval; the next end is LIMIT_HIT; after it, restarts go on."""
    section = service(start_limit_burst=burst, start_limit_interval=interval)
    crash = Cause(kind=CauseKind.SIGNAL, signal="SEGV")
    history, now = RestartHistory(), 1000.0
    for _ in range(burst):
        assert outcome(State.RUNNING, crash, section, history, now) is Event.RESTARTING
        history = history.add(now, section)
    assert outcome(State.RUNNING, crash, section, history, now) is Event.LIMIT_HIT
    assert outcome(State.RUNNING, crash, section, history, now + interval * 1.001) is Event.RESTARTING
    assert history.count == burst


@given(st.lists(st.floats(0, 100), max_size=200))
def test_the_history_stays_small(times: list[float]) -> None:
    """A VM that restarts for ever costs no memory, and its counter goes on."""
    section = service(start_limit_burst=5)
    history = RestartHistory()
    for at in sorted(times):
        history = history.add(at, section)
    assert len(history.recent) <= RECENT_MAX + 1
    assert history.count == len(times)


@given(st.integers(0, 1000), st.integers(0, 500), st.integers(0, 2000))
def test_a_long_run_starts_the_delays_over(interval: int, longest: int, ran: int) -> None:
    """What ran for longer than the interval and the longest delay, its last wait apart, begins anew; all count."""
    section = service(restart_delay=1.0, restart_max_delay=longest, start_limit_interval=interval)
    history = RestartHistory().add(100.0, section).add(200.0, section)
    settled = history.settled(200.0 + delay(section, 1) + ran, section)
    assert settled.recent == (() if ran > max(interval, longest) else history.recent)
    assert settled.count == 2


def test_a_burst_of_zero_is_no_limit() -> None:
    """``start-limit-burst = 0`` never hits."""
    section = service(start_limit_burst=0)
    history = RestartHistory()
    for at in range(100):
        history = history.add(float(at), section)
    assert outcome(State.RUNNING, Cause(kind=CauseKind.EXIT_UNKNOWN), section, history, 100.0) is Event.RESTARTING


def test_the_limit_keeps_the_last_cause_in_view() -> None:
    """Whoever finds a VM down for good sees how often it was tried and how it ended the last time."""
    last = Cause(kind=CauseKind.EXIT_CODE, exit_code=3, detail="no such disk")
    said = limit_cause(last, service(start_limit_burst=2, start_limit_interval=60.0))
    assert said.kind is CauseKind.EXIT_CODE
    assert said.detail == "restarted 2 times within 1min; the last end: exit code 3: no such disk"
