"""What holds for every placement, and that none is better by its own measure: it is compared with brute force."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain, combinations, pairwise

from attrs import evolve, frozen
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qsup.errors import PlacementError
from qsup.plan.ledger import Ledger
from qsup.plan.placement import check_named, place
from qsup.plan.residents import Placement, Request, Resident
from qsup.plan.topology import Core, Topology
from tests.plan.hosts import GIB, changed, machine
from tests.plan.placing import named

# Hosts that are small enough for brute force, and who is on them


@st.composite
def hosts(draw: st.DrawFn) -> Topology:
    """A lopsided host of at most eight cores: nodes, packages, dies and caches cut across each other as they like."""
    nodes, caches = draw(st.sampled_from([(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]))
    groups = nodes * caches
    host = machine(nodes=nodes, caches=caches, cores=draw(st.integers(1, 8 // groups)), threads=draw(st.integers(1, 2)))
    cores = len(host.cores)
    # what is behind one cache is of one die and one package
    packages = draw(st.lists(st.integers(0, 1), min_size=groups, max_size=groups))
    dies = draw(st.lists(st.integers(0, 1), min_size=groups, max_size=groups))
    kinds = draw(
        st.just([""] * cores) | st.lists(st.sampled_from(["performance", "efficiency"]), min_size=cores, max_size=cores)
    )
    few = st.frozensets(st.sampled_from([cpu.number for cpu in host.cpus]), max_size=2)
    distances = st.integers(11, 12)
    return changed(
        evolve(
            host,
            cpus=tuple(
                evolve(
                    cpu,
                    package=packages[cpu.core * groups // cores],
                    die=dies[cpu.core * groups // cores],
                    kind=kinds[cpu.core],
                )
                for cpu in host.cpus
            ),
            nodes=tuple(
                evolve(
                    node,
                    memory=draw(st.sampled_from([4, 4, 2, 0])) * GIB,
                    distances={other.number: 10 if other is node else draw(distances) for other in host.nodes},
                )
                for node in host.nodes
            ),
            caches=draw(st.sampled_from([host.caches, host.caches, ()])),
        ),
        offline=draw(few),
        isolated=draw(st.just(frozenset[int]()) | few),
        foreign=draw(st.just(frozenset[int]()) | few),
    )


@st.composite
def requests(draw: st.DrawFn, name: str, host: Topology, *, most: int) -> Request:
    """What a VM of at most so many vCPUs may want of a host."""
    numbers = [cpu.number for cpu in host.cpus]
    return Request(
        name=name,
        vcpus=draw(st.integers(1, most)),
        exclusive=draw(st.booleans()),
        threads=draw(st.integers(0, 2)),
        memory=draw(st.sampled_from([0, 0, 1, 3])) * GIB,
        within=draw(
            st.none() | st.none() | st.frozensets(st.sampled_from(numbers), min_size=max(1, len(numbers) * 2 // 3))
        ),
    )


@frozen(kw_only=True)
class Scene:
    """A host, who is on it already, and who comes."""

    host: Topology
    residents: list[Resident]
    request: Request


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Some VMs that came one after the other, each placed or with sets that were checked."""
    host = draw(hosts())
    residents: list[Resident] = []
    numbers = st.sampled_from([cpu.number for cpu in host.cpus])
    for number in range(draw(st.integers(0, 3))):
        try:
            if draw(st.integers(0, 3)) == 0:
                resident = named(f"n{number}", draw(numbers), emulator=draw(numbers), exclusive=draw(st.booleans()))
                check_named(resident, residents, host)
            else:
                resident = place(draw(requests(f"p{number}", host, most=3)), residents, host).resident
            residents.append(resident)
        except PlacementError:
            continue  # the host is fuller than this VM would have it: the others stay
    return Scene(host=host, residents=residents, request=draw(requests("new", host, most=6)))


# What is given away, worked out once more and differently


def cores_with(host: Topology, cpus: Iterable[int]) -> set[int]:
    """The CPUs of all cores that have one of some CPUs."""
    wanted = set(cpus)
    return wanted | {number for core in host.cores if wanted & set(core.cpus) for number in core.cpus}


def shared_cpus(scene: Scene) -> set[int]:
    """The CPUs that are usable and on no core of an exclusive VM."""
    usable = {cpu.number for cpu in scene.host.cpus if cpu.online and cpu.allowed and not cpu.isolated}
    return usable.difference(*(cores_with(scene.host, each.vcpu_cpus) for each in scene.residents if each.exclusive))


