"""What a running QEMU may, has and leaves: T20, files beyond its user's reach, taps and bridges, a guest that floods.

Decides: what the kernel must say of a QEMU that the daemon started.
Must not: repeat the launcher's own tests (`tests/real/test_host.py`); here the daemon starts it from a unit.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qsup.ctl.websocket import connect
from tests.guests import Emulator
from tests.real.beside import BYSTANDER, MEBIBYTE, bystander
from tests.real.daemons import DEADLINE, Daemon, elapsed, kill_process, rom_unit
from tests.waiting import came_true, poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault, pytest.mark.root]

NO_CAPABILITY = "0" * 16
#: Variables that say nothing of whoever started the daemon; the last is for a QEMU that is not installed.
ENVIRONMENT = {b"PATH", b"HOME", b"PWD", b"QEMU_MODULE_DIR"}


def status(pid: int) -> dict[str, list[str]]:
    """``/proc/PID/status``, each value in words."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def descriptors(pid: int) -> list[str]:
    """What a process has open."""
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]


def own(target: str, daemon: Daemon, name: str) -> bool:
    """Whether an open file is one that a VM of this name should have."""
    return (
        target in ("/dev/null", str(daemon.run / "instances" / name / "output"), str(daemon.images / f"{name}.img"))
        or target.startswith(("socket:", "anon_inode:", "/memfd:", "pipe:"))
        or target == "/dev/net/tun"
    )


