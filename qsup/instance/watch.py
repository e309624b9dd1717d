"""Watching a life: its process, its monitor's events, its heartbeat.

Decides: what QEMU's words and silences mean as events of the table.
Must not: change state, or decide what follows.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
import trio
from attrs import evolve

from qsup.errors import MonitorClosed, MonitorError, MonitorTimeout
from qsup.host.pidfd import ExitStatus
from qsup.instance.balloon import BalloonSampler
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.drives import find_drives
from qsup.instance.exit import cause_of_exit, may_be_sigkill
from qsup.instance.guest import AGENT_PORT
from qsup.instance.life import Life
from qsup.instance.messages import RESET, Happened, Message, Noted, ProcessEnded, Seen, Told, TrayMoved, Unplugged
from qsup.instance.runstate import ANSWERED, WATCHDOG, judge_status
from qsup.instance.silence import explain
from qsup.instance.state import Event
from qsup.instance.stock import take_stock
from qsup.pace import Pace
from qsup.qmp import commands, events
from qsup.qmp.connection import Monitor
from qsup.unit.quantity import format_size

_log = structlog.get_logger()

Post = Callable[[Message], None]

#: ACPI's _OST: a device is asked for, and the guest is at it (ACPI 6.5, 6.3.5).
_EJECTION, _EJECTING = 3, 0x84

#: Seconds between two heartbeats, and what QEMU has to answer one. With the question that follows a silence they bound
#: how long a silent VM goes unnoticed.
HEARTBEAT_INTERVAL = 5.0
HEARTBEAT_TIMEOUT = 3.0
#: Seconds for the process to end after its monitor did, before the monitor alone counts as lost.
_EXIT_GRACE = 2.0
#: Seconds for what the monitor said last to be read and understood once the process has ended.
_HEARD_GRACE = 0.5
_QUERY_TIMEOUT = 10.0
#: Seconds before a refresh, so that a guest that resets itself in a loop causes no query for each time.
_REFRESH_DELAY = 0.05
#: Seconds before disks, devices and jobs are asked for after a reconnect: a daemon that takes over many VMs wants
#: a word from each before it asks any of them for more.
LOOK_OVER_DELAY = 1.0
#: Events taken in per second, after a burst of all that can wait; each may be a change of state and a line of the log.
#: A guest that causes more without end hears of its own crash some seconds late.
_EVENT_RATE, _EVENT_BURST = 100, events.MAX_EVENTS
#: Seconds for which counters are sampled after somebody asked for them.
_SAMPLE_FOR = 120.0


async def process(life: Life, post: Post, wait_heard: Callable[[], Awaitable[None]]) -> None:
    """Post the end of the process, with QEMU's last words.

    Args:
        wait_heard: waits until all that its monitor said has been posted, which may be why it ended.
    """
    status = await life.process.wait_exit()
    with trio.move_on_after(_HEARD_GRACE):
        await wait_heard()
    post(ProcessEnded(life=life.number, cause=_cause_of_end(status, life)))


def _cause_of_end(status: ExitStatus, life: Life) -> Cause:
    cause = cause_of_exit(status, life.last_words(), oom_killed=may_be_sigkill(status) and life.was_oom_killed())
    if cause.kind is CauseKind.OOM and (limit := life.unit.limits.memory):
        return evolve(cause, detail=f"{cause.detail}; limits.memory is {format_size(limit)}")
    return cause


async def monitor(
    life: Life,
    connection: Monitor,
    post: Post,
    wait_taken: Callable[[], Awaitable[None]],
    look_again: Callable[[], None],
    heard: trio.Event,
) -> None:
    """Post what the monitor's events mean, until the connection ends.

    Args:
        heard: set once all that came has been posted.
        wait_taken: waits until what was posted has been taken; a guest can cause events without end.
        look_again: has QEMU queried again in a while; called for what changes devices and jobs.
    """

    def say(event: Event, cause: Cause | None = None) -> None:
        post(Happened(life=life.number, event=event, cause=cause))

    try:
        reason = await _until_closed(life, connection, _Interpreter(life, say, post, look_again), post, wait_taken)
    finally:
        heard.set()
    # the process ends with its monitor, mostly, and the kernel, which knows how, takes its time until it is gone
    if status := life.process.dying():
        say(Event.DYING, _cause_of_end(status, life))
    post(Noted(life=life.number, changes={"monitor_connected": False}))
    await trio.sleep(0.0 if not isinstance(reason, MonitorClosed) else _EXIT_GRACE)
    say(Event.MONITOR_LOST, Cause(kind=CauseKind.MONITOR_LOST, detail=reason.message))


async def _until_closed(
    life: Life,
    connection: Monitor,
    interpret: Callable[[events.Notice], None],
    post: Post,
    wait_taken: Callable[[], Awaitable[None]],
) -> MonitorError:
    """Hand over every event until the connection ends, and return why it did."""
    pace = Pace(rate=_EVENT_RATE, burst=_EVENT_BURST)
    try:
        while True:
            batch = await connection.events.receive_batch()
            for notice in batch:
                interpret(notice)
                if isinstance(notice, events.Lost):
                    await refresh(life, connection, post)
            await wait_taken()
            await pace.spend(len(batch))
    except MonitorError as error:
        return connection.close_reason or error


#: What a guest's shutdown is by QAPI's ShutdownCause; in all other cases it powered itself off.
_SHUTDOWNS = {
    "guest-panic": Cause(kind=CauseKind.GUEST_PANIC),
    "guest-reset": Cause(kind=CauseKind.GUEST_RESET, detail="the guest reset itself, and QEMU is told to end by that"),
}


class _Interpreter:
    """What one connection's events mean.

    Args:
        say: posts an event of the table, with its cause if it has one.
        look_again: has QEMU asked anew what it has.
    """

    def __init__(self, life: Life, say: Callable[..., None], post: Post, look_again: Callable[[], None]) -> None:
        self._life = life
        self._say = say
        self._post = post
        self._look_again = look_again
        # the watchdog has pressed the power button, and how the guest takes it is still to be seen; or has reset it
        self._expired = False

    def __call__(self, notice: events.Notice) -> None:
        """Post what it means, if it means anything."""
        number = self._life.number
        match notice:
            case events.StopEvent():
                self._say(Event.GUEST_STOPPED)
            case events.ResumeEvent():
                self._say(Event.GUEST_RESUMED)
            case events.ResetEvent():
                self._expired = False
                self._say(Event.GUEST_RESET)
                self._post(Told(life=number, type=RESET, data={"guest": notice.guest, "reason": notice.reason[:64]}))
            case events.WatchdogEvent():
                self._post(Told(life=number, type="watchdog", data={"action": notice.action[:64]}))
                self._on_watchdog(notice.action)
            case events.ShutdownEvent(guest=True):
                self._say(Event.GUEST_SHUTDOWN, self._shutdown_cause(notice.reason))
            case events.GuestPanickedEvent():
                self._say(Event.GUEST_PANICKED, Cause(kind=CauseKind.GUEST_PANIC, detail=_panic_words(notice)))
            case events.BlockIoErrorEvent(action="stop"):
                self._say(Event.GUEST_IO_ERROR, _io_error_cause(notice, self._life))
            case events.VserportChangeEvent(id=port) if port == AGENT_PORT:
                self._post(Noted(life=number, changes={"agent_connected": notice.open}))
            case events.JobStatusChangeEvent():
                self._look_again()
            case events.DeviceDeletedEvent() if notice.device:
                self._post(Unplugged(life=number, device=notice.device[:128]))
            case events.DeviceTrayMovedEvent():
                self._post(TrayMoved(life=number, drive=notice.id[:128], open=notice.tray_open))
            case events.DeviceUnplugGuestErrorEvent() if notice.device:
                self._post(Unplugged(life=number, device=notice.device[:128], refused=True))
            case events.AcpiDeviceOstEvent() if notice.info.get("source") == _EJECTION:
                self._on_ejection(notice.info)
            case events.MemUnplugErrorEvent() if notice.device:
                self._post(Unplugged(life=number, device=notice.device[:128], refused=True))
            case events.BalloonChangeEvent():
                self._post(Noted(life=number, changes={"memory_actual": notice.actual}))
            case events.MemoryDeviceSizeChangeEvent():
                size = self._life.summary.memory_base + notice.size
                self._post(Noted(life=number, changes={"memory_size": size}))

    def _on_ejection(self, info: Mapping[str, object]) -> None:
        """What a guest says of a vCPU that it was asked for; a memory module has events of its own besides."""
        device = info.get("device")
        if info.get("status") == 0:
            self._look_again()
        elif info.get("status") != _EJECTING and isinstance(device, str):
            self._post(Unplugged(life=self._life.number, device=device[:128], refused=True))

    def _on_watchdog(self, action: str) -> None:
        """By QAPI's WatchdogAction; ``reset`` is told by its own event, and the others let the guest go on."""
        match action:
            case "pause":
                self._say(Event.GUEST_PANICKED, WATCHDOG)
            case "poweroff":  # QEMU exits, with 0
                self._say(Event.GUEST_SHUTDOWN, WATCHDOG)
            case "shutdown" | "reset":  # under -no-reboot a reset is QEMU's end
                self._expired = True

    def _shutdown_cause(self, reason: str) -> Cause:
        if self._expired:
            return WATCHDOG
        return _SHUTDOWNS.get(reason, Cause(kind=CauseKind.GUEST_SHUTDOWN))


