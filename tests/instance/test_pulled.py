"""Tests of `qsup.instance.pulled` on a fake sysfs: no host that the tests run on has USB."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from qsup.instance import pulled
from qsup.instance.pulled import Pulled
from qsup.unit.model import Unit
from qsup.unit.sections.devices import DeviceSection
from tests.host.fakesys import FakeSysfs

STICK = DeviceSection(id="stick", type="usb", identity="0781:5581")
GONE = "device.stick: no USB device 0781:5581 is plugged in; the guest has it no more"
BACK = "device.stick: USB device 0781:5581 is back at 1-2; detach it with --runtime, and apply attaches it again"


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    """A stick."""
    fake = FakeSysfs(tmp_path)
    fake.add_usb("1-2", "0781:5581", 3)
    return fake


def pull(sysfs: FakeSysfs, port: str) -> None:
    """Pull what is plugged in at a port."""
    shutil.rmtree(sysfs.root / "bus/usb/devices" / port)


def test_fake_sysfs_a_stick_is_pulled_and_comes_back(sysfs: FakeSysfs) -> None:
    """Each is told once; what is back is another device to QEMU, until it has been attached again."""
    watched = Pulled(sysfs.root)
    assert watched.look([STICK]) == {}
    pull(sysfs, "1-2")
    assert watched.look([STICK]) == {"device.stick": GONE}
    assert watched.look([STICK]) == {}
    assert watched.troubles == {"device.stick": GONE}
    sysfs.add_usb("1-2", "0781:5581", 9)
    assert watched.look([STICK]) == {"device.stick": BACK}
    assert watched.look([STICK]) == {}
    assert watched.look([]) == {}
    assert watched.look([STICK]) == {}
    assert watched.troubles == {}


def test_fake_sysfs_a_stick_that_was_pulled_between_two_looks(sysfs: FakeSysfs) -> None:
    """Its number says that it was."""
    watched = Pulled(sysfs.root)
    watched.look([STICK])
    pull(sysfs, "1-2")
    sysfs.add_usb("1-2", "0781:5581", 4)
    assert watched.look([STICK]) == {"device.stick": BACK}


def test_fake_sysfs_another_of_its_kind_changes_nothing(sysfs: FakeSysfs) -> None:
    """Though its identity alone would not tell them apart any more."""
    watched = Pulled(sysfs.root)
    watched.look([STICK])
    sysfs.add_usb("2-1", "0781:5581", 2)
    assert watched.look([STICK]) == {}
    pull(sysfs, "1-2")
    assert "device.stick" in watched.look([STICK])


async def test_fake_sysfs_a_vm_is_watched_for_as_long_as_it_has_any(
    sysfs: FakeSysfs, autojump_clock: trio.testing.MockClock
) -> None:
    """What is told is shown with the VM, and taken back with the device."""
    life: Any = SimpleNamespace(unit=Unit(devices=(STICK,)), hardware=SimpleNamespace(troubles={}))
    told: list[str] = []
    heard = trio.Event()

    def tell(_entry: str, words: str) -> None:
        told.append(words)
        heard.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pulled.watch, cast(Any, life), sysfs.root, tell)
        pull(sysfs, "1-2")
        await heard.wait()
        assert (told, life.hardware.troubles) == ([GONE], {"device.stick": GONE})
        life.unit = Unit()
    assert life.hardware.troubles == {}
