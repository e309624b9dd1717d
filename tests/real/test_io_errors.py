"""Disks that fail under a running guest: it is paused with the disk named, and goes on when it can.

Decides: what becomes of a guest whose file system is full or whose disk is broken, with and without a daemon meanwhile.
Must not: fill a file system of the machine; each test has a small one of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import AgentError
from tests.bare import BareConnection
from tests.faults.trial import Promise
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import DEADLINE, Daemon, elapsed, linux_unit, rom_unit
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.root]

SIZE, ROOM = 4 << 20, 128 << 10


class Small:
    """A file system of a few megabytes in a pool, with room for less than a guest writes at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def image(self, name: str) -> str:
        """A sparse raw image: its path as a unit has it."""
        with (self.path / name).open("wb") as file:
            file.truncate(32 << 20)
        return f"{self.path.name}/{name}"

    def fill(self) -> None:
        """Leave little room."""
        found = os.statvfs(self.path)
        self._filler.write_bytes(b"x" * (found.f_bavail * found.f_frsize - ROOM))

    def make_room(self) -> None:
        """Leave much."""
        self._filler.unlink()


@pytest.fixture
def small(root_dir: Path) -> Iterator[Small]:
    """Mounted before the daemon starts, and until it has ended."""
    path = root_dir / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "small", str(path)], check=True)
    try:
        yield Small(path)
    finally:
        subprocess.run(["umount", str(path)], check=True)


def disk_unit(emulator: Emulator, rom: Path, image: str, **sections: str) -> str:
    """A unit of the ROM guest with an IDE disk, which it writes to by the key W."""
    tables = f'[[disk]]\nid = "root"\npath = "{image}"\nformat = "raw"\nbus = "ide"'
    return rom_unit(emulator, rom, tables=tables, **sections).replace('type = "q35"', 'type = "pc"')


def failing(daemon: Daemon, name: str) -> dict[str, Any]:
    """Have the guest write until its file system is full; the VM then."""
    daemon.type(name, "W")
    return daemon.wait(name, "io-error")


def written(daemon: Daemon, name: str) -> None:
    """See that the guest has come to the end of its writing."""
    daemon.type(name, "x", after="written")


def test_a_guest_goes_on_when_there_is_room_again(
    small: Small, daemon: Daemon, qemu: Emulator, rom_guest: Path, promise: Promise
) -> None:
    """ENOSPC: `io-error` with the disk and the reason, told to all; it goes on without anybody's word, nothing lost."""
    daemon.unit("web", disk_unit(qemu, rom_guest, small.image("web.img"), service='restart = "always"'))
    pid = daemon.do("web", "start")["pid"]
    small.fill()
    with daemon.events() as events:
        view = failing(daemon, "web")
        told = events.next("instance-state", substate="io-error")["data"]["cause"]
        assert told == view["cause"]
        assert (told["kind"], told["disk"], told["nospace"]) == ("io-error", "root", True)
        assert told["detail"] == "disk root: write failed: No space left on device"
        status = daemon.ctl("status", "web").stdout
        assert "it goes on by itself once there is room" in status
        small.make_room()
        began = time.monotonic()
        events.next("instance-state", substate="running")
        promise.kept("the guest goes on", elapsed(began), within=2.0)
    written(daemon, "web")
    view = daemon.view("web")
    assert (view["pid"], view["restarts"], view["cause"]) == (pid, 0, None)


@pytest.mark.parametrize("meanwhile", [True, False], ids=["room-without-a-daemon", "room-after-it"])
def test_an_adopted_guest_goes_on_too(
    small: Small, daemon: Daemon, qemu: Emulator, rom_guest: Path, meanwhile: bool
) -> None:
    """QEMU is asked which of its disks failed, since the event was another daemon's."""
    daemon.unit("web", disk_unit(qemu, rom_guest, small.image("web.img")))
    pid = daemon.do("web", "start")["pid"]
    small.fill()
    failing(daemon, "web")
    daemon.signal(signal.SIGKILL)
    if meanwhile:
        small.make_room()
        daemon.start()
    else:
        daemon.start()
        cause = daemon.wait("web", "io-error")["cause"]
        assert (cause["disk"], cause["nospace"]) == ("root", True)
        assert cause["detail"] == "disk root: No space left on device"
        small.make_room()
    assert daemon.wait("web", "running")["pid"] == pid
    daemon.type("web", "W", after="")
    written(daemon, "web")


