"""WebSocket clients, and bytes that no well-behaved one would send.

Decides: how tests speak WebSocket to the kernel.
Must not: know routes of the product.
"""

from __future__ import annotations

import struct
from collections import deque

import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event

from qsup.api.http import Answer, Request, UpgradeResponse, WebSocket
from tests.api.serving import PATIENCE, Served, request

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


def frame(opcode: int, payload: bytes, *, masked: bool = True, length: int | None = None, bits: int = 0x80) -> bytes:
    """A raw frame (RFC 6455, section 5.2) with a mask of zeros, possibly with a false length."""
    size = len(payload) if length is None else length
    mask = 0x80 if masked else 0
    if size < 126:
        head = bytes([bits | opcode, mask | size])
    else:
        head = bytes([bits | opcode, mask | 127]) + struct.pack("!Q", size)
    return head + (b"\0" * 4 if masked else b"") + payload


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
