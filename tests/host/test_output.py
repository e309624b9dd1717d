"""Tests of `qsup.host.output`: a bounded history of whatever is printed, and never a blocked writer."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import HostError
from qsup.host import output as module
from qsup.host.output import (
    LOG_SIZE,
    RING_SIZE,
    BoundedLog,
    Chunk,
    Feed,
    Output,
    Ring,
    feed_of,
    follow_lines,
    last_lines,
    printable,
)
from tests.host.full import full_file_system
from tests.host.test_opening import OBSTACLES
from tests.waiting import wait_until


@given(st.integers(1, 20), st.lists(st.binary(max_size=30)))
def test_ring_keeps_the_last_bytes(capacity: int, pieces: list[bytes]) -> None:
    """Whatever the pieces, a ring holds the stream's last bytes and knows their offsets."""
    ring = Ring(capacity)
    stream = b""
    for piece in pieces:
        ring.append(piece)
        stream += piece
        assert bytes(ring) == stream[-capacity:]
        assert (ring.start, ring.end) == (len(stream) - len(bytes(ring)), len(stream))
    for offset in range(len(stream) + 1):
        assert ring.since(offset) == stream[max(offset, ring.start) :]


async def test_followers_get_everything_in_order() -> None:
    """Several followers each get the whole stream from where they began, until it is closed."""
    feed = Feed()
    feed.append(b"before ")
    got: dict[str, bytes] = {"all": b"", "new": b""}

    async def follow(name: str, offset: int | None) -> None:
        async for chunk in feed.follow(offset):
            assert not chunk.lost
            got[name] += chunk.data

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, "all", 0)
        nursery.start_soon(follow, "new", None)
        for word in (b"one ", b"two ", b"three"):
            await trio.testing.wait_all_tasks_blocked()
            feed.append(word)
        feed.close()
    assert got == {"all": b"before one two three", "new": b"one two three"}


async def test_slow_follower_is_told_what_it_lost() -> None:
    """A follower that comes late gets what is still kept, with the number of bytes that are gone."""
    feed = Feed(capacity=10)
    follower = feed.follow(0)
    feed.append(b"0123456789abcdef")
    assert await anext(follower) == Chunk(data=b"6789abcdef", lost=6)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain \t text\r\n", "plain \t text\n"),
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07after", "after"),
        (b"\x1b]0;title\x1b\\after", "after"),
        (b"\x1b]0;never ended\nnext line", "\nnext line"),
        (b"\x1bP1;2|data\x1b\\x", "x"),
        (b"bell\x07 back\x08 null\x00 del\x7f", "bell back null del"),
        (b"\xc2\x9b31mC1", "31mC1"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("over\u202eride".encode(), "override"),
        (b"\x1b", ""),
        (b"a\rb", "ab"),
    ],
)
def test_printable_text_cannot_steer_a_terminal(raw: bytes, shown: str) -> None:
    """Escape sequences and control characters are taken out, and nothing else."""
    assert printable(raw) == shown


@given(st.binary())
def test_printable_text_has_no_control_characters(data: bytes) -> None:
    """From no bytes whatever does a control character come out, but for tab and newline."""
    assert not [char for char in printable(data) if unicodedata.category(char) == "Cc" and char not in "\t\n"]


def test_a_long_line_is_cut() -> None:
    """One without an end fills nobody's terminal."""
    assert last_lines(b"first\n" + b"y" * 98_000, 2) == ["first", "y" * 4096]


def test_last_lines() -> None:
    """The last lines come without their newlines; of nothing there are none."""
    assert last_lines(b"a\nb\nc\n", 2) == ["b", "c"]
    assert last_lines(b"a\nb", 5) == ["a", "b"]
    assert last_lines(b"", 5) == last_lines(b"a", 0) == []


