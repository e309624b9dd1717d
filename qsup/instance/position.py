"""Where a VM stands: its state, why it is there, since when, and how often it was restarted.

Decides: how the table's answer is taken over, and what is remembered from one state to the next.
Must not: carry out effects, or tell anybody; the driver does both.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio
from attrs import field, frozen

from qsup.host import proc
from qsup.instance import restart
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.restart import RestartHistory
from qsup.instance.state import Event, Level, State, Transition, step
from qsup.unit.sections.service import ServiceSection

#: By these a stop that an earlier daemon began goes on where it was.
_GOES_ON = (Event.FOUND, Event.FOUND_STOPPING, Event.ADOPTED_STOPPING)


@frozen(kw_only=True, eq=False)
class _Waiting:
    """Somebody who waits for a state."""

    satisfied: Callable[[State], bool]
    came: trio.Event = field(factory=trio.Event)


class Position:
    """The one place that holds a VM's state.

    Attributes:
        cause: why it is in its state, or ``None``.
        ending: why it is being stopped, from the beginning of the stop to the end of the process.
        stage_by: CLOCK_BOOTTIME seconds by when the stage of that stop is over, ``None`` where none has begun.
        start_by: the same by when it must be ready, where an earlier daemon has begun its start.
        was_ready: it has been ready since its process was started.
        since: wall clock of the last change of state, seconds since the epoch, for people.
        uptime: CLOCK_BOOTTIME seconds of when a driver first came to this state.
        held: an operator wants it paused, so nobody else lets it go on.
        history: its automatic restarts.
        restart_delay: seconds until the next one, once it was judged.
    """

    def __init__(self) -> None:
        self.cause: Cause | None = None
        self.ending: Cause | None = None
        self.stage_by: float | None = None
        self.start_by: float | None = None
        self.was_ready = False
        self.held = False
        self.since = time.time()
        self.uptime = proc.uptime()
        self.history = RestartHistory()
        self.restart_delay = 0.0
        self._state = State.DEAD
        self._kept_since = self._kept_uptime = 0.0
        self._waiting: set[_Waiting] = set()

    @property
    def state(self) -> State:
        """The state now."""
        return self._state

    async def wait(self, satisfied: Callable[[State], bool]) -> None:
        """Wait until the state satisfies a predicate, be it for a moment; the caller sets the deadline."""
        if satisfied(self._state):
            await trio.lowlevel.checkpoint()
            return
        waiting = _Waiting(satisfied=satisfied)
        self._waiting.add(waiting)
        try:
            await waiting.came.wait()
        finally:
            self._waiting.discard(waiting)

    def move(self, event: Event, cause: Cause | None) -> Transition:
        """Take the edge of the table that belongs to this event.

        Raises:
            UndefinedTransition: there is none; nothing was changed.
        """
        transition = step(self._state, event)
        before, self._state = self._state, transition.target
        moved = self._state is not before
        if moved and event not in _GOES_ON:
            self.stage_by = None
        if self._state is State.SPAWNING:
            self.start_by = None
        self.was_ready = (self.was_ready and self._state is not State.SPAWNING) or self._state is State.RUNNING
        if self._state.level is Level.DEACTIVATING:
            # the first reason is the reason, and what the guest does then does not replace it; an operator's word does
            ordered = cause is not None and cause.kind is CauseKind.OPERATOR
            self.cause = self.ending = cause if ordered else self.ending or cause
        elif cause is not None and not moved and not self._is_news(cause):
            pass
        elif cause is not None or (moved and self._state.level in (Level.ACTIVE, Level.ACTIVATING)):
            self.cause = cause
        if self._state in (State.RUNNING, State.WAITING_READY):
            self.held = False
        if moved:
            self._note_change()
        elif self._state is State.DEAD:
            self._kept_since = self._kept_uptime = 0.0  # it was recalled to where it was already
        return transition

    def _is_news(self, cause: Cause) -> bool:
        """Whether it says more of a VM that stays where it is than the cause that is known."""
        if cause.kind is CauseKind.IO_ERROR and self._state is not State.IO_ERROR:
            return False  # of what it had under way before it stood still
        known = self.cause
        if known is None or cause.kind is not known.kind:
            return True
        return bool(cause.disk) and (not known.disk or (known.nospace and not cause.nospace))

    def _note_change(self) -> None:
        # a daemon's restart is no change of the VM's: the time stands until it is known again where the VM is
        self.since = self._kept_since or time.time()
        self.uptime = self._kept_uptime or proc.uptime()
        if self._state is not State.UNREACHABLE:
            self._kept_since = self._kept_uptime = 0.0
        for waiting in self._waiting:
            if waiting.satisfied(self._state):
                waiting.came.set()

    def limit_stage(self, seconds: float) -> None:
        """A stage of a stop is over in so many seconds, or when an earlier daemon's would have been."""
        by = proc.uptime() + seconds
        self.stage_by = by if self.stage_by is None else min(by, self.stage_by)

    def resume(
        self,
        *,
        history: RestartHistory,
        ending: Cause | None,
        since: float,
        was_ready: bool,
        held: bool = False,
        stage_by: float | None = None,
        start_by: float | None = None,
    ) -> None:
        """Go on from what an earlier daemon wrote down."""
        self.stage_by, self.start_by = stage_by, start_by
        self.history, self.ending, self._kept_since, self.was_ready = history, ending, since, was_ready
        self.held = held

    def recall(self, *, history: RestartHistory, since: float, uptime: float, due: float, now: float) -> None:
        """Go on from how the VM ended under an earlier daemon.

        Args:
            due: monotonic seconds of the next automatic restart.
            now: monotonic seconds.
        """
        self.history, self.restart_delay = history, max(0.0, due - now)
        self.since = self._kept_since = since
        self.uptime = self._kept_uptime = uptime

    def forget_restarts(self) -> None:
        """Somebody started it: automatic restarts count from here."""
        self.history = RestartHistory()

    def judge_end(self, cause: Cause, service: ServiceSection, now: float) -> tuple[Event, Cause]:
        """What the end of the process is to the table, and its cause.

        Args:
            cause: how the process ended; a stop that was under way is the cause before that.
            now: monotonic seconds.
        """
        # of a process that ended by itself the kernel tells twice, and the second time more: that it dumped core
        reason = cause if self.ending is None or self.ending.kind is cause.kind else self.ending
        self.ending = None
        if self.was_ready:
            self.history = self.history.settled(now, service)
        event = restart.outcome(self._state, reason, service, self.history, now)
        if event is Event.RESTARTING:
            self.restart_delay = restart.delay(service, len(self.history.recent))
            self.history = self.history.add(now, service)
        elif event is Event.LIMIT_HIT:
            reason = restart.limit_cause(reason, service)
        return event, reason
