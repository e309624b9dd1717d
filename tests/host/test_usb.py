"""Tests of `qsup.host.usb` on trees of real shapes; no host that the tests run on has USB."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qsup.errors import HostDeviceError
from qsup.host.usb import find, open_device
from tests.host.fakesys import FakeSysfs


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    """A hub with a stick and a receiver behind it, another receiver, and an interface."""
    fake = FakeSysfs(tmp_path)
    fake.add_usb("1-2", "05e3:0610", 2, kind="09")
    fake.add_usb("1-2.3", "0781:5581", 3)
    fake.add_usb("1-2.4", "046d:c52b", 4)
    fake.add_usb("2-1", "046d:c52b", 2)
    (fake.root / "bus/usb/devices/1-2.3:1.0").mkdir()
    (fake.root / "bus/usb/devices/usb1").mkdir()
    (fake.root / "bus/usb/devices/2-2").mkdir()  # just pulled: nothing of it can be read any more
    return fake


def test_fake_sysfs_a_device_is_found_by_what_it_is_or_where(sysfs: FakeSysfs) -> None:
    """Or by both, where there are two of a kind; what QEMU gets is its node."""
    for identity, port in (("0781:5581", ""), ("", "1-2.3"), ("0781:5581", "1-2.3")):
        found = find("device.stick", identity, port, sysfs.root)
        assert (found.port, found.number) == ("1-2.3", 3)
    assert find("device.x", "046d:c52b", "2-1", sysfs.root).node(Path("/dev")) == Path("/dev/bus/usb/002/002")
    fd = open_device("device.stick", "0781:5581", "", sysfs.root, sysfs.dev)
    assert os.readlink(f"/proc/self/fd/{fd}") == str(sysfs.dev / "bus/usb/001/003")
    os.close(fd)


@pytest.mark.parametrize(
    ("identity", "port", "words"),
    [
        ("046d:c52b", "", "device.x: USB device 046d:c52b is plugged in at 1-2.4, 2-1"),
        ("1234:5678", "", "device.x: no USB device 1234:5678 is plugged in"),
        ("0781:5581", "2-1", "device.x: no USB device 0781:5581 is plugged in at 2-1"),
        ("", "1-2", "device.x: no USB device is plugged in at 1-2"),
        ("", "2-2", "device.x: no USB device is plugged in at 2-2"),
    ],
)
def test_fake_sysfs_what_is_meant_must_be_one_device(sysfs: FakeSysfs, identity: str, port: str, words: str) -> None:
    """None, two of them, and a hub are refused in words."""
    with pytest.raises(HostDeviceError) as caught:
        find("device.x", identity, port, sysfs.root)
    assert caught.value.message == words


def test_fake_sysfs_a_device_that_is_pulled_meanwhile_cannot_be_opened(sysfs: FakeSysfs) -> None:
    """The node went before the directory."""
    (sysfs.dev / "bus/usb/001/003").unlink()
    with pytest.raises(HostDeviceError, match=r"could not open USB device 0781:5581 at 1-2\.3: No such file"):
        open_device("device.stick", "", "1-2.3", sysfs.root, sysfs.dev)
