"""Changes of disks in bad company: a QEMU that is stuck or dies, an image that somebody else has, a node in use.

Decides: that each ends with a problem within its deadline, and nothing is attached by half.
Must not: kill the daemon (`tests.real.test_unfinished_changes`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import ImageInUse, QsupError
from qsup.host.claims import locked_by_qemu
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, elapsed, kill_process, rom_unit, signal_process
from tests.real.hotplug import agree, attach, detach, fdsets, finished, image, nodes, qmp, shown, state
from tests.waiting import came_true, poll_until

pytestmark = [pytest.mark.real]


def start(daemon: Daemon, qemu: Emulator, rom: Path, tables: str = "") -> None:
    """A VM of the ROM guest."""
    daemon.unit("web", rom_unit(qemu, rom, tables=tables))
    daemon.do("web", "start")


def whole(daemon: Daemon) -> tuple[Any, ...]:
    """All that an attach leaves anywhere."""
    record = json.loads((daemon.run / "instances" / "web" / "record.json").read_text())
    return nodes(daemon, "web"), fdsets(daemon, "web"), shown(daemon, "web"), record["claims"]


@contextmanager
def mute_server(path: Path) -> Iterator[None]:
    """An NBD server that takes connections and says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o777)
        taken: list[socket.socket] = []
        accept = threading.Thread(target=_accept, args=(listener, taken), daemon=True)
        accept.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accept.join(DEADLINE)
            path.unlink()
            for client in taken:
                client.close()


def _accept(listener: socket.socket, taken: list[socket.socket]) -> None:
    while True:
        try:
            taken.append(listener.accept()[0])
        except OSError:
            return


