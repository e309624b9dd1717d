"""The daemon as the API sees it: `qsup.api.backend.Backend`, over the supervisor and what stands beside it.

Decides: which part answers which question.
Must not: know HTTP, or hold anything of its own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import trio

from qsup import access
from qsup.catalog import UnitStore
from qsup.errors import DeniedError, Diagnostic, NoSuchInstance, NoSuchUnit, UnitError
from qsup.host.output import BoundedLog, feed_of, follow_lines, last_lines
from qsup.host.resources import OwnResources
from qsup.host.topology import TopologyReader
from qsup.host.usage import NodeMemory
from qsup.instance.console import Attachment
from qsup.instance.events import EventRing
from qsup.instance.hostcheck import HostFinding
from qsup.instance.latency import LatencyTable
from qsup.instance.operation import Begun, KeyUse, Operation, uncancellable
from qsup.instance.operations import OperationTable
from qsup.instance.pinned import by_cpu
from qsup.instance.state import Request
from qsup.instance.view import (
    CapacityView,
    CpusView,
    EventRecord,
    HardwareView,
    HealthView,
    InstanceView,
    StatsView,
    TopologyView,
    Usage,
)
from qsup.order.relations import relations
from qsup.order.view import Relations
from qsup.plan.occupancy import occupancy
from qsup.supervisor import Supervisor
from qsup.unit.compose import amend
from qsup.unit.info import Precondition, ReloadResult, UnitChanges, UnitInfo, UnitPreview, UnitSources
from qsup.unit.model import Unit

_NONE: Mapping[str, Any] = {}
#: Seconds for an operation that was cancelled to end.
_CANCEL_WAIT = 5.0


class DaemonBackend:
    """All that routes may call. Long because it is the whole protocol, a line or two for each call.

    Args:
        logs: the directory of the VMs' logs.
        damage: what was wrong with the daemon's own files as it began, one sentence each.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        store: UnitStore,
        operations: OperationTable,
        ring: EventRing,
        latency: LatencyTable,
        resources: OwnResources,
        topology: TopologyReader,
        *,
        logs: Path,
        damage: Sequence[str] = (),
    ) -> None:
        self._supervisor = supervisor
        self._store = store
        self._operations = operations
        self._ring = ring
        self._latency = latency
        self._resources = resources
        self._topology = topology
        self._logs = logs
        self._damage = damage
        self._began = time.monotonic()

    # instances

    def instances(self) -> Sequence[InstanceView]:
        """Every VM, sorted by name."""
        return [driver.view for driver in self._supervisor.drivers()]

    def instance(self, name: str) -> InstanceView:
        """One VM; `NoSuchInstance`."""
        return self._supervisor.driver(name).view

    async def relations(self) -> Relations:
        """What units say of each other; see `qsup.order.relations`."""
        return await relations({driver.name: driver for driver in self._supervisor.drivers()}, self._store.load)

    async def request(
        self,
        name: str,
        request: Request,
        *,
        uid: int,
        timeout: float | None = None,
        idempotency_key: str = "",
        arguments: Mapping[str, Any] = _NONE,
    ) -> Operation:
        """Begin a power verb or a change; see `Supervisor.request`.

        Args:
            arguments: whose ``persist`` may be ``None``: as is usual for the VM.
        """
        key = idempotency_key
        if arguments.get("persist", ...) is None:
            arguments = {**arguments, "persist": self._is_lasting(name)}
        return await self._supervisor.request(
            name, request, uid=uid, timeout=timeout, idempotency_key=key, arguments=arguments
        )

    def _is_lasting(self, name: str) -> bool:
        """Whether changes of a VM are written to its unit where nobody says otherwise; also before it first ran."""
        try:
            loaded = self._supervisor.driver(name).loaded
        except NoSuchInstance as error:
            try:
                loaded = self._store.read(name)
            except NoSuchUnit:
                raise error from None
        return self._store.is_ours(loaded.files)

    def devices(self, name: str) -> HardwareView:
        """What QEMU has of devices, and the room that is left; see `qsup.access.devices`."""
        return access.devices(self._supervisor.driver(name))

    async def request_all(self, names: Sequence[str], use: KeyUse) -> Begun:
        """Begin a power verb of several VMs; see `Supervisor.request_all`."""
        return await self._supervisor.request_all(names, use)

    async def stop_all(self, *, uid: int, timeout: float | None = None, idempotency_key: str = "") -> Operation:
        """Stop every VM; see `Supervisor.stop_all`."""
        return await self._supervisor.stop_all(uid=uid, timeout=timeout, idempotency_key=idempotency_key)

    # operations

    def operations(self) -> Sequence[Operation]:
        """All that are kept, newest first."""
        return self._operations.all()

    def operation(self, operation_id: str) -> Operation:
        """One; `NoSuchOperation`."""
        return self._operations.get(operation_id)

    async def wait_operation(self, operation_id: str, timeout: float) -> Operation:
        """The operation once it is final, or as it is after ``timeout`` seconds."""
        return await self._operations.wait_final(operation_id, timeout)

    async def cancel_operation(self, operation_id: str) -> Operation:
        """End a cancellable one; `DeniedError` otherwise."""
        operation = self._operations.get(operation_id)
        if not operation.cancellable:
            await trio.lowlevel.checkpoint()
            raise uncancellable(operation)
        await self._supervisor.driver(operation.target).pending.cancel_work(operation_id)
        return await self._operations.wait_final(operation_id, _CANCEL_WAIT)

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

    def unit_sources(self, name: str) -> UnitSources:
        """Its files as they are; `NoSuchUnit`."""
        return self._store.sources(name)

    async def put_unit(self, name: str, text: str, *, only_if: Precondition, dropin: str = "") -> UnitInfo:
        """Write the unit's file, or a drop-in; see `UnitStore.put`."""
        info = await self._store.put(name, text, only_if=only_if, dropin=dropin)
        await self._supervisor.reload()
        return info

    async def preview_unit(self, name: str, text: str, *, only_if: Precondition, dropin: str = "") -> UnitPreview:
        """What would become of each key if that were put, and applied; see `UnitStore.candidate`."""
        unit = await self._store.candidate(name, text, only_if=only_if, dropin=dropin)
        before, driver = None, None
        with suppress(NoSuchUnit, UnitError):
            before = self._store.read(name).unit
        with suppress(NoSuchInstance):
            driver = self._supervisor.driver(name)
        return await access.previewed(name, driver, before, unit)

    async def delete_unit(self, name: str, *, only_if: Precondition) -> None:
        """Remove the unit's file; `DeniedError` while its VM, or one of a template's, is not down."""
        self._supervisor.check_down(name, f"delete the unit {name}")
        await self._store.delete(name, only_if=only_if)
        await self._supervisor.reload()

    async def validate(self, name: str, text: str) -> Sequence[Diagnostic]:
        """Check a text as the file of unit ``name``."""
        return await self._store.validate(name, text)

    async def validate_host(self, units: Mapping[str, Mapping[str, Any]]) -> Sequence[HostFinding]:
        """Check units, by their values, against this host; `UnitError` for one that is none."""
        composed = {name: amend(Unit(), values, name) for name, values in units.items()}
        if found := [diagnostic for each in composed.values() for diagnostic in each.diagnostics]:
            raise UnitError(tuple(found))
        return await self._supervisor.check_host({name: each.unit for name, each in composed.items() if each.unit})

    async def reload(self) -> ReloadResult:
        """Read all unit files again; running VMs go on as they were started."""
        return await self._supervisor.reload()

    async def diff(self, name: str) -> UnitChanges:
        """A VM against its unit as the files say it now; see `Supervisor.diff`."""
        return await self._supervisor.diff(name)

    async def set_autostart(self, name: str, enabled: bool) -> UnitInfo:
        """``enable`` and ``disable``."""
        info = await self._store.set_autostart(name, enabled)
        await self._supervisor.reload()
        return info

    # events and counters

    def event_sequence(self) -> int:
        """The newest event's number."""
        return self._ring.sequence

    def events(self, *, since: int | None) -> AsyncIterator[EventRecord]:
        """Events after ``since``, without end; `GoneError`."""
        return self._ring.subscribe(since=since)

    async def cpus(self, name: str) -> CpusView:
        """See `qsup.access.cpus`."""
        return await access.cpus(self._supervisor.driver(name), self._supervisor.placements)

    def counters(self, name: str) -> Callable[[], StatsView]:
        """What reads its counters; see `qsup.access.counters`."""
        return access.counters(self._supervisor.driver(name), self._supervisor.node_memories).read

    async def node_memory(self, name: str) -> NodeMemory:
        """Where its memory is; see `qsup.access.node_memory`."""
        return await access.node_memory(self._supervisor.driver(name), self._supervisor.node_memories)

    def health(self) -> HealthView:
        """How the daemon is."""
        problems = [*self._damage, *self._resources.problems()]
        problems += map(str, self._store.diagnostics)
        problems += self._supervisor.problems()
        return HealthView(
            problems=tuple(problems),
            uptime=time.monotonic() - self._began,
            descriptors=Usage(*self._resources.descriptors()),
            memory=Usage(*self._resources.memory()),
        )

    async def topology(self) -> TopologyView:
        """The host as it is now, and who is pinned where on it."""
        host = await self._topology.look()
        sets = {driver.name: access.cpu_sets(driver) for driver in self._supervisor.drivers()}
        given = occupancy(self._supervisor.placements.ledger(host), self._supervisor.capacity.promises)
        return TopologyView(topology=host, pinned=by_cpu(sets), occupancy=given)

    async def capacity(self) -> CapacityView:
        """What may be promised of the host, and what is."""
        host, promises = await self._supervisor.capacity.survey()
        return CapacityView(host=host, promises=promises)

    def qmp_latency(self) -> Mapping[str, tuple[Sequence[int], float]]:
        """Per command: counts by bucket, and the sum in seconds."""
        return self._latency.snapshot()

    # into a VM

    def log(self, name: str, lines: int) -> Sequence[str]:
        """The last lines of QEMU's own output."""
        driver = self._supervisor.driver(name)
        if driver.life is not None:
            return driver.life.output.tail(lines)
        return last_lines(self._log(name).read(), lines)

    def follow_log(self, name: str) -> AsyncIterator[str]:
        """Lines as they come from the call on, in this life of the VM and all later ones."""
        self._supervisor.driver(name)
        # the place in the output is taken now, not when the first line is waited for
        return follow_lines(feed_of(self._log(name)).follow())

    def _log(self, name: str) -> BoundedLog:
        return BoundedLog(self._logs / f"{name}.log")

    def command_line(self, name: str) -> tuple[Sequence[str], bool]:
        """QEMU's argv while it runs, and ``True``; else the argv of its last start, and ``False``; `DeniedError`."""
        driver = self._supervisor.driver(name)
        if not driver.command_line:
            words = "it has not been started since the daemon was, so there is no command line to show"
            raise DeniedError(words, instance=name, hint="start it first")
        return driver.command_line, driver.life is not None

    async def qmp(self, name: str, command: str, arguments: Mapping[str, Any] | None, timeout: float) -> object:
        """One raw QMP command; see `qsup.access.qmp`."""
        return await access.qmp(self._supervisor.driver(name), command, arguments, timeout)

    async def agent(self, name: str, command: str, arguments: Mapping[str, Any], timeout: float) -> object:
        """A call to the guest agent; see `qsup.access.agent`."""
        return await access.agent(self._supervisor.driver(name), command, arguments, timeout)

    async def screenshot(self, name: str) -> bytes:
        """The screen as PNG."""
        return await access.screenshot(self._supervisor.driver(name))

    def console(self, name: str, *, write: bool) -> AbstractAsyncContextManager[Attachment]:
        """Attach to the text console."""
        return access.console(self._supervisor.driver(name), write=write)

    def vnc(self, name: str) -> AbstractAsyncContextManager[trio.SocketStream]:
        """A VNC connection to QEMU."""
        return access.vnc(self._supervisor.driver(name))
