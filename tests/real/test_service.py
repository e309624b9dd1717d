"""The daemon as a service: what it tells its manager, the socket it is handed, and what its VMs inherit: nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, rom_unit
from tests.waiting import came_true

pytestmark = pytest.mark.real


class FakeManager:
    """A service manager's notification socket (sd_notify(3)), with all that was said on it."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def heard(self, line: str, *, times: int = 1) -> bool:
        """Whether a line was said so many times by now."""
        while True:
            try:
                self.said += self._socket.recv(65536).decode().splitlines()
            except BlockingIOError:
                return self.said.count(line) >= times


@pytest.fixture
def manager(root_dir: Path) -> Iterator[FakeManager]:
    """A fake manager in the test's directory."""
    found = FakeManager(root_dir / "notify")
    try:
        yield found
    finally:
        found.close()
        (root_dir / "notify").unlink()


def test_the_manager_hears_ready_watchdog_and_stopping(
    root_dir: Path, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY=1 once the API answers, WATCHDOG=1 again and again, STOPPING=1 at SIGTERM."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    daemon = Daemon(root_dir)
    daemon.start()
    try:
        assert came_true(lambda: manager.heard("READY=1"), seconds=DEADLINE)
        assert daemon.get("/v1/health")["status"] == "ok"
        assert came_true(lambda: manager.heard("WATCHDOG=1", times=3), seconds=DEADLINE)
        assert not manager.heard("STOPPING=1")
        assert daemon.signal(signal.SIGTERM) == 0
        assert manager.heard("STOPPING=1")
    finally:
        daemon.close()


def test_nothing_of_the_service_reaches_a_vm(
    root_dir: Path, manager: FakeManager, monkeypatch: pytest.MonkeyPatch, qemu: Emulator, rom_guest: Path
) -> None:
    """QEMU's environment holds none of the manager's variables, and nothing of the daemon's own."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("QSUP_SECRET_OF_THE_DAEMON", "yes")
    daemon = Daemon(root_dir)
    daemon.start()
    try:
        daemon.unit("web", rom_unit(qemu, rom_guest))
        pid = daemon.do("web", "start")["pid"]
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        names = {entry.partition(b"=")[0].decode() for entry in environment if entry}
        # sh sets PWD (and, as bash, two more) by itself
        assert names - {"PWD", "SHLVL", "_", "OLDPWD"} <= {"PATH", "LANG", "HOME", "QEMU_MODULE_DIR"}
    finally:
        daemon.close()


def test_a_socket_that_the_manager_holds_is_served(root_dir: Path) -> None:
    """Socket activation: the first client starts the daemon and is answered; the path stays the manager's."""
    path = root_dir / "activated.sock"
    command = [sys.executable, "-m", "qsup.daemon", "--root", str(root_dir), "--socket", str(path)]
    with (root_dir / "activate.log").open("wb") as log:
        activator = subprocess.Popen(
            ["systemd-socket-activate", "--fdname=api", f"--listen={path}", *command], stdout=log, stderr=log
        )
    try:
        assert came_true(path.exists, seconds=DEADLINE), "systemd-socket-activate did not listen"
        asked = subprocess.run(
            [sys.executable, "-m", "qsup.ctl.main", "--socket", str(path), "-o", "json", "health"],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert '"status": "ok"' in asked.stdout, asked.stderr
        # the activator became the daemon by exec: what answered is the same process
        assert "qsup.daemon" in Path(f"/proc/{activator.pid}/cmdline").read_text()
    finally:
        activator.send_signal(signal.SIGTERM)
        activator.wait(DEADLINE)
    assert path.exists()
    os.unlink(path)


def test_a_hang_up_reads_the_unit_files_again(root_dir: Path, qemu: Emulator, rom_guest: Path) -> None:
    """SIGHUP is `reload`: a new file is a new VM."""
    daemon = Daemon(root_dir)
    daemon.start()
    try:
        (daemon.units / "late.toml").write_text(rom_unit(qemu, rom_guest))
        os.kill(daemon.pid, signal.SIGHUP)

        def is_known() -> bool:
            return [vm["name"] for vm in daemon.get("/v1/instances")["instances"]] == ["late"]

        assert came_true(is_known, seconds=DEADLINE)
    finally:
        daemon.close()


def test_what_starts_by_itself_is_started_with_the_daemon(root_dir: Path, qemu: Emulator, rom_guest: Path) -> None:
    """`autostart` VMs run after the daemon's start, the others do not; those that run already are left alone."""
    daemon = Daemon(root_dir)
    (daemon.units / "auto.toml").write_text(rom_unit(qemu, rom_guest, install="autostart = true"))
    (daemon.units / "other.toml").write_text(rom_unit(qemu, rom_guest))
    daemon.start()
    try:
        pid = daemon.wait("auto", "running")["pid"]
        assert daemon.view("other")["substate"] == "dead"
        daemon.signal(signal.SIGKILL)
        daemon.start()
        assert daemon.wait("auto", "running")["pid"] == pid
    finally:
        daemon.close()
