"""How WebSocket connections of the HTTP kernel end."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock
from wsproto.events import CloseConnection, TextMessage

from qsup.api.http import Answer, Request, UpgradeResponse, WebSocket
from qsup.errors import AgentUnavailable, DeniedError
from tests.api.serving import routes, serving
from tests.api.websockets import echo_route, frame, upgraded


async def test_handler_that_returns_closes_normally(tmp_path: Path) -> None:
    """When the handler ends, the client gets what was sent and a close frame with 1000."""

    async def greet(socket: WebSocket) -> None:
        await socket.send_text("hello")

    async def route(request: Request) -> Answer:
        return UpgradeResponse(handler=greet)

    async with serving(tmp_path, routes(greet=route)) as served:
        caller = await upgraded(served, "/greet")
        assert await caller.next() == TextMessage(data="hello")
        assert await caller.next() == CloseConnection(code=1000, reason="")
        await caller.send(CloseConnection(code=1000))
        assert await caller.stream.receive_some() == b""


async def leave(socket: WebSocket) -> None:
    """Have nothing to say."""


async def leave_route(request: Request) -> Answer:
    """Upgrade to `leave`."""
    return UpgradeResponse(handler=leave)


async def test_closing_waits_for_the_client(tmp_path: Path) -> None:
    """Behind the server's close frame, the client's own is awaited, whatever comes before it."""
    async with serving(tmp_path, routes(leave=leave_route)) as served:
        caller = await upgraded(served, "/leave")
        frames = frame(9, b"ping") + frame(1, b"too late")
        await caller.stream.send_all(frames)
        await trio.testing.wait_all_tasks_blocked()
        assert await caller.close_code() == 1000
        await caller.stream.send_all(frame(8, b"\x03\xe8"))
        assert await caller.stream.receive_some() == b""


async def test_closing_is_not_held_up(tmp_path: Path, mock_clock: MockClock) -> None:
    """A client that answers the close frame with ever more messages is cut off after a second."""
    async with serving(tmp_path, routes(leave=leave_route)) as served:
        caller = await upgraded(served, "/leave")
        assert await caller.close_code() == 1000
        mock_clock.jump(1.5)
        with pytest.raises(trio.BrokenResourceError):
            # in one piece, so that the server never has to wait for more
            await caller.stream.send_all(frame(2, b"x" * 65536) * 200)


@pytest.mark.parametrize(
    ("error", "reason", "bugs"),
    [
        (AgentUnavailable("nobody listens in the guest"), "nobody listens in the guest", 0),
        (ZeroDivisionError("secret"), "an error inside the daemon", 1),
        (
            ExceptionGroup("nursery", [DeniedError("not now, " + "please " * 50)]),
            "not now, " + "please " * 16 + "pl",
            0,
        ),
    ],
)
async def test_failing_handler_closes_with_1011(tmp_path: Path, error: Exception, reason: str, bugs: int) -> None:
    """A handler's error ends the connection with 1011; its words reach the client only where they are meant to."""

    async def fails(socket: WebSocket) -> None:
        raise error

    async def route(request: Request) -> Answer:
        return UpgradeResponse(handler=fails)

    async with serving(tmp_path, routes(fails=route)) as served:
        caller = await upgraded(served, "/fails")
        assert await caller.next() == CloseConnection(code=1011, reason=reason)
    assert len(served.bugs) == bugs


class Talkative:
    """A handler that sends all the time and reads all the time, in two tasks; `ended` is set behind both."""

    def __init__(self) -> None:
        self.ended = trio.Event()

    async def talk(self, socket: WebSocket) -> None:
        """Do both."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, socket)
                while await socket.receive() is not None:
                    pass
                nursery.cancel_scope.cancel()
        finally:
            self.ended.set()

    async def _send(self, socket: WebSocket) -> None:
        while True:
            await socket.send_bytes(b"x" * 10000)

    async def route(self, request: Request) -> Answer:
        """Upgrade to it."""
        return UpgradeResponse(handler=self.talk)


async def test_client_that_vanishes_ends_the_handler(tmp_path: Path) -> None:
    """A connection that closes without a word ends the handler, and is nobody's bug."""
    talkative = Talkative()
    async with serving(tmp_path, routes(talk=talkative.route)) as served:
        caller = await upgraded(served, "/talk")
        await caller.next()
        await caller.stream.aclose()
        with trio.fail_after(5):
            await talkative.ended.wait()
    assert served.bugs == []


async def test_client_that_never_reads_ends_the_handler(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A client that takes nothing more is given up 10 s after the first message that does not fit."""
    talkative = Talkative()
    async with serving(tmp_path, routes(talk=talkative.route)) as served:
        await upgraded(served, "/talk")
        begin = trio.current_time()
        with trio.fail_after(60):
            await talkative.ended.wait()
        assert trio.current_time() - begin == pytest.approx(10)
    assert served.bugs == []


async def test_drain_says_going_away(tmp_path: Path, autojump_clock: MockClock) -> None:
    """At shutdown a WebSocket is closed with 1001, whether its handler waits or not; mute clients delay it by 1 s."""
    async with serving(tmp_path, routes(echo=echo_route)) as served:
        caller = await upgraded(served, "/echo")
        begin = trio.current_time()
        served.scope.cancel()
        assert await caller.next() == CloseConnection(code=1001, reason="")
        await served.ended.wait()
        assert trio.current_time() - begin == pytest.approx(1)


async def test_silence_is_no_reason_to_close(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A WebSocket may be silent for hours."""
    async with serving(tmp_path, routes(echo=echo_route)) as served:
        caller = await upgraded(served, "/echo")
        await trio.sleep(50000)  # virtual time
        await caller.send(TextMessage(data="still there"))
        assert await caller.next() == TextMessage(data="still there")


async def test_sending_after_the_end_says_so(tmp_path: Path) -> None:
    """Sending to a client that closed raises, and the handler that lets it pass reports no bug."""

    async def talk(socket: WebSocket) -> None:
        assert await socket.receive() is None
        await socket.send_text("too late")
        raise AssertionError

    async def route(request: Request) -> Answer:
        return UpgradeResponse(handler=talk)

    async with serving(tmp_path, routes(talk=route)) as served:
        caller = await upgraded(served, "/talk")
        await caller.send(CloseConnection(code=1001))
        assert await caller.close_code() == 1001
        assert await caller.stream.receive_some() == b""
    assert served.bugs == []
