"""Which node of the host each NUMA node of a guest is on.

Decides: among all ways to put each of them on one node that has CPUs and memory for it, the best ones.
Must not: choose CPUs, or among ways that are as good (`qsup.plan.placement`).

What a way costs is this tuple, of which the least is chosen::

    (guest's nodes that share one of the host's, vCPUs beyond the CPUs there, sum of distances between any two)

Exact as long as there are at most `EXACT` ways. Beyond that, one is grown from each node of the host: the guest's
nodes, those that want most first, go where that costs least. What all want alike is found whenever there is room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from math import prod

from qsup.plan.nodesets import Offer, apart
from qsup.plan.residents import GuestNode

#: How many ways are looked at: four nodes of four, or two of sixteen.
EXACT = 300
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
    allowed = [[number for number, offer in by_number.items() if _fits([guest], offer, exclusive)] for guest in guests]
    if prod(map(len, allowed)) <= EXACT:
        ways: Iterable[Way] = product(*allowed)
    else:
        ways = _grown(guests, allowed, by_number, exclusive)
    costs = {way: cost_of(way, guests, by_number) for way in ways if _has_room(way, guests, by_number, exclusive)}
    least = min(costs.values(), default=None)
    return sorted(way for way, cost in costs.items() if cost == least)


def cost_of(way: Sequence[int], guests: Sequence[GuestNode], offers: Mapping[int, Offer]) -> Cost:
    """What a way costs, or the beginning of one."""
    wanted: Counter[int] = Counter()
    for number, guest in zip(way, guests, strict=False):
        wanted[number] += len(guest.vcpus)
    beyond = sum(max(vcpus - offers[number].cpus, 0) for number, vcpus in wanted.items())
    far = sum(apart(offers[one], offers[other]) for one, other in combinations(way, 2) if one != other)
    return len(way) - len(wanted), beyond, far


def _fits(guests: Sequence[GuestNode], offer: Offer, exclusive: bool) -> bool:
    """Whether there is room on one node for some of a guest's."""
    vcpus, memory = sum(len(guest.vcpus) for guest in guests), sum(guest.memory for guest in guests)
    if any(guest.within and offer.node.number not in guest.within for guest in guests):
        return False
    return (offer.cpus >= vcpus if exclusive or not vcpus else offer.cpus > 0) and memory <= max(offer.memory, 0)


def _has_room(way: Sequence[int], guests: Sequence[GuestNode], offers: Mapping[int, Offer], exclusive: bool) -> bool:
    return all(
        _fits([guest for number, guest in zip(way, guests, strict=False) if number == here], offers[here], exclusive)
        for here in set(way)
    )


def _grown(
    guests: Sequence[GuestNode], allowed: Sequence[Sequence[int]], offers: Mapping[int, Offer], exclusive: bool
) -> Iterator[Way]:
    order = sorted(range(len(guests)), key=lambda index: (-guests[index].memory, -len(guests[index].vcpus), index))
    sorted_guests = [guests[index] for index in order]
    for start in allowed[order[0]]:
        way = [start]
        for index in order[1:]:
            room = [
                (cost_of([*way, number], sorted_guests, offers), number)
                for number in allowed[index]
                if _has_room([*way, number], sorted_guests, offers, exclusive)
            ]
            if not room:
                break
            way.append(min(room)[1])
        else:
            yield tuple(number for _, number in sorted(zip(order, way, strict=True)))