def free_cores(scene: Scene) -> list[Core]:
    """The cores that may be given away."""
    names = {cpu for each in scene.residents if each.named for cpu in each.vcpu_cpus | each.sets.emulator}
    free = shared_cpus(scene) - names
    if scene.request.within is not None:
        free &= scene.request.within
    return [core for core in scene.host.cores if set(core.cpus) <= free]


def room(scene: Scene, nodes: Iterable[int]) -> int:
    """Bytes of some nodes that are not promised."""
    memory = {node.number: node.memory for node in scene.host.nodes}
    for resident in scene.residents:
        for node, promised in resident.memory.items():
            memory[node] -= promised
    return sum(max(0, memory[node]) for node in nodes)


def subsets(things: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All of them but the empty one."""
    return chain.from_iterable(combinations(things, size) for size in range(1, len(things) + 1))


def distance(host: Topology, nodes: Iterable[int]) -> int:
    """The sum of distances, there and back."""
    given_ = [node for node in host.nodes if node.number in set(nodes)]
    return sum(one.distances[other.number] for one in given_ for other in given_ if one is not other)


def cost(scene: Scene, nodes: tuple[int, ...], taken: Sequence[Core], free: Sequence[Core]) -> tuple[object, ...]:
    """What taking cores costs, as `qsup.plan.placement` and `COST` say."""
    last = {cpu: min(cache.cpus) for cache in scene.host.caches if cache.level == 3 for cpu in cache.cpus}

    def blocks(depth: int, cores: Iterable[Core]) -> list[tuple[int, ...]]:
        return [(core.node, core.package, core.die, last.get(core.cpus[0], -1))[: depth + 1] for core in cores]

    cpus = sorted(number for core in taken for number in core.cpus)
    left = [
        sum(
            len(core.cpus)
            for core, block in zip(free, blocks(depth, free), strict=True)
            if block in blocks(depth, taken)
        )
        - len(cpus)
        for depth in range(4)
    ]
    return (
        len(nodes),
        distance(scene.host, nodes),
        len({core.kind for core in taken}),
        sum(len(core.cpus) for core in taken if core.kind == "efficiency"),
        *(len(set(blocks(depth, taken))) for depth in (1, 2, 3)),
        len(cpus) - scene.request.vcpus,
        *left,
        cpus,
        nodes,
    )


def best_cores(scene: Scene) -> tuple[object, ...] | None:
    """The least cost of all choices of free cores and nodes; ``None`` if there is no choice."""
    free = free_cores(scene)
    numbers = [node.number for node in scene.host.nodes]
    found = []
    for indices in subsets(range(len(free))):
        taken = [free[index] for index in indices]
        if sum(len(core.cpus) for core in taken) >= scene.request.vcpus:
            on = {core.node for core in taken}
            found += [
                cost(scene, nodes, taken, free)
                for nodes in subsets(numbers)
                if on <= set(nodes) and room(scene, nodes) >= scene.request.memory
            ]
    return min(found, default=None)


def best_nodes(scene: Scene) -> tuple[object, ...] | None:
    """The least cost of all sets of nodes for a VM that shares."""
    pool = shared_cpus(scene)
    if scene.request.within is not None:
        pool &= scene.request.within
    present = Ledger(scene.host, scene.residents).present()
    crowd = [cpus for each in scene.residents if not each.exclusive for cpus in present.get(each.name, each.sets).vcpus]
    found = []
    for nodes in subsets([node.number for node in scene.host.nodes]):
        there = {cpu for cpu in pool if scene.host.by_number[cpu].node in nodes}
        if len(there) >= min(scene.request.vcpus, len(pool)) and there and room(scene, nodes) >= scene.request.memory:
            load = (sum(Fraction(len(cpus & there), len(cpus)) for cpus in crowd) + scene.request.vcpus) / len(there)
            found.append((len(nodes), distance(scene.host, nodes), load, nodes))
    return min(found, default=None)


def try_place(scene: Scene) -> Placement | None:
    """The placement, or ``None`` where it is refused."""
    try:
        return place(scene.request, scene.residents, scene.host)
    except PlacementError:
        return None


def placed(scene: Scene) -> Placement:
    """The placement; an example where it is refused does not count."""
    found = try_place(scene)
    assume(found is not None)
    assert found is not None
    return found


@settings(max_examples=300)
@given(scenes())
def test_no_choice_of_cores_is_better(scene: Scene) -> None:
    """An exclusive VM gets the choice of least cost among all there are, and is refused only if there is none."""
    scene = evolve(scene, request=evolve(scene.request, exclusive=True))
    best, found = best_cores(scene), try_place(scene)
    if found is None:
        everything = {number for core in free_cores(scene) for number in core.cpus} == shared_cpus(scene)
        assert best is None or everything
        return
    taken = [core for core in scene.host.cores if found.resident.vcpu_cpus & set(core.cpus)]
    assert cost(scene, found.resident.nodes, taken, free_cores(scene)) == best


@settings(max_examples=300)
@given(scenes())
def test_no_choice_of_nodes_is_better(scene: Scene) -> None:
    """A VM that shares gets the nodes of least cost, and is refused only if there are none."""
    scene = evolve(scene, request=evolve(scene.request, exclusive=False))
    best, found = best_nodes(scene), try_place(scene)
    assert (None if best is None else best[-1]) == (None if found is None else found.resident.nodes)


@given(scenes())
def test_nobody_gets_what_is_not_to_be_given(scene: Scene) -> None:
    """No CPU that is offline, isolated, not ours, forbidden by the unit or exclusively another's is given to a vCPU."""
    found = placed(scene)
    given_ = found.resident.vcpu_cpus | found.resident.sets.emulator
    assert given_ <= scene.host.placeable
    assert found.resident.vcpu_cpus <= (scene.request.within or given_)
    assert found.resident.vcpu_cpus <= shared_cpus(scene)
    if scene.request.exclusive:
        names = {cpu for each in scene.residents if each.named for cpu in each.vcpu_cpus | each.sets.emulator}
        assert not cores_with(scene.host, found.resident.vcpu_cpus) & names


@given(scenes())
def test_nobody_is_beside_an_exclusive_vm(scene: Scene) -> None:
    """The cores of an exclusive VM run no thread of another automatically placed one, once all are in their place."""
    found = placed(scene)
    everybody = [*scene.residents, found.resident]
    present = Ledger(scene.host, everybody).present()
    for owner in everybody:
        if owner.exclusive:
            cores = cores_with(scene.host, owner.vcpu_cpus)
            for other in everybody:
                if other.name != owner.name and other.name in present:
                    sets = present[other.name]
                    assert cores.isdisjoint(sets.emulator.union(*sets.vcpus))
    assert present["new"] == found.resident.sets


@given(scenes())
def test_siblings_are_neighbours(scene: Scene) -> None:
    """Each vCPU of an exclusive VM has one CPU, and the vCPUs on one core are next to each other."""
    scene = evolve(scene, request=evolve(scene.request, exclusive=True))
    found = placed(scene)
    order = [next(iter(cpus)) for cpus in found.resident.sets.vcpus]
    assert len(set(order)) == scene.request.vcpus
    assert all(len(cpus) == 1 for cpus in found.resident.sets.vcpus)
    cores = [scene.host.core_of[number] for number in order]
    changes = sum(one != other for one, other in pairwise(cores))
    assert changes == len(set(cores)) - 1


@given(scenes())
def test_one_node_if_one_does(scene: Scene) -> None:
    """A VM is on more than one node only if no node has all it wants."""
    found = placed(scene)
    if len(found.resident.nodes) > 1:
        for node in scene.host.nodes:
            if scene.request.exclusive:
                there = sum(len(core.cpus) for core in free_cores(scene) if core.node == node.number)
            else:
                pool = shared_cpus(scene) & (scene.request.within or shared_cpus(scene))
                there = sum(scene.host.by_number[number].node == node.number for number in pool)
            assert there < scene.request.vcpus or room(scene, [node.number]) < scene.request.memory


@given(scenes(), st.randoms(use_true_random=False))
def test_order_does_not_matter(scene: Scene, chance: random.Random) -> None:
    """Neither the order of the VMs nor that of any mapping makes a difference, not even to the words."""

    def shuffled(mapping: dict[int, int]) -> dict[int, int]:
        return dict(chance.sample(sorted(mapping.items()), len(mapping)))

    host = evolve(
        scene.host,
        nodes=tuple(evolve(node, distances=shuffled(dict(node.distances))) for node in scene.host.nodes),
    )
    others = [evolve(each, memory=shuffled(dict(each.memory))) for each in scene.residents]
    chance.shuffle(others)
    assert try_place(evolve(scene, host=host, residents=others)) == try_place(scene)
    assert Ledger(host, others).present() == Ledger(scene.host, scene.residents).present()


@given(scenes())
def test_memory_is_promised_where_there_is_some(scene: Scene) -> None:
    """All memory that is wanted is promised, by the chosen nodes, and by none more than it has left."""
    found = placed(scene)
    assert sum(found.resident.memory.values()) == scene.request.memory
    assert found.resident.memory.keys() <= set(found.resident.nodes)
    for node, promised in found.resident.memory.items():
        assert promised <= room(scene, [node])
