"""What a VM's unit has no more: asked for once, and over when it has gone or the guest keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from qsup.errors import ChangeError, DeniedError, GuestRefused, MonitorTimeout, QmpCommandError
from qsup.instance.coming import PLANNERS
from qsup.instance.context import Context
from qsup.instance.going import Gone, Patience, check_can_go, settle
from qsup.instance.hardware import Attached, Hardware
from qsup.plan.spec import DevicePlan, PartPlan
from qsup.unit.entries import MOVABLE
from qsup.unit.model import Unit
from qsup.unit.sections.disks import IothreadSection
from qsup.unit.write import values_of
from tests.plan.building import build


class Vm:
    """One disk, and a QEMU that is asked for it."""

    def __init__(self, *, refuses: bool = False, is_mute: bool = False) -> None:
        self.there: PartPlan | None = PartPlan(
            entry="disk.data", devices=(DevicePlan(id="disk-data", driver="virtio-blk-pci"),)
        )
        self.refuses = refuses
        self.is_mute = is_mute
        self.asked: list[Mapping[str, Any]] = []
        self.kept: list[str] = []
        self.state = "there"
        self.resets = 0
        fake = SimpleNamespace(hardware=self, monitor=self, keep=lambda: self.kept.append(self.state), name="web")
        self.context = cast("Context", fake)

    def part(self, entry: str) -> Any:
        """What QEMU has of it."""
        return (
            None if self.there is None else SimpleNamespace(entry=entry, devices=self.there.devices, state=self.state)
        )

    def mark(self, entry: str, state: str) -> None:
        """It is in that state."""
        self.state = state

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, **_: object) -> object:
        """Take or refuse ``device_del``; count ``system_reset``."""
        await trio.lowlevel.checkpoint()
        if command == "system_reset":
            self.resets += 1
            return {}
        assert arguments is not None
        self.asked.append(arguments)
        if self.is_mute:
            raise MonitorTimeout(f"{command}: no answer within 10 s")
        if self.refuses:
            raise QmpCommandError(command, "GenericError", "no hotplug here")
        return {}


async def test_it_is_asked_for_once_and_over_when_it_has_gone() -> None:
    """An answer ends nothing; that it is on its way out is on record before QEMU hears of it."""
    vm, goal = Vm(), Gone("disk.data", Patience(None))
    for _ in range(3):
        assert await goal.step(vm.context) == "disk.data is there until the guest lets it go or is reset"
    assert (vm.asked, vm.kept) == ([{"id": "disk-data"}], ["leaving"])
    with pytest.raises(DeniedError, match="QEMU does not take a request to unplug back"):
        await goal.stop(vm.context)
    vm.there = None
    assert await goal.step(vm.context) == ""


async def test_what_the_guest_keeps_stays() -> None:
    """Its refusal came as an event, by which the disk is there as before."""
    vm, goal = Vm(), Gone("disk.data", Patience(None))
    await goal.step(vm.context)
    vm.mark("disk.data", "there")
    with pytest.raises(GuestRefused, match=r"the guest does not let disk\.data go"):
        await goal.step(vm.context)


def test_what_is_no_device_stays_until_the_next_start() -> None:
    """What comes can go, and of nothing else is it said that the guest might let it go."""
    assert set(PLANNERS) == set(MOVABLE)
    unit = Unit(iothreads=(IothreadSection(id="fast"),))
    hardware = Hardware(unit, values_of(unit), build(unit).summary(), ())
    with pytest.raises(ChangeError, match=r"iothread\.fast cannot be taken away while it runs"):
        check_can_go("iothread.fast", hardware)
    assert hardware.match((), (), ()) == (), "nor is it taken for gone where QEMU has no device of it"
    (left,) = hardware.summary.parts
    assert [backend.name for backend in left.backends] == ["iothread-fast"]


async def test_what_qemu_may_have_heard_of_is_on_its_way_out() -> None:
    """And that is said, with the name of what it is about."""
    vm = Vm(is_mute=True)
    with pytest.raises(MonitorTimeout, match=r"disk\.data: device_del: no answer within 10 s") as mute:
        await Gone("disk.data", Patience(None)).step(vm.context)
    assert (vm.state, "QEMU may have heard" in mute.value.hint) == ("leaving", True)


async def test_what_qemu_does_not_take_out_stays() -> None:
    """Its words are told."""
    vm = Vm(refuses=True)
    with pytest.raises(ChangeError, match=r"QEMU does not detach disk\.data: .*no hotplug here"):
        await Gone("disk.data", Patience(None)).step(vm.context)
    assert vm.state == "there"


async def test_a_guest_that_had_its_time_is_reset(autojump_clock: trio.testing.MockClock) -> None:
    """Once, for all that it was asked for."""
    vm, patience = Vm(), Patience(10.0)
    goals = Gone("disk.data", patience), Gone("disk.log", patience)
    resets = []
    for _ in range(12):
        for goal in goals:
            await goal.step(vm.context)
        resets.append(vm.resets)
        await trio.sleep(1.0)  # virtual time
    assert resets == [0] * 10 + [1] * 2


class Attaching:
    """A QEMU that is asked for its devices, and is given a NIC before its answer is read."""

    def __init__(self) -> None:
        self.hardware = Hardware(Unit(), values_of(Unit()), build(Unit()).summary(), ())
        device = DevicePlan(id="nic-dmz", driver="virtio-net-pci")
        self.hardware.add(Attached(part=PartPlan(entry="nic.dmz", devices=(device,), state="coming")))
        life = SimpleNamespace(helpers=SimpleNamespace(dismiss=lambda _: None))
        self.context = cast("Context", SimpleNamespace(hardware=self.hardware, monitor=self, life=life))

    async def execute(self, command: str, *_: object, **__: object) -> object:
        """``qom-list`` without it."""
        assert command == "qom-list"
        await trio.lowlevel.checkpoint()
        self.hardware.mark("nic.dmz", "there")
        return []


async def test_what_comes_while_qemu_lists_its_devices_is_not_taken_for_gone() -> None:
    """It was not there when QEMU answered, and is by the time the answer is read."""
    vm = Attaching()
    assert await settle(vm.context) == ((), False)
    assert vm.hardware.part("nic.dmz") is not None
