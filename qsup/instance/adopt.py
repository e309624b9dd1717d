"""Finding a VM again that an earlier daemon started.

Decides: what is believed of a run record, and in which state an adopted VM is.
Must not: signal a process that is not, beyond doubt, the recorded one; or change anything about a VM that runs.

What is believed: the boot id, then a pidfd whose process has the recorded start time and runs as the recorded user,
then what QEMU itself answers. A record without a pid is a launch that a dying daemon left half done: what it made is
given back. Of a record of another boot nothing is believed, and nobody is signalled for it. Long because finding,
reaching and writing down again share one record.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Set
from contextlib import AsyncExitStack
from functools import partial

import structlog
import trio
from attrs import evolve, frozen

from qsup.errors import HostError, MonitorError, QsupError, StateFileError
from qsup.host import codec, descriptors, network, proc, process
from qsup.host.cgroup import Cgroup
from qsup.host.output import Output
from qsup.host.pidfd import PidFd
from qsup.host.records import RunRecord
from qsup.host.rundir import InstanceDirectory
from qsup.instance import balloon, room, watch
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.console import ConsoleHub
from qsup.instance.exit import OUT_OF_MEMORY
from qsup.instance.hardware import Hardware
from qsup.instance.helpers import Helpers
from qsup.instance.launch import join_cgroup
from qsup.instance.life import Life
from qsup.instance.limiting import Limiting
from qsup.instance.live import throttle
from qsup.instance.outside import release_pci
from qsup.instance.pinning import Pinning
from qsup.instance.position import Position
from qsup.instance.record import CauseRecord, Running
from qsup.instance.restart import RestartHistory
from qsup.instance.runstate import Guest, judge_status
from qsup.instance.services import Services
from qsup.instance.state import Event, State
from qsup.instance.taps import unplug_links
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.qmp.dial import connect_monitor, connect_unix
from qsup.unit.model import Unit
from qsup.unit.parse import unit_from_values

_log = structlog.get_logger()

_CONNECT_TIMEOUT = 5.0
_QUERY_TIMEOUT = 5.0
#: Seconds between two attempts to reach a monitor, growing to the longest.
_RETRY_FIRST = 0.5
_RETRY_LONGEST = 10.0
_EMPTY_TIMEOUT = 5.0
#: Descriptors that a VM takes: its directory, its output and its process, and later its monitor and its console.
_DESCRIPTORS, DESCRIPTORS_LATER = 5, 2


@frozen(kw_only=True, eq=False)
class Found:
    """What is left of a VM that an earlier daemon started.

    Args:
        life: the VM, not yet connected; ``None`` when its process is gone, and then ``cause`` says how it ended.
        wrote: its guest has run and could write to a console.
        ending: a stop that was under way.
        told_to_end: that stop had come further than asking the guest.
        stage_by, start_by: CLOCK_BOOTTIME seconds by when that is over, and by when it must be ready.
        started: CLOCK_BOOTTIME seconds of when its process was, or was to be, started; 0 for another boot.
    """

    life: Life | None
    cause: Cause | None
    history: RestartHistory
    wrote: bool
    ending: Cause | None
    told_to_end: bool
    stage_by: float | None
    start_by: float | None
    started: float
    since: float
    was_ready: bool
    held: bool


@frozen(kw_only=True)
class Reached:
    """What a monitor answered after a reconnect: the event that brings the driver into the right state, and more."""

    event: Event
    cause: Cause | None
    threads: tuple[int, ...]
    agent_connected: bool


async def find(name: str, number: int, services: Services, nursery: trio.Nursery) -> Found | None:
    """Look for a VM in its run directory; quick, because it asks the kernel and not QEMU.

    Args:
        number: of the life, should it live.
        nursery: where the reader of QEMU's output lives.

    Returns:
        ``None`` when there is nothing of it.

    Raises:
        StateFileError: its record cannot be read; nothing is touched.
    """
    if not services.layout.has_instance(name):
        return None
    try:
        with descriptors.reserved(_DESCRIPTORS, "take it over", beside=descriptors.KEPT):
            directory = services.layout.instance(name)
    except HostError as error:
        raise StateFileError(error.message) from error
    resources = AsyncExitStack()
    resources.callback(directory.remove)
    try:
        record, running, unit = _read(directory)
    except StateFileError as error:
        holders = directory.holders("output")
        directory.close()
        if holders:
            pids = ", ".join(map(str, holders))
            raise StateFileError(f"{error.message}, and process {pids} is there") from error
        if not error.details.get("missing"):
            raise
        await _give_back(resources, name)  # a daemon died before it wrote the record: nothing else was made yet
        return None
    return await _identify(record, running, unit, directory, number, services, nursery, resources)


def _read(directory: InstanceDirectory) -> tuple[RunRecord, Running, Unit]:
    record = directory.read_record()
    path = directory.path / "record.json"
    try:
        running = codec.decode(Running, record.state)
        unit = unit_from_values(running.unit)
        if running.ending:
            running.ending.cause()
    except ValueError as error:
        raise codec.refused(path, error) from error
    return record, running, unit


async def _identify(
    record: RunRecord,
    running: Running,
    unit: Unit,
    directory: InstanceDirectory,
    number: int,
    services: Services,
    nursery: trio.Nursery,
    resources: AsyncExitStack,
) -> Found:
    former = record.boot_id != proc.boot_id()
    cgroup = Cgroup() if former else _cgroup(record, services)
    later = (nic.bridge for nic in running.plan.nics if nic.type == "bridge")
    for bridge in dict.fromkeys((*record.bridges, *later)):
        resources.callback(network.release_bridge, bridge)
    resources.callback(services.claims.release, record.name)
    resources.push_async_callback(cgroup.end)
    if not former:
        services.passthrough.restore(running.bindings, record.name)
        services.placements.restore(record.name, unit, running.chosen)
        services.capacity.restore(record.name, unit, running.plan)
    resources.push_async_callback(release_pci, record.name, services)
    helpers = Helpers(directory, partial(services.placements.pins, record.name))
    resources.push_async_callback(helpers.aclose)
    helpers.adopt(running.helpers, record.boot_id)
    helpers.cgroup = cgroup
    child = None
    if record.pid is not None and record.start_time is not None:
        child = process.adopt(record.pid, record.start_time, record.boot_id)
    if child is not None and not _runs_as_recorded(child.pid, record, directory):
        await child.aclose()
        child = None
    if child is None:
        cause = _lost(record, cgroup)
        if not former:
            await _empty(cgroup, directory if record.pid is None else None, {os.geteuid(), record.uid})
        await _give_back(resources, record.name)
        return _found(None, cause, record, running)
    if not running.launched:
        child.send_signal(signal.SIGCONT)  # a launch may have been cut short that held it until it was in its cgroup
    for claim in record.claims:
        services.claims.restore(claim, holder=record.name)
    output = Output(directory.path / "output", services.layout.log / f"{record.name}.log", adopted=True)
    resources.callback(output.close)
    resources.push_async_callback(child.aclose)
    nursery.start_soon(output.run)
    limiting = Limiting(cgroup, found=child.pid)
    await limiting.impose(unit)
    life = Life(
        number=number,
        hardware=Hardware(unit, running.unit, running.plan, record.claims),
        process=child,
        directory=directory,
        record=record,
        running=running,
        output=output,
        cgroup=cgroup,
        helpers=helpers,
        monitor=None,
        launched=running.launched,
        pinning=Pinning(
            child.pid,
            partial(services.placements.pins, record.name),
            has_iothreads=bool(unit.iothreads),
            helpers=lambda: helpers.serving,
            found=True,
        ),
        limiting=limiting,
        output_start=output.end,
        console_start=0,
        resources=resources,
        oom_kills=cgroup.oom_kills(),
    )
    return _found(life, None, record, running)


def _cgroup(record: RunRecord, services: Services) -> Cgroup:
    if record.cgroups:
        return services.cgroups.reopen(record.name, record.cgroups)
    # a launch that was cut short may have made cgroups that it did not come to record
    return services.cgroups.create(record.name)


def _runs_as_recorded(pid: int, record: RunRecord, directory: InstanceDirectory) -> bool:
    """Whether a process has the VM's user; one whose launch was cut short may not have it yet, and has our output."""
    if proc.uid(pid) == record.uid:
        return True
    _log.warning("a process of another user than recorded", instance=record.name, pid=pid, recorded=record.uid)
    return proc.uid(pid) == os.geteuid() and pid in directory.holders("output")


