"""Bringing a VM to life: from its unit to a guest that runs.

Decides: the order of the steps after the host is prepared, and that a failure or a cancel at any of them gives back all
that was made.
Must not: judge what a failure means for the VM, or watch it once it lives.

QEMU is executed paused, recorded, negotiated with, checked against what was promised, and only then let run. Its end at
any time ends the launch at once, in its own words.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from typing import TypeVar

import structlog
import trio
from attrs import evolve, frozen

from qsup.errors import (
    HostError,
    MonitorClosed,
    MonitorConnectError,
    MonitorError,
    QsupError,
    StartError,
    UnsupportedError,
    from_oserror,
)
from qsup.host import affinity, descriptors, kvmnode, process
from qsup.host.cgroup import Cgroup
from qsup.host.process import Credentials, Process
from qsup.instance import balloon
from qsup.instance.console import ConsoleHub
from qsup.instance.exit import OUT_OF_MEMORY
from qsup.instance.hardware import Hardware
from qsup.instance.helpers import Helpers
from qsup.instance.life import Life, last_words
from qsup.instance.live import throttle
from qsup.instance.pinning import Pinning
from qsup.instance.prepare import Prepared, prepare
from qsup.instance.restart import RestartHistory
from qsup.instance.services import Services
from qsup.instance.taps import unplug_links
from qsup.plan.pinning import Pins
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.qmp.dial import connect_monitor, connect_unix
from qsup.unit.effective import machine_memory, start_timeout, takes_memory_at_once
from qsup.unit.load import LoadedUnit
from qsup.unit.model import Unit
from qsup.unit.quantity import format_size

_log = structlog.get_logger()
T = TypeVar("T")

#: Seconds for one query once the monitor has answered its first.
_QUERY_TIMEOUT = 10.0
#: Seconds for QEMU to end after its monitor's connection did, so that its own words can be told.
_LAST_WORDS = 2.0
_SANDBOXED = "its sandbox forbids a system call that it made: look at [qemu] extra-args"
# without KVM virtio-mmio has none in QEMU 7.2 and has one in 10.0, and nothing in QEMU's schema tells which it is
_NO_IOEVENTFD = "ioeventfd is required for iothread"
_NO_IOTHREAD = "leave `iothread` out of its disks, use KVM, or use another machine type"
#: What is seen first of a QEMU that is about to end.
_SIGNS_OF_AN_END = (MonitorConnectError, MonitorClosed, HostError)
#: Seconds for a process that was sent SIGKILL to go.
_REAP_TIMEOUT = 5.0


@frozen(kw_only=True)
class _Up:
    """What bringing QEMU up yields."""

    monitor: Monitor
    pinning: Pinning
    console_start: int


async def launch(
    number: int,
    loaded: LoadedUnit,
    services: Services,
    nursery: trio.Nursery,
    console: ConsoleHub,
    history: RestartHistory,
    *,
    forced_by: str = "",
    progress: Callable[[str], None] = lambda words: None,
) -> Life:
    """Start the VM of a unit and let its guest run.

    Args:
        number: of the life that begins.
        nursery: where the monitor's and the console's readers live, longer than this call.
        forced_by: the operation that has it started in spite of what other VMs were promised.
        progress: told what it waits for.

    Raises:
        QsupError: why it could not be started; everything made for it is gone again.
    """
    resources = AsyncExitStack()
    try:
        with descriptors.reserved(_descriptors_of(loaded.unit), "start another VM", beside=descriptors.KEPT):
            prepared = await prepare(loaded, services, history, resources, forced_by=forced_by)
            output_start = prepared.output.end
            pins = services.placements.pins(loaded.name) or Pins()
            child = await _spawn(prepared, pins, resources, held=_is_held(loaded.unit, pins, prepared))
            record = evolve(prepared.record, pid=child.pid, start_time=child.start_time)
            prepared.directory.write_record(record)
            nursery.start_soon(prepared.output.run)
            up = await _unless_it_dies(
                child,
                prepared,
                output_start,
                lambda helpers: _bring_up(prepared, child, services, loaded, nursery, helpers, console, progress),
            )
            if (cgroups := tuple(map(str, prepared.cgroup.paths))) != record.cgroups:
                record = evolve(record, cgroups=cgroups)
                prepared.directory.write_record(record)
    except BaseException as error:
        with trio.CancelScope(shield=True):  # bounded: each callback has a deadline of its own
            await _give_back(resources)
        if isinstance(error, OSError):  # descriptors that were there when it began have gone to somebody else
            raise from_oserror(error, "could not start it") from error
        raise
    return Life(
        number=number,
        hardware=Hardware(loaded.unit, prepared.running.unit, prepared.running.plan, record.claims),
        process=child,
        directory=prepared.directory,
        record=record,
        running=prepared.running,
        output=prepared.output,
        cgroup=prepared.cgroup,
        helpers=prepared.helpers,
        monitor=up.monitor,
        launched=True,
        pinning=up.pinning,
        limiting=prepared.limiting,
        output_start=output_start,
        console_start=up.console_start,
        resources=resources,
        oom_kills=prepared.cgroup.oom_kills(),
    )


def _descriptors_of(unit: Unit) -> int:
    """How many a start may have open at once."""
    return 12 + 4 * len(unit.disks) + 2 * len(unit.nics) + 6 * len(unit.devices)


async def _give_back(resources: AsyncExitStack) -> None:
    """Undo a launch that failed. What cannot be undone is logged: whoever asked is to hear why the launch failed."""
    try:
        await resources.aclose()
    except QsupError as error:
        _log.error("clean-up after a failed start", why=str(error))
    except Exception as error:
        _log.error("clean-up after a failed start", exc_info=error)


def _is_held(unit: Unit, pins: Pins, prepared: Prepared) -> bool:
    """Whether it goes on only once it is in its cgroup: a cpuset moves its threads then, and it is to take no memory
    before they are where they belong.
    """
    return prepared.limiting.is_fenced or (bool(pins.start) and takes_memory_at_once(unit))


async def _spawn(prepared: Prepared, pins: Pins, resources: AsyncExitStack, *, held: bool) -> Process:
    credentials = None if prepared.uid is None else Credentials(uid=prepared.uid, gid=prepared.uid)
    with ExitStack() as handed_over:
        handed_over.callback(prepared.close_fds)
        writer = prepared.output.open_writer()
        handed_over.callback(os.close, writer)
        child = await process.spawn(
            prepared.argv,
            fds=prepared.fds,
            output_fd=writer,
            credentials=credentials,
            lockable=prepared.lockable,
            cpus=pins.start,
            hugepages=prepared.hugepages,
            nofile=prepared.nofile,
            kvm_node=prepared.plan.accel == "kvm" and credentials is not None and kvmnode.excludes(credentials.uid),
        )
        resources.push_async_callback(end_process, child, prepared.cgroup)
        if held:
            child.send_signal(signal.SIGSTOP)
    return child


async def end_process(child: Process, cgroup: Cgroup) -> None:
    """See that a process is gone: SIGKILL if it is not, frozen or not, and wait a bounded time for its end."""
    if child.send_signal(signal.SIGKILL):
        cgroup.thaw()
    with trio.move_on_after(_REAP_TIMEOUT) as scope:
        await child.wait_exit()
    if scope.cancelled_caught:
        _log.error("the kernel keeps a process after SIGKILL", pid=child.pid)
    await child.aclose()


async def _unless_it_dies(
    child: Process, prepared: Prepared, start: int, work: Callable[[trio.Nursery], Awaitable[T]]
) -> T:
    """Do the work; when QEMU ends meanwhile, raise at once what it said.

    Args:
        work: gets a nursery for what it does on the side.

    Raises:
        StartError: QEMU ended, or its monitor failed.
        QsupError: as the work says.
    """
    result: list[T] = []
    failure: QsupError | None = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await child.wait_exit()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            result.append(await work(nursery))
        except QsupError as error:  # kept, so that the nursery does not wrap it in a group
            failure = error
            if isinstance(error, _SIGNS_OF_AN_END):
                with trio.move_on_after(_LAST_WORDS):
                    await child.wait_exit()
        nursery.cancel_scope.cancel()
    if child.status is not None:
        raise _died(child, prepared, start, await prepared.helpers.failure()) from failure
    if isinstance(failure, MonitorError):
        raise StartError(failure.message, hint=failure.hint) from failure
    if failure is not None:
        raise failure
    return result[0]


def _died(child: Process, prepared: Prepared, start: int, said: str = "") -> StartError:
    assert child.status is not None
    plan = prepared.plan
    prepared.output.drain()
    text = prepared.output.text_since(start)
    words = said or process.launch_failure(child.status, text) or last_words(text)
    how = child.status.describe()
    if how == "signal KILL" and prepared.cgroup.was_oom_killed(0):
        return StartError(OUT_OF_MEMORY, hint="give its cgroup or the host more memory, or the guest less", exit=how)
    hint = _SANDBOXED if how == "signal SYS" else _NO_IOTHREAD if _NO_IOEVENTFD in words else ""
    if not hint and plan.accel == "kvm":
        hint = "; ".join(plan.warnings)  # whatever was doubtful about KVM from the beginning
    return StartError(words or f"QEMU ended with {how} and said nothing", hint=hint, exit=how)


async def _bring_up(
    prepared: Prepared,
    child: Process,
    services: Services,
    loaded: LoadedUnit,
    nursery: trio.Nursery,
    helpers: trio.Nursery,
    console: ConsoleHub,
    progress: Callable[[str], None],
) -> _Up:
    if takes_memory_at_once(loaded.unit):
        # before that QEMU answers nobody
        progress(f"QEMU takes {format_size(machine_memory(loaded.unit))} of the host's memory")
    joined, divided = trio.Event(), trio.Event()
    pins = partial(services.placements.pins, loaded.name)
    helpers.start_soon(_join_cgroup, prepared, child, joined, (pins() or Pins()).start)
    monitor = await connect_monitor(
        nursery,
        prepared.directory.path / "qmp",
        name=loaded.name,
        timeout=start_timeout(loaded.unit),
        on_latency=services.on_latency,
    )
    services.memory.release(loaded.name)  # a monitor that answers has all of its memory behind it
    if prepared.plan.accel == "kvm" and not (await commands.query_kvm(monitor, timeout=_QUERY_TIMEOUT)).enabled:
        raise UnsupportedError("KVM was asked for, and QEMU runs without it")
    iothreads, programs = bool(loaded.unit.iothreads), prepared.helpers
    pinning = Pinning(child.pid, pins, has_iothreads=iothreads, helpers=lambda: programs.serving)
    await pinning.find(monitor)
    _check_placed(pinning)
    helpers.start_soon(_divide, prepared, pinning.vcpu_threads, joined, divided)
    console_start = 0
    if prepared.plan.has_console:
        # connected before the guest runs: what it writes while nobody is connected is lost
        console_start = console.connect(_connect_console(prepared), begins=True)
        nursery.start_soon(console.pump)
    await unplug_links(loaded.unit.nics, monitor)
    await throttle.impose(throttle.limited(loaded.unit), prepared.running.plan, monitor)
    await balloon.impose(loaded.unit, prepared.running.plan, monitor)
    with pinning.excused():
        await divided.wait()  # the guest never runs outside
    _check_placed(pinning)
    prepared.limiting.check_kept(loaded.unit)
    await commands.cont(monitor, timeout=_QUERY_TIMEOUT)
    return _Up(monitor=monitor, pinning=pinning, console_start=console_start)


def _check_placed(pinning: Pinning) -> None:
    if pinning.is_misplaced:
        raise StartError(pinning.trouble, hint="see [cpu] pin and emulator-pin, and [[iothread]] pin, in its unit")


def _connect_console(prepared: Prepared) -> socket.socket:
    try:
        return connect_unix(prepared.directory.path / "console")
    except OSError as error:
        raise from_oserror(error, "could not connect the console") from error


async def _join_cgroup(prepared: Prepared, child: Process, joined: trio.Event, cpus: Set[int]) -> None:
    try:
        prepared.limiting.joined(await join_cgroup(prepared.cgroup, child, prepared.helpers), child.pid)
        for thread in affinity.threads(child.pid) if cpus else ():
            with suppress(HostError):  # said once it is known which thread it is
                affinity.put(thread, cpus)
    finally:
        child.send_signal(signal.SIGCONT)
    joined.set()


async def _divide(prepared: Prepared, vcpus: Sequence[int], joined: trio.Event, divided: trio.Event) -> None:
    await joined.wait()
    await prepared.limiting.divide(vcpus)
    divided.set()


async def join_cgroup(cgroup: Cgroup, child: Process, helpers: Helpers) -> str:
    """Move QEMU and the programs that serve its devices into its cgroup, which must be done before its guest runs.

    Returns:
        Why one could not be, or ``""``.
    """
    reason = await cgroup.join(child.pid, *helpers.serving.values())
    helpers.cgroup = cgroup
    if reason:
        _log.warning("a VM runs outside its cgroup", pid=child.pid, reason=reason)
    return reason
