"""WebSocket upgrades of the HTTP kernel."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from qsup.api.http import Answer, Request, Response, UpgradeResponse, WebSocket
from qsup.errors import AgentUnavailable, BusyError, DeniedError
from tests.api.serving import PATIENCE, Served, request, routes, serving

# the example of RFC 6455, section 1.3
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
HANDSHAKE = (
    "Connection: keep-alive, Upgrade",
    "Upgrade: WebSocket",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {KEY}",
)


class Caller:
    """A client on an upgraded connection."""

    def __init__(self, stream: trio.SocketStream, received: bytes) -> None:
        self.stream = stream
        self._frames = Connection(ConnectionType.CLIENT, trailing_data=received)
        self._events: deque[Event] = deque()

    async def send(self, *events: Event) -> None:
        """Send events, all in one piece."""
        await self.stream.send_all(b"".join(self._frames.send(event) for event in events))

    async def next(self) -> Event:
        """The next event from the server."""
        with trio.fail_after(PATIENCE):
            while not self._events:
                self._events.extend(self._frames.events())
                if not self._events:
                    self._frames.receive_data(await self.stream.receive_some(65536) or None)
        return self._events.popleft()

    async def close_code(self) -> int:
        """Read to the server's close frame, which must come."""
        while not isinstance(event := await self.next(), CloseConnection):
            pass
        return event.code


async def upgraded(served: Served, target: str, *, behind: bytes = b"") -> Caller:
    """Upgrade a new connection, sending ``behind`` along with the handshake."""
    client = await served.connect()
    await client.send(request(f"GET {target}", *HANDSHAKE) + behind)
    data = b""
    with trio.fail_after(PATIENCE):
        while b"\r\n\r\n" not in data:
            data += await client.stream.receive_some(65536)
    head, _, received = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert f"sec-websocket-accept: {ACCEPT}".encode() in head
    return Caller(client.stream, received)


async def echo(socket: WebSocket) -> None:
    """Send every message back as it came."""
    while (message := await socket.receive()) is not None:
        if isinstance(message, str):
            await socket.send_text(message)
        else:
            await socket.send_bytes(message)


async def echo_route(request: Request) -> Answer:
    """Upgrade to `echo`."""
    return UpgradeResponse(handler=echo)


async def test_messages_go_both_ways(tmp_path: Path) -> None:
    """Text and bytes come back as what they were, fragmented or not, large or empty, and pings are answered."""
    async with serving(tmp_path, routes(echo=echo_route)) as served:
        caller = await upgraded(served, "/echo")
        await caller.send(TextMessage(data="grüße"), BytesMessage(data=b"\0\xff"), Ping(payload=b"are you there"))
        assert [await caller.next() for _ in range(3)] == [
            TextMessage(data="grüße"),
            BytesMessage(data=bytearray(b"\0\xff")),
            Pong(payload=b"are you there"),
        ]
        await caller.send(TextMessage(data="grü", message_finished=False), Ping(), TextMessage(data="ße"))
        assert await caller.next() == Pong(payload=b"")
        assert await caller.next() == TextMessage(data="grüße")
        await caller.send(BytesMessage(data=b""), CloseConnection(code=1000, reason="bye"))
        assert await caller.next() == BytesMessage(data=bytearray())
        assert await caller.next() == CloseConnection(code=1000, reason="bye")
    assert served.bugs == []
    assert served.requests == [("GET", "/echo", 101)]


async def test_frames_behind_the_handshake_count(tmp_path: Path) -> None:
    """A client that does not wait for the 101 loses nothing."""
    early = Connection(ConnectionType.CLIENT).send(TextMessage(data="early"))
    async with serving(tmp_path, routes(echo=echo_route)) as served:
        caller = await upgraded(served, "/echo", behind=early)
        assert await caller.next() == TextMessage(data="early")


