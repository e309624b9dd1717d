"""What a hostile QEMU can say, and that it costs its own connection at most."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from qsup.errors import MonitorClosed, MonitorConnectError, MonitorProtocolError, MonitorTimeout
from qsup.qmp.connection import MAX_LARGE_REPLY, MAX_REPLY, Monitor
from qsup.qmp.dial import start_monitor
from qsup.qmp.events import Lost
from tests.qmp.hostile import ANSWERED, ENDED, NEVER_READY, NOT_QMP, TOLERATED
from tests.qmp.measured import measure
from tests.qmp.player import Fault, Player, as_recorded, faithful, playing
from tests.qmp.support import TIMEOUT, by_hand, monitored
from tests.recordings.recording import load

SHORT = 0.2
MEBIBYTE = 1 << 20


def named(fault: Fault) -> str:
    """A fault's name, with the recording it changes."""
    return f"{fault.recording.name}: {fault.name}"


async def unharmed(nursery: trio.Nursery) -> None:
    """Another VM's monitor in the same nursery does what it should."""
    async with monitored(nursery, faithful(load("session"))) as other:
        assert await other.execute("query-status", timeout=TIMEOUT)


async def approached(monitor: Monitor, fault: Fault, *, timeout: float = TIMEOUT) -> object:
    """Execute the command at which the peer departs from its recording."""
    return await monitor.execute(fault.at, timeout=timeout, max_reply=MAX_LARGE_REPLY)


@pytest.mark.parametrize("fault", NOT_QMP, ids=named)
async def test_what_is_not_qmp_ends_that_connection(nursery: trio.Nursery, fault: Fault) -> None:
    """The command fails at once with the cause named, the connection is given up, the others go on."""
    async with monitored(nursery, fault) as monitor:
        with pytest.raises(MonitorProtocolError, match="QEMU sent") as caught:
            await approached(monitor, fault)
            # an event may come after its command's answer
            while True:
                await monitor.events.receive_batch()
        assert caught.value.instance == "web"
        assert len(caught.value.message) < 300
        reason = await monitor.wait_closed()
        assert isinstance(reason, MonitorProtocolError)
        # or the frames of its traceback would hold what was read for as long as the reason is remembered
        assert reason.__cause__ is not None
        assert reason.__cause__.__traceback__ is None
        with pytest.raises(MonitorProtocolError):
            await monitor.execute("query-status", timeout=TIMEOUT)
        await unharmed(nursery)


@pytest.mark.parametrize("fault", TOLERATED, ids=named)
async def test_what_answers_nothing_costs_the_command_alone(nursery: trio.Nursery, fault: Fault) -> None:
    """The command runs into its deadline, and the connection stays."""
    async with monitored(nursery, fault) as monitor:
        with pytest.raises(MonitorTimeout) as caught:
            await approached(monitor, fault, timeout=SHORT)
        assert caught.value.details["sent"] is True
        assert monitor.close_reason is None
        await unharmed(nursery)


@pytest.mark.parametrize("fault", ENDED, ids=named)
async def test_an_end_is_told_as_one(nursery: trio.Nursery, fault: Fault) -> None:
    """QEMU's end is no fault of protocol, even in the middle of a message."""
    async with monitored(nursery, fault) as monitor:
        with pytest.raises(MonitorClosed):
            await approached(monitor, fault)
        assert isinstance(monitor.close_reason, MonitorClosed)


@pytest.mark.parametrize("fault", ANSWERED, ids=named)
async def test_what_is_merely_odd_is_answered(nursery: trio.Nursery, fault: Fault) -> None:
    """A second answer is dropped, a long one is read."""
    async with monitored(nursery, fault) as monitor:
        assert await approached(monitor, fault)
        assert await monitor.execute("qmp_capabilities", timeout=TIMEOUT) == {}
        assert monitor.statistics().dropped_replies == (fault.name == "answers twice")


@pytest.mark.parametrize("fault", NEVER_READY, ids=named)
async def test_a_monitor_that_never_becomes_ready_says_why(nursery: trio.Nursery, fault: Fault) -> None:
    """The driver gets one error, in time, and nothing is left in its nursery."""
    with playing(Player(fault)) as (stream,):
        with pytest.raises((MonitorConnectError, MonitorProtocolError)) as caught:
            await start_monitor(nursery, stream, name="web", timeout=SHORT if "mute" in fault.name else TIMEOUT)
        assert caught.value.instance == "web"
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks
    await unharmed(nursery)


async def test_an_endless_flood_ends_with_the_count_of_what_was_lost(nursery: trio.Nursery) -> None:
    """Whoever listens at last learns that he must query again."""
    (fault,) = [fault for fault in TOLERATED if fault.name == "endless events"]
    async with monitored(nursery, fault) as monitor:
        with pytest.raises(MonitorTimeout):
            await approached(monitor, fault, timeout=SHORT)
        *_, last = await monitor.events.receive_batch()
        assert isinstance(last, Lost)


