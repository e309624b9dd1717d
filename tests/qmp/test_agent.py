"""The guest agent's client: what it asks, and what a dead or hostile agent costs."""

from __future__ import annotations

import base64
import itertools
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import (
    AgentCommandError,
    AgentError,
    AgentProtocolError,
    AgentTimeout,
    AgentUnavailable,
    RequestError,
)
from qsup.qmp import guest
from qsup.qmp.agent import GuestAgent
from tests.qmp.measured import measure
from tests.qmp.player import DELIMITER, HANG_UP, Change, Fault, Player, as_recorded, faithful
from tests.qmp.support import TIMEOUT, Peer, listening, served
from tests.recordings.recording import load

AGENT = load("agent")
SYNC = "guest-sync-delimited"
SHORT = 0.3
MEBIBYTE = 1 << 20


def player(fault: Fault | None = None) -> Player:
    """An agent, which does not greet."""
    return Player(fault or faithful(AGENT), greets=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where QEMU would listen."""
    return tmp_path / "agent.sock"


def sent(agent: Player) -> list[str]:
    """The commands an agent received, and which of them came after the byte that makes it forget what was before."""
    names = []
    for line in agent.received:
        mark = "|" if line.startswith(DELIMITER) else ""
        names.append(mark + json.loads(line.lstrip(DELIMITER))["execute"])
    return names


# Verbs


async def test_what_an_agent_was_recorded_to_answer_is_read(path: Path) -> None:
    """Ping, information, addresses and the agent's own refusals."""
    peer = player()
    with served(path, peer):
        agent = GuestAgent(path, name="web")
        await guest.ping(agent, timeout=TIMEOUT)
        info = await guest.info(agent, timeout=TIMEOUT)
        assert info.version == "7.2.22"
        assert "guest-ping" in info.commands
        assert "guest-shutdown" not in info.commands
        loopback, interface = await guest.network_get_interfaces(agent, timeout=TIMEOUT)
        assert (loopback.name, [address.address for address in loopback.addresses]) == ("lo", ["127.0.0.1", "::1"])
        expected = guest.GuestAddress(kind="ipv4", address="192.0.2.7", prefix=24)
        assert interface == guest.GuestInterface(name="guest0", mac="52:54:00:12:34:56", addresses=(expected,))
        with pytest.raises(AgentCommandError, match="has not been found") as caught:
            await agent.execute("guest-no-such-command", timeout=TIMEOUT)
        assert (caught.value.error_class, caught.value.instance) == ("CommandNotFound", "web")
        agent.disconnect_nowait()
    # an error is an answer: the channel stays in step
    assert sent(peer).count(f"|{SYNC}") == 1


async def test_a_program_is_run_to_its_end(path: Path) -> None:
    """Its input is passed, its outputs and exit status come back."""
    peer = player()
    with served(path, peer):
        agent = GuestAgent(path, name="web")
        result = await guest.run(agent, "/bin/sh", ["-c", "true"], input=b"hello\n", timeout=TIMEOUT)
        agent.disconnect_nowait()
    assert result == guest.ExecResult(
        exit_code=3, signal=None, stdout=b"hello\ngone\n", stderr=b"oops\n", truncated=False
    )
    (request,) = [json.loads(line) for line in peer.received if b'"guest-exec"' in line]
    assert base64.b64decode(request["arguments"].pop("input-data")) == b"hello\n"
    assert request["arguments"] == {"path": "/bin/sh", "arg": ["-c", "true"], "capture-output": True}


async def test_output_beyond_its_bound_is_cut(path: Path) -> None:
    """What is cut is said to be."""
    with served(path, player()):
        agent = GuestAgent(path, name="web")
        result = await guest.run(agent, "/bin/sh", timeout=TIMEOUT, max_output=4)
        assert (result.stdout, result.stderr, result.truncated) == (b"hell", b"oops", True)
        agent.disconnect_nowait()


async def test_a_program_that_outlives_its_deadline_is_named(path: Path) -> None:
    """It is left running; the error has its pid."""
    started = json.loads(AGENT.answers("guest-exec")[0][0])["return"]["pid"]
    running = Fault(name="", recording=AGENT, at="guest-exec-status", change=_still_running)
    with served(path, player(running)):
        agent = GuestAgent(path, name="web")
        with pytest.raises(AgentTimeout, match="still ran in the guest") as caught:
            await guest.run(agent, "/bin/sleep", timeout=SHORT)
        assert caught.value.details["pid"] == started
        agent.disconnect_nowait()


def _still_running(lines: list[bytes]) -> Iterable[bytes]:
    return as_recorded([json.dumps({"return": {"exited": False}, "id": json.loads(lines[-1])["id"]}).encode()])


def _silence(_lines: list[bytes]) -> Iterable[bytes]:
    return []


def _hang_up(_lines: list[bytes]) -> Iterable[bytes]:
    return [HANG_UP]


@pytest.mark.parametrize("change", [_silence, _hang_up], ids=["silence", "end"])
async def test_a_shutdown_succeeds_without_an_answer(path: Path, change: Change) -> None:
    """The agent says nothing, or the guest is gone before it could."""
    with served(path, player(Fault(name="", recording=AGENT, at="guest-shutdown", change=change))):
        agent = GuestAgent(path, name="web")
        await guest.shutdown(agent, timeout=TIMEOUT)
        await guest.ping(agent, timeout=TIMEOUT)
        agent.disconnect_nowait()


async def test_a_refused_shutdown_is_told(path: Path) -> None:
    """The recorded agent was not allowed to shut anything down."""
    with served(path, player()):
        agent = GuestAgent(path, name="web")
        with pytest.raises(AgentCommandError, match="disabled"):
            await guest.shutdown(agent, timeout=TIMEOUT)
        agent.disconnect_nowait()


async def test_a_shutdown_nobody_hears_is_a_failure(path: Path) -> None:
    """Silence counts only from an agent that has just answered."""
    with served(path, player(Fault(name="", recording=AGENT, at=SYNC, change=_silence))):
        agent = GuestAgent(path, name="web")
        with pytest.raises(AgentTimeout) as caught:
            await guest.shutdown(agent, timeout=SHORT)
        assert caught.value.details["sent"] is False


# The channel


async def test_no_channel_is_told_at_once(path: Path) -> None:
    """A VM without an agent, or whose QEMU is gone."""
    with pytest.raises(AgentUnavailable, match="No such file"):
        await GuestAgent(path, name="web").execute("guest-ping", timeout=TIMEOUT)


async def test_callers_take_turns(path: Path) -> None:
    """One command is under way at a time, however many ask."""
    peer = player()
    with served(path, peer):
        agent = GuestAgent(path, name="web")
        async with trio.open_nursery() as callers:
            for _ in range(5):
                callers.start_soon(lambda: guest.ping(agent, timeout=TIMEOUT))
        agent.disconnect_nowait()
    assert sent(peer) == [f"|{SYNC}"] + ["guest-ping"] * 5


async def test_waiting_for_another_caller_has_a_deadline(path: Path) -> None:
    """The one who waits gives up in time, and the one who is served is not disturbed."""
    with served(path, player(Fault(name="", recording=AGENT, at="guest-info", change=_silence))):
        agent = GuestAgent(path, name="web")
        async with trio.open_nursery() as callers:

            async def slow() -> None:
                with pytest.raises(AgentTimeout) as caught:
                    await agent.execute("guest-info", timeout=2 * SHORT)
                assert caught.value.details["sent"] is True

            callers.start_soon(slow)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(AgentTimeout) as caught:
                await agent.execute("guest-ping", timeout=SHORT / 3)
            assert caught.value.details["sent"] is False


async def test_a_reset_ends_the_call_and_the_next_one_works(path: Path) -> None:
    """The driver learns of the reset; who waits for an answer learns it too."""
    peer = player(Fault(name="", recording=AGENT, at="guest-info", change=_silence, times=1))
    with served(path, peer):
        agent = GuestAgent(path, name="web")
        async with trio.open_nursery() as callers:

            async def ask() -> None:
                with pytest.raises(AgentUnavailable, match="reset"):
                    await agent.execute("guest-info", timeout=TIMEOUT)

            callers.start_soon(ask)
            with trio.fail_after(TIMEOUT):
                while "guest-info" not in sent(peer):
                    await trio.lowlevel.checkpoint()
            agent.disconnect_nowait()
        assert await agent.execute("guest-info", timeout=TIMEOUT)
        agent.disconnect_nowait()
        agent.disconnect_nowait()


async def test_a_cancelled_call_leaves_the_next_one_in_step(path: Path) -> None:
    """Its late answer belongs to nobody."""
    with served(path, player(Fault(name="", recording=AGENT, at="guest-info", change=_silence, times=1))):
        agent = GuestAgent(path, name="web")
        with trio.move_on_after(SHORT) as scope:
            await agent.execute("guest-info", timeout=TIMEOUT)
        assert scope.cancelled_caught
        assert await agent.execute("guest-info", timeout=TIMEOUT)
        agent.disconnect_nowait()


async def test_arguments_that_cannot_be_sent_are_refused_before_anything(path: Path) -> None:
    """Nothing is connected for them."""
    with pytest.raises(RequestError):
        await GuestAgent(path, name="web").execute("guest-ping", {"x": "\ud800"}, timeout=TIMEOUT)


async def test_a_guest_that_does_not_read_cannot_block(path: Path) -> None:
    """Writing has the call's deadline."""
    with listening(path):
        agent = GuestAgent(path, name="web")
        with pytest.raises(AgentTimeout):
            await agent.execute("guest-file-write", {"buf-b64": "A" * (3 << 19)}, timeout=SHORT)


@given(st.binary(max_size=200), st.booleans(), st.lists(st.integers(1, 50), max_size=8))
async def test_whatever_stands_before_the_mark_is_skipped(before: bytes, stale: bool, cuts: list[int]) -> None:
    """Half an answer, an old answer, marks in the middle of garbage, however the channel cuts them."""
    (mark, _) = load("agent").answers(SYNC)[0]
    with tempfile.TemporaryDirectory() as directory, listening(Path(directory, "agent")) as listener:
        agent = GuestAgent(Path(directory, "agent"), name="web")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: guest.ping(agent, timeout=TIMEOUT))
            await trio.lowlevel.wait_readable(listener)
            peer = Peer(listener.accept()[0])
            request = await peer.command()
            old = DELIMITER + b'{"return": 4711}\r\n' if stale else b""
            data = before + old + mark + b"\r\n" + DELIMITER + _sync_answer(request) + b"\r\n"
            for cut in cuts:
                if data[:cut]:
                    await peer.stream.send_all(data[:cut])
                data = data[cut:]
            await peer.stream.send_all(data)
            await peer.answer(await peer.command(), {})
        agent.disconnect_nowait()
        await peer.stream.aclose()


