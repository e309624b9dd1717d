"""The words for a placement: why it is this one, or why there is none.

Decides: what is said of a node, of a choice and of a refusal.
Must not: choose anything (`qsup.plan.placement`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction

from qsup.plan.ledger import Ledger, SharedCpus
from qsup.plan.nodesets import Offer, spread
from qsup.plan.residents import Request, Resident
from qsup.plan.topology import Cpu, Topology
from qsup.plan.wholecores import COST, Choice, FreeCores
from qsup.unit.fence import CPUS, MEMS
from qsup.unit.quantity import alternatives, format_cpu_set, format_size

#: Of how many VMs it is said which CPUs of a node they have, and of how many nodes what they have too little of.
NAMED = 4
_GIB = 1 << 30


def cpus(numbers: Iterable[int]) -> str:
    """``CPU 3`` or ``CPUs 2-3,8``."""
    given = frozenset(numbers)
    return f"CPU{'' if len(given) == 1 else 's'} {format_cpu_set(given)}"


def nodes(numbers: Sequence[int]) -> str:
    """``node 3`` or ``nodes 0, 1 and 2``."""
    return f"node{'' if len(numbers) == 1 else 's'} {alternatives(map(str, numbers), 'and')}"


def gib(amount: int) -> str:
    """Bytes in GiB, to a tenth; what is less than one in MiB."""
    return f"{amount >> 20} MiB" if 0 < amount < _GIB else f"{amount / _GIB:.1f} GiB"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def count(number: int, noun: str) -> str:
    """``1 core`` or ``2 cores``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def wish(request: Request) -> str:
    """What a VM wants."""
    if request.exclusive:
        wanted = f"{count(request.vcpus, 'CPU')} of its own, on whole cores"
    else:
        wanted = f"shared CPUs for {count(request.vcpus, 'vCPU')}"
    memory = f", and {of_memory(request.memory, request)}" if request.memory else ""
    return f"{request.name} wants {wanted}{memory}{_within(request)}"


def _within(request: Request) -> str:
    return "" if request.within is None else f", within {cpus(request.within)}"


def fence(allowed: frozenset[int], mems: Sequence[int]) -> Iterator[str]:
    """What of the host counts for a VM as if it were not there."""
    if allowed:
        yield f"{CPUS} keeps it to {cpus(allowed)}: others are for it as if they were offline"
    if mems:
        yield f"{MEMS} keeps its memory to {nodes(mems)}, and so its CPUs as far as there are any"


def free_on(node: int, free: FreeCores, ledger: Ledger, within: frozenset[int] | None) -> str:
    """How many cores of a node are free, and what is with the others."""
    cores_there = ledger.topology.cores_on.get(node, ())
    if not cores_there:
        return "no CPU"
    cores, number = free.count(node)
    why = "; ".join(_taken(ledger.topology.cpus_on[node], ledger, within)) if cores < len(cores_there) else ""
    return f"{cores} of {count(len(cores_there), 'core')} free, {count(number, 'CPU')}{f' ({why})' if why else ''}"


def _taken(there: Sequence[Cpu], ledger: Ledger, within: frozenset[int] | None) -> Iterator[str]:
    numbers = [cpu.number for cpu in there if cpu.online]
    yield from _held(by_holder(numbers, ledger.owners), "has", "have")
    yield from _held(by_holder(set(numbers) - ledger.owners.keys(), ledger.namers), "names", "name")
    not_given = {
        "offline": [cpu.number for cpu in there if not cpu.online],
        "isolated": [cpu.number for cpu in there if cpu.online and cpu.isolated],
        "not for this daemon": [cpu.number for cpu in there if cpu.online and not cpu.allowed],
        "not allowed to it": [] if within is None else [number for number in numbers if number not in within],
    }
    for why, which in not_given.items():
        if which:
            yield f"{format_cpu_set(which)} {why}"


def _held(holders: Sequence[tuple[str, frozenset[int]]], one: str, more: str) -> Iterator[str]:
    for name, held in holders[:NAMED]:
        yield f"{name} {one} {format_cpu_set(held)}"
    if rest := holders[NAMED:]:
        yield f"{count(len(rest), 'more VM')} {one if len(rest) == 1 else more} " + format_cpu_set(
            number for _, held in rest for number in held
        )


def by_holder(numbers: Iterable[int], holders: Mapping[int, str]) -> list[tuple[str, frozenset[int]]]:
    """Who holds which of some CPUs, by name."""
    found: dict[str, list[int]] = {}
    for number in numbers:
        if number in holders:
            found.setdefault(holders[number], []).append(number)
    return [(name, frozenset(found[name])) for name in sorted(found)]