async def _give_back(resources: AsyncExitStack, name: str) -> None:
    try:
        await resources.aclose()
    except QsupError as error:
        _log.error("could not clean up entirely", instance=name, why=error.message)


def _found(life: Life | None, cause: Cause | None, record: RunRecord, running: Running) -> Found:
    return Found(
        life=life,
        cause=cause,
        history=running.history(),
        wrote=running.launched and running.plan.has_console,
        ending=running.ending.cause() if running.ending else None,
        told_to_end=running.told_to_end,
        stage_by=running.stage_by,
        start_by=running.start_by,
        started=record.uptime if record.boot_id == proc.boot_id() else 0.0,
        since=running.since,
        was_ready=running.was_ready,
        held=running.held,
    )


def _lost(record: RunRecord, cgroup: Cgroup) -> Cause:
    if record.boot_id != proc.boot_id():
        return Cause(kind=CauseKind.HOST_REBOOT, detail="it ended with an earlier boot of the host")
    if record.pid is None:
        return Cause(kind=CauseKind.START_FAILED, detail="the daemon ended while it was starting it")
    if cgroup.oom_kills():  # its cgroup was made for this life alone
        return Cause(kind=CauseKind.OOM, detail=f"{OUT_OF_MEMORY}, while no daemon was running")
    return Cause(kind=CauseKind.EXIT_UNKNOWN, detail="it ended while no daemon was running")


