"""Directories of the host that guests mount, on every QEMU: with a file server that lives and ends with its VM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qsup.errors import DaemonUnreachable, HostDeviceError
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, kill_process, linux_unit, rom_unit
from tests.real.hotplug import agree, attach, chardevs, detach, guest, peripherals, qmp
from tests.real.injected import killed_at
from tests.waiting import came_true, poll_until

# Debian's virtiofsd of QEMU 7.2 needs root
pytestmark = [pytest.mark.real, pytest.mark.root]

SHARED = "shared = true"
DATA = '[[device]]\nid = "data"\ntype = "share"\npath = "data"\n'


@pytest.fixture
def data(daemon: Daemon) -> Path:
    """A directory with a file, in the daemon's pool."""
    path = daemon.images / "data"
    path.mkdir()
    (path / "greeting").write_text("hello\n")
    return path


def servers(daemon: Daemon) -> dict[str, int]:
    """The file servers on record, by the entries that they serve."""
    record = json.loads((daemon.run / "instances" / "web" / "record.json").read_text())
    return {each["entry"]: each["pid"] for each in record["state"]["helpers"]}


def runs(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def mounted(daemon: Daemon, tag: str) -> str:
    """Where the guest has mounted a share, by then."""
    place = f"/run/{tag}"
    command = f"mkdir -p {place} && mount -t virtiofs {tag} {place} && echo mounted"
    assert came_true(lambda: guest(daemon, "web", command) == "mounted", seconds=10)
    return place


def test_a_share_is_there_from_the_start(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest, data: Path) -> None:
    """Guest and host read what the other wrote, under a later daemon too; the server ends with the VM."""
    daemon.unit("web", linux_unit(qemu, linux_guest, tables=DATA))
    daemon.do("web", "start")
    place = mounted(daemon, "data")
    assert guest(daemon, "web", f"cat {place}/greeting") == "hello"
    guest(daemon, "web", f"echo written > {place}/answer")
    assert (data / "answer").read_text() == "written\n"
    before = servers(daemon)
    assert runs(before["device.data"])
    daemon.restart()
    daemon.wait("web", "running")
    assert servers(daemon) == before
    (data / "later").write_text("still there\n")
    assert guest(daemon, "web", f"cat {place}/later") == "still there"
    assert daemon.view("web")["warnings"] == []
    daemon.do("web", "kill")
    daemon.wait("web", "dead")
    assert not runs(before["device.data"])


def test_a_share_comes_and_goes(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest, data: Path) -> None:
    """While the guest runs; one that is read-only is so for whatever the guest does."""
    daemon.unit("web", linux_unit(qemu, linux_guest, memory=SHARED))
    daemon.do("web", "start")
    before = peripherals(daemon, "web"), chardevs(daemon, "web")
    operation = attach(daemon, "web", "devices", id="docs", type="share", path=str(data), tag="d", read_only=True)
    assert operation["state"] == "succeeded", operation
    assert agree(daemon, "web")
    place = mounted(daemon, "d")
    assert guest(daemon, "web", f"cat {place}/greeting") == "hello"
    guest(
        daemon,
        "web",
        f"echo x > {place}/new; echo x > {place}/greeting; rm {place}/greeting; mount -o remount,rw {place}",
    )
    assert os.listdir(data) == ["greeting"]
    assert (data / "greeting").read_text() == "hello\n"
    server = servers(daemon)["device.docs"]
    guest(daemon, "web", f"umount {place}")
    assert detach(daemon, "web", "devices/docs")["state"] == "succeeded"
    assert (peripherals(daemon, "web"), chardevs(daemon, "web")) == before
    assert not runs(server)
    assert servers(daemon) == {}
    assert daemon.view("web")["warnings"] == []
    run = daemon.run / "instances" / "web"
    assert not [path.name for path in run.iterdir() if "docs" in path.name]


def test_file_servers_are_in_the_cgroup_of_their_vm(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, data: Path
) -> None:
    """With all their processes, from the start or from when they come, under a later daemon too."""

    def outside() -> dict[str, list[int]]:
        """The cgroups of the VM that lack one of QEMU's and the servers' processes, with those."""
        record = json.loads((daemon.run / "instances/web/record.json").read_text())
        pids = {record["pid"], *servers(daemon).values()}
        for server in servers(daemon).values():
            listings = Path(f"/proc/{server}/task").glob("*/children")
            pids |= {int(pid) for listing in listings for pid in listing.read_text().split()}
        held = {path: set(map(int, (Path(path) / "cgroup.procs").read_text().split())) for path in record["cgroups"]}
        assert held
        return {path: sorted(pids - found) for path, found in held.items() if pids - found}

    daemon.unit("web", rom_unit(emulator, rom_guest, tables=DATA, memory=SHARED))
    daemon.do("web", "start")
    assert outside() == {}
    daemon.restart()
    daemon.wait("web", "running")
    assert attach(daemon, "web", "devices", id="docs", type="share", path=str(data), tag="d")["state"] == "succeeded"
    assert set(servers(daemon)) == {"device.data", "device.docs"}
    assert outside() == {}


def test_the_end_of_a_file_server_is_told(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest, data: Path) -> None:
    """By an event and a warning, under a later daemon too; the VM lives on, and a new attach serves it again."""
    daemon.unit("web", linux_unit(qemu, linux_guest, tables=DATA))
    daemon.do("web", "start")
    with daemon.events() as events:
        kill_process(servers(daemon)["device.data"])
        assert "signal KILL" in events.next("helper-ended", entry="device.data")["data"]["detail"]
    (warning,) = daemon.view("web")["warnings"]
    assert warning.startswith("device.data: the program that serves it has ended (signal KILL")
    assert warning.endswith("detach it with --runtime, and apply attaches it again")
    daemon.restart()
    daemon.wait("web", "running")
    assert came_true(lambda: any("device.data" in each for each in daemon.view("web")["warnings"]), seconds=5)
    assert detach(daemon, "web", "devices/data")["state"] == "succeeded"
    assert daemon.view("web")["warnings"] == []
    assert daemon.post("/v1/instances/web/apply?wait=30")["state"] == "succeeded"
    assert not daemon.view("web")["unit"]["needs_restart"]
    assert guest(daemon, "web", f"cat {mounted(daemon, 'data')}/greeting") == "hello"


def test_a_share_that_cannot_be_leaves_nothing(daemon: Daemon, qemu: Emulator, rom_guest: Path, data: Path) -> None:
    """No shared memory, no directory, a directory elsewhere, QEMU's own refusal: no server, socket or device stays."""
    daemon.unit("plain", rom_unit(qemu, rom_guest))
    daemon.do("plain", "start")
    operation = attach(daemon, "plain", "devices", id="data", type="share", path="data")
    assert operation["error"]["code"] == "unsupported"
    assert "memory that can be shared" in operation["error"]["detail"]
    daemon.unit("web", rom_unit(qemu, rom_guest, memory=SHARED))
    daemon.do("web", "start")
    before = peripherals(daemon, "web"), chardevs(daemon, "web"), sorted((daemon.run / "instances" / "web").iterdir())
    (daemon.images / "link").symlink_to("/etc")
    (daemon.images / "file").write_text("")
    for path, words in (
        ("none", "No such file"),
        ("file", "is no directory"),
        ("/etc", "is in none of the pools"),
        ("link", "leaves its pool"),
    ):
        operation = attach(daemon, "web", "devices", id="data", type="share", path=path)
        assert (operation["state"], operation["error"]["code"]) == ("failed", "image")
        assert operation["error"]["detail"].startswith(
            "could not open shared directory" if path == "none" else "shared"
        )
        assert words in operation["error"]["detail"]
    qmp(daemon, "web", "chardev-add", id="share-data", backend={"type": "null", "data": {}})
    operation = attach(daemon, "web", "devices", id="data", type="share", path="data")
    assert operation["error"]["code"] == "qmp-error"
    qmp(daemon, "web", "chardev-remove", id="share-data")
    after = peripherals(daemon, "web"), chardevs(daemon, "web"), sorted((daemon.run / "instances" / "web").iterdir())
    assert after == before
    assert servers(daemon) == {}


def test_a_start_tells_why_its_file_server_failed(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A directory that went, or was never there: the start fails in words about it, and leaves nothing."""
    daemon.unit("web", rom_unit(emulator, rom_guest, tables=DATA))
    operation = daemon.power("web", "start")
    assert operation["state"] == "failed"
    assert "could not open shared directory data" in operation["error"]["detail"]
    assert daemon.remains() == []


def test_a_server_does_not_outlive_a_vm_that_ends_without_a_daemon(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, data: Path
) -> None:
    """It ends with its connection to QEMU."""
    daemon.unit("web", rom_unit(emulator, rom_guest, tables=DATA))
    pid, server = daemon.do("web", "start")["pid"], servers(daemon)["device.data"]
    daemon.signal(9)
    kill_process(pid)
    poll_until(lambda: not runs(server), "the server has ended")
    daemon.start()
    daemon.wait("web", "crashed")
    assert daemon.remains() == []


@pytest.fixture
def storage(daemon: Daemon) -> Iterator[Path]:
    """The socket of a program that is a disk of 1 MiB, which begins with a word."""
    program = shutil.which("qemu-storage-daemon")
    if program is None:
        pytest.skip("qemu-storage-daemon is not installed")
    path, image = daemon.images / "disk.sock", daemon.images / "exported.img"
    image.write_bytes(b"from another program".ljust(1 << 20, b"\0"))
    export = f"vhost-user-blk,id=x,node-name=d,writable=on,addr.type=unix,addr.path={path}"
    node = f"file,node-name=d,filename={image}"
    process = subprocess.Popen([program, "--blockdev", node, "--export", export], stdin=subprocess.DEVNULL)
    try:
        poll_until(path.exists, "it listens")
        yield path
    finally:
        process.kill()
        process.wait(20)
        path.unlink(missing_ok=True)


def test_a_disk_of_another_program_comes_and_goes(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest, storage: Path
) -> None:
    """By vhost-user: the guest reads it; nothing of it stays, and it can come again."""
    daemon.unit("web", linux_unit(qemu, linux_guest, memory=SHARED))
    daemon.do("web", "start")
    before = peripherals(daemon, "web"), chardevs(daemon, "web")
    for _ in range(2):
        operation = attach(daemon, "web", "devices", id="d", type="vhost-user", socket=str(storage))
        assert operation["state"] == "succeeded", operation
        assert agree(daemon, "web")
        assert came_true(lambda: guest(daemon, "web", "ls /sys/block | grep vd") != "", seconds=10)
        disk = guest(daemon, "web", "ls /sys/block | grep vd")
        assert guest(daemon, "web", f"head -c 20 /dev/{disk}") == "from another program"
        assert detach(daemon, "web", "devices/d")["state"] == "succeeded"
        assert (peripherals(daemon, "web"), chardevs(daemon, "web")) == before


def test_a_program_that_does_not_listen_is_told(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """At a start and later, and nothing stays of the attempt."""
    daemon.unit("web", rom_unit(emulator, rom_guest, memory=SHARED))
    daemon.do("web", "start")
    before = peripherals(daemon, "web"), chardevs(daemon, "web")
    operation = attach(daemon, "web", "devices", id="d", type="vhost-user", socket="/nowhere/disk.sock")
    assert (operation["state"], operation["error"]["code"]) == ("failed", HostDeviceError.code)
    assert "device.d: could not connect to /nowhere/disk.sock: No such file" in operation["error"]["detail"]
    assert (peripherals(daemon, "web"), chardevs(daemon, "web")) == before


def serving(path: Path) -> list[int]:
    """The file servers of a directory, whoever started them; each is a process with a child of its own."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"source={path}".encode() in words and words[0].endswith(b"virtiofsd"):
            found.append(int(entry.name))
    return sorted(found)


@pytest.mark.fault
@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_attach_that_its_daemon_did_not_survive_is_completed(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, data: Path, number: int
) -> None:
    """It died as it wrote down that a share comes, that its server runs, or that it is there: one server serves it."""
    daemon.unit("web", rom_unit(emulator, rom_guest, memory=SHARED))
    daemon.do("web", "start")
    with killed_at(daemon, "renameat,renameat2,rename", number):
        with suppress(DaemonUnreachable), daemon.client() as client:
            client.post("/v1/instances/web/devices", {"id": "data", "type": "share", "path": "data"})
        poll_until(lambda: not daemon.is_alive(), "the daemon dies", seconds=20)
    daemon.start()
    daemon.wait("web", "running")
    poll_until(lambda: daemon.get("/v1/operations")["operations"][0]["state"] != "running", "it ends", seconds=20)
    operation = daemon.get("/v1/operations")["operations"][0]
    assert (operation["kind"], operation["state"]) == ("attach", "succeeded"), operation
    assert agree(daemon, "web")
    assert "device-data" in peripherals(daemon, "web")
    assert came_true(lambda: len(serving(data)) == 2, seconds=5), serving(data)
    assert servers(daemon)["device.data"] in serving(data)
    assert daemon.view("web")["warnings"] == []
