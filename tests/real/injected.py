"""Faults that strace puts into a daemon's system calls.

Decides: how strace is attached, and that it is gone afterwards.
Must not: judge what becomes of the daemon; tests do.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.real.daemons import Daemon


@contextmanager
def injected(daemon: Daemon, calls: str, fault: str, *paths: str) -> Iterator[None]:
    """Have strace put a fault into the daemon's calls of a kind, those on certain paths only if any are given.

    Args:
        calls: names of system calls, separated by commas.
        fault: what strace's ``inject`` takes behind them, such as ``error=ENOSPC`` or ``signal=KILL:when=1``.
    """
    where = [option for path in paths for option in ("-P", path)]
    traced = ["-e", f"trace={calls}", "-e", f"inject={calls}:{fault}"]
    command = ["strace", "-f", "-p", str(daemon.pid), "-o", "/dev/null", *where, *traced]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            said = iter(tracer.stderr.readline, "")
            assert any("attached" in line for line in said)
            yield
        finally:
            tracer.kill()
            tracer.communicate()


@contextmanager
def killed_at(daemon: Daemon, calls: str, count: int, *paths: str) -> Iterator[None]:
    """Have the daemon killed at its next ``count``-th call of a kind in any one thread; see `injected`."""
    with injected(daemon, calls, f"signal=KILL:when={count}", *paths):
        yield