def _panic_words(event: events.GuestPanickedEvent) -> str:
    kind = event.info.get("type")
    return f"the guest reported a panic ({str(kind)[:40]})" if kind else "the guest reported a panic"


def _io_error_cause(event: events.BlockIoErrorEvent, life: Life) -> Cause:
    known = (d.id for d in life.summary.disks if d.node and event.node_name == d.node)
    disk = next(known, event.device or event.node_name)[:64]
    words = f"disk {disk}: {event.operation[:16]} failed: {event.reason[:200] or 'I/O error'}"
    return Cause(kind=CauseKind.IO_ERROR, detail=words, disk=disk, nospace=event.nospace)


class DiskSampler:
    """The disks' counters and the balloon's, read along with the heartbeat for as long as somebody wants them."""

    def __init__(self) -> None:
        self._balloon = BalloonSampler()
        self._disks: Mapping[str, Mapping[str, int]] = {}
        self._until = -math.inf

    def look(self) -> Mapping[str, Mapping[str, int]]:
        """The counters by disk as last sampled; looking keeps the sampling going for a while."""
        self._until = trio.current_time() + _SAMPLE_FOR
        return self._disks

    def look_balloon(self) -> Mapping[str, int]:
        """What the guest said of its memory, sampled for as long as anybody looks at the disks."""
        return self._balloon.figures

    async def sample(self, life: Life, connection: Monitor) -> None:
        """Read the counters, if they are wanted.

        Raises:
            MonitorError: as QEMU's monitor says.
        """
        if trio.current_time() > self._until:
            await self._balloon.rest()
            return
        found = {
            stats.node_name: stats for stats in await commands.query_blockstats(connection, timeout=HEARTBEAT_TIMEOUT)
        }
        self._disks = {disk.id: found[disk.node].counters for disk in life.summary.disks if disk.node in found}
        if life.unit.memory.balloon:
            await self._balloon.sample(connection)


