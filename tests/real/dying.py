"""A qsupd that kills itself between two steps: ``python -m tests.real.dying ARGUMENTS...``, as for ``qsup.daemon``.

Decides: what a step is (a call by which the daemon changes anything outside itself: files, processes, what it tells
QEMU and clients), and that SIGKILL comes before the step of a number; or that another process is stopped then.
Must not: change what any step does.

SIGUSR1 makes it read from ``dies-at`` in its directory before which step to die, 0 for none, and begin to count; with a
process's id behind it that process gets SIGSTOP instead. What it counts is in ``steps``.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

_CALLS = ("write", "fsync", "fdatasync", "rename", "unlink", "rmdir", "mkdir", "link", "posix_spawn", "pidfd_open")
_ROOT = Path(sys.argv[sys.argv.index("--root") + 1])


class _Steps:
    """How many steps there have been since the signal."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the signal's handler runs in the middle of whatever the main thread does
        self._file = os.open(_ROOT / "steps", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC)
        self._write = os.write
        self._last = 0
        self._stops = 0
        self._count = 0

    def begin(self, *_: object) -> None:
        """Count from now on."""
        with self._lock:
            last, _space, stops = (_ROOT / "dies-at").read_text().partition(" ")
            self._last, self._stops, self._count = int(last), int(stops or 0), 0
            os.ftruncate(self._file, 0)
            self._write(self._file, f"begun {self._last}\n".encode())

    def take(self, name: str) -> None:
        """A step is about to be made."""
        with self._lock:
            if self._last:
                self._count += 1
                self._write(self._file, f"{name}\n".encode())
                if self._count == self._last and self._stops:
                    os.kill(self._stops, signal.SIGSTOP)
                elif self._count == self._last:
                    os.kill(os.getpid(), signal.SIGKILL)


def _counted(steps: _Steps, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def counted(*arguments: Any, **named: Any) -> Any:
        # trio wakes itself with single bytes
        if name != "send" or len(arguments[1]) > 1:
            steps.take(name)
        return call(*arguments, **named)

    return counted


def main() -> int:
    """Wrap the calls, then be a daemon."""
    steps = _Steps()
    for name in _CALLS:
        setattr(os, name, _counted(steps, name, getattr(os, name)))
    signal.pidfd_send_signal = _counted(steps, "pidfd_send_signal", signal.pidfd_send_signal)
    for name in ("send", "sendmsg"):
        setattr(socket.socket, name, _counted(steps, name, getattr(socket.socket, name)))
    signal.signal(signal.SIGUSR1, steps.begin)
    # trio takes the socket's methods as it is imported
    from qsup.daemon import main as daemon

    return daemon()


if __name__ == "__main__":
    sys.exit(main())