def memory_on(offer: Offer) -> str:
    """How much of a node's memory is not promised."""
    if not offer.node.memory:
        return "no memory"
    if not offer.room:
        return "none of that memory"
    return f"{gib(max(offer.memory, 0))} of {gib(offer.room)} not promised"


def of_memory(amount: int, request: Request) -> str:
    """Bytes of what a VM's memory is made of."""
    return f"{gib(amount)} of {f'huge pages of {format_size(request.page)}' if request.page else 'memory'}"


def load_on(shared: int, promised: Fraction, more: int) -> str:
    """How full the shared CPUs of a node are."""
    if not shared:
        return "no shared CPU"
    words = f"{float(promised):.4g} vCPUs on {count(shared, 'shared CPU')}, {_load(promised / shared)} a CPU"
    return f"{words}, {_load((promised + more) / shared)} with it" if more else words


def _load(load: Fraction) -> str:
    return f"{float(load):.2f}"


def on_node(offer: Offer, what: str, request: Request) -> str:
    """What a node has."""
    memory = f"; {memory_on(offer)}" if request.memory else ""
    return f"Node {offer.node.number}: {what}{memory}"


def others(resident: Resident, topology: Topology) -> str:
    """Where the threads besides the vCPUs of an exclusive VM run."""
    emulator = resident.sets.emulator
    if emulator <= resident.vcpu_cpus:
        return f"QEMU's other threads run on the VM's own {cpus(emulator)}: no shared one is allowed to it"
    there = sorted({topology.by_number[number].node for number in emulator})
    away = "" if set(there) <= set(resident.nodes) else ", the nearest with shared ones"
    return f"QEMU's other threads share {cpus(emulator)} on {nodes(there)}{away}"


def displaced(ledger: Ledger, beside: SharedCpus) -> Iterator[str]:
    """Which nodes have no shared CPU any more, and which VMs none on any of their nodes."""
    for node in sorted(ledger.shared.by_node.keys() - beside.by_node.keys()):
        names = [
            resident.name
            for resident in ledger.residents
            if node in resident.nodes and not resident.exclusive and beside.by_node.keys().isdisjoint(resident.nodes)
        ]
        if len(names) > NAMED:
            names[NAMED - 1 :] = [f"{len(names) - NAMED + 1} others"]
        who = f": the nearest shared ones are for {alternatives(names, 'and')} from now on" if names else ""
        yield f"Node {node} has no shared CPU left{who}"


def floating(resident: Resident) -> str:
    """Where all threads of a VM run that has no CPU of its own."""
    if resident.vcpu_nodes:
        return (
            f"Its vCPUs share the CPUs of the nodes that they are on, its other threads {cpus(resident.sets.emulator)}"
        )
    return f"All its threads share {cpus(resident.sets.emulator)}"


def all_of_them(vcpus: int, total: int) -> str:
    """Why a VM is on all shared CPUs."""
    return (
        f"It has {count(vcpus, 'vCPU')}, more than the {count(total, 'CPU')} that can be shared: it gets all of these"
    )


def fewest(sets: Sequence[tuple[int, ...]], offers: Iterable[Offer]) -> str:
    """Why as many nodes, and which come into question."""
    size = len(sets[0])
    if size == 1:
        return _sentence(f"{nodes([each[0] for each in sets])} {'has' if len(sets) == 1 else 'have'} enough")
    fewer = "no single node has" if size == 2 else f"no {size - 1} nodes have"
    far = spread(offer.node for offer in offers if offer.node.number in sets[0]) // 2
    how_far = f"distance {far}" if size == 2 else f"distances {far} in sum"
    near = f"{nodes(sets[0])} are" if len(sets) == 1 else f"{count(len(sets), 'set')} of {size} nodes are"
    return _sentence(f"{fewer} enough; {near} the nearest that have ({how_far})")


def better(best: Choice, next_best: Choice) -> str:
    """Why one choice of cores comes before another."""
    first, second = nodes(best.nodes), nodes(next_best.nodes)
    for name, ours, theirs in zip(COST, best.cost, next_best.cost, strict=True):
        if ours != theirs:
            return _sentence(f"{first} before {second}: {ours} {name}, there {theirs}")
    return _sentence(f"{first} before {second}, which would be as good, by lower CPU numbers")


def less_loaded(best: tuple[int, ...], load: Fraction, next_best: tuple[int, ...], other: Fraction) -> str:
    """Why some nodes come before others for a VM that shares."""
    first, second = nodes(best), nodes(next_best)
    if load == other:
        return _sentence(f"{first} before {second}, as full, by lower numbers")
    return _sentence(f"{first} before {second}: {_load(load)} vCPUs a CPU with it, there {_load(other)}")


