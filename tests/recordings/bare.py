"""A QEMU or a guest agent without any of qsup: spawned by subprocess, spoken to over a blocking socket.

Decides: how the reference that qsup is compared with is started and ended.
Must not: import qsup, or leave anything behind.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

DEADLINE = 30.0
# 0xFF, which the guest agent puts before the answer to guest-sync-delimited, as surrogateescape (PEP 383) writes it
DELIMITER = "\udcff"

Listener = Callable[[str, str], None]


def _ignore(_side: str, _text: str) -> None:
    """Nobody listens."""


class BareConnection:
    """One client of a JSON-lines server, which may yet have to begin to listen.

    Args:
        path: the listening socket.
        listener: told every line, with the side it came from: ``client`` or ``server``.
    """

    def __init__(self, path: Path, listener: Listener = _ignore) -> None:
        self._socket = _connected(path)
        self._file = self._socket.makefile("rb")
        self._listener = listener
        self._commands = 0

    def __enter__(self) -> BareConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def write(self, text: str, fds: Sequence[int] = ()) -> None:
        """Send one line as it is."""
        self._listener("client", text)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([text.encode(errors="surrogateescape") + b"\n"], rights)

    def read(self) -> str:
        """Receive one line, without its end; ``""`` at the end of the connection."""
        try:
            text = self._file.readline().rstrip(b"\r\n").decode(errors="surrogateescape")
        except ConnectionResetError:
            text = ""
        self._listener("server", text)
        return text

    def command(
        self,
        name: str,
        arguments: dict[str, object] | None = None,
        *,
        until: Sequence[str] = (),
        fds: Sequence[int] = (),
        prefix: str = "",
        oob: bool = False,
    ) -> dict[str, object]:
        """Send a command, and read until its answer and all of the events ``until`` came; return the answer."""
        self._commands += 1
        name_of = f"bare-{self._commands}"
        request: dict[str, object] = {"exec-oob" if oob else "execute": name, "id": name_of}
        self.write(prefix + json.dumps(request | ({"arguments": arguments} if arguments else {})), fds)
        answer: dict[str, object] = {}
        missing = list(until)
        while not answer or missing:
            text = self.read()
            assert text, f"the connection ended in {name}"
            message = json.loads(text.lstrip(DELIMITER))
            if message.get("id") == name_of:
                answer = message
            elif message.get("event") in missing:
                missing.remove(message["event"])
        return answer


@contextlib.contextmanager
def bare_qemu(
    directory: Path, *options: str, binary: str = "qemu-system-x86_64", fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a QEMU whose monitor listens at ``directory/qmp.sock``; kill and reap it, and remove the socket.

    Args:
        directory: its working directory; its standard error goes to ``stderr`` there.
        options: its command line but for the monitor's.
        binary: the emulator.
        fds: further descriptors to inherit.
    """
    path = directory / "qmp.sock"
    with socket.socket(socket.AF_UNIX) as listener, (directory / "stderr").open("wb") as errors:
        listener.bind(str(path))
        listener.listen(1)
        monitor = [f"-chardev=socket,id=qmp,fd={listener.fileno()},server=on,wait=off", "-mon=chardev=qmp,mode=control"]
        command = [binary, *options, *(part for item in monitor for part in item.split("=", 1))]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            pass_fds=[listener.fileno(), *fds],
            cwd=directory,
        )
    with _reaped(process, path):
        yield process


@contextlib.contextmanager
def bare_agent(directory: Path, *launcher: str) -> Iterator[Path]:
    """Run a guest agent on this host, which listens at the path this gives; kill and reap it.

    Args:
        directory: where its socket and state live.
        launcher: a command that executes the rest of its arguments, such as one that enters a network namespace.
    """
    path = directory / "agent.sock"
    # what would touch the host that plays the guest is blocked
    blocked = "guest-shutdown,guest-suspend-disk,guest-suspend-ram,guest-suspend-hybrid,guest-fsfreeze-freeze"
    options = ["--method=unix-listen", f"--path={path}", f"--statedir={directory}", f"--pidfile={directory}/pid"]
    command = [*launcher, "qemu-ga", *options, f"--block-rpcs={blocked}"]
    with (directory / "agent.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    with _reaped(process, path):
        yield path


def _connected(path: Path) -> socket.socket:
    deadline = time.monotonic() + DEADLINE
    while True:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(DEADLINE)
        try:
            stream.connect(str(path))
            return stream
        except (FileNotFoundError, ConnectionRefusedError):
            stream.close()
            assert time.monotonic() < deadline, f"nobody listens at {path}"
            os.sched_yield()


@contextlib.contextmanager
def _reaped(process: subprocess.Popen[bytes], path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait(DEADLINE)
        path.unlink(missing_ok=True)
