"""Where a VM runs: which CPUs each of its vCPUs has, which its other threads, and on which NUMA nodes.

Decides: the placement of a VM beside those that are there, by what is said below, and why it is refused.
Must not: move anybody, read the host (`qsup.host.topology`), or pin a thread.

Always: the fewest nodes that have the CPUs and the memory wanted, and of these sets of nodes those nearest to each
other (the least sum of distances). Memory counts as what a node has less what is promised there. An offline CPU, one
that this daemon may not use and one that is isolated are never given, nor one that is exclusively somebody's.

An exclusive VM gets whole cores of which its unit allows every CPU and no unit names one, its own included; one vCPU a
CPU, siblings to neighbouring vCPUs. A CPU that an odd number leaves idle is given to nobody. What a choice of cores
costs is this tuple, of which the least is chosen::

    (number of nodes, sum of their distances, *`qsup.plan.wholecores.COST`, CPU numbers ascending, node numbers)

Its other threads run on the shared CPUs of its nodes, or of the nearest node that has any.

All other VMs float over all shared CPUs of their nodes: of the sets of nodes that come into question, the one with the
fewest vCPUs a shared CPU, this VM's included, and then the lowest numbers. A VM of more vCPUs than there are shared
CPUs has all of them.

A guest with NUMA nodes has each of them on one node of the host, vCPUs and memory alike, and no two on one as long as
there is room (`qsup.plan.guestnodes`). Of ways that are as good, an exclusive VM gets the one whose cores cost least
together, any other the one whose fullest node has the fewest vCPUs a CPU, and then the lowest numbers.

Nothing depends on the order of VMs or of any mapping.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from attrs import evolve

from qsup.errors import PlacementError
from qsup.plan import explained
from qsup.plan.guestnodes import Way, best_ways
from qsup.plan.ledger import Ledger, SharedCpus
from qsup.plan.nodesets import Offer, nearest_sets
from qsup.plan.residents import Placement, Request, Resident, Sets
from qsup.plan.topology import Topology
from qsup.plan.wholecores import Choice, FreeCores
from qsup.unit.fence import CPUS
from qsup.unit.quantity import format_cpu_set


def place(request: Request, residents: Iterable[Resident], topology: Topology) -> Placement:
    """Place a VM.

    Args:
        residents: all VMs on the host; the one to be placed does not count itself.

    Raises:
        PlacementError: what it wants is not left.
    """
    others = [resident for resident in residents if resident.name != request.name]
    if request.beside:
        sets = Sets(vcpus=(), emulator=request.beside)
        others.append(Resident(name=request.name, sets=sets, named=True))
    ledger = Ledger(topology, others)
    if request.guest_nodes:
        return (_exclusive_apart if request.exclusive else _shared_apart)(request, ledger)
    return (_exclusive if request.exclusive else _shared)(request, ledger)


def _free_cores(request: Request, ledger: Ledger) -> tuple[FreeCores, list[Offer], list[str]]:
    """The cores that a VM may have, what each node has of them, and that in words."""
    free = FreeCores(ledger.topology, ledger.free_cores(request.within), request.vcpus)
    offers = _offers(request, ledger, {node.number: free.count(node.number)[1] for node in ledger.topology.nodes})
    lines = [
        explained.on_node(offer, explained.free_on(offer.node.number, free, ledger, request.within), request)
        for offer in offers
    ]
    return free, offers, [explained.wish(request), *lines]


def _exclusive(request: Request, ledger: Ledger) -> Placement:
    free, offers, lines = _free_cores(request, ledger)
    sets = nearest_sets(offers, cpus=request.vcpus, memory=request.memory)
    if not sets:
        if sum(offer.cpus for offer in offers) < request.vcpus:
            raise PlacementError(
                explained.short_of_cores(request, free, ledger, offers),
                instance=request.name,
                hint="ask for fewer vCPUs, leave `exclusive` out, or stop or move another VM",
            )
        raise _short_of_memory(request, offers)
    lines.append(explained.fewest(sets, offers))
    best, *rest = free.choices(sets, request.vcpus)
    if rest:
        lines.append(explained.better(best, rest[0]))
    lines += explained.cores(request, best)
    chosen = Resident(
        name=request.name,
        sets=Sets(vcpus=tuple(frozenset({number}) for number in best.cpus[: request.vcpus]), emulator=frozenset()),
        exclusive=True,
        nodes=best.nodes,
        within=request.within,
        memory=_memory(request, best.nodes, offers),
        page=request.page,
    )
    return _kept(chosen, lines, ledger)


def _kept(chosen: Resident, lines: list[str], ledger: Ledger, homes: Way = ()) -> Placement:
    """The placement of an exclusive VM whose CPUs are known, with its other threads beside them."""
    beside = ledger.beside(chosen)
    if not beside.pool:
        raise _nothing_shared(chosen.name, ledger.shared.pool)
    _check_others_left(chosen, ledger, beside)
    chosen = evolve(chosen, sets=beside.sets(chosen))
    lines.append(explained.others(chosen, ledger.topology))
    lines += explained.displaced(ledger, beside)
    return Placement(resident=chosen, explanation=tuple(lines), homes=homes)


def _shared_pools(request: Request, ledger: Ledger) -> Mapping[int, frozenset[int]]:
    """The shared CPUs that a VM may use, by node."""
    pools = {
        node: shared if request.within is None else shared & request.within
        for node, shared in ledger.shared.by_node.items()
    }
    if not any(pools.values()):
        within = "" if request.within is None else f" of {explained.cpus(request.within)}"
        raise PlacementError(
            f"wants shared CPUs, and none{within} is shared",
            instance=request.name,
            hint="let it use more CPUs, or stop an exclusive VM",
        )
    return pools


def _shared(request: Request, ledger: Ledger) -> Placement:
    pools = _shared_pools(request, ledger)
    total = sum(map(len, pools.values()))
    offers = _offers(request, ledger, {node: len(shared) for node, shared in pools.items()})
    promised = {node: ledger.promised_vcpus(shared) for node, shared in pools.items()}
    lines = [explained.wish(request)]
    lines += [
        explained.on_node(
            offer, explained.load_on(offer.cpus, promised.get(offer.node.number, Fraction()), request.vcpus), request
        )
        for offer in offers
    ]
    sets = nearest_sets(offers, cpus=min(request.vcpus, total), memory=request.memory)
    if not sets:
        raise _short_of_memory(request, offers)
    lines.append(explained.fewest(sets, offers))
    (load, nodes), *rest = sorted((_load(request, nodes, pools, promised), nodes) for nodes in sets)
    if rest:
        lines.append(explained.less_loaded(nodes, load, rest[0][1], rest[0][0]))
    if request.vcpus > total:
        lines.append(explained.all_of_them(request.vcpus, total))
    chosen = Resident(
        name=request.name,
        sets=Sets(vcpus=(frozenset(),) * request.vcpus, emulator=frozenset()),
        nodes=nodes,
        within=request.within,
        memory=_memory(request, nodes, offers),
        page=request.page,
    )
    chosen = evolve(chosen, sets=ledger.shared.sets(chosen))
    lines.append(explained.floating(chosen))
    return Placement(resident=chosen, explanation=tuple(lines))


# guests with nodes of their own


def _exclusive_apart(request: Request, ledger: Ledger) -> Placement:
    free, offers, lines = _free_cores(request, ledger)
    ways = best_ways(request.guest_nodes, offers, exclusive=True)
    if not ways:
        raise _no_way(request, offers)
    known: dict[tuple[int, int], Choice] = {}

    def choice(node: int, vcpus: int) -> Choice:
        if (node, vcpus) not in known:
            known[node, vcpus] = free.choices([(node,)], vcpus)[0]
        return known[node, vcpus]

    def cost(way: Way) -> tuple[tuple[int, ...], list[int], Way]:
        choices = [choice(*each) for each in _wanted_on(way, request).items()]
        summed = tuple(map(sum, zip(*(each.cost for each in choices), strict=True)))
        return summed, sorted(number for each in choices for number in each.cpus), way

    best = min(ways, key=cost)
    numbers = {node: iter(choice(node, vcpus).cpus) for node, vcpus in _wanted_on(best, request).items()}
    cpus = {
        vcpu: next(numbers[node]) for node, guest in zip(best, request.guest_nodes, strict=True) for vcpu in guest.vcpus
    }
    lines += explained.apart(request, best)
    lines += explained.one_by_one(cpus)
    return _kept(_settled(request, best, [frozenset({cpus[vcpu]}) for vcpu in sorted(cpus)]), lines, ledger, best)


def _shared_apart(request: Request, ledger: Ledger) -> Placement:
    pools = _shared_pools(request, ledger)
    offers = _offers(request, ledger, {node: len(shared) for node, shared in pools.items()})
    promised = {node: ledger.promised_vcpus(shared) for node, shared in pools.items()}
    lines = [explained.wish(request)]
    lines += [
        explained.on_node(offer, explained.load_on(offer.cpus, promised.get(offer.node.number, Fraction()), 0), request)
        for offer in offers
    ]
    ways = best_ways(request.guest_nodes, offers, exclusive=False)
    if not ways:
        raise _no_way(request, offers)

    def fullest(way: Way) -> tuple[Fraction, Way]:
        loads = [(promised[node] + vcpus) / len(pools[node]) for node, vcpus in _wanted_on(way, request).items()]
        return max(loads), way

    best = min(ways, key=fullest)
    chosen = _settled(request, best, [frozenset()] * request.vcpus)
    chosen = evolve(chosen, sets=ledger.shared.sets(chosen))
    lines += explained.apart(request, best)
    lines.append(explained.floating(chosen))
    return Placement(resident=chosen, explanation=tuple(lines), homes=best)


def _wanted_on(way: Way, request: Request) -> dict[int, int]:
    """How many vCPUs are on each node of the host that has any."""
    wanted: dict[int, int] = {}
    for node, guest in zip(way, request.guest_nodes, strict=True):
        if guest.vcpus:
            wanted[node] = wanted.get(node, 0) + len(guest.vcpus)
    return wanted


def _settled(request: Request, way: Way, vcpus: Sequence[frozenset[int]]) -> Resident:
    homes = {vcpu: node for node, guest in zip(way, request.guest_nodes, strict=True) for vcpu in guest.vcpus}
    memory: dict[int, int] = {}
    for node, guest in zip(way, request.guest_nodes, strict=True):
        if guest.memory:
            memory[node] = memory.get(node, 0) + guest.memory
    return Resident(
        name=request.name,
        sets=Sets(vcpus=tuple(vcpus), emulator=frozenset()),
        exclusive=request.exclusive,
        nodes=tuple(sorted(set(way))),
        within=request.within,
        memory=memory,
        page=request.page,
        vcpu_nodes=tuple(homes[vcpu] for vcpu in sorted(homes)),
    )


def _no_way(request: Request, offers: list[Offer]) -> PlacementError:
    return PlacementError(
        explained.no_way(request, offers),
        instance=request.name,
        hint="divide it into more and smaller nodes, name the host's for each, or stop or move another VM",
    )


def _load(
    request: Request, nodes: tuple[int, ...], pools: Mapping[int, frozenset[int]], promised: Mapping[int, Fraction]
) -> Fraction:
    """The vCPUs a shared CPU of some nodes, with those of the VM."""
    there = [node for node in nodes if node in pools]
    return (sum((promised[node] for node in there), Fraction()) + request.vcpus) / sum(
        len(pools[node]) for node in there
    )


def _offers(request: Request, ledger: Ledger, cpus: Mapping[int, int]) -> list[Offer]:
    """What the host's nodes have, ascending; of memory only where it counts."""
    promised = ledger.promised_memory(request.page) if request.memory else {}
    return [
        Offer(
            node=node,
            cpus=cpus.get(node.number, 0),
            memory=0 if request.mems and node.number not in request.mems else room - promised.get(node.number, 0),
            room=room,
        )
        for node in ledger.topology.nodes
        for room in (ledger.topology.room(node, request.page),)
    ]


