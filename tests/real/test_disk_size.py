"""Disks that are made larger while a Linux guest runs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import ChangeError, NoSuchDevice, RequestError
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, linux_unit, rom_unit
from tests.real.hotplug import image, in_guest, qmp
from tests.real.planned import loop_device, loop_obstacle
from tests.waiting import poll_until

pytestmark = [pytest.mark.real]

MIB = 1 << 20


def resize(daemon: Daemon, disk: str, size: str) -> dict[str, Any]:
    """Have a disk made larger: the finished operation."""
    with daemon.client() as client:
        body = json.dumps({"size": size}).encode()
        path = f"/v1/instances/web/disks/{disk}?wait=30"
        operation: dict[str, Any] = json.loads(client.exchange("PATCH", path, body=body, timeout=60.0))
    return operation


def disk(name: str, **keys: object) -> str:
    """A unit's disk."""
    lines = "".join(f"{key.replace('_', '-')} = {json.dumps(value)}\n" for key, value in keys.items())
    return f'[[disk]]\nid = "{name}"\n{lines}'


def test_the_guest_sees_the_new_size(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """Raw and qcow2, on virtio and SCSI; told is the size that QEMU has; the image has it on the host, too."""
    image(daemon, "a.img", 8 * MIB)
    image(daemon, "b.img", 8 * MIB)
    qcow2 = daemon.images / "q.qcow2"
    subprocess.run([str(qemu.img), "create", "-q", "-f", "qcow2", str(qcow2), "8M"], check=True)
    tables = disk("a", path="a.img") + disk("q", path="q.qcow2", format="qcow2")
    daemon.unit("web", linux_unit(qemu, linux_guest, tables=tables + disk("s", path="b.img", bus="scsi")))
    daemon.do("web", "start")
    for name in ("a", "q", "s"):
        operation = resize(daemon, name, "16M")
        assert (operation["kind"], operation["state"]) == ("resize", "succeeded"), operation
        assert operation["result"] == {"changed": True, "size": 16 * MIB}
    sizes = "cat /sys/block/vda/size /sys/block/vdb/size /sys/block/sda/size"
    wanted = [str(16 * MIB // 512)] * 3
    poll_until(lambda: in_guest(daemon, "web", sizes).split() == wanted, "the guest sees it", seconds=15)
    assert (daemon.images / "a.img").stat().st_size == 16 * MIB
    assert resize(daemon, "q", "16M")["result"] == {"changed": False, "size": 16 * MIB}
    said = json.loads(daemon.ctl("resize", "web", "s", "17M", "-o", "json").stdout)
    assert said["operations"][0]["result"]["size"] == 17 * MIB


@pytest.mark.root
@pytest.mark.skipif(bool(loop_obstacle()), reason="there are no loop devices")
def test_a_block_device_makes_room_for_what_it_has(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Beyond its end nothing is resized, both sizes are named; once the device is larger the disk can be."""
    path = image(daemon, "behind.img", 8 * MIB)
    with loop_device(path) as device:
        (daemon.root / "qsupd.toml").write_text(f'block-devices = ["{device}"]\n')
        daemon.restart()
        daemon.unit("web", rom_unit(qemu, rom_guest, tables=disk("a", path=str(device))))
        daemon.do("web", "start")
        operation = resize(daemon, "a", "16M")
        assert operation["error"]["code"] == ChangeError.code, operation
        assert "is 8M large, and a disk on it no larger (16M)" in operation["error"]["detail"]
        os.truncate(path, 16 * MIB)
        subprocess.run(["losetup", "--set-capacity", str(device)], check=True)
        operation = resize(daemon, "a", "16M")
        assert operation["result"] == {"changed": True, "size": 16 * MIB}, operation
        daemon.do("web", "kill")


@pytest.mark.parametrize(
    ("name", "size", "code", "words"),
    [
        ("none", "16M", NoSuchDevice.code, "it has no disk none"),
        ("a", "4M", ChangeError.code, "disk a is 8M large; it is not made smaller (4M)"),
        ("a", "8388609B", ChangeError.code, "no whole number of sectors"),
        ("a", "99999999T", ChangeError.code, "are more than QEMU counts"),
        ("ro", "16M", ChangeError.code, "disk ro is read-only"),
        ("n", "16M", ChangeError.code, "resizes no NVMe disk"),
        ("cd", "16M", ChangeError.code, "has no image now"),
    ],
)
def test_what_cannot_be_resized_is_not(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, name: str, size: str, code: str, words: str
) -> None:
    """Each with its own problem, before QEMU is asked; the sizes stay."""
    for number in range(3):
        image(daemon, f"{number}.img", 8 * MIB)
    tables = disk("a", path="0.img") + disk("ro", path="1.img", read_only=True) + disk("n", path="2.img", bus="nvme")
    daemon.unit("web", rom_unit(emulator, rom_guest, tables=tables + disk("cd", type="cdrom")))
    daemon.do("web", "start")
    operation = resize(daemon, name, size)
    assert (operation["state"], operation["error"]["code"]) == ("failed", code), operation
    assert words in operation["error"]["detail"]
    drives = [drive["inserted"] for drive in qmp(daemon, "web", "query-block") if "inserted" in drive]
    assert {drive["image"]["virtual-size"] for drive in drives} == {8 * MIB}
    with pytest.raises(RequestError, match="is not a size"):
        resize(daemon, "a", "many")
