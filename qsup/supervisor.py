"""Every VM of one daemon: which there are, what may be asked of each, and how the daemon begins and ends.

Decides: which instances exist (units, and what runs), whether a request may begin, and how many VMs start at a time.
Must not: know the inside of a VM's life; its driver does. Nothing here waits for a VM, except who asked to.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog
import trio

from qsup import access
from qsup.catalog import UnitStore
from qsup.errors import BusyError, DeniedError, Diagnostic, NoSuchInstance, NoSuchUnit, QsupError
from qsup.host.output import BoundedLog, last_lines
from qsup.instance.console import Attachment
from qsup.instance.driver import Driver
from qsup.instance.events import EventRing
from qsup.instance.latency import LatencyTable
from qsup.instance.messages import Asked
from qsup.instance.operation import Operation
from qsup.instance.services import Services
from qsup.instance.settle import Holder
from qsup.instance.state import Level, Request, State, Verdict, judge
from qsup.instance.view import EventRecord, InstanceView, StatsView
from qsup.unit.info import ReloadResult, UnitInfo
from qsup.unit.load import LoadedUnit

_log = structlog.get_logger()

#: Seconds that a starting daemon waits for the monitors of the VMs it found, before it answers anyway.
_ADOPTION_WAIT = 2.0
#: Seconds before a driver that failed by a bug of ours takes its VM over again.
_DRIVER_RESTART_DELAY = 1.0
#: Requests that may overtake the operation that holds a VM.
_PREEMPTING = frozenset({Request.STOP, Request.KILL})


class Supervisor:
    """All VMs, and the API's `qsup.api.backend.Backend`.

    The public methods beyond twenty are that protocol's; each is one line of delegation.

    Args:
        services: what the drivers share.
        start_concurrency: how many VMs are started at the same time when the daemon starts.
    """

    def __init__(
        self,
        services: Services,
        store: UnitStore,
        ring: EventRing,
        latency: LatencyTable,
        *,
        start_concurrency: int,
    ) -> None:
        self._services = services
        self._store = store
        self._ring = ring
        self._latency = latency
        self._start_concurrency = start_concurrency
        self._drivers: dict[str, Driver] = {}
        self._began = time.monotonic()

    # the daemon's life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take over what runs, start what starts by itself, and keep all of it until cancelled. VMs then run on."""
        await self._store.reload()
        for diagnostic in self._store.diagnostics:
            _log.error("unit file", error=str(diagnostic))
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._services.operations.run)
            for name in self._services.layout.instance_names():
                self._driver_of_leftover(name)
            for loaded in self._store.units.values():
                self._add(loaded)
            with trio.move_on_after(_ADOPTION_WAIT):
                for driver in list(self._drivers.values()):
                    await driver.wait_adopted()
                    await driver.wait_state(lambda state: state is not State.UNREACHABLE)
            self._resolve_operations()
            task_status.started()
            nursery.start_soon(self._autostart)
            await trio.sleep_forever()

    def _driver_of_leftover(self, name: str) -> None:
        """A VM that runs, or ran, under an earlier daemon; its unit may have gone or be broken."""
        try:
            self._add(self._store.units.get(name) or self._store.read(name))
        except QsupError as error:
            _log.warning("a VM's unit cannot be read", instance=name, why=str(error))
            if (loaded := access.unit_of_record(name, self._services)) is not None:
                self._add(loaded)

    def _add(self, loaded: LoadedUnit) -> Driver:
        driver = self._drivers.get(loaded.name)
        if driver is None:
            driver = self._drivers[loaded.name] = Driver(loaded, self._services)
            self._nursery.start_soon(self._keep_driving, driver)
        return driver

    async def _keep_driving(self, driver: Driver) -> None:
        """Run a driver; a bug of ours in it costs this VM a second of attention, and no other VM anything."""
        while self._drivers.get(driver.name) is driver:
            try:
                await driver.run()
            except Exception:
                _log.exception("driver failed; it takes its VM over again", instance=driver.name)
            await trio.sleep(_DRIVER_RESTART_DELAY)
            fresh = Driver(driver.loaded, self._services)
            if self._drivers.get(driver.name) is driver:
                driver = self._drivers[driver.name] = fresh

    def _resolve_operations(self) -> None:
        """End the operations that an earlier daemon left unfinished, by what has become of their VMs."""
        operations = self._services.operations
        for operation in operations.unfinished():
            driver = self._drivers.get(operation.target)
            level = driver.state.level if driver else Level.INACTIVE
            reached = {"start": level is Level.ACTIVE, "stop": level in (Level.INACTIVE, Level.FAILED)}
            reached |= {"kill": reached["stop"], "restart": reached["start"]}
            if reached.get(operation.kind):
                operations.finish(operation.id, result={"changed": True})
            else:
                error = QsupError(
                    f"the daemon ended during {operation.kind}; the VM is now {level.value}",
                    instance=operation.target,
                    hint="look at its status, and repeat the request if it is not as wanted",
                )
                operations.finish(operation.id, error=error)

    async def _autostart(self) -> None:
        limit = trio.CapacityLimiter(self._start_concurrency)

        async def start(name: str) -> None:
            async with limit:
                try:
                    operation = await self.request(name, Request.START, uid=-1)
                    seconds = self._drivers[name].loaded.unit.service.start_timeout
                    await self._services.operations.wait_final(operation.id, seconds + 1.0)
                except QsupError as error:
                    _log.error("could not start", instance=name, why=str(error))

        async with trio.open_nursery() as nursery:
            for name, loaded in self._store.units.items():
                if loaded.unit.install.autostart and self._drivers[name].state is State.DEAD:
                    nursery.start_soon(start, name)

    # instances

    def driver(self, name: str) -> Driver:
        """The driver of a VM.

        Raises:
            NoSuchInstance: there is none of that name.
        """
        try:
            return self._drivers[name]
        except KeyError:
            raise NoSuchInstance(
                f"there is no VM {name!r}",
                hint="`qsupctl list` shows all; after adding a unit file, say `qsupctl reload`",
            ) from None

    def instances(self) -> Sequence[InstanceView]:
        """Every VM, sorted by name."""
        return [self._drivers[name].view for name in sorted(self._drivers)]

    def instance(self, name: str) -> InstanceView:
        """One VM; `NoSuchInstance`."""
        return self.driver(name).view

    async def request(
        self, name: str, request: Request, *, uid: int, timeout: float | None = None, idempotency_key: str = ""
    ) -> Operation:
        """Begin a power verb; see `qsup.api.backend.Backend.request`."""
        operations = self._services.operations
        known = operations.repeated(uid, idempotency_key, request.value, name)
        if known is not None:
            return known
        driver = self._drivers.get(name) or self._new_driver(name, request)
        holder = driver.holder
        if holder is not None:
            if holder.request is request and request in _PREEMPTING:
                return operations.get(holder.operation)
            if request not in _PREEMPTING:
                raise BusyError(
                    f"{holder.request.value} is under way (operation {holder.operation})",
                    instance=name,
                    hint="wait for it, or stop or kill the VM",
                    operation=holder.operation,
                )
        judgement = judge(driver.state, request)
        if judgement.verdict is Verdict.DENIED:
            raise DeniedError(f"cannot {request.value}: {judgement.reason}", instance=name, hint=judgement.hint)
        operation = operations.begin(request.value, name, uid=uid, key=idempotency_key)
        driver.hold(Holder(operation=operation.id, request=request, timeout=timeout))
        await self._record(driver, operation, request)
        driver.post(Asked(operation=operation.id, request=request))
        return operation

    async def _record(self, driver: Driver, operation: Operation, request: Request) -> None:
        """Write the operation ahead. A full disk must not keep anyone from stopping a VM."""
        try:
            await self._services.operations.record(operation.id)
        except QsupError as error:
            if request in _PREEMPTING:
                _log.error("operation not recorded", instance=driver.name, operation=operation.id, why=str(error))
                return
            driver.release(operation.id)
            self._services.operations.discard(operation.id)
            error.instance = driver.name
            raise
        except BaseException:
            driver.release(operation.id)
            self._services.operations.discard(operation.id)
            raise

    def _new_driver(self, name: str, request: Request) -> Driver:
        """An instance of a template, or a unit that came after the last reload, exists from its first start on."""
        if request not in (Request.START, Request.RESTART):
            return self.driver(name)
        try:
            return self._add(self._store.read(name))
        except NoSuchUnit as error:
            raise NoSuchInstance(error.message, hint=error.hint) from error

    # operations

    def operations(self) -> Sequence[Operation]:
        """All that are kept, newest first."""
        return self._services.operations.all()

    def operation(self, operation_id: str) -> Operation:
        """One; `NoSuchOperation`."""
        return self._services.operations.get(operation_id)

    async def wait_operation(self, operation_id: str, timeout: float) -> Operation:
        """The operation once it is final, or as it is after ``timeout`` seconds."""
        return await self._services.operations.wait_final(operation_id, timeout)

    async def cancel_operation(self, operation_id: str) -> Operation:
        """End a cancellable one; `DeniedError` otherwise."""
        await trio.lowlevel.checkpoint()
        return self._services.operations.cancel(operation_id)

    # units

    def units(self) -> Sequence[UnitInfo]:
        """Every unit and template, sorted by name."""
        return self._store.listing()

    def unit_diagnostics(self) -> Sequence[Diagnostic]:
        """All errors of all unit files at the last load."""
        return self._store.diagnostics

    def unit(self, name: str) -> UnitInfo:
        """One; `NoSuchUnit`, `UnitError`."""
        return self._store.info(name)

    async def put_unit(self, name: str, text: str, *, if_match: str | None) -> UnitInfo:
        """Write the unit's file; see `UnitStore.put`."""
        info = await self._store.put(name, text, if_match=if_match)
        await self.reload()
        return info

    async def delete_unit(self, name: str, *, if_match: str | None) -> None:
        """Remove the unit's file; `DeniedError` while its VM is not down."""
        driver = self._drivers.get(name)
        if driver is not None and driver.state.level not in (Level.INACTIVE, Level.FAILED):
            raise DeniedError(
                f"cannot delete its unit: it is {driver.state.level.value}", instance=name, hint="stop it first"
            )
        await self._store.delete(name, if_match=if_match)
        await self.reload()

    def validate(self, name: str, text: str) -> Sequence[Diagnostic]:
        """Check a text as the file of unit ``name``."""
        return self._store.validate(name, text)

    async def reload(self) -> ReloadResult:
        """Read all unit files again. Running VMs go on as they were started."""
        result = await self._store.reload()
        for loaded in self._store.units.values():
            self._add(loaded).set_unit(loaded)
        for name in [name for name in self._drivers if self._has_gone(name)]:
            self._drivers.pop(name).retire()
        self._ring.publish(
            "units-reloaded",
            None,
            {"added": list(result.added), "changed": list(result.changed), "removed": list(result.removed)},
        )
        return result

    def _has_gone(self, name: str) -> bool:
        """Whether a VM has no unit any more and does not run."""
        driver = self._drivers[name]
        if driver.state.level not in (Level.INACTIVE, Level.FAILED) or driver.holder is not None:
            return False
        try:
            driver.set_unit(self._store.read(name))
        except NoSuchUnit:
            return driver.state is not State.QUARANTINED
        except QsupError:
            return False
        return False

    async def set_autostart(self, name: str, enabled: bool) -> UnitInfo:
        """``enable`` and ``disable``."""
        info = await self._store.set_autostart(name, enabled)
        await self.reload()
        return info

    # events and counters

    def event_sequence(self) -> int:
        """The newest event's number."""
        return self._ring.sequence

    def events(self, *, since: int | None) -> AsyncIterator[EventRecord]:
        """Events after ``since``, without end; `GoneError`."""
        return self._ring.subscribe(since=since)

    def stats(self, name: str) -> StatsView:
        """Counters as last read."""
        return access.stats(self.driver(name))

    def health(self) -> tuple[Sequence[str], float]:
        """What is wrong with the daemon, and its uptime in seconds."""
        problems = [str(diagnostic) for diagnostic in self._store.diagnostics]
        problems += [
            f"{name}: {d.view.cause.detail}"
            for name, d in self._drivers.items()
            if d.state is State.QUARANTINED and d.view.cause
        ]
        return problems, time.monotonic() - self._began

    def qmp_latency(self) -> Mapping[str, tuple[Sequence[int], float]]:
        """Per command: counts by bucket, and the sum in seconds."""
        return self._latency.snapshot()

    # into a VM

    def log(self, name: str, lines: int) -> Sequence[str]:
        """The last lines of QEMU's own output."""
        driver = self.driver(name)
        if driver.life is not None:
            return driver.life.output.tail(lines)
        return last_lines(BoundedLog(self._services.layout.log / f"{name}.log").read(), lines)

    def follow_log(self, name: str) -> AsyncIterator[str]:
        """Lines as they come, until the VM ends."""
        return access.follow_log(self.driver(name))

    def command_line(self, name: str) -> tuple[Sequence[str], bool]:
        """QEMU's argv while it runs, and ``True``; the argv of its last start, or nothing, and ``False``."""
        driver = self.driver(name)
        return driver.command_line, driver.life is not None

    async def qmp(self, name: str, command: str, arguments: Mapping[str, Any] | None, timeout: float) -> object:
        """One raw QMP command; see `qsup.access.qmp`."""
        return await access.qmp(self.driver(name), command, arguments, timeout)

    async def agent(self, name: str, command: str, arguments: Mapping[str, Any], timeout: float) -> object:
        """A call to the guest agent; see `qsup.access.agent`."""
        return await access.agent(self.driver(name), command, arguments, timeout)

    async def screenshot(self, name: str) -> bytes:
        """The screen as PNG."""
        return await access.screenshot(self.driver(name))

    def console(self, name: str, *, write: bool) -> AbstractAsyncContextManager[Attachment]:
        """Attach to the text console."""
        return self.driver(name).console.attach(write=write)

    def vnc(self, name: str) -> AbstractAsyncContextManager[trio.SocketStream]:
        """A VNC connection to QEMU."""
        return access.vnc(self.driver(name))
