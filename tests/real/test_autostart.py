"""What starts by itself, on a real daemon: with the first one after a boot, whatever is in the way at that moment."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from qsup.errors import QsupError
from tests.guests import Emulator
from tests.host.full import full_file_system
from tests.real.daemons import DEADLINE, Daemon, rom_unit
from tests.waiting import poll_until

pytestmark = pytest.mark.real

AUTO = "autostart = true"


def test_a_vm_that_is_enabled_later_starts_at_the_next_boot(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """A daemon that is restarted, upgraded or killed in between starts nothing."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.ctl("enable", "web")
    for number in (signal.SIGTERM, signal.SIGKILL):
        poll_until(lambda: list(daemon.run.glob("autostarted.*")), "what starts by itself has", seconds=DEADLINE)
        daemon.restart(number)
    assert daemon.view("web")["substate"] == "dead"
    assert daemon.get("/v1/operations")["operations"] == []
    daemon.signal(signal.SIGTERM)
    daemon.forget_autostart()
    daemon.start()
    daemon.wait("web", "running")


@pytest.mark.root
def test_t7_what_starts_by_itself_starts_as_soon_as_there_is_room(
    root_dir: Path, emulator: Emulator, rom_guest: Path
) -> None:
    """The journal cannot be written as the daemon begins: its health says so, and with room all of them start."""
    names = [f"web{number}" for number in range(5)]
    (root_dir / "state").mkdir()
    with full_file_system(root_dir) as full:
        subprocess.run(["mount", "--bind", full.path, root_dir / "state"], check=True, timeout=10)
        daemon = Daemon(root_dir)
        try:
            daemon.start()
            daemon.signal(signal.SIGTERM)
            daemon.forget_autostart()
            for name in names:
                (daemon.units / f"{name}.toml").write_text(rom_unit(emulator, rom_guest, install=AUTO))
            full.fill()
            daemon.start()
            poll_until(lambda: daemon.get("/v1/health")["problems"], "it says so", seconds=DEADLINE)
            (problem,) = daemon.get("/v1/health")["problems"]
            assert "what starts by itself could not be started: " in problem
            assert "No space left on device" in problem
            assert {daemon.view(name)["substate"] for name in names} == {"dead"}
            full.make_room()
            for name in names:
                daemon.wait(name, "running")
            assert daemon.get("/v1/health")["problems"] == []
        finally:
            daemon.close()
            subprocess.run(["umount", root_dir / "state"], check=True, timeout=10)


def test_a_stop_of_all_at_the_first_moment_is_the_last_word(
    root_dir: Path, emulator: Emulator, rom_guest: Path
) -> None:
    """It comes before the units are read of what starts by itself: nothing of that starts after it."""
    daemon = Daemon(root_dir)
    many = [f"many@{number}" for number in range(120)]
    (daemon.units / "many@.toml").write_text(rom_unit(emulator, rom_guest))
    (daemon.units / "web.toml").write_text(rom_unit(emulator, rom_guest, install=AUTO, unit=f"wants = {many}"))
    daemon.spawn()
    try:

        def has_stopped() -> bool:
            try:
                operation = daemon.post("/v1/stop-all?wait=60")
            except QsupError:
                return False
            assert operation["state"] == "succeeded", operation
            return True

        poll_until(has_stopped, "all were stopped", seconds=DEADLINE)
        poll_until(lambda: list(daemon.run.glob("autostarted.*")), "what starts by itself has", seconds=DEADLINE)
        started = [each for each in daemon.get("/v1/operations?limit=1000")["operations"] if each["kind"] == "start"]
        assert all(each["state"] != "running" for each in started)
        assert {view["substate"] for view in daemon.get("/v1/instances?limit=1000")["instances"]} == {"dead"}
        daemon.restart()
        assert {view["substate"] for view in daemon.get("/v1/instances?limit=1000")["instances"]} == {"dead"}
    finally:
        daemon.close()
