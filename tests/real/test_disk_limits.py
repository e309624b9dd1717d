"""Limits of disks: imposed before the guest runs, on what is attached, and changed while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qsup.errors import UnitError
from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit
from tests.real.hotplug import attach, change, image, qmp, told

pytestmark = [pytest.mark.real]

BUSES = ("virtio", "scsi", "nvme", "usb", "sata")
LIMITS = ("iops", "iops_rd", "iops_wr", "iops_max", "iops_max_length", "bps", "bps_rd", "bps_wr", "bps_max")


def limits(daemon: Daemon, disk: str) -> dict[str, int]:
    """What QEMU says that a disk may do, without what has no limit."""
    found = [
        drive["inserted"] for drive in qmp(daemon, "web", "query-block") if f"disk-{disk}" in drive["qdev"].split("/")
    ]
    return {name: found[0][name] for name in LIMITS if found[0].get(name)}


def disk(bus: str, **more: object) -> str:
    """A unit's disk on a bus, called after that."""
    keys = "".join(f"{name} = {value}\n" for name, value in more.items())
    return f'[[disk]]\nid = "{bus}"\npath = "{bus}.img"\nbus = "{bus}"\n[disk.throttle]\n{keys}'


def shown(daemon: Daemon, name: str) -> dict[str, Any]:
    """What the API says of a disk's limits."""
    found = next(each for each in daemon.view("web")["disks"] if each["id"] == name)
    limits_: dict[str, Any] = found["throttle"]
    return limits_


def test_limits_from_the_first_instruction_on(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """On every bus; they are changed, taken off and told by QEMU's own words; a restarted daemon knows them too."""
    for bus in BUSES:
        image(daemon, f"{bus}.img")
    tables = "".join(disk(bus, iops=100 + number) for number, bus in enumerate(BUSES))
    daemon.unit("web", rom_unit(qemu, rom_guest, tables=tables))
    daemon.do("web", "start")
    for number, bus in enumerate(BUSES):
        assert limits(daemon, bus) == {"iops": 100 + number}
        assert shown(daemon, bus) == {"iops": 100 + number}
    assert "iops 100" in daemon.ctl("status", "web").stdout
    wanted = {"iops": 200, "iops-max": 400, "iops-max-length": "5s", "bps": "1M"}
    operation = change(daemon, "web", disk=[{"id": bus, "throttle": wanted} for bus in BUSES])
    assert operation["state"] == "succeeded", operation
    assert told(operation, "disk.virtio.throttle.bps") == {"limit": 1 << 20}
    for bus in BUSES:
        assert limits(daemon, bus) == {"iops": 200, "iops_max": 400, "iops_max_length": 5, "bps": 1 << 20}
        assert shown(daemon, bus) == {"iops": 200, "iops-max": 400, "iops-max-length": 5, "bps": 1 << 20}
    daemon.restart()
    daemon.wait("web", "running")
    assert shown(daemon, "usb") == {"iops": 200, "iops-max": 400, "iops-max-length": 5, "bps": 1 << 20}
    none = {"iops": 0, "iops-max": 0, "iops-max-length": "1s", "bps": "0B"}
    assert change(daemon, "web", disk=[{"id": bus, "throttle": none} for bus in BUSES])["state"] == "succeeded"
    for bus in BUSES:
        assert (limits(daemon, bus), shown(daemon, bus)) == ({}, {})


def test_limits_of_what_is_attached(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """They come with the disk; limits that contradict each other change nothing, and say which key."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.do("web", "start")
    for bus in ("virtio", "usb"):
        image(daemon, f"{bus}.img")
        throttle = {"bps-read": "2M", "iops-write": 7}
        operation = attach(daemon, "web", "disks", id=bus, path=f"{bus}.img", bus=bus, throttle=throttle)
        assert operation["state"] == "succeeded", operation
        assert limits(daemon, bus) == {"bps_rd": 2 << 20, "iops_wr": 7}
        assert shown(daemon, bus) == {"bps-read": 2 << 20, "iops-write": 7}
    operation = change(daemon, "web", disk=[{"id": "usb", "throttle": {"iops": 5}}])
    assert operation["error"]["code"] == UnitError.code
    assert "disk.usb.throttle.iops-write" in operation["error"]["detail"]
    assert limits(daemon, "usb") == {"bps_rd": 2 << 20, "iops_wr": 7}
