"""Guests with NUMA nodes of their own: where each is put is as good as brute force can find it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product

import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import PlacementError
from qsup.plan import guestnodes
from qsup.plan.guestnodes import best_ways
from qsup.plan.ledger import Ledger
from qsup.plan.nodesets import Offer, apart
from qsup.plan.placement import place
from qsup.plan.residents import GuestNode, Placement, Request, Resident
from qsup.plan.topology import LOCAL, Node, Topology
from tests.plan.hosts import GIB, HOSTS, changed, large, machine
from tests.plan.placing import guest

# the search alone


@frozen(kw_only=True)
class Puzzle:
    """Nodes of a guest, and what those of a host have."""

    guests: list[GuestNode]
    offers: list[Offer]
    exclusive: bool


@st.composite
def puzzles(draw: st.DrawFn) -> Puzzle:
    """Up to four nodes of each, of any size."""
    count = draw(st.integers(1, 4))
    numbers, far = range(0, 2 * count, 2), st.integers(11, 14)
    offers = [
        Offer(
            node=Node(
                number=one,
                memory=9,
                distances={each: LOCAL if each == one else draw(far) for each in numbers},
            ),
            cpus=draw(st.integers(0, 6)),
            memory=draw(st.integers(-1, 6)),
        )
        for one in numbers
    ]
    guests, first = [], 0
    for _ in range(draw(st.integers(1, 4))):
        vcpus = draw(st.integers(0, 4))
        within = draw(st.just(()) | st.lists(st.sampled_from(numbers), max_size=2, unique=True).map(tuple))
        guests.append(
            GuestNode(vcpus=tuple(range(first, first + vcpus)), memory=draw(st.integers(0, 4)), within=within)
        )
        first += vcpus
    return Puzzle(guests=guests, offers=offers, exclusive=draw(st.booleans()))


def brute_force(puzzle: Puzzle) -> list[tuple[int, ...]]:
    """All ways of the least cost, worked out once more and differently."""
    found: dict[tuple[int, int, int], list[tuple[int, ...]]] = {}
    for picked in product(puzzle.offers, repeat=len(puzzle.guests)):
        crowded = beyond = 0
        possible = True
        for offer in puzzle.offers:
            there = [each for each, where in zip(puzzle.guests, picked, strict=True) if where is offer]
            vcpus = sum(len(each.vcpus) for each in there)
            crowded += max(len(there) - 1, 0)
            beyond += max(vcpus - offer.cpus, 0)
            possible &= sum(each.memory for each in there) <= max(offer.memory, 0)
            possible &= not (vcpus and not offer.cpus)
            possible &= all(not each.within or offer.node.number in each.within for each in there)
        if not possible or (puzzle.exclusive and beyond):
            continue
        apart = 0
        for index, one in enumerate(picked):
            for other in picked[:index]:
                if other is not one:
                    apart += one.node.distances[other.node.number] + other.node.distances[one.node.number]
        found.setdefault((crowded, beyond, apart), []).append(tuple(offer.node.number for offer in picked))
    return sorted(found[min(found)]) if found else []


def cost_of(way: Sequence[int], guests: Sequence[GuestNode], offers: Mapping[int, Offer]) -> tuple[int, int, int]:
    """What a way costs, looked at as a whole."""
    wanted: Counter[int] = Counter()
    for number, each in zip(way, guests, strict=True):
        wanted[number] += len(each.vcpus)
    beyond = sum(max(vcpus - offers[number].cpus, 0) for number, vcpus in wanted.items())
    far = sum(apart(offers[one], offers[other]) for one, other in combinations(way, 2) if one != other)
    return len(way) - len(wanted), beyond, far


@given(puzzles())
def test_the_best_ways_are_those_that_brute_force_finds(puzzle: Puzzle) -> None:
    """All of them, whatever the nodes want and have."""
    assert best_ways(puzzle.guests, puzzle.offers, exclusive=puzzle.exclusive) == brute_force(puzzle)


@given(puzzles())
def test_a_way_that_is_grown_is_possible(puzzle: Puzzle) -> None:
    """Where there are too many to look at all, what is found has room, and costs no less than the best."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guestnodes, "EXACT", 0)
        grown = best_ways(puzzle.guests, puzzle.offers, exclusive=puzzle.exclusive)
    offers, best = {offer.node.number: offer for offer in puzzle.offers}, brute_force(puzzle)
    costs = [cost_of(way, puzzle.guests, offers) for way in (*grown[:1], *best[:1])]
    assert not grown or (best and costs[0] >= costs[1])
    assert set(grown).issubset(product(offers, repeat=len(puzzle.guests)))
    assert len({cost_of(way, puzzle.guests, offers) for way in grown}) <= 1


