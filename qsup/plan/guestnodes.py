"""Which node of the host each NUMA node of a guest is on.

Decides: among all ways to put each of them on one node that has CPUs and memory for it, the best ones.
Must not: choose CPUs, or among ways that are as good (`qsup.plan.placement`).

What a way costs is this tuple, of which the least is chosen::

    (guest's nodes that share one of the host's, vCPUs beyond the CPUs there, sum of distances between any two)

Exact as long as there are at most `EXACT` ways. Beyond that, one is grown from each node of the host: the guest's
nodes, those that want most first, go where that costs least. What all want alike is found whenever there is room.
Where that finds no way, or only such as have nodes that share, others are tried, in `TRIED` steps at most: those that
fit on the fewest nodes first, each where that costs least, and elsewhere where the next find no room. What is found so
need not be the nearest. What is not is refused: that may be wrong where many unequal nodes fill those of the host.

No node that is added makes any of the three less, so what a way costs is added up as it grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import prod

from attrs import frozen

from qsup.plan.nodesets import Offer, apart
from qsup.plan.residents import GuestNode
from qsup.plan.spread import Spread

#: How many ways are looked at: four nodes of four, or two of sixteen.
EXACT = 300
#: In how many steps ways are tried, each of one node more; all of four nodes of four take 340.
TRIED = 400
#: For each node of a guest the number of the host's.
Way = tuple[int, ...]
Cost = tuple[int, int, int]


def best_ways(guests: Sequence[GuestNode], offers: Iterable[Offer], *, exclusive: bool) -> list[Way]:
    """The ways to choose from, ascending; none where there is no room.

    Args:
        offers: what the nodes of the host have.
        exclusive: no CPU is had by two vCPUs.
    """
    by_number = {offer.node.number: offer for offer in offers}
    allowed = [[number for number, offer in by_number.items() if _fits(guest, offer, exclusive)] for guest in guests]
    empty = _empty([by_number[number] for number in sorted(set().union(*allowed))], exclusive)

    def costs_of(search: _Search, order: Sequence[int]) -> dict[Way, Cost]:
        found = search(empty, [(guests[index], allowed[index]) for index in order])
        return {tuple(number for _, number in sorted(zip(order, way, strict=True))): cost for cost, way in found}

    most_first = sorted(range(len(guests)), key=lambda index: (-guests[index].memory, -len(guests[index].vcpus), index))
    exact = prod(map(len, allowed)) <= EXACT
    costs = costs_of(_all if exact else _grown, most_first)
    if not exact and all(shared for shared, *_ in costs.values()):
        fewest_first = sorted(most_first, key=lambda index: len(allowed[index]))
        costs |= costs_of(_first_alone, fewest_first)
        if not costs:
            costs = costs_of(_first, fewest_first)
    least = min(costs.values(), default=None)
    return sorted(way for way, cost in costs.items() if cost == least)


def _fits(guest: GuestNode, offer: Offer, exclusive: bool) -> bool:
    """Whether there is room on a node that has no other of the guest's."""
    vcpus = len(guest.vcpus)
    if guest.within and offer.node.number not in guest.within:
        return False
    return (offer.cpus >= vcpus if exclusive or not vcpus else offer.cpus > 0) and guest.memory <= max(offer.memory, 0)


@frozen(kw_only=True)
class _Filled:
    """Nodes of the host with some of a guest's on them.

    Args:
        way: where these are, in the order in which they came.
        cost: of that way.
        cpus: by node, how many no vCPU is counted for yet; below 0 where there are more vCPUs.
        memory: bytes left, by node.
        far: by node, the sum of its distances to those of the way.
        apart: by two nodes, how far one is from the other.
    """

    way: Way
    cost: Cost
    cpus: Mapping[int, int]
    memory: Mapping[int, int]
    far: Mapping[int, int]
    apart: Mapping[int, Mapping[int, int]]
    exclusive: bool

    def more(self, guest: GuestNode, number: int) -> Cost | None:
        """What it costs besides to have one more on a node that it fits; ``None`` where no room is left for it."""
        vcpus, left = len(guest.vcpus), self.cpus[number]
        if guest.memory > self.memory[number] or (self.exclusive and vcpus > left):
            return None
        beyond = vcpus - max(left, 0) if vcpus > left else 0
        return int(number in self.way), beyond, self.far[number]

    def with_one(self, guest: GuestNode, number: int, more: Cost) -> _Filled:
        """The same with one more, which costs as much."""
        apart = self.apart[number]
        return _Filled(
            way=(*self.way, number),
            cost=_sum(self.cost, more),
            cpus={**self.cpus, number: self.cpus[number] - len(guest.vcpus)},
            memory={**self.memory, number: self.memory[number] - guest.memory},
            far={other: far + apart[other] for other, far in self.far.items()},
            apart=self.apart,
            exclusive=self.exclusive,
        )


