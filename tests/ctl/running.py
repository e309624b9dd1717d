"""Running qsupctl: in this process against a served API, or as a process of its own at a terminal.

Decides: how tests call it and read what it says, every wait with a deadline.
Must not: know a verb.
"""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import frozen

from qsup.ctl.main import main

#: Seconds that any one wait may take.
PATIENCE = 10.0
COMMAND = (sys.executable, "-m", "qsup.ctl.main")


@frozen(kw_only=True)
class Result:
    """How one call ended."""

    code: int
    out: str
    err: str


class Ctl:
    """Calls `main` in a thread, so that a server in the test's own trio loop can answer.

    Args:
        socket: the API's.
        capture: pytest's ``capsys``.
    """

    def __init__(self, socket: str, capture: pytest.CaptureFixture[str]) -> None:
        self.socket = socket
        self._capture = capture

    async def __call__(self, *arguments: str) -> Result:
        """Run one command line."""
        self._capture.readouterr()
        run = partial(main, ["--socket", self.socket, *arguments])
        with trio.fail_after(PATIENCE):
            code = await trio.to_thread.run_sync(run, abandon_on_cancel=True)
        out, err = self._capture.readouterr()
        return Result(code=code, out=out, err=err)

    async def ok(self, *arguments: str) -> str:
        """Run one command line that must succeed without a complaint; returns what it printed."""
        result = await self(*arguments)
        assert (result.code, result.err) == (0, ""), result
        return result.out


def run_process(
    *arguments: str, input: bytes = b"", environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run qsupctl as a process with pipes."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=input,
        capture_output=True,
        timeout=PATIENCE,
        env={**os.environ, **(environ or {})},
    )


class Terminal:
    """A process at a pseudo-terminal.

    Attributes:
        process: the program.
        seen: all it has written so far.
    """

    def __init__(self, process: subprocess.Popen[bytes], master: int, own: list[Any]) -> None:
        self.process = process
        self.seen = b""
        self._master = master
        self._own = own

    def type(self, data: bytes) -> None:
        """Press keys."""
        os.write(self._master, data)

    def read_until(self, wanted: bytes) -> bytes:
        """Read on until the text has come; returns all that was seen."""
        self.wait(lambda: wanted in self.seen, f"{wanted!r} on the terminal")
        return self.seen

    def wait(self, condition: Callable[[], bool], what: str, *, seconds: float = PATIENCE) -> None:
        """Take in what the program writes until something holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"not within {seconds:g} s: {what}; seen: {self.seen[-2000:]!r}"
            # a terminal tells nobody that its settings changed, so conditions are looked at again now and then
            if select.select([self._master], [], [], min(left, 0.02))[0]:
                self._take()

    def _take(self) -> None:
        try:
            self.seen += os.read(self._master, 65536)
        except OSError:
            pass  # EIO: the program closed the terminal; the condition decides

    @property
    def is_raw(self) -> bool:
        """Whether keys go through unread and unechoed."""
        return not termios.tcgetattr(self._master)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    @property
    def is_restored(self) -> bool:
        """Whether every setting is as it was before the program."""
        return termios.tcgetattr(self._master) == self._own

    @property
    def is_stopped(self) -> bool:
        """Whether the program stands still (proc(5): state T)."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def end(self) -> int:
        """Wait for the program's end; its exit code."""
        self.wait(lambda: self.process.poll() is not None, "the end of the program")
        # what it wrote last may still be on its way
        while select.select([self._master], [], [], 0)[0]:
            before = len(self.seen)
            self._take()
            if len(self.seen) == before:
                break
        return self.process.wait()


@contextmanager
def terminal(*arguments: str, environ: Mapping[str, str] | None = None) -> Iterator[Terminal]:
    """Run qsupctl at a pseudo-terminal of its own."""
    with program_at_terminal([*COMMAND, *arguments], environ or {}) as started:
        yield started


@contextmanager
def program_at_terminal(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[Terminal]:
    """Run any program at a pseudo-terminal; it is gone when the context is left."""
    master, slave = pty.openpty()
    own = termios.tcgetattr(master)  # before the program can have changed them
    process: subprocess.Popen[bytes] | None = None
    try:
        process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", **environ},
        )
        started = Terminal(process, master, own)
        yield started
    finally:
        if process is not None:
            process.kill()
            process.wait()
        os.close(master)
        os.close(slave)


async def in_thread(function: Callable[..., Any], *arguments: object) -> Any:
    """Run blocking test code beside the test's trio loop, bounded."""
    with trio.fail_after(2 * PATIENCE):
        return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)