@pytest.mark.slow
def test_a_mute_server_under_somebody_elses_node(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """It holds QEMU's main loop: the attach ends with a problem, and nothing of it is there once QEMU goes on."""
    start(daemon, qemu, rom_guest)
    image(daemon, "data.img")
    before = whole(daemon)
    server = {"type": "unix", "path": str(daemon.root / "mute")}
    with mute_server(daemon.root / "mute"):
        raw = {"execute": "blockdev-add", "arguments": {"driver": "nbd", "node-name": "mute", "server": server}}
        with pytest.raises(QsupError, match="blockdev-add"):
            daemon.post("/v1/instances/web/qmp", raw | {"timeout": 1.0})
        began = time.monotonic()
        operation = attach(daemon, "web", "disks", id="data", path="data.img", bus="scsi")
        if operation["state"] == "running":
            operation = finished(daemon, operation)
        assert elapsed(began) < DEADLINE + 5
        assert operation["error"]["code"] == "qmp-timeout", operation
        assert "once QEMU answers" in operation["error"]["hint"]
    daemon.wait("web", "running")
    poll_until(lambda: whole(daemon)[:1] + whole(daemon)[1:2] == before[:2], "nothing of it is left", seconds=DEADLINE)
    assert came_true(lambda: whole(daemon) == before, seconds=DEADLINE), whole(daemon)
    assert agree(daemon, "web")
    operation = attach(daemon, "web", "disks", id="data", path="data.img", bus="scsi")
    assert operation["state"] == "succeeded", operation


@pytest.mark.parametrize("verb", ["attach", "detach"])
def test_a_qemu_that_dies_midway(daemon: Daemon, qemu: Emulator, rom_guest: Path, verb: str) -> None:
    """The operation ends with that; the image is anybody's again; another start has what the unit says."""
    start(daemon, qemu, rom_guest)
    image(daemon, "data.img")
    pid = daemon.view("web")["pid"]
    if verb == "detach":
        attach(daemon, "web", "disks", id="data", path="data.img")
        operation = detach(daemon, "web", "disks/data", wait=0)
    else:
        signal_process(pid, signal.SIGSTOP)  # it hears nothing any more
        operation = daemon.post("/v1/instances/web/disks", {"id": "data", "path": "data.img"})
        record = daemon.run / "instances" / "web" / "record.json"
        poll_until(lambda: "disk.data" in record.read_text(), "it is asked", seconds=DEADLINE)
    kill_process(pid)
    operation = finished(daemon, operation)
    assert operation["state"] == "failed", operation
    daemon.wait("web", "crashed")
    daemon.unit("other", rom_unit(qemu, rom_guest, tables='[[disk]]\nid = "root"\npath = "data.img"\n'))
    daemon.do("other", "start")
    assert daemon.do("web", "start")["disks"] == []
    assert daemon.ctl("attach", "web", "disk", "id=data", "path=data.img", check=False).returncode != 0


def test_an_image_that_a_foreign_qemu_has(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """It is named, and nothing is attached."""
    start(daemon, emulator, rom_guest)
    path = image(daemon, "data.img")
    before = whole(daemon)
    command = [str(emulator.path), "-machine", "none", "-display", "none", "-nodefaults"]
    command += ["-drive", f"if=none,id=x,format=raw,file={path}", "-device", "virtio-blk,drive=x"]
    command[2] = "q35"
    with subprocess.Popen([*command, "-S"]) as foreign:
        try:
            with path.open("rb") as file:
                locked = partial(locked_by_qemu, file.fileno(), writable=True)
                poll_until(locked, "it has the image", seconds=DEADLINE)
            operation = attach(daemon, "web", "disks", id="data", path="data.img")
        finally:
            foreign.kill()
    assert operation["error"]["code"] == ImageInUse.code
    assert str(foreign.pid) in operation["error"]["detail"]
    assert whole(daemon) == before


def test_a_node_that_somebody_else_uses(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """The device is gone and its image is not: the detach waits, keeps the image from others, and ends with its use."""
    start(daemon, qemu, rom_guest)
    image(daemon, "data.img")
    attach(daemon, "web", "disks", id="data", path="data.img", bus="usb")
    export = {"type": "nbd", "id": "held", "node-name": "disk-data", "writable": False}
    address = {"type": "unix", "data": {"path": str(daemon.root / "nbd")}}
    os.chmod(daemon.root, 0o777)
    qmp(daemon, "web", "nbd-server-start", addr=address)
    qmp(daemon, "web", "block-export-add", **export)
    operation = detach(daemon, "web", "disks/data", wait=8)
    assert operation["state"] == "running", operation
    assert "disk-data" not in daemon.get("/v1/instances/web/devices")["devices"]
    assert "disk-data" in nodes(daemon, "web")
    daemon.unit("other", rom_unit(qemu, rom_guest))
    daemon.do("other", "start")
    refused = attach(daemon, "other", "disks", id="data", path="data.img")
    assert refused["error"]["code"] == ImageInUse.code
    qmp(daemon, "web", "block-export-del", id="held")
    qmp(daemon, "web", "nbd-server-stop")
    assert finished(daemon, operation)["state"] == "succeeded"
    assert (nodes(daemon, "web"), fdsets(daemon, "web"), state(daemon, "web", "disk-data")) == (set(), [], "")
    assert attach(daemon, "other", "disks", id="data", path="data.img")["state"] == "succeeded"


def test_hundred_cycles_leave_nothing(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Descriptors of QEMU's and the daemon's are where they were."""
    start(daemon, emulator, rom_guest)
    image(daemon, "data.img")

    def cycle() -> None:
        came = attach(daemon, "web", "disks", id="data", path="data.img", bus="usb")
        went = detach(daemon, "web", "disks/data")
        assert (came["state"], went["state"]) == ("succeeded", "succeeded"), (came, went)

    def counts() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (daemon.view("web")["pid"], daemon.pid)]

    cycle()
    before = counts()
    for _ in range(100):
        cycle()
    after = counts()
    assert all(abs(one - other) <= 2 for one, other in zip(before, after, strict=True)), (before, after)
    assert agree(daemon, "web")