def _memory(request: Request, nodes: tuple[int, ...], offers: Iterable[Offer]) -> Mapping[int, int]:
    """How much a VM is promised of each of its nodes: as much as those with CPUs for it have, the rest of others."""
    chosen = sorted((offer for offer in offers if offer.node.number in nodes), key=lambda offer: not offer.cpus)
    promised: dict[int, int] = {}
    for offer in chosen:
        part = min(request.memory - sum(promised.values()), max(offer.memory, 0))
        if part > 0:
            promised[offer.node.number] = part
    return promised


def _short_of_memory(request: Request, offers: list[Offer]) -> PlacementError:
    return PlacementError(
        explained.short_of_memory(request, offers),
        instance=request.name,
        hint=f"{'reserve more huge pages, ' if request.page else ''}give it less memory, or stop or move another VM",
    )


def _nothing_shared(name: str, cpus: frozenset[int]) -> PlacementError:
    return PlacementError(
        f"wants all of {explained.cpus(cpus)} for itself, and none would be left for other VMs and QEMU's own threads",
        instance=name,
        hint="leave a core to be shared: ask for fewer vCPUs, or leave `exclusive` out",
    )


def _check_others_left(chosen: Resident, ledger: Ledger, beside: SharedCpus) -> None:
    """See that an exclusive VM leaves something to those that can go nowhere else; `PlacementError`."""
    for other in ledger.residents:
        if other.within and not other.named and not other.exclusive:
            left = other.within & ledger.shared.pool
            if left and not left & beside.pool:
                raise PlacementError(
                    f"would have {explained.cpus(left)} for itself, and {other.name} can run nowhere else",
                    instance=chosen.name,
                    hint=f"change the limits.cpuset-cpus of {other.name}, or say one here that leaves it something",
                )


