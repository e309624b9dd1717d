"""One WebSocket connection (RFC 6455), server side, on wsproto's frame layer.

Decides: what a valid handshake is, how large a message may be, how a connection ends.
Must not: know what the messages mean, or offer extensions (compression would let a small frame become a large message).
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import generate_accept_token

from qsup.api.transport import PeerLeft, Transport
from qsup.errors import RequestError, UpgradeRequired

#: Seconds to wait for the peer's half of the closing handshake.
CLOSE_TIMEOUT = 1.0
# wsproto makes a fragment of each read too; no client splits a message into bytes but to keep the daemon busy
_FRAGMENTS_MAX = 16384


def accept_token(method: str, http_version: bytes, headers: Mapping[str, str]) -> str:
    """Check a handshake (RFC 6455, section 4.2.1) and return its ``Sec-WebSocket-Accept``.

    Raises:
        UpgradeRequired: the request does not ask for a WebSocket of version 13.
        RequestError: it does, in the wrong way.
    """
    if method != "GET" or http_version != b"1.1":
        raise UpgradeRequired("a WebSocket begins with a GET of HTTP/1.1")
    if "websocket" not in _tokens(headers, "upgrade") or "upgrade" not in _tokens(headers, "connection"):
        raise UpgradeRequired("this resource is a WebSocket", hint="send Upgrade: websocket and Connection: Upgrade")
    if headers.get("sec-websocket-version") != "13":
        raise UpgradeRequired("the WebSocket protocol version must be 13")
    key = headers.get("sec-websocket-key", "")
    try:
        nonce = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("Sec-WebSocket-Key is not base64") from error
    if len(nonce) != 16:
        raise RequestError("Sec-WebSocket-Key does not hold 16 bytes")
    return generate_accept_token(key.encode("ascii")).decode("ascii")


def _tokens(headers: Mapping[str, str], name: str) -> list[str]:
    return [token.strip().lower() for token in headers.get(name, "").split(",")]


class WebSocket:
    """An open WebSocket. One task may receive while others send; pings are answered by whoever receives.

    Args:
        transport: the socket after the handshake.
        received: bytes that came behind the handshake.
        message_max: longest message taken, in bytes; a longer one ends the connection (1009).
        send_timeout: seconds the peer has to take each message.
    """

    def __init__(self, transport: Transport, received: bytes, *, message_max: int, send_timeout: float) -> None:
        self._transport = transport
        self._message_max = message_max
        self._send_timeout = send_timeout
        self._frames = Connection(ConnectionType.SERVER, trailing_data=received)
        self._send_lock = trio.Lock()
        self._partial = bytearray()
        self._fragments = 0
        self._over = False

    async def send_bytes(self, data: bytes) -> None:
        """Send one binary message; `PeerLeft` when the connection is closing or gone."""
        await self._send(BytesMessage(data=data), ConnectionState.OPEN)

    async def send_text(self, text: str) -> None:
        """Send one text message; `PeerLeft` when the connection is closing or gone."""
        await self._send(TextMessage(data=text), ConnectionState.OPEN)

    async def receive(self) -> bytes | str | None:
        """The next message, ``None`` once the connection is closing or gone. It has no deadline: silence is lawful."""
        try:
            while not self._over:
                if (message := await self._step(math.inf)) is not None:
                    return message
        except PeerLeft:
            self._over = True
        return None

    async def close(self, code: int = CloseReason.NORMAL_CLOSURE, reason: str = "") -> None:
        """End the connection in good order: send a close frame, await the peer's for `CLOSE_TIMEOUT`. Never raises.

        Args:
            code: RFC 6455, section 7.4.
            reason: cut to the 123 bytes that fit.
        """
        try:
            await self._send(CloseConnection(code=code, reason=reason), ConnectionState.OPEN)
            deadline = trio.current_time() + CLOSE_TIMEOUT
            while not self._over:
                await self._step(deadline)
        except (PeerLeft, trio.TooSlowError):
            self._over = True

    async def _send(self, event: Event, *states: ConnectionState) -> None:
        async with self._send_lock:
            if self._over or self._frames.state not in states:
                raise PeerLeft
            await self._transport.send_all(self._frames.send(event), self._send_timeout)

    async def _step(self, deadline: float) -> bytes | str | None:
        """Act on one frame, or wait for bytes; the message that is complete with it. `trio.TooSlowError`."""
        # one at a time: wsproto sends nothing more once it has read a close frame, and what came before is owed answers
        event = next(self._frames.events(), None)
        if event is None:
            data = await self._transport.receive(deadline)
            if data:
                self._frames.receive_data(data)
            else:
                self._over = True
        elif isinstance(event, TextMessage | BytesMessage):
            return await self._collect(event)
        elif isinstance(event, Ping) and self._frames.state is ConnectionState.OPEN:
            await self._send(event.response(), ConnectionState.OPEN)
        elif isinstance(event, CloseConnection):
            # the peer's close frame, or wsproto's verdict on bytes that are no frame
            await self._end(event)
        return None

    async def _collect(self, fragment: TextMessage | BytesMessage) -> bytes | str | None:
        """Put the fragments of a message together (in one buffer, whatever their number)."""
        data = fragment.data.encode() if isinstance(fragment, TextMessage) else fragment.data
        self._fragments += 1
        if len(self._partial) + len(data) > self._message_max or self._fragments > _FRAGMENTS_MAX:
            reason = f"a message is longer than {self._message_max} bytes, or in too many fragments"
            await self._end(CloseConnection(code=CloseReason.MESSAGE_TOO_BIG, reason=reason))
            return None
        self._partial += data
        if not fragment.message_finished:
            return None
        self._fragments = 0
        whole = bytes(self._partial)
        self._partial.clear()
        return whole.decode() if isinstance(fragment, TextMessage) else whole

    async def _end(self, close: CloseConnection) -> None:
        try:
            if self._frames.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
                await self._send(close, ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING)
        finally:
            self._over = True
