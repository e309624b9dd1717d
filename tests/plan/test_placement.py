"""Placement: what always holds, that it is the best by its own measure, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain, combinations, pairwise

import pytest
from attrs import evolve, frozen
from hypothesis import assume, given
from hypothesis import strategies as st

from qsup.errors import PlacementError
from qsup.plan.nodesets import EXACT, Offer, nearest_sets, spread
from qsup.plan.placement import check_named, place, present_sets
from qsup.plan.residents import Placement, Request, Resident
from qsup.plan.topology import Core, Node, Topology
from tests.plan.hosts import GIB, HOSTS, changed, large, machine
from tests.plan.placing import named

# Hosts that are small enough for brute force, and who is on them


@st.composite
def hosts(draw: st.DrawFn, most_cores: int = 8) -> Topology:
    """A host of at most so many cores, lopsided: memory, distances, kinds and CPUs that are not to be given away."""
    shape = draw(st.sampled_from([(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1), (1, 2, 2), (2, 2, 1), (1, 4, 1)]))
    packages, nodes, caches = shape
    groups = packages * nodes * caches
    host = machine(
        packages=packages,
        nodes=nodes,
        caches=caches,
        cores=draw(st.integers(1, most_cores // groups)),
        threads=draw(st.integers(1, 2)),
    )
    numbers = [cpu.number for cpu in host.cpus]
    some = st.frozensets(st.sampled_from(numbers), max_size=2)
    host = changed(host, offline=draw(some), isolated=draw(some), foreign=draw(some))
    if draw(st.booleans()):
        efficient = draw(st.frozensets(st.integers(0, packages * nodes * caches * most_cores)))
        kind = {True: "efficiency", False: "performance"}
        host = evolve(host, cpus=tuple(evolve(cpu, kind=kind[cpu.core in efficient]) for cpu in host.cpus))
    distances = st.integers(11, 14)
    return evolve(
        host,
        nodes=tuple(
            evolve(
                node,
                memory=draw(st.integers(0, 4)) * GIB,
                distances={other.number: 10 if other is node else draw(distances) for other in host.nodes},
            )
            for node in host.nodes
        ),
        caches=host.caches if draw(st.booleans()) else (),
    )


@st.composite
def requests(draw: st.DrawFn, name: str, host: Topology) -> Request:
    """What a VM may want of a host."""
    numbers = [cpu.number for cpu in host.cpus]
    return Request(
        name=name,
        vcpus=draw(st.integers(1, 6)),
        exclusive=draw(st.booleans()),
        threads=draw(st.integers(0, 2)),
        memory=draw(st.integers(0, 3)) * GIB,
        within=draw(st.none() | st.frozensets(st.sampled_from(numbers), min_size=len(numbers) // 2)),
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
    for number in range(draw(st.integers(0, 4))):
        try:
            if draw(st.integers(0, 3)) == 0:
                resident = named(f"n{number}", draw(numbers), emulator=draw(numbers), exclusive=draw(st.booleans()))
                check_named(resident, residents, host)
            else:
                resident = place(draw(requests(f"p{number}", host)), residents, host).resident
            residents.append(resident)
        except PlacementError:
            continue  # the host is fuller than this VM would have it: the others stay
    return Scene(host=host, residents=residents, request=draw(requests("new", host)))


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
    present = present_sets(scene.residents, scene.host)
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


@given(scenes())
def test_no_choice_of_nodes_is_better(scene: Scene) -> None:
    """A VM that shares gets the nodes of least cost, and is refused only if there are none."""
    scene = evolve(scene, request=evolve(scene.request, exclusive=False))
    best, found = best_nodes(scene), try_place(scene)
    assert (None if best is None else best[-1]) == (None if found is None else found.resident.nodes)


@given(scenes())
def test_nobody_gets_what_is_not_to_be_given(scene: Scene) -> None:
    """No CPU that is offline, isolated, not ours, forbidden by the unit or exclusively another's is given to a vCPU."""
    found = try_place(scene)
    assume(found is not None)
    assert found is not None
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
    found = try_place(scene)
    assume(found is not None)
    assert found is not None
    everybody = [*scene.residents, found.resident]
    present = present_sets(everybody, scene.host)
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
    found = try_place(scene)
    assume(found is not None)
    assert found is not None
    order = [next(iter(cpus)) for cpus in found.resident.sets.vcpus]
    assert len(set(order)) == scene.request.vcpus
    assert all(len(cpus) == 1 for cpus in found.resident.sets.vcpus)
    cores = [scene.host.core_of[number] for number in order]
    changes = sum(one != other for one, other in pairwise(cores))
    assert changes == len(set(cores)) - 1


