"""The very QEMU that qsup runs, without qsup.

Decides: how a command line of qsup's becomes one that nobody else is needed for.
Must not: do anything that a bare script would not: spawn, connect, negotiate, let run, quit.
"""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.bare import BareConnection

DEADLINE = 30.0
_LISTENER = re.compile(r"^socket,id=(?P<name>\w+),fd=\d+,")


class Twin:
    """One QEMU.

    Args:
        argv: a command line as the API shows it; each listening socket it names is bound anew.
        directory: for the sockets.
    """

    def __init__(self, argv: Sequence[str], directory: Path) -> None:
        self._argv = argv
        self._directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        self.monitor: BareConnection | None = None

    def start(self) -> None:
        """Spawn it, and return when its guest runs."""
        argv, listeners = [], []
        for argument in self._argv:
            if found := _LISTENER.match(argument):
                listeners.append(self._listen(found["name"]))
                argument = re.sub(r"fd=\d+", f"fd={listeners[-1].fileno()}", argument)
            argv.append(argument)
        self.process = subprocess.Popen(
            argv,
            pass_fds=[listener.fileno() for listener in listeners],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for listener in listeners:
            listener.close()
        self.monitor = BareConnection(self._directory / "qmp")
        self.monitor.negotiate()
        self.monitor.ask("cont")

    def _listen(self, name: str) -> socket.socket:
        path = self._directory / name
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1)
        return listener

    def quit(self) -> None:
        """Tell it to quit, and return when it is gone."""
        assert self.monitor is not None and self.process is not None
        self.monitor.write('{"execute": "quit"}')
        self.process.wait(DEADLINE)
        self.monitor.__exit__()

    def kill(self) -> None:
        """SIGKILL it, and return when its monitor's connection has ended; `reap` it then."""
        assert self.monitor is not None and self.process is not None
        self.process.kill()
        while self.monitor.read():
            pass

    def reap(self) -> None:
        """Wait until the kernel has taken it down, which is sure."""
        assert self.monitor is not None and self.process is not None
        self.process.wait(DEADLINE)
        self.monitor.__exit__()
