"""The order in which a VM that runs boots from its disks and NICs: as its firmware has it after a reset."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from qsup.ctl.client import Client
from qsup.ctl.websocket import connect
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, rom_unit
from tests.real.hotplug import attach_lasting, detach, image, patch, peripherals, qmp
from tests.real.lasting import verdicts
from tests.waiting import came_true

pytestmark = [pytest.mark.real]


class Screen:
    """What a VM's firmware and guest write, from now on."""

    def __init__(self, client: Client) -> None:
        self._console = connect(client, "/v1/instances/web/console?mode=watch")
        self._seen = bytearray()

    def close(self) -> None:
        """Look no more."""
        self._console.close()

    def booted(self) -> str:
        """The mark of the disk that the guest has booted from since the last call."""

        def has_booted() -> bool:
            self._seen.extend(self._console.receive())
            return self._seen.endswith(tuple(MARKS.values()))

        assert came_true(has_booted, seconds=DEADLINE), f"it does not boot: {self._seen!r}"
        found = next(name for name, mark in MARKS.items() if self._seen.endswith(mark))
        self._seen.clear()
        return found


#: What the disks of a VM write when they are booted from.
MARKS = {"one": b"<<one>>", "two": b"<<two>>"}


def boot_sector(words: bytes) -> bytes:
    """Code that writes to the first serial port and stands still."""
    begin = bytes.fromhex("fa baf803")  # cli; mov dx, 0x3f8
    each = b"".join(bytes([0xB0, letter, 0xEE]) for letter in words)  # mov al, letter; out dx, al
    return (begin + each + bytes.fromhex("f4 ebfd")).ljust(510, b"\0") + b"\x55\xaa"


def test_the_boot_order_counts_from_the_guests_next_reset(daemon: Daemon, qemu: Emulator) -> None:
    """The firmware reads it then: the guest boots from the other disk, by the QEMU that there is."""
    machine = f'[machine]\nemulator = "{qemu.path}"\naccel = "tcg"\n[memory]\nsize = "32M"\n[agent]\nenabled = false\n'
    tables = ""
    for (name, mark), bus in zip(MARKS.items(), ("virtio", "scsi"), strict=True):
        with image(daemon, f"{name}.img").open("r+b") as file:
            file.write(boot_sector(mark))
        tables += f'[[disk]]\nid = "{name}"\npath = "{name}.img"\nbus = "{bus}"\n'
    daemon.unit("web", machine + tables)
    daemon.do("web", "start")
    with daemon.client() as client, closing(Screen(client)) as screen:
        assert screen.booted() == "one"
        for place, disk, old in ((0, "two", -1), (-1, "one", 0)):
            found = patch(daemon, "web", {"keys": {"disk.two.bootindex": str(place)}})["result"]["keys"]
            assert found == {"disk.two.bootindex": {"applied": "reset", "old": old, "new": place}}
            assert daemon.ctl("diff", "web").stdout.endswith("runs as its unit says\n")
            daemon.do("web", "reset")
            assert screen.booted() == disk


def test_all_that_is_booted_from_changes_its_place(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """On every bus, in one request, in which each takes the place of another."""
    buses = ("virtio", "scsi", "nvme", "sata", "usb")
    entries = []
    for place, bus in enumerate(buses):
        image(daemon, f"{bus}.img")
        entries.append(f'[[disk]]\nid = "{bus}"\npath = "{bus}.img"\nbus = "{bus}"\nbootindex = {place}\n')
    entries.append('[[disk]]\nid = "cd"\ntype = "cdrom"\nbus = "usb"\nbootindex = 5\n')
    entries.append('[[nic]]\nid = "lan"\nbootindex = 6\n')
    daemon.unit("web", rom_unit(qemu, rom_guest, tables="".join(entries)))
    daemon.do("web", "start")
    keys = [*(f"disk.{name}" for name in (*buses, "cd")), "nic.lan"]
    wanted = dict(zip(keys, (6, 5, 4, 3, 2, 1, 0), strict=True))
    body = {"keys": {f"{key}.bootindex": str(place) for key, place in wanted.items()}}
    assert patch(daemon, "web", body)["state"] == "succeeded"
    for key, place in wanted.items():
        path = f"/machine/peripheral/{key.replace('.', '-')}"
        assert qmp(daemon, "web", "qom-get", path=path, property="bootindex") == place + 1
    assert verdicts(daemon) == {}


def test_what_is_attached_has_its_place_in_the_boot_order(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """The one that it says, and then those that say nothing are not booted from; what says none has none yet."""
    for name in ("root", "data", "first"):
        image(daemon, f"{name}.img")
    daemon.unit("web", rom_unit(qemu, rom_guest, tables='[[disk]]\nid = "root"\npath = "root.img"\n'))
    daemon.do("web", "start")

    def places() -> dict[str, int]:
        devices = sorted(each for each in peripherals(daemon, "web") if each.startswith(("disk-", "nic-")))
        path = "/machine/peripheral/{}".format
        return {name: qmp(daemon, "web", "qom-get", path=path(name), property="bootindex") for name in devices}

    def come(noun: str, **entry: object) -> None:
        operation = attach_lasting(daemon, "web", noun, **entry)
        assert operation["state"] == "succeeded", operation

    come("disks", id="data", path="data.img")
    assert places() == {"disk-data": -1, "disk-root": 1}
    # in the place of one that has none any more
    come("nics", id="lan", bootindex=0)
    assert places() == {"disk-data": -1, "disk-root": -1, "nic-lan": 1}
    come("disks", id="first", path="first.img", bus="scsi", bootindex=1)
    assert places() == {"disk-data": -1, "disk-first": 2, "disk-root": -1, "nic-lan": 1}
    assert "boots from" in detach(daemon, "web", "disks/first")["error"]["detail"]
    daemon.restart()
    daemon.wait("web", "running")
    # all of them at once: what comes takes the place of what moves
    last = {"id": "last", "type": "cdrom", "bus": "usb", "bootindex": 0}
    body = {"changes": {"nic": [{"id": "lan", "bootindex": 2}], "disk": [last]}}
    assert patch(daemon, "web", body)["state"] == "succeeded"
    before = places()
    assert before == {"disk-data": -1, "disk-first": 2, "disk-last": 1, "disk-root": -1, "nic-lan": 3}
    assert verdicts(daemon) == {}
    daemon.do("web", "restart")
    assert places() == before
