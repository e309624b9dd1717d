"""One socket to the daemon: where it is, and bytes over it against a deadline.

Decides: how ``qsupctl`` finds the socket, what it says when nobody answers there, and that no operation waits unbounded
(the next line of a stream excepted: silence is lawful there).
Must not: know a resource or a document.
"""

from __future__ import annotations

import os
import socket
import time

from qsup.api.protocol import SOCKET_PATH_MAX
from qsup.ctl.http import HEAD_MAX, Body, Head, parse_head
from qsup.errors import DaemonProtocolError, DaemonUnreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SYSTEM_SOCKET = "/run/qsup/api.sock"
#: Longest document taken, in bytes: above the longest QMP reply the daemon accepts (64 MiB).
DOCUMENT_MAX = 80 << 20
#: Longest line of a stream, in bytes.
LINE_MAX = 1 << 20
_READ = 1 << 16


class Address:
    """Where the daemon listens, and what to tell a user when it does not."""

    __slots__ = ("path", "start_hint")

    def __init__(self, path: str, start_hint: str) -> None:
        self.path = path
        self.start_hint = start_hint


def find_address(
    *, socket_path: str | None, root: str | None, user: bool, environ: Mapping[str, str], uid: int
) -> Address:
    """Choose the daemon's socket: ``--socket``, ``--root``, ``--user``, QSUP_SOCKET, else the system's or the user's.

    Args:
        socket_path, root, user: the options of those names.
        uid: of the caller. Root means the system's daemon; others do where they may connect to it.
    """
    if socket_path:
        return Address(socket_path, f"is a daemon running? start one with: qsupd --socket {socket_path}")
    if root:
        return Address(os.path.join(root, "run/api.sock"), f"is its daemon running? start it with: qsupd --root {root}")
    if not user and (named := environ.get("QSUP_SOCKET")):
        return Address(named, "QSUP_SOCKET names this socket; is its daemon running?")
    if not user and (uid == 0 or os.access(SYSTEM_SOCKET, os.W_OK)):
        return Address(SYSTEM_SOCKET, "start the daemon with: systemctl start qsupd.socket")
    hint = "start your own daemon with: qsupd --user"
    if not user and os.path.exists(os.path.dirname(SYSTEM_SOCKET)):
        hint += "; for the system's daemon, become root or a member of the group qsup"
    return Address(_user_socket(environ), hint)


def _user_socket(environ: Mapping[str, str]) -> str:
    """Where ``qsupd --user`` listens: `qsup.host.rundir` decides it, a test compares."""
    state = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        state = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local/state")
    return os.path.join(state, "qsup/run/api.sock")


class NotAnswered(DaemonUnreachable):
    """The connection ended before one byte of the answer came."""


class TooLate(DaemonUnreachable):
    """It did not answer in time."""


class Deadline:
    """A point in monotonic time, ``None`` seconds away for never."""

    __slots__ = ("_at", "_seconds")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._at = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds until then, at least 0; ``None`` for never."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def arm(self, sock: socket.socket) -> None:
        """Bound the next operation on a socket; `DaemonUnreachable` when it is too late already."""
        left = self.left()
        if left == 0.0:
            raise self.missed()
        sock.settimeout(left)

    def missed(self) -> TooLate:
        """The error that says so."""
        return TooLate(f"the daemon did not answer within {self._seconds:g} s")


