"""What the monitor's tests share.

Decides: how a monitor is put before a player.
Must not: hold an expectation.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio

from qsup.qmp.connection import LatencyHook, Monitor
from qsup.qmp.dial import start_monitor
from tests.qmp.player import DELIMITER, Fault, Player, playing

TIMEOUT = 10.0


@contextlib.asynccontextmanager
async def monitored(
    nursery: trio.Nursery, peer: Player | Fault, *, on_latency: LatencyHook | None = None
) -> AsyncIterator[Monitor]:
    """A negotiated monitor before a player, its own when only the fault is given."""
    with playing(peer if isinstance(peer, Player) else Player(peer)) as (stream,):
        monitor = await start_monitor(nursery, stream, name="web", timeout=TIMEOUT, on_latency=on_latency)
        try:
            yield monitor
        finally:
            monitor.close_nowait()


@contextlib.contextmanager
def listening(path: Path, *, backlog: int = 1) -> Iterator[socket.socket]:
    """A listener at a path of any length."""
    directory = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)
        listener.listen(backlog)
        yield listener
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def served(path: Path, *players: Player) -> Iterator[None]:
    """Players that each serve one client at a path, one after the other, the last one all further clients."""
    with listening(path) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the listener was shut down
                for player in itertools.chain(players, itertools.repeat(players[-1])):
                    player.serve(listener.accept()[0])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "the player does not end"


class Peer:
    """The other end of a monitor, worked by the test itself."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(stream))
        self._buffer = b""

    async def command(self) -> dict[str, object]:
        """Wait for the next command."""
        while b"\n" not in self._buffer:
            data = await self.stream.receive_some(65536)
            assert data, "the monitor ended the connection"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line.lstrip(DELIMITER)))

    async def say(self, *lines: bytes) -> None:
        """Send lines as they are."""
        await self.stream.send_all(b"".join(line + b"\r\n" for line in lines))

    async def answer(self, command: dict[str, object], value: object) -> None:
        """Answer a command with success."""
        await self.say(json.dumps({"return": value, "id": command["id"]}).encode())


@contextlib.asynccontextmanager
async def by_hand(nursery: trio.Nursery) -> AsyncIterator[tuple[Monitor, Peer]]:
    """A monitor without a player: the test itself says what the other end does, not even a greeting is said."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    monitor = Monitor(ours, name="web")
    nursery.start_soon(monitor.run)
    peer = Peer(theirs)
    async with peer.stream:
        try:
            yield monitor, peer
        finally:
            monitor.close_nowait()