@given(scenes())
def test_one_node_if_one_does(scene: Scene) -> None:
    """A VM is on more than one node only if no node has all it wants."""
    found = try_place(scene)
    assume(found is not None)
    assert found is not None
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
    assert present_sets(others, host) == present_sets(scene.residents, scene.host)


@given(scenes())
def test_memory_is_promised_where_there_is_some(scene: Scene) -> None:
    """All memory that is wanted is promised, by the chosen nodes, and by none more than it has left."""
    found = try_place(scene)
    assume(found is not None)
    assert found is not None
    assert sum(found.resident.memory.values()) == scene.request.memory
    assert found.resident.memory.keys() <= set(found.resident.nodes)
    for node, promised in found.resident.memory.items():
        assert promised <= room(scene, [node])


# Single cases


def exclusive(name: str, vcpus: int, *, memory: int = 0) -> Request:
    """A VM that wants CPUs of its own."""
    return Request(name=name, vcpus=vcpus, exclusive=True, memory=memory)


def settle(host: Topology, *wanted: Request) -> list[Resident]:
    """Some VMs that come one after the other."""
    residents: list[Resident] = []
    for request in wanted:
        residents.append(place(request, residents, host).resident)
    return residents


def order(resident: Resident) -> list[int]:
    """The CPUs of an exclusive VM in the order of its vCPUs."""
    return [next(iter(cpus)) for cpus in resident.sets.vcpus]


def test_first_fit_is_no_placement() -> None:
    """The first cores that are free are the wrong ones where taking them breaks up the last large block."""
    host = machine(caches=3, cores=4, threads=1)  # CPUs 0-3, 4-7 and 8-11 are behind a cache each
    beside = [named("pinned", 0, 6, emulator=0), named("other", 7, emulator=7)]
    # the first two free cores are 1 and 2; 4 and 5 leave three whole behind the first cache for who comes next
    small = place(exclusive("small", 2), beside, host).resident
    assert order(small) == [4, 5]
    next_one = place(exclusive("next", 3), [*beside, small], host).resident
    assert order(next_one) == [1, 2, 3]
    # and the first four free cores are behind two caches
    four = place(exclusive("four", 4), beside, host).resident
    assert order(four) == [8, 9, 10, 11]


def test_the_other_half_of_a_core_is_given_to_nobody() -> None:
    """The CPU that an odd number leaves idle is in no other set, though it runs nothing."""
    host = machine(cores=4)
    odd, even, web = settle(host, exclusive("odd", 3), exclusive("even", 2), Request(name="web", vcpus=1))
    assert order(odd) == [0, 4, 1]
    assert order(even) == [2, 6]
    assert web.vcpu_cpus == {3, 7}


def test_a_large_vm_has_the_nearest_nodes() -> None:
    """Two nodes of one package are nearer than the two with the lowest numbers that are free."""
    host = machine(packages=2, nodes=2, cores=4, threads=1)
    first = place(exclusive("first", 2), [], host).resident
    assert first.nodes == (0,)
    assert place(exclusive("wide", 8), [first], host).resident.nodes == (2, 3)


def test_performance_cores_come_first_and_alone() -> None:
    """A VM has cores of one kind while these suffice, the fast ones while there are any."""
    host = HOSTS["hybrid"]
    fast, slow, both = settle(host, exclusive("fast", 14), exclusive("slow", 3), exclusive("both", 2))
    assert {host.by_number[number].kind for number in order(fast)} == {"performance"}
    # 14 and 15 are the last fast ones
    assert order(slow) == [16, 17, 18]
    assert order(both) == [14, 15]


def test_shared_vms_follow_the_exclusive_ones() -> None:
    """The CPUs of a VM that shares become fewer when an exclusive one comes, and come back when it is gone."""
    host = machine(cores=4)
    web, db = settle(host, Request(name="web", vcpus=2), exclusive("db", 4))
    assert present_sets([web], host)["web"].vcpus == (frozenset(range(8)),) * 2
    assert present_sets([web, db], host)["web"].vcpus == (frozenset({2, 3, 6, 7}),) * 2


def test_a_node_without_shared_cpus_is_left_for_the_nearest() -> None:
    """Threads that share go to the nearest node when an exclusive VM has all of theirs, and are named."""
    host = machine(packages=2, nodes=2, cores=2, threads=1)
    web = place(Request(name="web", vcpus=2, within=frozenset({2, 3})), [], host).resident
    assert web.nodes == (1,)
    web = evolve(web, within=None)
    placement = place(exclusive("db", 2), [web, named("busy", 0, 4, 6, emulator=0)], host)
    assert order(placement.resident) == [2, 3]
    assert placement.resident.sets.emulator == {0, 1}
    assert placement.explanation[-1] == (
        "Node 1 has no shared CPU left: the nearest shared ones are for web from now on"
    )
    assert present_sets([web, placement.resident], host)["web"].vcpus == (frozenset({0, 1}),) * 2


