"""Fewer vCPUs, without a VM: what a guest's refusals make of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from attrs import evolve

from qsup.errors import ChangeError, GuestRefused, QmpCommandError
from qsup.host.cgroup import Cgroup
from qsup.instance.capacity import Capacity
from qsup.instance.context import Context
from qsup.instance.hardware import Attached, Hardware
from qsup.instance.limiting import Limiting
from qsup.instance.live.vcpus import FewerVcpus
from qsup.instance.pinning import Pinning
from qsup.instance.placements import Placements
from qsup.plan.pinning import Pins
from qsup.plan.spec import PartPlan
from qsup.qmp.guest import GuestVcpu
from qsup.unit.model import Unit
from qsup.unit.sections.machine import CpuSection
from qsup.unit.write import values_of
from tests.plan.building import build

UNIT = Unit(cpu=CpuSection(vcpus=2, max_vcpus=2))


class Qemu:
    """A QEMU with two vCPUs, the second of which was plugged, that counts how often it is asked for one."""

    def __init__(self, refusal: str = "") -> None:
        self.asked: list[str] = []
        self.refusal = refusal
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
        if command == "query-chardev":
            return [{"label": "agent", "filename": "", "frontend-open": True}]
        assert command == "device_del" and arguments is not None
        if self.refusal:
            raise QmpCommandError(command, "GenericError", self.refusal)
        self.asked.append(arguments["id"])
        return {}


class Agent:
    """A guest's agent, and what it has online."""

    def __init__(self) -> None:
        self.online = {0, 1}

    async def vcpus(self, seconds: float) -> tuple[GuestVcpu, ...]:
        """Both."""
        await trio.lowlevel.checkpoint()
        return tuple(GuestVcpu(number=n, online=n in self.online, can_offline=n > 0) for n in range(2))

    async def set_vcpus(self, numbers: Sequence[int], online: bool, seconds: float) -> int:
        """Put some online or offline."""
        await trio.lowlevel.checkpoint()
        self.online = self.online | set(numbers) if online else self.online - set(numbers)
        return len(numbers)


def vm(qemu: Qemu, agent: Agent | None = None) -> tuple[Hardware, Context]:
    """A VM of that under KVM."""
    hardware = Hardware(UNIT, values_of(UNIT), evolve(build(UNIT).summary(), accel="kvm"), ())
    hardware.add(Attached(part=PartPlan(entry="cpu.1", devices=())))
    pinning = Pinning(os.getpid(), Pins)
    placements = Placements()
    life = SimpleNamespace(
        summary=SimpleNamespace(has_agent=agent is not None), pinning=pinning, limiting=Limiting(Cgroup())
    )
    context = SimpleNamespace(
        hardware=hardware,
        monitor=qemu,
        name="web",
        life=life,
        note=lambda _: None,
        guest=agent,
        capabilities=None,
        services=SimpleNamespace(capacity=Capacity(placements), placements=placements),
    )
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


@pytest.mark.parametrize("refused", ["by the guest", "by QEMU"])
async def test_what_stays_is_of_use_again(autojump_clock: trio.testing.MockClock, refused: str) -> None:
    """A vCPU that was taken offline so that it can go, and does not, is put online."""
    qemu, agent = Qemu("acpi: unplug request for not supported device type" if refused == "by QEMU" else ""), Agent()
    hardware, context = vm(qemu, agent)
    goal = FewerVcpus(1, 2)
    if not qemu.refusal:
        for _ in range(2):
            await goal.step(context)
            assert agent.online == {0}
            hardware.mark("cpu.1", "there")
    with pytest.raises(ChangeError if qemu.refusal else GuestRefused):
        await goal.step(context)
    assert agent.online == {0, 1}
