"""WebSocket upgrades of the HTTP kernel."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from qsup.api.http import Answer, Request, Response, UpgradeResponse, WebSocket
from qsup.errors import BusyError, DeniedError
from tests.api.serving import request, routes, serving
from tests.api.websockets import HANDSHAKE, echo, echo_route, frame, upgraded


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


async def test_plain_answers_are_unaffected_by_upgrade_routes(tmp_path: Path) -> None:
    """A route may upgrade or answer, as it sees fit."""

    async def either(request: Request) -> Answer:
        return UpgradeResponse(handler=echo) if "upgrade" in request.headers else Response(body=b"plain")

    async with serving(tmp_path, routes(either=either)) as served:
        assert (await (await served.connect()).get("/either")).body == b"plain"
        caller = await upgraded(served, "/either")
        await caller.send(TextMessage(data="x"))
        assert await caller.next() == TextMessage(data="x")