def check_fence(name: str, cpus: frozenset[int], residents: Iterable[Resident], topology: Topology) -> None:
    """See that a VM can be kept to some CPUs.

    Raises:
        PlacementError: one of them is not there, or all are exclusively others'.
    """
    which = f"{CPUS} is {format_cpu_set(cpus)}"
    if unusable := topology.unusable(cpus):
        hint = "name CPUs that are there: `qsupctl topology` shows them"
        raise PlacementError(f"{which}, and {unusable}", instance=name, hint=hint)
    owners = Ledger(topology, [other for other in residents if other.name != name]).owners
    if cpus and cpus <= owners.keys():
        whose = [
            f"{explained.cpus(theirs)} {'is' if len(theirs) == 1 else 'are'} exclusively {other}'s"
            for other, theirs in explained.by_holder(cpus, owners)
        ]
        raise PlacementError(f"{which}, and {'; '.join(whose)}", instance=name, hint="name others, or change that VM's")


def check_named(resident: Resident, residents: Iterable[Resident], topology: Topology) -> None:
    """See whether a VM may have the sets that its unit names.

    Isolated CPUs may be named.

    Args:
        residents: all VMs on the host; the one in question does not count itself.

    Raises:
        PlacementError: a CPU cannot be used, is exclusively another's, is to be exclusive and another names it, or the
            last shared ones are to be exclusive.
    """
    own = resident.vcpu_cpus
    named = resident.cpus
    if unusable := topology.unusable(named):
        raise PlacementError(
            f"names {explained.cpus(named)}, and {unusable}",
            instance=resident.name,
            hint="name CPUs that are there: `qsupctl topology` shows them",
        )
    others = [other for other in residents if other.name != resident.name]
    ledger = Ledger(topology, others)
    conflicts = [
        f"{explained.cpus(theirs)} {'is' if len(theirs) == 1 else 'are'} exclusively {name}'s"
        for name, theirs in explained.by_holder(named, ledger.owners)
    ]
    if resident.exclusive:
        conflicts += [
            f"{explained.cpus(theirs)}, which it wants for itself, {name} names as well"
            for name, theirs in explained.by_holder(own - ledger.owners.keys(), ledger.namers)
        ]
    if conflicts:
        raise PlacementError("; ".join(conflicts), instance=resident.name, hint="name other CPUs, or change that VM's")
    if resident.exclusive and ledger.shared.pool:
        beside = ledger.beside(resident)
        if not beside.pool:
            raise _nothing_shared(resident.name, own)
        _check_others_left(resident, ledger, beside)
