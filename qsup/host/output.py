"""What QEMU prints: taken from a FIFO that outlives the daemon, kept in memory and in a bounded log file.

Decides: how much of it is kept (64 KiB in memory, twice that on disk), and what of it a terminal may be shown.
Must not: block QEMU, ever, or fail because a log cannot be written.

QEMU's end of the FIFO is open for reading and writing and does not block: a QEMU that prints while nobody reads loses
what does not fit, and goes on. `Ring` and `Feed` serve the serial console's history as well.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

import structlog
import trio
from attrs import frozen

from qsup.errors import from_oserror, oserror_words
from qsup.host.opening import open_fifo, open_regular
from qsup.pace import Pace

_log = structlog.get_logger()

#: Bytes kept in memory of each stream.
RING_SIZE = 64 << 10
#: Bytes of the log file; there is at most one older one beside it.
LOG_SIZE = 64 << 10
_PIPE_SIZE = 1 << 20  # what a FIFO may hold without privilege (pipe(7)); the default is 64 KiB
_READ_SIZE = 256 << 10
#: Bytes taken in at a time, at most: what the log gets of them is written once.
_TURN = 4 << 20
#: Bytes taken in per second, after a burst. Of what is printed faster the FIFO loses the newest, which is what says why
#: QEMU ends: so it is as much as a few percent of a processor can take in.
_RATE, _BURST = 256 << 20, 256 << 20
#: What taking in anything costs beside its bytes.
_PIECE = 1 << 20
#: Characters of a line that followers get, and the bytes that so many may take.
_LINE_MAX, _LINE_BYTES = 4096, 4 * 4096

# CSI and OSC sequences, other escapes, then whatever control characters are left, but for tab and newline
_UNPRINTABLE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]P^_X][^\n]*?(?:\x07|\x1b\\|(?=\n)|$)|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def printable(data: bytes) -> str:
    """Bytes of a guest or of QEMU as text that cannot steer a terminal: no control characters but tab and newline."""
    return _UNPRINTABLE.sub("", data.decode(errors="replace").replace("\r\n", "\n"))


def last_lines(data: bytes, count: int) -> list[str]:
    """The last lines of a text, made printable; of a long one the beginning."""
    lines = printable(data).rstrip("\n").split("\n")[-count:] if data and count > 0 else []
    return [line[:_LINE_MAX] for line in lines]


class Ring:
    """The last bytes of a stream, by their offsets in it.

    Args:
        capacity: bytes kept.
    """

    def __init__(self, capacity: int = RING_SIZE) -> None:
        self.capacity = capacity
        self._data = bytearray()
        self._end = 0

    @property
    def start(self) -> int:
        """Offset of the first byte kept."""
        return self._end - len(self._data)

    @property
    def end(self) -> int:
        """Offset after the last byte: how much the stream has had in all."""
        return self._end

    def append(self, data: bytes) -> None:
        """Add to the stream; what is beyond the capacity goes, oldest first."""
        self._end += len(data)
        self._data += data[-self.capacity :]
        del self._data[: -self.capacity]

    def since(self, offset: int) -> bytes:
        """What came from an offset on, as far as it is kept."""
        return bytes(self._data[max(0, offset - self.start) :])

    def __bytes__(self) -> bytes:
        return bytes(self._data)


@frozen(kw_only=True)
class Chunk:
    """A piece of a followed stream: `lost` bytes were too old when the follower came for them, then `data`."""

    data: bytes
    lost: int = 0


class Feed:
    """A stream with a bounded history that any number of tasks follow, each at its own pace.

    Followers hold offsets and no queues: a slow one costs nothing and is told what it lost.
    """

    def __init__(self, capacity: int = RING_SIZE) -> None:
        self.ring = Ring(capacity)
        self._waiting = trio.lowlevel.ParkingLot()
        self._closed = False

    def append(self, data: bytes) -> None:
        """Add to the stream and wake the followers."""
        self.ring.append(data)
        self._waiting.unpark_all()

    def close(self) -> None:
        """End the stream: followers get what is left, then stop."""
        self._closed = True
        self._waiting.unpark_all()

    def follow(self, offset: int | None = None) -> AsyncIterator[Chunk]:
        """The stream from an offset on (``None``: from now on), until it is closed."""
        return _Follower(self, self.ring.end if offset is None else offset)

    async def wait_beyond(self, offset: int) -> bool:
        """Wait until the stream has more than that many bytes; ``False`` when it was closed before."""
        await trio.lowlevel.checkpoint()
        while self.ring.end <= offset and not self._closed:
            await self._waiting.park()
        return self.ring.end > offset


class _Follower:
    # a class and not a generator: one that is dropped half-way needs no closing
    def __init__(self, feed: Feed, offset: int) -> None:
        self._feed = feed
        self._offset = offset

    def __aiter__(self) -> _Follower:
        return self

    async def __anext__(self) -> Chunk:
        if not await self._feed.wait_beyond(self._offset):
            raise StopAsyncIteration
        ring = self._feed.ring
        chunk = Chunk(data=ring.since(self._offset), lost=max(0, ring.start - self._offset))
        self._offset = ring.end
        return chunk


class BoundedLog:
    """A log file of at most `LOG_SIZE` bytes, and the one before it under the name ``NAME.1``.

    A log that cannot be used is no reason to fail: `lost` counts the bytes, and `problem` names the file and says why.

    Attributes:
        on_change: called when `problem` has changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self.problem = ""
        self.on_change: Callable[[], None] = _ignore
        self._fd = -1
        self._size = 0

    def read(self) -> bytes:
        """The last `LOG_SIZE` bytes at least, as far as there are so many, of both files."""
        return b"".join(self._read_last(path, LOG_SIZE) for path in (self._older, self.path))

    def check(self) -> None:
        """Find out whether it can be read: something that is no regular file may stand in its place."""
        self._read_last(self.path, 0)

    def _read_last(self, path: Path, count: int) -> bytes:
        try:
            with open(open_regular(path), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - count))
                return file.read(count)
        except FileNotFoundError:
            return b""
        except OSError as error:  # history is a convenience
            self._find(f"{path}: {oserror_words(error)}")
            return b""

    def _find(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            if problem:
                _log.warning("a log cannot be used", why=problem)
            self.on_change()

    def write(self, data: bytes) -> None:
        """Append, beginning a new file whenever one is full."""
        try:
            self._open()
            while data:
                if self._size >= LOG_SIZE:
                    self._rotate()
                written = os.write(self._fd, data[: LOG_SIZE - self._size])
                self._size += written
                data = data[written:]
        except OSError as error:
            self.lost += len(data)
            self._find(f"{self.path}: {oserror_words(error)}")
        else:
            self._find("")

    @property
    def _older(self) -> Path:
        return self.path.with_name(f"{self.path.name}.1")

    def _open(self) -> None:
        if self._fd < 0:
            self._fd = open_regular(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        self.path.rename(self._older)
        self._open()

    def remove(self) -> None:
        """Remove both files; a later `write` makes new ones."""
        self.close()
        for path in (self.path, self._older):
            with suppress(OSError):
                path.unlink()

    def close(self) -> None:
        """Close the file; a later `write` opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _ignore() -> None:
    """Nobody wants to hear of it."""


#: The feed of each log, for as long as anybody writes or follows it: a follower outlives the QEMU that wrote.
_feeds: WeakValueDictionary[Path, Feed] = WeakValueDictionary()


def feed_of(log: BoundedLog) -> Feed:
    """The one feed of what comes into a log; its history begins with what the log holds."""
    feed = _feeds.get(log.path)
    if feed is None:
        feed = _feeds[log.path] = Feed()
        feed.append(log.read())
    return feed


async def follow_lines(chunks: AsyncIterator[Chunk]) -> AsyncGenerator[str, None]:
    """A followed stream as printable lines; of a long one the beginning, of one that was lost in part the rest."""
    rest = b""
    async for chunk in chunks:
        # characters may be cut between two pieces, so they are looked for in whole lines alone
        *lines, rest = ((b"" if chunk.lost else rest) + chunk.data).split(b"\n")
        for line in lines:
            yield printable(line)[:_LINE_MAX]
        rest = rest[:_LINE_BYTES]


class Output:
    """One QEMU's standard output and error, from its FIFO into memory and the log.

    Args:
        fifo: in the VM's run directory.
        log: the log file; its present content is the beginning of the history.
        adopted: of a QEMU that has been running: what it prints is not worth giving it up for.

    Raises:
        HostError: there is no FIFO to be had; of an adopted one only for want of descriptors and the like.
    """

    def __init__(self, fifo: Path, log: Path, *, adopted: bool = False) -> None:
        self._fifo = fifo
        self._blocked = ""
        self._fd = -1
        self.log = BoundedLog(log)
        self.feed = feed_of(self.log)
        self.log.check()
        try:
            self._fd = open_fifo(fifo)
        except OSError as error:
            if not adopted or error.errno is not None:
                raise from_oserror(error, f"could not open the FIFO {fifo}") from error
            self._blocked = f"what QEMU prints is lost: {fifo}: {error}"
            _log.warning("what QEMU prints is lost", file=str(fifo), why=str(error))

    @property
    def troubles(self) -> tuple[str, ...]:
        """What does not work of it, one sentence each."""
        unkept = f"what QEMU prints is not kept: {self.log.problem}" if self.log.problem else ""
        return tuple(filter(None, (self._blocked, unkept)))

    def open_writer(self) -> int:
        """A descriptor for QEMU to inherit, which the caller closes once it has.

        Raises:
            HostError: something else stands in its place.
        """
        try:
            fd = open_fifo(self._fifo)
        except OSError as error:
            raise from_oserror(error, f"could not open the FIFO {self._fifo}") from error
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        except OSError:
            pass  # over the user's quota of pipe memory: the usual size will do
        return fd

    async def run(self) -> None:
        """Take in whatever is printed, until cancelled or closed; one task per output."""
        pace = Pace(rate=_RATE, burst=_BURST)
        while self._fd >= 0:
            try:
                await trio.lowlevel.wait_readable(self._fd)
            except trio.ClosedResourceError:
                return
            await pace.spend(self._take() + _PIECE)

    def drain(self) -> None:
        """Take in what is in the FIFO now: after QEMU's end, its last words."""
        self._take()  # and no more: one that still prints would keep us here

    def _take(self) -> int:
        start = self.end
        try:
            while self._fd >= 0 and self.end - start < _TURN:
                self.feed.append(os.read(self._fd, _READ_SIZE))
        except BlockingIOError:
            pass  # that was all
        if self.end > start:
            self.log.write(self.feed.ring.since(start))
        return self.end - start

    @property
    def end(self) -> int:
        """How much was printed in all; noted before a spawn, it tells `text_since` where that QEMU's words begin."""
        return self.feed.ring.end

    def text_since(self, offset: int) -> str:
        """What was printed from there on, as far as it is kept, printable."""
        return printable(self.feed.ring.since(offset))

    def tail(self, count: int) -> list[str]:
        """The last lines, printable."""
        return last_lines(bytes(self.feed.ring), count)

    def close(self) -> None:
        """Take in what is left, end its last line, and give the descriptors up; FIFO, log and followers stay."""
        if self._fd >= 0:
            self.drain()
            if self.feed.ring.since(self.end - 1) not in (b"", b"\n"):
                self.feed.append(b"\n")  # whoever writes next begins a line of its own
                self.log.write(b"\n")
            trio.lowlevel.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1
            self.log.close()
