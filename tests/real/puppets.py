"""Puppets: QEMUs that say what a test has them say.

Decides: how a test gets hold of the emulators that a daemon starts, and how recordings are played through them.
Must not: invent what is said; recordings and the changes of `tests.qmp.hostile` do.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import shutil
import socket
import threading
from pathlib import Path

import attrs

from tests.guests import Emulator
from tests.qmp.player import Fault, Player
from tests.recordings.recording import Recording, load

DEADLINE = 20.0
SESSION = load("session")


def complete(recording: Recording) -> Recording:
    """A recording that answers what the daemon asks at a start, too: as the recorded session did."""
    without_greeting = itertools.dropwhile(lambda entry: entry.side == "server", SESSION.entries)
    return attrs.evolve(recording, entries=(*recording.entries, *without_greeting))


class Puppet:
    """One emulator that a daemon has started.

    Args:
        strings: the connection by which it is told what to do.
    """

    def __init__(self, strings: socket.socket) -> None:
        self._strings = strings
        data, fds, _, _ = socket.recv_fds(strings, 1 << 20, 16)
        self._listeners: dict[str, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        self._clients: list[socket.socket] = []
        self._acknowledged = threading.Semaphore(0)
        self.ended = threading.Event()
        while not data.endswith(b"\n"):
            data += strings.recv(1 << 20)
        greeting = json.loads(data)
        self.argv: list[str] = greeting["argv"]
        self.pid: int = greeting["pid"]
        for name, fd in zip(greeting["names"], fds, strict=True):
            self._listeners[name] = socket.socket(fileno=fd)
        self._run(self._watch)

    @property
    def name(self) -> str:
        """The VM's."""
        return self.argv[self.argv.index("-name") + 1].removeprefix("guest=").partition(",")[0]

    def tell(self, code: str, *, wait: bool = True) -> None:
        """Have it run Python code, in which ``os``, ``sys`` and ``socket`` are known."""
        self._strings.sendall(json.dumps(code).encode() + b"\n")
        if wait:
            assert self._acknowledged.acquire(timeout=DEADLINE), f"{self.name} does not do what it was told"

    def play(self, fault: Fault, *, channel: str = "qmp") -> Player:
        """Answer all who connect to a channel from now on, one at a time, as a recording says or a fault of it."""
        player = Player(attrs.evolve(fault, recording=complete(fault.recording)), greets=channel == "qmp")
        self._run(self._serve, self._listeners[channel], player)
        return player

    def connected(self, channel: str) -> socket.socket:
        """The next connection to a channel."""
        listener = self._listeners[channel]
        listener.settimeout(DEADLINE)
        client, _ = listener.accept()
        self._clients.append(client)
        return client

    def shut(self, channel: str) -> None:
        """Nobody listens on a channel any more."""
        self._listeners[channel].shutdown(socket.SHUT_RDWR)

    def _serve(self, listener: socket.socket, player: Player) -> None:
        while not self.ended.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return  # shut down
            self._clients.append(client)
            with contextlib.suppress(OSError):
                player.serve(client)

    def _run(self, work: object, *arguments: object) -> None:
        assert callable(work)
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _watch(self) -> None:
        """What an emulator has open ends with it."""
        with contextlib.suppress(OSError):
            while acknowledged := self._strings.recv(1):
                self._acknowledged.release(len(acknowledged))
        self.ended.set()
        for each in (*self._listeners.values(), *self._clients):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> None:
        """Hang up, which ends it."""
        with contextlib.suppress(OSError):
            self._strings.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), f"a thread of {self.name} does not end"
        self._strings.close()


class Stage:
    """Where the puppets of one test come to.

    Args:
        directory: open to every uid; gets the emulator, its link and its socket.
        real: the QEMU that answers a probe.
    """

    def __init__(self, directory: Path, real: Emulator) -> None:
        directory.mkdir()
        directory.chmod(0o755)
        self.emulator = Emulator(path=directory / "qemu-system-x86_64", version=real.version)
        shutil.copy(Path(__file__).with_name("hostile_qemu.py"), self.emulator.path)
        self.emulator.path.chmod(0o755)
        (directory / "real").symlink_to(real.path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._socket = directory / "stage"
        self._listener.bind(str(self._socket))
        self._socket.chmod(0o666)
        self._listener.listen(64)
        self._entered: queue.Queue[Puppet] = queue.Queue()
        self._all: list[Puppet] = []
        self._thread = threading.Thread(target=self._welcome)
        self._thread.start()

    def _welcome(self) -> None:
        while True:
            try:
                strings, _ = self._listener.accept()
            except OSError:
                return
            puppet = Puppet(strings)
            self._all.append(puppet)
            self._entered.put(puppet)

    def next(self) -> Puppet:
        """The next emulator that was started."""
        return self._entered.get(timeout=DEADLINE)

    def close(self) -> None:
        """End all of them."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._listener.close()
        self._socket.unlink()
        for puppet in self._all:
            puppet.close()
