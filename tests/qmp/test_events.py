"""Events: what they are parsed to, and the queue that never grows."""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qemu.qmp.message import UnexpectedTypeError

from qsup.errors import MonitorClosed
from qsup.qmp import events
from tests.recordings.recording import load

RECORDED = [
    (name, entry.data)
    for name in ("session", "panic", "io-error", "devices")
    for entry in load(name).entries
    if entry.side == "server" and b'"event"' in entry.data
]


def recorded(event: str) -> dict[str, object]:
    """The first recorded event of a name."""
    messages = (json.loads(line) for _, line in RECORDED)
    return next(message for message in messages if message["event"] == event)


@pytest.mark.parametrize(("_name", "line"), RECORDED, ids=[f"{name}: {json.loads(x)['event']}" for name, x in RECORDED])
def test_every_recorded_event_has_its_class(_name: str, line: bytes) -> None:
    """All that QEMU was seen to send is parsed to a class of its own, nothing is lost."""
    message = json.loads(line)
    event = events.parse_event(message)
    assert type(event) is not events.QmpEvent
    assert (event.name, event.data) == (message["event"], message.get("data", {}))
    stamp = {"seconds": event.seconds, "microseconds": event.microseconds}
    assert stamp == message["timestamp"]


def test_fields_are_the_events_members() -> None:
    """Members arrive under their names, those that QEMU may leave out have a neutral value."""
    panic = events.parse_event(recorded("GUEST_PANICKED"))
    assert isinstance(panic, events.GuestPanickedEvent)
    assert (panic.action, panic.info) == ("pause", {})
    failed = events.parse_event(recorded("BLOCK_IO_ERROR"))
    assert isinstance(failed, events.BlockIoErrorEvent)
    assert (failed.node_name, failed.device, failed.operation) == ("broken", "", "read")
    assert (failed.action, failed.nospace, failed.reason) == ("stop", False, "Input/output error")
    watchdog = events.parse_event(recorded("WATCHDOG"))
    assert isinstance(watchdog, events.WatchdogEvent)
    assert watchdog.action == "pause"
    deleted = events.parse_event(recorded("DEVICE_DELETED"))
    assert isinstance(deleted, events.DeviceDeletedEvent)
    assert (deleted.device, deleted.path) == ("tablet", "/machine/peripheral/tablet")
    job = events.parse_event(recorded("JOB_STATUS_CHANGE"))
    assert isinstance(job, events.JobStatusChangeEvent)
    assert (job.id, job.status) == ("create", "created")


def test_an_unknown_event_passes_through() -> None:
    """What no class is for still reaches whoever listens."""
    message = recorded("STOP") | {"event": "NIC_RX_FILTER_CHANGED", "data": {"name": "net0"}}
    event = events.parse_event(message)
    assert type(event) is events.QmpEvent
    assert (event.name, event.data) == ("NIC_RX_FILTER_CHANGED", {"name": "net0"})


@pytest.mark.parametrize("key", ["event", "timestamp"])
def test_an_event_lacks_nothing(key: str) -> None:
    """Name and time stamp are mandatory."""
    message = recorded("STOP")
    del message[key]
    with pytest.raises(UnexpectedTypeError):
        events.parse_event(message)


STOP = events.parse_event(recorded("STOP"))


async def test_a_batch_holds_all_that_waits() -> None:
    """The consumer takes everything at once, in order."""
    queue = events.EventQueue()
    sent = [attrs.evolve(STOP, seconds=number) for number in range(5)]
    for event in sent:
        queue.put_nowait(event, 10)
    assert await queue.receive_batch() == tuple(sent)
    assert len(queue) == 0


@given(st.lists(st.integers(0, 12)), st.integers(1, 5), st.integers(1, 40))
async def test_what_is_dropped_is_told_in_its_place(sizes: list[int], most: int, capacity: int) -> None:
    """Never more than the bounds wait; every batch is a gapless run, ended by the count of what did not fit."""
    queue = events.EventQueue(max_events=most, max_bytes=capacity)
    number = 0
    seen = 0
    for size in sizes:
        if size:
            queue.put_nowait(attrs.evolve(STOP, seconds=number), size)
            number += 1
            assert len(queue) <= most
        elif seen < number:
            seen = _check(await queue.receive_batch(), seen)
            assert seen == number
    if seen < number:
        assert _check(await queue.receive_batch(), seen) == number


def _check(batch: tuple[events.Notice, ...], seen: int) -> int:
    *kept, last = batch
    for event in kept:
        assert isinstance(event, events.QmpEvent)
        assert event.seconds == seen
        seen += 1
    if isinstance(last, events.Lost):
        assert last.count > 0
        return seen + last.count
    assert last.seconds == seen
    return seen + 1


async def test_the_end_comes_after_what_was_received_before_it() -> None:
    """Closing loses no event, and is raised again and again."""
    queue = events.EventQueue()
    queue.put_nowait(STOP, 10)
    reason = MonitorClosed("QEMU closed its monitor", instance="web")
    queue.close(reason)
    assert await queue.receive_batch() == (STOP,)
    for _ in range(2):
        with pytest.raises(MonitorClosed, match="web: QEMU closed its monitor") as caught:
            await queue.receive_batch()
        assert caught.value.__cause__ is reason
