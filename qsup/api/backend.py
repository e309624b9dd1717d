"""What the API needs from the supervisor, as a protocol. Pure.

Decides: the only calls that routes may make. The supervisor satisfies it structurally, tests may bring a fake.
Must not: know HTTP or JSON.

Calls that are not ``async`` answer from the supervisor's own state and never wait for a VM. Every failure is a
`qsup.errors.QsupError`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Any, Protocol

from qsup.errors import Diagnostic
from qsup.host.usage import NodeMemory
from qsup.instance.hostcheck import HostFinding
from qsup.instance.operation import Begun, KeyUse, Operation
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
)
from qsup.order.view import Relations
from qsup.unit.info import Precondition, ReloadResult, UnitChanges, UnitInfo, UnitPreview, UnitSources

__all__ = [
    "Backend",
    "ByteStream",
    "ConsoleAttachment",
    "EventRecord",
    "ReloadResult",
    "StatsView",
    "UnitChanges",
    "UnitInfo",
]


class ConsoleAttachment(Protocol):
    """One client on a text console."""

    is_writer: bool

    async def receive(self) -> bytes:
        """The next output, first the recent history; ``b""`` when the console is gone for good."""

    async def send(self, data: bytes) -> None:
        """Type into the guest; `DeniedError` for a client that only watches."""


class ByteStream(Protocol):
    """A raw connection to QEMU, such as VNC's."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Bytes, ``b""`` at the end."""

    async def send_all(self, data: bytes) -> None:
        """Send all of it."""


