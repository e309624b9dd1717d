"""Connecting: which failures pass, which do not, and how long the path may be."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from qsup.errors import MonitorConnectError, MonitorProtocolError
from qsup.qmp.dial import connect_monitor, connect_unix
from tests.qmp.player import Fault, Player, faithful
from tests.qmp.support import TIMEOUT, listening, served
from tests.recordings.recording import load

SESSION = load("session")
SHORT = 0.2


@pytest.fixture
def long_path(tmp_path: Path) -> Path:
    """A socket's path far beyond the 107 bytes of unix(7)."""
    directory = tmp_path / ("d" * 200)
    directory.mkdir()
    return directory / "qmp.sock"


async def test_a_path_may_be_longer_than_a_socket_address(nursery: trio.Nursery, long_path: Path) -> None:
    """Run directories may be deep."""
    assert len(os.fsencode(long_path)) > 107
    before = len(os.listdir("/proc/self/fd"))
    with served(long_path, Player(faithful(SESSION))):
        monitor = await connect_monitor(nursery, long_path, name="web", timeout=TIMEOUT)
        assert await monitor.execute("query-status", timeout=TIMEOUT)
        await monitor.aclose()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_connected_socket_is_not_inherited(long_path: Path) -> None:
    """No QEMU gets another's monitor."""
    with listening(long_path), connect_unix(long_path) as stream:
        assert not stream.get_inheritable()
        assert not stream.getblocking()


async def test_nobody_listening_is_told_at_once(nursery: trio.Nursery, tmp_path: Path) -> None:
    """The daemon's own listener was there before QEMU: what is gone does not come back."""
    path = tmp_path / "qmp.sock"
    with pytest.raises(MonitorConnectError, match="No such file"):
        await connect_monitor(nursery, path, name="web", timeout=TIMEOUT)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(MonitorConnectError, match="Connection refused"):
        await connect_monitor(nursery, path, name="web", timeout=TIMEOUT)


async def test_a_full_backlog_is_tried_again_until_there_is_room(nursery: trio.Nursery, tmp_path: Path) -> None:
    """QEMU serves one client; while others wait the next gets EAGAIN."""
    path = tmp_path / "qmp.sock"
    with listening(path, backlog=0) as listener:
        waiting = connect_unix(path)
        with pytest.raises(BlockingIOError):
            connect_unix(path).close()
        with pytest.raises(MonitorConnectError, match="busy"):
            await connect_monitor(nursery, path, name="web", timeout=SHORT)
        async with trio.open_nursery() as tasks:
            monitors = []

            async def connect() -> None:
                monitors.append(await connect_monitor(nursery, path, name="web", timeout=TIMEOUT))

            tasks.start_soon(connect)
            await trio.testing.wait_all_tasks_blocked()
            listener.accept()[0].close()
            waiting.close()
            thread = threading.Thread(target=_serve_next, args=(listener,))
            thread.start()
        assert await monitors[0].execute("query-status", timeout=TIMEOUT)
        await monitors[0].aclose()
        thread.join(TIMEOUT)


def _serve_next(listener: socket.socket) -> None:
    Player(faithful(SESSION)).serve(listener.accept()[0])


@pytest.mark.parametrize("name", ["dead", "stillborn"])
async def test_a_qemu_that_dies_of_its_command_line_is_no_busy_one(
    nursery: trio.Nursery, tmp_path: Path, name: str
) -> None:
    """Its end comes before, or right after, the greeting; either is told at once."""
    recording = load(name)
    passages = [entry.data for entry in recording.entries if entry.data]
    path = tmp_path / "qmp.sock"
    with listening(path) as listener:

        def die() -> None:
            with listener.accept()[0] as client:
                client.sendall(b"".join(line + b"\r\n" for line in passages))
            listener.close()

        thread = threading.Thread(target=die)
        thread.start()
        with pytest.raises(MonitorConnectError):
            await connect_monitor(nursery, path, name="web", timeout=TIMEOUT)
        thread.join(TIMEOUT)


async def test_a_listener_that_dies_before_it_accepts_is_a_dead_qemu(nursery: trio.Nursery, tmp_path: Path) -> None:
    """The kernel resets what was never accepted; trying again then finds nobody."""
    path = tmp_path / "qmp.sock"
    with listening(path) as listener:
        nursery.start_soon(_close_once_connected, listener)
        with pytest.raises(MonitorConnectError, match="Connection refused"):
            await connect_monitor(nursery, path, name="web", timeout=TIMEOUT)


async def _close_once_connected(listener: socket.socket) -> None:
    listener.setblocking(False)
    await trio.lowlevel.wait_readable(listener)
    listener.close()


async def test_a_refused_negotiation_is_tried_again(nursery: trio.Nursery, tmp_path: Path) -> None:
    """What a client before us left behind may be in the way once."""
    refusal = SESSION.answers("no-such-command")[0][0]

    def refuse(lines: list[bytes]) -> Iterator[bytes]:
        answer = lines[0].replace(b'"return": {}', refusal[refusal.index(b'"error"') : -1])
        yield answer + b"\r\n"

    refusing = Fault(name="refusing", recording=SESSION, at="qmp_capabilities", change=refuse)
    path = tmp_path / "qmp.sock"
    with served(path, Player(refusing), Player(faithful(SESSION))):
        monitor = await connect_monitor(nursery, path, name="web", timeout=TIMEOUT)
        await monitor.aclose()


async def test_what_is_not_qmp_is_not_tried_again(nursery: trio.Nursery, tmp_path: Path) -> None:
    """A hostile peer gets one attempt."""
    path = tmp_path / "qmp.sock"
    garbage = Fault(name="garbage", recording=SESSION, at="greeting", change=lambda _lines: [b"SSH-2.0\r\n"])
    with served(path, Player(garbage)), pytest.raises(MonitorProtocolError):
        await connect_monitor(nursery, path, name="web", timeout=TIMEOUT)


async def test_a_cancelled_attempt_leaves_nothing(nursery: trio.Nursery, tmp_path: Path) -> None:
    """QEMU's death, which the driver learns by pidfd, cancels the attempt."""
    path = tmp_path / "qmp.sock"
    before = len(os.listdir("/proc/self/fd"))
    with listening(path):
        with trio.move_on_after(0.05) as scope:
            await connect_monitor(nursery, path, name="web", timeout=TIMEOUT)
        assert scope.cancelled_caught
    await trio.testing.wait_all_tasks_blocked()
    assert len(os.listdir("/proc/self/fd")) == before