async def test_nothing_large_can_come_unasked(nursery: trio.Nursery) -> None:
    """While no command is under way a message of more than 1 MiB is none of QEMU's."""
    async with by_hand(nursery) as (monitor, peer):
        large = load("session").greeting.replace(b"Debian", b"D" * (2 * MEBIBYTE))
        with pytest.raises(trio.BrokenResourceError):
            await peer.say(large)
        assert "more than" in (await monitor.wait_closed()).message


async def test_nothing_large_can_come_to_a_command_that_expects_none(nursery: trio.Nursery) -> None:
    """An answer beyond its command's bound is none, also while another command may have a large one."""
    async with by_hand(nursery) as (monitor, peer):
        await peer.say(load("session").greeting)
        await monitor.wait_greeted()
        errors: list[MonitorProtocolError] = []

        async def ask(command: str, max_reply: int) -> None:
            with pytest.raises(MonitorProtocolError) as caught:
                await monitor.execute(command, timeout=TIMEOUT, max_reply=max_reply)
            errors.append(caught.value)

        async with trio.open_nursery() as callers:
            callers.start_soon(ask, "query-qmp-schema", MAX_LARGE_REPLY)
            await peer.command()
            callers.start_soon(ask, "query-status", MAX_REPLY)
            request = await peer.command()
            with suppress(trio.BrokenResourceError):
                await peer.answer(request, "x" * (2 * MEBIBYTE))
        assert all("QEMU sent a message of" in error.message for error in errors)
        assert isinstance(monitor.close_reason, MonitorProtocolError)


async def test_events_without_end_are_read_at_a_pace(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """However many events a QEMU sends, some thousands a second are read; an answer after a rest comes at once."""
    seconds = 5
    async with by_hand(nursery) as (monitor, peer):
        await peer.say(load("session").greeting)
        await monitor.wait_greeted()
        event = load("session").answers("system_reset")[0][0]
        with trio.move_on_after(seconds):
            while True:
                await peer.say(*[event] * 100)
                await trio.sleep(0.005)  # virtual time
        assert 1000 * seconds < monitor.statistics().events < 15_000 + 6000 * seconds
        await trio.sleep(10)  # virtual time
        async with trio.open_nursery() as callers:
            began = trio.current_time()
            callers.start_soon(partial(monitor.execute, "query-status", timeout=TIMEOUT))
            await peer.answer(await peer.command(), {})
        assert trio.current_time() == began


def test_answers_cost_no_more_than_the_commands_bound() -> None:
    """A QEMU that answers a heartbeat without ever ending makes the daemon hold a few times 1 MiB."""
    (fault,) = [fault for fault in NOT_QMP if fault.name == "no newline"]
    result = measured(fault, kind="monitor")
    assert result["outcomes"] == ["qmp-protocol"]
    assert result["grown"] < 6 * MEBIBYTE


def measured(fault: Fault, *, timeout: float = TIMEOUT, kind: str = "raw monitor") -> dict[str, Any]:
    """Let a process of its own meet a fault."""
    with playing(Player(fault)) as (stream,):
        return measure(kind, str(stream.fileno()), fault.at, fds=[stream.fileno()], timeout=timeout)


# How much each may make the daemon hold for a moment, in MiB: what is read, decoded and parsed of one message.
COSTS = {
    "no newline": 160,
    "four million values": 60,
    "12 MB": 80,
    "12 MB of small values": 60,
    "200,000-deep nesting": 16,
    "endless events": 24,
}


@pytest.mark.parametrize(
    "fault", [fault for fault in (*NOT_QMP, *TOLERATED, *ANSWERED) if fault.name in COSTS], ids=named
)
def test_memory_is_bounded_whatever_comes(fault: Fault) -> None:
    """What one connection can make the daemon hold is a few times the largest answer that is allowed."""
    result = measured(fault, timeout=1.0 if fault in TOLERATED else TIMEOUT)
    (outcome,) = result["outcomes"]
    assert outcome == ("qmp-timeout" if fault in TOLERATED else "answered" if fault in ANSWERED else "qmp-protocol")
    assert result["grown"] < COSTS[fault.name] * MEBIBYTE


def test_a_flood_of_events_leaves_memory_flat() -> None:
    """Events that nobody consumes are counted, not kept."""
    count = 20_000

    def flood(lines: list[bytes]) -> Iterator[bytes]:
        event, answer = as_recorded(lines)
        yield from itertools.repeat(event * 100, count // 100)
        yield answer

    fault = Fault(name="flood", recording=load("session"), at="system_reset", change=flood)
    result = measured(fault)
    assert result["outcomes"] == ["answered"]
    assert result["events"] == count
    assert result["lost"] > count * 0.9
    assert result["grown"] < 4 * MEBIBYTE
