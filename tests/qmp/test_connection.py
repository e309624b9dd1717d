"""The monitor connection: answers find their callers, and every end is told."""

from __future__ import annotations

import itertools
import json
import os
import socket

import pytest
import trio
import trio.testing

from qsup.errors import (
    HostError,
    MonitorClosed,
    MonitorTimeout,
    QmpCommandError,
    RequestError,
    UnsupportedError,
)
from qsup.qmp.connection import Monitor
from qsup.qmp.dial import start_monitor
from qsup.qmp.events import Lost, ResumeEvent, ShutdownEvent, StopEvent
from tests.qmp.player import Player, faithful, playing
from tests.qmp.support import TIMEOUT, Peer, by_hand, monitored
from tests.recordings.recording import load
from tests.waiting import wait_until

SESSION = load("session")
EVENT = SESSION.answers("system_reset")[0][0]
SHORT = 0.05


def answer_to(command: dict[str, object]) -> bytes:
    """A successful answer."""
    return json.dumps({"return": {}, "id": command["id"]}).encode() + b"\r\n"


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


# Turns


async def test_a_stuck_main_loop_leaves_room_for_out_of_band_commands(nursery: trio.Nursery) -> None:
    """QEMU's queue of eight is never filled, so that `query-yank` can tell a stuck main loop from a stuck process."""
    async with by_hand(nursery) as (monitor, peer):
        await peer.say(SESSION.greeting)
        await monitor.wait_greeted()
        timeouts: list[MonitorTimeout] = []

        async def ask() -> None:
            with pytest.raises(MonitorTimeout) as caught:
                await monitor.execute("query-status", timeout=SHORT)
            timeouts.append(caught.value)

        async with trio.open_nursery() as callers:
            for _ in range(20):
                callers.start_soon(ask)
        sent = [error for error in timeouts if error.details["sent"]]
        assert 0 < len(sent) < 7
        assert monitor.statistics().in_flight == len(sent)
        assert any("not even sent" in error.message for error in timeouts)

        async def poke() -> None:
            assert await monitor.execute("query-yank", timeout=TIMEOUT, oob=True) == []

        async with trio.open_nursery() as callers:
            callers.start_soon(poke)
            while "exec-oob" not in (command := await peer.command()):
                pass  # one of those nobody waits for any more
            await peer.answer(command, [])


async def test_abandoned_commands_give_way_once_they_are_answered(nursery: trio.Nursery) -> None:
    """The main loop comes back, the late answers come, and new commands are sent."""
    async with by_hand(nursery) as (monitor, peer):
        for _ in range(4):
            with pytest.raises(MonitorTimeout):
                await monitor.execute("stuck", timeout=0.01)
        async with trio.open_nursery() as callers:

            async def ask() -> None:
                assert await monitor.execute("free", timeout=TIMEOUT) == "free"

            callers.start_soon(ask)
            for expected in ["stuck"] * 4 + ["free"]:
                command = await peer.command()
                assert command["execute"] == expected
                await peer.answer(command, expected)
        assert monitor.statistics().dropped_replies == 4


async def test_out_of_band_is_refused_where_qemu_does_not_offer_it(nursery: trio.Nursery) -> None:
    """The greeting says so."""
    async with by_hand(nursery) as (monitor, peer):
        await peer.say(SESSION.greeting.replace(b'["oob"]', b"[]"))
        await monitor.wait_greeted()
        with pytest.raises(UnsupportedError):
            await monitor.execute("query-yank", timeout=TIMEOUT, oob=True)


