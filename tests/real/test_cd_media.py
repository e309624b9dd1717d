"""Media of CD drives that are changed while a guest runs, and trays that it locks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import ChangeError, ImageInUse, NoSuchDevice
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import DEADLINE, Daemon, linux_unit, rom_unit
from tests.real.hotplug import attach, change, fdsets, image, in_guest, nodes, qmp, told
from tests.real.lasting import said
from tests.waiting import poll_until

pytestmark = [pytest.mark.real]

SIZES = {"one.iso": 2 << 20, "two.iso": 3 << 20}


def media(daemon: Daemon) -> None:
    """Two of different sizes."""
    for name, size in SIZES.items():
        image(daemon, name, size)


def drive(bus: str, path: str = "", **more: object) -> str:
    """A unit's drive on a bus, called after that."""
    keys = "".join(f"{name} = {value}\n" for name, value in more.items())
    return f'[[disk]]\nid = "{bus}"\ntype = "cdrom"\nbus = "{bus}"\npath = "{path}"\n{keys}'


def ask(daemon: Daemon, name: str, verb: str, **body: object) -> dict[str, Any]:
    """Insert or eject, and wait: the finished operation."""
    operation: dict[str, Any] = daemon.post(f"/v1/instances/web/disks/{name}/{verb}?wait=30", body)
    return operation


def shown(daemon: Daemon, name: str) -> tuple[str, str]:
    """A drive's medium and its tray, by the API."""
    found = next(disk for disk in daemon.view("web")["disks"] if disk["id"] == name)
    return found["path"], found["tray"]


def inside(daemon: Daemon, name: str) -> tuple[int, bool]:
    """The size of the medium in a drive, 0 for none, and whether its tray is open, by QEMU."""
    (found,) = [each for each in qmp(daemon, "web", "query-block") if each["qdev"] == f"disk-{name}"]
    return found.get("inserted", {}).get("image", {}).get("virtual-size", 0), found["tray_open"]


