"""The console: what a guest writes is taken in at a pace, what a person types is not delayed."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from qsup.instance.console import ConsoleHub

SECONDS = 4.0


@asynccontextmanager
async def pumped() -> AsyncIterator[tuple[ConsoleHub, socket.socket]]:
    """A console whose guest is the other end of a socket pair, and its pump."""
    hub = ConsoleHub("web", lambda: None)
    ours, guest = socket.socketpair()
    guest.setblocking(False)
    hub.connect(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.pump)
        with guest:
            yield hub, guest
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("piece", "pause"), [(1, 0.0005), (32 << 10, 0.002)])
async def test_a_flood_is_read_at_a_pace(piece: int, pause: float, autojump_clock: trio.testing.MockClock) -> None:
    """However a guest cuts what it writes without end, each second has a bounded number of pieces and of bytes."""
    pieces = taken = 0
    async with pumped() as (hub, guest), hub.attach(write=False) as watcher:

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


async def test_single_characters_come_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """The echo of each key of somebody who types fast is there without any wait."""
    async with pumped() as (hub, guest), hub.attach(write=True) as typist:
        for _ in range(200):
            began = trio.current_time()
            guest.send(b"k")
            assert await typist.receive() == b"k"
            assert trio.current_time() == began
            await trio.sleep(0.03)  # virtual time


async def test_what_was_written_before_is_taken_in_first() -> None:
    """Whoever asks for the last words has all that QEMU had handed over; a guest that writes on holds nobody up."""
    hub = ConsoleHub("web", lambda: None)
    ours, guest = socket.socketpair()
    start = hub.connect(ours)
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
        hub.connect(ours)
        guest.send(b"x")
        with trio.fail_after(5):
            await hub.catch_up(0.01)
    ours.close()
