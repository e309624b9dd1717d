"""Who is at the other end of a Unix socket.

Decides: how a connection's credentials are read.
Must not: judge them (`qsup.api.roles` does).
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from attrs import frozen

# linux/socket.h; Python names the first only
SO_PEERGROUPS = 59
_CREDENTIALS = struct.Struct("iII")
# the longest buffer socket.getsockopt() takes
_GETSOCKOPT_MAX = 1024


@frozen(kw_only=True)
class Peer:
    """A process at the other end, as the kernel recorded it when it called connect(2).

    Args:
        pid: in the daemon's pid namespace, 0 when the peer is not visible from there; it may be gone or reused by now.
        uid: effective user id.
        gid: effective group id.
        groups: supplementary group ids.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]


def peer_of(sock: socket.socket) -> Peer:
    """Read SO_PEERCRED and SO_PEERGROUPS (unix(7)) of a connected Unix socket.

    Raises:
        OSError: it is not one.
    """
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid=pid, uid=uid, gid=gid, groups=_groups_of(sock))


def _groups_of(sock: socket.socket) -> frozenset[int]:
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GETSOCKOPT_MAX)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        data = _many_groups_of(sock)
    return frozenset(gid for (gid,) in struct.iter_unpack("I", data))


def _many_groups_of(sock: socket.socket) -> bytes:
    """SO_PEERGROUPS of a peer in more groups than Python's getsockopt() can return."""
    import ctypes  # costs megabytes, and hardly anyone is in over 256 groups

    limit = os.sysconf("SC_NGROUPS_MAX") * struct.calcsize("I")
    buffer = ctypes.create_string_buffer(limit)
    length = ctypes.c_uint32(limit)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, buffer, ctypes.byref(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw[: length.value]