def cores(request: Request, choice: Choice) -> Iterator[str]:
    """Which CPUs a VM has for itself."""
    cost = dict(zip(COST, choice.cost, strict=True))
    order = ", ".join(map(str, choice.cpus[: request.vcpus]))
    kinds = " and ".join(sorted({core.kind for core in choice.cores} - {""}))
    yield (
        f"Its vCPUs run on {'CPU' if request.vcpus == 1 else 'CPUs'} {order}{' in this order' * (request.vcpus > 1)}: "
        f"{count(len(choice.cores), f'{kinds} core' if kinds else 'core')}, "
        f"{count(len({core.package for core in choice.cores}), 'package')}, "
        f"{count(len({(core.package, core.die) for core in choice.cores}), 'die')}, "
        f"{count(cost['last-level caches'], 'last-level cache')}"
    )
    if idle := choice.cpus[request.vcpus :]:
        yield f"{cpus(idle)} of the last core {'stays' if len(idle) == 1 else 'stay'} idle: nobody else is put there"
    widest = max(len(core.cpus) for core in choice.cores)
    if request.vcpus > 1 and widest > 1 and request.threads <= 1:
        yield (
            "Neighbouring vCPUs share a core and the guest does not know it: "
            f"a topology of {widest} threads a core would tell it"
        )


def apart(request: Request, way: Sequence[int]) -> Iterator[str]:
    """Where each node of a guest is."""
    for number, (home, guest) in enumerate(zip(way, request.guest_nodes, strict=True)):
        vcpus = (
            f"vCPU{'' if len(guest.vcpus) == 1 else 's'} {format_cpu_set(guest.vcpus)}" if guest.vcpus else "no vCPU"
        )
        memory = f" and {of_memory(guest.memory, request)}" if guest.memory else ""
        yield f"Node {number} of its guest, {vcpus}{memory}, is on node {home} of the host"
    if len(set(way)) < len(way):
        yield "More than one of its guest's nodes are on one of the host's: there is no room to have each on its own"


def one_by_one(given: Mapping[int, int]) -> Iterator[str]:
    """The CPU of each vCPU."""
    order = ", ".join(str(given[vcpu]) for vcpu in sorted(given))
    yield f"Its vCPUs run on {'CPU' if len(given) == 1 else 'CPUs'} {order}{' in this order' * (len(given) > 1)}"


def no_way(request: Request, offers: Sequence[Offer]) -> str:
    """Why the nodes of a guest cannot each be on one of the host's."""
    own = " of its own" if request.exclusive else ""
    wanted = [
        f"{count(len(guest.vcpus), 'CPU')}{own}" + (f" with {of_memory(guest.memory, request)}" if guest.memory else "")
        for guest in request.guest_nodes
    ]
    each = _each(
        f"node {offer.node.number} has {count(offer.cpus, 'CPU')}" + (f", {memory_on(offer)}" if request.memory else "")
        for offer in offers
    )
    nodes_wanted = alternatives(wanted, "and")
    return f"wants {nodes_wanted}, each on one node of the host, and there is no such place: {each}"


def short_of_cores(request: Request, free: FreeCores, ledger: Ledger, offers: Sequence[Offer]) -> str:
    """Why there are no cores for a VM."""
    there = sum(offer.cpus for offer in offers)
    most = sorted(
        (offer for offer in offers if offer.node.number in ledger.topology.cores_on), key=lambda each: -each.cpus
    )
    each = _each(
        (f"node {offer.node.number} has {free_on(offer.node.number, free, ledger, request.within)}" for offer in most),
    )
    wanted = f"{count(request.vcpus, 'CPU')} of its own on whole cores{_within(request)}"
    return f"wants {wanted}, and {there} can be had: {each}"


def _each(nodes: Iterable[str]) -> str:
    said = list(nodes)
    rest = said[NAMED:]
    return ", ".join(said[:NAMED]) + (f", {count(len(rest), 'other node')} not more" if rest else "")


def short_of_memory(request: Request, offers: Sequence[Offer]) -> str:
    """Why there is no memory for a VM."""
    there = sum(max(offer.memory, 0) for offer in offers)
    most = sorted((offer for offer in offers if offer.node.memory), key=lambda each: -each.memory)
    each = _each(f"node {offer.node.number} has {memory_on(offer)}" for offer in most)
    return f"wants {of_memory(request.memory, request)}, and {gib(there)} are not promised: {each}"