async def heartbeat(life: Life, connection: Monitor, sampler: DiskSampler, post: Post) -> None:
    """Ask the monitor again and again whether it is there; its end is the events' reader's to tell.

    How the guest is comes along with each answer, so that what no event told is learnt all the same.
    """
    silent = False
    await _look_at_trays(life, connection, post)
    while connection.close_reason is None:
        # on whole seconds: the daemon wakes once for all whose turn it is, which costs it a third of waking for each
        await trio.sleep_until(math.floor(trio.current_time() + HEARTBEAT_INTERVAL))
        try:
            status = await commands.query_status(connection, timeout=HEARTBEAT_TIMEOUT)
        except MonitorTimeout:
            why = await explain(life, connection, f"no answer within {HEARTBEAT_TIMEOUT:g} s")
            if why is not None:
                silent = True
                post(Happened(life=life.number, event=Event.SILENT, cause=why))
        except MonitorError as error:
            # an odd answer is one, too; where the connection has ended the loop does
            _log.debug("no status from the heartbeat", instance=life.record.name, why=error.message)
        else:
            guest, cause = judge_status(status.status)
            if silent:
                post(Happened(life=life.number, event=ANSWERED[guest], cause=cause))
            else:
                post(Seen(life=life.number, guest=guest, cause=cause))
            silent = False
            await _sample(life, connection, sampler)
            await _look_at_trays(life, connection, post)


