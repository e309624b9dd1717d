"""What may be promised of a host: the words of each refusal, and that no order of starts promises too much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, permutations
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from qsup.api.capacity import capacity
from qsup.errors import CapacityError
from qsup.instance.view import CapacityView
from qsup.plan.admission import check_fits
from qsup.plan.capacity import Bounds, Host, Promise, bound, promise
from qsup.plan.hostmemory import Demand
from qsup.plan.ledger import Ledger
from qsup.plan.occupancy import occupancy
from qsup.plan.spec import GuestNodePlan, PlanSummary
from qsup.plan.spread import Spread
from qsup.plan.topology import Cpu, HostPool, HugePages, Node, Topology
from qsup.unit.parse import unit_from_values

MIB, GIB = 1 << 20, 1 << 30
PAGE = 2 * MIB
#: Two nodes of 8 GiB and four CPUs, each with 512 huge pages of 2 MiB: 7 GiB are left of either.
TOPOLOGY = Topology(
    cpus=tuple(Cpu(number=number, node=number // 4) for number in range(8)),
    nodes=tuple(Node(number=n, memory=8 * GIB, hugepages=(HugePages(size=PAGE, total=512, free=9),)) for n in (0, 1)),
    pools=(HostPool(size=PAGE, spare=0),),
)
EVERYWHERE = frozenset({0, 1})
EXACT = Bounds(memory_overcommit=1)


def host(bounds: Bounds = EXACT, owned: Iterable[int] = ()) -> Host:
    """The host with these bounds."""
    return Host(topology=TOPOLOGY, bounds=bounds, owned=frozenset(owned))


def vm(
    name: str, size: int = 0, on: Iterable[int] = (), *, page: int = 0, vcpus: int = 1, exclusive: bool = False
) -> Promise:
    """What a VM of so many bytes is promised, and 64 MiB besides."""
    part = Demand(name=name, size=size, page=page, nodes=tuple(on))
    return Promise(name=name, guest=(part,), own=64 * MIB, vcpus=vcpus, exclusive=exclusive)


def refusal(wanted: Promise, others: Sequence[Promise], where: Host, held: Promise | None = None) -> str:
    """Why it is refused, ``""`` if it is not."""
    try:
        check_fits(wanted, others, where, held)
    except CapacityError as error:
        assert (error.instance, error.code) == (wanted.name, "capacity")
        way = "an administrator may " if held is None else "an administrator may stop it, and start it so with "
        assert f"{way}`qsupctl start --force`" in error.hint
        return error.message
    return ""


OTHERS = [vm("db", 5 * GIB), vm("mail", GIB), vm("web", 2 * GIB), vm("a", MIB), vm("b", MIB)]


@pytest.mark.parametrize(
    ("wanted", "others", "bounds", "words"),
    [
        (
            vm("big", 8 * GIB),
            OTHERS,
            EXACT,
            "wants 8256M of memory (8G for its guest, 64M for QEMU itself), and 5822M are left to promise: 2434M are "
            "missing (the host has 14G; 8514M are promised: 5184M to db, 2112M to web, 1088M to mail and 130M to 2 "
            "others)",
        ),
        (vm("big", 8 * GIB), OTHERS, Bounds(), ""),
        (vm("big", 8 * GIB), OTHERS, Bounds(memory_overcommit=0), ""),
        (
            vm("big", 20 * GIB),
            OTHERS[:1],
            Bounds(memory_reserve=2 * GIB, memory_overcommit=1.5),
            "wants 20544M of memory (20G for its guest, 64M for QEMU itself), and 13248M are left to promise: 7296M "
            "are missing (the host has 14G, 2G of it are kept for the host, 1.5 times the rest may be promised; 5184M "
            "are promised: 5184M to db)",
        ),
        (
            vm("big", GIB),
            [],
            Bounds(memory=GIB),
            "",
        ),
        (
            vm("big", 2 * GIB),
            [],
            Bounds(memory=GIB),
            "wants 2112M of memory (2G for its guest, 64M for QEMU itself), and 2G are left to promise: 64M are "
            "missing ([capacity] memory is 1G, 2 times that may be promised; 0B are promised)",
        ),
        (
            vm("big", GIB, page=PAGE),
            [],
            Bounds(memory=32 * MIB, memory_overcommit=1),
            "wants 64M of memory (64M for QEMU itself), and 32M are left to promise: 32M are missing ([capacity] "
            "memory is 32M; 0B are promised)",
        ),
        (
            vm("big", 4 * GIB, [0]),
            [vm("db", 4 * GIB, [0]), vm("web", 7 * GIB, [1])],
            Bounds(memory=1 << 40, memory_overcommit=1),
            "wants 4G of memory on node 0, and 3G are left to promise: 1G are missing (of node 0 7G may be promised; "
            "4G are promised: 4G to db)",
        ),
        (
            vm("big", 4 * GIB, [0]),
            [vm("db", 4 * GIB, [0, 1]), vm("web", 7 * GIB, [1])],
            Bounds(memory=1 << 40, memory_overcommit=1),
            "wants 4G of memory on node 0, and 3G are left to promise: 1G are missing (of nodes 0 and 1 14G may be "
            "promised; 11G are promised: 7G to web and 4G to db)",
        ),
        (
            vm("big", GIB, [0], page=PAGE),
            [vm("db", 100 * MIB, [0], page=PAGE), vm("web", GIB, [1], page=PAGE)],
            EXACT,
            "wants 512 huge pages of 2M on node 0 for 1G of memory, and 462 are left to promise: 50 are missing (of "
            "node 0 512 may be promised; 50 are promised: 50 to db)",
        ),
        (
            vm("big", GIB + 1, page=PAGE),
            [vm("db", 1024 * MIB, page=PAGE)],
            EXACT,
            "wants 513 huge pages of 2M for 1026M of memory, and 512 are left to promise: 1 are missing (of the host "
            "1024 may be promised; 512 are promised: 512 to db)",
        ),
        (
            vm("big", vcpus=3),
            [vm("db", vcpus=8), vm("web", vcpus=6)],
            Bounds(cpu_overcommit=2),
            "wants 3 vCPUs, and 2 are left to promise: 1 are missing (8 CPUs can be shared, and 2 vCPUs of each may be "
            "promised; 14 are promised: 8 to db and 6 to web)",
        ),
        (vm("big", vcpus=2), [vm("db", vcpus=8), vm("web", vcpus=6)], Bounds(cpu_overcommit=2), ""),
        (vm("big", vcpus=4), [vm("db", vcpus=64)], Bounds(), ""),
    ],
)
def test_what_is_refused(wanted: Promise, others: list[Promise], bounds: Bounds, words: str) -> None:
    """What would be too much, with the arithmetic: who has most of it by name."""
    assert refusal(wanted, others, host(bounds)) == words


def test_cpus_that_are_taken_are_not_shared() -> None:
    """An exclusive VM counts by the CPUs that it takes from the others."""
    two = Bounds(cpu_overcommit=2)
    others = [vm("db", vcpus=12)]
    wanted = vm("rt", vcpus=3, exclusive=True)
    assert refusal(wanted, others, host(two, owned=[0, 1])) == ""
    told = refusal(wanted, others, host(two, owned=[0, 1, 2]))
    assert told.startswith("wants 3 vCPUs with CPUs of their own, and 0 are left to promise: 0 are missing (5 CPUs")
    assert refusal(vm("web", vcpus=1), [wanted], host(two, owned=[0, 1, 2])) == ""


def test_what_a_vm_has_it_keeps() -> None:
    """It is refused nothing but what it wants besides, however much too much was promised."""
    others, where = [vm("db", 20 * GIB)], host()
    held = vm("web", 4 * GIB, [0])
    assert refusal(held, others, where, held) == ""
    assert refusal(vm("web", 3 * GIB, [0]), others, where, held) == ""
    assert "0B are left to promise: 5184M are missing" in refusal(vm("web", 5 * GIB, [0]), others, where, held)
    assert refusal(held, [*others, held], where, held) == ""


def test_a_host_that_does_not_say_what_it_has() -> None:
    """Nothing is refused for that."""
    silent = Host(topology=Topology(cpus=(), nodes=(Node(number=0, memory=0),)), bounds=EXACT)
    assert refusal(vm("web", 1 << 50, [0]), [], silent) == ""


def summary(accel: str = "kvm", **values: Any) -> PlanSummary:
    """What is planned of a VM whose memory is on the first node."""
    named = {"emulator": "/usr/bin/qemu", "machine": "pc-q35-7.2", "cpu_model": "max", "memory_nodes": (0,)}
    return PlanSummary(**{**named, "accel": accel, **values})


@pytest.mark.parametrize(
    ("values", "accel", "usual", "huge", "own"),
    [
        ({"memory": {"size": "2G"}}, "kvm", 2048, 0, 33),
        ({"memory": {"size": "2G"}}, "tcg", 2048, 0, 129),
        ({"memory": {"size": "1G", "max": "4G", "balloon": True, "resize": "balloon"}}, "kvm", 4096, 0, 33),
        ({"memory": {"size": "2G", "min": "1G", "max": "8G", "balloon": False}}, "kvm", 2048, 0, 33),
        ({"memory": {"size": "2G", "hugepages": "2M", "balloon": False}}, "kvm", 0, 2048, 33),
        ({"memory": {"size": "2G"}, "cpu": {"vcpus": 2, "max-vcpus": 8}}, "kvm", 2048, 0, 40),
    ],
)
def test_what_a_unit_is_promised(values: dict[str, Any], accel: str, usual: int, huge: int, own: int) -> None:
    """The most that its guest may take without asking, and what QEMU needs besides."""
    given = promise("web", unit_from_values(values), summary(accel))
    assert given.own == own * MIB
    assert given.memory == (usual + own) * MIB
    assert sum(given.by_nodes(PAGE, EVERYWHERE).values()) == huge * MIB


def test_each_node_of_a_guest_is_promised_where_it_is() -> None:
    """What comes while it runs goes to the node for that."""
    nodes = [{"id": "a", "size": "1G", "nodes": "0"}, {"id": "b", "size": "512M", "nodes": "1"}]
    values = {"memory": {"size": "1536M", "max": "4G", "balloon": False, "growth-node": "b"}, "numa": nodes}
    unit = unit_from_values(values)
    guest = (GuestNodePlan(id="a", size=GIB, nodes=(0,)), GuestNodePlan(id="b", size=512 * MIB, nodes=(1,)))
    plan = summary(guest_nodes=guest, memory_nodes=(0, 1))
    first, second = frozenset({0}), frozenset({1})
    assert promise("web", unit, plan).by_nodes(0, EVERYWHERE) == {first: GIB, second: 512 * MIB}
    for resize in ("virtio-mem", "dimm"):
        grown = evolve(unit, memory=evolve(unit.memory, size=2 * GIB, resize=resize))
        assert promise("web", grown, plan).by_nodes(0, EVERYWHERE) == {first: GIB, second: GIB}


NODES = st.sets(st.integers(0, 3), min_size=1).map(frozenset)
AMOUNTS = st.lists(st.tuples(st.integers(1, 12), NODES), max_size=8)
ROOM = st.fixed_dictionaries({node: st.integers(0, 20) for node in range(4)})


def has_room(amounts: Sequence[tuple[int, frozenset[int]]], room: dict[int, int]) -> bool:
    """Whether all can be laid down, by Hall: no set of nodes is all that too much may be on."""
    sets = [frozenset(those) for n in range(5) for those in combinations(range(4), n)]
    return all(sum(n for n, on in amounts if on <= those) <= sum(room[x] for x in those) for those in sets)


@given(amounts=AMOUNTS, room=ROOM)
def test_amounts_have_room_where_there_is_any(amounts: list[tuple[int, frozenset[int]]], room: dict[int, int]) -> None:
    """Nothing is refused that fits by moving what is there, and the nodes that are told are too full indeed."""
    there: list[tuple[int, frozenset[int]]] = []
    for amount, on in amounts:
        spread = Spread(room)
        assert not any(spread.lay(*each) for each in there)
        full = spread.lay(amount, on)
        assert bool(full) is not has_room([*there, (amount, on)], room)
        if full:
            assert on <= full
            alone = sum(n for n, where in there if where <= full)
            assert amount + alone > sum(room[node] for node in full)
        else:
            there.append((amount, on))
            assert sum(map(spread.laid, room)) == sum(amount for amount, _ in there)
        assert all(0 <= spread.laid(node) <= room[node] for node in room)


VMS = st.lists(
    st.tuples(st.integers(0, 9), st.sets(st.sampled_from((0, 1))), st.booleans(), st.integers(1, 6), st.booleans()),
    max_size=7,
)


def drawn(values: Sequence[Any]) -> list[Promise]:
    """VMs of some GiB; those in huge pages have some hundred MiB."""
    return [
        vm(f"vm{n}", (size * 100 * MIB) if huge else size * GIB, sorted(on), page=PAGE if huge else 0, vcpus=vcpus)
        for n, (size, on, huge, vcpus, _) in enumerate(values)
    ]


def is_kept(promises: Sequence[Promise], where: Host) -> bool:
    """Whether all promises can be kept, by the definition."""
    if sum(each.memory for each in promises) > (where.memory_limit or 0):
        return False
    if sum(each.shared_vcpus for each in promises) > (where.vcpu_limit or 0):
        return False
    bound = [(size, on) for each in promises for on, size in each.by_nodes(0, EVERYWHERE).items() if on]
    pages = [
        (size // PAGE, on or EVERYWHERE) for each in promises for on, size in each.by_nodes(PAGE, EVERYWHERE).items()
    ]
    room = {2: 0, 3: 0, **where.pages(PAGE)}
    return has_room(bound, {2: 0, 3: 0, **(where.node_limits() or {})}) and has_room(pages, room)


@given(values=VMS, ratio=st.sampled_from((0.5, 1, 1.25)), cpus=st.sampled_from((1, 2.5)))
def test_promises_can_be_kept(values: list[Any], ratio: float, cpus: float) -> None:
    """Of VMs that start one after another those get in that leave every promise kept, and no other is refused."""
    where, inside = host(Bounds(memory_overcommit=ratio, cpu_overcommit=cpus)), list[Promise]()
    for wanted in drawn(values):
        refused = refusal(wanted, inside, where)
        assert bool(refused) is not is_kept([*inside, wanted], where)
        if not refused:
            inside.append(wanted)


@given(values=VMS.filter(lambda values: len(values) < 5))
def test_the_order_does_not_count(values: list[Any]) -> None:
    """VMs that all get in by one order do so by every other."""
    where, wanted = host(), drawn(values)

    def all_in(order: Sequence[Promise]) -> bool:
        return not any(refusal(each, order[:n], where) for n, each in enumerate(order))

    assert len({all_in(order) for order in permutations(wanted)}) == 1


@given(values=VMS, more=st.integers(0, 8))
def test_less_is_never_refused(values: list[Any], more: int) -> None:
    """A VM may have less of what it has, whoever else is there, and more only as a new one might."""
    where, (*others, mine) = host(), [*drawn(values), vm("mine", 3 * GIB, [0])]
    assert refusal(vm("mine", GIB, [0]), others, where, mine) == ""
    larger = vm("mine", (3 + more) * GIB, [0])
    if is_kept([*others, larger], where):
        assert refusal(larger, others, where, mine) == ""
    elif is_kept([*others, mine], where):
        assert refusal(larger, others, where, mine) != ""


@given(
    guests=st.lists(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([(), (0,), (0, 1)])), max_size=3), max_size=2)
)
def test_what_keeps_either_of_two_promises(guests: list[list[tuple[int, tuple[int, ...]]]]) -> None:
    """Is no less than any of them on any nodes, and the same whichever is first."""
    one, other = (
        Promise(
            name="web",
            guest=tuple(Demand(name="web", size=size, nodes=on) for size, on in guest),
            own=number,
            vcpus=3 - number,
            exclusive=number == 1,
        )
        for number, guest in enumerate([*guests, [], []][:2])
    )
    both = one.joined(other)
    for promised in (one, other):
        assert both.memory >= promised.memory
        assert both.shared_vcpus >= promised.shared_vcpus
        amounts = both.by_nodes(0, EVERYWHERE)
        assert all(amounts[on] >= size for on, size in promised.by_nodes(0, EVERYWHERE).items())
        assert promised.joined(promised).by_nodes(0, EVERYWHERE) == promised.by_nodes(0, EVERYWHERE)
    assert both.by_nodes(0, EVERYWHERE) == other.joined(one).by_nodes(0, EVERYWHERE)


def test_what_is_bound_to_each_node() -> None:
    """An even part of what is bound to several that are there, by size of page; nothing of what is bound to none."""
    promises = [vm("a", 6, (0, 1)), vm("b", 4, (1, 7)), vm("c", 5), vm("d", 8, (0,), page=PAGE), vm("e", 2, (0,))]
    assert bound(promises, EVERYWHERE) == {(0, 0): 5, (1, 0): 7, (0, PAGE): 8}


def test_accounts_of_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each promise is gone through once, not once for each of sixteen nodes: which took 50 ms with 300 VMs."""
    looked, by_nodes = list[str](), Promise.by_nodes

    def counted(self: Promise, page: int, there: frozenset[int]) -> Mapping[frozenset[int], int]:
        looked.append(self.name)
        return by_nodes(self, page, there)

    monkeypatch.setattr(Promise, "by_nodes", counted)
    topology = Topology(cpus=(), nodes=tuple(Node(number=number, memory=GIB) for number in range(16)))
    promises = tuple(vm(str(number), MIB, (number,)) for number in range(16))
    occupancy(Ledger(topology, ()), promises)
    capacity(CapacityView(host=Host(topology=topology, bounds=EXACT), promises=promises))
    assert len(looked) == 2 * len(promises)
