"""What is given away of a host: CPUs, and memory, by node."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import PlacementError
from qsup.plan.capacity import Promise
from qsup.plan.hostmemory import Demand
from qsup.plan.ledger import Ledger
from qsup.plan.occupancy import occupancy
from qsup.plan.placement import place
from qsup.plan.residents import Request, Resident, Sets
from tests.plan.hosts import GIB, HOSTS
from tests.plan.placing import named

HOST = HOSTS["2 sockets"]


def on(size: int, *nodes: int) -> Demand:
    """Memory that is bound to nodes."""
    return Demand(name="m", size=size, nodes=nodes)


def test_nothing_is_promised_to_nobody() -> None:
    """Of every node that there is."""
    found = occupancy(Ledger(HOST, []), [])
    assert set(found.nodes) == {0, 1}
    assert {(each.own, each.vcpus, each.memory) for each in found.nodes.values()} == {(0, 0.0, 0)}
    assert found.owners == {}


def test_what_is_exclusive_is_its_owners_and_what_is_shared_counts_where_it_may_run() -> None:
    """Whole cores where they were chosen; half a vCPU for each of two nodes."""
    db = place(Request(name="db", vcpus=3, exclusive=True, memory=4 * GIB), [], HOST).resident
    free = Resident(name="free", sets=Sets(vcpus=(frozenset(),) * 3, emulator=frozenset()), nodes=(0, 1))
    promised = Promise(name="db", guest=(on(4 * GIB, *db.nodes),), own=GIB, vcpus=3)
    found = occupancy(Ledger(HOST, [db, free, named("web", 5, emulator=5)]), [promised])
    (node,) = db.nodes
    assert (found.nodes[node].own, found.nodes[node].memory) == (4, 4 * GIB)
    assert set(found.owners.values()) == {"db"} and len(found.owners) == 4
    assert sum(each.vcpus for each in found.nodes.values()) == pytest.approx(4)
    assert found.nodes[1 - node].memory == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12), st.integers(0, 40)), max_size=12))
def test_all_that_was_given_is_promised(wishes: list[tuple[bool, int, int]]) -> None:
    """Whoever came, and however it was spread: no vCPU and no byte is lost or counted twice."""
    residents: list[Resident] = []
    for number, (exclusive, vcpus, memory) in enumerate(wishes):
        request = Request(name=f"vm-{number}", vcpus=vcpus, exclusive=exclusive, memory=memory * GIB)
        try:
            residents.append(place(request, residents, HOST).resident)
        except PlacementError:
            continue
    promised = [
        Promise(name=each.name, guest=tuple(on(size, node) for node, size in each.memory.items()), own=GIB, vcpus=1)
        for each in residents
    ]
    found = occupancy(Ledger(HOST, residents), promised)
    shared = sum(len(each.sets.vcpus) for each in residents if not each.exclusive)
    assert sum(each.vcpus for each in found.nodes.values()) == pytest.approx(shared)
    assert sum(each.own for each in found.nodes.values()) == len(found.owners)
    assert len(found.owners) >= sum(len(each.vcpu_cpus) for each in residents if each.exclusive)
    assert sum(each.memory for each in found.nodes.values()) == sum(sum(each.memory.values()) for each in residents)
