"""The client's half of a WebSocket (RFC 6455): handshake, frames, pings, close.

Decides: what a valid frame from the daemon is, and how much may wait to be sent.
Must not: know what the bytes mean, or block: the caller waits in select(2) for readable, and for writable while
`wants_write`.
"""

from __future__ import annotations

import binascii
import hashlib
import os

from qsup.ctl.client import Client
from qsup.ctl.connection import Connection
from qsup.errors import DaemonProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
NORMAL_CLOSURE, GOING_AWAY = 1000, 1001
#: Longest frame taken, in bytes.
FRAME_MAX = 16 << 20
#: Most bytes that wait to be sent before `WebSocket.is_full`.
BACKLOG_MAX = 1 << 18
#: Largest frame sent, in bytes; longer data goes in several.
_FRAGMENT = 1 << 15
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def encode(opcode: int, payload: bytes, mask: bytes) -> bytes:
    """One final, masked frame (RFC 6455, section 5.2).

    Args:
        mask: four bytes that the peer cannot foresee.
    """
    length = len(payload)
    if length < 126:
        size = bytes((0x80 | length,))
    elif length < 1 << 16:
        size = bytes((0x80 | 126,)) + length.to_bytes(2, "big")
    else:
        size = bytes((0x80 | 127,)) + length.to_bytes(8, "big")
    key = int.from_bytes((mask * (length // 4 + 1))[:length], "big")
    masked = (int.from_bytes(payload, "big") ^ key).to_bytes(length, "big")
    return bytes((0x80 | opcode,)) + size + mask + masked


class Decoder:
    """Turns bytes from the daemon into frames, however they are cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take bytes; returns every frame that is complete now, as ``(opcode, payload)``.

        Fragments of a message are frames of their own: on a byte stream their boundaries mean nothing.

        Raises:
            DaemonProtocolError: they break RFC 6455, or a frame is longer than `FRAME_MAX`.
        """
        self._buffer += data
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> tuple[int, bytes] | None:
        if len(self._buffer) < 2:
            return None
        first, second = self._buffer[0], self._buffer[1]
        opcode, length, start = first & 0x0F, second & 0x7F, 2
        if first & 0x70 or second & 0x80 or opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise DaemonProtocolError(f"a malformed WebSocket frame begins with {first:#04x} {second:#04x}")
        if opcode >= CLOSE and (length > 125 or not first & 0x80):
            raise DaemonProtocolError("a WebSocket control frame is too long or fragmented")
        if length >= 126:
            start = 4 if length == 126 else 10
            if len(self._buffer) < start:
                return None
            length = int.from_bytes(self._buffer[2:start], "big")
        if length > FRAME_MAX:
            raise DaemonProtocolError(f"a WebSocket frame of {length} bytes is longer than {FRAME_MAX >> 20} MiB")
        if len(self._buffer) < start + length:
            return None
        payload = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        return opcode, payload


class WebSocket:
    """An open WebSocket over which bytes travel both ways; message boundaries are not kept.

    Args:
        connection: after the handshake. It is closed with the WebSocket.

    Attributes:
        closed: nothing more will come.
        reason: why the daemon closed it, in its words, or ``""``.
        daemon_left: it was closed because the daemon ended, in good order or not.
    """

    def __init__(self, connection: Connection) -> None:
        connection.socket.setblocking(False)
        self._connection = connection
        self._decoder = Decoder()
        self._backlog = bytearray()
        self.closed = False
        self.reason = ""
        self.daemon_left = False

    def fileno(self) -> int:
        """For select(2)."""
        return self._connection.socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._backlog)

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be sent that nothing should be added."""
        return len(self._backlog) > BACKLOG_MAX

    def send(self, data: bytes) -> None:
        """Queue bytes and send what the socket takes now."""
        for start in range(0, len(data), _FRAGMENT):
            self._backlog += encode(BINARY, data[start : start + _FRAGMENT], os.urandom(4))
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes now; call it when the socket is writable."""
        try:
            while self._backlog and not self.closed:
                del self._backlog[: self._socket.send(self._backlog)]
        except BlockingIOError:
            pass  # the rest goes when the socket is writable
        except OSError:
            self._break_off()

    def receive(self) -> bytes:
        """The data that is here now, maybe none. Pings are answered.

        Call it when the socket is readable, and once before: data may have come with the handshake.

        Raises:
            DaemonProtocolError: the framing broke.
        """
        try:
            data = self._connection.receive_nowait()
        except BlockingIOError:
            return b""
        if not data:
            self._break_off()
        return b"".join([self._take(opcode, payload) for opcode, payload in self._decoder.feed(data)])

    def close(self) -> None:
        """Say goodbye as far as the socket takes it at once, and close."""
        if not self.closed:
            self._backlog += encode(CLOSE, NORMAL_CLOSURE.to_bytes(2, "big"), os.urandom(4))
            self.flush()
        self._connection.close()

    def _break_off(self) -> None:
        """The connection ended; without a close frame before that, so did the daemon."""
        self.daemon_left |= not self.closed
        self.closed = True

    @property
    def _socket(self) -> socket.socket:
        return self._connection.socket

    def _take(self, opcode: int, payload: bytes) -> bytes:
        if self.closed:
            return b""
        if opcode == PING:
            self._backlog += encode(PONG, payload, os.urandom(4))
            self.flush()
        elif opcode == CLOSE:
            self.reason = payload[2:].decode("utf-8", "replace")
            self.daemon_left = payload[:2] == GOING_AWAY.to_bytes(2, "big")
            self._backlog += encode(CLOSE, payload[:2], os.urandom(4))
            self.flush()
            self.closed = True
        return payload if opcode in (CONTINUATION, TEXT, BINARY) else b""


def connect(client: Client, path: str) -> WebSocket:
    """Open a WebSocket at a path.

    Raises:
        DaemonProtocolError: the daemon's half of the handshake is wrong.
        QsupError: the daemon refused, with its reason.
    """
    key = binascii.b2a_base64(os.urandom(16), newline=False)
    headers = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key.decode('ascii')}\r\n"
    )
    connection, head = client.upgrade(path, headers)
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    if head.headers.get("sec-websocket-accept") != binascii.b2a_base64(digest, newline=False).decode("ascii"):
        connection.close()
        raise DaemonProtocolError("the daemon's WebSocket handshake does not answer ours")
    return WebSocket(connection)
