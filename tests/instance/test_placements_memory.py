"""Places of VMs whose memory has one, too: what is chosen together, and stays."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from qsup.errors import PlacementError
from qsup.instance.placements import Placements
from qsup.plan.topology import HugePages
from qsup.unit.model import Unit
from qsup.unit.sections.machine import CpuSection
from qsup.unit.sections.memory import MemorySection, NumaSection
from tests.instance.placing import Host, said, unit
from tests.plan.hosts import HOSTS


@pytest.fixture
def host() -> Host:
    """The host."""
    return Host()


@pytest.fixture
def placements(host: Host) -> Placements:
    """Nobody is there."""
    return Placements(host)


async def test_a_vm_does_not_leave_its_memory(host: Host, placements: Placements) -> None:
    """Its threads get other CPUs on the nodes that its memory was put on, or none."""
    host.topology = HOSTS["2 sockets"]
    half = host.topology.nodes[0].memory // 2

    def bound(**cpu: Any) -> Unit:
        return evolve(unit(vcpus=2, pin="auto", **cpu), memory=MemorySection(size=half, nodes="auto"))

    await placements.take("other", bound(exclusive=True))
    first = await placements.take("web", bound())
    assert first is not None and (first.nodes, first.memory) == ((1,), (half,))
    there = [cpu.number for cpu in host.topology.cpus_on[1]]
    await placements.take("crowd", unit(pin=(tuple(set(there) - {8, 24}),)))
    placements.release("other")
    later = await placements.take("web", bound(exclusive=True))
    assert later is not None and (later.nodes, later.memory) == (first.nodes, first.memory)
    assert later.vcpus == ((8,), (24,))
    await placements.take("web", bound())
    await placements.take("crowd", unit(pin=(tuple(there),)))
    with pytest.raises(PlacementError, match=r"2 CPUs of its own on whole cores, within CPUs .*, and 0 can be had"):
        await placements.take("web", bound(exclusive=True))


async def test_memory_is_promised_with_the_nodes_that_are_chosen(host: Host, placements: Placements) -> None:
    """By this daemon and the next; who does not say `nodes = "auto"` is promised none."""
    host.topology = HOSTS["2 sockets"]
    each = host.topology.nodes[0].memory
    bound = Unit(cpu=CpuSection(pin="auto"), memory=MemorySection(size=each * 3 // 4, nodes="auto"))
    first, second = [await placements.take(name, bound) for name in ("one", "two")]
    assert first is not None and second is not None
    assert (first.nodes, first.memory) == ((0,), (each * 3 // 4,))
    assert (second.nodes, second.memory) == ((1,), (each * 3 // 4,))
    free = await placements.take("free", evolve(bound, memory=MemorySection(size=each * 3 // 4)))
    assert free is not None and free.memory == ()
    later = Placements(host)
    for name, chosen in (("one", first), ("two", second)):
        later.restore(name, bound, chosen)
    with pytest.raises(PlacementError, match=r"48\.0 GiB of memory, and 32\.0 GiB are not promised"):
        await later.take("three", bound)


async def test_memory_of_a_vm_that_restarts_counts_once(host: Host, placements: Placements) -> None:
    """It has given back what it has when it takes what it is to have; of what grows, the difference is kept for it."""
    each = host.topology.nodes[0].memory

    def bound(share: int) -> Unit:
        return Unit(cpu=CpuSection(pin="auto"), memory=MemorySection(size=each * share // 8, nodes="auto"))

    await placements.take("web", bound(4))
    await placements.take_next("web", bound(4))
    await placements.take("db", bound(3))
    placements.release("db")
    await placements.take_next("web", bound(6))
    with pytest.raises(PlacementError, match="of memory"):
        await placements.take("db", bound(3))
    await placements.take("db", bound(2))


async def test_who_floats_starts_beside_one_that_restarts_elsewhere(placements: Placements) -> None:
    """What that has, and what it is to have, leave something to be shared at each time, if nothing together."""
    now, later = (tuple((each,) for each in range(16) if each % 8 in cores) for cores in (range(6), range(2, 8)))
    await placements.take("web", unit(vcpus=12, pin=now, exclusive=True), starts=True)
    await placements.take_next("web", unit(vcpus=12, pin=later, exclusive=True))
    await placements.take("db", unit(pin="auto"), starts=True)
    assert said(placements, "db") == "6-7,14-15 + 6-7,14-15"
    await placements.take("web", unit(vcpus=12, pin=later, exclusive=True), starts=True)
    assert said(placements, "db") == "0-1,8-9 + 0-1,8-9"


async def test_memory_keeps_off_nodes_that_others_name(host: Host, placements: Placements) -> None:
    """As long as there is room elsewhere; how often a node may be promised is for the account to judge."""
    host.topology = HOSTS["2 sockets"]
    each = host.topology.nodes[0].memory
    bound = Unit(cpu=CpuSection(pin="auto"), memory=MemorySection(size=each // 2, nodes="auto"))
    named = Unit(memory=MemorySection(size=each * 3 // 4, nodes=(0,)))
    await placements.take("named", named)
    first = await placements.take("one", bound)
    assert first is not None and first.nodes == (1,)
    await placements.take("beside", evolve(named, memory=evolve(named.memory, nodes=(0, 1), policy="interleave")))
    second = await placements.take("two", bound)
    assert second is not None and second.nodes == (1,), "what is not bound may be anywhere"
    third = await placements.take("three", bound)
    assert third is not None and third.nodes == (0,), "more is promised than there is"
    await placements.take("named", evolve(named, memory=MemorySection(size=each // 4)))
    later = Placements(host)
    later.restore("named", named, None)
    fourth = await later.take("four", bound)
    assert fourth is not None and fourth.nodes == (1,)


async def test_huge_pages_choose_the_nodes_that_have_them(host: Host, placements: Placements) -> None:
    """By this daemon and the next; a VM that has no place there does not start."""
    one, other = HOSTS["2 sockets"].nodes
    pool = HugePages(size=2 << 20, total=1536, free=0)
    host.topology = evolve(HOSTS["2 sockets"], nodes=(one, evolve(other, hugepages=(pool,))))
    huge = MemorySection(size=2 << 30, nodes="auto", hugepages="2M", balloon=False)
    bound = Unit(cpu=CpuSection(pin="auto"), memory=huge)
    chosen = await placements.take("web", bound)
    assert chosen is not None and (chosen.nodes, chosen.memory) == ((1,), (2 << 30,))
    later = Placements(host)
    later.restore("web", bound, chosen)
    for each in (placements, later):
        with pytest.raises(PlacementError, match=r"2\.0 GiB of huge pages of 2M, and 1\.0 GiB are not promised"):
            await each.take("db", bound)


async def test_a_guest_with_nodes_has_each_where_one_of_the_host_is() -> None:
    """Each vCPU floats over the CPUs of its node, or has one of these; the next daemon takes that up."""
    host = Host()
    host.topology = HOSTS["2 sockets"]
    nodes = (NumaSection(id="a", vcpus=(0, 2), nodes="auto"), NumaSection(id="b", vcpus=(1, 3), size=1 << 30))
    memory = MemorySection(size=3 << 30)
    floating = evolve(unit(vcpus=2, max_vcpus=4, pin="auto"), numa=nodes, memory=memory)
    exclusive = evolve(floating, cpu=evolve(floating.cpu, exclusive=True))
    placements = Placements(host)
    chosen = await placements.take("web", floating)
    assert chosen is not None
    assert (chosen.homes, chosen.vcpu_nodes, chosen.memory) == ((0, 1), (0, 1, 0, 1), (2 << 30, 0))
    assert said(placements, "web") == "0-7,16-23 8-15,24-31 0-7,16-23 8-15,24-31 + 0-31"
    taken = await placements.take("db", exclusive)
    assert said(placements, "db") == "0 8 16 24 + 1-7,9-15,17-23,25-31"
    assert said(placements, "web") == "1-7,17-23 9-15,25-31 1-7,17-23 9-15,25-31 + 1-7,9-15,17-23,25-31"
    later = Placements(host)
    later.restore("web", floating, chosen)
    later.restore("db", exclusive, taken)
    await later.refresh()
    assert [said(later, name) for name in ("web", "db")] == [said(placements, name) for name in ("web", "db")]
    later.release("db")
    assert said(later, "web") == "0-7,16-23 8-15,24-31 0-7,16-23 8-15,24-31 + 0-31"


async def test_a_guests_nodes_do_not_leave_their_memory() -> None:
    """One that was put on a node of the host stays there, though another would be chosen now."""
    host = Host()
    host.topology = HOSTS["2 sockets"]
    nodes = (NumaSection(id="a", vcpus=(0,), nodes="auto"), NumaSection(id="b", vcpus=(1,), nodes="auto"))
    floating = evolve(unit(vcpus=2, pin="auto"), numa=nodes, memory=MemorySection(size=4 << 30))
    placements = Placements(host)
    half = MemorySection(size=host.topology.nodes[0].memory - (3 << 30), nodes="auto")
    for name in ("one", "two"):
        await placements.take(name, evolve(unit(pin="auto"), memory=half))
    first = await placements.take("web", floating)
    assert first is not None and first.homes == (0, 1), "neither has memory for both"
    for name in ("one", "two"):
        placements.release(name)
    later = await placements.take("web", evolve(floating, cpu=evolve(floating.cpu, exclusive=True)))
    assert later is not None and (later.homes, later.memory) == (first.homes, first.memory)
    assert [host.topology.by_number[cpu].node for (cpu,) in later.vcpus] == [0, 1]
