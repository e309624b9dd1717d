"""The account of what VMs were promised: who gets in, for how long, and what is known of it."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing
from attrs import evolve

from qsup.errors import CapacityError, HostError
from qsup.host.topology import TopologyReader
from qsup.instance.capacity import Capacity
from qsup.instance.placements import Placements
from qsup.plan.capacity import Bounds
from qsup.plan.spec import PlanSummary
from qsup.plan.topology import Cpu, Node, Topology
from qsup.unit.model import Unit
from qsup.unit.parse import unit_from_values

KVM, TCG = (
    PlanSummary(emulator="/usr/bin/qemu", machine="q35", accel=accel, cpu_model="max") for accel in ("kvm", "tcg")
)
MIB, GIB = 1 << 20, 1 << 30


class Host(TopologyReader):
    """One node and four CPUs, which can be hung; looks are counted."""

    def __init__(self, memory: int = 4 * GIB) -> None:
        super().__init__()
        self.memory = memory
        self.hangs = False
        self.looks = 0
        self.answers = trio.Event()
        self.answers.set()

    async def look(self) -> Topology:
        """As it is, once it answers."""
        await self.answers.wait()
        if self.hangs:
            raise HostError("the kernel does not answer")
        self.looks += 1
        cpus = tuple(Cpu(number=number) for number in range(4))
        return Topology(cpus=cpus, nodes=(Node(number=0, memory=self.memory),))

    def is_still(self, topology: Topology) -> bool:
        """Whether it has as much."""
        return topology.nodes[0].memory == self.memory


def account(host: Host | None = None) -> Capacity:
    """An account that promises no more than there is, and two vCPUs for each CPU."""
    bounds = Bounds(memory_overcommit=1, cpu_overcommit=2)
    return Capacity(Placements(host or Host()), bounds)


def unit(size: str = "2G", vcpus: int = 1) -> Unit:
    """One that may grow."""
    return unit_from_values({"memory": {"size": size, "max": "8G", "balloon": False}, "cpu": {"vcpus": vcpus}})


async def promised(capacity: Capacity) -> dict[str, tuple[int, int]]:
    """Of each VM, the MiB of memory besides QEMU's own, and its vCPUs."""
    _, promises = await capacity.survey()
    return {each.name: ((each.memory - each.own) // MIB, each.vcpus) for each in promises}


async def test_two_that_start_at_once_do_not_both_get_the_last() -> None:
    """One is promised it, the other is refused and told who has it; once that one is down there is room."""
    capacity, told = account(), list[str]()

    async def start(name: str) -> None:
        try:
            await capacity.take(name, unit(), KVM)
        except CapacityError as error:
            told.append(error.message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start, "one")
        nursery.start_soon(start, "two")
    (words,) = told
    ((first, _),) = (await promised(capacity)).items()
    assert f"2081M to {first})" in words
    capacity.release(first)
    capacity.release(first)
    await capacity.take("two", unit(), KVM)


async def test_what_is_forced_counts() -> None:
    """It is told why it would have been refused; nobody else gets in for it, and it keeps what it has."""
    capacity = account()
    assert await capacity.take("big", unit("6G"), KVM, forced=True) != ""
    assert await capacity.take("big", unit("6G"), KVM, forced=False) == ""
    with pytest.raises(CapacityError, match="0B are left to promise"):
        await capacity.take("web", unit("256M"), KVM)
    capacity.release("big")
    assert await capacity.take("web", unit("256M"), KVM, forced=True) == ""


async def test_what_runs_is_never_refused() -> None:
    """VMs of an earlier daemon have what they have, however little the host has now, and so has one that restarts."""
    capacity = account(Host(memory=GIB))
    capacity.restore("web", unit(), KVM)
    capacity.restore("db", unit(), TCG)
    assert await capacity.take("web", unit(), KVM) == ""
    with pytest.raises(CapacityError):
        await capacity.take("web", unit("3G"), KVM)
    assert await promised(capacity) == {"db": (2048, 1), "web": (2048, 1)}


async def test_a_restart_is_judged_before_the_vm_is_stopped() -> None:
    """By what its unit says now; of one that has no promise nothing is said."""
    capacity = account()
    await capacity.take_next("web", unit("1T"))
    await capacity.take("web", unit(), KVM)
    await capacity.take("db", unit("1G"), KVM)
    await capacity.take_next("web", unit("2500M"))
    numa = unit_from_values({"memory": {"size": "1G"}, "numa": [{"id": "a"}, {"id": "b"}]})
    await capacity.take_next("web", numa)
    with pytest.raises(CapacityError, match="wants 3105M of memory"):
        await capacity.take_next("web", unit("3G"))
    assert await promised(capacity) == {"db": (1024, 1), "web": (2048, 1)}


async def test_two_restarts_at_once_do_not_both_get_the_last() -> None:
    """What a VM is to come back with is promised from when its restart is accepted, until that is given up or done."""
    capacity = account(Host(memory=4800 * MIB))
    for name in ("one", "two"):
        await capacity.take(name, unit(), KVM)
    await capacity.take_next("one", unit("2500M"))
    with pytest.raises(CapacityError, match=r"are promised: \d+M to one"):
        await capacity.take_next("two", unit("2500M"))
    assert await promised(capacity) == {"one": (2500, 1), "two": (2048, 1)}
    capacity.forgo("one")
    await capacity.take_next("two", unit("2500M"))
    await capacity.take("two", unit("2500M"), KVM)
    assert await promised(capacity) == {"one": (2048, 1), "two": (2500, 1)}
    await capacity.take_next("two", unit("1G", vcpus=2))
    assert await promised(capacity) == {"one": (2048, 1), "two": (2500, 2)}
    await capacity.take("two", unit("1G"), KVM)
    await capacity.take_next("one", unit("2500M"))
    capacity.release("one")
    assert await promised(capacity) == {"two": (1024, 1)}


async def test_what_changes_during_a_look_counts() -> None:
    """Memory that a VM has given back while the host was looked at is not promised to it again for more vCPUs."""
    host = Host()
    capacity = account(host)
    await capacity.take("web", unit(), KVM)
    host.answers = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(capacity.take_more, "web", vcpus=2))
        await trio.testing.wait_all_tasks_blocked()
        capacity.settle("web", size=GIB)
        host.answers.set()
    assert await promised(capacity) == {"web": (1024, 2)}


async def test_one_that_runs_may_have_more() -> None:
    """As much as is left; what it gives back can be had by others."""
    capacity = account()
    await capacity.take_more("gone", size=GIB)
    capacity.settle("gone", size=GIB)
    await capacity.take("web", unit(), KVM)
    await capacity.take_more("web", size=3 * GIB)
    await capacity.take_more("web", vcpus=8)
    with pytest.raises(CapacityError, match="wants 9 vCPUs, and 8 are left to promise: 1 are missing"):
        await capacity.take_more("web", vcpus=9)
    with pytest.raises(CapacityError, match=r"wants 5160M of memory \(5G for its guest, 40M for QEMU itself\)"):
        await capacity.take_more("web", size=5 * GIB)
    assert await promised(capacity) == {"web": (3072, 8)}
    capacity.settle("web", vcpus=2)
    capacity.settle("web", size=GIB)
    assert await promised(capacity) == {"web": (1024, 2)}
    await capacity.take("db", unit("2G"), KVM)


async def test_a_kernel_that_hangs_keeps_no_vm_from_its_start() -> None:
    """What was seen last counts, and where nothing was, nothing is refused."""
    host = Host()
    host.hangs = True
    capacity = account(host)
    await capacity.take("web", unit("1T"), KVM)
    with pytest.raises(HostError):
        await capacity.survey()
    capacity.release("web")
    host.hangs = False
    await capacity.take("web", unit(), KVM)
    host.hangs = True
    with pytest.raises(CapacityError):
        await capacity.take("db", unit(), KVM)
    assert await promised(capacity) == {"web": (2048, 1)}


async def test_a_start_waits_for_no_look_while_the_host_is_the_same() -> None:
    """One that asks for memory of certain nodes does, and any does when the host has changed."""
    host = Host()
    capacity = account(host)
    await capacity.take("web", unit(), KVM)
    await capacity.take("db", unit("1G"), KVM)
    assert host.looks == 1
    await capacity.take("near", unit("64M"), evolve(KVM, memory_nodes=(0,)))
    assert host.looks == 2
    host.memory = 8 * GIB
    await capacity.take("big", unit("3G"), KVM)
    assert host.looks == 3


async def test_memory_in_a_fence_is_promised_on_its_nodes() -> None:
    """Also when that changes while a VM runs: what finds no room there is refused, and the VM has what it had."""

    class TwoNodes(Host):
        async def look(self) -> Topology:
            topology = await super().look()
            return evolve(topology, nodes=(*topology.nodes, Node(number=1, memory=self.memory)))

    capacity = account(TwoNodes())
    fenced = unit_from_values({"memory": {"size": "3G"}, "limits": {"cpuset-mems": "0"}})
    await capacity.take("web", fenced, KVM)
    await capacity.take("db", unit_from_values({"memory": {"size": "3G"}}), KVM)
    with pytest.raises(CapacityError, match="wants 3G of memory on node 0"):
        await capacity.take_more("db", mems=(0,))
    await capacity.take_more("db", mems=(1,))
    with pytest.raises(CapacityError, match="wants 3G of memory on node 1"):
        await capacity.take_more("web", mems=(1,))
    capacity.settle("db", mems=())
    await capacity.take_more("web", mems=(1,))
