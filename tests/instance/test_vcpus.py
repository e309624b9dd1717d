"""Fewer vCPUs, without a VM: what a guest's refusals make of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from attrs import evolve

from qsup.errors import GuestRefused
from qsup.instance.context import Context
from qsup.instance.hardware import Attached, Hardware
from qsup.instance.live.vcpus import FewerVcpus
from qsup.plan.spec import PartPlan
from qsup.unit.model import CpuSection, Unit
from qsup.unit.write import values_of
from tests.plan.building import build

UNIT = Unit(cpu=CpuSection(vcpus=2, max_vcpus=2))


class Qemu:
    """A QEMU with two vCPUs, the second of which was plugged, that counts how often it is asked for one."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.plugged = {0: "/machine/unattached/device[0]", 1: "/machine/peripheral/cpu-1"}

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, **_: object) -> object:
        """What the goal needs."""
        await trio.lowlevel.checkpoint()
        if command == "query-hotpluggable-cpus":
            found = [{"type": "cpu", "vcpus-count": 1, "props": {"core-id": number}} for number in range(2)]
            for number, path in self.plugged.items():
                found[number]["qom-path"] = path
            return found[::-1]
        if command == "query-cpus-fast":
            return [
                {"cpu-index": number, "qom-path": path, "thread-id": number + 1, "target": "x86_64"}
                for number, path in self.plugged.items()
            ]
        assert command == "device_del" and arguments is not None
        self.asked.append(arguments["id"])
        return {}


def vm(qemu: Qemu) -> tuple[Hardware, Context]:
    """A VM of that under KVM, without an agent."""
    hardware = Hardware(UNIT, values_of(UNIT), evolve(build(UNIT).summary(), accel="kvm"), ())
    hardware.add(Attached(part=PartPlan(entry="cpu.1", devices=())))
    life = SimpleNamespace(summary=SimpleNamespace(has_agent=False))
    context = SimpleNamespace(hardware=hardware, monitor=qemu, name="web", life=life, note=lambda _: None)
    return hardware, cast("Context", context)


async def test_a_guest_that_refuses_once_is_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    """It may just be booting; what it refuses twice it is not asked for a third time."""
    qemu = Qemu()
    hardware, context = vm(qemu)
    goal = FewerVcpus(1, 2)
    assert await goal.step(context)
    hardware.mark("cpu.1", "there")  # what a refusal does
    for _ in range(12):
        assert await goal.step(context)
        await trio.sleep(1)  # virtual time
    assert qemu.asked == ["cpu-1", "cpu-1"]
    assert hardware.in_state("leaving")
    hardware.mark("cpu.1", "there")
    with pytest.raises(GuestRefused, match="does not let vCPU 1 go; it has 2"):
        await goal.step(context)
    assert (len(qemu.asked), hardware.unit.cpu.vcpus) == (2, 2)


async def test_a_guest_that_refuses_once_may_still_do_it() -> None:
    """Then the goal is reached."""
    qemu = Qemu()
    hardware, context = vm(qemu)
    goal = FewerVcpus(1, 2)
    await goal.step(context)
    hardware.mark("cpu.1", "there")
    await goal.step(context)
    del qemu.plugged[1]
    assert not await goal.step(context)
    assert await goal.result(context) == {"vcpus": 1, "online": None}
    assert hardware.part("cpu.1") is None
