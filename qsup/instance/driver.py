"""The one task that owns a VM.

Decides: when to look something up in the table, what each end of the process means, and when an operation is over.
Must not: hold a state that the table did not give it, wait for the guest or QEMU in its own loop, or touch the process
and the monitor itself; its `Body` does, effect by effect.

Everything reaches it through its inbox: requests, QMP events, deadlines, the end of the process. It handles one message
at a time; what takes time runs in a job of the body and posts its result. The only waits of the loop itself are short
ones on the host's own files: reading the unit before a start, cleaning up after an end, so that the next message finds
the VM's place tidy. Long because each kind of message has its handler here, and nowhere else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
import trio
from attrs import evolve, field, frozen
from structlog.contextvars import bind_contextvars, clear_contextvars

from qsup.errors import (
    ChangeError,
    DeniedError,
    DependencyError,
    NoSuchUnit,
    QsupError,
    StateFileError,
    UndefinedTransition,
)
from qsup.host import proc
from qsup.host.output import BoundedLog
from qsup.instance import adopt, change, ended, evidence, stop
from qsup.instance.body import Body, Orders
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.console import ConsoleHub
from qsup.instance.departures import Departures
from qsup.instance.filing import Filing, absent
from qsup.instance.inbox import Inbox
from qsup.instance.keeper import Keeper
from qsup.instance.life import Life
from qsup.instance.messages import (
    DEVICE_PULLED,
    HELPER_ENDED,
    RESET,
    Asked,
    Filed,
    Finished,
    Happened,
    Hasten,
    Lasts,
    LaunchEnded,
    Message,
    Noted,
    ProcessEnded,
    Seen,
    Settled,
    Told,
    TrayMoved,
    Unplugged,
    Waits,
)
from qsup.instance.position import Position
from qsup.instance.restart import wants_restart
from qsup.instance.runstate import IMPLIED, SEEN, Guest
from qsup.instance.services import Services
from qsup.instance.settle import DOWN, Holder, Remains, Standing, Unfinished, settle, take_up, unheard
from qsup.instance.state import BEING_STARTED, Effect, Event, Level, Request, State, Verdict, judge
from qsup.instance.teller import Change, Teller
from qsup.instance.view import InstanceView
from qsup.instance.viewing import Moving, make_view
from qsup.unit.load import LoadedUnit
from qsup.unit.write import difference

_log = structlog.get_logger()

#: Events by which a guest that stood still, or was not heard of, runs.
_RUNS_AGAIN = (Event.GUEST_RESUMED, Event.ANSWERED_RUNNING)
#: What is said when a monitor's connection has ended.
_LAST_OF_A_MONITOR = (Event.DYING, Event.MONITOR_LOST)
#: States in which the cause alone may change.
_OUT_OF_REACH = (State.UNRESPONSIVE, State.UNREACHABLE)
#: What ends QEMU.
_ENDING = frozenset({Effect.QUIT, Effect.TERM, Effect.KILL})
#: Seconds in which a restarted daemon must find a guest ready whose time to start was over before.
_LOOK = 2.0
#: Seconds until what could not be written, or was not yet, is written again.
_SAVE_AGAIN = 2.0
#: Levels in which no start is under way.
_START_OVER = (Level.DEACTIVATING, Level.INACTIVE, Level.FAILED)
#: Events by which a guest stands still that may have said why, and the states in which it ran before.
_STANDS_STILL = (Event.GUEST_PANICKED, Event.GUEST_IO_ERROR)
_RAN = (State.WAITING_READY, State.RUNNING, State.UNRESPONSIVE)
#: Seconds to take in what was written to the console before something happened, if it is not at hand at once.
_CATCH_UP = 0.02


@frozen(kw_only=True)
class Observed:
    """What the VM last told of itself, besides its state."""

    monitor_connected: bool = True
    agent_connected: bool = False
    memory_actual: int | None = None
    memory_size: int | None = None
    threads: tuple[int, ...] = ()
    trays: Mapping[str, str] = field(factory=dict)
    resets: int = 0
    warnings: tuple[str, ...] = ()


class Driver:
    """One VM, over all its lives. Long because each kind of message has its handler, and all share one position.

    Args:
        loaded: its unit as the files say it; `set_unit` replaces it after a reload.
    """

    def __init__(self, loaded: LoadedUnit, services: Services) -> None:
        self.name = loaded.name
        self.loaded = loaded
        self.holder: Holder | None = None
        self.console = ConsoleHub(loaded.name, self.touch, BoundedLog(services.layout.console_log(loaded.name)))
        self.body: Body | None = None
        self._services = services
        self._inbox: Inbox[Message] = Inbox()
        self._scope = trio.CancelScope()
        self._adopted = trio.Event()
        self._position = Position()
        self._keeper = Keeper(loaded.name, services)
        self._teller = Teller(loaded.name, services.publish)
        self._unfinished: Unfinished | None = None
        self._departures = Departures(loaded.name, self._end_operation, self._forget_entry)
        self._left_works: dict[str, Mapping[str, Any] | None] = {}
        self._hint = self._stray = ""
        self._doubt: tuple[float, Guest] | None = None
        self._observed = Observed()
        self._waits_for = ""
        self._ran = loaded
        self._uuid = ""
        self._argv: tuple[str, ...] = ()
        self._view: InstanceView | None = None
        self._touched: trio.Event | None = None
        self._log = _log.bind(instance=loaded.name)

    # what others may see

    @property
    def state(self) -> State:
        """The state now."""
        return self._position.state

    @property
    def life(self) -> Life | None:
        """The VM's present life, ``None`` while it has none."""
        return self.body.life if self.body else None

    @property
    def restart_delay(self) -> float:
        """Seconds from the end of the VM to its automatic restart, while it waits for that."""
        return self._position.restart_delay if self.state is State.AUTO_RESTART else 0.0

    @property
    def view(self) -> InstanceView:
        """All that is known now; the same object until something changes."""
        if self._view is None:
            position = self._position
            moving = Moving(
                state=position.state,
                cause=position.cause,
                since=position.since,
                restarts=position.history.count,
                operation=self._operation,
                waits_for=self._waits_for,
                agent_connected=self._observed.agent_connected,
                memory_actual=self._observed.memory_actual,
                memory_size=self._observed.memory_size,
                threads=self._observed.threads,
                trays=self._observed.trays,
                resets=self._observed.resets,
                warnings=(*self._observed.warnings, *filter(None, [self._stray])),
                console_watchers=self.console.watchers,
                console_has_writer=self.console.has_writer,
                uuid=self._uuid,
            )
            self._view = make_view(self.loaded, self.life, moving)
        return self._view

    @property
    def _operation(self) -> str | None:
        """The one that holds the VM."""
        return self.holder.operation if self.holder else None

    @property
    def trouble(self) -> str:
        """What could not be written down of it, or that it runs unknown to us, one sentence, or ``""``."""
        return self._keeper.trouble or self._stray

    def set_stray(self, pid: int | None) -> None:
        """A process is this VM, and there is no record of it; ``None``: there is none."""
        words = f"process {pid} is this VM, and there is no record of it: it is not watched" if pid else ""
        if words != self._stray:
            self._stray = words
            if words:
                self._log.error("a QEMU without a record", pid=pid)
            self.touch()

    @property
    def command_line(self) -> tuple[str, ...]:
        """QEMU's argv in the present or the last life, empty before the first."""
        return self._argv

    def set_unit(self, loaded: LoadedUnit) -> None:
        """The unit's files were read anew; what the daemon alone acts on counts at once, the rest at the next start."""
        if (loaded.etag, loaded.files) != (self.loaded.etag, self.loaded.files):
            self.loaded = loaded
            self.touch()

    def wait_for(self, whom: str) -> None:
        """Its operation waits for this, in words, which the view shows; ``""``: for nothing any more."""
        if whom != self._waits_for:
            self._waits_for = whom
            self.touch()

    def lose_unit(self) -> None:
        """Its files are gone: what it runs with, or ran with last, counts, and not what they said before they went."""
        self.set_unit(evolve(self._ran if self.life is None else _as_it_runs(self.life), files=()))

    def touch(self) -> None:
        """Something that the view shows has changed."""
        self._view = None
        if self._touched is not None:
            self._touched.set()
            self._touched = None

    def next_touch(self) -> trio.Event:
        """Set when the state, the holder or something else in the view changes for the next time."""
        if self._touched is None:
            self._touched = trio.Event()
        return self._touched

    @property
    def is_adopted(self) -> bool:
        """Whether it is known what an earlier daemon left of this VM."""
        return self._adopted.is_set()

    async def wait_adopted(self) -> None:
        """Wait until what an earlier daemon left of this VM has been taken over, as far as the kernel knows of it."""
        await self._adopted.wait()

    async def wait_state(self, satisfied: Callable[[State], bool]) -> None:
        """Wait until the state satisfies a predicate; the caller sets the deadline."""
        await self._position.wait(satisfied)

    # requests

    def hold(self, holder: Holder) -> None:
        """Take a request that was judged; the holder before it, if any, has been overtaken."""
        if self.holder is not None:
            overtaken = DeniedError(f"overtaken by {holder.request.value}", instance=self.name)
            self._services.operations.finish(self.holder.operation, error=overtaken)
            self._log.info("operation ended", operation=self.holder.operation, outcome="failed", why=overtaken.message)
        self.holder = holder
        self.touch()

    def resume(self, unfinished: Unfinished) -> None:
        """Go on with an operation that an earlier daemon left unfinished, once it is known what is left of the VM."""
        self._unfinished = unfinished
        self.holder = Holder(operation=unfinished.operation, request=unfinished.request, timeout=unfinished.timeout)

    def release(self, operation: str) -> None:
        """Let the VM go if this operation holds it."""
        if self.holder is not None and self.holder.operation == operation:
            self.holder = None
            self.touch()

    def abandon(self) -> None:
        """The task has failed by a bug: whoever waits for an operation hears of it, and another driver takes over.

        That one finds the VM as an earlier daemon leaves it: what is open of it here is closed, nothing is given back.
        """
        if self.body is not None and self.body.life is not None:
            self.body.life.leave()
            self.body.life = None
        if self.holder is not None:
            words = f"{self.holder.request.value} was given up: the daemon failed at it by a bug"
            error = QsupError(words, instance=self.name, hint="the daemon's log says more; look at the VM's status")
            self._end_operation(self.holder.operation, error=error)
        self.touch()

    def post(self, asked: Asked) -> None:
        """Put a request into the inbox; what the guest and the process do overtakes it there."""
        self._inbox.post(asked)

    def refuse(self, error: QsupError) -> None:
        """It is down, was to start by itself, and cannot: it is as after a start that failed."""
        if self.body is not None:
            self._inbox.post(LaunchEnded(life=self.body.number, error=error))

    def hasten(self, operation: str, cut_short: Callable[[], None]) -> None:
        """Have a stop that holds the VM go on to QEMU's own end; see `Hasten`."""
        self._inbox.post(Hasten(operation=operation, cut_short=cut_short))

    def reexamine(self) -> None:
        """Look again at a run record that could not be read; somebody may have repaired or removed it."""
        if self.state is State.QUARANTINED and self.body is not None:
            self._inbox.post(Happened(life=self.body.number, event=Event.RECORD_REPAIRED))

    # the task

    async def run(self) -> None:
        """Own the VM until cancelled or retired. A running VM is then left running; a launch under way is undone."""
        # what this task and its jobs log is about this VM, and no longer about the request that it may have begun with
        clear_contextvars()
        bind_contextvars(instance=self.name)
        with self._scope:
            async with trio.open_nursery() as nursery:
                self.body = Body(self.name, self._services, nursery, self.console, self._inbox, self._keep_hardware)
                with self.body.promises:
                    await self._go_on(self.body)

    async def _go_on(self, body: Body) -> None:
        await self._adopt(body)
        self._adopted.set()
        self.touch()
        try:
            while True:
                unsaved = self._keeper.unsaved_end or self._keeper.uncounted
                with trio.move_on_after(_SAVE_AGAIN if unsaved else math.inf) as waiting:
                    message = await self._inbox.receive()
                if waiting.cancelled_caught:
                    self._save_again()
                    continue
                await self._handle(body, message)
                if not self._inbox:
                    # whoever waits for an operation hears of its end before the disk is asked
                    await trio.lowlevel.checkpoint()
                    self._save()
        finally:
            self._save_again(at_once=True)

    def _save_again(self, *, at_once: bool = False) -> None:
        if self._keeper.unsaved_end:
            self._keep_end()
        if self._keeper.uncounted:
            self._save(at_once=at_once)

    def retire(self) -> None:
        """End the task; the VM does not run and its unit is gone."""
        self.console.forget()
        self._scope.cancel()

    async def _handle(self, body: Body, message: Message) -> None:
        match message:
            case Asked():
                await self._on_request(body, message)
            case Finished():
                self._on_finished(message)
                self._end_operation(message.operation, message.result, message.error)
            case Waits():
                self._on_waits(body, message)
            case Hasten():
                await self._on_hasten(body, message)
            case Lasts():
                self.release(message.operation)  # the guest's part of a change holds nobody
            case Filed():
                self._on_filed(message.loaded)
            case _ if message.life != body.number:
                self._log.debug("message about an earlier life", message=type(message).__name__, life=message.life)
            case LaunchEnded():
                await self._on_launch_ended(body, message)
            case ProcessEnded():
                await self._on_end(body, message.cause)
            case Happened():
                await self._on_event(body, message)
            case Unplugged():
                self._on_unplugged(body, message)
            case TrayMoved():
                self._on_tray(message)
            case Settled():
                await self._on_settled(body, message)
            case Seen():
                self._on_seen(body, message)
            case Noted():
                self._on_noted(message)
            case Told():
                self._on_told(message)

    async def _on_event(self, body: Body, message: Happened) -> None:
        if message.event is Event.RECORD_REPAIRED:
            await self._adopt(body)
            return
        if message.event in _LAST_OF_A_MONITOR and self.life is None:
            return  # the process's own end was first
        if message.event is Event.RESTART_DUE and self._is_to_stop():
            return  # its stop waits for its turn, and is not to be preceded by a start
        event, cause = message.event, message.cause
        if cause is not None and event in _STANDS_STILL and self.state in _RAN:
            cause = await self._with_evidence(cause)
        if event is Event.RESTART_DUE:
            await self._reread_unit()
            if not self._services.turns.try_start(self.name, ""):
                event = Event.QUEUED
        elif event in _RUNS_AGAIN and not self._position.was_ready and self.state is not State.WAITING_READY:
            event = Event.WAITING_AGAIN
        elif event is Event.START_TIMEOUT and self.state is State.SPAWNING and cause is not None:
            cause = evolve(cause, detail=cause.detail.replace("was not ready", "did not answer on its monitor"))
        self._apply(body, event, cause)
        self._settle(body)

    def _on_noted(self, message: Noted) -> None:
        observed = evolve(self._observed, **message.changes)
        if observed != self._observed:
            self._teller.noted(message.changes, set(observed.warnings) - set(self._observed.warnings))
            self._observed = observed
            self.touch()

    def _on_seen(self, body: Body, message: Seen) -> None:
        """QEMU's answer is not what the state implies: an event was lost, or is still to be handled.

        So it counts when it is seen twice with nothing in between; only a guest that has shut down stays so for good.
        """
        implied = IMPLIED.get(self.state)
        # what an operator wants paused may stand still for an I/O error to QEMU
        held = self._position.held and self.state is State.PAUSED and message.guest is Guest.IO_ERROR
        doubt = None if held or implied in (None, message.guest) else (self._position.since, message.guest)
        if doubt is not None and (doubt == self._doubt or message.guest is Guest.SHUTDOWN):
            self._apply(body, SEEN[message.guest], message.cause)
            self._settle(body)
        self._doubt = doubt

    def _on_told(self, message: Told) -> None:
        data = dict(message.data)
        if message.type == RESET:
            self._observed = evolve(self._observed, resets=self._observed.resets + bool(data["guest"]))
            self.touch()
            data["resets"] = self._observed.resets
        elif message.type in (HELPER_ENDED, DEVICE_PULLED):
            self.touch()  # the view warns of it
        self._teller.happened(message.type, data)

    def _on_finished(self, message: Finished) -> None:
        paused = self.holder is not None and self.holder.request is Request.PAUSE
        if paused and message.error is not None and self.state is not State.PAUSED:
            self._position.held = False  # it was wanted, and has not come true

    # transitions

    def _apply(self, body: Body, event: Event, cause: Cause | None = None) -> None:
        before, cause_before = self.state, self._position.cause
        try:
            transition = self._position.move(event, cause)
        except UndefinedTransition as error:
            self._log.warning("event without an edge", why=error.message)
            return
        if self._position.cause is not cause_before:
            self.touch()
        if self.state is not before:
            body.cancel_stage()
            body.cancel_room()
            if self._position.was_ready or self.state.level in _START_OVER:
                body.cancel_start_timeout()
            self._tell(before, event)
        elif self.state in _OUT_OF_REACH and self._position.cause != cause_before:
            self._tell(before, event)  # it is known now, or another part of it stands still
        self._limit_stage(transition.effects, agent=self._observed.agent_connected)
        orders = self._orders()
        if not _ENDING.isdisjoint(transition.effects):
            self._save()  # however soon this daemon dies, the next one knows that the end was wanted, and why
        for effect in transition.effects:
            body.perform(effect, orders)
        if self.state is State.GUEST_PANICKED and before is not State.GUEST_PANICKED:
            self._end_panicked(body)
        if self.state is State.IO_ERROR and self._position.held:
            self._apply(body, Event.HELD, adopt.held_by(self._position.cause))

    def _limit_stage(self, effects: Iterable[Effect], *, agent: bool) -> None:
        given = self.holder.timeout if self.holder else None
        if (seconds := stop.longest(effects, self.loaded.unit.service, given=given, agent=agent)) is not None:
            self._position.limit_stage(seconds)

    def _end_panicked(self, body: Body) -> None:
        """A panicked guest stands still to be looked at, unless its policy wants it started again."""
        cause = self._position.cause
        if cause is not None and wants_restart(self.loaded.unit.service.restart, cause):
            self._apply(body, Event.RESTART_WANTED, cause)

    def _orders(self) -> Orders:
        return Orders(
            loaded=self.loaded,
            history=self._position.history,
            ending=self._position.ending,
            was_ready=self._position.was_ready,
            held=self._position.held,
            stop_timeout=self.holder.timeout if self.holder else None,
            stage_by=self._position.stage_by,
            start_by=self._position.start_by,
            agent_connected=self._observed.agent_connected,
            restart_delay=self._position.restart_delay,
            operation=self._operation,
        )

    def _tell(self, before: State, event: Event) -> None:
        self.touch()
        pid = self.life.process.pid if self.life else None
        self._teller.changed(
            Change(
                state=self.state,
                before=before,
                by=event,
                cause=self._position.cause,
                pid=pid,
                operation=self._operation,
            )
        )
        if self.holder is not None and self.holder.begun:
            self._services.operations.progress(self.holder.operation, self.state.substate)

    def _save(self, *, at_once: bool = False) -> None:
        self._keeper.save(self.life, self._position, self._operation, self._observed.resets, at_once=at_once)

    # the ends of a life

    async def _on_launch_ended(self, body: Body, message: LaunchEnded) -> None:
        if message.born is None:
            self._hint = message.error.hint if message.error else ""
            words = message.error.message if message.error else "the start was cancelled"
            kind = CauseKind.DEPENDENCY if isinstance(message.error, DependencyError) else CauseKind.START_FAILED
            await self._on_end(body, Cause(kind=kind, detail=words), printed=message.output)
            return
        # not before: a launch that this daemon's own end cuts short leaves the VM what it was, a due restart included
        ended.begin(self._services.layout, self.loaded)
        self._take(body, message.born)
        if self.state is State.SPAWNING:
            self._apply(body, Event.LAUNCHED)
        else:
            self._apply(body, Event.KILL)  # stopped at the very moment it was born
        self._settle(body)

    def _take(self, body: Body, life: Life) -> None:
        body.take(life)
        self._uuid, self._argv = life.record.uuid, life.record.argv
        self._observed = Observed(threads=life.threads, resets=life.running.resets)
        self.touch()

    async def _on_end(self, body: Body, cause: Cause, *, printed: bytes = b"", written: bytes = b"") -> None:
        """The process is gone: judge the end, tell it, then clean up; only then is an operation done.

        Args:
            printed: by a QEMU that did not come to life.
            written: by the guest of one that ended while no daemon ran.
        """
        service = self.loaded.unit.service
        if self._is_to_stop():
            service = evolve(service, restart="no")
        event, reason = self._position.judge_end(cause, service, time.monotonic())
        self._observed = Observed()
        reason = await self._with_evidence(reason, printed, written)
        life = body.let_go()
        self._ran = self.loaded if life is None else _as_it_runs(life)
        await self._departures.life_over(body)
        self._end_works(body)
        self._apply(body, event, reason)
        self._keep_end()
        await body.clean_up(life)
        self.touch()
        self._settle(body)

    def _is_to_stop(self) -> bool:
        """Whether a stop was accepted, though it may still be waiting for its turn."""
        return self.holder is not None and self.holder.request in (Request.STOP, Request.KILL)

    async def _with_evidence(self, cause: Cause, printed: bytes = b"", written: bytes = b"") -> Cause:
        """The cause with the last words of QEMU and of the guest, where somebody may ask for them."""
        life = self.life
        if not evidence.wanted(cause):
            return cause
        if life is None:
            return evidence.add(cause, printed, written)
        if life.summary.has_console:  # or its history is an earlier life's
            await self.console.catch_up(_CATCH_UP)
            written = self.console.history_since(life.console_start)
        return evidence.add(cause, life.output_bytes(), written)

    def _keep_hardware(self) -> None:
        self._keeper.keep(self.life, self._position, self._observed.resets)

    def _keep_end(self) -> None:
        self._keeper.save_end(self._ran, self._position, self._operation)

    def _recall(self) -> ended.Ended | None:
        """Nothing runs: what is known of a VM that is down. `StateFileError`: something cannot be read."""
        identity = self._services.identities.load(self.name)
        self._uuid = identity.uuid if identity else ""
        found = ended.recall(self._services.layout, self.name)
        self._ran = (found.loaded(self.name) if found else None) or self._ran
        return found

    def _go_back_to(self, body: Body, found: ended.Ended | None) -> None:
        """Go on where the VM was down, with a restart that is due if one was."""
        if found is not None:
            self._position.recall(
                history=found.history(), since=found.since, uptime=found.uptime, due=found.due, now=time.monotonic()
            )
            self._apply(body, Event(found.event), found.why())

    # requests

    async def _on_request(self, body: Body, asked: Asked) -> None:
        if self.holder is None or self.holder.operation != asked.operation:
            return  # overtaken while it was on its way
        judgement = judge(self.state, asked.request)
        if judgement.verdict is Verdict.DENIED:
            words = f"cannot {asked.request.value}: {judgement.reason}"
            await self._refuse(asked, DeniedError(words, instance=self.name, hint=judgement.hint))
        elif judgement.verdict is Verdict.NEEDLESS:
            self._end_operation(asked.operation, {"changed": False})
        else:
            try:
                await self._begin(body, asked)
            except QsupError as error:
                await self._refuse(asked, error)
            self._settle(body)

    async def _on_hasten(self, body: Body, message: Hasten) -> None:
        if self.holder is None or self.holder.operation != message.operation or self.holder.request is not Request.STOP:
            return  # it was overtaken, or has ended
        waited = not self.holder.begun
        if waited:
            body.cancel_turn()
            await self._begin(body, Asked(operation=message.operation, request=Request.STOP, in_turn=True))
        asked = self.state is State.STOPPING_GUEST
        if asked:
            self._apply(body, Event.STAGE_TIMEOUT)
        if waited or asked:
            message.cut_short()
        self._settle(body)

    async def _refuse(self, asked: Asked, error: QsupError) -> None:
        """End an operation of which nothing has been done. A later daemon must not do it after all: that is on record
        before anybody hears it.
        """
        await self._services.operations.foretell(asked.operation, error=error)
        self._end_operation(asked.operation, error=error)

    async def _begin(self, body: Body, asked: Asked) -> None:
        joins = asked.request is Request.START and self.state in BEING_STARTED
        if asked.request in (Request.START, Request.RESTART) and not joins:
            # what is started is what the files say now, and a broken unit stops nothing
            self.set_unit(asked.loaded or await self._services.load(self.name))
        if self.holder is None or self.holder.operation != asked.operation:
            return  # overtaken while the files were read
        if asked.request is Request.SET and self.state.level in DOWN:
            body.file(asked)
            return
        if asked.request in (Request.STOP, Request.RESTART) and not asked.in_turn:
            if self.state.level not in DOWN and not self._services.turns.may_stop(self.name):
                body.await_stop_turn(asked)
                return
        elif asked.request is Request.KILL:
            body.cancel_turn()
        self.holder = evolve(self.holder, begun=True, start_next=asked.request is Request.RESTART)
        operator = _ordered(asked.request)
        match asked.request:
            case Request.START if joins:
                self._apply(body, Event.START)  # its policy has begun it, and this operation ends as that does
            case Request.START:
                self._begin_start(body)
            case Request.STOP:
                self._apply(body, Event.STOP, operator)
                self._keep_stop()
            case Request.KILL:
                self._apply(body, Event.KILL, operator)
                self._keep_stop()
            case Request.RESET_FAILED:
                self._position.forget_restarts()
                self._apply(body, Event.RESET_FAILED, operator)
                self._keep_end()
            case Request.RESTART:
                if judge(self.state, Request.STOP).verdict is Verdict.ALLOWED:
                    self._apply(body, Event.STOP, operator)
            case _:
                self._begin_control(body, asked)

    def _begin_control(self, body: Body, asked: Asked) -> None:
        if asked.request is Request.DETACH:
            self._departures.check(self._services.operations.get(asked.operation).arguments["entry"])
        if asked.request in (Request.PAUSE, Request.RESUME):
            self._position.held = asked.request is Request.PAUSE
            if self.state is State.IO_ERROR and self._position.held:
                self._apply(body, Event.HELD, adopt.held_by(self._position.cause))
            self._save()  # before it is told as done: a daemon that comes later must not let the guest go on
        body.control(asked, self.state, self.wait_state)

    def _begin_start(self, body: Body) -> None:
        """A start that somebody asked for; automatic restarts are counted from here."""
        self._position.forget_restarts()
        self._hint = ""
        at_once = self._services.turns.try_start(self.name, self._operation or "")
        self._apply(body, Event.START if at_once else Event.QUEUED)

    def _keep_stop(self) -> None:
        """What was stopped before it ran ends at once, and is no longer what was kept of its last end."""
        if self.state is State.DEAD:
            self._keep_end()

    async def _reread_unit(self) -> None:
        """Before an automatic restart: what was broken meanwhile starts as it was before, what is gone as it ran."""
        try:
            self.set_unit(await self._services.load(self.name))
        except NoSuchUnit:
            self._log.warning("the unit is gone; it is started as it ran")
            self.lose_unit()
        except QsupError as error:
            self._log.warning("the unit cannot be read; its last valid version counts", why=error.message)

    def _settle(self, body: Body) -> None:
        """End the holder's operation when the state says that it is done."""
        if self.holder is None:
            return
        life = self.life
        standing = Standing(
            name=self.name,
            state=self.state,
            cause=self._position.cause,
            was_ready=self._position.was_ready,
            stopping=self._position.ending is not None,
            hint=self._hint,
            pid=life.process.pid if life else None,
        )
        settled = settle(self.holder, standing)
        if settled is None:
            return
        if settled.start:
            self.holder = evolve(self.holder, start_next=False)
            self._begin_start(body)
        elif settled.ask:
            self.holder = evolve(self.holder, begun=False, left=None)
            self._inbox.post(Asked(operation=self.holder.operation, request=self.holder.request))
        else:
            self._end_operation(self.holder.operation, settled.result, settled.error)

    def _end_operation(
        self, operation: str, result: Mapping[str, Any] | None = None, error: QsupError | None = None
    ) -> None:
        finished = self._services.operations.finish(operation, result=result, error=error)
        self.release(operation)
        if finished is None:
            return
        why, outcome = error.message if error else None, finished.state.value
        self._log.info("operation ended", operation=operation, kind=finished.kind, outcome=outcome, why=why)
        data = {"operation": operation, "kind": finished.kind, "state": outcome}
        self._teller.operation_ended(data | ({"error": error.message} if error else {}))

    # devices on their way out

    def resume_departure(self, waits: Waits) -> None:
        """Wait on for a guest that an earlier daemon asked to let a device go."""
        self._departures.add(waits)

    def _on_waits(self, body: Body, message: Waits) -> None:
        """The guest's part of a detach holds nobody."""
        if not self._services.operations.is_under_way(message.operation):
            return  # overtaken
        self._departures.add(message)
        self.release(message.operation)
        body.await_release(message)
        body.settle_hardware()  # it may have gone before QEMU's answer came

    def resume_work(self, operation: str, changes: Mapping[str, Any] | None) -> None:
        """See on to what an earlier daemon asked of the guest."""
        self._left_works[operation] = changes

    def _resume_works(self, body: Body) -> None:
        for operation, changes in self._left_works.items():
            life = body.life
            if changes is None and life is not None:
                changes = difference(life.unit, self.loaded.unit)
            goals = () if life is None else change.goals(changes or {}, life.hardware, self.name)
            body.works.begin(operation, goals, {"changed": True})
        self._left_works.clear()

    def _end_works(self, body: Body) -> None:
        """The VM has ended, and what its guest was to do is not done."""
        words = "the VM ended before its guest had done what was asked of it"
        for operation in body.works.life_over():
            self._end_operation(operation, error=ChangeError(words, instance=self.name))

    async def cancel_work(self, operation: str) -> None:
        """Have the guest left alone with what was asked of it; `DeniedError` where that cannot be."""
        if self.body is None:
            raise DeniedError("it is not known yet what is left of it", instance=self.name, hint="try again")
        await self.body.works.stop(operation)

    def _on_unplugged(self, body: Body, message: Unplugged) -> None:
        if not message.refused:
            body.settle_hardware()
        elif self.life is not None:
            self._departures.refused(self.life.hardware, message.device, body)
            self.touch()

    def _on_tray(self, message: TrayMoved) -> None:
        disks = self.life.summary.disks if self.life is not None else ()
        if name := next((disk.id for disk in disks if disk.device == message.drive), ""):
            trays = {**self._observed.trays, name: "open" if message.open else "closed"}
            self._on_noted(Noted(life=message.life, changes={"trays": trays}))

    async def _on_settled(self, body: Body, message: Settled) -> None:
        if self.life is not None:
            for entry in message.gone:
                self._teller.removed(entry)
            self.touch()
            await self._departures.settled(self.life.hardware, body)

    # the unit's files

    def _on_filed(self, loaded: LoadedUnit) -> None:
        """A change was written down; it is known as after a reload."""
        if loaded.etag != self.loaded.etag:
            self.set_unit(loaded)
            self._services.publish("units-reloaded", None, {"added": [], "changed": [self.name], "removed": []})

    async def _forget_entry(self, entry: str) -> None:
        """Have the unit have an entry no more, which the VM has not any more."""
        filing = Filing(name=self.name, wanted=True, persist=self._services.persist, on_filed=self._on_filed)
        await filing.write(absent(entry), done=f"{entry} is gone")

    # adoption

    async def _adopt(self, body: Body) -> None:
        """Take over what an earlier daemon left of this VM: before anything else, or once it can be read."""
        try:
            found = await body.find()
            known = self._recall() if found is None else None
        except StateFileError as error:
            cause = Cause(kind=CauseKind.RECORD_UNREADABLE, detail=error.message)
            self._apply(body, Event.RECORD_UNREADABLE, cause)
            if self.holder is not None:
                self._end_operation(self.holder.operation, error=error)
            return
        if self.state is State.QUARANTINED:
            self._apply(body, Event.RECORD_REPAIRED)
        if found is None:
            await self._departures.life_over(body)
            self._resume_works(body)
            self._end_works(body)
            self._go_back_to(body, known)
            ordered = known is not None and known.cause is not None and known.cause.kind == CauseKind.OPERATOR.value
            since, again = known.uptime if known else 0.0, self.state is State.AUTO_RESTART
            self._take_up(body, Remains(started=None, ended=since, ordered=ordered, again=again))
            self._settle(body)
            return
        ending = self._take_up(body, Remains(started=found.started, ended=None, ordered=False)) or found.ending
        self._position.resume(
            history=found.history,
            ending=ending,
            since=found.since,
            was_ready=found.was_ready,
            held=found.held,
            stage_by=found.stage_by,
            start_by=None if found.was_ready else self._start_by(found),
        )
        if found.life is None:
            self._resume_works(body)
            written = self.console.history_since(self.console.last_start()) if found.wrote else b""
            await self._on_end(body, found.cause or Cause(kind=CauseKind.EXIT_UNKNOWN), written=written)
            return
        self._take(body, found.life)
        self._keeper.found(found.life.running)
        self._departures.go_on(body)
        self._resume_works(body)
        self._apply(body, Event.FOUND_STOPPING if found.told_to_end else Event.FOUND)
        if ending is not None and not found.told_to_end:
            self._limit_stage([Effect.ASK_GUEST], agent=found.life.summary.has_agent)
            body.limit_guest(self._orders())
        self._settle(body)

    def _start_by(self, found: adopt.Found) -> float:
        """By when a VM must be ready that an earlier daemon started: by its own time, or once it was looked at."""
        given, now = self.loaded.unit.service.start_timeout, proc.uptime()
        by = found.started + given if found.start_by is None else found.start_by
        return by if by > now else now + min(_LOOK, given)

    def _take_up(self, body: Body, found: Remains) -> Cause | None:
        """Go on with what an earlier daemon left unfinished; the cause, when for that the process is to end."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is None or self.holder is None or self.holder.operation != unfinished.operation:
            return None
        taken = take_up(unfinished, found)
        self.holder = taken.holder
        if taken.holder.left is not None:
            body.limit_left(unfinished.operation, unheard(unfinished, self.name))
        if taken.ask:
            self._inbox.post(Asked(operation=unfinished.operation, request=unfinished.request))
        return _ordered(unfinished.request) if taken.stopping else None


def _as_it_runs(life: Life) -> LoadedUnit:
    """The unit of a life as if files said so."""
    record, files = life.record, life.running.files
    return LoadedUnit(name=record.name, unit=life.unit, files=files, etag=record.unit_digest, text="")


def _ordered(request: Request) -> Cause:
    return Cause(kind=CauseKind.OPERATOR, detail=f"{request.value} requested")