@given(st.integers(1, 8), st.integers(1, 3), st.integers(0, 3), st.data())
def test_nodes_that_want_alike_find_room_where_there_is_any(
    count: int, vcpus: int, memory: int, data: st.DataObject
) -> None:
    """However many there are."""
    guests = [GuestNode(vcpus=(0,) * vcpus, memory=memory)] * count
    rooms = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=16))
    offers = [
        Offer(node=Node(number=number, memory=9), cpus=room * vcpus, memory=room * memory)
        for number, room in enumerate(rooms)
    ]
    assert bool(best_ways(guests, offers, exclusive=True)) == (sum(rooms) >= count)


@given(puzzles())
def test_room_is_found_though_not_all_ways_are_looked_at(puzzle: Puzzle) -> None:
    """Where there is any, and for each on a node of its own where there is that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guestnodes, "EXACT", 0)
        found = best_ways(puzzle.guests, puzzle.offers, exclusive=puzzle.exclusive)
    best = brute_force(puzzle)
    assert bool(found) == bool(best)
    assert any(len(set(way)) == len(way) for way in found) == any(len(set(way)) == len(way) for way in best)


def test_one_that_wants_most_leaves_a_node_to_another_that_fits_nowhere_else() -> None:
    """Of sixteen nodes two have CPUs for what comes last, and are the nearest to all others."""
    near = {0, 1}
    offers = [
        Offer(
            node=Node(number=one, memory=9, distances={each: LOCAL + 2 * (each not in near) for each in range(16)}),
            cpus=4 if one in near else 1,
            memory=4,
        )
        for one in range(16)
    ]
    guests = [GuestNode(vcpus=(number,), memory=3) for number in range(3)]
    guests += [GuestNode(vcpus=(3, 4, 5, 6), memory=2), GuestNode(vcpus=(7, 8, 9, 10), memory=2)]
    (way,) = best_ways(guests, offers, exclusive=True)
    assert set(way[3:]) == near
    assert len(set(way)) == len(guests)


def test_unequal_nodes_fill_those_of_the_host() -> None:
    """Three nodes of ten have room for seven of a guest only as six and four, five and five, four, three and three."""
    guests = [GuestNode(vcpus=(number,), memory=memory) for number, memory in enumerate((6, 5, 5, 4, 4, 3, 3))]
    offers = [Offer(node=Node(number=number, memory=10), cpus=9, memory=10) for number in range(3)]
    for exclusive in (False, True):
        (way,) = best_ways(guests, offers, exclusive=exclusive)
        memory = [sum(each.memory for each, home in zip(guests, way, strict=True) if home == here) for here in range(3)]
        assert memory == [10, 10, 10]


# whole placements


def fits(placement: Placement, request: Request, host: Topology, others: Iterable[Resident]) -> None:
    """See that a placement keeps what it promises."""
    residents = [*others, placement.resident]
    present = Ledger(host, residents).present()
    assert present["web"] == placement.resident.sets
    number_of = {cpu.number: cpu.node for cpu in host.cpus}
    for home, node in zip(placement.homes, request.guest_nodes, strict=True):
        for vcpu in node.vcpus:
            cpus = placement.resident.sets.vcpus[vcpu]
            assert cpus
            assert {number_of[cpu] for cpu in cpus} == {home}
            assert cpus <= host.placeable
    promised: dict[int, int] = {}
    for each in residents:
        for number, memory in each.memory.items():
            promised[number] = promised.get(number, 0) + memory
    assert all(promised.get(node.number, 0) <= node.memory for node in host.nodes)
    exclusive = [cpu for each in residents if each.exclusive for cpus in each.sets.vcpus for cpu in cpus]
    assert len(exclusive) == len(set(exclusive))


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[Topology, list[Request]]:
    """A host, and guests with nodes that come to it."""
    host = machine(
        packages=draw(st.integers(1, 2)),
        nodes=draw(st.integers(1, 2)),
        cores=draw(st.integers(1, 3)),
        threads=draw(st.integers(1, 2)),
        memory=8,
    )
    few = st.frozensets(st.sampled_from([cpu.number for cpu in host.cpus]), max_size=2)
    host = changed(host, offline=draw(few), isolated=draw(few))
    sizes = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), min_size=1, max_size=3)
    flags = draw(st.lists(st.booleans(), min_size=1, max_size=3))
    return host, [guest(*draw(sizes), name=f"g{number}", exclusive=flag) for number, flag in enumerate(flags)]


@given(arrivals())
def test_each_node_of_a_guest_is_on_one_of_the_host(scene: tuple[Topology, list[Request]]) -> None:
    """Its vCPUs and its memory, on CPUs that may be given, none of them exclusively twice, as long as all stay."""
    host, requests = scene
    residents: list[Resident] = []
    for request in requests:
        named = evolve(request, name="web")
        try:
            placement = place(named, residents, host)
        except PlacementError:
            continue
        assert placement == place(named, list(reversed(residents)), host)
        fits(placement, named, host, residents)
        residents.append(evolve(placement.resident, name=request.name))


def test_nodes_are_apart_and_near() -> None:
    """Two nodes are on two of the host's, those of one package; beside a VM that has taken one of these, elsewhere."""
    host = machine(packages=2, nodes=2)
    first = place(guest((2, 4), (2, 4), exclusive=True), [], host)
    assert first.homes == (0, 1)
    assert [sorted(cpus) for cpus in first.resident.sets.vcpus] == [[0], [16], [4], [20]]
    assert first.resident.memory == {0: 4 * GIB, 1: 4 * GIB}
    full = evolve(place(guest((6, 60), exclusive=True), [], host).resident, name="full")
    assert place(guest((4, 8), (4, 8), exclusive=True), [full], host).homes == (2, 3)


def test_a_small_host_has_all_of_them() -> None:
    """That is said; and what fits nowhere is refused with what each node has."""
    placement = place(guest((2, 4), (2, 4)), [], HOSTS["1 socket"])
    assert placement.homes == (0, 0)
    assert "More than one of its guest's nodes are on one of the host's" in "\n".join(placement.explanation)
    with pytest.raises(PlacementError) as refused:
        place(guest((2, 16), (2, 70)), [], HOSTS["2 sockets"])
    has = "16 CPUs, 64.0 GiB of 64.0 GiB not promised"
    assert refused.value.message == (
        "wants 2 CPUs with 16.0 GiB of memory and 2 CPUs with 70.0 GiB of memory, each on one node of the host, and "
        f"there is no such place: node 0 has {has}, node 1 has {has}"
    )


def test_a_node_of_memory_alone() -> None:
    """It may be on a node of the host that has no CPU."""
    assert place(guest((4, 16), (0, 128)), [], HOSTS["memory node"]).homes == (2, 3)


def test_many_nodes_on_a_large_host() -> None:
    """Each is on one of its own, and all on one package."""
    placement = place(guest(*[(4, 8)] * 8, exclusive=True), [], large())
    assert placement.homes == tuple(range(8))
