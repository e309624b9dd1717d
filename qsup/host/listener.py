"""A listening Unix socket at a path that others use too.

Decides: that whatever is there stays, unless it is a socket whose daemon is gone.
Must not: accept connections, or know who may connect beyond the path's own mode.

Source: unix(7).
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qsup.errors import AlreadyRunning, ConfigError, from_oserror
from qsup.host import proc

_UCRED = struct.Struct("=3i")  # pid, uid, gid


@contextmanager
def listening(path: Path, gids: frozenset[int]) -> Iterator[socket.socket]:
    """A listening stream socket; at the end its path is removed, unless somebody else's is there by then.

    Args:
        path: where; a socket that nobody listens on any more is replaced.
        gids: groups of whose members one may connect, besides the daemon's own user.

    Raises:
        AlreadyRunning: somebody listens there.
        ConfigError: something else is there.
        HostError: it cannot be bound.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            _clear_the_way(path)
            listener.bind(str(path))
            ours = _birth(path)
            path.chmod(0o660 if gids else 0o600)
            if gids:
                os.chown(path, -1, min(gids))
            listener.listen(128)
        except OSError as error:
            raise from_oserror(error, f"could not listen on {path}") from error
        try:
            yield listener
        finally:
            with suppress(FileNotFoundError):
                if _birth(path) == ours:
                    path.unlink()


def _birth(path: Path) -> tuple[int, int, int]:
    """What tells a socket from a later one at its path: its inode, and as that is used again, its age."""
    status = path.lstat()
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _clear_the_way(path: Path) -> None:
    """Remove a socket whose daemon is gone; raises what `listening` does."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is there, and is no socket", hint="remove it, or use another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a daemon with a full backlog lives too
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            raise AlreadyRunning(f"somebody listens on {path}") from None
        pid, _, _ = _UCRED.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    raise AlreadyRunning(f"{proc.describe(pid)} listens on {path}", hint="use another path", pid=str(pid))