async def _empty(cgroup: Cgroup, unrecorded: InstanceDirectory | None, uids: Set[int]) -> None:
    """Kill what is left of a launch: it is in its cgroup.

    Args:
        unrecorded: where the launch was cut short before its process was on record, which may not have come into its
            cgroup then. It holds its output's FIFO open, and leads a session; somebody who only reads that does not.
        uids: whom the process may run as.
    """

    def left() -> frozenset[int]:
        holders = unrecorded.holders("output") if unrecorded else ()
        return cgroup.members() | {pid for pid in holders if proc.session(pid) == pid and proc.uid(pid) in uids}

    for pid in left():
        try:
            handle = PidFd.open(pid)
        except ProcessLookupError:
            continue
        if pid in left():  # still, and so the handle is that very process's
            handle.send_signal(signal.SIGKILL)
            with trio.move_on_after(_EMPTY_TIMEOUT):
                await handle.wait_exit()
        handle.close()


def attach_console(life: Life, nursery: trio.Nursery, console: ConsoleHub) -> int:
    """Connect to the console again, if it can be had; without it the VM is no less alive.

    Returns:
        Where in the console's output the life begins.
    """
    if not life.summary.has_console:
        return 0
    try:
        connected = connect_unix(life.directory.path / "console")
    except OSError as error:
        _log.warning("could not connect the console", instance=life.record.name, why=os.strerror(error.errno or 0))
        return console.last_start()
    start = console.connect(connected, begins=False)
    nursery.start_soon(console.pump)
    return start


async def _connect(life: Life, services: Services, nursery: trio.Nursery) -> Monitor:
    return await connect_monitor(
        nursery,
        life.directory.path / "qmp",
        name=life.record.name,
        timeout=_CONNECT_TIMEOUT,
        on_latency=services.on_latency,
    )


async def _ask(
    life: Life, monitor: Monitor, ending: Cause | None, *, launched: bool, was_ready: bool, held: bool
) -> Reached:
    status = await commands.query_status(monitor, timeout=_QUERY_TIMEOUT)
    threads = await life.pinning.find(monitor)
    await life.limiting.divide(threads)
    connected = life.summary.has_agent and await watch.agent_is_open(monitor)
    if ending is not None:
        event = Event.ADOPTED_SHUTDOWN if status.status == "shutdown" else Event.ADOPTED_STOPPING
        cause = ending
    elif status.status == "prelaunch" and not launched:
        # the dead daemon had not come to `cont`: letting the guest run is the rest of that launch
        await throttle.impose(throttle.limited(life.unit), life.summary, monitor)
        await balloon.impose(life.unit, life.summary, monitor)
        with life.pinning.excused():
            life.limiting.joined(await join_cgroup(life.cgroup, life.process, life.helpers), life.process.pid)
            await life.limiting.divide(threads)
        await unplug_links(life.unit.nics, monitor)
        await commands.cont(monitor, timeout=_QUERY_TIMEOUT)
        event, cause = Event.ADOPTED_WAITING, None
    else:
        guest, cause = judge_status(status.status)
        event = Event.ADOPTED_WAITING if guest is Guest.RUNNING and not was_ready else _ADOPTED[guest]
        if guest is Guest.IO_ERROR:
            cause = room.cause_of(await room.look(monitor, life))
            if held:
                event, cause = Event.ADOPTED_PAUSED, held_by(cause)
    return Reached(event=event, cause=cause, threads=threads, agent_connected=connected)


