"""The text console: one connection to QEMU, any number of watchers, one of whom types.

Decides: who may type, and how much history a new watcher sees.
Must not: interpret what the guest writes; it is hostile and goes to terminals as it is, by the viewer's own choice.

A watcher is a position in the ring of recent output. One that falls behind the ring goes on at its oldest byte, so it
costs nothing and delays nobody.

For the next daemon what came is appended to a bounded file in the run directory: a second later, or when the connection
or the daemon ends. A guest that writes without end costs no more than `_KEEP_RATE`. Each life begins with a mark.
"""

from __future__ import annotations

import re
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import trio

from qsup.errors import BusyError, DeniedError
from qsup.host.output import RING_SIZE, BoundedLog, Chunk, Feed
from qsup.pace import Pace

_CHUNK = 32 * 1024
_SEND_TIMEOUT = 10.0
#: Bytes of output taken in per second, after a burst; beyond that the guest's console is as slow as a slow line.
_RATE, _BURST = 4 << 20, 1 << 20
#: What taking in any piece costs beside its bytes: a guest that writes byte by byte costs more than one that does not.
_PIECE = 16 << 10
#: Seconds after which what came is written down for the next daemon, and bytes of that per second beyond.
_KEEP_DELAY, _KEEP_RATE = 1.0, 16 << 10
#: What parts one life's output from the next one's. A guest that writes the same itself cuts its own last words short.
_MARK = re.compile(rb"\r\n--- qsup: [\w.@-]+ started [\w:-]+ ---\r\n")

#: Seconds between two looks whether anything is left to take in.
_CATCH_UP_PAUSE = 0.001


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


