"""The console: what a guest writes is taken in at a pace, what a person types is not delayed."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from qsup.host.output import LOG_SIZE, RING_SIZE, BoundedLog
from qsup.instance.console import ConsoleHub

SECONDS = 4.0


def console(directory: Path) -> ConsoleHub:
    """One that keeps its history there."""
    return ConsoleHub("web", lambda: None, BoundedLog(directory / "web.log"))


@asynccontextmanager
async def pumped(tmp_path: Path, *, begins: bool = True) -> AsyncIterator[tuple[ConsoleHub, socket.socket]]:
    """A console whose guest is the other end of a socket pair, and its pump."""
    hub = console(tmp_path)
    ours, guest = socket.socketpair()
    guest.setblocking(False)
    hub.connect(ours, begins=begins)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.pump)
        with guest:
            yield hub, guest
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("piece", "pause"), [(1, 0.0005), (32 << 10, 0.002)])
async def test_a_flood_is_read_at_a_pace(
    tmp_path: Path, piece: int, pause: float, autojump_clock: trio.testing.MockClock
) -> None:
    """However a guest cuts what it writes without end, each second has a bounded number of pieces and of bytes."""
    pieces = taken = 0
    async with pumped(tmp_path) as (hub, guest), hub.attach(write=False) as watcher:

        async def flood() -> None:
            while True:
                with suppress(BlockingIOError):
                    guest.send(b"x" * piece)
                await trio.sleep(pause)  # virtual time

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            with trio.move_on_after(SECONDS):
                while True:
                    taken += len(await watcher.receive())
                    pieces += 1
            nursery.cancel_scope.cancel()
    assert 0 < pieces < 300 * SECONDS
    assert taken < SECONDS * (5 << 20)


async def test_single_characters_come_at_once(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """The echo of each key of somebody who types fast is there without any wait."""
    async with pumped(tmp_path) as (hub, guest), hub.attach(write=True) as typist:
        for _ in range(200):
            began = trio.current_time()
            guest.send(b"k")
            assert await typist.receive() == b"k"
            assert trio.current_time() == began
            await trio.sleep(0.03)  # virtual time


async def test_what_was_written_before_is_taken_in_first(tmp_path: Path) -> None:
    """Whoever asks for the last words has all that QEMU had handed over; a guest that writes on holds nobody up."""
    hub = console(tmp_path)
    ours, guest = socket.socketpair()
    start = hub.connect(ours, begins=True)
    with guest:
        guest.send(b"panic")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.pump)
            await hub.catch_up(5.0)
            assert hub.history_since(start) == b"panic"
            nursery.cancel_scope.cancel()
    # nobody takes it in: not longer than was said
    ours, guest = socket.socketpair()
    with guest:
        hub.connect(ours, begins=True)
        guest.send(b"x")
        with trio.fail_after(5):
            await hub.catch_up(0.01)
    ours.close()


MARK = rb"\r\n--- qsup: web started \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ---\r\n"


def kept(directory: Path) -> bytes:
    """What the next daemon would know."""
    return BoundedLog(directory / "web.log").read()


def last_life(hub: ConsoleHub) -> bytes:
    """What the guest wrote in its last life, or writes in this one."""
    return hub.history_since(hub.last_start())


def sizes(directory: Path) -> list[int]:
    """Of the files in a directory."""
    return [path.stat().st_size for path in directory.iterdir()]


async def test_history_goes_on_under_the_next_daemon(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """It is written down after a second and at the end; each life but the first is marked off from the one before."""
    async with pumped(tmp_path) as (hub, guest):
        guest.send(b"one")
        await trio.sleep(0.9)  # virtual time
        assert kept(tmp_path) == b""
        guest.send(b" more")
        await trio.sleep(0.2)  # virtual time
        assert kept(tmp_path) == b"one more"
        guest.send(b" last")
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert kept(tmp_path) == b"one more last"
    async with pumped(tmp_path, begins=False) as (hub, guest), hub.attach(write=False) as watcher:
        assert await watcher.receive() == b"one more last"
        guest.send(b" two")
        assert await watcher.receive() == b" two"
        assert hub.history_since(0) == last_life(hub) == b"one more last two"
    async with pumped(tmp_path) as (hub, guest), hub.attach(write=False) as watcher:
        assert re.fullmatch(b"one more last two" + MARK, await watcher.receive())
        assert re.fullmatch(b"one more last two" + MARK, kept(tmp_path)), "the mark does not wait"
        assert last_life(hub) == b""
        guest.send(b"three")
        assert await watcher.receive() == b"three"
    later = console(tmp_path)
    assert last_life(later) == b"three"
    ours, guest = socket.socketpair()
    with guest, ours:
        start = later.connect(ours, begins=False)
        assert later.history_since(start) == b"three"
    later.forget()
    assert sizes(tmp_path) == []
    assert last_life(console(tmp_path)) == b""


async def test_a_life_goes_on_in_the_same_daemon(tmp_path: Path) -> None:
    """What came before the connection was made anew is kept once, whether or not it had been written down."""
    hub = console(tmp_path)
    for text in (b"one", b"two"):
        ours, guest = socket.socketpair()
        with guest:
            hub.connect(ours, begins=True)
            guest.send(text)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hub.pump)
                await hub.catch_up(5.0)
                nursery.cancel_scope.cancel()
    assert re.fullmatch(b"one" + MARK + b"two", kept(tmp_path))


async def test_a_flood_costs_little_to_keep(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that writes without end has its newest output kept, in bounded files and at a bounded rate."""
    written: list[int] = []
    write = BoundedLog.write

    def count(log: BoundedLog, data: bytes) -> None:
        written.append(len(data))
        write(log, data)

    monkeypatch.setattr(BoundedLog, "write", count)
    async with pumped(tmp_path) as (hub, guest):
        with trio.move_on_after(60):  # virtual time
            while True:
                with suppress(BlockingIOError):
                    guest.send(b"%010d" % trio.current_time() * 1000)
                await trio.sleep(0.01)  # virtual time
        newest = last_life(hub)[-1000:]
    assert sum(written) < 60 * (16 << 10) + 2 * RING_SIZE
    assert len(written) <= 62
    assert newest in kept(tmp_path)
    assert sum(sizes(tmp_path)) <= 2 * LOG_SIZE


async def test_what_cannot_be_written_is_written_later(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A directory that is not there stands for a disk that is full."""
    directory = tmp_path / "console"
    async with pumped(directory) as (_hub, guest):
        guest.send(b"one")
        await trio.sleep(2)  # virtual time
        directory.mkdir()
        await trio.sleep(2)  # virtual time
        assert kept(directory) == b"one"


async def test_a_mark_that_cannot_be_kept_costs_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the next daemon would take the last life's words for those of this one."""
    (tmp_path / "web.log").write_bytes(b"of the last life")

    def fail(log: BoundedLog, data: bytes) -> None:
        log.lost += len(data)

    monkeypatch.setattr(BoundedLog, "write", fail)
    hub = console(tmp_path)
    ours, guest = socket.socketpair()
    with guest, ours:
        hub.connect(ours, begins=True)
    assert last_life(console(tmp_path)) == b""
