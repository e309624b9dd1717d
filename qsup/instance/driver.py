"""The one task that owns a VM.

Decides: when to look something up in the table, and how each effect is carried out.
Must not: hold a state that the table did not give it, wait for the guest or QEMU in its own loop, or end a process
otherwise than through its pidfd.

Everything reaches it through its inbox: requests, QMP events, deadlines, the end of the process. It handles one message
at a time; what takes time runs in a job and posts its result. The only waits of the loop itself are short ones on the
host's own files: cleaning up after an end, so that the next message finds the VM's place tidy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import structlog
import trio
from attrs import evolve, frozen

from qsup.errors import DeniedError, QsupError, StartError, StateFileError, StopError, UndefinedTransition
from qsup.instance import adopt, ready, restart, stop, watch
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.console import ConsoleHub
from qsup.instance.control import carry_out
from qsup.instance.guest import GuestChannel
from qsup.instance.inbox import Inbox
from qsup.instance.jobs import Jobs
from qsup.instance.launch import launch
from qsup.instance.life import Life
from qsup.instance.messages import Asked, Finished, Happened, LaunchEnded, Message, Noted, ProcessEnded
from qsup.instance.restart import RestartHistory
from qsup.instance.services import Services
from qsup.instance.state import Effect, Event, Level, Request, State, Verdict, judge, step
from qsup.instance.view import InstanceView
from qsup.instance.viewing import Moving, make_view
from qsup.qmp.connection import Monitor
from qsup.unit.load import LoadedUnit

_log = structlog.get_logger()

_STAGES = frozenset({State.STOPPING_GUEST, State.STOPPING_QUIT, State.STOPPING_TERM, State.STOPPING_KILL})
_LIFE_JOBS = ("launch", "start-timeout", "ready", "stage", "process", "monitor", "heartbeat", "reconnect", "refresh")


@frozen(kw_only=True)
class Observed:
    """What the VM last told of itself, besides its state."""

    agent_connected: bool = False
    memory_actual: int | None = None
    threads: tuple[int, ...] = ()


@frozen(kw_only=True)
class Holder:
    """The operation that holds the VM.

    Args:
        start_next: a restart whose stop half is under way.
        timeout: seconds in place of the unit's ``stop-timeout``.
    """

    operation: str
    request: Request
    start_next: bool = False
    timeout: float | None = None


class Driver:
    """One VM, over all its lives.

    Args:
        loaded: its unit as the files say it; `set_unit` replaces it after a reload.
    """

    def __init__(self, loaded: LoadedUnit, services: Services) -> None:
        self.name = loaded.name
        self.loaded = loaded
        self.console = ConsoleHub(loaded.name, self.touch)
        self.guest = GuestChannel(loaded.name)
        self.monitor: Monitor | None = None
        self.life: Life | None = None
        self.holder: Holder | None = None
        self._services = services
        self._inbox: Inbox[Message] = Inbox()
        self._state = State.DEAD
        self._cause: Cause | None = None
        self._since = time.time()
        self._ending: Cause | None = None
        self._history = RestartHistory()
        self._observed = Observed()
        self._uuid = ""
        self._argv: tuple[str, ...] = ()
        self._sampler = watch.DiskSampler()
        self._number = 0
        self._changed = trio.Event()
        self._view: InstanceView | None = None
        self._log = _log.bind(instance=loaded.name)

    # what others may see

    @property
    def state(self) -> State:
        """The state now."""
        return self._state

    @property
    def view(self) -> InstanceView:
        """All that is known now; the same object until something changes."""
        if self._view is None:
            moving = Moving(
                state=self._state,
                cause=self._cause,
                since=self._since,
                restarts=self._history.count,
                operation=self.holder.operation if self.holder else None,
                agent_connected=self._observed.agent_connected,
                memory_actual=self._observed.memory_actual,
                threads=self._observed.threads,
                console_watchers=self.console.watchers,
                console_has_writer=self.console.has_writer,
                uuid=self._uuid,
            )
            self._view = make_view(self.loaded, self.life, moving)
        return self._view

    def set_unit(self, loaded: LoadedUnit) -> None:
        """The unit's files were read anew; it counts from the next start on, except what the daemon alone acts on."""
        self.loaded = loaded
        self._view = None

    def command_line(self) -> tuple[tuple[str, ...], bool]:
        """QEMU's argv and whether it runs; while it does not, that of its last life, or nothing."""
        return self._argv, self.life is not None

    def refresh(self) -> None:
        """Query again what a raw command may have changed."""
        self._refresh()

    def sample_disks(self) -> Mapping[str, Mapping[str, int]]:
        """The disks' counters as last sampled; asking keeps the sampling going."""
        self._sampler.wanted()
        return self._sampler.disks

    def retire(self) -> None:
        """End the task; the VM does not run and its unit is gone."""
        self._nursery.cancel_scope.cancel()

    def touch(self) -> None:
        """Something that the view shows has changed outside the driver, such as the console's watchers."""
        self._view = None

    async def wait_state(self, satisfied: Callable[[State], bool]) -> None:
        """Wait until the state satisfies a predicate; the caller sets the deadline."""
        while not satisfied(self._state):
            await self._changed.wait()

    # requests

    def hold(self, operation: str, request: Request, *, timeout: float | None) -> None:
        """Take a request that was judged; the holder before it, if any, has been overtaken."""
        if self.holder is not None:
            overtaken = DeniedError(f"overtaken by {request.value}", instance=self.name)
            self._services.operations.finish(self.holder.operation, error=overtaken)
        self.holder = Holder(operation=operation, request=request, timeout=timeout)
        self._view = None

    def release_holder(self, operation: str) -> None:
        """Let go of a request that was never posted."""
        if self.holder is not None and self.holder.operation == operation:
            self.holder = None
            self._view = None

    def post(self, message: Message) -> None:
        """Put a message into the inbox; those about the guest and the process overtake requests."""
        self._inbox.post(message, urgent=not isinstance(message, Asked | Finished))

    # the task

    async def run(self) -> None:
        """Own the VM until cancelled. A running VM is then left running; a launch under way is undone."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._jobs = Jobs(nursery)
            await self._adopt()
            while True:
                await self._handle(await self._inbox.receive())

    async def _handle(self, message: Message) -> None:
        match message:
            case Asked():
                self._on_request(message)
            case Finished():
                self._end_operation(message.operation, result=message.result, error=message.error)
            case LaunchEnded(life=number) | ProcessEnded(life=number) | Happened(life=number) | Noted(life=number) if (
                number != self._number
            ):
                self._log.debug("message about an earlier life", message=type(message).__name__, life=number)
            case LaunchEnded():
                await self._on_launch_ended(message)
            case ProcessEnded():
                await self._on_end(message.cause)
            case Happened():
                self._apply(message.event, message.cause)
                self._settle()
            case Noted():
                self._observed = evolve(self._observed, **message.changes)
                self._view = None
                self._services.publish("instance-changed", self.name, dict(message.changes))

    # transitions

    def _apply(self, event: Event, cause: Cause | None = None) -> bool:
        try:
            transition = step(self._state, event)
        except UndefinedTransition as error:
            self._log.warning(
                "event without an edge", state=self._state.substate, table_event=event.value, why=str(error)
            )
            return False
        before, self._state = self._state, transition.target
        if before in _STAGES and self._state is not before:
            self._jobs.cancel("stage")
        if (self._state.level in (Level.ACTIVATING, Level.ACTIVE) and self._state is not State.AUTO_RESTART) or cause is not None:
            self._cause = cause
        if self._state.level is Level.DEACTIVATING and self._ending is None:
            self._ending = cause
        if self._state is not before:
            self._on_change(before, event)
        for effect in transition.effects:
            self._effects[effect](self)
        return True

    def _on_change(self, before: State, event: Event) -> None:
        self._since = time.time()
        self._view = None
        self._changed.set()
        self._changed = trio.Event()
        cause = self._cause
        self._services.publish(
            "instance-state",
            self.name,
            {
                "state": self._state.level.value,
                "substate": self._state.substate,
                "previous": before.substate,
                "cause": None
                if cause is None
                else {"kind": cause.kind.value, "text": cause.text, "detail": cause.detail},
                "pid": self.life.process.pid if self.life else None,
            },
        )
        if self._state.level is not Level.ACTIVATING:
            self._jobs.cancel("start-timeout")
        self._log.info(
            "state changed",
            state=self._state.substate,
            before=before.substate,
            by=event.value,
            cause=cause.text if cause else None,
            detail=cause.detail if cause and cause.detail else None,
        )

    def _save(self) -> None:
        if self.life is None or self._state not in adopt.RECORDED:
            return
        try:
            adopt.save(
                self.life,
                since=self._since,
                was_ready=self._state is not State.WAITING_READY,
                ending=self._ending,
                history=self._history,
            )
        except QsupError as error:
            # the VM runs and stays findable by the record before this one
            self._log.error("could not update the run record", error=str(error))

    # ends

    async def _on_end(self, cause: Cause) -> None:
        """The process is gone: judge the end, tell it, then clean up; only then is an operation done."""
        state, now = self._state, time.monotonic()
        reason = self._ending or cause
        service = self.loaded.unit.service
        event = restart.outcome(state, reason, service, self._history, now)
        if event is Event.RESTARTING:
            recent = len(self._history.within(now, service.start_limit_interval))
            self._restart_delay = restart.delay(service, recent)
            self._history = self._history.add(now, service)
        elif event is Event.LIMIT_HIT:
            reason = evolve(
                reason, detail=_limit_words(reason, service.start_limit_burst, service.start_limit_interval)
            )
        self._ending = None
        self._observed = Observed()
        self._jobs.cancel(*(name for name in _LIFE_JOBS if name != "process"))
        life, self.life = self.life, None
        self._apply(event, reason)
        await self._clean_up(life)
        self._settle()

    async def _clean_up(self, life: Life | None) -> None:
        if self.monitor is not None:
            await self.monitor.aclose()
            self.monitor = None
        self.guest.detach()
        if life is not None:
            try:
                await life.resources.aclose()
            except QsupError as error:
                self._log.error("could not clean up entirely", error=str(error))

    # requests

    def _on_request(self, asked: Asked) -> None:
        if self.holder is None or self.holder.operation != asked.operation:
            return  # overtaken while it was on its way
        judgement = judge(self._state, asked.request)
        if judgement.verdict is Verdict.DENIED:
            error = DeniedError(
                f"cannot {asked.request.value}: {judgement.reason}", instance=self.name, hint=judgement.hint
            )
            self._end_operation(asked.operation, error=error)
        elif judgement.verdict is Verdict.NEEDLESS:
            self._end_operation(asked.operation, result={"changed": False})
        else:
            self._begin(asked)
            self._settle()

    def _begin(self, asked: Asked) -> None:
        assert self.holder is not None
        operator = Cause(kind=CauseKind.OPERATOR, detail=f"{asked.request.value} requested")
        match asked.request:
            case Request.START:
                self._history = RestartHistory()
                self._apply(Event.START)
            case Request.STOP:
                self._apply(Event.STOP, operator)
            case Request.KILL:
                self._apply(Event.KILL, operator)
            case Request.RESTART:
                self.holder = evolve(self.holder, start_next=True)
                if judge(self._state, Request.STOP).verdict is Verdict.ALLOWED:
                    self._apply(Event.STOP, operator)
            case _:
                self._jobs.start("control", partial(self._control, asked))

    async def _control(self, asked: Asked) -> None:
        monitor = self.monitor
        if monitor is None:
            error = DeniedError("its monitor is not connected", instance=self.name)
            self.post(Finished(operation=asked.operation, error=error))
            return
        try:
            result = await carry_out(asked.request, monitor, self._state, self.wait_state)
            self.post(Finished(operation=asked.operation, result=result))
        except QsupError as error:
            error.instance = self.name
            self.post(Finished(operation=asked.operation, error=error))

    def _settle(self) -> None:
        """End the holder's operation when the state says that it is done, and record where the VM stands."""
        self._save()
        holder = self.holder
        if holder is None:
            return
        level = self._state.level
        if holder.start_next:
            if level in (Level.INACTIVE, Level.FAILED) or self._state is State.AUTO_RESTART:
                self.holder = evolve(holder, start_next=False)
                self._history = RestartHistory()
                self._apply(Event.START)
        elif holder.request in (Request.START, Request.RESTART):
            if level is Level.ACTIVE:
                self._end_operation(holder.operation, result={"changed": True})
            elif level is not Level.ACTIVATING or self._state is State.AUTO_RESTART:
                self._end_operation(holder.operation, error=self._start_error())
        elif holder.request in (Request.STOP, Request.KILL):
            if level in (Level.INACTIVE, Level.FAILED):
                self._end_operation(holder.operation, result={"changed": True})
            elif self._state is State.STUCK:
                self._end_operation(holder.operation, error=self._stuck_error())
        elif level not in (Level.ACTIVE, Level.ACTIVATING):
            self._jobs.cancel("control")
            error = StopError(f"{holder.request.value}: it ended meanwhile", instance=self.name)
            self._end_operation(holder.operation, error=error)

    def _start_error(self) -> QsupError:
        cause = self._cause
        words = (cause.detail or cause.text) if cause else self._state.substate
        hint = "it will be tried again" if self._state is State.AUTO_RESTART else self._start_hint
        return StartError(words, instance=self.name, hint=hint, cause=cause.kind.value if cause else "")

    def _stuck_error(self) -> QsupError:
        pid = self.life.process.pid if self.life else None
        return StopError(
            f"SIGKILL was sent to process {pid}, but the kernel keeps it",
            instance=self.name,
            hint="it waits for something that cannot be interrupted, mostly storage; it will be cleaned up when it ends",
            pid=pid,
        )

    def _end_operation(
        self, operation: str, *, result: Mapping[str, Any] | None = None, error: QsupError | None = None
    ) -> None:
        self._services.operations.finish(operation, result=result, error=error)
        if self.holder is not None and self.holder.operation == operation:
            self.holder = None
            self._view = None

    # the launch

    _restart_delay = 0.0
    _start_hint = ""

    def _launch(self) -> None:
        self._number += 1
        self._ending = None
        self._start_hint = ""
        number = self._number
        seconds = self.loaded.unit.service.start_timeout
        timed_out = Cause(kind=CauseKind.START_TIMEOUT, detail=f"it was not ready within {seconds:g} s")
        self._jobs.after(
            "start-timeout",
            seconds,
            partial(self.post, Happened(life=number, event=Event.START_TIMEOUT, cause=timed_out)),
        )
        self._jobs.start("launch", partial(self._launch_job, number))

    async def _launch_job(self, number: int) -> None:
        ended = LaunchEnded(life=number)
        try:
            loaded = await self._services.load(self.name)
            self.set_unit(loaded)
            life = await launch(number, loaded, self._services, self._nursery, self.console, self._history)
            ended = LaunchEnded(life=number, born=life)
        except QsupError as error:
            ended = LaunchEnded(life=number, error=error)
        finally:
            # also when cancelled: the launch has then given everything back
            self.post(ended)

    async def _on_launch_ended(self, message: LaunchEnded) -> None:
        if message.born is None:
            error = message.error
            self._start_hint = error.hint if error else ""
            await self._on_end(Cause(kind=CauseKind.START_FAILED, detail=error.message if error else "cancelled"))
            return
        self._take(message.born)
        if self._state is State.SPAWNING:
            self._apply(Event.LAUNCHED)
        else:
            self._kill()  # stopped at the very moment it was born
        self._settle()

    def _take(self, life: Life) -> None:
        """From now on the life is watched."""
        self.life = life
        self._uuid = life.record.uuid
        self._argv = life.record.argv
        self._observed = evolve(self._observed, threads=life.threads)
        self._view = None
        self._jobs.start("process", partial(watch.process, life, self.post))
        if life.monitor is not None:
            self._attach(life, life.monitor)

    def _attach(self, life: Life, monitor: Monitor) -> None:
        self.monitor = monitor
        self.guest.attach(life)
        self._jobs.start("monitor", partial(watch.monitor, life, monitor, self._wants_restart, self.post))
        self._jobs.start("heartbeat", partial(watch.heartbeat, life, monitor, self._sampler, self.post))

    def _wants_restart(self, cause: Cause) -> bool:
        return restart.wants_restart(self.loaded.unit.service.restart, cause)

    # effects

    def _cancel_launch(self) -> None:
        self._jobs.cancel("launch")

    def _await_ready(self) -> None:
        if self.life is not None and self.monitor is not None:
            self._jobs.start(
                "ready", partial(ready.wait_ready, self.life, self.monitor, self.console, self.guest, self.post)
            )

    def _ask_guest(self) -> None:
        seconds = self.holder.timeout if self.holder else None
        if self.life is not None and self.monitor is not None:
            ask = partial(stop.ask_guest, self.life, self.monitor, self.guest, seconds, self.post)
            self._jobs.start("stage", ask)

    def _quit(self) -> None:
        if self.life is not None:
            self._jobs.start("stage", partial(stop.quit_qemu, self.life, self.monitor, self.post))

    def _term(self) -> None:
        if self.life is not None:
            self._jobs.start("stage", partial(stop.terminate, self.life, self.post))

    def _kill(self) -> None:
        if self.life is not None:
            self._jobs.start("stage", partial(stop.kill, self.life, self.post))

    def _arm_restart(self) -> None:
        number = self._number
        self._jobs.after(
            "restart", self._restart_delay, partial(self.post, Happened(life=number, event=Event.RESTART_DUE))
        )

    def _disarm_restart(self) -> None:
        self._jobs.cancel("restart")

    def _reconnect(self) -> None:
        self._jobs.cancel("heartbeat", "monitor")
        if self.life is not None:
            self._jobs.start("reconnect", partial(self._reconnect_job, self.life))

    async def _reconnect_job(self, life: Life) -> None:
        monitor, reached = await adopt.reconnect(life, self._ending, self._services, self._nursery)
        self._attach(life, monitor)
        self._observed = evolve(self._observed, threads=reached.threads, agent_connected=reached.agent_connected)
        self.post(Happened(life=life.number, event=reached.event, cause=reached.cause))

    def _refresh(self) -> None:
        if self.life is not None and self.monitor is not None:
            self._jobs.start("refresh", partial(watch.refresh, self.life, self.monitor, self.post))

    _effects: Mapping[Effect, Callable[[Driver], None]] = {
        Effect.LAUNCH: _launch,
        Effect.CANCEL_LAUNCH: _cancel_launch,
        Effect.AWAIT_READY: _await_ready,
        Effect.CANCEL_READY: lambda self: self._jobs.cancel("ready"),
        Effect.ASK_GUEST: _ask_guest,
        Effect.QUIT: _quit,
        Effect.TERM: _term,
        Effect.KILL: _kill,
        Effect.ARM_RESTART: _arm_restart,
        Effect.DISARM_RESTART: _disarm_restart,
        Effect.RECONNECT: _reconnect,
        Effect.REFRESH: _refresh,
    }

    # adoption

    async def _adopt(self) -> None:
        """Take over what an earlier daemon left of this VM, before anything else."""
        try:
            found = await adopt.find(self.name, self._number + 1, self._services, self._nursery)
        except StateFileError as error:
            self._apply(Event.RECORD_UNREADABLE, Cause(kind=CauseKind.RECORD_UNREADABLE, detail=error.message))
            return
        if found is None:
            return
        self._number += 1
        self._history = found.history
        self._ending = found.ending
        if found.life is None:
            await self._on_end(found.cause or Cause(kind=CauseKind.EXIT_UNKNOWN))
            return
        adopt.attach_console(found.life, self._nursery, self.console)
        self._take(found.life)
        self._apply(Event.FOUND)
        self._since = found.since
        self._settle()


def _limit_words(cause: Cause, burst: int, interval: float) -> str:
    words = f"restarted {burst} times within {interval:g} s and stays down; the last end: {cause.text}"
    return f"{words}: {cause.detail}" if cause.detail else words


assert set(Driver._effects) == set(Effect), "every effect of the table is carried out"
