"""The one task that owns a VM.

Decides: who handles which message, what each end of the process means, and how what an earlier daemon left is taken
over.
Must not: hold a state that the table did not give it, wait for the guest or QEMU in its own loop, or touch the process
and the monitor itself; its `Body` does, effect by effect.

Everything reaches it through its inbox: requests, QMP events, deadlines, the end of the process. It handles one message
at a time; what takes time runs in a job of the body and posts its result. The only waits of the loop itself are short
ones on the host's own files: reading the unit before a start, cleaning up after an end, so that the next message finds
the VM's place tidy.

What the task has to know is parted: what is shown of the VM (`Shown`), who holds it (`Hold`), where it goes (`Course`),
what is asked of it (`Fulfilment`), and what goes on without a hold (`Pending`). All of it is this task's alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import trio
from attrs import evolve
from structlog.contextvars import bind_contextvars, clear_contextvars

from qsup.errors import DependencyError, NoSuchUnit, QsupError, StateFileError
from qsup.host import proc
from qsup.instance import adopt, ended, evidence
from qsup.instance.body import Body
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.course import Course
from qsup.instance.fulfil import Fulfilment
from qsup.instance.inbox import Inbox
from qsup.instance.keeper import Keeper
from qsup.instance.life import Life
from qsup.instance.messages import (
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
from qsup.instance.pending import Pending
from qsup.instance.runstate import IMPLIED, SEEN, Guest
from qsup.instance.services import Services
from qsup.instance.settle import Holder, Remains, Unfinished
from qsup.instance.shown import Observed, Shown, as_it_runs
from qsup.instance.state import Effect, Event, State
from qsup.unit.effective import start_timeout
from qsup.unit.load import LoadedUnit

#: Events by which a guest that stood still, or was not heard of, runs.
_RUNS_AGAIN = (Event.GUEST_RESUMED, Event.ANSWERED_RUNNING)
#: What is said when a monitor's connection has ended.
_LAST_OF_A_MONITOR = (Event.DYING, Event.MONITOR_LOST)
#: Seconds in which a restarted daemon must find a guest ready whose time to start was over before.
_LOOK = 2.0
#: Seconds until what could not be written, or was not yet, is written again.
_SAVE_AGAIN = 2.0
#: Events by which a guest stands still that may have said why, and the states in which it ran before.
_STANDS_STILL = (Event.GUEST_PANICKED, Event.GUEST_IO_ERROR)
_RAN = (State.WAITING_READY, State.RUNNING, State.UNRESPONSIVE)
#: Seconds to take in what was written to the console before something happened, if it is not at hand at once.
_CATCH_UP = 0.02


class Driver(Shown):
    """One VM, over all its lives. Long because each kind of message has its handler here, or is handed on here.

    Attributes:
        pending: what goes on while nothing holds it.
    """

    def __init__(self, loaded: LoadedUnit, services: Services) -> None:
        super().__init__(loaded, services)
        self._services = services
        self._inbox: Inbox[Message] = Inbox()
        self._scope = trio.CancelScope()
        self._keeper = Keeper(loaded.name, services)
        self._course = Course(self, self._position, self._hold, self._teller, self._keeper, services)
        self.pending = Pending(self, self._hold, self._teller, services)
        self._fulfilment = Fulfilment(
            self, self._position, self._hold, self._course, self.pending, services, self._inbox
        )
        self._doubt: tuple[float, Guest] | None = None

    @property
    def trouble(self) -> str:
        """What could not be written down of it, or that it runs unknown to us, one sentence, or ``""``."""
        return self._keeper.trouble or self._stray

    # requests

    def hold(self, holder: Holder) -> None:
        """Take a request that was judged; the holder before it, if any, has been overtaken."""
        self._hold.take(holder)

    def release(self, operation: str) -> None:
        """Let the VM go if this operation holds it."""
        self._hold.release(operation)

    def resume(self, unfinished: Unfinished) -> None:
        """Go on with an operation that an earlier daemon left unfinished, once it is known what is left of the VM."""
        self._fulfilment.resume(unfinished)

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
            self._hold.end(self.holder.operation, error=error)
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
                keep = self._course.keep_hardware
                self.body = Body(self.name, self._services, nursery, self.console, self._inbox, keep)
                with self.body.promises:
                    await self._go_on(self.body)

    async def _go_on(self, body: Body) -> None:
        await self._adopt(body)
        self._adopted.set()
        self.touch()
        try:
            while True:
                self._fulfilment.keep_promise()
                with trio.move_on_after(_SAVE_AGAIN if self._course.is_unsaved else math.inf) as waiting:
                    message = await self._inbox.receive()
                if waiting.cancelled_caught:
                    self._course.save_again()
                    continue
                await self._handle(body, message)
                if not self._inbox:
                    # whoever waits for an operation hears of its end before the disk is asked
                    await trio.lowlevel.checkpoint()
                    self._course.save()
        finally:
            self._course.save_again(at_once=True)

    def retire(self) -> None:
        """End the task; the VM does not run and its unit is gone."""
        self.console.forget()
        self._scope.cancel()

    async def _handle(self, body: Body, message: Message) -> None:
        match message:
            case Asked():
                await self._fulfilment.on_request(body, message)
            case Finished():
                self._fulfilment.on_finished(message)
            case Waits():
                self.pending.on_waits(body, message)
            case Hasten():
                await self._fulfilment.on_hasten(body, message)
            case Lasts():
                self._hold.release(message.operation)  # the guest's part of a change holds nobody
            case Filed():
                self.pending.on_filed(message.loaded)
            case _ if message.life != body.number:
                self._log.debug("message about an earlier life", message=type(message).__name__, life=message.life)
            case LaunchEnded():
                await self._on_launch_ended(body, message)
            case ProcessEnded():
                await self._on_end(body, message.cause)
            case Happened():
                await self._on_event(body, message)
            case Unplugged():
                self.pending.on_unplugged(body, message)
            case TrayMoved():
                self._on_tray(message)
            case Settled():
                await self.pending.on_settled(body, message)
            case Seen():
                self._on_seen(body, message)
            case Noted():
                self._on_noted(message)
            case Told():
                self._on_told(message)

    # what happens to the VM

    async def _on_event(self, body: Body, message: Happened) -> None:
        if message.event is Event.RECORD_REPAIRED:
            await self._adopt(body)
            return
        if message.event in _LAST_OF_A_MONITOR and self.life is None:
            return  # the process's own end was first
        if message.event is Event.RESTART_DUE and self._hold.is_to_stop:
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
        self._course.apply(body, event, cause)
        self._fulfilment.settle(body)

    async def _reread_unit(self) -> None:
        """Before an automatic restart: what was broken meanwhile starts as it was before, what is gone as it ran."""
        try:
            self.set_unit(await self._services.load(self.name))
        except NoSuchUnit:
            self._log.warning("the unit is gone; it is started as it ran")
            self.lose_unit()
        except QsupError as error:
            self._log.warning("the unit cannot be read; its last valid version counts", why=error.message)

    def _on_seen(self, body: Body, message: Seen) -> None:
        """QEMU's answer is not what the state implies: an event was lost, or is still to be handled.

        So it counts when it is seen twice with nothing in between; only a guest that has shut down stays so for good.
        """
        implied = IMPLIED.get(self.state)
        # what an operator wants paused may stand still for an I/O error to QEMU
        held = self._position.held and self.state is State.PAUSED and message.guest is Guest.IO_ERROR
        doubt = None if held or implied in (None, message.guest) else (self._position.since, message.guest)
        if doubt is not None and (doubt == self._doubt or message.guest is Guest.SHUTDOWN):
            self._course.apply(body, SEEN[message.guest], message.cause)
            self._fulfilment.settle(body)
        self._doubt = doubt

    # the ends of a life

    async def _on_launch_ended(self, body: Body, message: LaunchEnded) -> None:
        if message.born is None:
            self._fulfilment.failure = message.error
            words = message.error.message if message.error else "the start was cancelled"
            kind = CauseKind.DEPENDENCY if isinstance(message.error, DependencyError) else CauseKind.START_FAILED
            await self._on_end(body, Cause(kind=kind, detail=words), printed=message.output)
            return
        # not before: a launch that this daemon's own end cuts short leaves the VM what it was, a due restart included
        ended.begin(self._services.layout, self.loaded)
        self._take(body, message.born)
        # it may have been stopped at the very moment it was born
        self._course.apply(body, Event.LAUNCHED if self.state is State.SPAWNING else Event.KILL)
        self._fulfilment.settle(body)

    def _take(self, body: Body, life: Life) -> None:
        body.take(life)
        self.uuid, self.command_line = life.record.uuid, life.record.argv
        self.observed = Observed(threads=life.pinning.vcpu_threads, resets=life.running.resets)
        life.output.log.on_change = self.touch
        self.touch()

    async def _on_end(self, body: Body, cause: Cause, *, printed: bytes = b"", written: bytes = b"") -> None:
        """The process is gone: judge the end, tell it, then clean up; only then is an operation done.

        Args:
            printed: by a QEMU that did not come to life.
            written: by the guest of one that ended while no daemon ran.
        """
        service = self.loaded.unit.service
        if self._hold.is_to_stop:
            service = evolve(service, restart="no")
        event, reason = self._position.judge_end(cause, service, time.monotonic())
        self.observed = Observed()
        reason = await self._with_evidence(reason, printed, written)
        life = body.let_go()
        self.ran = self.loaded if life is None else as_it_runs(life)
        await self.pending.life_over(body)
        self._course.apply(body, event, reason)
        self._course.keep_end()
        await body.clean_up(life)
        self.touch()
        self._fulfilment.settle(body)

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

    def _recall(self) -> ended.Ended | None:
        """Nothing runs: what is known of a VM that is down. `StateFileError`: something cannot be read."""
        identity = self._services.identities.load(self.name)
        self.uuid = identity.uuid if identity else ""
        found = ended.recall(self._services.layout, self.name)
        self.ran = (found.loaded(self.name) if found else None) or self.ran
        self._fulfilment.restore_promise(found)  # at once, as that of what runs: before any other VM can start
        return found

    def _go_back_to(self, body: Body, found: ended.Ended | None) -> None:
        """Go on where the VM was down, with a restart that is due if one was."""
        if found is not None:
            self._position.recall(
                history=found.history(), since=found.since, uptime=found.uptime, due=found.due, now=time.monotonic()
            )
            self._course.apply(body, Event(found.event), found.why())

    # adoption

    async def _adopt(self, body: Body) -> None:
        """Take over what an earlier daemon left of this VM: before anything else, or once it can be read."""
        try:
            found = await body.find()
            known = self._recall() if found is None else None
        except StateFileError as error:
            cause = Cause(kind=CauseKind.RECORD_UNREADABLE, detail=error.message)
            self._course.apply(body, Event.RECORD_UNREADABLE, cause)
            if self.holder is not None:
                self._hold.end(self.holder.operation, error=error)
            return
        if self.state is State.QUARANTINED:
            self._course.apply(body, Event.RECORD_REPAIRED)
        if found is None:
            await self.pending.life_over(body)
            self._go_back_to(body, known)
            ordered = known is not None and known.cause is not None and known.cause.kind == CauseKind.OPERATOR.value
            since, again = known.uptime if known else 0.0, self.state is State.AUTO_RESTART
            self._fulfilment.take_up(body, Remains(started=None, ended=since, ordered=ordered, again=again))
            self._fulfilment.settle(body)
            return
        remains = Remains(started=found.started, ended=None, ordered=False)
        ending = self._fulfilment.take_up(body, remains) or found.ending
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
            written = self.console.history_since(self.console.last_start()) if found.wrote else b""
            await self._on_end(body, found.cause or Cause(kind=CauseKind.EXIT_UNKNOWN), written=written)
            return
        self._take(body, found.life)
        self._keeper.found(found.life.running)
        self.pending.go_on(body)
        self._course.apply(body, Event.FOUND_STOPPING if found.told_to_end else Event.FOUND)
        if ending is not None and not found.told_to_end:
            self._course.limit_stage([Effect.ASK_GUEST], agent=found.life.summary.has_agent)
            body.limit_guest(self._course.orders())
        self._fulfilment.settle(body)

    def _start_by(self, found: adopt.Found) -> float:
        """By when a VM must be ready that an earlier daemon started: by its own time, or once it was looked at."""
        given, now = start_timeout(self.loaded.unit), proc.uptime()
        own = found.started + given
        by = own if found.start_by is None else found.start_by
        # another daemon had that look, and ended meanwhile; coming and going they do not keep a start going
        return by if by > now or (by > own and now - by < _LOOK) else now + min(_LOOK, given)
