"""Devices that leave a real QEMU unasked: what is said of them, and what can be done."""

from __future__ import annotations

import pytest

from qsup.errors import NoSuchDevice
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, linux_unit
from tests.real.hotplug import agree, attach_lasting, detach_lasting, image, in_guest, nodes, qmp
from tests.real.lasting import disks, said
from tests.waiting import came_true

pytestmark = [pytest.mark.real]


@pytest.mark.parametrize("by", ["guest", "monitor"])
def test_what_went_unasked_can_be_taken_out_of_the_unit(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest, by: str
) -> None:
    """Ejected by its guest or by somebody at the monitor: that is shown, with what can be done, and either is."""
    daemon.unit("web", linux_unit(qemu, linux_guest))
    daemon.do("web", "start")
    image(daemon, "data.img")
    attach_lasting(daemon, "web", "disks", id="data", path="data.img")

    def go() -> None:
        assert came_true(lambda: "vda" in in_guest(daemon, "web", "ls /sys/block"), seconds=10)
        if by == "monitor":
            qmp(daemon, "web", "device_del", id="disk-data")
        else:
            in_guest(daemon, "web", "echo 0 > /sys/bus/pci/slots/0/power")
        assert came_true(lambda: disks(daemon) == [], seconds=10)

    go()
    assert agree(daemon, "web")
    assert "disk-data" not in nodes(daemon, "web")
    assert "data" in said(daemon)
    assert daemon.get("/v1/instances/web/devices")["absent"] == ["disk.data"]
    words = "qsupctl apply web attaches it, qsupctl detach web disk.data takes it out of the unit"
    assert words in daemon.ctl("devices", "web").stdout
    assert words in daemon.ctl("diff", "web", check=False).stdout
    daemon.ctl("apply", "web")
    assert disks(daemon) == ["data"]
    go()
    error = detach_lasting(daemon, "web", "disks/data", query="&persist=0")["error"]
    assert (error["code"], error["hint"]) == (NoSuchDevice.code, "say --persist to take it out of the unit")
    daemon.ctl("detach", "web", "data")
    assert [path.name for path in daemon.units.iterdir()] == ["web.toml"]
    assert daemon.get("/v1/instances/web/devices")["absent"] == []
    assert detach_lasting(daemon, "web", "disks/data")["error"]["code"] == NoSuchDevice.code
