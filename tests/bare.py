"""A QEMU or a guest agent without any of qsup: spawned by subprocess, spoken to over a blocking socket.

Decides: how the reference that qsup is compared with is started and ended.
Must not: import qsup, or leave anything behind.
"""

from __future__ import annotations

import array
import collections
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from tests.guests import Emulator, linux_guest, rom_guest

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

    Attributes:
        events: the newest events that came and were asked for by nobody, oldest first.
    """

    def __init__(self, path: Path, listener: Listener = _ignore) -> None:
        self.events: collections.deque[dict[str, object]] = collections.deque(maxlen=1000)
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

    def negotiate(self) -> None:
        """Read a monitor's greeting and leave capabilities negotiation mode."""
        self.read()
        self.command("qmp_capabilities")

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
            message = self._message(name)
            if message.get("id") == name_of:
                answer = message
            elif (event := message.get("event")) in missing:
                missing.remove(str(event))
            elif event:
                self.events.append(message)
        return answer

    def ask(self, name: str, arguments: dict[str, object] | None = None) -> Any:
        """Send a command that succeeds; return what it returns."""
        answer = self.command(name, arguments)
        assert "return" in answer, f"{name}: {answer}"
        return answer["return"]

    def event(self, name: str) -> dict[str, object]:
        """The oldest event of that name that nobody asked for yet; waits for it to come."""
        for message in self.events:
            if message["event"] == name:
                self.events.remove(message)
                return message
        while True:
            message = self._message(name)
            if message.get("event") == name:
                return message
            self.events.append(message)

    def _message(self, awaited: str) -> dict[str, object]:
        text = self.read()
        assert text, f"the connection ended in {awaited}"
        message = json.loads(text.lstrip(DELIMITER))
        assert isinstance(message, dict)
        return message


class BareConsole:
    """Our end of a serial port.

    Attributes:
        output: all that the guest wrote and `read_until` took.
    """

    def __init__(self) -> None:
        self.output = b""
        self._ours, self._theirs = socket.socketpair()

    @property
    def fd(self) -> int:
        """QEMU's end, for a chardev of type socket."""
        return self._theirs.fileno()

    def write(self, data: bytes) -> None:
        """Type something."""
        self._ours.sendall(data)

    def read_until(self, text: bytes, *, seconds: float = DEADLINE) -> bytes:
        """What the guest wrote since the last call, up to the end of ``text`` or a little more."""
        start = len(self.output)
        deadline = time.monotonic() + seconds
        while text not in self.output[start:]:
            self._ours.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._ours.recv(65536)
            except TimeoutError:
                data = b""
            assert data, f"not within {seconds:g} s on the console: {text!r}, only {self.output[start:]!r}"
            self.output += data
        return self.output[start:]

    def close(self) -> None:
        """Close both ends."""
        self._ours.close()
        self._theirs.close()


@attrs.frozen(kw_only=True)
class BareMachine:
    """A running machine, its negotiated monitor and its console."""

    process: subprocess.Popen[bytes]
    monitor: BareConnection
    console: BareConsole


def accelerator() -> str:
    """``kvm`` where this process may use /dev/kvm, else ``tcg``; the ROM guest runs on either."""
    return "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


SMALLEST = ["-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown", "-machine", "q35"]


def rom_options(accel: str = "") -> list[str]:
    """The options of a smallest machine that runs the ROM guest, by default on what `accelerator` finds."""
    accel = accel or accelerator()
    # any processor will do for TCG, and `host` is more than a nested KVM can give
    processor = ["-cpu", "kvm64"] if accel == "kvm" else []
    return [*SMALLEST, "-m", "16", "-accel", accel, *processor, "-bios", str(rom_guest())]


def linux_options() -> list[str]:
    """The options of a smallest machine that runs the Linux guest, which needs a stock processor and so TCG."""
    guest = linux_guest()
    boot = ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", guest.append]
    return [*SMALLEST, "-m", "128", "-accel", "tcg", *boot]


@contextlib.contextmanager
def bare_machine(directory: Path, *options: str, emulator: Emulator) -> Iterator[BareMachine]:
    """Run a machine with a serial console, and connect to its monitor.

    Args:
        directory: for its socket and, as evidence, ``qmp.log``, ``console.log``, ``stderr`` and ``argv``.
        options: all but those of the monitor and the console, such as `rom_options` gives.
        emulator: the QEMU.
    """
    console = BareConsole()
    serial = f"socket,id=serial,fd={console.fd},logfile={directory}/console.log"
    given = [*options, "-chardev", serial, "-serial", "chardev:serial"]
    with (
        contextlib.closing(console),
        (directory / "qmp.log").open("a", buffering=1, errors="surrogateescape") as log,
        bare_qemu(directory, *given, binary=str(emulator.path), fds=[console.fd]) as process,
        BareConnection(directory / "qmp.sock", lambda side, text: print(side, text, file=log)) as monitor,
    ):
        monitor.negotiate()
        yield BareMachine(process=process, monitor=monitor, console=console)


@contextlib.contextmanager
def bare_qemu(
    directory: Path, *options: str, binary: str = "qemu-system-x86_64", fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a QEMU whose monitor listens at ``directory/qmp.sock``; kill and reap it, and remove the socket.

    Args:
        directory: its working directory; its standard error goes to ``stderr`` there, its command line to ``argv``.
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
        (directory / "argv").write_text("\n".join(command))
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
