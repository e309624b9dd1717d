"""The body of a VM's driver: what is connected, what is under way, and how each effect of the table is carried out.

Decides: which task serves each effect.
Must not: know the state or look at the table. It learns what to do as effects, and answers with messages. Long because
every effect has its method here, and they share what is connected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import structlog
import trio
from attrs import evolve, frozen

from qsup.errors import DeniedError, DependencyError, QsupError
from qsup.host import descriptors, proc
from qsup.host.output import BoundedLog, feed_of
from qsup.instance import adopt, change, going, pulled, ready, room, stop, watch
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.console import ConsoleHub
from qsup.instance.context import Changes, Context
from qsup.instance.control import WaitState, carry_out
from qsup.instance.filing import Filing, file_only, read_files, with_besides
from qsup.instance.guest import GuestChannel
from qsup.instance.hotplug import STEP_TIMEOUT
from qsup.instance.inbox import Inbox
from qsup.instance.jobs import Jobs
from qsup.instance.launch import launch
from qsup.instance.life import Life
from qsup.instance.live.medium import settle_media
from qsup.instance.messages import (
    DEVICE_PULLED,
    HELPER_ENDED,
    PIN_DRIFT,
    Asked,
    Filed,
    Finished,
    Happened,
    Lasts,
    LaunchEnded,
    Message,
    Noted,
    Settled,
    Told,
    Waits,
)
from qsup.instance.restart import RestartHistory
from qsup.instance.services import Services
from qsup.instance.silence import stillness
from qsup.instance.state import CHANGES, Effect, Event, Request, State
from qsup.instance.taps import release_bridges
from qsup.instance.works import Works
from qsup.plan import inventory
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.unit.effective import start_timeout
from qsup.unit.load import LoadedUnit
from qsup.unit.quantity import format_duration

_log = structlog.get_logger()

#: What ends with a life; a restart that is due, and the watch over the process, do not.
_LIFE_JOBS = (
    "launch",
    "start-timeout",
    "ready",
    "stage",
    "monitor",
    "heartbeat",
    "reconnect",
    "look-over",
    "refresh",
    "control",
    "room",
    "go-on",
    "hardware",
    "hardware-again",
    "force-reset",
    "usb",
)

#: Seconds that a connection to the monitor must have lasted to be made anew at once, and the delay otherwise: a QEMU
#: that ends every connection costs two a second.
_LASTED, _RECONNECT_DELAY = 5.0, 0.5

#: Seconds in which a restarted daemon must hear of QEMU what became of a command.
_LEFT_TIMEOUT = 30.0

#: Seconds that a guest has to let a device go until that is said to be pending: an unplug takes Linux 0.2 s.
_PATIENCE = 5.0

#: Seconds until what a device stood on is removed again that was still in use; and until when a controller that is on
#: its way out is looked for unasked, more and more seldom.
_IN_USE_AGAIN, _LOOKED_FOR = 0.5, 60.0
#: Seconds that a stop waits for the first attempt to reach the monitor, at most.
_REACHED_WITHIN = 3.0
#: Seconds until it is tried again to reset a guest that was to be reset.
_FORCE_AGAIN = 0.5


@frozen(kw_only=True)
class Orders:
    """What effects need to know besides their name.

    Args:
        loaded: the unit as it is to be started, or counts now.
        history: automatic restarts so far.
        ending: a stop that is under way.
        was_ready: the VM has been ready since it was started.
        held: an operator wants it paused.
        stop_timeout: seconds in place of the unit's.
        stage_by, start_by: CLOCK_BOOTTIME seconds by when the stage of a stop is over, and a start of another daemon's.
        agent_connected: somebody in the guest has the agent's port open.
        restart_delay: seconds until the next automatic restart.
        operation: id of the one that holds the VM, ``None`` for none.
    """

    loaded: LoadedUnit
    history: RestartHistory
    ending: Cause | None
    was_ready: bool
    held: bool
    stop_timeout: float | None
    stage_by: float | None
    start_by: float | None
    agent_connected: bool
    restart_delay: float
    operation: str | None

    @property
    def start_left(self) -> float:
        """Seconds that the VM has to become ready."""
        given = start_timeout(self.loaded.unit)
        return given if self.start_by is None else max(0.0, self.start_by - proc.uptime())

    @property
    def stage_left(self) -> float:
        """Seconds that the stage of a stop has left."""
        return 0.0 if self.stage_by is None else max(0.0, self.stage_by - proc.uptime())


class Body:
    """Everything of one VM that lives in time. Long because each effect of the table has a method.

    Args:
        name: the VM's.
        inbox: the driver's.
        keep: writes down what the VM consists of.

    Attributes:
        promises: descriptors that the VM is going to need; entered by whoever runs the body.
    """

    def __init__(
        self,
        name: str,
        services: Services,
        nursery: trio.Nursery,
        console: ConsoleHub,
        inbox: Inbox[Message],
        keep: Callable[[], None],
    ) -> None:
        self.number = 0
        self.life: Life | None = None
        self.monitor: Monitor | None = None
        self.guest = GuestChannel(name)
        self.sampler = watch.DiskSampler()
        self._attached = -math.inf
        self._tried = trio.Event()
        self._tried.set()
        self._heard = trio.Event()
        self._heard.set()  # there is nothing to hear without a monitor
        self._launched = False
        self.promises = ExitStack()
        self._name = name
        self._services = services
        self._nursery = nursery
        self._console = console
        self._inbox = inbox
        self._keep = keep
        self._settling = trio.Lock()
        self._drives = trio.Lock()
        self._look_in = _IN_USE_AGAIN
        self._jobs = Jobs(nursery)
        self._room = room.Watch(name, services.layout.pools[0])
        read, file = partial(read_files, services.load, name), self._file_reached
        self.works = Works(name, self._jobs, services.operations, self._context_now, file, read, self._post)

    def _post(self, message: Message) -> None:
        # requests that were carried out come after whatever QEMU said meanwhile
        self._inbox.post(message, urgent=not isinstance(message, Finished))

    # lives

    async def find(self) -> adopt.Found | None:
        """Look for what an earlier daemon left; see `adopt.find`."""
        found = await adopt.find(self._name, self.number + 1, self._services, self._nursery)
        if found is not None:
            self.number += 1
        return found

    def take(self, life: Life) -> None:
        """From now on this life is watched."""
        if life.monitor is None:
            self.promises.enter_context(descriptors.promised(adopt.DESCRIPTORS_LATER))
            life = evolve(life, console_start=adopt.attach_console(life, self._nursery, self._console))
        self.life, self._launched = life, life.launched
        self.guest.attach(life)
        life.helpers.watch(self._nursery, partial(self._tell, life, HELPER_ENDED))
        self._watch_usb(life)
        self._services.reconciler.watch(life.pinning, life.limiting, partial(self._tell_all, life, PIN_DRIFT))
        self._jobs.start("process", partial(watch.process, life, self._post, self._wait_heard))
        if life.monitor is not None:
            self._attach(life, life.monitor)

    def _tell(self, life: Life, kind: str, entry: str, words: str) -> None:
        """Have it told what became of an entry's device, by the kind of event."""
        self._tell_all(life, kind, {"entry": entry, "detail": words})

    def _tell_all(self, life: Life, kind: str, data: Mapping[str, Any]) -> None:
        self._post(Told(life=life.number, type=kind, data=data))

    def _watch_usb(self, life: Life) -> None:
        if pulled.usb_devices(life.unit) and not self._jobs.is_running("usb"):
            root = self._services.passthrough.sysfs.root
            self._jobs.start("usb", partial(pulled.watch, life, root, partial(self._tell, life, DEVICE_PULLED)))

    def _attach(self, life: Life, monitor: Monitor) -> None:
        self.monitor, self._attached = monitor, trio.current_time()
        self._heard = trio.Event()
        wait_taken = self._inbox.wait_taken
        listen = partial(watch.monitor, life, monitor, self._post, wait_taken, self.refresh, self._heard)
        self._jobs.start("monitor", listen)
        self._jobs.start("heartbeat", partial(watch.heartbeat, life, monitor, self.sampler, self._post))

    async def _wait_heard(self) -> None:
        await self._heard.wait()

    def let_go(self) -> Life | None:
        """The life has ended: nothing of it goes on."""
        self._jobs.cancel(*_LIFE_JOBS)
        self.promises.close()
        life, self.life = self.life, None
        if life is not None:
            self._services.reconciler.forget(life.pinning)
        return life

    async def clean_up(self, life: Life | None) -> None:
        """Give back what an ended life held; takes a bounded time."""
        if self.monitor is not None:
            await self.monitor.aclose()
            self.monitor = None
        self.guest.detach()
        if life is None:
            return
        # those that came while it ran
        life.resources.callback(lambda: release_bridges(life.summary.nics))
        try:
            await life.resources.aclose()
        except QsupError as error:
            _log.error("could not clean up entirely", instance=self._name, why=error.message)

    # requests that one command carries out

    def control(self, asked: Asked, state: State, wait_state: WaitState) -> None:
        """Carry out pause, resume, reset, powerdown or nmi; posts `Finished`."""
        self._jobs.start("control", partial(self._control, asked, state, wait_state), operation=asked.operation)

    async def _control(self, asked: Asked, state: State, wait_state: WaitState) -> None:
        operations, operation, is_change = self._services.operations, asked.operation, asked.request in CHANGES
        finished = Finished(operation=operation)
        try:
            # a change finds out by itself how far its predecessor came
            if not (operations.is_under_way(operation) if is_change else await operations.sending(operation)):
                return  # overtaken meanwhile
            if self.monitor is None or self.life is None:
                raise DeniedError("its monitor is not connected", instance=self._name)
            if is_change:
                arguments = operations.get(operation).arguments
                context = await self._context(self.life, self.monitor, operation)
                context = evolve(context, again=operations.was_left(operation))
                filing = self._filing(wanted=bool(arguments.get("persist")))
                outcome = await change.carry_out(asked.request, arguments, context, filing)
                self._watch_usb(context.life)
            else:
                outcome = await carry_out(asked.request, self.monitor, state, wait_state)
            if isinstance(outcome, change.Lasting):
                # from when it says that it is cancellable
                self.works.begin(operation, outcome.goals, outcome.result, outcome.otherwise)
                await operations.pend(operation, "acknowledged")
                self._post(Lasts(operation=operation))
                return
            if isinstance(outcome, going.Waiting):
                await operations.pend(operation, "acknowledged")
                force, persist = outcome.force_after, outcome.persist
                self._post(Waits(operation=operation, entry=outcome.entry, force_after=force, persist=persist))
                return
            finished = evolve(finished, result=outcome)
        except QsupError as error:
            error.instance = self._name
            finished = evolve(finished, error=error)
        await operations.foretell(operation, result=finished.result, error=finished.error)
        self._post(finished)

    def _filing(self, *, wanted: bool) -> Filing:
        def on_filed(loaded: LoadedUnit) -> None:
            self._post(Filed(loaded=loaded))

        persist, overrule = self._services.persist, self.works.overruled
        return Filing(name=self._name, wanted=wanted, persist=persist, on_filed=on_filed, overrule=overrule)

    async def _file_reached(self, operation: str, keys: Mapping[str, Changes]) -> None:
        """Have the unit say what the guest has made true of a change."""
        arguments = self._services.operations.get(operation).arguments
        filing = self._filing(wanted=bool(arguments.get("persist")))
        changes = with_besides(arguments["changes"], keys)
        await filing.write(changes, done=f"{', '.join(keys)} is as it was asked for")

    def file(self, asked: Asked) -> None:
        """Change the unit of a VM that does not run; posts `Finished`."""
        self._jobs.start("file", partial(self._file, asked), operation=asked.operation)

    async def _file(self, asked: Asked) -> None:
        operations, finished = self._services.operations, Finished(operation=asked.operation)
        arguments = operations.get(asked.operation).arguments
        try:
            filing = self._filing(wanted=bool(arguments.get("persist")))
            finished = evolve(finished, result=await file_only(arguments, filing, running=False))
        except QsupError as error:
            error.instance = self._name
            finished = evolve(finished, error=error)
        await operations.foretell(asked.operation, result=finished.result, error=finished.error)
        self._post(finished)

    async def look(self) -> Context | None:
        """What a change would work on now, to see what is possible; ``None`` while its monitor is not connected."""
        if self.life is None or self.monitor is None:
            return None
        return await self._context(self.life, self.monitor)

    async def _context(self, life: Life, monitor: Monitor, operation: str = "") -> Context:
        return Context(
            life=life,
            monitor=monitor,
            capabilities=await self._services.capabilities(life.summary.emulator),
            guest=self.guest,
            services=self._services,
            keep=self._keep,
            progress=partial(self._services.operations.progress, operation),
            note=lambda changes: self._post(Noted(life=life.number, changes=changes)),
            overtake=self.works.overtake,
            drives=self._drives,
        )

    async def _context_now(self, operation: str) -> Context | None:
        """For what works on while others change the VM, too; ``None`` while its monitor is out of reach."""
        if self.life is None or self.monitor is None:
            return None
        return await self._context(self.life, self.monitor, operation)

    def await_release(self, waits: Waits) -> None:
        """Say of a device that does not go soon what it waits for, and reset the guest when that is wanted."""
        operations = self._services.operations
        words = "pending until the guest lets it go or is reset"
        patience = partial(operations.progress, waits.operation, words)
        self._jobs.after(f"patience:{waits.operation}", _PATIENCE, patience)
        if waits.force_after is not None:
            seconds, force = max(waits.force_after, 0.0), partial(self._force, waits.operation)
            self._jobs.after(f"force:{waits.operation}", seconds, force)

    def _force(self, operation: str) -> None:
        async def job() -> None:
            if self.monitor is not None:
                self._services.operations.progress(operation, "the guest is reset")
                try:
                    await commands.system_reset(self.monitor, timeout=STEP_TIMEOUT)
                    return
                except QsupError as error:
                    _log.error("could not reset the guest to have a device go", why=error.message)
            # as long as the device is there: QEMU may be out of reach, as every one is to a daemon that begins
            self._jobs.after(f"force:{operation}", _FORCE_AGAIN, partial(self._force, operation))

        self._jobs.start(f"reset:{operation}", job, operation=operation)

    def end_release(self, operation: str) -> None:
        """Nothing waits for that device any more."""
        self._jobs.cancel(f"patience:{operation}", f"force:{operation}", f"reset:{operation}")

    def settle_hardware(self) -> None:
        """Find out which devices QEMU has, and tidy up after those that are gone; posts `Settled`."""
        if self.life is not None and self.monitor is not None:
            self._jobs.start("hardware", partial(self._settle_hardware, self.life, self.monitor))

    async def _settle_hardware(self, life: Life, monitor: Monitor, *, remind: bool = False) -> None:
        async with self._settling:
            await self._settle_alone(life, monitor, remind=remind)

    async def _settle_alone(self, life: Life, monitor: Monitor, *, remind: bool) -> None:
        try:
            context = await self._context(life, monitor)
            if remind:
                await going.remind(context)
            gone, again = await going.settle(context)
            if not self._jobs.is_running("control"):
                await change.count_left(gone, context, self.works.is_at)
            if self._jobs.is_running("control"):
                # what comes may have been planned onto a controller that has nothing on it now
                again |= bool(inventory.idle_controllers(life.hardware.summary))
            elif await going.release_controllers(context):
                self._look_in = _IN_USE_AGAIN
            await settle_media(context)
        except QsupError as error:
            _log.info("could not find out which devices it has", instance=self._name, why=error.message)
            return
        self._post(Settled(life=life.number, gone=gone))
        if again:
            self._jobs.after("hardware-again", _IN_USE_AGAIN, self.settle_hardware)
        elif inventory.leaving_controllers(life.hardware.summary) and self._look_in < _LOOKED_FOR:
            # of a USB controller no event tells: QEMU holds on to what it has taken out of its tree
            self._jobs.after("hardware-again", self._look_in, self.settle_hardware)
            self._look_in *= 2

    def limit_left(self, operation: str, error: QsupError) -> None:
        """What an earlier daemon left unfinished does not wait for QEMU for ever."""
        self._jobs.after("left", _LEFT_TIMEOUT, partial(self._post, Finished(operation=operation, error=error)))

    # turns

    def await_stop_turn(self, asked: Asked) -> None:
        """Have a stop wait for those of other VMs; posts it once more when its turn has come."""

        async def job() -> None:
            await self._services.turns.wait_to_stop(self._name, asked.operation)
            self._inbox.post(evolve(asked, in_turn=True))

        self._jobs.start("turn", job, operation=asked.operation)

    @property
    def is_reaching(self) -> bool:
        """Whether the first attempt to reach its monitor (again) is still under way."""
        return not self._tried.is_set()

    def await_reach(self, asked: Asked) -> None:
        """Have a stop wait until it is known whether the guest can be asked; posts it once more then."""
        tried = self._tried

        async def job() -> None:
            with trio.move_on_after(_REACHED_WITHIN):
                await tried.wait()
            self._inbox.post(evolve(asked, tried=True))

        self._jobs.start("turn", job, operation=asked.operation)

    def cancel_turn(self) -> None:
        """Nothing of this VM waits for another any more."""
        self._jobs.cancel("turn")

    def _await_turn(self, orders: Orders) -> None:
        self.number += 1  # whatever an earlier wait may still say is not about this one
        operation = orders.operation or ""
        self._jobs.start("turn", partial(self._turn_job, self.number, operation), operation=operation)

    async def _turn_job(self, number: int, operation: str) -> None:
        try:
            await self._services.turns.wait_to_start(self._name, operation)
        except DependencyError as error:
            self._post(LaunchEnded(life=number, error=error))
        else:
            self._post(Happened(life=number, event=Event.TURN))

    def _cancel_turn(self, orders: Orders) -> None:
        self.cancel_turn()

    # effects

    def perform(self, effect: Effect, orders: Orders) -> None:
        """Begin one effect; never waits."""
        _EFFECTS[effect](self, orders)

    def cancel_start_timeout(self) -> None:
        """The start is over, one way or another."""
        self._jobs.cancel("start-timeout")

    def cancel_stage(self) -> None:
        """The stage of a stop is over."""
        self._jobs.cancel("stage")

    def cancel_room(self) -> None:
        """The guest does not stand still for an I/O error any more."""
        self._jobs.cancel("room", "go-on")

    def _launch(self, orders: Orders) -> None:
        self.number += 1
        self._limit_start(orders, start_timeout(orders.loaded.unit))
        self._jobs.start("launch", partial(self._launch_job, self.number, orders), operation=orders.operation)

    def _limit_start(self, orders: Orders, left: float) -> None:
        seconds = start_timeout(orders.loaded.unit)
        late = Cause(kind=CauseKind.START_TIMEOUT, detail=f"it was not ready within {format_duration(seconds)}")
        self._say_after("start-timeout", left, Event.START_TIMEOUT, late)

    def limit_guest(self, orders: Orders) -> None:
        """A guest that an earlier daemon asked to shut down has what is left of its time, monitor or not."""
        self._say_after("stage", orders.stage_left, Event.STAGE_TIMEOUT)

    async def _launch_job(self, number: int, orders: Orders) -> None:
        ended = LaunchEnded(life=number)
        # held, so that what is printed meanwhile is still there when the launch has given everything back
        feed = feed_of(BoundedLog(self._services.layout.log / f"{self._name}.log"))
        start = feed.ring.end
        try:
            life = await launch(
                number,
                orders.loaded,
                self._services,
                self._nursery,
                self._console,
                orders.history,
                forced_by=self._forced_by(orders.operation),
                progress=partial(self._services.operations.progress, orders.operation or ""),
            )
            ended = LaunchEnded(life=number, born=life)
        except QsupError as error:
            ended = LaunchEnded(life=number, error=error, output=feed.ring.since(start))
        finally:
            # also when cancelled: the launch has then given everything back
            self._post(ended)

    def _forced_by(self, operation: str | None) -> str:
        """The operation if it is a start that is to be in spite of what others were promised."""
        if operation is None:
            return ""
        found = self._services.operations.get(operation)
        return operation if found.kind == Request.START.value and found.arguments.get("force") else ""

    def _cancel_launch(self, orders: Orders) -> None:
        self._jobs.cancel("launch")
        # what a launch has made is given back before it ends, and the kernel may keep some of that
        self._say_after("stage", stop.KILL_TIMEOUT, Event.STAGE_TIMEOUT)

    def _await_ready(self, orders: Orders) -> None:
        if self.life is not None and self.monitor is not None:
            if not self._jobs.is_running("start-timeout") and not ready.may_have_been_missed(self.life):
                self._limit_start(orders, orders.start_left)
            if self.life.unit.service.ready.on == "running":
                # it does already, and a job to say so would only let the record be written twice
                self._post(Happened(life=self.number, event=Event.READY))
                return
            longest = orders.start_left if ready.may_have_been_missed(self.life) else math.inf
            wait = partial(ready.wait_ready, self.life, self.monitor, self._console, self.guest, longest, self._post)
            self._jobs.start("ready", wait, operation=orders.operation)

    def _cancel_ready(self, orders: Orders) -> None:
        self._jobs.cancel("ready")

    def _ask_guest(self, orders: Orders) -> None:
        if self.life is not None and self.monitor is not None:
            guest = self.guest if orders.agent_connected else None
            service = orders.loaded.unit.service
            times = orders.stop_timeout, orders.stage_left
            ask = partial(stop.ask_guest, self.life, service, self.monitor, guest, *times, self._post)
            self._jobs.start("stage", ask, operation=orders.operation)

    def _quit(self, orders: Orders) -> None:
        if self.life is not None:
            leave = partial(stop.quit_qemu, self.life, orders.loaded.unit.service, self.monitor, self._post)
            self._jobs.start("stage", leave, operation=orders.operation)

    def _term(self, orders: Orders) -> None:
        if self.life is not None:
            end = partial(stop.terminate, self.life, orders.loaded.unit.service, orders.stage_left, self._post)
            self._jobs.start("stage", end, operation=orders.operation)

    def _kill(self, orders: Orders) -> None:
        if self.life is not None:
            self._jobs.start("stage", partial(stop.kill, self.life, self._post), operation=orders.operation)

    def _arm_restart(self, orders: Orders) -> None:
        self._say_after("restart", orders.restart_delay, Event.RESTART_DUE)

    def _disarm_restart(self, orders: Orders) -> None:
        self._jobs.cancel("restart")

    def _say_after(self, job: str, seconds: float, event: Event, cause: Cause | None = None) -> None:
        message = Happened(life=self.number, event=event, cause=cause)
        self._jobs.after(job, seconds, partial(self._post, message))

    def _reconnect(self, orders: Orders) -> None:
        self._jobs.cancel("heartbeat", "monitor")
        if self.life is not None:
            wait = 0.0 if trio.current_time() - self._attached > _LASTED else _RECONNECT_DELAY
            self._tried = trio.Event()
            self._jobs.start("reconnect", partial(self._reconnect_job, self.life, orders, wait, self._tried))

    async def _reconnect_job(self, life: Life, orders: Orders, wait: float, tried: trio.Event) -> None:
        if self.monitor is not None:
            await self.monitor.aclose()
            self.monitor = None
        await trio.sleep(wait)

        def on_failure(why: str) -> None:
            cause = Cause(kind=CauseKind.MONITOR_LOST, detail=f"{why}; {stillness(life)}")
            self._post(Happened(life=life.number, event=Event.MONITOR_LOST, cause=cause))
            tried.set()

        monitor, reached = await adopt.reconnect(
            life,
            self._services,
            self._nursery,
            on_failure=on_failure,
            ending=orders.ending,
            launched=self._launched,
            was_ready=orders.was_ready,
            held=orders.held,
        )
        self._launched = True
        self.promises.close()
        self._attach(life, monitor)
        changes = {"monitor_connected": True, "threads": reached.threads, "agent_connected": reached.agent_connected}
        self._post(Noted(life=life.number, changes=changes))
        self._post(Happened(life=life.number, event=reached.event, cause=reached.cause))
        tried.set()
        self._jobs.start("look-over", partial(self._look_over, life, monitor))

    async def _look_over(self, life: Life, monitor: Monitor) -> None:
        await watch.look_over(life, monitor, self._post, delay=watch.LOOK_OVER_DELAY)
        await self._settle_hardware(life, monitor, remind=True)

    def refresh(self) -> None:
        """Query again what a raw command or a reset may have changed."""
        if self.life is not None and self.monitor is not None:
            self._jobs.start("refresh", partial(self._refresh_job, self.life, self.monitor))

    async def _refresh_job(self, life: Life, monitor: Monitor) -> None:
        await watch.refresh(life, monitor, self._post)
        await self._settle_hardware(life, monitor)

    def _await_room(self, orders: Orders) -> None:
        # a second disk that fails is found by the watch that runs
        if self.life is not None and self.monitor is not None and not self._jobs.is_running("room"):
            self._jobs.start("room", partial(self._room.run, self.life, self.monitor, self._post))

    def _let_go_on(self, orders: Orders) -> None:
        if self.life is not None and self.monitor is not None:
            self._jobs.start("go-on", partial(room.let_go_on, self.life, self.monitor))

    def _refresh(self, orders: Orders) -> None:
        self.refresh()

    def _forget_guest(self, orders: Orders) -> None:
        self.guest.forget()


_EFFECTS: Mapping[Effect, Callable[[Body, Orders], None]] = {
    Effect.AWAIT_TURN: Body._await_turn,
    Effect.CANCEL_TURN: Body._cancel_turn,
    Effect.LAUNCH: Body._launch,
    Effect.CANCEL_LAUNCH: Body._cancel_launch,
    Effect.AWAIT_READY: Body._await_ready,
    Effect.CANCEL_READY: Body._cancel_ready,
    Effect.ASK_GUEST: Body._ask_guest,
    Effect.QUIT: Body._quit,
    Effect.TERM: Body._term,
    Effect.KILL: Body._kill,
    Effect.ARM_RESTART: Body._arm_restart,
    Effect.DISARM_RESTART: Body._disarm_restart,
    Effect.RECONNECT: Body._reconnect,
    Effect.REFRESH: Body._refresh,
    Effect.AWAIT_ROOM: Body._await_room,
    Effect.LET_GO_ON: Body._let_go_on,
    Effect.FORGET_GUEST: Body._forget_guest,
}
assert set(_EFFECTS) == set(Effect), "every effect of the table is carried out"
