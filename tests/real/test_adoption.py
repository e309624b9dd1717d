"""What a starting daemon believes, asks again and goes on with of VMs that it did not start itself.

Decides: what must be known of a VM right after its daemon was replaced.
Must not: repeat what becomes of operations (`tests.real.test_unfinished`) or of wrecked files (T4 and T6,
`tests.real.test_wrecks`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests import leftovers
from tests.bare import BareConnection
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import DEADLINE, Daemon, kill_process, linux_unit, rom_unit, signal_process
from tests.real.test_wrecks import remove_cgroup
from tests.real.wrecking import is_alive
from tests.waiting import came_true, poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]

DISKS = "".join(f'[[disk]]\nid = "{name}"\npath = "{name}.img"\nformat = "raw"\n' for name in ("root", "data"))
SCRATCH = {"driver": "null-co", "node-name": "scratch", "size": 1 << 30}
TARGET = {"driver": "null-co", "node-name": "target", "size": 1 << 30}


def monitor_of(daemon: Daemon, name: str) -> BareConnection:
    """A VM's monitor, for when no daemon has it."""
    found = BareConnection(daemon.run / "instances" / name / "qmp")
    found.negotiate()
    return found


def warned(daemon: Daemon, name: str, words: str) -> bool:
    """Whether a VM's warnings say something."""
    return any(words in warning for warning in daemon.view(name)["warnings"])