class ConsoleHub:
    """The console of one VM, over all its lives; history goes on when the VM starts anew, and under the next daemon.

    Args:
        name: the VM's.
        on_change: called when who watches or types has changed.
        log: where the history is kept.
    """

    def __init__(self, name: str, on_change: Callable[[], None], log: BoundedLog) -> None:
        self._name = name
        self._on_change = on_change
        self._log = log
        log.on_change = on_change
        self._feed = Feed()
        self._is_known = False  # what earlier daemons kept has been read
        self._kept = 0
        self._stream: trio.SocketStream | None = None
        self._sending = trio.Lock()
        self._writer: Attachment | None = None
        self.watchers = 0

    @property
    def has_writer(self) -> bool:
        """Whether a client may type now."""
        return self._writer is not None

    @property
    def troubles(self) -> tuple[str, ...]:
        """What does not work of it, one sentence each."""
        problem = self._log.problem
        return (f"what the guest writes on its console is not kept: {problem}",) if problem else ()

    def connect(self, connected: socket.socket, *, begins: bool) -> int:
        """Take over a connection to QEMU's console; `pump` then reads from it.

        Args:
            begins: with it the VM's life, whose output is marked off from the last one's.

        Returns:
            Where in the console's output the life begins, for `wait_text`.
        """
        self._recall()
        self._write_down(self._feed)
        history = bytes(self._feed.ring)
        feed = self._feed = Feed()
        feed.append(history)
        self._kept = feed.ring.end
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
        if not begins:
            return self.last_start()
        if history:
            feed.append(b"\r\n--- qsup: %b started %b ---\r\n" % (self._name.encode(), _now()))
            if not self._write_down(feed):
                self._log.remove()  # or the next daemon would take the last life's words for this one's
        return feed.ring.end

    def _recall(self) -> None:
        if not self._is_known:
            self._feed.append(self._log.read()[-RING_SIZE:])
            self._is_known, self._kept = True, self._feed.ring.end

    def history_since(self, start: int) -> bytes:
        """What the guest has written since a place in the output, as far as it is kept."""
        return self._feed.ring.since(start)

    def last_start(self) -> int:
        """Where in the output the present life begins, or the last one; an earlier daemon may have heard more of it."""
        self._recall()
        ring = self._feed.ring
        return ring.start + _start_of_life(bytes(ring))

    def forget(self) -> None:
        """There is no such VM any more."""
        self._log.remove()

    async def catch_up(self, seconds: float) -> None:
        """Take in what QEMU has already handed over, for no longer than that."""
        with trio.move_on_after(seconds):
            while self._has_more():  # noqa: ASYNC110  # only the socket knows that nothing is left in it
                await trio.sleep(_CATCH_UP_PAUSE)

    def _has_more(self) -> bool:
        return self._stream is not None and _is_readable(self._stream.socket.fileno())

    async def pump(self) -> None:
        """Take in the console's output until QEMU closes it."""
        stream, feed = self._stream, self._feed
        if stream is None:
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep, feed)
                await _take_in(stream, feed)
                nursery.cancel_scope.cancel()
        finally:
            if self._stream is stream:
                self._stream = None
            feed.close()
            self._write_down(feed)
            with trio.CancelScope(shield=True):
                await stream.aclose()

    async def _keep(self, feed: Feed) -> None:
        while await feed.wait_beyond(self._kept):
            await trio.sleep(_KEEP_DELAY)
            count = min(feed.ring.end - self._kept, RING_SIZE)
            self._write_down(feed)
            await trio.sleep(count / _KEEP_RATE)

    def _write_down(self, feed: Feed) -> bool:
        """Have the log hold all that came; what could not be written is tried again with what comes next."""
        if feed is not self._feed or feed.ring.end == self._kept:
            return True
        lost = self._log.lost
        self._log.write(feed.ring.since(self._kept))
        self._log.close()  # a descriptor for each VM that is quiet mostly would be a waste
        if self._log.lost > lost:
            return False
        self._kept = feed.ring.end
        return True

    async def wait_text(self, text: bytes, *, start: int) -> bool:
        """Wait until the guest has written ``text`` (at least one byte) after offset ``start``.

        Returns:
            ``False`` when the console was closed before.
        """
        tail = b""
        async for chunk in self._feed.follow(start):
            tail = (b"" if chunk.lost else tail) + chunk.data
            if text in tail:
                return True
            tail = tail[max(0, len(tail) - len(text) + 1) :]
        return False

    @asynccontextmanager
    async def attach(self, *, write: bool) -> AsyncIterator[Attachment]:
        """Watch the console from its recent history on, and type if ``write``.

        Raises:
            DeniedError: the VM is not running, so there is no console.
            BusyError: another client types.
        """
        if self._stream is None:
            raise DeniedError("its console is not open", instance=self._name, hint="start it first")
        if write and self._writer is not None:
            raise BusyError("another client is typing on its console", instance=self._name, hint="watch it instead")
        attachment = Attachment(self, self._feed.follow(self._feed.ring.start), is_writer=write)
        if write:
            self._writer = attachment
        self.watchers += 1
        self._on_change()
        try:
            yield attachment
        finally:
            self.watchers -= 1
            if self._writer is attachment:
                self._writer = None
            self._on_change()

    async def send(self, data: bytes) -> None:
        """Type into the guest.

        Raises:
            DeniedError: the console is closed.
            BusyError: the guest does not read.
        """
        stream = self._stream
        if stream is None:
            raise DeniedError("its console is closed", instance=self._name)
        with trio.move_on_after(_SEND_TIMEOUT) as scope:
            async with self._sending:
                try:
                    await stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise DeniedError("its console is closed", instance=self._name) from error
        if scope.cancelled_caught:
            raise BusyError("its guest does not read what is typed", instance=self._name)


async def _take_in(stream: trio.SocketStream, feed: Feed) -> None:
    pace = Pace(rate=_RATE, burst=_BURST)
    try:
        while data := await stream.receive_some(_CHUNK):
            feed.append(data)
            await pace.spend(len(data) + _PIECE)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # QEMU's end; the process watcher says why


def _start_of_life(history: bytes) -> int:
    return max((mark.end() for mark in _MARK.finditer(history)), default=0)


def _now() -> bytes:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()


class Attachment:
    """One client on a console."""

    def __init__(self, hub: ConsoleHub, output: AsyncIterator[Chunk], *, is_writer: bool) -> None:
        self.is_writer = is_writer
        self._hub = hub
        self._output = output

    async def receive(self) -> bytes:
        """The next output, at first the recent history; ``b""`` once QEMU has closed the console."""
        async for chunk in self._output:
            return chunk.data
        return b""

    async def send(self, data: bytes) -> None:
        """Type into the guest.

        Raises:
            DeniedError: this client only watches, or the console is closed.
            BusyError: the guest does not read.
        """
        if not self.is_writer:
            raise DeniedError("this client only watches the console")
        await self._hub.send(data)