def _sync_answer(request: dict[str, object]) -> bytes:
    arguments = request["arguments"]
    assert isinstance(arguments, dict)
    return json.dumps({"return": arguments["id"], "id": request["id"]}).encode()


# A hostile agent


def _forever(data: bytes, *, most: int = 1 << 30) -> Change:
    """Send a piece again and again, a gigabyte of it."""
    return lambda _lines: itertools.repeat(data, most // len(data))


def _grown(size: int) -> Change:
    """Send the recorded answer with a string of this size in it."""

    def change(lines: list[bytes]) -> Iterable[bytes]:
        return as_recorded([lines[-1].replace(b'"version": "', b'"version": "' + b"x" * size, 1)])

    return change


def _returning(value: bytes) -> Change:
    """Send the recorded answer with another value."""

    def change(lines: list[bytes]) -> Iterable[bytes]:
        call_id = json.dumps(json.loads(lines[-1])["id"]).encode()
        return as_recorded([b'{"return": ' + value + b', "id": ' + call_id + b"}"])

    return change


def _fault(name: str, change: Change, at: str = "guest-info") -> Fault:
    return Fault(name=name, recording=AGENT, at=at, change=change, times=1)


HOSTILE: tuple[tuple[Fault, type[AgentError]], ...] = (
    (_fault("1 GB without newline", _forever(b"x" * 65536)), AgentProtocolError),
    (_fault("20 MB", _grown(20_000_000)), AgentProtocolError),
    (_fault("a million values", _returning(b"[" + b"[]," * 1_000_000 + b"[]]")), AgentProtocolError),
    (_fault("4 MB of wide text", _returning('"\U0001f600'.encode() + b"x" * 4_000_000 + b'"')), AgentProtocolError),
    (_fault("4 MB of escapes", _returning(b'"' + rb"\ud83d\ude00" + b"x" * 4_000_000 + b'"')), AgentProtocolError),
    (_fault("1,500-deep nesting", _returning(b"[" * 1500 + b"]" * 1500)), AgentProtocolError),
    (_fault("1,000,000-deep nesting", _returning(b"[" * 1_000_000 + b"]" * 1_000_000)), AgentProtocolError),
    (_fault("NaN", _returning(b"NaN")), AgentProtocolError),
    (_fault("lone surrogate", _returning(b'"\\ud800"')), AgentProtocolError),
    (_fault("invalid UTF-8", _returning(b'"\xc3("')), AgentProtocolError),
    (_fault("garbage", lambda _lines: [b"login: \r\n"]), AgentProtocolError),
    (_fault("a list", lambda lines: as_recorded([b"[" + lines[-1] + b"]"])), AgentProtocolError),
    (_fault("an event", lambda _lines: as_recorded([b'{"event": "STOP"}'])), AgentProtocolError),
    (_fault("malformed error", lambda _lines: as_recorded([b'{"error": {"class": 1}}'])), AgentProtocolError),
    (_fault("wrong id", lambda lines: as_recorded([lines[-1].replace(b'"id": "', b'"id": "x')])), AgentTimeout),
    (_fault("endless answers to others", _forever(b'{"return": {}, "id": "x"}\n' * 1000)), AgentTimeout),
    (_fault("silence", _silence), AgentTimeout),
    (_fault("end", _hang_up), AgentUnavailable),
    (_fault("silence for an answer to the mark", _silence, at=SYNC), AgentTimeout),
    (_fault("1 GB of marks", _forever(DELIMITER * 65536), at=SYNC), AgentTimeout),
    (_fault("1 GB of marked garbage", _forever((DELIMITER + b"x\n") * 20_000), at=SYNC), AgentTimeout),
    (_fault("1 GB that is no mark", _forever(b"x" * 65536), at=SYNC), AgentTimeout),
)


@pytest.mark.parametrize(("fault", "error"), HOSTILE, ids=lambda value: value.name if isinstance(value, Fault) else "")
async def test_a_hostile_agent_fails_its_call_and_the_next_one_works(
    path: Path, fault: Fault, error: type[AgentError]
) -> None:
    """Whatever it does costs one call, which ends in time."""
    with served(path, player(fault)):
        agent = GuestAgent(path, name="web")
        began = trio.current_time()
        with pytest.raises(error) as caught:
            await guest.info(agent, timeout=SHORT if error is AgentTimeout else TIMEOUT)
        assert type(caught.value) is error
        assert trio.current_time() - began < TIMEOUT / 2
        assert caught.value.instance == "web"
        assert len(caught.value.message) < 300
        assert (await guest.info(agent, timeout=TIMEOUT)).version == "7.2.22"
        agent.disconnect_nowait()


async def test_a_hostile_agent_holds_up_nobody_else(path: Path) -> None:
    """While it floods, every other task of the daemon has its turn."""
    (flood,) = [fault for fault, _ in HOSTILE if fault.name == "1 GB of marked garbage"]
    with served(path, player(flood)):
        agent = GuestAgent(path, name="web")
        turns = 0
        async with trio.open_nursery() as tasks:

            async def bystander() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await trio.lowlevel.checkpoint()

            tasks.start_soon(bystander)
            with pytest.raises(AgentTimeout):
                await guest.info(agent, timeout=SHORT)
            tasks.cancel_scope.cancel()
        assert turns > 50


GREEDY = [fault for fault, _ in HOSTILE if any(word in fault.name for word in ("GB", "MB", "million", "000"))]


@pytest.mark.parametrize("fault", GREEDY, ids=lambda fault: fault.name)
def test_a_hostile_agent_cannot_make_the_daemon_grow(path: Path, fault: Fault) -> None:
    """Less than 32 MiB, even for a moment."""
    with served(path, player(fault)):
        result = measure("agent", str(path), "guest-info", "guest-info", timeout=2.0)
    failed, answered = result["outcomes"]
    assert failed in ("agent-protocol", "agent-timeout", "answered")  # the call is untyped: odd values are answers
    assert answered == "answered"
    assert result["grown"] < 32 * MEBIBYTE
