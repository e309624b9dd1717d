"""Tests of `qsup.host.listener`: whose socket is replaced and whose is not."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from qsup.errors import AlreadyRunning, ConfigError, HostError
from qsup.host.listener import listening


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the socket is to be."""
    return tmp_path / "api.sock"


def connect(path: Path) -> None:
    """Connect once; raises what the kernel says."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_socket_is_private_and_goes_at_the_end(path: Path) -> None:
    """It takes connections, is open to its user alone where no group is named, and its path goes with it."""
    with listening(path, frozenset()):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        connect(path)
    assert not path.exists()


@pytest.mark.root
def test_members_of_the_group_may_connect(path: Path) -> None:
    """With a group, its members may connect and nobody else."""
    with listening(path, frozenset({720_001})):
        assert (stat.S_IMODE(path.lstat().st_mode), path.lstat().st_gid) == (0o660, 720_001)


def test_socket_of_a_dead_daemon_is_replaced(path: Path) -> None:
    """A socket that refuses connections is nobody's any more."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    with listening(path, frozenset()):
        connect(path)


def test_socket_of_a_living_daemon_stays(path: Path) -> None:
    """Who listens there is named and goes on, whether or not its backlog has room."""
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen(0)
        with (
            pytest.raises(AlreadyRunning, match=rf"\(pid {os.getpid()}\) listens on {path}"),
            listening(path, frozenset()),
        ):
            pytest.fail("took a living daemon's socket")
        with pytest.raises(AlreadyRunning, match=f"somebody listens on {path}"), listening(path, frozenset()):
            pytest.fail("took a living daemon's socket")
        assert path.is_socket()
        living.accept()[0].close()
        connect(path)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_stays(path: Path, kind: str) -> None:
    """A file, a directory, a link in the way: refused by name, and left as it is."""
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("elsewhere")
    else:
        path.write_text("precious")
    before = path.lstat()
    with pytest.raises(ConfigError, match=f"{path} is there, and is no socket"), listening(path, frozenset()):
        pytest.fail("replaced it")
    assert path.lstat() == before


def test_datagram_socket_stays(path: Path) -> None:
    """A living socket of another type is somebody's too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as living:
        living.bind(str(path))
        with pytest.raises(HostError, match=f"could not listen on {path}"), listening(path, frozenset()):
            pytest.fail("replaced it")
        assert path.is_socket()


def test_successors_socket_stays_at_the_end(path: Path) -> None:
    """What another daemon put in its place meanwhile is not removed at the end."""
    with socket.socket(socket.AF_UNIX) as successor:
        with listening(path, frozenset()):
            path.unlink()
            successor.bind(str(path))
            successor.listen()
        connect(path)
    with listening(path, frozenset()):
        path.unlink()
    assert not path.exists()
