"""Opening what stands under a path of ours, whoever has put it there: no file makes the daemon wait or leads it astray.

Decides: which kinds of files are opened at all.
Must not: read, write or remove anything.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "a regular file",
}


def open_regular(
    path: Path | str, flags: int = os.O_RDONLY, mode: int = 0o600, *, dir_fd: int | None = None, follow: bool = False
) -> int:
    """Open a regular file, close-on-exec; anything else is refused, at once.

    Args:
        flags: as for open(2); it never waits, and a terminal never becomes ours.
        mode: of a file that ``O_CREAT`` makes.
        dir_fd: what a relative path is relative to.
        follow: a symbolic link may stand there: the file is an administrator's, and not one that we made.

    Raises:
        OSError: the kernel refused; or it is something else, which its words name (``errno`` is ``None`` then).
    """
    try:
        # asked before opening, too: to open some devices is to act on them
        _check(os.stat(path, dir_fd=dir_fd, follow_symlinks=follow), path, stat.S_IFREG)
    except FileNotFoundError:
        pass  # the open makes it, or says so
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(path, flags if follow else flags | os.O_NOFOLLOW, mode, dir_fd=dir_fd)
    return _checked(fd, path, stat.S_IFREG)


def open_fifo(path: Path) -> int:
    """Open a FIFO of ours for reading and writing, so that neither end waits for the other; make it if there is none.

    Raises:
        OSError: as for `open_regular`.
    """
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        _check(os.lstat(path), path, stat.S_IFIFO)
    return _checked(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), path, stat.S_IFIFO)


def _checked(fd: int, path: Path | str, wanted: int) -> int:
    try:
        _check(os.fstat(fd), path, wanted)
    except OSError:
        os.close(fd)
        raise
    return fd


def _check(status: os.stat_result, path: Path | str, wanted: int) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != wanted:
        name = os.path.basename(path)
        raise OSError(f"{name} is {_KINDS.get(kind, 'of an unknown kind')} and not {_KINDS[wanted]}")