def test_what_fails_while_no_daemon_runs_is_found_out(
    small: Small, daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """The event is nobody's; the run state and the disk's own say it all."""
    daemon.unit("web", disk_unit(emulator, rom_guest, small.image("web.img")))
    daemon.do("web", "start")
    small.fill()
    daemon.type("web", "x")
    daemon.signal(signal.SIGKILL)
    directory = daemon.run / "instances" / "web"
    with socket.socket(socket.AF_UNIX) as console, BareConnection(directory / "qmp") as monitor:
        monitor.negotiate()
        console.connect(str(directory / "console"))
        console.sendall(b"W")
        poll_until(lambda: monitor.ask("query-status")["status"] == "io-error", "it fails", seconds=DEADLINE)
    daemon.start()
    assert daemon.wait("web", "io-error")["cause"]["disk"] == "root"
    small.make_room()
    daemon.wait("web", "running")


def test_a_guest_that_fails_again_is_let_go_on_ever_more_seldom(
    small: Small, daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """A little more room each time: it goes on each time, a second later than the time before."""
    daemon.unit("web", disk_unit(emulator, rom_guest, small.image("web.img")))
    daemon.do("web", "start")
    small.fill()
    filler = small.path / "filler"
    with daemon.events() as events:
        failing(daemon, "web")
        for number in (1, 2):
            poll_until(partial(_looked, daemon, number), "it was looked for room", seconds=DEADLINE)
            os.truncate(filler, filler.stat().st_size - (16 << 10))
            events.next("instance-state", substate="running")
            events.next("instance-state", substate="io-error")
    # and by `resume` at once, whenever somebody thinks so: it is true, for a moment
    assert daemon.power("web", "resume")["state"] == "succeeded"
    daemon.wait("web", "io-error")
    small.make_room()
    assert daemon.power("web", "resume")["state"] == "succeeded"
    written(daemon, "web")


def _looked(daemon: Daemon, times: int) -> bool:
    return daemon.log().count("waiting for room") == times


def test_what_an_operator_paused_does_not_go_on_by_itself(
    small: Small, daemon: Daemon, qemu: Emulator, rom_guest: Path
) -> None:
    """`pause` in `io-error` is `paused`; room, heartbeats and another daemon leave it so; `resume` lets it go on."""
    names = ("web", "other")
    for name in names:
        daemon.unit(name, disk_unit(qemu, rom_guest, small.image(f"{name}.img")))
        daemon.do(name, "start")
    small.fill()
    for name in names:
        failing(daemon, name)
    view = daemon.do("web", "pause")
    assert (view["substate"], view["cause"]["kind"]) == ("paused", "operator")
    assert view["cause"]["detail"] == "pause requested; before that: disk root: write failed: No space left on device"
    daemon.restart()
    assert daemon.wait("web", "paused")["cause"]["kind"] == "operator"
    daemon.wait("other", "io-error")
    small.make_room()
    daemon.wait("other", "running")
    status = partial(daemon.post, "/v1/instances/web/qmp", {"execute": "query-status"})
    assert (daemon.view("web")["substate"], status()["result"]["status"]) == ("paused", "io-error")
    daemon.restart()
    assert daemon.wait("web", "paused")["pid"] == view["pid"]
    assert daemon.do("web", "resume")["substate"] == "running"
    daemon.type("web", "W", after="")
    written(daemon, "web")


def test_a_broken_disk_waits_for_an_operator(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """EIO: the disk is named, nothing goes on by itself, `resume` does."""
    node = '{"driver":"blkdebug","node-name":"bad","image":{"driver":"null-co","size":33554432},"inject-error":['
    rule = '{"event":"none","iotype":"write","errno":5,"once":true}]}'
    device = '{"driver":"ide-hd","id":"bad","drive":"bad","bus":"ide.0","werror":"stop","rerror":"stop"}'
    extra = f"extra-args = ['-blockdev', '{node}{rule}', '-device', '{device}']"
    daemon.unit("web", rom_unit(qemu, rom_guest, qemu=extra).replace('type = "q35"', 'type = "pc"'))
    pid = daemon.do("web", "start")["pid"]
    cause = failing(daemon, "web")["cause"]
    assert (cause["kind"], cause["disk"], cause["nospace"]) == ("io-error", "bad", False)
    assert cause["detail"] == "disk bad: write failed: Input/output error"
    poll_until(lambda: "the guest does not go on by itself" in daemon.log(), "it is left alone", seconds=DEADLINE)
    assert "goes on by itself" not in daemon.ctl("status", "web").stdout
    daemon.restart()
    assert daemon.wait("web", "io-error")["cause"]["detail"] == "disk bad: I/O error"
    assert daemon.do("web", "resume")["pid"] == pid
    daemon.type("web", "W", after="")
    written(daemon, "web")


def test_a_linux_guest_on_virtio_goes_on_as_well(
    small: Small, daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest
) -> None:
    """The usual disk: its driver's requests are repeated by QEMU, and the guest's program never knows."""
    tables = f'[[disk]]\nid = "data"\npath = "{small.image("data.img")}"\nformat = "raw"'
    daemon.unit("web", linux_unit(qemu, linux_guest, tables=tables))
    daemon.do("web", "start")
    small.fill()
    script = "dd if=/dev/zero of=/dev/vda bs=64k count=16 conv=fsync >/dev/ttyS0 2>&1 && echo all-written >/dev/ttyS0"
    command = {"command": "exec", "path": "/bin/sh", "arguments": ["-c", f"({script}) &"], "timeout": 1}
    with suppress(AgentError):  # the guest may be paused before it answers
        daemon.post("/v1/instances/web/agent", command)
    assert daemon.wait("web", "io-error")["cause"]["disk"] == "data"
    small.make_room()
    daemon.wait("web", "running")
    daemon.type("web", "\n", after="all-written")
