"""Bytes over one connected socket, each wait with its deadline.

Decides: how a peer that is slow or gone shows itself.
Must not: know HTTP or WebSocket.

Not trio's `SocketStream`: that one goes through the scheduler once more for every send and receive, which is a sixth of
the cost of a small request. Here `Transport.receive` always lets other tasks run, `Transport.send_all` only when it
has to wait.
"""

from __future__ import annotations

import fcntl
import math
import select
import socket
import struct
import termios
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_INT = struct.Struct("i")
#: Bytes asked for at once. With h11's own bound this also bounds a header that arrives in one piece.
CHUNK = 16384


class PeerLeft(Exception):
    """The peer closed, or takes nothing more: there is nobody left to answer."""


class Transport:
    """A connected stream socket, closed by `close`."""

    __slots__ = ("_sock", "_unsent", "torn")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._unsent = 0
        #: A send ended half way: what follows would not be understood.
        self.torn = False

    async def receive(self, deadline: float) -> bytes:
        """Wait for bytes until ``deadline`` (trio's clock; infinity costs nothing).

        Returns:
            At most `CHUNK` bytes, ``b""`` once the peer will send no more.

        Raises:
            trio.TooSlowError: the deadline passed.
            PeerLeft: the connection was reset.
        """
        try:
            try:
                data = self._sock.recv(CHUNK)
            except BlockingIOError:
                if deadline == math.inf:
                    await trio.lowlevel.wait_readable(self._sock)
                else:
                    with trio.fail_at(deadline):
                        await trio.lowlevel.wait_readable(self._sock)
                return self._sock.recv(CHUNK)
        except OSError as error:
            raise PeerLeft from error
        # a peer that always has more to say must neither keep the others waiting nor outlast its deadline
        await trio.lowlevel.checkpoint()
        if trio.current_time() > deadline:
            raise trio.TooSlowError
        return data

    async def send_all(self, data: bytes, timeout: float) -> None:
        """Send all of ``data`` within ``timeout`` seconds. Not a checkpoint while the socket's buffer has room.

        Raises:
            PeerLeft: it closed, or does not read.
        """
        if self.torn:
            raise PeerLeft
        sent = self._send_nowait(data)
        if sent < len(data):
            self.torn, self._unsent = True, len(data) - sent
            try:
                with trio.fail_after(timeout):
                    await self._send_rest(memoryview(data)[sent:])
            except trio.TooSlowError as error:
                raise PeerLeft from error
            self.torn, self._unsent = False, 0

    async def _send_rest(self, rest: memoryview) -> None:
        while rest:
            await trio.lowlevel.wait_writable(self._sock)
            rest = rest[self._send_nowait(rest) :]

    def _send_nowait(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PeerLeft from error

    def backlog(self) -> int:
        """Bytes that the peer has been sent, or is being sent, and has not read."""
        try:
            (in_kernel,) = _INT.unpack(fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(_INT.size)))
        except (OSError, ValueError):  # closed
            return 0
        return self._unsent + int(in_kernel)

    def has_hung_up(self) -> bool:
        """Whether the peer closed both directions; one that only shut down its sending side still reads."""
        poll = select.poll()
        poll.register(self._sock, 0)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the socket; any task that waits on it gets `trio.ClosedResourceError`."""
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


async def run_while(wait_left: Callable[[], Awaitable[None]], fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """``await fn(*args)``, cancelled when ``wait_left()`` returns.

    Raises:
        PeerLeft: it was cancelled for that. What ``fn`` raises comes as it is, not in a group.
    """
    results: list[T] = []
    failure: Exception | None = None

    async def cancel_when_left(scope: trio.CancelScope) -> None:
        await wait_left()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_when_left, nursery.cancel_scope)
        try:
            results.append(await fn(*args))
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not results:
        raise PeerLeft
    return results[0]