def test_media_are_changed(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """On every bus, by insert, eject and PATCH; nothing of the old one stays; the guest sees the new one."""
    media(daemon)
    buses = ("scsi", "sata", "usb")
    tables = drive("scsi", "one.iso") + drive("sata") + drive("usb", "one.iso", shareable="true")
    daemon.unit("web", linux_unit(qemu, linux_guest, tables=tables))
    daemon.do("web", "start")
    for bus in buses:
        operation = ask(daemon, bus, "insert", path="two.iso")
        assert operation["state"] == "succeeded", operation
        assert told(operation, f"disk.{bus}.path") == {"tray": "closed"}
        assert inside(daemon, bus) == (SIZES["two.iso"], False)
        assert shown(daemon, bus) == ("two.iso", "closed")
    sectors = str(SIZES["two.iso"] // 512)
    read = "dd if=/dev/sr0 of=/dev/null count=1 2>/dev/null; cat /sys/block/sr0/size"
    poll_until(lambda: in_guest(daemon, "web", read).strip() == sectors, "the guest sees it", seconds=15)
    assert nodes(daemon, "web") == {
        *("disk.spare-scsi", "file.spare-scsi", "disk-sata", "file-sata", "disk.spare-usb", "file.spare-usb")
    }
    assert len(fdsets(daemon, "web")) == 3
    assert ask(daemon, "scsi", "insert", path="two.iso")["result"]["changed"] is False
    operation = change(daemon, "web", disk=[{"id": bus, "path": "one.iso"} for bus in buses])
    assert operation["state"] == "succeeded", operation
    for bus in buses:
        assert inside(daemon, bus) == (SIZES["one.iso"], False)
    daemon.restart()
    daemon.wait("web", "running")
    assert "tray closed" in daemon.ctl("status", "web").stdout or came_closed(daemon)
    for bus in buses:
        daemon.ctl("eject", "web", bus)
        assert inside(daemon, bus) == (0, True)
        assert shown(daemon, bus) == ("", "open")
    assert (nodes(daemon, "web"), fdsets(daemon, "web")) == (set(), [])
    daemon.ctl("insert", "web", "sata", "one.iso")
    assert inside(daemon, "sata") == (SIZES["one.iso"], False)


def came_closed(daemon: Daemon) -> bool:
    """Whether `status` tells where the tray is once the drives were looked at."""
    poll_until(lambda: "tray closed" in daemon.ctl("status", "web").stdout, "the tray is told", seconds=DEADLINE)
    return True


def test_a_locked_tray(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """The guest is asked and does not open it: nothing has changed, and that is said; force takes the medium."""
    media(daemon)
    daemon.unit("web", linux_unit(qemu, linux_guest, tables=drive("scsi", "one.iso")))
    daemon.do("web", "start")
    in_guest(daemon, "web", "sleep 1000 </dev/sr0 >/dev/null 2>&1 &")
    poll_until(lambda: shown(daemon, "scsi") == ("one.iso", "locked"), "the lock is shown", seconds=DEADLINE)
    assert "tray locked" in daemon.ctl("status", "web").stdout
    before = nodes(daemon, "web"), fdsets(daemon, "web")
    for verb, body in {"insert": {"path": "two.iso"}, "eject": {}}.items():
        operation = ask(daemon, "scsi", verb, **body)
        assert operation["error"]["code"] == ChangeError.code, operation
        assert "the guest has locked the tray of scsi" in operation["error"]["detail"]
        assert inside(daemon, "scsi") == (SIZES["one.iso"], False)
        assert (nodes(daemon, "web"), fdsets(daemon, "web")) == before
        assert shown(daemon, "scsi")[0] == "one.iso"
    operation = ask(daemon, "scsi", "insert", path="two.iso", force=True)
    assert operation["state"] == "succeeded", operation
    assert inside(daemon, "scsi") == (SIZES["two.iso"], False)
    daemon.ctl("eject", "web", "scsi", "--force")
    assert inside(daemon, "scsi") == (0, True)


def test_a_medium_lasts_unless_it_is_for_the_present_life(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The unit says what is in the drive, also of a VM that is down; a drive that it does not have is not made up."""
    media(daemon)
    daemon.unit("web", rom_unit(emulator, rom_guest, tables=drive("sata", "one.iso")))
    daemon.do("web", "start")
    daemon.ctl("insert", "web", "sata", "two.iso", "--runtime")
    assert (shown(daemon, "sata")[0], said(daemon)) == ("two.iso", "")
    daemon.ctl("insert", "web", "sata", "two.iso")
    assert 'path = "two.iso"' in said(daemon)
    assert shown_again(daemon) == "two.iso"
    daemon.ctl("eject", "web", "sata")
    assert 'path = ""' in said(daemon)
    assert shown_again(daemon) == ""
    attach(daemon, "web", "disks", id="scsi", type="cdrom", bus="scsi")
    before = said(daemon)
    refused = daemon.ctl("insert", "web", "scsi", "one.iso", check=False)
    assert refused.returncode == 1
    assert "does not have disk.scsi, and these keys alone would make another of it" in refused.stderr
    assert (shown(daemon, "scsi")[0], said(daemon)) == ("", before)
    daemon.ctl("insert", "web", "scsi", "one.iso", "--runtime")
    daemon.do("web", "kill")
    daemon.ctl("insert", "web", "sata", "one.iso")
    assert said(daemon) == ""
    for name, words in (("sata", "there is nothing to change but its unit"), ("none", "its CD drives: sata")):
        options = ("--runtime",) if name == "sata" else ()
        refused = daemon.ctl("insert", "web", name, "two.iso", *options, check=False)
        assert (refused.returncode, words in refused.stderr) == (1, True), refused
    daemon.do("web", "start")
    assert shown(daemon, "sata")[0] == "one.iso"


def shown_again(daemon: Daemon) -> str:
    """The medium after another start."""
    daemon.do("web", "restart")
    return shown(daemon, "sata")[0]


@pytest.mark.parametrize(
    ("name", "body", "code", "words"),
    [
        ("none", {"path": "two.iso"}, NoSuchDevice.code, "it has no disk none"),
        ("root", {"path": "two.iso"}, ChangeError.code, "is no CD drive"),
        ("sata", {"path": "none.iso"}, "image", "none.iso"),
        ("sata", {"path": "two.iso", "format": "qcow2"}, "image", "declared qcow2"),
        ("sata", {"path": "root.img"}, "unit", "the path of disk 'root' already"),
        ("sata", {"path": "other.img"}, ImageInUse.code, "VM other"),
    ],
    ids=str,
)
def test_a_wrong_medium_changes_nothing(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, name: str, body: dict[str, Any], code: str, words: str
) -> None:
    """The old one stays in the closed drive, and nobody else is kept from the image that was wanted."""
    media(daemon)
    for other in ("root", "other"):
        image(daemon, f"{other}.img")
        tables = f'[[disk]]\nid = "root"\npath = "{other}.img"\n'
        daemon.unit(
            {"root": "web"}.get(other, other), rom_unit(emulator, rom_guest, tables=tables + drive("sata", "one.iso"))
        )
    for vm in ("web", "other"):
        daemon.do(vm, "start")
    before = nodes(daemon, "web"), fdsets(daemon, "web")
    operation = ask(daemon, name, "insert", **body)
    assert operation["state"] == "failed", operation
    assert operation["error"]["code"].startswith(code)
    assert words in json.dumps(operation["error"])
    assert inside(daemon, "sata") == (SIZES["one.iso"], False)
    assert shown(daemon, "sata")[0] == "one.iso"
    assert (nodes(daemon, "web"), fdsets(daemon, "web")) == before
    operation = attach(daemon, "other", "disks", id="data", path="two.iso")
    assert operation["state"] == "succeeded", operation