class Backend(Protocol):
    """The daemon, as the API sees it. Long because it is every call there is."""

    def instances(self) -> Sequence[InstanceView]:
        """Every VM, sorted by name."""

    def instance(self, name: str) -> InstanceView:
        """One VM; `NoSuchInstance`."""

    async def relations(self) -> Relations:
        """What the units of all VMs, and of those that they name, say of each other."""

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
        """Begin a power verb or a change and return its operation, which may be finished already (needless requests).

        Raises `NoSuchInstance`, `DeniedError`, `BusyError`, `UnitError`.
        """

    def devices(self, name: str) -> HardwareView:
        """What QEMU has of devices, how much room is left for more, and what its unit has besides; `DeniedError` while
        the VM does not run.
        """

    async def request_all(self, names: Sequence[str], use: KeyUse) -> Begun:
        """Begin a power verb of several VMs, each named once, as one transaction.

        Raises `DependencyError` where they exclude each other; what concerns one VM alone is refused by its name.
        """

    async def stop_all(self, *, uid: int, timeout: float | None = None, idempotency_key: str = "") -> Operation:
        """Begin to stop every VM and return the operation of all of it; ``timeout``: seconds for all."""

    def operations(self) -> Sequence[Operation]:
        """All that are kept, newest first."""

    def operation(self, operation_id: str) -> Operation:
        """One; `NoSuchOperation`."""

    async def wait_operation(self, operation_id: str, timeout: float) -> Operation:
        """The operation once it is final, or as it is after ``timeout`` seconds."""

    async def cancel_operation(self, operation_id: str) -> Operation:
        """End a cancellable one; `DeniedError` otherwise."""

    def units(self) -> Sequence[UnitInfo]:
        """Every unit and template, sorted by name (without ``text`` and ``values`` it may be cheap)."""

    def unit_diagnostics(self) -> Sequence[Diagnostic]:
        """All errors of all unit files at the last load."""

    def unit(self, name: str) -> UnitInfo:
        """One; `NoSuchUnit`, `UnitError` when its files are wrong."""

    def unit_sources(self, name: str) -> UnitSources:
        """Its files as they are, with or without errors; `NoSuchUnit`."""

    async def put_unit(self, name: str, text: str, *, only_if: Precondition, dropin: str = "") -> UnitInfo:
        """Write the unit's file in the administrator's directory, or the drop-in of a name; an empty drop-in goes.

        `UnitError`, `PreconditionFailed`; `NoSuchUnit` for a drop-in.
        """

    async def preview_unit(self, name: str, text: str, *, only_if: Precondition, dropin: str = "") -> UnitPreview:
        """What would become of each key if that were put, and applied; errors as of `put_unit`. Nothing is done."""

    async def delete_unit(self, name: str, *, only_if: Precondition) -> None:
        """Remove that file; `DeniedError` while a VM of it is active."""

    async def validate(self, name: str, text: str) -> Sequence[Diagnostic]:
        """Check a text as the file of unit ``name``."""

    async def validate_host(self, units: Mapping[str, Mapping[str, Any]]) -> Sequence[HostFinding]:
        """Check units, their sections and keys by their names, against this host; `UnitError` where one has errors."""

    async def reload(self) -> ReloadResult:
        """Read all unit files again."""

    async def diff(self, name: str) -> UnitChanges:
        """A VM against its unit as the files say it now; `NoSuchInstance`, `DeniedError`, `NoSuchUnit`, `UnitError`."""

    async def set_autostart(self, name: str, enabled: bool) -> UnitInfo:
        """``enable`` and ``disable``: have ``install.autostart`` say so; `RequestError` for a template."""

    def event_sequence(self) -> int:
        """The newest event's ``seq``."""

    def events(self, *, since: int | None) -> AsyncIterator[EventRecord]:
        """Events after ``since`` (``None``: from now on), without end; `GoneError` at once when ``since`` is too old.

        A reader that is too slow gets one record of type ``overflow`` and then the end. A wait for the next event may
        be cancelled; nothing is lost by it.
        """

    def log(self, name: str, lines: int) -> Sequence[str]:
        """The last lines of QEMU's own output."""

    def follow_log(self, name: str) -> AsyncIterator[str]:
        """Lines as they come from the call on, without end: over all lives of the VM."""

    def command_line(self, name: str) -> tuple[Sequence[str], bool]:
        """QEMU's argv, and whether it is the running one or that of the last start; `DeniedError` before any."""

    async def cpus(self, name: str) -> CpusView:
        """The threads of a VM's QEMU, and where they run; `DeniedError` when it does not run."""

    def counters(self, name: str) -> Callable[[], StatsView]:
        """What reads its counters, files of the kernel's, in a thread; `DeniedError` when it does not run."""

    async def node_memory(self, name: str) -> NodeMemory:
        """Where on the host its memory is; `DeniedError` when it does not run, `HostError` when the kernel hangs."""

    async def qmp(self, name: str, command: str, arguments: Mapping[str, Any] | None, timeout: float) -> object:
        """One raw QMP command over the VM's monitor; `QmpCommandError`, `MonitorTimeout`, `DeniedError`."""

    async def agent(self, name: str, command: str, arguments: Mapping[str, Any], timeout: float) -> object:
        """``ping``, ``info``, ``addresses`` or ``exec`` in the guest; `AgentError`."""

    async def screenshot(self, name: str) -> bytes:
        """The screen as PNG; `DeniedError` without a graphics card."""

    def console(self, name: str, *, write: bool) -> AbstractAsyncContextManager[ConsoleAttachment]:
        """Attach to the text console; `DeniedError` without one, `BusyError` when another client types."""

    def vnc(self, name: str) -> AbstractAsyncContextManager[ByteStream]:
        """A VNC connection to QEMU; `DeniedError` without a VNC display."""

    def health(self) -> HealthView:
        """How the daemon is."""

    async def topology(self) -> TopologyView:
        """The host as it is now, which waits for the kernel alone; `HostError` when that hangs."""

    async def capacity(self) -> CapacityView:
        """What may be promised of the host, and what is; `HostError` when the kernel hangs, and always has."""

    def qmp_latency(self) -> Mapping[str, tuple[Sequence[int], float]]:
        """Per command: counts by bucket of `qsup.instance.latency.LATENCY_BUCKETS`, and the sum in seconds."""
