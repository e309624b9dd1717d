"""What a host is made of, as far as it matters where a VM runs: CPUs, caches, memory and how far they are apart.

Decides: what is known of a CPU, a cache, a NUMA node and a pool of huge pages, and what they are together.
Must not: read any of it (`qsup.host.topology`), or decide who runs where (`qsup.plan.placement`).

Terms are the kernel's: Documentation/ABI/stable/sysfs-devices-system-cpu and sysfs-devices-node in Linux's source.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from attrs import evolve, field, frozen

#: Distance of a node to itself, by which all others are measured (ACPI's SLIT).
LOCAL = 10


@frozen(kw_only=True)
class Cpu:
    """One logical CPU.

    Args:
        number: the kernel's.
        node: its NUMA node.
        package, die, core: where it is; a core's number is unique within its die only.
        kind: ``performance`` or ``efficiency`` on a host that has cores of both, else ``""``.
        online: it can run anything at all; of one that is offline nothing else may be known.
        isolated: the kernel's scheduler leaves it alone (``isolcpus=``): who runs there was put there by name.
        allowed: this daemon, and so what it starts, may use it (cpuset(7)).
    """

    number: int
    node: int = 0
    package: int = 0
    die: int = 0
    core: int = 0
    kind: str = ""
    online: bool = True
    isolated: bool = False
    allowed: bool = True


@frozen(kw_only=True)
class Cache:
    """One cache.

    Args:
        level: 1 to 4.
        type: ``Data``, ``Instruction`` or ``Unified``.
        size: bytes.
        cpus: who shares it.
    """

    level: int
    type: str
    size: int
    cpus: frozenset[int]


@frozen(kw_only=True)
class HugePages:
    """A node's pool of huge pages of one size.

    Args:
        size: bytes of a page.
        total, free: pages.
    """

    size: int
    total: int
    free: int


@frozen(kw_only=True)
class HostPool:
    """What the kernel says of huge pages of one size for the host as a whole.

    Args:
        size: bytes of a page.
        reserved: how many of the free ones are somebody's who has not touched them yet.
        spare: how many it may make besides, if it can (``nr_overcommit_hugepages``).
    """

    size: int
    reserved: int = 0
    spare: int = 0


@frozen(kw_only=True)
class Node:
    """One NUMA node.

    Args:
        number: the kernel's.
        memory: bytes it has, 0 for one of CPUs alone.
        free: bytes of that which nobody uses, or that can be had at once.
        distances: by node, `LOCAL` for itself.
        hugepages: its pools, smallest pages first.
    """

    number: int
    memory: int
    free: int = 0
    distances: Mapping[int, int] = field(factory=dict)
    hugepages: tuple[HugePages, ...] = ()

    def distance(self, other: int) -> int:
        """How far another node is."""
        return self.distances.get(other, LOCAL if other == self.number else 2 * LOCAL)


@frozen(kw_only=True)
class Core:
    """One core: the CPUs that share it, all of them online, ascending."""

    node: int
    package: int
    die: int
    kind: str
    cpus: tuple[int, ...]


_Placed = TypeVar("_Placed", Cpu, Core)


@frozen(kw_only=True, eq=False)
class Topology:
    """A host at one moment.

    Args:
        cpus: all that are possible and known, ascending.
        nodes: all that are online, ascending.
        caches: of the CPUs online, smallest level first.
        pools: of huge pages, smallest first.
    """

    cpus: tuple[Cpu, ...]
    nodes: tuple[Node, ...]
    caches: tuple[Cache, ...] = ()
    pools: tuple[HostPool, ...] = ()

    @functools.cached_property
    def by_number(self) -> Mapping[int, Cpu]:
        """Its CPUs by number."""
        return {cpu.number: cpu for cpu in self.cpus}

    @functools.cached_property
    def online(self) -> frozenset[int]:
        """The CPUs that can run something."""
        return frozenset(cpu.number for cpu in self.cpus if cpu.online)

    @functools.cached_property
    def placeable(self) -> frozenset[int]:
        """The CPUs that a VM is put on by itself: online, ours, and not isolated for somebody else."""
        return frozenset([cpu.number for cpu in self.cpus if cpu.online and cpu.allowed and not cpu.isolated])

    @functools.cached_property
    def cores(self) -> tuple[Core, ...]:
        """All cores with a CPU that is online, by the lowest of their CPUs."""
        found: dict[tuple[int, int, int], list[Cpu]] = {}
        for cpu in self.cpus:
            if cpu.online:
                found.setdefault((cpu.package, cpu.die, cpu.core), []).append(cpu)
        return tuple(
            Core(
                node=cpus[0].node,
                package=cpus[0].package,
                die=cpus[0].die,
                kind=cpus[0].kind,
                cpus=tuple([cpu.number for cpu in cpus]),
            )
            for cpus in found.values()
        )

    @functools.cached_property
    def cpus_on(self) -> Mapping[int, tuple[Cpu, ...]]:
        """The CPUs of each node that has any, ascending."""
        return _by_node(self.cpus)

    @functools.cached_property
    def cores_on(self) -> Mapping[int, tuple[Core, ...]]:
        """The cores of each node that has any."""
        return _by_node(self.cores)

    @functools.cached_property
    def core_of(self) -> Mapping[int, Core]:
        """The core of each CPU that is online."""
        return {number: core for core in self.cores for number in core.cpus}

    @functools.cached_property
    def last_level(self) -> Mapping[int, int]:
        """By CPU its last-level cache, named by the lowest CPU behind it, as far as caches are known."""
        found: dict[int, int] = {}
        for cache in reversed(self.caches):
            # of small caches there are many, and what they are asked for is answered by then
            if not found.keys() >= cache.cpus:
                lowest = min(cache.cpus)
                for number in cache.cpus:
                    found.setdefault(number, lowest)
        return found

    def free_pages(self, size: int, nodes: Collection[int] = ()) -> int:
        """Huge pages that can be had at once.

        Args:
            size: bytes of a page.
            nodes: of these nodes alone; none: of any.
        """
        free = {node.number: pool.free for node in self.nodes for pool in node.hugepages if pool.size == size}
        host = next((pool for pool in self.pools if pool.size == size), HostPool(size=size))
        there = sum(pages for node, pages in free.items() if not nodes or node in nodes)
        return max(min(there, sum(free.values()) - host.reserved) + host.spare, 0)

    def free_memory(self, nodes: Collection[int] = ()) -> int:
        """Bytes, other than in huge pages, that can be had at once of some nodes alone; none: of any."""
        return sum(node.free for node in self.nodes if not nodes or node.number in nodes)

    def room(self, node: Node, page: int) -> int:
        """Bytes that a node has at all for memory in pages of a size, those that the kernel may make besides included.

        Args:
            page: bytes of a huge page, 0 for the usual ones.
        """
        if not page:
            return max(node.memory - sum(pool.total * pool.size for pool in node.hugepages), 0)
        spare = sum(pool.spare for pool in self.pools if pool.size == page) if node.memory else 0
        return (sum(pool.total for pool in node.hugepages if pool.size == page) + spare) * page

    def unusable(self, numbers: Iterable[int]) -> str:
        """Why not all of some CPUs can be used, ``""`` if they can: the first that is not there, or is another's."""
        for number in sorted(numbers):
            cpu = self.by_number.get(number)
            if cpu is None:
                return f"there is no CPU {number} on this host, which has {_count(len(self.cpus))}"
            if not cpu.online:
                return f"CPU {number} is offline"
            if not cpu.allowed:
                return f"CPU {number} is not among those that this daemon may use"
        return ""


def idle(topology: Topology) -> Topology:
    """The host as if nobody used anything of its memory."""
    nodes = [
        evolve(
            node,
            free=topology.room(node, 0),
            hugepages=tuple(evolve(pool, free=pool.total) for pool in node.hugepages),
        )
        for node in topology.nodes
    ]
    pools = tuple(evolve(pool, reserved=0) for pool in topology.pools)
    return evolve(topology, nodes=tuple(nodes), pools=pools)


def _by_node(things: Iterable[_Placed]) -> Mapping[int, tuple[_Placed, ...]]:
    found: dict[int, list[_Placed]] = {}
    for thing in things:
        found.setdefault(thing.node, []).append(thing)
    return {node: tuple(there) for node, there in found.items()}


def _count(number: int) -> str:
    return f"{number} CPU{'' if number == 1 else 's'}"
