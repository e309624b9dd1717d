"""The way of a VM along the table: an edge is taken, told, written down where it matters, and its effects begun.

Decides: what is told and saved of an edge, and which events follow from where it led.
Must not: hold a state that the table did not give it, or carry an effect out; the VM's `Body` does.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from qsup.errors import UndefinedTransition
from qsup.instance import adopt, stop
from qsup.instance.body import Body, Orders
from qsup.instance.cause import Cause
from qsup.instance.hold import Hold
from qsup.instance.keeper import Keeper
from qsup.instance.position import Position
from qsup.instance.restart import wants_restart
from qsup.instance.services import Services
from qsup.instance.shown import Shown
from qsup.instance.state import Effect, Event, Level, State
from qsup.instance.teller import Change, Teller

#: States in which the cause alone may change.
_OUT_OF_REACH = (State.UNRESPONSIVE, State.UNREACHABLE)
#: What ends QEMU.
_ENDING = frozenset({Effect.QUIT, Effect.TERM, Effect.KILL})
#: Levels in which no start is under way.
_START_OVER = (Level.DEACTIVATING, Level.INACTIVE, Level.FAILED)


class Course:
    """Where one VM goes, edge by edge.

    Args:
        position: the one that it moves.
        hold: whose operation the edges are told to belong to.
        keeper: writes down where it led.
    """

    def __init__(
        self, shown: Shown, position: Position, hold: Hold, teller: Teller, keeper: Keeper, services: Services
    ) -> None:
        self._shown = shown
        self._position = position
        self._hold = hold
        self._teller = teller
        self._keeper = keeper
        self._services = services
        self._log = structlog.get_logger().bind(instance=shown.name)

    def apply(self, body: Body, event: Event, cause: Cause | None = None) -> None:
        """Take the edge of an event; one that has none here is noted, and changes nothing."""
        position = self._position
        before, cause_before = position.state, position.cause
        try:
            transition = position.move(event, cause)
        except UndefinedTransition as error:
            self._log.warning("event without an edge", why=error.message)
            return
        if position.cause is not cause_before:
            self._shown.touch()
        if position.state is not before:
            body.cancel_stage()
            body.cancel_room()
            if position.was_ready or position.state.level in _START_OVER:
                body.cancel_start_timeout()
            self._tell(before, event)
        elif position.state in _OUT_OF_REACH and position.cause != cause_before:
            self._tell(before, event)  # it is known now, or another part of it stands still
        self.limit_stage(transition.effects, agent=self._shown.observed.agent_connected)
        orders = self.orders()
        if not _ENDING.isdisjoint(transition.effects):
            self.save()  # however soon this daemon dies, the next one knows that the end was wanted, and why
        for effect in transition.effects:
            body.perform(effect, orders)
        if position.state is State.GUEST_PANICKED and before is not State.GUEST_PANICKED:
            self._end_panicked(body)
        if position.state is State.IO_ERROR and position.held:
            self.apply(body, Event.HELD, adopt.held_by(position.cause))

    def _end_panicked(self, body: Body) -> None:
        """A panicked guest stands still to be looked at, unless its policy wants it started again."""
        cause = self._position.cause
        if cause is not None and wants_restart(self._shown.loaded.unit.service.restart, cause):
            self.apply(body, Event.RESTART_WANTED, cause)

    def limit_stage(self, effects: Iterable[Effect], *, agent: bool) -> None:
        """Have the stage of a stop be over in time, where an effect begins one."""
        given, service = self._timeout, self._shown.loaded.unit.service
        if (seconds := stop.longest(effects, service, given=given, agent=agent)) is not None:
            self._position.limit_stage(seconds)

    @property
    def _timeout(self) -> float | None:
        return self._hold.holder.timeout if self._hold.holder else None

    def orders(self) -> Orders:
        """What effects need to know now."""
        position = self._position
        return Orders(
            loaded=self._shown.loaded,
            history=position.history,
            ending=position.ending,
            was_ready=position.was_ready,
            held=position.held,
            stop_timeout=self._timeout,
            stage_by=position.stage_by,
            start_by=position.start_by,
            agent_connected=self._shown.observed.agent_connected,
            restart_delay=position.restart_delay,
            operation=self._hold.operation,
        )

    def _tell(self, before: State, event: Event) -> None:
        self._shown.touch()
        state, life = self._position.state, self._shown.life
        self._teller.changed(
            Change(
                state=state,
                before=before,
                by=event,
                cause=self._position.cause,
                pid=life.process.pid if life else None,
                operation=self._hold.operation,
            )
        )
        holder = self._hold.holder
        if holder is not None and holder.begun:
            self._services.operations.progress(holder.operation, state.substate)

    # what is written down

    def save(self, *, at_once: bool = False) -> None:
        """Where it stands, as far as it lives; see `Keeper.save`."""
        resets = self._shown.observed.resets
        self._keeper.save(self._shown.life, self._position, self._hold.operation, resets, at_once=at_once)

    def keep_hardware(self) -> None:
        """What it consists of; see `Keeper.keep`."""
        self._keeper.keep(self._shown.life, self._position, self._shown.observed.resets)

    def keep_end(self) -> None:
        """How it ended; see `Keeper.save_end`."""
        self._keeper.save_end(self._shown.ran, self._position, self._hold.operation)

    @property
    def is_unsaved(self) -> bool:
        """Whether something could not be written down, or was not yet."""
        return self._keeper.unsaved_end or self._keeper.uncounted

    def save_again(self, *, at_once: bool = False) -> None:
        """Try that anew."""
        if self._keeper.unsaved_end:
            self.keep_end()
        if self._keeper.uncounted:
            self.save(at_once=at_once)
