"""How the host treats a disk, changed while its guest uses it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import ChangeError
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, linux_unit, rom_unit
from tests.real.hotplug import attach, change, fdsets, image, in_guest, qmp

pytestmark = [pytest.mark.real]

MIB = 1 << 20


def node(daemon: Daemon, name: str) -> dict[str, Any]:
    """What QEMU says of a node."""
    found = qmp(daemon, "web", "query-named-block-nodes", flat=True)
    (it,) = [each for each in found if each["node-name"] == name]
    return dict(it)


def direct(daemon: Daemon, path: Path) -> set[bool]:
    """Whether QEMU's descriptors of an image go past the host's cache."""
    found = set()
    process = Path(f"/proc/{daemon.view('web')['pid']}")
    for entry in (process / "fd").iterdir():
        if entry.readlink() == path:
            (flags,) = [line for line in (process / "fdinfo" / entry.name).read_text().splitlines() if "flags" in line]
            found.add(bool(int(flags.split()[1], 8) & os.O_DIRECT))
    return found


def members(daemon: Daemon) -> list[int]:
    """How many descriptors each of QEMU's sets has."""
    return [len(each["fds"]) for each in qmp(daemon, "web", "query-fdsets")]


def test_how_the_host_treats_a_disk(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """Cache, discard and zeroes, of an overlay and its base, while the guest writes; back again; nothing piles up."""
    base, top = image(daemon, "base.img", 8 * MIB), daemon.images / "top.qcow2"
    command = [str(qemu.img), "create", "-q", "-f", "qcow2", "-b", base.name, "-F", "raw", str(top)]
    subprocess.run(command, check=True, cwd=daemon.images)
    tables = '[[disk]]\nid = "root"\npath = "top.qcow2"\nformat = "qcow2"\n'
    tables += '[[disk.backing]]\npath = "base.img"\nformat = "raw"\n'
    daemon.unit("web", linux_unit(qemu, linux_guest, tables=tables))
    daemon.do("web", "start")
    before = members(daemon), fdsets(daemon, "web")
    in_guest(
        daemon, "web", "while dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync; do :; done >/dev/null 2>&1 &"
    )
    for cache, no_host, unsafe in (("none", True, False), ("unsafe", False, True), ("writeback", False, False)):
        operation = change(daemon, "web", disk=[{"id": "root", "cache": cache}])
        assert operation["state"] == "succeeded", operation
        assert node(daemon, "disk-root")["cache"] == {"direct": no_host, "no-flush": unsafe, "writeback": True}
        assert node(daemon, "basefile1-root")["cache"]["direct"] is no_host
        assert direct(daemon, top) == {no_host}
        assert direct(daemon, base) == {no_host}
        assert (members(daemon), fdsets(daemon, "web")) == before
    operation = change(daemon, "web", disk=[{"id": "root", "detect-zeroes": "unmap", "cache": "none"}])
    assert operation["state"] == "succeeded", operation
    assert node(daemon, "disk-root")["detect_zeroes"] == "unmap"
    assert change(daemon, "web", disk=[{"id": "root", "detect-zeroes": "off", "discard": "ignore"}])["result"][
        "changed"
    ]
    assert node(daemon, "disk-root")["detect_zeroes"] == "off"
    # what is changed live is so for what looks at the unit, and the disk is in use as before
    assert change(daemon, "web", disk=[{"id": "root", "discard": "ignore"}])["result"]["changed"] is False
    in_guest(daemon, "web", "dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync 2>/dev/null")


def test_what_the_guest_would_see_needs_a_restart(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The write cache of the device, its ways of I/O and read-only: refused before QEMU is asked, with the keys."""
    image(daemon, "data.img")
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    assert attach(daemon, "web", "disks", id="data", path="data.img", bus="scsi")["state"] == "succeeded"
    before = node(daemon, "disk-data")
    for keys in ({"cache": "writethrough"}, {"aio": "io_uring"}, {"read-only": True}, {"path": "other.img"}):
        operation = change(daemon, "web", disk=[{"id": "data", "detect-zeroes": "on", **keys}])
        assert operation["error"]["code"] == ChangeError.code, operation
        assert f"disk.data.{next(iter(keys))} cannot be changed while it runs" in operation["error"]["detail"]
    assert node(daemon, "disk-data") == before


def test_an_image_that_was_replaced_is_not_taken(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A descriptor with another flag must be of the very file."""
    path = image(daemon, "data.img")
    daemon.unit("web", rom_unit(emulator, rom_guest, tables='[[disk]]\nid = "data"\npath = "data.img"\n'))
    daemon.do("web", "start")
    before = members(daemon), node(daemon, "disk-data")
    path.rename(daemon.images / "old.img")
    image(daemon, "data.img")
    operation = change(daemon, "web", disk=[{"id": "data", "cache": "none"}])
    assert "is another file" in json.dumps(operation["error"])
    assert (members(daemon), node(daemon, "disk-data")) == before