def held_by(cause: Cause | None) -> Cause:
    """Why a guest is paused that an operator wants so, and that stood still for an I/O error before."""
    words = "pause requested"
    return Cause(kind=CauseKind.OPERATOR, detail=f"{words}; before that: {cause.detail}" if cause else words)


#: What each run state is of a VM whose monitor was out of reach.
_ADOPTED = {
    Guest.RUNNING: Event.ADOPTED_RUNNING,
    Guest.PAUSED: Event.ADOPTED_PAUSED,
    Guest.PANICKED: Event.ADOPTED_PANICKED,
    Guest.IO_ERROR: Event.ADOPTED_IO_ERROR,
    Guest.SHUTDOWN: Event.ADOPTED_SHUTDOWN,
}


async def reconnect(
    life: Life,
    services: Services,
    nursery: trio.Nursery,
    *,
    on_failure: Callable[[str], None],
    ending: Cause | None,
    launched: bool,
    was_ready: bool,
    held: bool,
) -> tuple[Monitor, Reached]:
    """Try again and again to reach a monitor, until it answers.

    Args:
        nursery: where the monitor's reader lives.
        on_failure: called with what came of each attempt that failed.
        ending: a stop that is under way.
        launched: its guest has been let run; after a reset it is in ``prelaunch`` all the same, if it was paused.
        was_ready: it need not be waited for again.
        held: an operator wants it paused.
    """
    wait = 0.0
    while True:
        await trio.sleep(wait)
        wait = min(max(wait * 2, _RETRY_FIRST), _RETRY_LONGEST)
        try:
            monitor = await _connect(life, services, nursery)
        except MonitorError as error:
            _log.info("monitor out of reach", instance=life.record.name, why=error.message)
            on_failure(error.message)
            continue
        try:
            return monitor, await _ask(life, monitor, ending, launched=launched, was_ready=was_ready, held=held)
        except MonitorError as error:
            _log.info("monitor connected but did not answer", instance=life.record.name, why=error.message)
            on_failure(error.message)
            await monitor.aclose()


def standing(life: Life, position: Position, resets: int, services: Services) -> Running:
    """Where the VM stands, as the next daemon is to know it.

    Args:
        resets: how often its guest has reset itself.
    """
    return evolve(
        life.running,
        unit=life.hardware.values,
        plan=life.summary,
        helpers=life.helpers.records(),
        bindings=services.passthrough.held(life.record.name),
        chosen=services.placements.chosen(life.record.name),
        since=position.since,
        launched=True,
        was_ready=position.was_ready,
        held=position.held,
        ending=CauseRecord.of(position.ending) if position.ending else None,
        told_to_end=position.state in _TOLD_TO_END,
        stage_by=position.stage_by,
        start_by=position.start_by,
        restarts=position.history.count,
        restart_times=position.history.recent,
        resets=resets,
    )


def save(life: Life, running: Running) -> None:
    """Write down where the VM stands.

    Raises:
        HostError: the record could not be written; the one before it stands.
    """
    cgroups = tuple(map(str, life.cgroup.paths))  # one more where a limit came later that takes it
    record = evolve(life.record, claims=life.hardware.claims, cgroups=cgroups, state=codec.encode(running))
    life.directory.write_record(record)


_TOLD_TO_END = frozenset({State.STOPPING_QUIT, State.STOPPING_TERM, State.STOPPING_KILL, State.EXITING, State.STUCK})
#: States in which a life's record is kept up to date; in the others there is none, or it is being given up.
RECORDED = frozenset(
    {
        State.WAITING_READY,
        State.RUNNING,
        State.PAUSED,
        State.IO_ERROR,
        State.GUEST_PANICKED,
        State.UNRESPONSIVE,
        State.UNREACHABLE,
        State.STOPPING_GUEST,
        *_TOLD_TO_END,
    }
)
