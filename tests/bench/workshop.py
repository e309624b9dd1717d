"""What every measurement works with: a daemon of its own, its VMs, and taking turns.

Decides: which guest is measured on which accelerator, and the order of samples.
Must not: compute or print figures.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from qsup.host.usage import process_clock
from tests.bare import accelerator
from tests.bench.kept import Kept
from tests.guests import rom_guest
from tests.real.daemons import Daemon

CONCURRENCY = 4


@attrs.frozen(kw_only=True)
class Workshop:
    """A running daemon and a directory to work in."""

    directory: Path
    daemon: Daemon

    @property
    def socket(self) -> Path:
        """Where the API listens."""
        return Path(self.daemon.address.path)

    def connect(self) -> Kept:
        """A new connection to it."""
        return Kept(self.socket)

    def add(self, *names: str) -> None:
        """Make VMs of the ROM guest, none of which runs yet."""
        for name in names:
            (self.daemon.units / f"{name}.toml").write_text(unit())
        self.daemon.post("/v1/reload")

    def argv(self, name: str) -> list[str]:
        """The command line of a running VM's QEMU."""
        found: list[str] = self.daemon.get(f"/v1/instances/{name}/cmdline")["argv"]
        return found

    def status(self, key: str) -> int:
        """A number from the daemon's /proc/PID/status, in what that file gives it in."""
        for line in Path(f"/proc/{self.daemon.pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
        raise LookupError(key)

    def cpu_seconds(self) -> float:
        """What all of the daemon's threads have run for, those that have ended included."""
        return time.clock_gettime(process_clock(self.daemon.pid))


def unit() -> str:
    """The unit of the VM that is measured: the ROM guest, which is ready as soon as it runs and obeys no button."""
    accel = accelerator()
    # `host` is more than a nested KVM can give
    cpu = '[cpu]\nmodel = "kvm64"\n' if accel == "kvm" else ""
    return f"""\
[service]
stop-methods = ["quit", "term", "kill"]
[machine]
accel = "{accel}"
firmware = "{rom_guest()}"
hotplug-slots = 0
{cpu}[memory]
size = "16M"
balloon = false
[agent]
enabled = false
"""


@contextmanager
def workshop() -> Iterator[Workshop]:
    """A fresh daemon in a directory of its own; nothing is left afterwards.

    It is the installed program, and as in an installed system ``run`` is on tmpfs and ``state`` on a disk.
    """
    with (
        tempfile.TemporaryDirectory(prefix="qsup-", dir="/var/tmp") as on_disk,
        tempfile.TemporaryDirectory(prefix="qsup-", dir="/dev/shm") as in_memory,
    ):
        with _daemon(Path(on_disk), Path(in_memory)) as shop:
            yield shop


@contextmanager
def _daemon(directory: Path, run: Path) -> Iterator[Workshop]:
    directory.chmod(0o755)
    (directory / "root").mkdir()
    (directory / "root" / "run").symlink_to(run)
    daemon = Daemon(directory / "root", ["--log-level", "info"], command=[program("qsupd")])
    try:
        daemon.start()
        yield Workshop(directory=directory, daemon=daemon)
    finally:
        daemon.close()


def program(name: str) -> str:
    """An entry point of the installed package."""
    return str(Path(sys.executable).parent / name)


def power(connection: Kept, name: str, verb: str) -> None:
    """A power verb that must succeed."""
    operation = connection.ask("POST", f"/v1/instances/{name}/{verb}?wait=60")
    assert operation["state"] == "succeeded", operation


def power_all(shop: Workshop, names: Sequence[str], verb: str) -> None:
    """A power verb for many VMs, a few at a time."""

    def work(connection: Kept, share: Sequence[str]) -> None:
        for name in share:
            power(connection, name, verb)

    connections = [shop.connect() for _ in range(CONCURRENCY)]
    shares = [names[number::CONCURRENCY] for number in range(CONCURRENCY)]
    together(work, connections, shares)
    for connection in connections:
        connection.close()


def together(work: Callable[..., None], *arguments: Sequence[Any]) -> None:
    """Do the work with each set of arguments at the same time; raises what one of them raised."""
    with ThreadPoolExecutor(len(arguments[0])) as pool:
        list(pool.map(work, *arguments))


def clock(work: Callable[..., object], *arguments: object) -> float:
    """The seconds that something takes."""
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def in_turns(repeat: int, *measured: Callable[[], tuple[float, ...]], batch: int = 1) -> list[list[tuple[float, ...]]]:
    """Take samples of several things, in turns, so that what else the machine does troubles all alike.

    Args:
        repeat: how often each is called.
        measured: each returns the times of one go; the first go of each is not counted.
        batch: how often in a row.

    Returns:
        for each thing, and each time of it, all samples.
    """
    for each in measured:
        each()
    goes: list[list[tuple[float, ...]]] = [[] for _ in measured]
    for _ in range(max(1, repeat // batch)):
        for taken, each in zip(goes, measured, strict=True):
            taken.extend(each() for _ in range(batch))
    return [list(zip(*taken, strict=True)) for taken in goes]


def clean_environment() -> None:
    """What would distort the start of every program; children inherit it."""
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONPATH"):
        os.environ.pop(name, None)