def test_what_was_changed_while_no_daemon_ran_is_asked_again(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A disk that is gone, a job under way, a paused guest, the vCPUs' threads: all is known soon after."""
    for name in ("root", "data"):
        (daemon.root / f"{name}.img").write_bytes(bytes(1 << 20))
    daemon.unit("web", rom_unit(qemu, rom_guest, tables=DISKS))
    before = daemon.do("web", "start")
    assert before["warnings"] == [] or not warned(daemon, "web", "since the start")
    daemon.signal(signal.SIGKILL)
    with monitor_of(daemon, "web") as monitor:
        monitor.ask("device_del", {"id": "disk-data"})
        monitor.ask("system_reset")  # which completes an unplug that no guest has answered
        gone = "the device is gone"
        poll_until(lambda: "disk-data" not in str(monitor.ask("qom-list", {"path": "/machine/peripheral"})), gone)
        for node in (SCRATCH, TARGET):
            monitor.ask("blockdev-add", node)
        job = {"job-id": "copy", "device": "scratch", "target": "target", "sync": "full", "speed": 1}
        monitor.ask("blockdev-backup", job | {"auto-dismiss": False})
        monitor.ask("stop")
    daemon.start()
    view = daemon.wait("web", "paused")
    assert (view["pid"], view["cpus"]["threads"]) == (before["pid"], before["cpus"]["threads"])
    disks = [disk["id"] for disk in before["disks"] if disk["id"] != "data"]
    shown = "the disk is no part of the VM any more"
    poll_until(lambda: [disk["id"] for disk in daemon.view("web")["disks"]] == disks, shown, seconds=DEADLINE)
    assert warned(daemon, "web", "QEMU has a job copy (backup, running)")
    assert [change["key"] for change in daemon.get("/v1/instances/web/diff")["changes"]] == ["disk.data"]
    cancel = {"execute": "job-cancel", "arguments": {"id": "copy"}}
    daemon.post("/v1/instances/web/qmp", cancel)
    poll_until(lambda: warned(daemon, "web", "concluded"), "the job's end is seen", seconds=DEADLINE)
    daemon.post("/v1/instances/web/qmp", {"execute": "job-dismiss", "arguments": {"id": "copy"}})
    poll_until(lambda: not warned(daemon, "web", "QEMU has a job"), "it is gone", seconds=DEADLINE)
    assert daemon.do("web", "resume")["substate"] == "running"


def test_an_answer_meant_for_the_daemon_before_is_passed_over(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A command that outlives its daemon answers the next one first, which is not misled by that."""
    daemon.unit("web", rom_unit(qemu, rom_guest).replace('size = "16M"', 'size = "256M"'))
    pid = daemon.do("web", "start")["pid"]
    daemon.signal(signal.SIGKILL)
    with monitor_of(daemon, "web") as monitor:
        for number in range(3):
            # nobody reads the answers: they are what the next client gets
            monitor.write(json.dumps({"execute": "query-named-block-nodes", "id": f"stale-{number}"}))
        monitor.write(
            json.dumps({"execute": "human-monitor-command", "id": 1, "arguments": {"command-line": "info mtree"}})
        )
    daemon.start()
    view = daemon.wait("web", "running")
    assert (view["pid"], len(view["cpus"]["threads"])) == (pid, 1)
    assert daemon.do("web", "pause")["substate"] == "paused"
    assert "driver failed" not in daemon.log()


def test_restarts_are_still_counted(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Those before the daemon's end count for the burst limit, whether the VM ran meanwhile or died."""
    limit = 'restart = "on-failure"\nrestart-delay = "10ms"\nstart-limit-burst = 2\nstart-limit-interval = "1h"'
    daemon.unit("web", rom_unit(qemu, rom_guest, service=limit))
    kill_process(daemon.do("web", "start")["pid"])
    poll_until(lambda: daemon.view("web")["restarts"] == 1, "it is restarted", seconds=DEADLINE)
    daemon.wait("web", "running")
    daemon.restart()
    view = daemon.wait("web", "running")
    assert view["restarts"] == 1
    daemon.signal(signal.SIGKILL)
    kill_process(view["pid"])
    daemon.start()
    # how it ended nobody can know, and that counts as a failure
    poll_until(lambda: daemon.view("web")["restarts"] == 2, "it is restarted again", seconds=DEADLINE)
    kill_process(daemon.wait("web", "running")["pid"])
    assert "restarted 2 times" in daemon.wait("web", "start-limit-hit")["cause"]["detail"]


ENDS = {
    "crash": ("", "no", "crashed"),
    "crash-again": ("", "on-failure", "running"),
    "triple": ("T", "no", "running"),
}


def test_what_ended_while_no_daemon_ran_is_judged(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A crash is a failure for each policy, a reset by triple fault is none."""
    pids = {}
    for name, (_, policy, _) in ENDS.items():
        daemon.unit(name, rom_unit(qemu, rom_guest, service=f'restart = "{policy}"\nrestart-delay = "10ms"'))
        pids[name] = daemon.do(name, "start")["pid"]
    daemon.signal(signal.SIGKILL)
    for name, (key, _, _) in ENDS.items():
        if not key:
            kill_process(pids[name])
            continue
        with socket.socket(socket.AF_UNIX) as console:
            console.settimeout(DEADLINE)
            console.connect(str(daemon.run / "instances" / name / "console"))
            console.sendall(key.encode())
            said = b""
            while b"boot 2" not in said:
                said += console.recv(4096)
    daemon.start()
    for name, (key, policy, substate) in ENDS.items():
        poll_until(partial(_has_restarted, daemon, name, policy != "no"), name, seconds=DEADLINE)
        view = daemon.wait(name, substate)
        assert (view["pid"] == pids[name]) == bool(key), name
    assert daemon.view("crash")["cause"]["kind"] in ("exit-unknown", "signal")


def _has_restarted(daemon: Daemon, name: str, wanted: bool) -> bool:
    return bool(daemon.view(name)["restarts"] == wanted)


def test_the_agent_is_found_again(daemon: Daemon, emulator: Emulator, linux_guest: LinuxGuest) -> None:
    """Whether somebody in the guest listens is asked, not remembered, and calls work."""
    daemon.unit("web", linux_unit(emulator, linux_guest))
    daemon.do("web", "start")
    daemon.restart()
    assert daemon.wait("web", "running")["agent"] == {"enabled": True, "connected": True}
    done = daemon.post("/v1/instances/web/agent", {"command": "exec", "path": "uname", "arguments": ["-s"]})
    assert done["result"]["stdout"] == "Linux\n"
    daemon.do("web", "kill")


def test_a_process_of_another_user_is_not_the_vm(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The pid and even the start time may be right: with another uid it is a stranger, who is never signalled."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.unit("good", rom_unit(emulator, rom_guest))
    pids = {name: daemon.do(name, "start")["pid"] for name in ("web", "good")}
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        daemon.signal(signal.SIGKILL)
        kill_process(pids["web"])
        file = daemon.run / "instances" / "web" / "record.json"
        began = int(Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(") ")[2].split()[19])
        record = json.loads(file.read_text())
        changes = {"pid": stranger.pid, "start_time": began, "uid": record["uid"] + 1}
        file.write_text(json.dumps(record | changes))
        daemon.start()
        view = daemon.wait("web", "crashed")
        assert (view["pid"], view["cause"]["text"]) == (None, "exit-unknown")
        assert daemon.wait("good", "running")["pid"] == pids["good"]
        assert daemon.do("web", "kill")["substate"] == "crashed"
        assert not came_true(lambda: stranger.poll() is not None, seconds=0.5)
        assert daemon.do("web", "start")["substate"] == "running"
    finally:
        with suppress(ProcessLookupError):
            stranger.kill()
        stranger.wait()


def test_after_a_reboot_nothing_is_believed_and_nobody_signalled(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """All fits but the boot: the pid lives, holds the VM's files and is in its cgroup, and is not touched."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.signal(signal.SIGKILL)
    file = daemon.run / "instances" / "web" / "record.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"boot_id": "00000000-0000-0000-0000-000000000000"}))
    daemon.start()
    view = daemon.wait("web", "dead")
    assert (view["pid"], view["cause"]["kind"]) == (None, "host-reboot")
    assert daemon.do("web", "kill")["substate"] == "dead"
    assert not came_true(lambda: not is_alive(pid), seconds=0.5)
    kill_process(pid)
    for cgroup in record["cgroups"]:
        remove_cgroup(Path(cgroup))
        remove_cgroup(Path(cgroup).parent)


def test_a_driver_that_failed_by_a_bug_leaves_nothing_open(root_dir: Path, emulator: Emulator, rom_guest: Path) -> None:
    """The next one takes the same process over, and the daemon has as many descriptors as before."""
    daemon = Daemon(root_dir, command=(sys.executable, "-m", "tests.real.buggy"))
    daemon.start()
    try:
        daemon.unit("web", rom_unit(emulator, rom_guest))
        pid = daemon.do("web", "start")["pid"]
        before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
        for _ in range(3):
            assert "by a bug" in daemon.power("web", "nmi")["error"]["detail"]
            assert daemon.wait("web", "running")["pid"] == pid
        poll_until(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) <= before, "all is closed", seconds=DEADLINE)
        assert daemon.log().count("driver failed") == 3
        kill_process(pid)
        assert daemon.wait("web", "crashed")["cause"]["text"] == "signal KILL"
    finally:
        daemon.close()


@pytest.mark.root
def test_a_daemon_that_comes_by_a_link_gives_back_what_the_other_made(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, root_dir: Path
) -> None:
    """The same directory by another path: the VM keeps its cgroup, and that goes with the VM."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    record = json.loads((daemon.run / "instances" / "web" / "record.json").read_text())
    cgroups = [Path(path) for path in record["cgroups"]]
    assert cgroups
    daemon.signal(signal.SIGKILL)
    (root_dir / "link").symlink_to(root_dir)
    other = Daemon(root_dir, place=("--root", str(root_dir / "link")))
    try:
        other.start()
        view = other.wait("web", "running")
        assert (view["pid"], view["warnings"]) == (pid, [])
        other.do("web", "kill")
        assert not [path for path in cgroups if path.exists()]
    finally:
        other.close()


@pytest.mark.user
def test_a_qemu_that_was_only_asked_ends_with_its_daemon(daemon: Daemon, rom_guest: Path, qemu: Emulator) -> None:
    """A daemon killed while it learns what a binary can do leaves nothing that no record names."""
    binary = daemon.root / "qemu-system-x86_64"
    binary.write_text(f'#!/bin/sh\nkill -STOP $$\nexec {qemu.path} "$@"\n')
    binary.chmod(0o755)

    def asked() -> list[leftovers.Process]:
        return [each for each in leftovers.processes() if f"{binary} -machine none" in each.command()]

    daemon.unit("web", rom_unit(qemu, rom_guest).replace(str(qemu.path), str(binary)))
    daemon.post("/v1/instances/web/start")
    poll_until(asked, "the binary is asked", seconds=DEADLINE)
    daemon.signal(signal.SIGKILL)
    poll_until(lambda: not asked(), "it has ended", seconds=DEADLINE)
    binary.write_text(f'#!/bin/sh\nexec {qemu.path} "$@"\n')
    daemon.start()
    daemon.wait("web", "running")


def test_a_stop_before_the_monitor_is_reached_asks_the_guest_all_the_same(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """Every VM is out of reach to a daemon that begins, for a moment, and is not to be cut short for that."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service='ready = {serial = "ready"}'))
    pid = daemon.do("web", "start")["pid"]
    signal_process(pid, signal.SIGSTOP)
    daemon.restart()
    daemon.wait("web", "unreachable")
    with daemon.events() as events:
        operation = daemon.post("/v1/instances/web/stop")
        signal_process(pid, signal.SIGCONT)
        seen = [events.next("instance-state")["data"]["substate"]]
        while seen[-1] != "dead":
            seen.append(events.next("instance-state")["data"]["substate"])
    assert seen == ["running", "stopping-guest", "stopping-quit", "dead"]
    assert daemon.get(f"/v1/operations/{operation['id']}/wait?timeout=5")["state"] == "succeeded"
