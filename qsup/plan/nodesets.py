"""Which sets of NUMA nodes come into question for a VM: as few as do, the nearest to each other.

Decides: among all sets of nodes that have together what is wanted, those that are smallest, and of these those that are
nearest.
Must not: choose among the equal ones; what else counts is for `qsup.plan.placement`.

Exact as long as a number of nodes has at most `EXACT` sets. Beyond that, sets are grown from each node by the nearest
one that still leaves it possible to have enough: that may miss the nearest set of five nodes of sixteen, and takes
milliseconds where looking at all sets takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from math import comb

from attrs import frozen

from qsup.plan.topology import Node

#: How many sets of one size are looked at; two nodes of sixteen have 120.
EXACT = 200


@frozen(kw_only=True)
class Offer:
    """What a node has for a VM.

    Args:
        cpus: how many it could get there.
        memory: bytes it could get there.
        room: bytes that are there at all, promised ones included.
    """

    node: Node
    cpus: int
    memory: int
    room: int = 0


def nearest_sets(offers: Sequence[Offer], *, cpus: int, memory: int) -> list[tuple[int, ...]]:
    """The sets of nodes to choose from, each ascending; none if all nodes together have too little.

    Args:
        offers: ascending by node.
        cpus: how many are wanted.
        memory: bytes that are wanted.
    """
    wanted = (cpus, max(memory, 0))
    useful = [offer for offer in offers if offer.cpus or (memory > 0 and offer.memory > 0)]
    for size in range(1, len(useful) + 1):
        if _may_do((), useful, size, wanted):
            exact = comb(len(useful), size) <= EXACT
            sets = combinations(useful, size) if exact else _grown(useful, size, wanted)
            if found := _nearest([each for each in sets if _may_do(each, (), 0, wanted)]):
                return found
    return []


def spread(nodes: Iterable[Node]) -> int:
    """How far nodes are from each other: the sum of their distances, there and back."""
    members = tuple(nodes)
    return sum(one.distance(other.number) for one in members for other in members if one is not other)


def _nearest(sets: Sequence[tuple[Offer, ...]]) -> list[tuple[int, ...]]:
    spreads = [spread(offer.node for offer in each) for each in sets]
    least = min(spreads, default=0)
    near = {
        tuple(sorted(offer.node.number for offer in each))
        for each, far in zip(sets, spreads, strict=True)
        if far == least
    }
    return sorted(near)


def _may_do(have: Sequence[Offer], rest: Sequence[Offer], more: int, wanted: tuple[int, int]) -> bool:
    """Whether some offers, with the largest of as many more, come up to what is wanted of CPUs and of memory."""
    cpus = sum(offer.cpus for offer in have) + sum(sorted((offer.cpus for offer in rest), reverse=True)[:more])
    memory = [max(offer.memory, 0) for offer in rest]
    room = sum(max(offer.memory, 0) for offer in have) + sum(sorted(memory, reverse=True)[:more])
    return cpus >= wanted[0] and room >= wanted[1]


def _grown(offers: Sequence[Offer], size: int, wanted: tuple[int, int]) -> Iterator[tuple[Offer, ...]]:
    """From each node a set that grows by the nearest node with which it can still come up to what is wanted."""
    for start in offers:
        members = [start]
        far = {offer.node.number: apart(start, offer) for offer in offers}
        rest = [offer for offer in offers if offer is not start]
        while len(members) < size:
            more = size - len(members) - 1
            rest.sort(key=lambda offer: (far[offer.node.number], offer.node.number))
            for offer in rest:
                if _may_do((*members, offer), [other for other in rest if other is not offer], more, wanted):
                    break
            else:
                break
            members.append(offer)
            rest.remove(offer)
            for other in rest:
                far[other.node.number] += apart(offer, other)
        else:
            yield tuple(members)


def apart(one: Offer, other: Offer) -> int:
    """How far two nodes are from each other, there and back."""
    return one.node.distance(other.node.number) + other.node.distance(one.node.number)
