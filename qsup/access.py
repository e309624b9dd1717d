"""Into a running VM: raw QMP, the guest agent, its screen, its counters, what its unit says otherwise.

Decides: what each of these needs of the VM, and how it is refused when that is not there.
Must not: change the VM's state; what raw commands change comes back as events, and is queried again.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from typing import Any

import trio
from attrs import evolve

from qsup.errors import DeniedError, HostError, QsupError, RequestError, from_oserror
from qsup.host import codec, network
from qsup.host.usage import NodeMemory
from qsup.instance import change
from qsup.instance.body import Body
from qsup.instance.console import Attachment
from qsup.instance.context import Context
from qsup.instance.counters import Counters
from qsup.instance.driver import Driver
from qsup.instance.life import Life
from qsup.instance.nodememory import NodeMemories, Whose
from qsup.instance.placements import Placements
from qsup.instance.record import Running
from qsup.instance.services import Services
from qsup.instance.state import State
from qsup.instance.verdict import AT_START, Said
from qsup.instance.view import CpusView, HardwareView
from qsup.plan.inventory import slots
from qsup.qmp import commands
from qsup.qmp.connection import MAX_LARGE_REPLY, Monitor
from qsup.qmp.screen import screendump
from qsup.unit.compare import compare
from qsup.unit.entries import MOVABLE, entries_of, entry_of
from qsup.unit.info import UnitChanges, UnitPreview
from qsup.unit.load import LoadedUnit
from qsup.unit.model import Unit
from qsup.unit.parse import unit_from_values

_SCREEN_TIMEOUT = 10.0
_VNC_TIMEOUT = 5.0
#: How commands begin that change nothing, so that nothing is to be queried again.
_READING = ("query-", "qom-list", "qom-get")
#: Where no vCPU runs.
_STANDING_STILL = (State.PAUSED, State.IO_ERROR, State.GUEST_PANICKED)


def _monitor(driver: Driver, doing: str) -> Monitor:
    """The VM's monitor.

    Raises:
        DeniedError: the VM does not run, or its monitor is out of reach.
    """
    if driver.body is None or driver.body.monitor is None:
        state = driver.state
        raise DeniedError(
            f"cannot {doing}: it is {state.level.value} ({state.substate})",
            instance=driver.name,
            hint="start it first" if driver.life is None else "wait until its monitor answers",
        )
    return driver.body.monitor


async def qmp(driver: Driver, command: str, arguments: Mapping[str, Any] | None, seconds: float) -> object:
    """Send one raw QMP command.

    Raises:
        DeniedError: the VM has no monitor now.
        MonitorError: as `Monitor.execute`.
    """
    monitor = _monitor(driver, "send a QMP command")
    try:
        return await monitor.execute(command, arguments, timeout=seconds, max_reply=MAX_LARGE_REPLY)
    finally:
        if driver.body is not None and not command.startswith(_READING):
            driver.body.refresh()


async def agent(driver: Driver, command: str, arguments: Mapping[str, Any], seconds: float) -> object:
    """Call the guest agent: ``ping``, ``info``, ``addresses`` or ``exec``.

    Raises:
        DeniedError: the VM does not run.
        AgentError: as `qsup.qmp.agent` says.
        RequestError: no such command.
    """
    _monitor(driver, "ask its guest agent")
    assert driver.body is not None, "a monitor is a body's"
    if driver.state in _STANDING_STILL:
        words = f"its guest stands still ({driver.state.substate}), and so does its agent"
        raise DeniedError(words, instance=driver.name, hint="`qsupctl status` says why")
    guest = driver.body.guest
    match command:
        case "ping":
            await guest.ping(seconds)
            return {}
        case "info":
            return await guest.info(seconds)
        case "addresses":
            return await guest.addresses(seconds)
        case "exec":
            return await guest.execute(arguments, seconds)
    raise RequestError(f"unknown guest agent command {command!r}", instance=driver.name)


async def screenshot(driver: Driver) -> bytes:
    """The screen as PNG.

    Raises:
        DeniedError: no graphics card, or the VM does not run.
        MonitorError: as `screendump`.
    """
    monitor = _monitor(driver, "take a screenshot")
    if driver.life is not None and not driver.life.summary.has_video:
        raise DeniedError("it has no graphics card", instance=driver.name, hint="set [display] video in its unit")
    try:
        return await screendump(monitor, timeout=_SCREEN_TIMEOUT)
    except OSError as error:
        raise from_oserror(error, "could not take a picture of its screen", instance=driver.name) from error


def console(driver: Driver, *, write: bool) -> AbstractAsyncContextManager[Attachment]:
    """Attach to the text console; see `ConsoleHub.attach`.

    Raises:
        DeniedError: it has none.
    """
    if driver.life is not None and not driver.life.summary.has_console:
        hint = 'set [console] type = "serial" in its unit'
        raise DeniedError("it has no text console", instance=driver.name, hint=hint)
    return driver.console.attach(write=write)


@asynccontextmanager
async def vnc(driver: Driver) -> AsyncIterator[trio.SocketStream]:
    """A connection to QEMU's VNC server, made by handing QEMU one end of a socket pair.

    Raises:
        DeniedError: no VNC display, or the VM does not run.
        MonitorError: QEMU did not take it.
    """
    monitor = _monitor(driver, "show its screen")
    if driver.life is not None and not driver.life.summary.has_vnc:
        raise DeniedError("it has no VNC display", instance=driver.name, hint='set [display] type = "vnc" in its unit')
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise from_oserror(error, "could not connect its screen", instance=driver.name) from error
    with theirs:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        async with stream:
            await commands.add_client_vnc(monitor, theirs.fileno(), timeout=_VNC_TIMEOUT)
            theirs.close()
            yield stream


def devices(driver: Driver) -> HardwareView:
    """What QEMU has of devices, as far as is known without asking it, and what its unit has besides.

    Raises:
        DeniedError: it does not run.
    """
    life, unit = _life(driver, "so it has no devices"), driver.loaded.unit
    summary = life.summary
    # what neither comes nor goes is no device
    entries = (f"{section}.{entry.id}" for section, entry in entries_of(unit) if section in MOVABLE)
    absent = tuple(entry for entry in entries if entry_of(life.unit, entry) is None)
    return HardwareView(parts=summary.parts, slots=slots(summary), absent=absent)


async def compared(driver: Driver, loaded: LoadedUnit) -> UnitChanges:
    """What differs between a VM as it runs and its unit."""
    life = driver.life
    if life is None or driver.body is None:
        return UnitChanges(instance=driver.name, running=False, changes=())
    changes = change.compared(life.hardware, loaded.unit, await _look(driver.body))
    return UnitChanges(instance=driver.name, running=True, changes=changes)


async def previewed(name: str, driver: Driver | None, before: Unit | None, unit: Unit) -> UnitPreview:
    """What would become of each key if a unit were another one.

    Args:
        driver: of its VM, ``None`` where there is none.
        before: as its files say it, ``None`` where they have errors or there are none.
        unit: as they would say it.
    """
    life = None if driver is None else driver.life
    if driver is None or life is None or driver.body is None:
        found = () if before is None else compare(before, unit)
        said = [Said.of(each, AT_START) for each in found if "." in each.key]
    else:
        said = change.previewed(life.unit, unit, await _look(driver.body))
    return UnitPreview(name=name, running=life is not None, keys={each.key: each.values() for each in said})


async def _look(body: Body) -> Context | None:
    """What a change would work on; ``None`` where that cannot be had."""
    try:
        return await body.look()
    except QsupError:
        return None  # its emulator cannot be asked for what it can do


def counters(driver: Driver, memories: NodeMemories) -> Counters:
    """What a VM's counters are read of, with those that need no reading.

    Raises:
        DeniedError: it does not run.
    """
    life = _life(driver, "so there is nothing to count")
    record = life.record
    return Counters(
        pid=life.process.pid,
        vcpus=life.pinning.vcpus,
        iothreads=life.pinning.iothreads,
        taps={nic.id: network.tap_name(record.name, record.uuid, nic.id) for nic in life.summary.nics},
        memory_limit=life.limiting.effective.memory,
        node_memory=memories.look(_whose(life)),
        disks=driver.body.sampler.look() if driver.body else {},
        balloon=driver.body.sampler.look_balloon() if driver.body else {},
        drifts=life.pinning.drifts,
    )


async def node_memory(driver: Driver, memories: NodeMemories) -> NodeMemory:
    """Where on the host a VM's memory is, read now.

    Raises:
        DeniedError: it does not run.
        HostError: the kernel did not say it in time.
    """
    return await memories.read(_whose(_life(driver, "so it has no memory")))


def _life(driver: Driver, so: str) -> Life:
    """The VM's life; `DeniedError` when it does not run."""
    if driver.life is None:
        raise DeniedError(f"it does not run, {so}", instance=driver.name, hint="start it first")
    return driver.life


def _whose(life: Life) -> Whose:
    return Whose(life.record.name, life.number, life.process.pid)


async def cpus(driver: Driver, placements: Placements) -> CpusView:
    """The threads of a VM's QEMU, where they run, and why there.

    Raises:
        DeniedError: it does not run.
    """
    life = _life(driver, "so it has no threads")
    # a QEMU can have a great many
    chosen = placements.chosen(driver.name)
    view = await trio.to_thread.run_sync(life.pinning.look)
    return evolve(view, explanation=() if chosen is None else chosen.explanation)


def cpu_sets(driver: Driver) -> tuple[frozenset[int], ...]:
    """The CPUs of the host that each vCPU of a VM is pinned to, as the daemon has it; none of one that does not run."""
    return () if driver.life is None else driver.life.pinning.sets


def unit_of_record(name: str, services: Services) -> LoadedUnit | None:
    """The unit of a VM that runs although its files are gone or broken: as it was when it was started."""
    try:
        with closing(services.layout.instance(name)) as directory:
            record = directory.read_record()
        running = codec.decode(Running, record.state)
        unit = unit_from_values(running.unit)
    except (HostError, ValueError):
        return None
    return LoadedUnit(name=name, unit=unit, files=running.files, etag=record.unit_digest, text="")
