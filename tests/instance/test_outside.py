"""Tests of `qsup.instance.outside`: devices of the host, on a fake sysfs, from the claim until they are given back."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qsup.errors import HostDeviceError
from qsup.host import process
from qsup.host.pci import VFIO, Passthrough
from qsup.host.rundir import InstanceDirectory
from qsup.instance import outside
from qsup.instance.helpers import Helpers
from qsup.plan.spec import PciTaken, UsbFd
from qsup.unit.model import Unit
from qsup.unit.parse import unit_from_values
from qsup.unit.sections.memory import MemorySection
from tests.host.fakesys import NETWORK, FakeSysfs

CARD = "0000:04:00.0"
LAN = PciTaken(name="pci-lan", entry="device.lan", address=CARD)
STICK = UsbFd(name="usb-stick", entry="device.stick", identity="", port="1-2")


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    """A network card and a stick."""
    fake = FakeSysfs(tmp_path)
    fake.add_pci(CARD, NETWORK, driver="e1000e", group=13)
    fake.add_usb("1-2", "0781:5581", 3)
    return fake


@pytest.fixture
def directory(tmp_path: Path) -> InstanceDirectory:
    """The VM's run directory."""
    return InstanceDirectory.open(tmp_path, "web")


async def test_fake_sysfs_devices_of_the_host_come_and_go(sysfs: FakeSysfs, directory: InstanceDirectory) -> None:
    """A claim changes nothing, so that it can be on record first; opening takes, releasing gives back."""
    services = cast(Any, SimpleNamespace(passthrough=Passthrough(sysfs)))
    helpers, numbers = Helpers(directory), dict[str, int]()
    (binding,) = outside.reserve_pci([STICK, LAN], "web", services)
    assert (binding.driver, sysfs.driver(CARD), sysfs.written) == ("e1000e", "e1000e", [])
    await outside.open_outside([STICK, LAN], directory, services, helpers, numbers, 70000)
    assert (sysfs.driver(CARD), sysfs.owners) == (VFIO, {"13": 70000})
    assert list(numbers) == ["usb-stick"]
    assert os.readlink(f"/proc/self/fd/{numbers['usb-stick']}").endswith("/dev/bus/usb/001/003")
    os.close(numbers["usb-stick"])
    await outside.release("device.stick", directory, services, helpers)
    assert sysfs.driver(CARD) == VFIO
    await outside.release("device.lan", directory, services, helpers)
    assert (sysfs.driver(CARD), sysfs.owners) == ("e1000e", {"13": 0})


async def test_fake_sysfs_a_driver_that_does_not_let_go_is_not_waited_for(
    sysfs: FakeSysfs, directory: InstanceDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the VM's end that is an error; a detach is over all the same."""
    monkeypatch.setattr(outside, "_DRIVER_TIMEOUT", 0.05)
    started, stopped = os.pipe()
    passthrough = Passthrough(sysfs)
    monkeypatch.setattr(passthrough, "give_back", lambda _binding: os.read(started, 1))
    services = cast(Any, SimpleNamespace(passthrough=passthrough))
    outside.reserve_pci([LAN], "web", services)
    with pytest.raises(HostDeviceError, match="has not changed the driver"):
        await outside.release_pci("web", services)
    await outside.release("device.lan", directory, services, Helpers(directory))
    os.close(stopped)
    assert passthrough.held("web", "device.other") == ()


def test_only_devices_of_the_host_and_who_wants_it_need_locked_memory() -> None:
    """All of the guest's, and room for their own; one that locks itself locks more than anybody can say."""
    unit = Unit(memory=MemorySection(size=2 << 30))
    assert outside.lockable_memory([STICK], unit) == 0
    assert outside.lockable_memory([STICK, LAN], unit) == 3 << 30
    for grows in ({"max": "8G"}, {"max": "8G", "min": "1G"}, {"max": "8G", "slots": 2, "resize": "dimm"}):
        unit = unit_from_values({"memory": {"size": "2G", **grows}})
        assert outside.lockable_memory([LAN], unit) == 9 << 30
    assert outside.lockable_memory([LAN], Unit(memory=MemorySection(lock=True))) == process.ANY_AMOUNT
