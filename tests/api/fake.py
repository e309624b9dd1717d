"""A supervisor without VMs: all that `qsup.api.backend.Backend` promises, in memory.

It judges requests by the real table and keeps events in the real ring, so that routes meet what they will meet.
Operations end at once, or, for an instance in `FakeBackend.held`, when `FakeBackend.finish` says so. Long because the
protocol it fulfils is.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import trio
from attrs import evolve

from qsup.errors import (
    AgentUnavailable,
    BusyError,
    DeniedError,
    DependencyError,
    Diagnostic,
    NoSuchInstance,
    NoSuchOperation,
    NoSuchUnit,
    PreconditionFailed,
    QmpCommandError,
    QsupError,
    RequestError,
    UnitError,
)
from qsup.host.usage import NodeMemory, NodePart, ThreadUsage, Times
from qsup.instance.events import EventRing
from qsup.instance.hostcheck import HostFinding
from qsup.instance.latency import LatencyTable
from qsup.instance.operation import Begun, KeyUse, Operation, OperationState
from qsup.instance.pinned import by_cpu
from qsup.instance.state import Request, State, Verdict, judge
from qsup.instance.view import (
    CapacityView,
    CpusView,
    DeviceView,
    EventRecord,
    HardwareView,
    HealthView,
    InstanceView,
    StatsView,
    Stray,
    ThreadView,
    TimesView,
    TopologyView,
    Usage,
)
from qsup.order.view import Relation, Relations
from qsup.plan.capacity import Bounds, Host, promise
from qsup.plan.inventory import Slots
from qsup.plan.spec import DevicePlan, DiskPlan, NicPlan, PartPlan, PlanSummary
from qsup.plan.topology import Cache, Cpu, HugePages, Node, Topology
from qsup.unit.compare import Change
from qsup.unit.graph import Graph
from qsup.unit.info import Precondition, ReloadResult, UnitChanges, UnitInfo, UnitPreview, UnitSources
from qsup.unit.model import Unit
from qsup.unit.sections.service import UnitSection

#: 2026-03-01T12:00:00Z
NOON = 1772366400.0
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
UNIT_TEXT = '[machine]\ntype = "q35"\n'

#: One core with two threads, the second for somebody else.
HOST = Topology(
    cpus=(Cpu(number=0), Cpu(number=1, isolated=True)),
    nodes=(Node(number=0, memory=8 << 30, free=5 << 30, hugepages=(HugePages(size=2 << 20, total=512, free=128),)),),
    caches=(Cache(level=3, type="Unified", size=8 << 20, cpus=frozenset({0, 1})),),
)

PLANNED = PlanSummary(
    emulator="/usr/bin/qemu-system-x86_64", machine="pc-q35-7.2", accel="tcg", cpu_model="max", memory_nodes=(0,)
)
_LEADS_TO = {
    Request.START: State.RUNNING,
    Request.RESTART: State.RUNNING,
    Request.RESUME: State.RUNNING,
    Request.STOP: State.DEAD,
    Request.KILL: State.DEAD,
    Request.PAUSE: State.PAUSED,
    Request.RESET_FAILED: State.DEAD,
}


def make_view(name: str, **changes: Any) -> InstanceView:
    """A running VM with a disk, a NIC and everything else a view can show."""
    view = InstanceView(
        name=name,
        state=State.RUNNING,
        cause=None,
        since=NOON,
        pid=4242,
        uid=720000,
        restarts=1,
        resets=0,
        uuid="6e1f4b4e-0000-4000-8000-000000000001",
        description="a web server",
        files=(f"/etc/qsup/units/{name}.toml",),
        autostart=True,
        unit_stale=False,
        needs_restart=False,
        machine="pc-q35-7.2",
        accel="tcg",
        cpu_model="max",
        emulator="/usr/bin/qemu-system-x86_64",
        firmware="bios",
        vcpus=2,
        max_vcpus=4,
        threads=(4243, 4244),
        limited=None,
        memory_size=512 << 20,
        memory_max=1 << 30,
        memory_actual=None,
        disks=(
            DiskPlan(
                id="root",
                path=f"{name}.qcow2",
                format="qcow2",
                type="disk",
                bus="virtio",
                read_only=False,
                node="disk-root",
                device="disk-root",
            ),
        ),
        nics=(
            NicPlan(id="lan", type="user", model="virtio", mac="52:54:00:12:34:56", forward=("127.0.0.1:2222:22/tcp",)),
        ),
        devices=(DeviceView(id="rng0", type="rng"),),
        moving={},
        slots=Slots(free=7, total=8),
        agent_enabled=True,
        agent_connected=True,
        console="serial",
        console_watchers=0,
        console_has_writer=False,
        display="vnc",
        video=True,
        operation=None,
        waits_for="",
        warnings=(),
    )
    return evolve(view, **changes)


def make_unit(name: str, text: str = UNIT_TEXT, **changes: Any) -> UnitInfo:
    """A unit with one file."""
    path = f"/etc/qsup/units/{name}.toml"
    info = UnitInfo(
        name=name,
        files=(path,),
        template=name.endswith("@"),
        autostart=False,
        description="",
        etag=hashlib.sha256(text.encode()).hexdigest()[:16],
        text=f"# {path}\n{text}",
        values={"machine": {"type": "q35"}},
    )
    return evolve(info, **changes)


class FakeConsole:
    """A guest that echoes: the history, what is typed, and the end when `FakeBackend.hang_up` is called."""

    def __init__(self, *, is_writer: bool) -> None:
        self.is_writer = is_writer
        self._typed, self._output = trio.open_memory_channel[bytes](math.inf)
        self._typed.send_nowait(b"login: ")

    async def receive(self) -> bytes:
        """The next output."""
        return await self._output.receive()

    async def send(self, data: bytes) -> None:
        """Echo, or refuse a watcher."""
        if not self.is_writer:
            raise DeniedError("this client only watches the console")
        await self._typed.send(data)

    def hang_up(self) -> None:
        """End the console for good."""
        self._typed.send_nowait(b"")


class FakeBackend:
    """The supervisor in memory. Long because the protocol it fulfils is.

    Attributes:
        views: the VMs by name; replace a view to change a VM.
        changes: what differs between VMs and their units.
        previews: what is said of each key if a unit were another one.
        results: of operations that succeed, by kind.
        dropins: texts by unit and file.
        foreign: names of units whose files are not the administrator's.
        held: names of VMs whose operations end by `finish` only.
        sections: what VMs' units say of others.
        excluded: names of VMs that cannot be begun together.
        deaf: names of VMs whose guests do not shut down in time when all are stopped.
        timeouts: what each request carried as its timeout, by operation.
        calls: raw QMP and agent calls that were made.
        problems: what is wrong with the daemon.
        consoles: attached consoles by VM.
        host: what it is made of; replace it to change the host.
        cpu_sets: by VM, the CPUs that each vCPU is pinned to.
        log_followers: one for each client that follows a log.
        waiting: how many calls of `wait_operation` are under way.
    """

    def __init__(self, *names: str) -> None:
        self.views = {name: make_view(name) for name in names}
        self.units_by_name = {name: make_unit(name) for name in names}
        self.diagnostics: tuple[Diagnostic, ...] = ()
        self.changes: dict[str, tuple[Change, ...]] = {}
        self.previews: dict[str, Mapping[str, Mapping[str, Any]]] = {}
        self.ring = EventRing("life-1")
        self.results: dict[str, Mapping[str, Any]] = {}
        self.dropins: dict[tuple[str, str], str] = {}
        self.foreign: set[str] = set()
        self.held: set[str] = set()
        self.unfit: list[HostFinding] = []
        self.sections: dict[str, UnitSection] = {}
        self.deaf: set[str] = set()
        self.excluded: set[str] = set()
        self.timeouts: dict[str, float | None] = {}
        self.arguments: dict[str, Mapping[str, Any]] = {}
        self.calls: list[tuple[str, str, object, float]] = []
        self.problems: list[str] = []
        self.consoles: dict[str, list[FakeConsole]] = {}
        self.log_lines = [f"line {number}" for number in range(1, 6)]
        self.latency = LatencyTable()
        self.host = HOST
        self.readings = 0
        parts = {0: NodePart(32 << 20, 8 << 20, 1 << 20), 2: NodePart(7 << 20)}
        self.node_parts = NodeMemory(read_at=1000.0, nodes=parts)
        self.cpu_sets: dict[str, Sequence[Sequence[int]]] = {}
        self.waiting = 0
        self.log_followers: list[trio.MemorySendChannel[str]] = []
        self._operations: dict[str, Operation] = {}
        self._begun: dict[tuple[int, str], Begun] = {}
        self._finished: dict[str, trio.Event] = {}

    def set_state(self, name: str, state: State, **changes: Any) -> None:
        """Move a VM and tell everyone."""
        view = self.views[name]
        self.views[name] = evolve(view, state=state, **changes)
        self.ring.publish("instance-state", name, {"old": view.state.substate, "new": state.substate})

    def instances(self) -> Sequence[InstanceView]:
        """The VMs, sorted by name."""
        return [self.views[name] for name in sorted(self.views)]

    def instance(self, name: str) -> InstanceView:
        """One VM."""
        try:
            return self.views[name]
        except KeyError:
            raise NoSuchInstance(f"there is no instance {name!r}") from None

    def devices(self, name: str) -> HardwareView:
        """A disk behind a port."""
        if self.instance(name).pid is None:
            raise DeniedError("it does not run", instance=name)
        port = DevicePlan(id="port-disk-0", driver="pcie-root-port", bus="pcie.0", address="0xe.0x0")
        disk = DevicePlan(id="disk-root", driver="virtio-blk-pci", bus="port-disk-0", address="0x0")
        parts = (PartPlan(entry="disk.root", devices=(port, disk)),)
        return HardwareView(parts=parts, slots=Slots(free=7, total=8), absent=("disk.data",))

    async def relations(self) -> Relations:
        """What the test put there, and the VMs of which it says nothing."""
        await trio.lowlevel.checkpoint()
        units = dict.fromkeys(self.views, UnitSection()) | self.sections
        named = {other for unit in units.values() for other in (*unit.requires, *unit.wants, *unit.after)}
        found = [
            Relation(
                name=name,
                state=self.views[name].state if name in self.views else None,
                unit=units.get(name, UnitSection()),
            )
            for name in sorted(units.keys() | named)
        ]
        return Relations(vms=tuple(found), cycles=Graph(units).cycles())

    async def request(
        self,
        name: str,
        request: Request,
        *,
        uid: int,
        timeout: float | None = None,
        idempotency_key: str = "",
        arguments: Mapping[str, Any] = MappingProxyType({}),
    ) -> Operation:
        """Judge a verb by the real table; carry it out at once unless the VM is held."""
        view = self.instance(name)
        for known in self._operations.values():
            if idempotency_key and (known.requested_by, known.idempotency_key) == (uid, idempotency_key):
                return known
        if view.operation is not None:
            raise BusyError("another operation holds it", instance=name, operation=view.operation)
        judgement = judge(view.state, request)
        if judgement.verdict is Verdict.DENIED:
            raise DeniedError(judgement.reason, instance=name, hint=judgement.hint)
        operation = self._begin(name, request, uid=uid, key=idempotency_key, arguments=arguments)
        self.arguments[operation.id] = arguments
        self.timeouts[operation.id] = timeout
        if name in self.held:
            self.views[name] = evolve(view, operation=operation.id)
            return operation
        return self.finish(operation.id)

    async def request_all(self, names: Sequence[str], use: KeyUse) -> Begun:
        """Each by itself, all or none by `excluded`, and kept for a repetition."""
        if use.key and (use.uid, use.key) in self._begun:
            begun = self._begun[use.uid, use.key]
            return evolve(begun, operations=tuple(self.operation(operation.id) for operation in begun.operations))
        if self.excluded <= set(names) and self.excluded:
            raise DependencyError("they exclude each other")
        operations, refused = list[Operation](), dict[str, QsupError]()
        for name in names:
            try:
                verb, asked = Request(use.kind), use.arguments
                operations.append(await self.request(name, verb, uid=use.uid, timeout=use.timeout, arguments=asked))
            except QsupError as error:
                refused[name] = error
        begun = self._begun[use.uid, use.key] = Begun(operations=tuple(operations), refused=refused)
        return begun

    async def stop_all(self, *, uid: int, timeout: float | None = None, idempotency_key: str = "") -> Operation:
        """Stop them at once; those in `deaf` have to be killed."""
        for name in self.views:
            self.set_state(name, State.DEAD)
        operation = Operation(
            id=uuid.uuid4().hex,
            kind="stop-all",
            target="",
            state=OperationState.SUCCEEDED,
            progress="done",
            created=NOON,
            updated=NOON,
            boot_id="this one",
            result={
                "changed": True,
                "stopped": sorted(self.views.keys() - self.deaf),
                "killed": sorted(self.deaf),
            },
            requested_by=uid,
            idempotency_key=idempotency_key,
        )
        self.timeouts[operation.id] = timeout
        self._operations[operation.id] = operation
        return operation

    def _begin(self, name: str, request: Request, *, uid: int, key: str, arguments: Mapping[str, Any]) -> Operation:
        operation = Operation(
            id=uuid.uuid4().hex,
            kind=request.value,
            target=name,
            state=OperationState.RUNNING,
            progress="accepted",
            created=NOON,
            updated=NOON,
            boot_id="this one",
            requested_by=uid,
            idempotency_key=key,
            arguments=arguments,
        )
        self._operations[operation.id] = operation
        self._finished[operation.id] = trio.Event()
        return operation

    def finish(self, operation_id: str, error: QsupError | None = None) -> Operation:
        """End a held operation, well or with an error."""
        operation = self._operations[operation_id]
        state = OperationState.SUCCEEDED if error is None else OperationState.FAILED
        operation = evolve(
            operation,
            state=state,
            progress="done",
            result=self.results.get(operation.kind, {}) if error is None else None,
            error=error,
        )
        self._operations[operation_id] = operation
        view = self.views[operation.target]
        after = _LEADS_TO.get(Request(operation.kind), view.state) if error is None else State.START_FAILED
        self.set_state(operation.target, after, operation=None)
        self._finished[operation_id].set()
        return operation

    def last(self, operation_id: str, progress: str) -> None:
        """A held operation is the guest's from now on, and holds its VM no more."""
        operation = self._operations[operation_id]
        self._operations[operation_id] = evolve(operation, progress=progress, cancellable=True)
        self.views[operation.target] = evolve(self.views[operation.target], operation=None)

    def operations(self) -> Sequence[Operation]:
        """All of them, newest first."""
        return tuple(reversed(self._operations.values()))

    def operation(self, operation_id: str) -> Operation:
        """One of them."""
        try:
            return self._operations[operation_id]
        except KeyError:
            raise NoSuchOperation(f"there is no operation {operation_id!r}") from None

    async def wait_operation(self, operation_id: str, timeout: float) -> Operation:
        """Wait for its end."""
        self.operation(operation_id)
        self.waiting += 1
        try:
            with trio.move_on_after(timeout):
                await self._finished[operation_id].wait()
        finally:
            self.waiting -= 1
        return self.operation(operation_id)

    async def cancel_operation(self, operation_id: str) -> Operation:
        """Refuse, as the daemon does."""
        operation = self.operation(operation_id)
        raise DeniedError("it cannot be cancelled", instance=operation.target, hint="kill the VM")

    def units(self) -> Sequence[UnitInfo]:
        """The units, sorted by name."""
        return [self.units_by_name[name] for name in sorted(self.units_by_name)]

    def unit_diagnostics(self) -> Sequence[Diagnostic]:
        """What the test put there."""
        return self.diagnostics

    def unit(self, name: str) -> UnitInfo:
        """One unit."""
        try:
            return self.units_by_name[name]
        except KeyError:
            raise NoSuchUnit(f"there is no unit {name!r}") from None

    def unit_sources(self, name: str) -> UnitSources:
        """Its one file, and its drop-in where one was put."""
        info = self.unit(name)
        dropins = tuple(
            (f"/etc/qsup/units/{name}.toml.d/{file}", text)
            for (unit, file), text in self.dropins.items()
            if unit == name
        )
        own = info.files[0] if name not in self.foreign else ""
        sources = ((info.files[0], info.text.partition("\n")[2]), *dropins)
        return UnitSources(name=name, etag=info.etag, sources=sources, own=own)

    async def put_unit(self, name: str, text: str, *, only_if: Precondition, dropin: str = "") -> UnitInfo:
        """Keep the text, if it is valid and of the version meant."""
        await self._check(name, text, only_if)
        if dropin:
            self.dropins[name, dropin] = text
        else:
            self.units_by_name[name] = make_unit(name, text)
        return self.units_by_name[name]

    async def preview_unit(self, name: str, text: str, *, only_if: Precondition, dropin: str = "") -> UnitPreview:
        """What the test says that would become of each key."""
        await self._check(name, text, only_if)
        running = name in self.views and self.views[name].pid is not None
        return UnitPreview(name=name, running=running, keys=self.previews.get(name, {}))

    async def _check(self, name: str, text: str, only_if: Precondition) -> None:
        if found := tuple(await self.validate(name, text)):
            raise UnitError(found, instance=name)
        self._match(name, only_if)

    async def delete_unit(self, name: str, *, only_if: Precondition) -> None:
        """Forget it, unless its VM runs."""
        self.unit(name)
        self._match(name, only_if)
        if name in self.views and self.views[name].pid is not None:
            raise DeniedError("it is running", instance=name, hint="stop it first")
        del self.units_by_name[name]

    def _match(self, name: str, only_if: Precondition) -> None:
        known = self.units_by_name.get(name)
        if not only_if.holds(known.etag if known else None):
            raise PreconditionFailed("the unit was changed by somebody else", instance=name)

    async def validate(self, name: str, text: str) -> Sequence[Diagnostic]:
        """Anything goes but the word bogus."""
        await trio.lowlevel.checkpoint()
        if "bogus" in text:
            return [Diagnostic(f"{name}.toml", 2, "machine.bogus", "unknown key; did you mean 'type'?")]
        return []

    async def validate_host(self, units: Mapping[str, Mapping[str, Any]]) -> Sequence[HostFinding]:
        """What was said of a unit's name in `unfit`."""
        return [finding for finding in self.unfit if finding.unit in units]

    async def reload(self) -> ReloadResult:
        """Always one new and one gone, and what the test says of those that run."""
        running = tuple([await self.diff(name) for name in sorted(self.changes)])
        return ReloadResult(added=("new",), changed=(), removed=("old",), diagnostics=self.diagnostics, running=running)

    async def diff(self, name: str) -> UnitChanges:
        """What the test says that differs."""
        running = self.instance(name).pid is not None
        return UnitChanges(instance=name, running=running, changes=self.changes.get(name, ()) if running else ())

    async def set_autostart(self, name: str, enabled: bool) -> UnitInfo:
        """Change the flag of what is no template."""
        if self.unit(name).template:
            raise RequestError(f"{name} is a template", hint="name an instance")
        self.units_by_name[name] = evolve(self.unit(name), autostart=enabled)
        return self.units_by_name[name]

    def event_sequence(self) -> int:
        """The newest number."""
        return self.ring.sequence

    def events(self, *, since: int | None) -> AsyncIterator[EventRecord]:
        """The real ring."""
        return self.ring.subscribe(since=since)

    def log(self, name: str, lines: int) -> Sequence[str]:
        """The last lines."""
        self.instance(name)
        return self.log_lines[len(self.log_lines) - lines :] if lines < len(self.log_lines) else self.log_lines

    def follow_log(self, name: str) -> AsyncIterator[str]:
        """Lines given to `print_line` from now on."""
        self.instance(name)
        send, receive = trio.open_memory_channel[str](math.inf)
        self.log_followers.append(send)
        return self._follow(send, receive)

    async def _follow(
        self, send: trio.MemorySendChannel[str], receive: trio.MemoryReceiveChannel[str]
    ) -> AsyncIterator[str]:
        try:
            async for line in receive:
                yield line
        finally:
            self.log_followers.remove(send)

    def print_line(self, line: str) -> None:
        """Let QEMU write a line."""
        self.log_lines.append(line)
        for follower in self.log_followers:
            follower.send_nowait(line)

    def command_line(self, name: str) -> tuple[Sequence[str], bool]:
        """A short one, of a VM that was started."""
        view = self.instance(name)
        if view.pid is None and view.cause is None:
            raise DeniedError("it has not been started since the daemon was", instance=name, hint="start it first")
        return [view.emulator, "-nodefaults"], view.pid is not None

    async def cpus(self, name: str) -> CpusView:
        """A vCPU and an iothread that are pinned, and the rest, which is not."""
        if self.instance(name).pid is None:
            raise DeniedError("it is not running", instance=name)
        usages = (
            ThreadUsage(name="qemu-system-x86", cpu=0, times=Times(seconds=0.5, waited=0.25), migrations=7),
            ThreadUsage(name="CPU 0/KVM", cpu=2, times=Times(seconds=12.0, waited=None)),
            ThreadUsage(name="IO iothread-fas", cpu=2, times=Times(seconds=1.0, waited=0.0), migrations=0),
        )
        everywhere, pin = frozenset(range(4)), frozenset({2})
        threads = (
            ThreadView(thread=41, vcpus=(), pin=frozenset(), allowed=everywhere, usage=usages[0]),
            ThreadView(thread=42, vcpus=(0,), pin=pin, allowed=pin, usage=usages[1], stray=Stray(3, 1)),
            ThreadView(thread=43, vcpus=(), iothread="fast", pin=pin, allowed=pin, usage=usages[2]),
        )
        return CpusView(threads=threads, count=3, drifts=3, explanation=("It wants 1 vCPU.", "Node 0 has it."))

    def counters(self, name: str) -> Callable[[], StatsView]:
        """Always the same, but for time that passes: half a CPU for each second."""
        if self.instance(name).pid is None:
            raise DeniedError("it is not running", instance=name)
        self.readings += 1
        now = float(self.readings)
        vcpus = tuple(
            TimesView(vcpus=(vcpu,), times=Times(seconds=6.0 + now / 4, waited=1.0 + vcpu * now / 8)) for vcpu in (0, 1)
        )
        stats = StatsView(
            read_at=1000.0 + now,
            cpu_seconds=12.0 + now / 2,
            times=(*vcpus, TimesView(vcpus=(), iothread="fast", times=Times(seconds=0.25, waited=None))),
            memory_rss=40 << 20,
            memory_huge=8 << 20,
            memory_swapped=1 << 20,
            memory_limit=96 << 20,
            node_memory=self.node_parts,
            threads=5,
            disks={"root": {"rd_bytes": 4096, "wr_bytes": 512, "rd_operations": 2, "rd_total_time_ns": 1_500_000_000}},
            nics={"lan": {"rx_bytes": 100, "tx_bytes": 200}},
            balloon={"total_memory": 400 << 20, "free_memory": 100 << 20, "major_faults": 7},
            drifts=3,
        )
        return lambda: stats

    async def node_memory(self, name: str) -> NodeMemory:
        """On two nodes."""
        self.counters(name)
        return self.node_parts

    async def qmp(self, name: str, command: str, arguments: Mapping[str, Any] | None, timeout: float) -> object:
        """Only query-status is known."""
        self.instance(name)
        self.calls.append((name, command, arguments, timeout))
        if command != "query-status":
            raise QmpCommandError(
                command, "CommandNotFound", f"The command {command} has not been found", instance=name
            )
        return {"status": "running", "running": True}

    async def agent(self, name: str, command: str, arguments: Mapping[str, Any], timeout: float) -> object:
        """Only exec has something to say."""
        if not self.instance(name).agent_connected:
            raise AgentUnavailable("nobody in the guest listens", instance=name)
        self.calls.append((name, command, arguments, timeout))
        if command == "exec":
            return {"exit_code": 0, "signal": None, "stdout": "hello\n", "stderr": "", "truncated": False}
        return {}

    async def screenshot(self, name: str) -> bytes:
        """The beginning of a PNG."""
        if not self.instance(name).video:
            raise DeniedError("it has no graphics card", instance=name)
        return PNG_MAGIC

    @asynccontextmanager
    async def console(self, name: str, *, write: bool) -> AsyncIterator[FakeConsole]:
        """An echo."""
        view = self.instance(name)
        if view.console == "none":
            raise DeniedError("it has no console", instance=name)
        attached = self.consoles.setdefault(name, [])
        if write and any(console.is_writer for console in attached):
            raise BusyError("another client is typing on its console", instance=name)
        console = FakeConsole(is_writer=write)
        attached.append(console)
        try:
            yield console
        finally:
            attached.remove(console)

    @asynccontextmanager
    async def vnc(self, name: str) -> AsyncIterator[trio.SocketStream]:
        """A greeting, then an echo in capitals."""
        if self.instance(name).display != "vnc":
            raise DeniedError("it has no VNC display", instance=name)
        ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
        async with ours, theirs, trio.open_nursery() as nursery:
            await theirs.send_all(b"RFB 003.008\n")
            nursery.start_soon(_echo, theirs)
            yield ours
            nursery.cancel_scope.cancel()

    def health(self) -> HealthView:
        """What the test put there."""
        return HealthView(
            problems=tuple(self.problems),
            uptime=61.5,
            descriptors=Usage(23, 1024),
            memory=Usage(31 << 20, None),
        )

    async def capacity(self) -> CapacityView:
        """Each VM is promised what an empty unit is."""
        return CapacityView(
            host=Host(topology=self.host, bounds=Bounds(memory_reserve=1 << 30, cpu_overcommit=4)),
            promises=tuple(promise(name, Unit(), PLANNED) for name in sorted(self.views)),
        )

    async def topology(self) -> TopologyView:
        """What the test put there."""
        await trio.lowlevel.checkpoint()
        return TopologyView(topology=self.host, pinned=by_cpu(self.cpu_sets))

    def qmp_latency(self) -> Mapping[str, tuple[Sequence[int], float]]:
        """What the test put there."""
        return self.latency.snapshot()


async def _echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data.upper())
