"""Commands that wait for each other, and commands that cannot be sent to their end."""

from __future__ import annotations

import json
import os
import socket

import pytest
import trio
import trio.testing

from qsup.errors import HostError, MonitorClosed, MonitorTimeout, UnsupportedError
from qsup.qmp.connection import Monitor, Outcome, Request
from tests.qmp.player import faithful
from tests.qmp.support import TIMEOUT, Peer, by_hand, monitored
from tests.recordings.recording import load

SESSION = load("session")
SHORT = 0.05


def answer_to(command: dict[str, object]) -> bytes:
    """A successful answer."""
    return json.dumps({"return": {}, "id": command["id"]}).encode() + b"\r\n"


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


# Commands that are sent together


async def test_commands_that_follow_from_each_other_are_sent_at_once(nursery: trio.Nursery) -> None:
    """None waits for the answer to the one before; an answer that refuses one is its alone."""
    async with by_hand(nursery) as (monitor, peer):
        outcomes: list[Outcome] = []

        async def ask() -> None:
            outcomes.extend(await monitor.execute_all([Request("a"), Request("b"), Request("c")], timeout=TIMEOUT))

        async with trio.open_nursery() as callers:
            callers.start_soon(ask)
            with trio.fail_after(TIMEOUT):
                commands = [await peer.command() for _ in range(3)]
            assert [command["execute"] for command in commands] == ["a", "b", "c"]
            await peer.answer(commands[0], 1)
            refusal = {"error": {"class": "GenericError", "desc": "no"}, "id": commands[1]["id"]}
            await peer.say(json.dumps(refusal).encode())
            await peer.answer(commands[2], 3)
        assert [outcome.result for outcome in outcomes] == [1, None, 3]
        assert [str(outcome.error) for outcome in outcomes if outcome.error] == ["web: b: no"]


async def test_each_answer_gives_time_for_the_next(nursery: trio.Nursery, mock_clock: trio.testing.MockClock) -> None:
    """Many commands may take long; one without an answer is what takes too long, and those behind it."""
    async with by_hand(nursery) as (monitor, peer):
        outcomes: list[Outcome] = []
        mute = 3

        async def ask() -> None:
            requests = [Request(f"c{number}") for number in range(9)]
            outcomes.extend(await monitor.execute_all(requests, timeout=10))

        async with trio.open_nursery() as callers:
            callers.start_soon(ask)
            for number in range(mute):
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(8)
                await peer.answer(await peer.command(), number)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(11)
        assert [outcome.result for outcome in outcomes[:mute]] == [0, 1, 2]
        late = [outcome.error for outcome in outcomes[mute:]]
        assert {type(error) for error in late} == {MonitorTimeout}
        sent = [bool(error and error.details["sent"]) for error in late]
        assert sent == sorted(sent, reverse=True)
        assert sent[0]
        assert not sent[-1]
        assert monitor.statistics().in_flight == sum(sent)


async def test_of_a_connection_that_ends_each_command_says_what_became_of_it(nursery: trio.Nursery) -> None:
    """What was answered before counts; of what was sent it is not known, and the rest was not sent."""
    async with by_hand(nursery) as (monitor, peer):
        outcomes: list[Outcome] = []

        async def ask() -> None:
            requests = [Request(f"c{number}") for number in range(9)]
            outcomes.extend(await monitor.execute_all(requests, timeout=TIMEOUT))

        async with trio.open_nursery() as callers:
            callers.start_soon(ask)
            await peer.answer(await peer.command(), "done")
            await peer.command()
            await trio.testing.wait_all_tasks_blocked()
            await peer.stream.aclose()
        assert outcomes[0] == Outcome(result="done")
        errors = [outcome.error for outcome in outcomes[1:]]
        assert {type(error) for error in errors} == {MonitorClosed}
        sent = [bool(error and error.details["sent"]) for error in errors]
        assert (sent[0], sent[-1]) == (True, False)


async def test_descriptors_of_commands_sent_together_come_one_after_the_other(nursery: trio.Nursery) -> None:
    """What goes with the second waits for the first's answer, and what follows keeps its place."""
    async with by_hand(nursery) as (monitor, peer):
        outcomes: list[Outcome] = []

        async def ask() -> None:
            requests = [Request("add-fd", fds=(0,)), Request("add-fd", fds=(0,)), Request("blockdev-add")]
            outcomes.extend(await monitor.execute_all(requests, timeout=TIMEOUT))

        async with trio.open_nursery() as callers:
            callers.start_soon(ask)
            first = await peer.command()
            await trio.testing.wait_all_tasks_blocked()
            assert monitor.statistics().commands == 1
            await peer.answer(first, {})
            for name in ("add-fd", "blockdev-add"):
                command = await peer.command()
                assert command["execute"] == name
                await peer.answer(command, {})
        assert outcomes == [Outcome(result={})] * 3


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
