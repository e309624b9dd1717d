"""The monitor connection: answers find their callers, and every end is told."""

from __future__ import annotations

import itertools
import json
import os
import socket
from functools import partial

import pytest
import trio
import trio.testing

from qsup.errors import (
    MonitorClosed,
    MonitorTimeout,
    QmpCommandError,
    RequestError,
)
from qsup.qmp.dial import start_monitor
from qsup.qmp.events import Lost, ResumeEvent, ShutdownEvent, StopEvent
from tests.qmp.player import Player, faithful, playing
from tests.qmp.support import TIMEOUT, by_hand, monitored
from tests.recordings.recording import load
from tests.waiting import wait_until

SESSION = load("session")
EVENT = SESSION.answers("system_reset")[0][0]
SHORT = 0.05


# Answers


async def test_a_session_is_answered_as_it_was_recorded(nursery: trio.Nursery) -> None:
    """Greeting, results, errors and events of a real session all arrive, typed and in order."""
    async with monitored(nursery, faithful(SESSION)) as monitor:
        assert (monitor.greeting.major, monitor.greeting.minor, monitor.greeting.micro) == (7, 2, 22)
        assert monitor.greeting.package.startswith("Debian")
        assert monitor.oob
        status = json.loads(SESSION.answers("query-status")[0][0])["return"]
        assert await monitor.execute("query-status", timeout=TIMEOUT) == status
        with pytest.raises(QmpCommandError, match="has not been found") as caught:
            await monitor.execute("no-such-command", timeout=TIMEOUT)
        assert (caught.value.command, caught.value.error_class) == ("no-such-command", "CommandNotFound")
        assert caught.value.instance == "web"
        await monitor.execute("cont", timeout=TIMEOUT)
        await monitor.execute("stop", timeout=TIMEOUT)
        resumed, stopped = await monitor.events.receive_batch()
        assert isinstance(resumed, ResumeEvent)
        assert isinstance(stopped, StopEvent)
        await monitor.execute("quit", timeout=TIMEOUT)
        (ended,) = await monitor.events.receive_batch()
        assert isinstance(ended, ShutdownEvent)
        assert (ended.guest, ended.reason) == (False, "host-qmp-quit")
        statistics = monitor.statistics()
        assert (statistics.commands, statistics.events, statistics.dropped_replies) == (6, 3, 0)
        assert (statistics.in_flight, statistics.events_lost, statistics.events_queued) == (0, 0, 0)


async def test_answers_find_their_callers_in_any_order(nursery: trio.Nursery) -> None:
    """Answers are told apart by their ids alone."""
    async with by_hand(nursery) as (monitor, peer):
        results: dict[str, object] = {}

        async def ask(command: str) -> None:
            results[command] = await monitor.execute(command, timeout=TIMEOUT)

        async with trio.open_nursery() as callers:
            for command in ("a", "b", "c"):
                callers.start_soon(ask, command)
            asked = [await peer.command() for _ in range(3)]
            for request in reversed(asked):
                await peer.answer(request, request["execute"])
        assert results == {"a": "a", "b": "b", "c": "c"}
        assert len({str(request["id"]) for request in asked}) == 3


async def test_the_first_id_is_unique_and_the_others_short(nursery: trio.Nursery) -> None:
    """An answer to an earlier client's command comes ahead of ours to the first; after that QEMU has less to read."""
    first = []
    for _ in range(2):
        async with by_hand(nursery) as (monitor, peer), trio.open_nursery() as callers:
            for command in ("qmp_capabilities", "query-status"):
                callers.start_soon(partial(monitor.execute, command, timeout=TIMEOUT))
                request = await peer.command()
                await peer.answer(request, {})
                first.append(request["id"])
    assert (first[1], first[3]) == (1, 1)
    assert isinstance(first[0], str)
    assert first[0] != first[2]