def test_t20_a_qemu_is_nobody_and_can_nothing(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A uid of its own, no capability, no new privileges, seccomp in all threads, no core, only its own descriptors."""
    views = []
    for name in ("one", "two"):
        (daemon.images / f"{name}.img").write_bytes(bytes(MEBIBYTE))
        disk = f'[[disk]]\nid = "root"\npath = "{name}.img"\nformat = "raw"\n'
        daemon.unit(name, rom_unit(qemu, rom_guest, tables=disk))
        views.append(daemon.do(name, "start"))
    assert views[0]["uid"] != views[1]["uid"]
    for view in views:
        name, pid = view["name"], view["pid"]
        assert 720_000 <= view["uid"] <= 729_999
        for thread in (int(each) for each in os.listdir(f"/proc/{pid}/task")):
            said = status(thread)
            assert said["Uid"] == said["Gid"] == [str(view["uid"])] * 4
            assert said["Groups"] == []
            assert {said[each][0] for each in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {NO_CAPABILITY}
            assert (said["NoNewPrivs"], said["Seccomp"], said["Umask"]) == (["1"], ["2"], ["0077"])
        assert os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "Max core file size        0                    0" in limits
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert {variable.partition(b"=")[0] for variable in environment if variable} <= ENVIRONMENT
        foreign = [target for target in descriptors(pid) if not own(target, daemon, name)]
        assert foreign == []
        assert f"/{name}\n" in Path(f"/proc/{pid}/cgroup").read_text()
        assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""


def test_files_that_its_user_cannot_reach_come_as_descriptors(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Images, and a ROM in a directory that only root enters: QEMU boots from it, reads and writes them."""
    private = daemon.root / "private"
    private.mkdir(mode=0o700)
    rom = private / "rom.bin"
    rom.write_bytes(rom_guest.read_bytes())
    (private / "raw.img").write_bytes(bytes(MEBIBYTE))
    subprocess.run([qemu.img, "create", "-q", "-f", "qcow2", private / "cow.img", "1M"], check=True, timeout=30)
    for path in private.iterdir():
        path.chmod(0o600)
    disks = "".join(
        f'[[disk]]\nid = "{name}"\npath = "private/{name}.img"\nformat = "{format}"\n'
        for name, format in (("raw", "raw"), ("cow", "qcow2"))
    )
    daemon.unit("web", rom_unit(qemu, rom, tables=disks))
    assert daemon.do("web", "start")["uid"] >= 720_000
    daemon.type("web", "x")
    blocks = execute(daemon, "web", "query-block")
    assert len(blocks) == 2
    for block in blocks:
        command = f'qemu-io -d {block["qdev"]} "write -P 0xaa 64k 64k"'
        # what it prints goes to QEMU's output, an error comes as the answer
        assert execute(daemon, "web", "human-monitor-command", **{"command-line": command}) == ""
    daemon.do("web", "stop", timeout=0.1)
    subprocess.run(
        [qemu.img, "convert", "-f", "qcow2", "-O", "raw", private / "cow.img", private / "flat.img"],
        check=True,
        timeout=30,
    )
    for name in ("raw", "flat"):
        data = (private / f"{name}.img").read_bytes()
        assert data[64 << 10 : 128 << 10] == b"\xaa" * (64 << 10)
        assert data.count(b"\xaa") == 64 << 10
    assert {path.stat().st_uid for path in private.iterdir()} == {0}


def execute(daemon: Daemon, name: str, command: str, **arguments: object) -> Any:
    """A raw QMP command."""
    return daemon.post(f"/v1/instances/{name}/qmp", {"execute": command, "arguments": arguments})["result"]


# Taps and bridges

BRIDGE = "qs-isolation"


def bridged(qemu: Emulator, rom: Path, kind: str = "bridge") -> str:
    """A unit with a NIC on our bridge."""
    return rom_unit(qemu, rom, tables=f'[[nic]]\nid = "lan"\ntype = "{kind}"\nbridge = "{BRIDGE}"\n')


def ports() -> set[str]:
    """The bridge's ports; ``{"no bridge"}`` without one."""
    directory = Path("/sys/class/net", BRIDGE, "brif")
    return set(os.listdir(directory)) if directory.exists() else {"no bridge"}


@pytest.mark.alone
def test_taps_and_the_bridge_made_for_them_go_with_their_vms(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """By a stop, by QEMU's death, by its death while no daemon runs, and after an adoption; the last port ends it."""
    for name in ("one", "two"):
        daemon.unit(name, bridged(emulator, rom_guest))
        daemon.do(name, "start")
    assert len(ports()) == 2
    daemon.do("one", "kill")
    assert len(ports()) == 1
    daemon.restart()
    pid = daemon.wait("two", "running")["pid"]
    (tap,) = ports()
    assert daemon.get("/v1/instances/two/stats")["nics"]["lan"].keys() >= {"rx_bytes", "tx_bytes"}
    assert Path("/sys/class/net", tap, "operstate").read_text().strip() != "down"
    kill_process(pid)
    daemon.wait("two", "crashed")
    poll_until(lambda: ports() == {"no bridge"}, "the bridge is gone")
    pid = daemon.do("one", "start")["pid"]
    daemon.signal(9)
    kill_process(pid)
    daemon.start()
    daemon.wait("one", "crashed")
    poll_until(lambda: ports() == {"no bridge"}, "the bridge is gone")
    daemon.do("two", "start")
    daemon.restart()
    daemon.wait("two", "running")
    daemon.do("two", "stop", timeout=0.1)
    assert ports() == {"no bridge"}


@pytest.mark.alone
def test_somebody_elses_bridge_stays(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A tap joins it and leaves it as it was."""
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True, timeout=10)
    try:
        for kind in ("tap", "bridge"):
            daemon.unit("web", bridged(emulator, rom_guest, kind))
            daemon.do("web", "start")
            assert len(ports()) == 1
            daemon.do("web", "kill")
            assert ports() == set()
    finally:
        subprocess.run(["ip", "link", "delete", BRIDGE], check=True, timeout=10)


# Floods


def test_a_guest_that_floods_its_console_costs_nobody_anything(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """With a watcher who reads and one who does not: memory stands, others are answered at once, and it is stopped."""
    with bystander(daemon, emulator, rom_guest):
        daemon.unit("web", rom_unit(emulator, rom_guest))
        daemon.do("web", "start")
        with daemon.client() as client, daemon.client() as deaf, daemon.client() as other:
            writer = connect(client, "/v1/instances/web/console?mode=write")
            mute = connect(deaf, "/v1/instances/web/console")
            try:
                assert came_true(lambda: b"ready" in writer.receive(), seconds=DEADLINE)
                writer.send(b"F")
                writer.flush()
                read, deadline = 0, time.monotonic() + DEADLINE
                while read < MEBIBYTE // 16 and time.monotonic() < deadline:
                    read += len(writer.receive())
                assert read >= MEBIBYTE // 16
                for _ in range(50):
                    began = time.monotonic()
                    other.get("/v1/instances")
                    assert elapsed(began) < 1.0
                other.post(f"/v1/instances/{BYSTANDER}/qmp", {"execute": "query-status"})
                assert daemon.do("web", "kill")["substate"] == "dead"
            finally:
                writer.close()
                mute.close()


def test_a_guest_that_resets_itself_keeps_its_process(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A triple fault is a reset: the same QEMU, no restart counted, and the console goes on."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service='restart = "always"'))
    before = daemon.do("web", "start")
    with daemon.client() as client:
        console = connect(client, "/v1/instances/web/console?mode=write")
        try:
            seen = bytearray()
            for boot in range(2, 5):
                assert came_true(lambda: b"ready" in _more(console, seen), seconds=DEADLINE)
                seen.clear()
                console.send(b"T")
                console.flush()
                wanted = b"boot %d" % boot
                assert came_true(partial(_has, console, seen, wanted), seconds=DEADLINE)
        finally:
            console.close()
    after = daemon.view("web")
    assert [after[key] for key in ("pid", "restarts", "substate")] == [before["pid"], 0, "running"]


def _has(console: Any, seen: bytearray, wanted: bytes) -> bool:
    """Whether the console has written this by now."""
    return wanted in _more(console, seen)


def _more(console: Any, seen: bytearray) -> bytearray:
    seen += console.receive()
    return seen


def test_t20_what_the_daemon_writes_is_its_own_to_read(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Sockets, records, logs: nobody else may enter, whatever the umask of whoever started it."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    for place in ("state", "log", "run/instances", "run/instances/web"):
        assert (daemon.root / place).stat().st_mode & 0o077 == 0, place
    for path in (daemon.root / "run/instances/web").iterdir():
        assert path.lstat().st_mode & 0o077 == 0, path
    recorded = json.loads((daemon.root / "run/instances/web/record.json").read_text())
    assert recorded["uid"] == daemon.view("web")["uid"]