def test_a_cpu_that_went_offline_is_replaced_until_it_is_back() -> None:
    """A vCPU whose CPU is offline shares CPUs meanwhile; its promise stays."""
    host = machine(cores=4, threads=1)
    (db,) = settle(host, exclusive("db", 2))
    assert present_sets([db], changed(host, offline=[1]))["db"].vcpus == (frozenset({0}), frozenset({2, 3}))
    assert present_sets([db], host)["db"].vcpus == (frozenset({0}), frozenset({1}))


def test_other_threads_stay_within_what_the_unit_allows() -> None:
    """They share where the unit allows a shared CPU, and are on the VM's own where it allows none."""
    host = machine(cores=4, threads=1)
    some = place(evolve(exclusive("some", 2), within=frozenset({1, 2, 3})), [], host).resident
    assert order(some) == [1, 2]
    assert some.sets.emulator == {3}
    none = place(evolve(exclusive("none", 2), within=frozenset({1, 2})), [], host).resident
    assert order(none) == [1, 2]
    assert none.sets.emulator == {1, 2}


def test_a_vm_does_not_stand_in_its_own_way() -> None:
    """Who is placed again gets the place it has, though it is still listed."""
    host = machine(cores=2)
    (db,) = settle(host, exclusive("db", 2))
    assert place(exclusive("db", 2), [db], host).resident == db


def test_more_vcpus_than_cpus_share_all_of_them() -> None:
    """A VM that shares may have more vCPUs than the host has CPUs."""
    placement = place(Request(name="wide", vcpus=64), [], machine(packages=2, cores=2))
    assert placement.resident.vcpu_cpus == frozenset(range(8))
    assert placement.resident.nodes == (0, 1)


def refusal(request: Request, residents: Sequence[Resident], host: Topology) -> str:
    """The words of a refusal."""
    with pytest.raises(PlacementError) as caught:
        place(request, residents, host)
    assert caught.value.instance == request.name
    assert caught.value.hint
    return caught.value.message


def test_too_few_cores_are_refused_with_the_arithmetic() -> None:
    """What is wanted, what is there, and who has the rest of each node."""
    host = changed(machine(packages=2, cores=4), isolated=[3, 11])
    db = place(exclusive("db", 6), [], host).resident
    assert refusal(exclusive("web", 8), [db, named("old", 4, emulator=4)], host) == (
        "wants 8 CPUs of its own on whole cores, and 6 can be had: "
        "node 1 has 3 of 4 cores free, 6 CPUs (old names 4), "
        "node 0 has 0 of 4 cores free, 0 CPUs (db has 0-2,8-10; 3,11 isolated)"
    )


def test_a_refusal_on_a_large_host_stays_readable() -> None:
    """Of many nodes those with the most are named, and how many have not more."""
    said = refusal(exclusive("web", 600), [], large())
    assert said.startswith("wants 600 CPUs of its own on whole cores, and 512 can be had: node 0 has 16 of 16 cores")
    assert said.endswith("node 3 has 16 of 16 cores free, 32 CPUs, 12 other nodes not more")


def test_too_little_memory_is_refused_with_the_arithmetic() -> None:
    """What is wanted, and what each node has not promised."""
    host = machine(packages=2, memory=8)
    (db,) = settle(host, exclusive("db", 2, memory=6 * GIB))
    assert refusal(Request(name="web", vcpus=1, memory=11 * GIB), [db], host) == (
        "wants 11.0 GiB of memory, and 10.0 GiB are not promised: "
        "node 1 has 8.0 GiB of 8.0 GiB not promised, node 0 has 2.0 GiB of 8.0 GiB not promised"
    )


def test_the_last_shared_core_is_not_given_away() -> None:
    """QEMU's other threads and VMs that share need a CPU of the host."""
    host = changed(machine(cores=2), isolated=[1, 3])
    assert refusal(exclusive("web", 2), [], host) == (
        "wants all of CPUs 0,2 for itself, and none would be left for other VMs and QEMU's own threads"
    )


def test_no_shared_cpu_is_refused() -> None:
    """A unit that allows only CPUs which others have for themselves."""
    host = machine(cores=2, threads=1)
    (db,) = settle(host, exclusive("db", 1))
    assert refusal(Request(name="web", vcpus=1, within=frozenset({0})), [db], host) == (
        "wants shared CPUs, and none of CPU 0 is shared"
    )


