"""A real daemon in a test's own directory, and its clients.

Decides: how a test starts, kills and talks to `qsupd`, and how it waits for a VM.
Must not: assert anything about VMs; tests do.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qsup.ctl.client import Client
from qsup.ctl.connection import Address, Deadline, Stream
from qsup.ctl.websocket import connect
from tests.guests import Emulator, LinuxGuest
from tests.waiting import came_true

DEADLINE = 20.0
KILL = signal.SIGKILL


class Daemon:
    """One ``qsupd --root``, which may be killed and started again in the same directory.

    Long because it has a line or two for each thing that tests do with a daemon.

    Args:
        root: its directory.
        arguments: further ones of its command line.
        command: how it is executed.
        place: the arguments that say where its directories are, ``--root`` and its directory unless given.
    """

    def __init__(
        self,
        root: Path,
        arguments: Sequence[str] = (),
        *,
        command: Sequence[str] = (sys.executable, "-m", "qsup.daemon"),
        place: Sequence[str] | None = None,
    ) -> None:
        self.root = root
        self.units = root / "units"
        self.run = root / "run"
        self.state = root / "state"
        self.logs = root / "log"
        self.images = root
        self.units.mkdir(exist_ok=True)
        where = ("--root", str(root)) if place is None else place
        self._command = (*command, *where, "--log-level", "debug", *arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = (root / "qsupd.log").open("ab")

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address(str(self.run / "api.sock"), "")

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None, "the daemon was not started"
        return self._process.pid

    def start(self, *, stderr: int | None = None) -> None:
        """Start it and wait until it answers; its log goes to a file unless told otherwise."""
        self.spawn(stderr=stderr)
        assert came_true(self._answers, seconds=DEADLINE), f"qsupd did not answer: {self.log()[-2000:]}"

    def spawn(self, *, stderr: int | None = None) -> None:
        """Start it and wait for nothing."""
        self._process = subprocess.Popen(self._command, stderr=stderr or self._log, stdin=subprocess.DEVNULL)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"qsupd ended: {self.log()[-2000:]}"
        return (self.run / "api.sock").exists() and _connects(self.run / "api.sock")

    def signal(self, number: int) -> int:
        """Signal it, wait for its end, and return its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(DEADLINE)

    def restart(self, number: int = KILL) -> None:
        """End it, without warning unless told otherwise, and start another in its place."""
        self.signal(number)
        self.start()

    def forget_autostart(self) -> None:
        """Let the next one be the first after a boot, as far as what starts by itself goes."""
        for path in self.run.glob("autostarted.*"):
            path.unlink()

    def close(self) -> None:
        """End all of it: VMs first, so that none is left to whoever comes next."""
        if self._process is not None and self._process.poll() is None:
            with self.client() as client:
                for vm in client.get("/v1/instances")["instances"]:
                    client.post(f"/v1/instances/{vm['name']}/kill?wait=10")
            self.signal(signal.SIGTERM)
        self._log.close()

    def is_alive(self) -> bool:
        """Whether it runs and has not been replaced."""
        return self._process is not None and self._process.poll() is None

    def memory(self) -> int:
        """Bytes that it holds now (proc(5): VmRSS)."""
        (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(kilobytes) * 1024

    def remains(self) -> list[str]:
        """The VMs that have a run directory: those that run, or are not tidied up after."""
        directory = self.run / "instances"
        return sorted(path.name for path in directory.iterdir())

    def log(self) -> str:
        """What it logged."""
        return whole_lines(self.root / "qsupd.log")

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of its API."""
        client = Client(self.address)
        try:
            yield client
        finally:
            client.close()

    def unit(self, name: str, text: str) -> None:
        """Write a unit file and have it read."""
        (self.units / f"{name}.toml").write_text(text)
        with self.client() as client:
            client.post("/v1/reload")

    def get(self, path: str) -> Any:
        """A GET of the API."""
        with self.client() as client:
            return client.get(path)

    def post(self, path: str, document: object = None) -> Any:
        """A POST of the API."""
        with self.client() as client:
            return client.post(path, document, timeout=60.0)

    def view(self, name: str) -> dict[str, Any]:
        """One VM as the API shows it."""
        found: dict[str, Any] = self.get(f"/v1/instances/{name}")
        return found

    def power(self, name: str, verb: str, **body: object) -> dict[str, Any]:
        """A power verb, waited for: the finished operation."""
        operation: dict[str, Any] = self.post(f"/v1/instances/{name}/{verb}?wait=60", body)
        return operation

    def do(self, name: str, verb: str, **body: object) -> dict[str, Any]:
        """A power verb that must succeed: the VM afterwards."""
        operation = self.power(name, verb, **body)
        assert operation["state"] == "succeeded", operation
        return self.view(name)

    def wait(self, name: str, substate: str, *, seconds: float = DEADLINE) -> dict[str, Any]:
        """Wait until a VM is in a substate."""
        there = came_true(lambda: self.view(name)["substate"] == substate, seconds=seconds)
        view = self.view(name)
        assert there, f"{name} is {view['substate']}, not {substate}, after {seconds:g} s: {view['cause']}"
        return view

    def ctl(self, *arguments: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``qsupctl``."""
        command = [sys.executable, "-m", "qsup.ctl.main", "--root", str(self.root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, input=stdin, check=False)
        assert not check or done.returncode == 0, f"qsupctl {' '.join(arguments)}: {done.stderr}"
        return done

    def type(self, name: str, keys: str, *, after: str = "ready") -> None:
        """Type on a VM's console, and return once its guest has answered.

        Args:
            after: what the guest must have written before, in the console's history or since; ``""`` for nothing.
        """
        with self.client() as client:
            console = connect(client, f"/v1/instances/{name}/console?mode=write")
            seen = bytearray()

            def has_written(text: str) -> bool:
                seen.extend(console.receive())
                return text.encode() in seen

            try:
                assert came_true(lambda: has_written(after), seconds=DEADLINE), f"the guest never wrote {after!r}"
                seen.clear()
                console.send(keys.encode())
                console.flush()
                assert came_true(lambda: has_written(keys[-1:]), seconds=DEADLINE), "no echo"
            finally:
                console.close()
            # whoever types next need not wait for the daemon to notice that we have gone
            assert came_true(lambda: not self.view(name)["console"]["has_writer"], seconds=DEADLINE), "still typing"

    def events(self) -> Events:
        """The stream of events, from now on."""
        return Events(Client(self.address).stream("/v1/events"))


def whole_lines(path: Path) -> str:
    """What a process that still writes to a file has written of it, without the line that it is at."""
    text = path.read_text(errors="replace")
    return text[: text.rfind("\n") + 1]


def _connects(path: Path) -> bool:
    client = Client(Address(str(path), ""))
    try:
        client.get("/v1/health")
    except Exception:  # not yet, whatever the reason; the caller's deadline speaks
        return False
    finally:
        client.close()
    return True


def rom_unit(emulator: Emulator, rom: Path, *, accel: str = "tcg", **sections: str) -> str:
    """A unit of the ROM guest: up at once, obeys single keys on its console.

    Args:
        accel: ``tcg`` or ``kvm``; `host` is more than a nested KVM can give.
        sections: further lines by section, such as ``service="restart = 'always'"``.
    """
    parts = {
        "machine": f'emulator = "{emulator.path}"\ntype = "q35"\naccel = "{accel}"\nfirmware = "{rom}"',
        "cpu": 'model = "kvm64"' if accel == "kvm" else "",
        "memory": 'size = "16M"\nballoon = false',
        "agent": "enabled = false",
    }
    return _unit(parts, sections)


def free_port() -> int:
    """A TCP port of the loopback address that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def linux_unit(emulator: Emulator, guest: LinuxGuest, **sections: str) -> str:
    """A unit of the Linux guest, ready when its agent answers."""
    machine = [
        f'emulator = "{emulator.path}"',
        'accel = "tcg"',
        f'kernel = "{guest.kernel}"',
        f'initrd = "{guest.initrd}"',
        f'append = "{guest.append}"',
    ]
    parts = {"machine": "\n".join(machine), "memory": 'size = "128M"', "service": 'ready = "agent"'}
    return _unit(parts, sections)


def _unit(parts: dict[str, str], more: dict[str, str]) -> str:
    merged = {name: "\n".join(filter(None, (parts.get(name), more.get(name)))) for name in {**parts, **more}}
    tail = merged.pop("tables", "")
    return "\n".join([*(f"[{name}]\n{text}\n" for name, text in merged.items()), tail])


def signal_process(pid: int, number: signal.Signals) -> None:
    """Signal a process through a pidfd."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)


def kill_process(pid: int) -> None:
    """SIGKILL a process."""
    signal_process(pid, KILL)


class Events:
    """What a daemon tells from now on, in order."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._waiting: deque[dict[str, Any]] = deque()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def next(self, wanted: str, *, seconds: float = DEADLINE, **data: object) -> dict[str, Any]:
        """The next event of a type whose data has these members; those before it are passed over."""
        deadline = Deadline(seconds)
        while True:
            while self._waiting:
                event = self._waiting.popleft()
                if event["type"] == wanted and all(event["data"].get(key) == value for key, value in data.items()):
                    return event
            lines = self._stream.read(deadline)
            assert lines is not None, f"the events ended before {wanted} {data}"
            self._waiting += [json.loads(line) for line in lines if line.strip()]


def elapsed(began: float) -> float:
    """Seconds since a moment of the monotonic clock."""
    return time.monotonic() - began
