"""Tests of `qsup.host.notify`: systemd's protocols against sockets of our own."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qsup.host.notify import JournalSender, Notifier, ServiceEnvironment, take_environment
from tests.host.test_descriptors import free_descriptors


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A datagram socket where a service manager or the journal would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.settimeout(5)
        yield listener


def test_messages_of_a_life(manager: socket.socket) -> None:
    """Readiness, status, watchdog and stopping are said in sd_notify's words, newlines never split a value."""
    with closing(Notifier(manager.getsockname())) as notifier:
        notifier.ready("2 VMs")
        notifier.watchdog()
        notifier.status("two\nlines")
        notifier.stopping()
    received = [manager.recv(1000) for _ in range(4)]
    assert received == [b"READY=1\nSTATUS=2 VMs", b"WATCHDOG=1", b"STATUS=two lines", b"STOPPING=1"]


def test_abstract_address() -> None:
    """An address that begins with @ is an abstract one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0qsup-test-{os.getpid()}")
        listener.settimeout(5)
        with closing(Notifier(f"@qsup-test-{os.getpid()}")) as notifier:
            notifier.watchdog()
        assert listener.recv(100) == b"WATCHDOG=1"


def test_nobody_listens(tmp_path: Path) -> None:
    """Without a manager, or with one that is gone, nothing happens."""
    for address in ("", str(tmp_path / "absent")):
        with closing(Notifier(address)) as notifier:
            notifier.ready()


def test_full_queue_is_not_waited_for(manager: socket.socket) -> None:
    """A manager that does not read does not hold the daemon up."""
    with closing(Notifier(manager.getsockname())) as notifier:
        for _ in range(1000):
            notifier.watchdog()


def test_who_has_no_descriptor_left_is_alive_all_the_same(manager: socket.socket) -> None:
    """The watchdog hears of a daemon at its limit, which would otherwise be killed for it."""
    with closing(Notifier(manager.getsockname())) as notifier, free_descriptors(0):
        notifier.watchdog()
    assert manager.recv(100) == b"WATCHDOG=1"


def test_variables_are_taken_away() -> None:
    """What systemd set is read once and then gone; the rest stays."""
    environ = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "3000000", "LISTEN_FDNAMES": "x", "PATH": "/bin"}
    found = take_environment(environ)
    assert found == ServiceEnvironment(notify_socket="/run/n", watchdog=3.0)
    assert environ == {"PATH": "/bin"}
    assert take_environment(environ) == ServiceEnvironment()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog_is_ours_or_none(variables: dict[str, str], expected: float | None) -> None:
    """A watchdog meant for another process, switched off or unreadable, is none."""
    assert take_environment(dict(variables)).watchdog == expected


ACTIVATED = """
import os, socket, sys
from qsup.host.notify import take_environment
os.environ["LISTEN_PID"] = str(os.getpid()) if sys.argv[1] == "ours" else "1"
found = take_environment(os.environ)
for name, fd in found.sockets:
    with socket.socket(fileno=fd) as listener:
        print(name, listener.getsockname(), os.get_inheritable(fd))
"""


def activated(whose: str, names: str | None) -> list[str]:
    """What a process started with two listening sockets at 3 and 4 finds."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        shell = f'exec 5<&{first.fileno()} 6<&{second.fileno()} 3<&5 4<&6 5<&- 6<&-; exec "$@"'
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LISTEN_FDS": "2"}
        if names is not None:
            environment["LISTEN_FDNAMES"] = names
        done = subprocess.run(
            ["/bin/bash", "-c", shell, "bash", sys.executable, "-c", ACTIVATED, whose],
            env=environment,
            pass_fds=[first.fileno(), second.fileno()],
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        )
        addresses = [first.getsockname(), second.getsockname()]
    return [line.replace(str(addresses[index]), "ADDRESS") for index, line in enumerate(done.stdout.splitlines())]


def test_sockets_are_taken_over() -> None:
    """Sockets handed over come with their names, in order, close-on-exec; what has no name is `unknown`."""
    assert activated("ours", "api:api-ro") == ["api ADDRESS False", "api-ro ADDRESS False"]
    assert activated("ours", "api") == ["api ADDRESS False", "unknown ADDRESS False"]
    assert activated("ours", None) == ["unknown ADDRESS False", "unknown ADDRESS False"]


def test_sockets_of_another_process_are_not_ours() -> None:
    """Variables inherited by mistake give no sockets."""
    assert activated("theirs", "api:api-ro") == []


def test_journal_entry(manager: socket.socket) -> None:
    """An entry carries its fields in the native format; a value with newlines has its length before it."""
    sender = JournalSender(manager.getsockname())
    assert sender.send({"MESSAGE": "VM started", "PRIORITY": "6", "QSUP_INSTANCE": "a\nb"})
    sender.close()
    expected = b"MESSAGE=VM started\nPRIORITY=6\nQSUP_INSTANCE\n" + struct.pack("<Q", 3) + b"a\nb\n"
    assert manager.recv(1000) == expected


def test_large_journal_entry(manager: socket.socket) -> None:
    """An entry too large for a datagram goes as a sealed memfd."""
    sender = JournalSender(manager.getsockname())
    assert sender.send({"MESSAGE": "x" * 1_000_000})
    sender.close()
    data, fds, _, _ = socket.recv_fds(manager, 100, 1)
    assert data == b""
    with open(fds[0], "rb") as file:
        file.seek(0)
        assert file.read() == b"MESSAGE=" + b"x" * 1_000_000 + b"\n"


def test_slow_journal_drops(manager: socket.socket) -> None:
    """A journal that does not keep up loses entries and holds nobody up; without one the caller is told."""
    sender = JournalSender(manager.getsockname())
    assert not all(sender.send({"MESSAGE": "x"}) for _ in range(1000))
    sender.close()
    with pytest.raises(OSError, match="No such file"):
        JournalSender(manager.getsockname() + "-absent")