@pytest.mark.parametrize(
    ("line", "headers", "status", "code"),
    [
        ("GET /echo", (), 426, "upgrade-required"),
        ("POST /echo", HANDSHAKE, 426, "upgrade-required"),
        ("GET /echo", ("Upgrade: h2c", *HANDSHAKE[0:1], *HANDSHAKE[2:]), 426, "upgrade-required"),
        ("GET /echo", ("Connection: close", *HANDSHAKE[1:]), 426, "upgrade-required"),
        ("GET /echo", (*HANDSHAKE[:2], "Sec-WebSocket-Version: 8", HANDSHAKE[3]), 426, "upgrade-required"),
        ("GET /echo", (*HANDSHAKE[:3], "Sec-WebSocket-Key: c2hvcnQ="), 400, "bad-request"),
        ("GET /echo", (*HANDSHAKE[:3], "Sec-WebSocket-Key: ***"), 400, "bad-request"),
        ("GET /echo", (*HANDSHAKE[:3], "Sec-WebSocket-Key: ä"), 400, "bad-request"),
        ("GET /echo", (*HANDSHAKE, "Content-Length: 3"), 400, "bad-request"),
    ],
)
async def test_wrong_handshakes_are_problems(
    tmp_path: Path, line: str, headers: tuple[str, ...], status: int, code: str
) -> None:
    """A request that is no valid handshake is answered in HTTP, and what the upgrade would run is not run."""

    async def never(socket: WebSocket) -> None:
        raise AssertionError

    async def upgrade(request: Request) -> Answer:
        return UpgradeResponse(handler=never)

    async with serving(tmp_path, routes(echo=upgrade)) as served:
        client = await served.connect()
        await client.send(request(line, *headers))
        reply = await client.reply(line.split()[0])
    assert (reply.status, reply.code) == (status, code)
    assert served.bugs == []


async def test_denied_upgrade_is_a_problem_and_the_connection_goes_on(tmp_path: Path) -> None:
    """An error before the upgrade is an ordinary answer, behind which the next request may follow."""

    async def denied(request: Request) -> Answer:
        raise DeniedError("the VM is not running")

    async with serving(tmp_path, routes(console=denied)) as served:
        client = await served.connect()
        assert (await client.get("/console", *HANDSHAKE)).code == "not-allowed"
        assert (await client.get("/health")).status == 200


