"""What a choice of cores costs: each number of `COST` decides before all that come after it."""

from __future__ import annotations

import pytest

from qsup.plan.placement import place
from qsup.plan.residents import Request
from qsup.plan.topology import Cache, Cpu, Node, Topology
from qsup.plan.wholecores import COST

#: Number of cores, and of each its node, package, die, cache, number of CPUs and kind.
_Cores = tuple[int, int, int, int, int, int, str]


def cores(
    number: int, *, node: int = 0, package: int = 0, die: int = 0, cache: int = 0, width: int = 1, kind: str = ""
) -> _Cores:
    """Some cores that are alike."""
    return number, node, package, die, cache, width, kind


def host(*groups: _Cores) -> Topology:
    """A host of some cores; its CPUs are numbered as they are listed."""
    cpus: list[Cpu] = []
    behind: dict[tuple[int, int, int, int], set[int]] = {}
    core = 0
    for number, node, package, die, cache, width, kind in groups:
        for _ in range(number):
            for _ in range(width):
                behind.setdefault((node, package, die, cache), set()).add(len(cpus))
                cpus.append(Cpu(number=len(cpus), node=node, package=package, die=die, core=core, kind=kind))
            core += 1
    return Topology(
        cpus=tuple(cpus),
        nodes=tuple(Node(number=node, memory=0) for node in sorted({cpu.node for cpu in cpus})),
        caches=tuple(Cache(level=3, type="Unified", size=1 << 20, cpus=frozenset(each)) for each in behind.values()),
    )


#: By what decides: a host, how many CPUs are wanted, and which are chosen; whatever comes later would choose others.
DECISIONS: dict[str, tuple[Topology, int, list[int]]] = {
    # a fast and a slow one of a node would do as well
    "kinds of cores": (
        host(
            cores(1, node=0, kind="performance"),
            cores(1, node=0, kind="efficiency"),
            cores(2, node=1, kind="efficiency"),
        ),
        2,
        [2, 3],
    ),
    # two slow ones are in one package
    "efficiency CPUs": (
        host(
            cores(2, package=0, kind="efficiency"),
            cores(1, package=1, kind="performance"),
            cores(1, package=2, kind="performance"),
        ),
        2,
        [2, 3],
    ),
    # two dies of two packages would do as well
    "packages": (
        host(
            cores(2, package=1),
            cores(2, package=2),
            cores(2, die=0),
            cores(1, die=1),
            cores(1, die=2),
        ),
        4,
        [4, 5, 6, 7],
    ),
    # two caches of two dies would do as well
    "dies": (
        host(cores(2, die=1), cores(2, die=2), cores(2, cache=0), cores(1, cache=1), cores(1, cache=2)),
        4,
        [4, 5, 6, 7],
    ),
    # a core of two CPUs and one of one, behind two caches, leave none idle
    "last-level caches": (host(cores(1, cache=1), cores(2, cache=0, width=2)), 3, [1, 2, 3]),
    # a core of two CPUs is all there is behind its cache
    "idle CPUs": (host(cores(1, cache=0, width=2), cores(3, cache=1)), 1, [2]),
    # a package of the larger node has but one core
    "CPUs left in its nodes": (
        host(cores(1, node=1, package=1), cores(3, node=1, package=2), cores(3, node=0)),
        1,
        [4],
    ),
    # a die of the larger package has but one core
    "CPUs left in its packages": (host(cores(1, package=1), cores(3, package=1, die=1), cores(3)), 1, [4]),
    # a cache of the larger die has but one core
    "CPUs left in its dies": (host(cores(1, die=1), cores(3, die=1, cache=1), cores(3)), 1, [4]),
    # there are lower numbers
    "CPUs left behind its caches": (host(cores(3, cache=1), cores(1, cache=0), cores(4, cache=2)), 1, [3]),
}


@pytest.mark.parametrize("name", COST)
def test_each_cost_decides_before_the_next(name: str) -> None:
    """Where two choices differ in one number first, the smaller one is taken, whatever comes after."""
    topology, vcpus, expected = DECISIONS[name]
    placement = place(Request(name="new", vcpus=vcpus, exclusive=True), [], topology)
    assert [next(iter(cpus)) for cpus in placement.resident.sets.vcpus] == expected


def test_lower_numbers_decide_in_the_end() -> None:
    """Of choices that cost the same the one with the lowest CPU that is not in both is taken."""
    placement = place(Request(name="new", vcpus=2, exclusive=True), [], host(cores(4)))
    assert placement.resident.vcpu_cpus == {0, 1}


def test_the_better_node_is_explained_by_the_number_that_decides() -> None:
    """The words compare with the next best node."""
    topology = host(cores(1, node=0, cache=0), cores(1, node=0, cache=1), cores(3, node=1))
    placement = place(Request(name="new", vcpus=2, exclusive=True), [], topology)
    assert "Node 1 before node 0: 1 last-level caches, there 2" in placement.explanation
