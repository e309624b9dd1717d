"""Starts that take memory of the host at the same time."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from attrs import evolve

from qsup.errors import PlacementError
from qsup.instance.hostmemory import HostMemory
from qsup.plan.topology import HugePages, Node, Topology
from qsup.unit.model import Unit
from qsup.unit.parse import unit_from_values

MIB = 1 << 20


class Host:
    """Two nodes, of which the first has huge pages and the second no memory; looks are counted."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.looks = 0

    async def look(self) -> Topology:
        """As it is when the look begins."""
        self.looks += 1
        pool = HugePages(size=2 * MIB, total=1024, free=self.free)
        await trio.lowlevel.checkpoint()
        return Topology(cpus=(), nodes=(Node(number=0, memory=1 << 33, hugepages=(pool,)), Node(number=1, memory=0)))


def unit(size: str = "128M", **memory: object) -> Unit:
    """One in huge pages."""
    return unit_from_values({"memory": {"size": size, "hugepages": "2M", "balloon": False, **memory}})


async def test_two_that_start_at_once_do_not_both_get_the_last_pages(autojump_clock: trio.testing.MockClock) -> None:
    """The second waits until the first has them, and is told then."""
    host = Host(free=100)
    memory = HostMemory(host.look)
    told: list[str] = []

    async def start(name: str) -> None:
        try:
            await memory.take(name, unit(), ())
        except PlacementError as error:
            told.append(f"{name}: {error.message}")
        else:
            told.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start, "one")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(start, "two")
        await trio.testing.wait_all_tasks_blocked()
        assert told == ["one"]
        host.free -= 64
        memory.release("one")
    assert len(told) == 2 and "wants 64 huge pages of 2M for 128M of memory, and 36 are free" in told[1]


async def test_pages_are_not_counted_twice(autojump_clock: trio.testing.MockClock) -> None:
    """One that has taken its own before it says so keeps the other waiting, and not out; one that fails gives way."""
    host = Host(free=128)
    memory = HostMemory(host.look)
    await memory.take("one", unit(), ())
    host.free -= 64
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.take, "two", unit(), ())
        await trio.testing.wait_all_tasks_blocked()
        assert host.looks == 2
        memory.release("one")
    memory.release("two")
    memory.release("two")
    await memory.take("three", unit(), ())


async def test_one_that_takes_them_while_the_host_is_looked_at_counts() -> None:
    """What the look says may be from before."""
    host = Host(free=64)
    memory = HostMemory(host.look)
    refused: list[str] = []

    async def late() -> None:
        with pytest.raises(PlacementError):
            await memory.take("late", unit(), ())
        refused.append("late")

    await memory.take("early", unit(), ())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        await trio.testing.wait_all_tasks_blocked()  # it looked while both were to be had
        host.free = 0
        memory.release("early")
    assert refused == ["late"]


async def test_what_a_unit_says_nothing_of_is_not_looked_for() -> None:
    """A VM without any of these keys costs no look."""
    host = Host(free=0)
    memory = HostMemory(host.look)
    assert await memory.take("web", Unit(), (0, 1)) == ()
    await memory.check_more("web", Unit(), (), 1 << 40)
    assert host.looks == 0


async def test_of_chosen_nodes_those_with_memory_count() -> None:
    """CPUs may be chosen on a node that has none; one that is named must have some."""
    memory = HostMemory(Host(free=64).look)
    auto = unit(nodes="auto")
    auto = evolve(auto, cpu=evolve(auto.cpu, pin="auto"))
    assert await memory.take("auto", auto, (0, 1)) == (0,)
    memory.release("auto")
    with pytest.raises(PlacementError, match="on node 1, which has no memory"):
        await memory.take("web", unit(nodes="0-1"), ())


async def test_more_for_one_that_runs() -> None:
    """As much as is free, on its nodes."""
    memory = HostMemory(Host(free=64).look)
    await memory.check_more("web", unit(), (0,), 128 * MIB)
    with pytest.raises(PlacementError, match="wants 65 huge pages of 2M on node 0 for 130M of memory, and 64 are free"):
        await memory.check_more("web", unit(), (0,), 130 * MIB)


async def test_each_node_of_a_guest_finds_its_pages() -> None:
    """What two of them want of one node of the host is had once, and the other one's words name what is missing."""
    memory = HostMemory(Host(free=100).look)

    def halves(size: str, on: str = "0") -> Unit:
        nodes = [{"id": "a", "vcpus": "0", "nodes": "0"}, {"id": "b", "nodes": on}]
        values = {"memory": {"size": size, "hugepages": "2M", "balloon": False}, "numa": nodes}
        return unit_from_values(values)

    assert await memory.take("web", halves("200M"), ()) == ()
    memory.release("web")
    with pytest.raises(PlacementError, match="wants 51 huge pages of 2M on node 0 for 102M of memory, and 49 are free"):
        await memory.take("web", halves("204M"), ())
    with pytest.raises(PlacementError, match="its memory is to be on node 1, which has no memory"):
        await memory.take("web", halves("64M", on="1"), ())


async def test_nodes_that_are_named_are_judged_without_a_start() -> None:
    """And nothing is looked at where none is."""
    host = Host(free=0)
    memory = HostMemory(host.look)
    await memory.check_named("web", unit())
    assert host.looks == 0
    await memory.check_named("web", unit(nodes="0"))
    with pytest.raises(PlacementError, match="node 1, which has no memory"):
        await memory.check_named("web", unit(nodes="1"))
    values = {"memory": {"size": "128M"}, "numa": [{"id": "a", "nodes": "7", "vcpus": "0"}]}
    with pytest.raises(PlacementError, match="node 7, which is not there"):
        await memory.check_named("web", unit_from_values(values))