#: A node of the guest, and those of the host that it fits on.
_Step = tuple[GuestNode, Sequence[int]]
_Search = Callable[["_Filled", Sequence[_Step]], Iterable[tuple[Cost, Way]]]


def _sum(one: Cost, other: Cost) -> Cost:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _empty(offers: Sequence[Offer], exclusive: bool) -> _Filled:
    distances: dict[int, dict[int, int]] = {offer.node.number: {offer.node.number: 0} for offer in offers}
    for index, one in enumerate(offers):
        for other in offers[:index]:
            far, first, second = apart(one, other), one.node.number, other.node.number
            distances[first][second] = distances[second][first] = far
    return _Filled(
        way=(),
        cost=(0, 0, 0),
        cpus={offer.node.number: offer.cpus for offer in offers},
        memory={offer.node.number: max(offer.memory, 0) for offer in offers},
        far=dict.fromkeys(distances, 0),
        apart=distances,
        exclusive=exclusive,
    )


def _all(filled: _Filled, steps: Sequence[_Step]) -> Iterator[tuple[Cost, Way]]:
    """All ways to go on, but those that cost more than another with all but the last node the same."""
    (guest, allowed), *rest = steps
    room = _room(filled, guest, allowed)
    if rest:
        for more, number in room:
            yield from _all(filled.with_one(guest, number, more), rest)
    elif room:
        least = min(room)[0]
        yield from ((_sum(filled.cost, more), (*filled.way, number)) for more, number in room if more == least)


def _grown(empty: _Filled, steps: Sequence[_Step]) -> Iterator[tuple[Cost, Way]]:
    """From each node that the first one fits on, each time where the next costs least."""
    (first, starts), *rest = steps
    for cost, start in _room(empty, first, starts):
        filled = empty.with_one(first, start, cost)
        for guest, allowed in rest:
            room = _room(filled, guest, allowed)
            if not room:
                break
            more, number = min(room)
            filled = filled.with_one(guest, number, more)
        else:
            yield filled.cost, filled.way


def _first_alone(empty: _Filled, steps: Sequence[_Step]) -> Iterator[tuple[Cost, Way]]:
    """One way with each on a node of its own."""
    places = Spread(dict.fromkeys(empty.cpus, 1))
    if not any(places.lay(1, frozenset(allowed)) for _, allowed in steps):
        yield from islice(_tried(empty, steps, iter(range(TRIED)), alone=True), 1)


def _first(empty: _Filled, steps: Sequence[_Step]) -> Iterator[tuple[Cost, Way]]:
    """One way, whoever shares a node."""
    return islice(_tried(empty, steps, iter(range(TRIED)), alone=False), 1)


def _tried(filled: _Filled, steps: Sequence[_Step], tries: Iterator[int], *, alone: bool) -> Iterator[tuple[Cost, Way]]:
    """Ways to go on, as far as there are tries."""
    if not steps:
        yield filled.cost, filled.way
        return
    (guest, allowed), *rest = steps
    for more, number in sorted(_room(filled, guest, allowed)):
        # nodes that are shared cost most, so they come last
        if (alone and more[0]) or next(tries, None) is None:
            return
        yield from _tried(filled.with_one(guest, number, more), rest, tries, alone=alone)


def _room(filled: _Filled, guest: GuestNode, allowed: Iterable[int]) -> list[tuple[Cost, int]]:
    """Where one more can go, and what that costs."""
    return [(more, number) for number in allowed if (more := filled.more(guest, number)) is not None]