@pytest.mark.parametrize("forged", [True, 1.0, "1", [1], {"1": 1}, None])
async def test_an_id_is_not_taken_for_another(nursery: trio.Nursery, forged: object) -> None:
    """What only equals an id, as true equals 1, answers nothing."""
    async with by_hand(nursery) as (monitor, peer), trio.open_nursery() as callers:
        callers.start_soon(partial(monitor.execute, "qmp_capabilities", timeout=TIMEOUT))
        await peer.answer(await peer.command(), {})
        result = []

        @callers.start_soon
        async def ask() -> None:
            result.append(await monitor.execute("query-status", timeout=TIMEOUT))

        request = await peer.command()
        await peer.say(json.dumps({"return": "forged", "id": forged}).encode())
        await peer.answer(request, "right")
    assert (result, monitor.statistics().dropped_replies) == (["right"], 1)


async def test_the_latency_hook_is_told_every_answered_command(nursery: trio.Nursery) -> None:
    """Failed commands count, those without an answer do not."""
    told: list[tuple[str, float]] = []
    async with monitored(nursery, faithful(SESSION), on_latency=lambda *given: told.append(given)) as monitor:
        await monitor.execute("query-status", timeout=TIMEOUT)
        with pytest.raises(QmpCommandError):
            await monitor.execute("no-such-command", timeout=TIMEOUT)
    assert [command for command, _ in told] == ["qmp_capabilities", "query-status", "no-such-command"]
    assert all(0 <= seconds < TIMEOUT for _, seconds in told)


async def test_a_late_answer_is_dropped(nursery: trio.Nursery) -> None:
    """After a timeout the outcome is unknown, and the answer that comes at last is nobody else's."""
    async with by_hand(nursery) as (monitor, peer):
        with pytest.raises(MonitorTimeout, match="slow: no answer") as caught:
            await monitor.execute("slow", timeout=SHORT)
        assert caught.value.details["sent"] is True
        assert monitor.statistics().in_flight == 1
        await peer.answer(await peer.command(), "late")
        await wait_until(lambda: monitor.statistics().dropped_replies == 1, "the late answer was dropped")
        async with trio.open_nursery() as callers:

            async def ask() -> None:
                assert await monitor.execute("next", timeout=TIMEOUT) == "right"

            callers.start_soon(ask)
            await peer.answer(await peer.command(), "right")
        assert monitor.close_reason is None


async def test_an_answer_to_a_client_before_us_is_dropped(nursery: trio.Nursery) -> None:
    """A command that another client left behind is answered to the next one, in the middle of its negotiation."""
    with playing(Player(faithful(load("stale"))), connections=2) as (first, second):
        left = await start_monitor(nursery, first, name="web", timeout=TIMEOUT)
        await left.aclose()
        monitor = await start_monitor(nursery, second, name="web", timeout=TIMEOUT)
        assert monitor.statistics().dropped_replies == 1
        assert await monitor.execute("query-status", timeout=TIMEOUT)
        await monitor.aclose()


async def test_arguments_that_cannot_be_sent_cost_nothing(nursery: trio.Nursery) -> None:
    """The caller is told, and the connection does not notice."""
    async with monitored(nursery, faithful(SESSION)) as monitor:
        with pytest.raises(RequestError):
            await monitor.execute("query-status", {"x": "\ud800"}, timeout=TIMEOUT)
        assert await monitor.execute("query-status", timeout=TIMEOUT)


async def test_a_deadline_that_has_passed_is_no_crash(nursery: trio.Nursery) -> None:
    """Who computes what is left of a deadline may find less than nothing."""
    async with by_hand(nursery) as (monitor, _peer):
        with pytest.raises(MonitorTimeout):
            await monitor.execute("query-status", timeout=-1)


# The end


