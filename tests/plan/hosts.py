"""Hosts in the shapes of real machines, as values, for tests and the benchmark of placement.

Decides: how CPUs are numbered (siblings are far apart, as firmware lists them), grouped and fed with memory.
Must not: read or write a host's files.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import evolve

from qsup.plan.topology import LOCAL, Cache, Cpu, Node, Topology

GIB = 1 << 30


def machine(
    *,
    packages: int = 1,
    nodes: int = 1,
    caches: int = 1,
    cores: int = 4,
    threads: int = 2,
    memory: int = 64,
    near: int = 12,
    far: int = 21,
) -> Topology:
    """A symmetric host.

    Args:
        nodes: of each package.
        caches: last-level caches of each node.
        cores: behind each of these.
        threads: of each core.
        memory: GiB of each node.
        near, far: distance of two nodes of one package, of two packages.
    """
    total = packages * nodes * caches * cores
    cpus = []
    levels: dict[tuple[int, str], list[Cache]] = {(1, "Data"): [], (1, "Instruction"): [], (2, "Unified"): []}
    last = []
    for core in range(total):
        node, package = core // (caches * cores), core // (nodes * caches * cores)
        siblings = frozenset(core + total * thread for thread in range(threads))
        cpus += [Cpu(number=number, node=node, package=package, core=core) for number in siblings]
        for (level, type_), found in levels.items():
            found.append(Cache(level=level, type=type_, size=level << 15, cpus=siblings))
    for first in range(0, total, cores):
        behind = frozenset(core + total * thread for core in range(first, first + cores) for thread in range(threads))
        last.append(Cache(level=3, type="Unified", size=32 << 20, cpus=behind))
    number = packages * nodes
    return Topology(
        cpus=tuple(sorted(cpus, key=lambda cpu: cpu.number)),
        nodes=tuple(
            Node(
                number=one,
                memory=memory * GIB,
                distances={
                    other: LOCAL if one == other else near if one // nodes == other // nodes else far
                    for other in range(number)
                },
            )
            for one in range(number)
        ),
        caches=(*(cache for found in levels.values() for cache in found), *last),
    )


def hybrid(*, performance: int = 8, efficiency: int = 4) -> Topology:
    """One node with performance cores of two threads and then efficiency cores of one; one last-level cache."""
    cpus = [Cpu(number=number, core=number // 2, kind="performance") for number in range(2 * performance)]
    cpus += [
        Cpu(number=number, core=number - performance, kind="efficiency")
        for number in range(2 * performance, 2 * performance + efficiency)
    ]
    everybody = frozenset(cpu.number for cpu in cpus)
    return Topology(
        cpus=tuple(cpus),
        nodes=(Node(number=0, memory=32 * GIB, distances={0: LOCAL}),),
        caches=(Cache(level=3, type="Unified", size=24 << 20, cpus=everybody),),
    )


def with_memory_node() -> Topology:
    """Three nodes with CPUs, and one of memory alone that is nearest to the last of them."""
    host = machine(nodes=3, cores=4, memory=32)
    distances = {0: 28, 1: 28, 2: 17}
    return evolve(
        host,
        nodes=(
            *(evolve(node, distances={**node.distances, 3: distances[node.number]}) for node in host.nodes),
            Node(number=3, memory=256 * GIB, distances={**distances, 3: LOCAL}),
        ),
    )


def large() -> Topology:
    """512 CPUs: 2 packages of 8 nodes of 4 last-level caches of 4 cores of 2 threads."""
    return machine(packages=2, nodes=8, caches=4, cores=4, memory=128, far=32)


def changed(
    topology: Topology, *, offline: Iterable[int] = (), isolated: Iterable[int] = (), foreign: Iterable[int] = ()
) -> Topology:
    """A host some CPUs of which are offline, isolated, or not for us."""
    off, alone, others = frozenset(offline), frozenset(isolated), frozenset(foreign)
    return evolve(
        topology,
        cpus=tuple(
            evolve(
                cpu,
                online=cpu.number not in off,
                isolated=cpu.number in alone,
                allowed=cpu.number not in others,
            )
            for cpu in topology.cpus
        ),
        caches=tuple(evolve(cache, cpus=cache.cpus - off) for cache in topology.caches if cache.cpus - off),
    )


HOSTS = {
    "1 socket": machine(caches=2, memory=32),
    "2 sockets": machine(packages=2, cores=8),
    "memory node": with_memory_node(),
    "hybrid": hybrid(),
    "offline": changed(machine(packages=2, cores=8), offline=(1, 5, 21), isolated=(8, 9, 24, 25), foreign=(0, 16)),
}
