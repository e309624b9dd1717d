"""Tests of `qsup.host.opening`: whatever stands under a path, opening it ends at once and leads nowhere else."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from qsup.host.opening import open_fifo, open_regular

FLAGS = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_APPEND)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"untouched")
    path.symlink_to(target)


OBSTACLES: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a directory": Path.mkdir,
    "a symbolic link": _link,
    "a socket": _socket,
}


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", OBSTACLES)
def test_what_is_no_regular_file_is_refused_by_its_kind(tmp_path: Path, kind: str, flags: int) -> None:
    """At once, though nobody has the other end of the FIFO; a link's target stays as it was."""
    OBSTACLES[kind](tmp_path / "file")
    with pytest.raises(OSError, match=f"is {kind} and not a regular file"):
        open_regular(tmp_path / "file", flags)
    if kind == "a symbolic link":
        assert (tmp_path / "target").read_bytes() == b"untouched"


@pytest.mark.root
@pytest.mark.parametrize("flags", FLAGS)
def test_a_device_is_not_even_opened(tmp_path: Path, flags: int) -> None:
    """To open some of them is to act on them: this one has no driver, and the kernel would say so."""
    os.mknod(tmp_path / "file", stat.S_IFCHR | 0o600, os.makedev(511, 1))
    with pytest.raises(OSError, match="is a device and not a regular file"):
        open_regular(tmp_path / "file", flags)


@pytest.mark.parametrize("kind", [kind for kind in OBSTACLES if kind != "a socket"])
def test_what_comes_at_the_last_moment_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Put there after the look at it, and before the opening."""
    path = tmp_path / "file"
    path.touch()
    looked_at = path.stat()
    path.unlink()
    OBSTACLES[kind](path)
    monkeypatch.setattr(os, "stat", lambda *_args, **_options: looked_at)
    with pytest.raises(OSError, match=r"not a regular file|symbolic links|Is a directory"):
        open_regular(path)
    with pytest.raises(OSError, match=r"No such device|symbolic links|Is a directory"):
        open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def test_a_link_of_an_administrator_is_followed_to_a_regular_file_alone(tmp_path: Path) -> None:
    """Where that was asked for."""
    _link(tmp_path / "file")
    with open(open_regular(tmp_path / "file", follow=True), "rb") as file:
        assert file.read() == b"untouched"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "other").symlink_to("fifo")
    with pytest.raises(OSError, match="is a FIFO and not a regular file"):
        open_regular(tmp_path / "other", follow=True)


def test_a_fifo_is_made_once_and_anything_else_refused(tmp_path: Path) -> None:
    """A regular file would be written to, and cannot be waited for."""
    fds = [open_fifo(tmp_path / "fifo") for _ in range(2)]
    os.write(fds[0], b"x")
    assert os.read(fds[1], 2) == b"x"
    for fd in fds:
        os.close(fd)
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("fifo")
    for name, kind in (("target", "a regular file"), ("link", "a symbolic link")):
        with pytest.raises(OSError, match=f"is {kind} and not a FIFO"):
            open_fifo(tmp_path / name)
