"""T7: full disks.

Decides: that ENOSPC is named, keeps nobody from stopping, undoes nothing, and is over when there is room.
Must not: fill any disk but one of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guests import Emulator
from tests.host.full import FullFileSystem, full_file_system
from tests.real.beside import refusal, words
from tests.real.daemons import DEADLINE, Daemon, kill_process, rom_unit
from tests.real.hotplug import attach_lasting, detach_lasting, finished, image, nodes, patch
from tests.real.wrecking import start
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]


@pytest.fixture
def full(root_dir: Path) -> Iterator[FullFileSystem]:
    """A small file system."""
    with full_file_system(root_dir) as found:
        yield found


@contextmanager
def daemon_in(directory: Path) -> Iterator[Daemon]:
    """A daemon, ended with all its VMs."""
    daemon = Daemon(directory)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


@pytest.mark.root
def test_t7_a_full_disk_is_named_and_keeps_nobody_from_stopping(
    full: FullFileSystem, emulator: Emulator, rom_guest: Path
) -> None:
    """Everything on one full file system: starts fail with ENOSPC, VMs run on and stop, and room is enough to go on."""
    with daemon_in(full.path) as daemon:
        pids = start(daemon, emulator, rom_guest, ("one", "two", "three"))
        full.fill()
        daemon.do("one", "stop", timeout=0.1)
        full.fill()  # what the stopped VM gave back
        for verb in ("start", "restart"):
            assert "No space left on device" in words(refusal(daemon, "one", verb))
        assert daemon.view("one")["substate"] in ("dead", "start-failed")
        daemon.restart()
        for name in ("two", "three"):
            assert daemon.wait(name, "running")["pid"] == pids[name]
        kill_process(pids["three"])
        daemon.wait("three", "crashed")
        assert daemon.get("/v1/health")["problems"] == []
        assert daemon.do("two", "kill")["substate"] == "dead"
        assert daemon.remains() == []
        full.make_room()
        assert daemon.do("one", "start")["substate"] == "running"
        for path in (full.path / "state").rglob("*.json*"):
            assert [json.loads(line) for line in path.read_text().splitlines()], path


@pytest.mark.root
def test_t7_what_happens_on_a_full_disk_is_known_to_the_next_daemon(
    full: FullFileSystem, emulator: Emulator, rom_guest: Path
) -> None:
    """Every write fails, VMs end in every way, the daemon is killed: a restart that is due comes, nothing else does."""
    soon = 'restart = "on-failure"\nrestart-delay = "4s"'
    late = 'restart = "always"\nrestart-delay = "1h"\nrestart-max-delay = "1h"'
    slow = 'restart = "always"\nrestart-delay = "10ms"\nstop-methods = ["quit"]\nquit-timeout = "1h"'
    services = {"crash": soon, "off": soon, "waits": late, "stop": late, "stopping": slow, "pause": late}
    with daemon_in(full.path) as daemon:
        pids = {}
        for name, service in services.items():
            # whoever looked after it is to be started, and is not when it has been stopped
            daemon.unit(name, rom_unit(emulator, rom_guest, service=service, install="autostart = true"))
            pids[name] = daemon.do(name, "start")["pid"]
        kill_process(pids["waits"])
        daemon.wait("waits", "auto-restart")
        daemon.do("pause", "pause")
        full.fill()
        assert daemon.do("waits", "stop")["substate"] == "dead"
        assert daemon.do("stop", "stop", timeout=0.1)["substate"] == "dead"
        daemon.type("off", "O")
        daemon.wait("off", "dead")
        os.kill(pids["stopping"], signal.SIGSTOP)
        daemon.post("/v1/instances/stopping/stop")
        daemon.wait("stopping", "stopping-quit")
        kill_process(pids["crash"])
        before = daemon.wait("crash", "auto-restart")
        full.fill()  # what those gave back that are gone
        daemon.signal(signal.SIGKILL)
        kill_process(pids["stopping"])
        daemon.start()
        after = daemon.view("crash")
        assert (after["substate"], after["cause"]["text"], after["restarts"]) == ("auto-restart", "signal KILL", 1)
        assert after["since"] == before["since"]
        for name in ("waits", "stop", "stopping"):
            view = daemon.wait(name, "dead")
            assert (view["cause"] and view["cause"]["kind"]) == "operator", name
        assert daemon.view("off")["cause"]["kind"] == "guest-shutdown"
        assert daemon.wait("pause", "paused")["pid"] == pids["pause"]
        full.make_room()
        assert daemon.wait("crash", "running")["restarts"] == 1
        assert [daemon.view(name)["substate"] for name in ("off", "waits", "stop", "stopping")] == ["dead"] * 4
        assert daemon.get("/v1/health")["problems"] == []


@pytest.mark.root
def test_t7_a_stop_without_any_reserve_is_not_undone(full: FullFileSystem, emulator: Emulator, rom_guest: Path) -> None:
    """How a VM ended is written as soon as there is room, and until then nothing that says otherwise is left."""
    always = 'restart = "always"\nrestart-delay = "1h"\nrestart-max-delay = "1h"'
    with daemon_in(full.path) as daemon:
        daemon.unit("web", rom_unit(emulator, rom_guest, service=always))
        kill_process(daemon.do("web", "start")["pid"])
        daemon.wait("web", "auto-restart")
        kept = daemon.run / "ended" / "web.json"
        poll_until(lambda: b"signal" in kept.read_bytes(), "its end is on record", seconds=DEADLINE)
        kept.with_name(".web.json.spare").unlink()
        full.fill()
        assert daemon.do("web", "stop")["substate"] == "dead"
        poll_until(lambda: not kept.exists(), "the end before is not", seconds=DEADLINE)
        (problem,) = daemon.get("/v1/health")["problems"]
        assert problem.startswith("web: could not keep how it ended: ")
        full.make_room()
        poll_until(kept.exists, "its end is on record again", seconds=DEADLINE)
        assert daemon.get("/v1/health")["problems"] == []
        daemon.restart()
        assert daemon.wait("web", "dead")["cause"]["kind"] == "operator"


@pytest.mark.root
def test_t7_last_words_that_do_not_fit_cost_no_restart(
    full: FullFileSystem, emulator: Emulator, rom_guest: Path
) -> None:
    """They are left out until there is room, and `health` says so."""
    with daemon_in(full.path) as daemon:
        daemon.unit("web", rom_unit(emulator, rom_guest, service='restart = "always"\nrestart-delay = "1m"'))
        pid = daemon.do("web", "start")["pid"]
        with open(daemon.run / "instances" / "web" / "output", "ab", buffering=0) as output:
            output.write(("\N{PILE OF POO}" * 200 + "\n").encode() * 10)
        full.fill()
        kill_process(pid)
        assert daemon.wait("web", "auto-restart")["cause"]["output"]
        assert daemon.get("/v1/health")["problems"] == [
            "web: could not keep what was last said: No space left on device"
        ]
        full.fill()
        daemon.restart()
        view = daemon.view("web")
        assert (view["substate"], view["cause"]["text"], view["cause"]["output"]) == ("auto-restart", "signal KILL", [])
        assert daemon.do("web", "stop")["substate"] == "dead"
        daemon.restart()
        assert daemon.view("web")["cause"]["kind"] == "operator"


@pytest.mark.root
@pytest.mark.parametrize("place", ["run", "state/instances", "state/capabilities", "log"])
def test_t7_a_full_directory_fails_what_needs_it(
    root_dir: Path, emulator: Emulator, rom_guest: Path, place: str
) -> None:
    """Run directory and identities: the start names ENOSPC and leaves nothing. Logs and probes: it runs without."""
    (root_dir / place).mkdir(parents=True)
    with full_file_system(root_dir) as full:
        subprocess.run(["mount", "--bind", full.path, root_dir / place], check=True, timeout=10)
        try:
            with daemon_in(root_dir) as daemon:
                daemon.unit("web", rom_unit(emulator, rom_guest))
                full.fill()
                operation = daemon.power("web", "start")
                if place in ("log", "state/capabilities"):
                    assert operation["state"] == "succeeded", operation
                else:
                    assert "No space left on device" in operation["error"]["detail"]
                    assert daemon.remains() == []
                    full.make_room()
                    assert daemon.do("web", "start")["substate"] == "running"
        finally:
            subprocess.run(["umount", root_dir / place], check=True, timeout=10)


@pytest.mark.root
def test_t7_a_daemon_that_finds_a_full_disk_says_so(full: FullFileSystem) -> None:
    """It does not begin, and says why in one sentence; with room it begins."""
    full.fill()
    root = full.path / "new"
    root.mkdir()
    command = [sys.executable, "-m", "qsup.daemon", "--root", str(root)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 1
    assert "No space left on device" in told.stderr
    assert "Traceback" not in told.stderr
    full.make_room()
    with daemon_in(root) as daemon:
        assert daemon.get("/v1/health")["status"] == "ok"


@pytest.mark.root
def test_t7_what_cannot_be_written_to_a_unit_is_said(root_dir: Path, emulator: Emulator, rom_guest: Path) -> None:
    """A change that is to last is not begun; one that came true meanwhile says that it will not last."""
    units = root_dir / "units"
    units.mkdir()
    with full_file_system(root_dir) as full:
        subprocess.run(["mount", "--bind", full.path, units], check=True, timeout=10)
        try:
            with daemon_in(root_dir) as daemon:
                for name in ("root", "data"):
                    image(daemon, f"{name}.img")
                disk = '[[disk]]\nid = "root"\npath = "root.img"\n'
                daemon.unit("web", rom_unit(emulator, rom_guest, tables=disk))
                daemon.do("web", "start")
                waiting = detach_lasting(daemon, "web", "disks/root", wait=0, query="&force=1")
                poll_until(lambda: daemon.view("web")["operation"] is None, "it waits for its guest", seconds=DEADLINE)
                full.fill()
                before = nodes(daemon, "web")
                error = attach_lasting(daemon, "web", "disks", id="data", path="data.img")["error"]
                assert (error["code"], error["status"]) == ("no-space", 507)
                assert nodes(daemon, "web") == before
                daemon.do("web", "reset")
                error = finished(daemon, waiting)["error"]
                assert error["code"] == "no-space"
                assert error["detail"].startswith("disk.root is gone, but that could not be written down: ")
                assert daemon.view("web")["disks"] == []
                full.make_room()
                assert attach_lasting(daemon, "web", "disks", id="data", path="data.img")["state"] == "succeeded"
                change = patch(daemon, "web", {"changes": {"disk": [{"id": "root", "present": False}]}})
                assert change["result"]["persisted"]
                daemon.do("web", "kill")
                assert [disk["id"] for disk in daemon.do("web", "start")["disks"]] == ["data"]
        finally:
            subprocess.run(["umount", units], check=True, timeout=10)
