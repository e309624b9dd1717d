"""Sets of nodes on hosts that have many."""

from __future__ import annotations

from attrs import evolve

from qsup.plan.nodesets import EXACT, Offer, nearest_sets, spread
from qsup.plan.topology import Node
from tests.plan.hosts import GIB


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
