"""What follows the end of a VM: the restart policy and its arithmetic. Pure.

Decides: whether it starts again, after how long, and when it has been tried too often.
Must not: look at a clock. Times are monotonic seconds given by the caller.
"""

from __future__ import annotations

from attrs import evolve, frozen

from qsup.instance.cause import PANICS, Cause, CauseKind
from qsup.instance.state import Event, State
from qsup.unit.quantity import format_duration
from qsup.unit.sections.service import ServiceSection

#: Restarts that are remembered at least: by so many doublings any delay has long met its maximum.
RECENT_MAX = 64
#: Causes of an end before the VM was ready.
_NEVER_RAN = frozenset({CauseKind.START_FAILED, CauseKind.START_TIMEOUT, CauseKind.DEPENDENCY})


@frozen(kw_only=True)
class RestartHistory:
    """The automatic restarts of a VM since it was last started by somebody.

    Args:
        count: all of them.
        recent: monotonic seconds of the latest consecutive ones, oldest first: as many as may count for the delay or
            the burst limit.
    """

    count: int = 0
    recent: tuple[float, ...] = ()

    def within(self, now: float, interval: float) -> tuple[float, ...]:
        """Those of the last ``interval`` seconds."""
        return tuple(at for at in self.recent if now - at < interval)

    def add(self, now: float, service: ServiceSection) -> RestartHistory:
        """The history with one more restart at ``now``."""
        limited = min(len(self.within(now, service.start_limit_interval)), service.start_limit_burst)
        return evolve(self, count=self.count + 1, recent=(*self.recent[-max(limited, RECENT_MAX) :], now))

    def settled(self, now: float, service: ServiceSection) -> RestartHistory:
        """The history of a VM that became ready and ended at ``now``: what follows a long enough run begins anew.

        Long enough is longer than the limit's interval and than the longest delay, from when the last wait was over:
        less would let a VM that fails at once after each long wait, or one without a limit, pass for one that ran well.
        """
        if not self.recent:
            return self
        began = self.recent[-1] + delay(service, len(self.recent) - 1)
        well = now - began > max(service.start_limit_interval, service.restart_max_delay)
        return evolve(self, recent=()) if well else self


def delay(service: ServiceSection, consecutive: int) -> float:
    """Seconds to wait before the next restart.

    Args:
        consecutive: how many restarts came before it without a long enough run since; each doubles the delay.
    """
    # 2.0 ** 1024 would overflow
    return min(
        service.restart_delay * 2.0 ** min(consecutive, RECENT_MAX),
        max(service.restart_max_delay, service.restart_delay),
    )


def wants_restart(policy: str, cause: Cause) -> bool:
    """Whether ``policy`` starts a VM again that ended by ``cause``. An operator's stop is never undone.

    Nor is a start repeated that failed for another VM: it had not begun, and would fail again (as in systemd).
    """
    if cause.kind in (CauseKind.OPERATOR, CauseKind.DEPENDENCY):
        return False
    match policy:
        case "always":
            return True
        case "on-failure":
            return cause.is_failure
        case "on-panic":
            return cause.kind in PANICS
        case _:
            return False


def limit_cause(last: Cause, service: ServiceSection) -> Cause:
    """Why a VM stays down that was restarted too often; how it ended the last time stays in view."""
    often = f"restarted {service.start_limit_burst} times within {format_duration(service.start_limit_interval)}"
    words = f"{often}; the last end: {last.text}"
    return evolve(last, detail=f"{words}: {last.detail}" if last.detail else words)


def outcome(state: State, cause: Cause, service: ServiceSection, history: RestartHistory, now: float) -> Event:
    """Which of the five ends the end of the process is.

    Args:
        state: the state it ended in.
        cause: why it ended.
    """
    if wants_restart(service.restart, cause):
        burst = service.start_limit_burst
        if burst and len(history.within(now, service.start_limit_interval)) >= burst:
            return Event.LIMIT_HIT
        return Event.RESTARTING
    if not cause.is_failure:
        return Event.ENDED
    never_ran = state is State.SPAWNING or cause.kind in _NEVER_RAN
    return Event.START_FAILED if never_ran else Event.FAILED
