"""A node of /dev/kvm that VMs may open, whoever may open the host's own.

Decides: who needs that node, where it is, and how long it stays.
Must not: touch the host's /dev/kvm; a VM sees ours in its place through a mount namespace that the launcher makes.

The node may be opened by anyone, in a directory that only root may enter. All daemons of a machine share it: each that
uses it holds a shared lock on the directory, and the last to `release` removes it. What a killed daemon left, the next
one takes over.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from qsup.errors import StartError

DIRECTORY = Path("/dev/qsup")
NODE = DIRECTORY / "kvm"
HOST_NODE = Path("/dev/kvm")
_READ_WRITE = 0o6

# the descriptor that carries this process's lock, -1 for none: like the directory, there is one
_lock = -1


def excludes(uid: int) -> bool:
    """Whether the host's /dev/kvm is closed to a user by its mode; also when it cannot be looked at.

    Args:
        uid: the user's, and his only group's too.
    """
    try:
        host = os.stat(HOST_NODE)
    except OSError:
        return True  # `hold` says what is wrong with it
    shift = 6 if host.st_uid == uid else 3 if host.st_gid == uid else 0
    return host.st_mode >> shift & _READ_WRITE != _READ_WRITE


def hold() -> None:
    """Make the node unless it is there, and keep it until `release`.

    Raises:
        StartError: there is no /dev/kvm, or this is not root.
    """
    global _lock
    try:
        if _lock >= 0 and not _is_directory(_lock):
            os.close(_lock)  # somebody removed it, whom it does not belong to
            _lock = -1
        while _lock < 0:
            _lock = _lock_directory()
        if not NODE.exists():
            os.mknod(NODE, stat.S_IFCHR | 0o600, os.stat(HOST_NODE).st_rdev)
            NODE.chmod(0o666)
    except OSError as error:
        raise failure(error) from error


def failure(error: OSError) -> StartError:
    """Why a VM cannot be given the node."""
    return StartError(f"could not give the VM a /dev/kvm of its own: {error.strerror}")


def _lock_directory() -> int:
    """A descriptor with a shared lock on the directory, -1 when another daemon removed it meanwhile."""
    DIRECTORY.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH)  # waits for nothing longer than a removal
    if _is_directory(fd):
        return fd
    os.close(fd)
    return -1


def _is_directory(fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(DIRECTORY))
    except FileNotFoundError:
        return False


def release() -> None:
    """Give the node up, and remove it when no other daemon holds it. Running VMs keep theirs. Never fails."""
    global _lock
    try:
        if _lock < 0:
            _lock = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        NODE.unlink(missing_ok=True)
        DIRECTORY.rmdir()
    except OSError:
        pass  # there is none, it is not ours to remove, or another daemon holds it and will remove it
    finally:
        if _lock >= 0:
            os.close(_lock)
            _lock = -1