async def test_qemus_end_is_told_to_everyone(nursery: trio.Nursery) -> None:
    """Callers, consumers of events and whoever waits for the end all learn of it; what came before is not lost."""
    async with by_hand(nursery) as (monitor, peer):
        async with trio.open_nursery() as callers:

            async def ask() -> None:
                with pytest.raises(MonitorClosed, match="QEMU closed its monitor") as caught:
                    await monitor.execute("query-status", timeout=TIMEOUT)
                assert caught.value.details["sent"] is True
                assert caught.value.__cause__ is monitor.close_reason

            callers.start_soon(ask)
            await peer.command()
            await peer.say(SESSION.answers("quit")[0][0])
            await peer.stream.aclose()
        assert (await monitor.wait_closed()).message == "QEMU closed its monitor"
        (last,) = await monitor.events.receive_batch()
        assert isinstance(last, ShutdownEvent)
        for _ in range(2):
            with pytest.raises(MonitorClosed):
                await monitor.events.receive_batch()


async def test_closing_never_waits_for_qemu(nursery: trio.Nursery) -> None:
    """A QEMU that stands still cannot keep anyone waiting."""
    async with by_hand(nursery) as (monitor, _peer):
        async with trio.open_nursery() as callers:

            async def ask() -> None:
                with pytest.raises(MonitorClosed, match="closed by the daemon"):
                    await monitor.execute("query-status", timeout=TIMEOUT)

            callers.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            await monitor.aclose()
            await monitor.aclose()
        assert monitor.close_reason is not None


async def test_cancelling_its_nursery_ends_the_connection() -> None:
    """The driver's nursery is the connection's, and nothing of it stays behind."""
    async with trio.open_nursery() as nursery, by_hand(nursery) as (monitor, _peer):
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            assert "given up" in (await monitor.wait_closed()).message
            with pytest.raises(MonitorClosed, match="given up"):
                await monitor.execute("query-status", timeout=TIMEOUT)


async def test_one_nursery_outlives_many_connections(nursery: trio.Nursery) -> None:
    """A driver drops a connection and opens the next, and no descriptor stays open."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        async with monitored(nursery, faithful(SESSION)) as monitor:
            await monitor.execute("query-status", timeout=TIMEOUT)
            await monitor.aclose()
    assert len(os.listdir("/proc/self/fd")) == before


# Events


async def test_nobody_waits_for_a_consumer_of_events(nursery: trio.Nursery) -> None:
    """With nobody reading events, commands are answered; who comes late is told how many he missed, and when."""
    async with by_hand(nursery) as (monitor, peer):
        async with trio.open_nursery() as callers:

            async def ask() -> None:
                assert await monitor.execute("query-status", timeout=TIMEOUT) == {}

            callers.start_soon(ask)
            command = await peer.command()
            await peer.say(*[EVENT] * 5000)
            await peer.answer(command, {})
        batch = await monitor.events.receive_batch()
        kept = monitor.statistics().events - monitor.statistics().events_lost
        assert batch[-1] == Lost(count=5000 - kept)
        assert len(batch) == kept + 1
        await peer.say(EVENT)
        (after,) = await monitor.events.receive_batch()
        assert not isinstance(after, Lost)


async def test_a_flood_leaves_other_tasks_their_turn(nursery: trio.Nursery) -> None:
    """One connection's flood does not hold up what belongs to other VMs."""
    async with by_hand(nursery) as (monitor, peer):
        turns: list[int] = []

        async def bystander() -> None:
            while True:
                turns.append(monitor.statistics().events)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as tasks:
            tasks.start_soon(bystander)
            await peer.say(*[EVENT] * 5000)
            await wait_until(lambda: monitor.statistics().events == 5000, "all events arrived")
            tasks.cancel_scope.cancel()
        assert max(later - earlier for earlier, later in itertools.pairwise(turns)) <= 2 * 64


async def test_a_negotiation_without_an_answer_leaves_nothing(nursery: trio.Nursery) -> None:
    """A cancelled start closes the socket and ends the reading task."""
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    with theirs, trio.move_on_after(SHORT) as scope:
        await start_monitor(nursery, ours, name="web", timeout=TIMEOUT)
    assert scope.cancelled_caught
    await trio.testing.wait_all_tasks_blocked()
    assert not nursery.child_tasks
    assert len(os.listdir("/proc/self/fd")) == before