def objection(resident: Resident, residents: Sequence[Resident], host: Topology) -> str:
    """The words against sets that a unit names."""
    with pytest.raises(PlacementError) as caught:
        check_named(resident, residents, host)
    assert caught.value.instance == resident.name
    return caught.value.message


def test_named_cpus_must_be_there() -> None:
    """A CPU that is not there, is offline or is not ours is refused; an isolated one may be named."""
    host = changed(machine(cores=4, threads=1), offline=[1], isolated=[0], foreign=[3])
    for number, why in {
        1: "CPU 1 is offline",
        3: "CPU 3 is not among those that this daemon may use",
        9: "there is no CPU 9 on this host, which has 4 CPUs",
    }.items():
        assert objection(named("web", number, emulator=number), [], host) == f"names CPU {number}, and {why}"
        assert objection(named("web", 2, emulator=number), [], host).endswith(f", and {why}")
    check_named(named("web", 0, emulator=0, exclusive=True), [], host)


def test_named_cpus_may_not_be_exclusively_anothers() -> None:
    """Every VM that has some of them is named, with the CPUs; a core that was given as a whole is had as a whole."""
    host = machine(cores=4)
    (db,) = settle(host, exclusive("db", 1))
    own = named("own", 1, emulator=3, exclusive=True)
    assert objection(named("web", 4, 1, emulator=2), [db, own], host) == (
        "CPU 4 is exclusively db's; CPU 1 is exclusively own's"
    )
    # of what a unit names it has that, and not the other half of the core; nor its other threads' CPUs for itself
    check_named(named("web", 5, emulator=3), [db, own], host)


def test_exclusive_named_cpus_may_not_be_named_by_another() -> None:
    """Whoever comes second is told; sets that nobody has for himself may overlap."""
    host = machine(cores=4)
    old = named("old", 1, 2, emulator=3)
    assert objection(named("web", 2, 3, emulator=0, exclusive=True), [old], host) == (
        "CPUs 2-3, which it wants for itself, old names as well"
    )
    check_named(named("web", 2, 3, emulator=0), [old], host)
    check_named(named("old", 1, 2, emulator=3, exclusive=True), [old], host)


def test_the_last_shared_cpus_may_not_be_named_exclusively() -> None:
    """As for those that are chosen; without `exclusive` they may be named."""
    host = machine(cores=2, threads=1)
    check_named(named("web", 0, 1, emulator=0), [], host)
    assert objection(named("web", 0, 1, emulator=0, exclusive=True), [], host) == (
        "wants all of CPUs 0-1 for itself, and none would be left for other VMs and QEMU's own threads"
    )


def test_automatic_placement_keeps_off_named_cpus() -> None:
    """A core that somebody names is not given exclusively, and is shared all the same."""
    host = machine(cores=2)
    pinned = named("pinned", 0, emulator=0)
    assert order(place(exclusive("db", 2), [pinned], host).resident) == [1, 3]
    assert place(Request(name="web", vcpus=1), [pinned], host).resident.vcpu_cpus == frozenset(range(4))
    # nobody is put on the other half of a core of which a unit has one CPU for itself
    alone = evolve(pinned, exclusive=True)
    assert place(Request(name="web", vcpus=1), [alone], host).resident.vcpu_cpus == {1, 3}


# Many nodes


def offers(number: int, cpus: int = 1) -> list[Offer]:
    """Nodes in a ring: the nearer, the closer their numbers are."""
    return [
        Offer(
            node=Node(
                number=one,
                memory=GIB,
                distances={other: 10 + min((one - other) % number, (other - one) % number) for other in range(number)},
            ),
            cpus=cpus,
            memory=GIB,
        )
        for one in range(number)
    ]


def test_many_nodes_are_grown_from_each() -> None:
    """Beyond what is looked at one by one the sets in a ring are still its arcs."""
    ring = offers(16)
    found = nearest_sets(ring, cpus=5, memory=0)
    assert found[0] == (0, 1, 2, 3, 4)
    assert {spread(ring[number].node for number in nodes) for nodes in found} == {240}


def test_a_set_that_grows_looks_ahead() -> None:
    """The nearest node is passed over where the rest could not have enough then."""
    ring = [evolve(offer, cpus=4 if offer.node.number % 4 == 0 else 1) for offer in offers(16)]
    assert nearest_sets(ring, cpus=16, memory=0) == [(0, 4, 8, 12)]
    assert nearest_sets(ring, cpus=17, memory=0)[0] == (0, 1, 4, 8, 12)
    assert nearest_sets(ring, cpus=29, memory=0) == []


def test_what_is_exact_covers_two_of_sixteen() -> None:
    """The bound is above the pairs of the largest host that is promised."""
    assert EXACT >= 120