@given(st.lists(st.integers(0, 3 * LOG_SIZE), max_size=6))
def test_log_is_bounded(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    """However much is written at once or in all, the log's two files stay bounded and end with the last bytes."""
    directory = tmp_path_factory.mktemp("log")
    log = BoundedLog(directory / "web.log")
    written = b""
    for index, size in enumerate(sizes):
        piece = bytes([65 + index]) * size
        log.write(piece)
        written += piece
    log.close()
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 2 * LOG_SIZE
    kept = log.read()
    assert written.endswith(kept)
    assert len(kept) >= min(len(written), LOG_SIZE)


@pytest.mark.root
def test_log_on_a_full_disk_fails_nobody(tmp_path: Path) -> None:
    """A log that cannot be written counts what it lost and goes on once there is room."""
    with full_file_system(tmp_path) as full:
        log = BoundedLog(full.path / "web.log")
        full.fill()
        log.write(b"x" * 30_000)
        assert log.lost > 0
        assert log.problem == f"{log.path}: No space left on device"
        full.make_room()
        log.write(b"and on")
        log.close()
        assert log.read().endswith(b"and on")
        assert log.problem == ""


@pytest.mark.parametrize("kind", OBSTACLES)
def test_what_is_no_log_is_neither_waited_for_nor_followed(tmp_path: Path, kind: str) -> None:
    """A FIFO, a link...: nothing is read or written, and the problem named until it is gone."""
    log = BoundedLog(tmp_path / "web.log")
    told: list[str] = []
    log.on_change = lambda: told.append(log.problem)
    OBSTACLES[kind](log.path)
    assert log.read() == b""
    log.write(b"lost")
    assert log.lost == 4
    assert told == [f"{log.path}: web.log is {kind} and not a regular file"]
    assert kind != "a symbolic link" or (tmp_path / "target").read_bytes() == b"untouched"
    log.remove()
    if kind == "a directory":
        log.path.rmdir()
    log.write(b"kept")
    log.close()
    assert (log.read(), told[1:]) == (b"kept", [""])


async def test_what_stands_in_the_place_of_the_fifo_costs_a_running_qemu_its_words_alone(tmp_path: Path) -> None:
    """It is taken over without them, and says so; one that is to be started is not."""
    (tmp_path / "output").write_text("in the way")
    with pytest.raises(HostError, match="is a regular file and not a FIFO"):
        Output(tmp_path / "output", tmp_path / "web.log")
    output = Output(tmp_path / "output", tmp_path / "web.log", adopted=True)
    assert output.troubles == (f"what QEMU prints is lost: {tmp_path}/output: output is a regular file and not a FIFO",)
    with trio.fail_after(5):
        await output.run()
    output.drain()
    output.close()
    assert (tmp_path / "output").read_text() == "in the way"


@asynccontextmanager
async def running_output(directory: Path) -> AsyncIterator[Output]:
    """An output with its reader."""
    output = Output(directory / "output", directory / "web.log")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(output.run)
            yield output
            nursery.cancel_scope.cancel()
    finally:
        output.close()


def write_to(output: Output, data: bytes) -> None:
    """Print something as QEMU would."""
    fd = output.open_writer()
    os.write(fd, data)
    os.close(fd)


async def test_takes_in_what_is_printed(tmp_path: Path) -> None:
    """What a process prints comes to the followers, to the tail and to the log, in that order of time."""
    async with running_output(tmp_path) as output:
        follower = output.feed.follow()
        before = output.end
        write_to(output, b"first\nsecond\n")
        with trio.fail_after(5):
            assert (await anext(follower)).data == b"first\nsecond\n"
        assert output.tail(1) == ["second"]
        assert output.text_since(before) == "first\nsecond\n"
        assert output.log.path.read_bytes() == b"first\nsecond\n"


FLOOD = """
import os, sys
line = b"x" * 99 + b"\\n"
for _ in range(150):
    os.set_blocking(1, True)
    os.write(1, line * 100)
os.write(2, b"the last words\\n")
"""


async def test_flood_is_bounded_and_its_end_kept(tmp_path: Path) -> None:
    """A program that prints 1.5 MB and dies leaves bounded logs, bounded memory, and its last line."""
    async with running_output(tmp_path) as output:
        writer = output.open_writer()
        with trio.fail_after(30):
            await trio.run_process([sys.executable, "-c", FLOOD], stdout=writer, stderr=writer)
        os.close(writer)
        output.drain()
        assert output.end == 1_500_015
        assert output.tail(1) == ["the last words"]
        assert len(bytes(output.feed.ring)) == RING_SIZE
    assert log_size(tmp_path) <= 2 * LOG_SIZE


def log_size(directory: Path) -> int:
    """Bytes of all log files."""
    return sum(path.stat().st_size for path in directory.glob("web.log*"))


async def test_writer_is_never_blocked_nor_killed(tmp_path: Path) -> None:
    """Nobody reads: a program prints what fits, is told that no more does, and lives."""
    output = Output(tmp_path / "output", tmp_path / "log")
    writer = output.open_writer()
    script = "import os\ntry:\n  while os.write(1, b'x' * 4096): pass\nexcept BlockingIOError: print(end='')\n"
    with trio.fail_after(10):
        await trio.run_process([sys.executable, "-c", script], stdout=writer)
    os.close(writer)
    output.close()
    assert output.end >= 64 << 10


async def test_flood_is_read_at_a_pace(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is printed without end a bounded amount is taken in each second; a line after a rest comes at once."""
    monkeypatch.setattr(module, "_RATE", 4 << 20)
    monkeypatch.setattr(module, "_BURST", 4 << 20)
    async with running_output(tmp_path) as output:
        writer = output.open_writer()
        seconds = 5
        with trio.move_on_after(seconds):
            while True:
                with suppress(BlockingIOError):
                    os.write(writer, b"x" * 4096)
                    continue
                await trio.sleep(0.01)  # virtual time
        # the FIFO's content, a burst, and no more than the rate
        assert output.end < (1 + 4 + 4 * seconds) << 20
        await trio.sleep(10)  # virtual time
        follower = output.feed.follow()
        began = trio.current_time()
        os.write(writer, b"a line\n")
        assert (await anext(follower)).data == b"a line\n"
        assert trio.current_time() == began
        os.close(writer)


async def test_draining_ends_though_somebody_prints_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end of an output is no end of a process that keeps printing into it: no more is taken than a FIFO holds."""
    output = Output(tmp_path / "output", tmp_path / "log")
    writer = output.open_writer()
    real = os.read

    def read_and_refill(fd: int, size: int) -> bytes:
        data = real(fd, size)
        os.write(writer, b"x" * len(data))
        return data

    os.write(writer, b"x" * 4096)
    monkeypatch.setattr(os, "read", read_and_refill)
    output.drain()
    monkeypatch.undo()
    os.close(writer)
    output.close()


async def test_restarted_daemon_reads_what_was_printed_meanwhile(tmp_path: Path) -> None:
    """What QEMU printed while no daemon was there, and what the log held before, are both in the history."""
    first = Output(tmp_path / "output", tmp_path / "log")
    qemu = first.open_writer()
    os.write(qemu, b"early\n")
    first.drain()
    first.close()
    os.write(qemu, b"meanwhile\n")
    second = Output(tmp_path / "output", tmp_path / "log")
    second.drain()
    os.close(qemu)
    assert second.tail(2) == ["early", "meanwhile"]
    second.close()


async def test_closing_ends_the_reader_and_the_last_line(tmp_path: Path) -> None:
    """Closing takes in the last words, makes a line of them, ends the reader, and may be done twice."""
    output = Output(tmp_path / "output", tmp_path / "log")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(output.run)
            await trio.testing.wait_all_tasks_blocked()
            write_to(output, b"last words")
            output.close()
            output.close()
    assert output.log.path.read_bytes() == b"last words\n"


async def test_followers_go_on_with_the_next_qemu(tmp_path: Path) -> None:
    """Lines come from before the first QEMU on, through its end, and from the next one; no history is repeated."""
    log = BoundedLog(tmp_path / "log")
    log.write(b"history\n")
    log.close()
    got: list[str] = []
    async with aclosing(follow_lines(feed_of(log).follow())) as lines:
        for words in (b"first\n", b"last words", b"again\n"):
            output = Output(tmp_path / "output", tmp_path / "log")
            write_to(output, words)
            output.close()
            del output
            with trio.fail_after(5):
                got.append(await anext(lines))
    assert got == ["first", "last words", "again"]


async def pieces(*chunks: Chunk) -> AsyncGenerator[Chunk, None]:
    """A stream that is followed."""
    for chunk in chunks:
        yield chunk


async def test_a_line_is_whole_however_it_comes() -> None:
    """Characters cut in two survive, a long line is cut, and what follows a loss is a line by itself."""
    snowman = "\u2603".encode()
    chunks = (
        *(Chunk(data=bytes([byte])) for byte in snowman + b"\n"),
        *(Chunk(data=snowman * 1000) for _ in range(10)),
        Chunk(data=b"\nforgotten"),
        Chunk(data=b"known\n", lost=3),
    )
    async with aclosing(pieces(*chunks)) as stream:
        lines = [line async for line in follow_lines(stream)]
    assert lines == ["\u2603", "\u2603" * 4096, "known"]


async def test_idle_reader_sleeps(tmp_path: Path) -> None:
    """Without anything printed the reader waits, also after writers have come and gone."""
    async with running_output(tmp_path) as output:
        write_to(output, b"x")
        await wait_until(lambda: output.end == 1, "the byte has come")
        with trio.fail_after(5):
            await trio.testing.wait_all_tasks_blocked(0.01)