class Attachment:
    """What a conversation holds: refuses to be taken, or notes being taken and given back."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.refusal = refusal
        self.log: list[str] = []

    @asynccontextmanager
    async def attach(self) -> AsyncIterator[None]:
        """Take it."""
        if self.refusal is not None:
            raise self.refusal
        self.log.append("taken")
        try:
            yield
        finally:
            self.log.append("given back")

    async def talk(self, socket: WebSocket) -> None:
        """Note it."""
        self.log.append("talked")

    async def route(self, request: Request) -> Answer:
        """Upgrade with it."""
        return UpgradeResponse(handler=self.talk, attach=self.attach())


async def test_what_a_conversation_needs_is_held_as_long_as_it_lasts(tmp_path: Path) -> None:
    """What is attached is taken before the handshake is answered and given back when the handler has ended."""
    attachment = Attachment()
    async with serving(tmp_path, routes(console=attachment.route)) as served:
        caller = await upgraded(served, "/console")
        assert await caller.close_code() == 1000
        await caller.send(CloseConnection(code=1000))
        assert await caller.stream.receive_some() == b""
    assert attachment.log == ["taken", "talked", "given back"]


@pytest.mark.parametrize(
    ("refusal", "code", "bugs"),
    [(BusyError("somebody types already"), "busy", 0), (ZeroDivisionError("secret"), "internal", 1)],
)
async def test_what_cannot_be_attached_is_a_problem(tmp_path: Path, refusal: Exception, code: str, bugs: int) -> None:
    """When what the conversation needs cannot be had, the handshake is answered in HTTP, and the connection goes on."""
    attachment = Attachment(refusal)
    async with serving(tmp_path, routes(console=attachment.route)) as served:
        client = await served.connect()
        assert (await client.get("/console", *HANDSHAKE)).code == code
        assert (await client.get("/health")).status == 200
    assert len(served.bugs) == bugs
    assert attachment.log == []


async def test_nothing_is_attached_for_a_wrong_handshake(tmp_path: Path) -> None:
    """A request that is no valid handshake takes nothing."""
    attachment = Attachment()
    async with serving(tmp_path, routes(console=attachment.route)) as served:
        assert (await (await served.connect()).get("/console")).code == "upgrade-required"
    assert attachment.log == []


async def test_offered_upgrade_may_be_ignored(tmp_path: Path) -> None:
    """A client that offers another protocol gets plain HTTP from a route that has only that."""
    async with serving(tmp_path, routes()) as served:
        client = await served.connect()
        assert (await client.get("/health", "Connection: Upgrade", "Upgrade: h2c")).status == 200
        assert (await client.get("/health")).status == 200


def frame(opcode: int, payload: bytes, *, masked: bool = True, length: int | None = None, bits: int = 0x80) -> bytes:
    """A raw frame (RFC 6455, section 5.2) with a mask of zeros, possibly with a false length."""
    size = len(payload) if length is None else length
    mask = 0x80 if masked else 0
    if size < 126:
        head = bytes([bits | opcode, mask | size])
    else:
        head = bytes([bits | opcode, mask | 127]) + struct.pack("!Q", size)
    return head + (b"\0" * 4 if masked else b"") + payload


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(2, b"x" * 200001), 1009),
        (frame(2, b"x" * 100000, length=1 << 40) + b"x" * 200000, 1009),
        (frame(1, b"x" * 150000, bits=0) + frame(0, b"x" * 150000), 1009),
        (frame(1, b"x", bits=0) + frame(0, b"", bits=0) * 16384, 1009),
        (frame(1, b"\xff\xfe"), 1007),
        (frame(1, b"hello", masked=False), 1002),
        (frame(3, b""), 1002),
        (frame(9, b"x" * 126), 1002),
        (frame(0, b"x"), 1002),
        (frame(1, b"x", bits=0xC0), 1002),
        (frame(8, b"\x03"), 1002),
        (frame(8, struct.pack("!H", 1005)), 1002),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1002),
    ],
)
async def test_wrong_frames_end_the_connection(tmp_path: Path, data: bytes, code: int) -> None:
    """A message beyond the bound, bad UTF-8 and what is no frame are answered with their close code."""
    async with serving(tmp_path, routes(echo=echo_route), message=200000) as served:
        caller = await upgraded(served, "/echo")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_until_refused, caller.stream, data)
            assert await caller.close_code() == code
            nursery.cancel_scope.cancel()
        assert (await (await served.connect()).get("/health")).status == 200
    assert served.bugs == []


async def send_until_refused(stream: trio.SocketStream, data: bytes) -> None:
    """Send as much as is taken."""
    try:
        await stream.send_all(data)
    except trio.BrokenResourceError:
        pass  # the server has had enough


async def test_fragments_become_one_message(tmp_path: Path) -> None:
    """A message in ten thousand fragments, most of them empty, is one message."""
    async with serving(tmp_path, routes(echo=echo_route)) as served:
        caller = await upgraded(served, "/echo")
        fragments = frame(1, b"a", bits=0) + (frame(0, b"", bits=0) * 9 + frame(0, b"b", bits=0)) * 1000
        await caller.stream.send_all(fragments + frame(0, b"c"))
        assert await caller.next() == TextMessage(data="a" + "b" * 1000 + "c")


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


async def test_plain_answers_are_unaffected_by_upgrade_routes(tmp_path: Path) -> None:
    """A route may upgrade or answer, as it sees fit."""

    async def either(request: Request) -> Answer:
        return UpgradeResponse(handler=echo) if "upgrade" in request.headers else Response(body=b"plain")

    async with serving(tmp_path, routes(either=either)) as served:
        assert (await (await served.connect()).get("/either")).body == b"plain"
        caller = await upgraded(served, "/either")
        await caller.send(TextMessage(data="x"))
        assert await caller.next() == TextMessage(data="x")
