"""Events: what QEMU tells unasked, typed, and the bounded queue that carries them to their one consumer.

Decides: which events have a class of their own, how many wait, and what is said of those that did not fit.
Must not: wait for the consumer, or know what an event means for a VM.

Event classes are named after QAPI's events (``docs/interop/qemu-qmp-ref``); their fields are the events' members.
QEMU itself passes on no more than one per second, the last, of RTC_CHANGE, WATCHDOG, BALLOON_CHANGE,
VSERPORT_CHANGE, MEMORY_DEVICE_SIZE_CHANGE, BLOCK_IO_ERROR (unless its action is ``stop``) and the QUORUM events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import attrs
import trio

from qsup.errors import MonitorError
from qsup.qmp.wire import member

MAX_EVENTS = 256
# Counted as they came on the wire; the values parsed from one byte can take some twenty.
MAX_EVENT_BYTES = 1024 * 1024


@attrs.frozen(kw_only=True)
class QmpEvent:
    """Any event; the classes below are those with fields of their own.

    Args:
        name: QAPI's name, such as ``SHUTDOWN``.
        data: its members as QEMU sent them.
        seconds: host wall clock when it happened, since the epoch; -1 where QEMU could not read it.
        microseconds: the fraction of that.
    """

    name: str
    data: Mapping[str, object]
    seconds: int
    microseconds: int


@attrs.frozen(kw_only=True)
class ShutdownEvent(QmpEvent):
    """SHUTDOWN: the VM has shut down, or QEMU was asked to end; ``reason`` is QAPI's ShutdownCause."""

    guest: bool
    reason: str


@attrs.frozen(kw_only=True)
class StopEvent(QmpEvent):
    """STOP: the vCPUs stand still."""


@attrs.frozen(kw_only=True)
class ResumeEvent(QmpEvent):
    """RESUME: the vCPUs run again."""


@attrs.frozen(kw_only=True)
class ResetEvent(QmpEvent):
    """RESET: the machine was reset; ``reason`` is QAPI's ShutdownCause."""

    guest: bool
    reason: str


@attrs.frozen(kw_only=True)
class PowerdownEvent(QmpEvent):
    """POWERDOWN: the guest was shown the power button."""


@attrs.frozen(kw_only=True)
class SuspendEvent(QmpEvent):
    """SUSPEND: the guest went to sleep (ACPI S3)."""


@attrs.frozen(kw_only=True)
class WakeupEvent(QmpEvent):
    """WAKEUP: the guest woke up from S3."""


@attrs.frozen(kw_only=True)
class GuestPanickedEvent(QmpEvent):
    """GUEST_PANICKED: the guest's kernel says that it crashed; ``action`` is pause, poweroff or run."""

    action: str
    info: Mapping[str, object]


@attrs.frozen(kw_only=True)
class WatchdogEvent(QmpEvent):
    """WATCHDOG: the guest let its watchdog expire; ``action`` is QAPI's WatchdogAction."""

    action: str


@attrs.frozen(kw_only=True)
class BlockIoErrorEvent(QmpEvent):
    """BLOCK_IO_ERROR: a read or write failed on the host; with ``action`` stop the VM now stands in ``io-error``."""

    device: str
    node_name: str
    operation: str
    action: str
    nospace: bool
    reason: str


@attrs.frozen(kw_only=True)
class VserportChangeEvent(QmpEvent):
    """VSERPORT_CHANGE: the guest opened or closed the virtio-serial port ``id``."""

    id: str
    open: bool


@attrs.frozen(kw_only=True)
class DeviceDeletedEvent(QmpEvent):
    """DEVICE_DELETED: an unplug is complete; ``device`` is empty for a device without an id."""

    device: str
    path: str


@attrs.frozen(kw_only=True)
class DeviceUnplugGuestErrorEvent(QmpEvent):
    """DEVICE_UNPLUG_GUEST_ERROR: the guest does not let a device go; ``device`` is empty for one without an id."""

    device: str
    path: str


@attrs.frozen(kw_only=True)
class DeviceTrayMovedEvent(QmpEvent):
    """DEVICE_TRAY_MOVED: the tray of drive ``id`` was opened or closed, by the guest or by a command."""

    id: str
    tray_open: bool


@attrs.frozen(kw_only=True)
class AcpiDeviceOstEvent(QmpEvent):
    """ACPI_DEVICE_OST: the guest says what became of a vCPU or memory module; ``info`` is QAPI's ACPIOSTInfo."""

    info: Mapping[str, object]


@attrs.frozen(kw_only=True)
class MemUnplugErrorEvent(QmpEvent):
    """MEM_UNPLUG_ERROR: the guest does not let the memory module ``device`` go."""

    device: str
    msg: str


@attrs.frozen(kw_only=True)
class MemoryDeviceSizeChangeEvent(QmpEvent):
    """MEMORY_DEVICE_SIZE_CHANGE: a virtio-mem device holds ``size`` bytes now."""

    size: int


@attrs.frozen(kw_only=True)
class JobStatusChangeEvent(QmpEvent):
    """JOB_STATUS_CHANGE: the job ``id`` is now in ``status``, one of QAPI's JobStatus."""

    id: str
    status: str