async def test_descriptors_travel_with_their_command_alone(nursery: trio.Nursery) -> None:
    """QEMU keeps the descriptors that came last: a second command with some waits until the first is answered."""
    ours, theirs = socket.socketpair()
    first, second = os.open("/dev/null", os.O_RDONLY), os.open("/proc/version", os.O_RDONLY)
    with theirs:
        monitor = Monitor(ours, name="web")
        ours.setblocking(False)
        nursery.start_soon(monitor.run)
        async with trio.open_nursery() as callers:

            async def give(fd: int) -> None:
                await monitor.execute("getfd", {"fdname": "x"}, timeout=TIMEOUT, fds=(fd,))

            async def take() -> dict[str, object]:
                await trio.lowlevel.wait_readable(theirs)
                data, fds, _, _ = socket.recv_fds(theirs, 65536, 4)
                given.extend(os.readlink(f"/proc/self/fd/{fd}") for fd in fds)
                for fd in fds:
                    os.close(fd)
                (line,) = data.splitlines()
                return dict(json.loads(line))

            given: list[str] = []
            callers.start_soon(give, first)
            callers.start_soon(give, second)
            command = await take()
            await trio.testing.wait_all_tasks_blocked()
            assert len(given) == 1
            theirs.sendall(answer_to(command))
            theirs.sendall(answer_to(await take()))
        assert sorted(given) == ["/dev/null", "/proc/version"]
        monitor.close_nowait()
    os.close(first)
    os.close(second)


async def test_a_closed_descriptor_is_the_callers_error_alone(nursery: trio.Nursery) -> None:
    """What cannot be passed is told in the kernel's words, and the connection goes on."""
    async with monitored(nursery, faithful(SESSION)) as monitor:
        spare = os.dup(0)
        os.close(spare)
        with pytest.raises(HostError, match="Bad file descriptor"):
            await monitor.execute("getfd", {"fdname": "x"}, timeout=TIMEOUT, fds=(spare,))
        assert monitor.statistics().in_flight == 0
        assert await monitor.execute("query-status", timeout=TIMEOUT)


# Sending that cannot go on


def full_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair in whose first end not a byte more can be written."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            ours.send(b" " * 4096)
    with pytest.raises(BlockingIOError):
        while True:
            ours.send(b" ")
    return ours, theirs


async def test_a_command_of_which_nothing_was_sent_is_forgotten(nursery: trio.Nursery) -> None:
    """A timeout, or a cancelled caller, before the first byte leaves the connection as it was."""
    ours, theirs = full_pair()
    monitor = Monitor(ours, name="web")
    nursery.start_soon(monitor.run)
    with pytest.raises(MonitorTimeout, match="not even sent") as caught:
        await monitor.execute("query-status", timeout=SHORT)
    assert caught.value.details["sent"] is False
    with trio.move_on_after(SHORT) as scope:
        await monitor.execute("query-status", timeout=TIMEOUT)
    assert scope.cancelled_caught
    assert monitor.close_reason is None
    assert (monitor.statistics().in_flight, monitor.statistics().commands) == (0, 0)
    peer = Peer(theirs)
    async with peer.stream:
        async with trio.open_nursery() as callers:

            async def ask() -> None:
                assert await monitor.execute("query-status", timeout=TIMEOUT) == "alive"

            callers.start_soon(ask)
            await peer.answer(await peer.command(), "alive")
        monitor.close_nowait()


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_a_command_sent_in_part_ends_the_connection(nursery: trio.Nursery, how: str) -> None:
    """Half a command cannot be followed by another; it was not carried out, and what waits is told."""
    async with by_hand(nursery) as (monitor, _peer):
        big: dict[str, object] = {"x": "x" * (3 << 19)}
        errors: list[Exception] = []

        async def ask(arguments: dict[str, object], timeout: float) -> None:
            with pytest.raises((MonitorClosed, MonitorTimeout)) as caught:
                await monitor.execute("big", arguments, timeout=timeout)
            errors.append(caught.value)

        with trio.move_on_after(SHORT if how == "cancel" else TIMEOUT):
            async with trio.open_nursery() as callers:
                callers.start_soon(ask, big, SHORT if how == "timeout" else TIMEOUT)
                await trio.testing.wait_all_tasks_blocked()
                callers.start_soon(ask, {}, TIMEOUT)
        reason = await monitor.wait_closed()
        assert "sent in part" in reason.message
        if how == "timeout":
            assert {type(error) for error in errors} == {MonitorTimeout, MonitorClosed}
        with pytest.raises(MonitorClosed) as caught:
            await monitor.execute("query-status", timeout=TIMEOUT)
        assert caught.value.details["sent"] is False


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