class Connection:
    """One socket to the daemon.

    Args:
        address: where to.
        deadline: until when the daemon must have accepted.

    Raises:
        DaemonUnreachable: nobody listens there, or the caller may not connect.
    """

    def __init__(self, address: Address, deadline: Deadline) -> None:
        self._received = b""
        path = address.path
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            raise DaemonUnreachable(
                f"the socket path {path} is longer than {SOCKET_PATH_MAX} bytes", hint="choose a shorter directory"
            )
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            deadline.arm(self.socket)
            _connect(self.socket, path)
        except TimeoutError as error:
            self.socket.close()
            raise deadline.missed() from error
        except OSError as error:
            self.socket.close()
            raise _unreachable(address, error) from error

    @property
    def is_stale(self) -> bool:
        """Whether the daemon closed it (or sent something unasked) while it was idle."""
        try:
            self.socket.settimeout(0.0)
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send all of it; `DaemonUnreachable` at the deadline or when the connection is gone."""
        try:
            deadline.arm(self.socket)
            self.socket.sendall(data)
        except TimeoutError as error:
            raise deadline.missed() from error
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon may have answered (a refusal) before it read everything: the answer tells
        except OSError as error:
            raise NotAnswered(f"the connection to the daemon broke: {error.strerror}") from error

    def receive(self, deadline: Deadline) -> bytes:
        """Some bytes, ``b""`` at the end; `DaemonUnreachable` at the deadline."""
        if self._received:
            received, self._received = self._received, b""
            return received
        try:
            deadline.arm(self.socket)
            return self.socket.recv(_READ)
        except TimeoutError as error:
            raise deadline.missed() from error
        except ConnectionResetError:
            return b""

    def receive_nowait(self) -> bytes:
        """What is here now, ``b""`` at the end; `BlockingIOError` when that is nothing."""
        if self._received:
            received, self._received = self._received, b""
            return received
        try:
            self.socket.settimeout(0.0)
            return self.socket.recv(_READ)
        except ConnectionResetError:
            return b""

    def receive_head(self, deadline: Deadline) -> Head:
        """The next answer's head; informational ones (1xx, but for 101) are passed over.

        Raises:
            DaemonProtocolError: what comes is not HTTP.
            DaemonUnreachable: nothing comes.
        """
        head = self._receive_any_head(deadline)
        while 100 <= head.status < 200 and head.status != 101:
            head = self._receive_any_head(deadline)
        return head

    def _receive_any_head(self, deadline: Deadline) -> Head:
        block = bytearray()
        while (end := block.find(b"\r\n\r\n")) < 0:
            if len(block) > HEAD_MAX:
                raise DaemonProtocolError(f"the answer's head is longer than {HEAD_MAX} bytes")
            data = self.receive(deadline)
            if not data and block:
                raise DaemonProtocolError(f"the daemon closed the connection after {bytes(block[:60])!r}")
            if not data:
                raise NotAnswered("the daemon closed the connection without an answer")
            block += data
        self._received = bytes(block[end + 4 :])
        return parse_head(bytes(block[:end]))

    def receive_body(self, head: Head, deadline: Deadline) -> bytes:
        """The whole body of the answer.

        Raises:
            DaemonProtocolError: it is malformed or beyond `DOCUMENT_MAX`.
            DaemonUnreachable: it is cut off, or the deadline is over.
        """
        body = Body(head)
        document = bytearray()
        while not body.finished:
            data = self.receive(deadline)
            if not data:
                body.close()
                break
            document += body.feed(data)
            if len(document) > DOCUMENT_MAX:
                raise DaemonProtocolError(f"the answer is longer than {DOCUMENT_MAX >> 20} MiB")
        self._received = body.rest
        return bytes(document)

    def close(self) -> None:
        """Close the socket; more than once is harmless."""
        self.socket.close()


def _connect(sock: socket.socket, path: str) -> None:
    """Connect within the socket's timeout, also while more wait to be accepted than the daemon's backlog holds.

    Raises:
        OSError: as connect(2) says; `TimeoutError` when the daemon accepted nobody in time.
    """
    try:
        sock.connect(path)
    except BlockingIOError:
        # Python's timeouts make a socket one that does not block, and for room in a backlog only one that does waits
        import struct

        seconds = sock.gettimeout()
        if seconds is not None:
            timeval = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6) or 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        sock.settimeout(None)
        try:
            sock.connect(path)
        except BlockingIOError as error:
            raise TimeoutError from error


def _unreachable(address: Address, error: OSError) -> DaemonUnreachable:
    if isinstance(error, PermissionError):
        return DaemonUnreachable(f"permission denied at {address.path}", hint=_way_in(address.path))
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return DaemonUnreachable(f"no daemon listens at {address.path}", hint=address.start_hint)
    return DaemonUnreachable(f"could not connect to {address.path}: {error.strerror}", hint=address.start_hint)


def _way_in(path: str) -> str:
    """What whoever may not use a socket can do: join the group it is open to, if it is to any but root's."""
    import grp

    try:
        found = os.stat(path)
        if not found.st_mode & 0o020 or found.st_gid == 0:
            return "become root; no group may use it"
        group = grp.getgrgid(found.st_gid).gr_name
    except (OSError, KeyError):
        group = "qsup"
    return f"become root, or a member of the group {group}: usermod -aG {group} USER, then log in again"


class Stream:
    """An endless answer, line by line.

    Args:
        connection: its own; it is closed with the stream.
        head: of the answer.
    """

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection = connection
        self._body = Body(head)
        self._partial = bytearray()

    def fileno(self) -> int:
        """For select(2)."""
        return self._connection.socket.fileno()

    def read(self, deadline: Deadline) -> list[bytes] | None:
        """The complete lines that one read brings (maybe none), ``None`` at the end of the stream.

        The daemon ends one when it is told to end, and cuts it off when it is killed; to a reader both are one.

        Raises:
            DaemonUnreachable: nothing came before the deadline.
            DaemonProtocolError: the framing broke, or a line is longer than `LINE_MAX`.
        """
        if self._body.finished:
            return None
        data = self._connection.receive(deadline)
        if not data:
            return None
        self._partial += self._body.feed(data)
        *lines, rest = bytes(self._partial).split(b"\n")
        if len(rest) > LINE_MAX:
            raise DaemonProtocolError(f"a line of the stream is longer than {LINE_MAX} bytes")
        self._partial = bytearray(rest)
        return [line for line in lines if line]

    def lines(self, deadline: Deadline) -> Iterator[bytes]:
        """Every line until the stream ends; raises as `read` does."""
        while (lines := self.read(deadline)) is not None:
            yield from lines

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
