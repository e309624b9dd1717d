"""Placements one by one: what first fit gets wrong, who shares what, and what is refused in which words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from attrs import evolve

from qsup.errors import PlacementError
from qsup.plan.ledger import Ledger
from qsup.plan.placement import check_named, place
from qsup.plan.residents import Request, Resident
from qsup.plan.topology import HostPool, HugePages, Topology
from tests.plan.hosts import GIB, HOSTS, changed, large, machine
from tests.plan.placing import named


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


def test_the_widest_cores_come_first() -> None:
    """Two vCPUs that the guest takes for one core are on one, also where another core has lost its second CPU."""
    host = changed(machine(packages=2, cores=2), offline=[4])
    assert order(place(exclusive("db", 3), [], host).resident) == [1, 5, 0]


def test_vcpus_go_node_by_node() -> None:
    """The first vCPUs are on the first node, whatever cores it has, so a guest's nodes can be the host's."""
    host = changed(machine(packages=2, cores=2), offline=[4, 5])
    assert order(place(exclusive("db", 4), [named("pinned", 3, emulator=3)], host).resident) == [0, 1, 2, 6]


def test_load_counts_in_part_where_a_vm_may_be_elsewhere() -> None:
    """A VM on two nodes is half a burden for each."""
    host = machine(packages=2, cores=2, threads=1)
    wide, left = settle(host, Request(name="wide", vcpus=4), Request(name="left", vcpus=2))
    assert (wide.nodes, left.nodes) == ((0, 1), (0,))
    placement = place(Request(name="web", vcpus=1), [wide, left], host)
    assert placement.resident.nodes == (1,)
    assert placement.explanation[1:3] == (
        "Node 0: 4 vCPUs on 2 shared CPUs, 2.00 a CPU, 2.50 with it",
        "Node 1: 2 vCPUs on 2 shared CPUs, 1.00 a CPU, 1.50 with it",
    )


def test_memory_is_taken_where_the_cpus_are_first() -> None:
    """A node of memory alone gives what the nodes with CPUs have not."""
    host = machine(packages=2, cores=2, memory=8)
    host = evolve(host, cpus=tuple(cpu for cpu in host.cpus if cpu.node == 1))
    heavy = place(Request(name="heavy", vcpus=1, memory=10 * GIB), [], host).resident
    assert heavy.nodes == (0, 1)
    assert heavy.memory == {0: 2 * GIB, 1: 8 * GIB}


def test_shared_vms_follow_the_exclusive_ones() -> None:
    """The CPUs of a VM that shares become fewer when an exclusive one comes, and come back when it is gone."""
    host = machine(cores=4)
    web, db = settle(host, Request(name="web", vcpus=2), exclusive("db", 4))
    assert Ledger(host, [web]).present()["web"].vcpus == (frozenset(range(8)),) * 2
    assert Ledger(host, [web, db]).present()["web"].vcpus == (frozenset({2, 3, 6, 7}),) * 2


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
    assert Ledger(host, [web, placement.resident]).present()["web"].vcpus == (frozenset({0, 1}),) * 2
    crowd = [evolve(web, name=f"web{number}") for number in range(6)]
    assert place(exclusive("db", 2), [*crowd, named("busy", 0, 4, 6, emulator=0)], host).explanation[-1] == (
        "Node 1 has no shared CPU left: the nearest shared ones are for web0, web1, web2 and 3 others from now on"
    )


def test_a_cpu_that_went_offline_is_replaced_until_it_is_back() -> None:
    """A vCPU whose CPU is offline shares CPUs meanwhile; its promise stays."""
    host = machine(cores=4, threads=1)
    (db,) = settle(host, exclusive("db", 2))
    assert Ledger(changed(host, offline=[1]), [db]).present()["db"].vcpus == (frozenset({0}), frozenset({2, 3}))
    assert Ledger(host, [db]).present()["db"].vcpus == (frozenset({0}), frozenset({1}))


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
    (full,) = settle(host, exclusive("db", 2, memory=16 * GIB - (8 << 20)))
    assert "wants 16 MiB of memory, and 8 MiB are not promised" in refusal(
        Request(name="web", vcpus=1, memory=16 << 20), [full], host
    )


def test_huge_pages_are_where_their_pools_are() -> None:
    """They count apart from other memory, by their size; what the kernel may make besides can be anywhere."""
    host = machine(packages=2, memory=8)
    pool = HugePages(size=2 << 20, total=3 << 9, free=0)
    host = evolve(host, nodes=(host.nodes[0], evolve(host.nodes[1], hugepages=(pool,))))

    def wish(name: str, gibs: int, page: int = 0) -> Request:
        return Request(name=name, vcpus=1, memory=gibs * GIB, page=page)

    huge, plain = settle(host, wish("huge", 2, pool.size), wish("plain", 5))
    assert (huge.nodes, huge.memory, plain.nodes) == ((1,), {1: 2 * GIB}, (0,))
    assert place(wish("beside", 5), [huge, plain], host).resident.nodes == (1,)
    assert refusal(wish("web", 2, pool.size), [huge, plain], host) == (
        "wants 2.0 GiB of huge pages of 2M, and 1.0 GiB are not promised: "
        "node 1 has 1.0 GiB of 3.0 GiB not promised, node 0 has none of that memory"
    )
    grows = evolve(host, pools=(HostPool(size=pool.size, spare=1 << 10),))
    assert place(wish("web", 2, pool.size), [huge, plain], grows).resident.memory == {0: 2 * GIB}


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
    # each conflict is told once
    own = evolve(old, exclusive=True)
    assert objection(named("web", 2, emulator=0, exclusive=True), [own], host) == "CPU 2 is exclusively old's"
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