@attrs.frozen(kw_only=True)
class BalloonChangeEvent(QmpEvent):
    """BALLOON_CHANGE: the guest holds ``actual`` bytes of memory."""

    actual: int


@attrs.frozen(kw_only=True)
class Lost:
    """Stands where ``count`` events did not fit: everything that events tell must be queried again."""

    count: int


Notice: TypeAlias = QmpEvent | Lost

_EMPTY: Mapping[str, object] = {}

# member's name, its type, what stands for it when absent (None: it must be there)
_Members = tuple[tuple[str, type, object], ...]
_TYPED: Mapping[str, tuple[type[QmpEvent], _Members]] = {
    "SHUTDOWN": (ShutdownEvent, (("guest", bool, None), ("reason", str, "none"))),
    "STOP": (StopEvent, ()),
    "RESUME": (ResumeEvent, ()),
    "RESET": (ResetEvent, (("guest", bool, None), ("reason", str, "none"))),
    "POWERDOWN": (PowerdownEvent, ()),
    "SUSPEND": (SuspendEvent, ()),
    "WAKEUP": (WakeupEvent, ()),
    "GUEST_PANICKED": (GuestPanickedEvent, (("action", str, None), ("info", dict, _EMPTY))),
    "WATCHDOG": (WatchdogEvent, (("action", str, None),)),
    "BLOCK_IO_ERROR": (
        BlockIoErrorEvent,
        (
            ("device", str, ""),
            ("node-name", str, ""),
            ("operation", str, None),
            ("action", str, None),
            ("nospace", bool, False),
            ("reason", str, ""),
        ),
    ),
    "VSERPORT_CHANGE": (VserportChangeEvent, (("id", str, None), ("open", bool, None))),
    "DEVICE_DELETED": (DeviceDeletedEvent, (("device", str, ""), ("path", str, None))),
    "DEVICE_UNPLUG_GUEST_ERROR": (DeviceUnplugGuestErrorEvent, (("device", str, ""), ("path", str, None))),
    "DEVICE_TRAY_MOVED": (DeviceTrayMovedEvent, (("id", str, None), ("tray-open", bool, None))),
    "ACPI_DEVICE_OST": (AcpiDeviceOstEvent, (("info", dict, None),)),
    "MEM_UNPLUG_ERROR": (MemUnplugErrorEvent, (("device", str, None), ("msg", str, ""))),
    "MEMORY_DEVICE_SIZE_CHANGE": (MemoryDeviceSizeChangeEvent, (("size", int, None),)),
    "JOB_STATUS_CHANGE": (JobStatusChangeEvent, (("id", str, None), ("status", str, None))),
    "BALLOON_CHANGE": (BalloonChangeEvent, (("actual", int, None),)),
}


def parse_event(message: Mapping[str, object]) -> QmpEvent:
    """Type a QMP message that has an ``event`` member.

    Raises:
        UnexpectedTypeError: a member is missing or of another type than QAPI gives it.
    """
    name = member(message, "event", str)
    data = member(message, "data", dict, _EMPTY)
    stamp = member(message, "timestamp", dict)
    kind, members = _TYPED.get(name, (QmpEvent, ()))
    fields = {key.replace("-", "_"): member(data, key, type_, default) for key, type_, default in members}
    return kind(
        name=name,
        data=data,
        seconds=member(stamp, "seconds", int),
        microseconds=member(stamp, "microseconds", int),
        **fields,
    )


class EventQueue:
    """Events on their way to one consumer. What does not fit is counted, and told in its place in the sequence.

    The newest are dropped, not the oldest: what is handed over is then a sequence without holes up to the `Lost`
    that ends it, and a consumer must query everything again either way.
    """

    def __init__(self, *, max_events: int = MAX_EVENTS, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._waiting: list[QmpEvent] = []
        self._bytes = 0
        self._lost = 0
        self._lost_ever = 0
        self._changed = trio.Event()
        self._ended: MonitorError | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def lost(self) -> int:
        """How many events were dropped since the connection began."""
        return self._lost_ever

    def put_nowait(self, event: QmpEvent, size: int) -> None:
        """Add an event that took ``size`` bytes on the wire, or count it as lost."""
        # after a loss nothing more fits until the consumer was told of it, or it would see the loss too late
        if self._lost or len(self._waiting) >= self._max_events or self._bytes + size > self._max_bytes:
            self._lost += 1
            self._lost_ever += 1
        else:
            self._waiting.append(event)
            self._bytes += size
        self._changed.set()

    def close(self, reason: MonitorError) -> None:
        """End the queue: what waits can still be received, then ``reason`` is raised."""
        self._ended = reason
        self._changed.set()

    async def receive_batch(self) -> tuple[Notice, ...]:
        """Wait until there is something and take all of it, in order; one consumer at a time.

        Raises:
            MonitorError: the connection ended and everything before was received; its cause says why.
        """
        await self._changed.wait()
        batch: tuple[Notice, ...] = tuple(self._waiting)
        if self._lost:
            batch += (Lost(count=self._lost),)
        self._waiting, self._bytes, self._lost = [], 0, 0
        if self._ended is None:
            self._changed = trio.Event()
        elif not batch:
            raise type(self._ended)(self._ended.message, instance=self._ended.instance) from self._ended
        return batch
