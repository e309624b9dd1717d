"""Talking to systemd: readiness and watchdog, sockets handed over, the journal. Without systemd, nothing happens.

Decides: which of systemd's variables are taken out of the environment, so that no VM inherits them.
Must not: log by itself, or fail because nobody listens.

Sources: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3), the journal's native protocol
(systemd.io/JOURNAL_NATIVE_PROTOCOL).
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Mapping, MutableMapping

from attrs import field, frozen

_LISTEN_FDS_START = 3
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
JOURNAL_SOCKET = "/run/systemd/journal/socket"


@frozen(kw_only=True)
class ServiceEnvironment:
    """What a service manager told this process.

    Args:
        notify_socket: its address as in ``NOTIFY_SOCKET``, or ``""``.
        watchdog: seconds within which it wants to hear from us, ``None`` for no watchdog.
        sockets: descriptors handed over: name, descriptor; close-on-exec. The receiver owns them.
    """

    notify_socket: str = ""
    watchdog: float | None = None
    sockets: tuple[tuple[str, int], ...] = field(default=())


def take_environment(environ: MutableMapping[str, str]) -> ServiceEnvironment:
    """Take systemd's variables out of an environment; those meant for another process are dropped.

    Args:
        environ: usually `os.environ`.
    """
    taken = {name: environ.pop(name, "") for name in _VARIABLES}
    return ServiceEnvironment(
        notify_socket=taken["NOTIFY_SOCKET"],
        watchdog=_watchdog(taken["WATCHDOG_USEC"], taken["WATCHDOG_PID"]),
        sockets=_sockets(taken["LISTEN_FDS"], taken["LISTEN_PID"], taken["LISTEN_FDNAMES"]),
    )


def _is_for_us(pid: str) -> bool:
    return pid == str(os.getpid())


def _watchdog(microseconds: str, pid: str) -> float | None:
    if not microseconds.isdecimal() or int(microseconds) == 0 or (pid and not _is_for_us(pid)):
        return None
    return int(microseconds) / 1e6


def _sockets(count: str, pid: str, names: str) -> tuple[tuple[str, int], ...]:
    if not _is_for_us(pid) or not count.isdecimal():
        return ()
    fds = range(_LISTEN_FDS_START, _LISTEN_FDS_START + int(count))
    for fd in fds:
        os.set_inheritable(fd, False)
    given = names.split(":") if names else []
    return tuple((given[index] if index < len(given) else "unknown", fd) for index, fd in enumerate(fds))


class Notifier:
    """Tells the service manager how we are.

    Args:
        address: of its socket, a path or ``@`` and an abstract name; ``""`` for nobody.
    """

    def __init__(self, address: str = "") -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        # one for good: who has no descriptor left is alive all the same, and must be able to say so
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) if address else None

    def ready(self, status: str = "") -> None:
        """Start-up is complete."""
        self.send(READY="1", **({"STATUS": status} if status else {}))

    def stopping(self) -> None:
        """Shutting down has begun."""
        self.send(STOPPING="1")

    def watchdog(self) -> None:
        """Still alive; due twice within each `ServiceEnvironment.watchdog`."""
        self.send(WATCHDOG="1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self.send(STATUS=text)

    def send(self, **variables: str) -> None:
        """Send assignments; newlines in values become spaces. A manager that does not listen is not waited for."""
        if self._channel is None:
            return
        lines = (f"{name}={' '.join(value.splitlines())}" for name, value in variables.items())
        try:
            self._channel.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            pass  # systemd restarts, or its queue is full: it asks again by its own timeouts

    def close(self) -> None:
        """Say nothing more."""
        if self._channel is not None:
            self._channel.close()


class JournalSender:
    """Sends entries to the journal with all their fields.

    Args:
        address: of the journal's socket.

    Raises:
        OSError: there is no journal.
    """

    def __init__(self, address: str = JOURNAL_SOCKET) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.connect(address)
        except BaseException:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    def send(self, fields: Mapping[str, str]) -> bool:
        """Send one entry; ``False`` when it was dropped because the journal does not keep up.

        Args:
            fields: upper-case names (letters, digits, ``_``) and values; ``MESSAGE`` and ``PRIORITY`` as in
                systemd.journal-fields(7).
        """
        data = b"".join(_field(name, value.encode(errors="replace")) for name, value in fields.items())
        try:
            try:
                self._socket.send(data)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                self._send_sealed(data)
        except OSError:
            return False
        return True

    def _send_sealed(self, data: bytes) -> None:
        """An entry too large for a datagram goes as a sealed memfd."""
        fd = os.memfd_create("qsup-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            rights = array.array("i", [fd])
            self._socket.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _field(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return name.encode() + b"=" + value + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