async def _look_at_trays(life: Life, connection: Monitor, post: Post) -> None:
    """Where the trays of CD drives are; that a guest locks one no event tells."""
    names = [disk.id for disk in life.summary.disks if disk.type == "cdrom"]
    if not names:
        return
    try:
        drives = await find_drives(names, life.summary, connection, timeout=HEARTBEAT_TIMEOUT)
    except MonitorError as error:
        _log.debug("could not look at the trays", instance=life.record.name, why=error.message)
    else:
        post(Noted(life=life.number, changes={"trays": {name: drive.tray for name, drive in drives.items()}}))


async def _sample(life: Life, connection: Monitor, sampler: DiskSampler) -> None:
    try:
        await sampler.sample(life, connection)
    except MonitorError as error:
        _log.debug("could not sample the disks", instance=life.record.name, why=error.message)


async def refresh(life: Life, connection: Monitor, post: Post) -> None:
    """Query again what events may have told while nobody listened, or what a reset may have changed."""
    await trio.sleep(_REFRESH_DELAY)
    try:
        threads = await life.pinning.find(connection)
        await life.limiting.divide(threads)
        status = await commands.query_status(connection, timeout=_QUERY_TIMEOUT)
        changes: dict[str, Any] = {"threads": threads}
        if life.summary.has_agent:
            changes["agent_connected"] = await agent_is_open(connection)
    except MonitorError as error:
        _log.info("could not query the VM again", instance=life.record.name, why=error.message)
        return
    post(Noted(life=life.number, changes=changes))
    guest, cause = judge_status(status.status)
    post(Seen(life=life.number, guest=guest, cause=cause))
    await look_over(life, connection, post)


async def look_over(life: Life, connection: Monitor, post: Post, *, delay: float = 0.0) -> None:
    """Find out what became of disks, devices and jobs; see `qsup.instance.stock`.

    Args:
        delay: seconds to wait before.
    """
    await trio.sleep(delay)
    try:
        found = await take_stock(life.summary, connection)
    except MonitorError as error:
        _log.info("could not look the VM over", instance=life.record.name, why=error.message)
        return
    post(Noted(life=life.number, changes={"warnings": found}))
    await _measure(life, connection, post)


async def _measure(life: Life, connection: Monitor, post: Post) -> None:
    """How much memory the guest has: the events that tell of it come once a second at most, and may have been lost."""
    try:
        changes: dict[str, Any] = {"memory_size": await commands.query_memory_size(connection, timeout=_QUERY_TIMEOUT)}
        if life.unit.memory.balloon:
            changes["memory_actual"] = await commands.query_balloon(connection, timeout=_QUERY_TIMEOUT)
    except MonitorError as error:
        _log.info("could not ask for the memory", instance=life.record.name, why=error.message)
        return
    post(Noted(life=life.number, changes=changes))


async def agent_is_open(connection: Monitor) -> bool:
    """Whether somebody in the guest has the agent's port open (QAPI ``query-chardev``)."""
    devices = await commands.query_chardev(connection, timeout=_QUERY_TIMEOUT)
    return any(device.label == AGENT_PORT and device.frontend_open for device in devices)
