"""Where all VMs of this daemon run: the one list that every choice of CPUs is made from.

Decides: what a unit's keys ask of the placement, and who is in the list and since when.
Must not: choose CPUs (`qsup.plan.placement`), or move a thread (`qsup.instance.pinning`).

A place is taken in one step, so two VMs that start at once cannot both have the last core. A VM that says nothing of
its CPUs has none of its own, and yet keeps off those that are exclusively another's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio
from attrs import evolve, field, frozen

from qsup.host.topology import TopologyReader
from qsup.plan.ledger import Ledger
from qsup.plan.pinning import Pins
from qsup.plan.placement import check_named, place
from qsup.plan.residents import GuestNode, Placement, Request, Resident, Sets
from qsup.plan.topology import Topology
from qsup.unit.effective import effective_max_vcpus, machine_memory
from qsup.unit.guestnodes import growth_index, host_nodes, is_auto, node_sizes
from qsup.unit.kinds import AUTO
from qsup.unit.model import Unit


@frozen(kw_only=True)
class Chosen:
    """The place that was chosen for a VM, as its run record keeps it.

    Args:
        vcpus: the CPUs of each vCPU, as they were chosen.
        exclusive: no other VM may use them.
        nodes: those that were chosen.
        memory: bytes promised of each of them, where its memory was to be there.
        explanation: why, in sentences.
        homes: the one for each node of a guest that has any.
        vcpu_nodes: and so for each vCPU.
    """

    vcpus: tuple[tuple[int, ...], ...]
    exclusive: bool
    nodes: tuple[int, ...]
    explanation: tuple[str, ...]
    memory: tuple[int, ...] = ()
    homes: tuple[int, ...] = ()
    vcpu_nodes: tuple[int, ...] = ()

    def is_for(self, unit: Unit) -> bool:
        """Whether it is what a unit still asks for, of a VM that runs."""
        if unit.cpu.pin != AUTO or unit.cpu.exclusive != self.exclusive:
            return False
        return not self.exclusive or effective_max_vcpus(unit) == len(self.vcpus)

    def resident(self, name: str) -> Resident:
        """What it is for the placement of others."""
        sets = Sets(vcpus=tuple(map(frozenset, self.vcpus)), emulator=frozenset())
        memory = dict(zip(self.nodes, self.memory, strict=False))
        return Resident(
            name=name,
            sets=sets,
            exclusive=self.exclusive,
            nodes=self.nodes,
            memory=memory,
            vcpu_nodes=self.vcpu_nodes,
        )


@frozen(kw_only=True)
class _Entry:
    """One VM in the list.

    Args:
        vcpus: how many it has.
        emulator: what its unit says of all other threads, empty for nothing.
        iothreads: what it says of single ones, by their ids.
        helper: what it says of the programs that serve its devices, empty for nothing.
        resident: its place, ``None`` where its unit asks for none.
        chosen: that, where it was chosen.
    """

    vcpus: int
    emulator: frozenset[int] = frozenset()
    iothreads: Mapping[str, frozenset[int]] = field(factory=dict)
    helper: frozenset[int] = frozenset()
    resident: Resident | None = None
    chosen: Chosen | None = None

    @property
    def counted(self) -> Resident | None:
        """Its place, with as many vCPUs as it has by now where these share what was chosen for them."""
        place = self.resident
        if place is None or place.named or place.exclusive or place.vcpu_nodes:
            return place
        return evolve(place, sets=evolve(place.sets, vcpus=(frozenset(),) * self.vcpus))

    @property
    def names_some(self) -> bool:
        """Whether its unit names CPUs for other threads than those of its vCPUs."""
        return bool(self.emulator or self.iothreads or self.helper)

    @property
    def beside(self) -> Sets:
        """What its unit names though its vCPUs' CPUs are chosen."""
        return Sets(vcpus=(), emulator=self.emulator, iothreads=self.helper.union(*self.iothreads.values()))


@frozen(eq=False)
class _Found:
    """What follows from the list and the host, for as long as both stay as they are.

    Args:
        sets: of each VM whose unit names none.
        shared: the CPUs that are nobody's own.
        lacks: what such a VM has not got of its place, where it lacks something.
    """

    sets: Mapping[str, Sets]
    shared: frozenset[int]
    lacks: Mapping[str, str]


class Placements:
    """The places of one daemon's VMs.

    Args:
        reader: of the host.
    """

    def __init__(self, reader: TopologyReader | None = None) -> None:
        self._reader = reader or TopologyReader()
        self._topology: Topology | None = None
        self._entries: dict[str, _Entry] = {}
        self._found: _Found | None = None
        self._change = trio.Event()
        #: Counted once for each change: every VM is asked for its pins after that.
        self._taken = self._exclusive = 0

    # taking and giving back

    async def take(self, name: str, unit: Unit) -> Chosen | None:
        """Give a VM the place that its unit asks for, from now on; in place of the one it has.

        Returns:
            What was chosen for it, to be kept with it, ``None`` where there was nothing to choose.

        Raises:
            PlacementError: what it wants is not left, or not there; it has what it had.
            HostError: the host could not be looked at.
        """
        if unit.cpu.pin == AUTO:
            await self.look()  # also at how much memory each node has left
        elif _says_something(unit):
            await self.refresh()
        entry = self._entry(name, unit)
        self._put(name, entry)
        return entry.chosen

    def check(self, name: str, unit: Unit) -> None:
        """See that a VM could have the place that its unit asks for, as far as the host is known.

        Raises:
            PlacementError: what it wants is not left, or not there.
        """
        if self._topology is not None:
            self._entry(name, unit)

    def restore(self, name: str, unit: Unit, chosen: Chosen | None) -> None:
        """A VM runs that an earlier daemon has given its place."""
        named = named_place(name, unit)
        resident = chosen.resident(name) if chosen is not None else named
        self._put(name, evolve(_plain(unit), resident=resident, chosen=chosen))

    def recount(self, name: str, vcpus: int) -> None:
        """A VM has so many vCPUs by now: the place of the next one hangs on it, where they share CPUs."""
        entry = self._entries.get(name)
        if entry is not None and entry.vcpus != vcpus:
            self._put(name, evolve(entry, vcpus=vcpus))

    def release(self, name: str) -> None:
        """A VM has ended; nothing happens when it has none."""
        if self._entries.pop(name, None) is not None:
            self._changed()

    def _entry(self, name: str, unit: Unit) -> _Entry:
        entry = _plain(unit)
        if not _says_something(unit):
            return entry
        assert self._topology is not None
        others = _residents(self._entries, self._topology)
        if unit.cpu.pin != AUTO:
            resident = named_place(name, unit)
            assert resident is not None
            check_named(resident, others, self._topology)
            return evolve(entry, resident=resident)
        if entry.names_some:
            check_named(Resident(name=name, sets=entry.beside, named=True), others, self._topology)
        known = self._entries.get(name)
        if known is not None and known.chosen is not None and known.chosen.is_for(unit):
            # only other threads of it are to move
            return evolve(entry, resident=known.resident, chosen=known.chosen)
        exclusive = unit.cpu.exclusive
        request = evolve(_request(name, unit), beside=entry.beside.emulator | entry.beside.iothreads)
        if known is not None and known.chosen is not None and known.chosen.memory:
            placement = _place_by_memory(request, known.chosen, others, self._topology)
        else:
            placement = place(request, others, self._topology)
        promised = placement.resident.memory
        chosen = Chosen(
            vcpus=tuple(tuple(sorted(cpus)) for cpus in placement.resident.sets.vcpus),
            exclusive=exclusive,
            nodes=placement.resident.nodes,
            memory=tuple(promised.get(node, 0) for node in placement.resident.nodes) if promised else (),
            explanation=placement.explanation,
            homes=placement.homes,
            vcpu_nodes=placement.resident.vcpu_nodes,
        )
        return evolve(entry, resident=placement.resident, chosen=chosen)

    def _put(self, name: str, entry: _Entry) -> None:
        self._entries[name] = entry
        self._changed()

    def see(self, topology: Topology) -> None:
        """The host is like this now."""
        before, self._topology = self._topology, topology
        if before is None or (before.online, before.placeable) != (topology.online, topology.placeable):
            self._changed()

    def _changed(self) -> None:
        self._found = None
        residents = [entry.resident for entry in self._entries.values() if entry.resident is not None]
        self._taken, self._exclusive = len(residents), sum(resident.exclusive for resident in residents)
        self._change.set()
        self._change = trio.Event()

    # what follows

    def pins(self, name: str) -> Pins | None:
        """Where a VM's threads belong now; ``None`` while that is not known."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        place = entry.resident
        if place is not None and place.named and place.sets.vcpus:
            return Pins(place.sets.vcpus, place.sets.emulator, entry.iothreads, entry.helper)
        if (place is None or place.named) and not self._exclusive:
            return Pins((), entry.emulator, entry.iothreads, entry.helper)
        if (found := self._look_up()) is None:
            return None
        if place is not None and place.named:
            return Pins((found.shared,), entry.emulator or found.shared, entry.iothreads, entry.helper)
        sets = found.sets[name]
        apart = place is not None and (place.exclusive or place.vcpu_nodes)
        vcpus = sets.vcpus if apart else (sets.emulator,)
        lack = found.lacks.get(name, "")
        return Pins(vcpus, entry.emulator or sets.emulator, entry.iothreads, entry.helper, lack)

    def chosen(self, name: str) -> Chosen | None:
        """What was chosen for a VM, ``None`` where there was nothing to choose."""
        entry = self._entries.get(name)
        return None if entry is None else entry.chosen

    def ledger(self, topology: Topology) -> Ledger:
        """What follows from all of them on a host."""
        return Ledger(topology, _residents(self._entries, topology))

    def _look_up(self) -> _Found | None:
        if self._found is None and self._topology is not None:
            ledger = self.ledger(self._topology)
            self._found = _Found(ledger.present(), ledger.shared.pool, ledger.lacks())
        return self._found

    # keeping it so

    @property
    def are_taken(self) -> bool:
        """Whether anybody's place hangs on what the host is like."""
        return self._taken > 0

    @property
    def online(self) -> frozenset[int] | None:
        """The CPUs that are online, as last seen."""
        return None if self._topology is None else self._topology.online

    def next_change(self) -> trio.Event:
        """Set when threads of a VM may belong elsewhere for the next time."""
        return self._change

    async def refresh(self) -> None:
        """See which CPUs are online and ours; `HostError` when that cannot be seen."""
        if self._topology is None or not self.is_still(self._topology):
            await self.look()

    def is_still(self, topology: Topology) -> bool:
        """Whether the host is what it was at a look, but for what is used of it."""
        return self._reader.is_still(topology)

    async def look(self) -> Topology:
        """The host as it is now; `HostError` when that cannot be seen."""
        topology = await self._reader.look()
        self.see(topology)
        return topology


def _residents(entries: Mapping[str, _Entry], topology: Topology) -> list[Resident]:
    """All of them; who asked for no place is all over the host, and who has a chosen one may name CPUs besides."""
    nodes = tuple(node.number for node in topology.nodes)
    found = [
        entry.counted
        or Resident(name=name, sets=Sets(vcpus=(frozenset(),) * entry.vcpus, emulator=frozenset()), nodes=nodes)
        for name, entry in entries.items()
    ]
    besides = [
        Resident(name=name, sets=entry.beside, named=True)
        for name, entry in entries.items()
        if entry.chosen is not None and entry.names_some
    ]
    return found + besides


def _place_by_memory(request: Request, present: Chosen, others: Sequence[Resident], topology: Topology) -> Placement:
    """Place a VM once more whose memory is on the nodes that were chosen for it, and stays there."""
    if request.guest_nodes:
        homes = zip(request.guest_nodes, present.homes, strict=True)
        guest = tuple(evolve(node, within=(home,)) if node.memory else node for node, home in homes)
        return place(evolve(request, guest_nodes=guest), others, topology)
    there = frozenset(cpu.number for node in present.nodes for cpu in topology.cpus_on.get(node, ()))
    placement = place(evolve(request, memory=0, within=there), others, topology)
    memory = present.resident(request.name).memory
    return evolve(placement, resident=evolve(placement.resident, within=None, nodes=present.nodes, memory=memory))


def _says_something(unit: Unit) -> bool:
    """Whether a unit has a word about the CPUs of any thread."""
    cpu = unit.cpu
    return bool(cpu.pin or cpu.emulator_pin or cpu.helper_pin or any(iothread.pin for iothread in unit.iothreads))


def _request(name: str, unit: Unit) -> Request:
    """What a unit asks of a placement."""
    exclusive, auto = unit.cpu.exclusive, unit.memory.nodes == AUTO
    guest, wanted = _guest_nodes(unit), max(machine_memory(unit), unit.memory.size)
    return Request(
        name=name,
        # those that may come have a node, too
        vcpus=effective_max_vcpus(unit) if exclusive or guest else unit.cpu.vcpus,
        exclusive=exclusive,
        threads=unit.cpu.topology.threads,
        memory=sum(node.memory for node in guest) if guest else wanted if auto else 0,
        guest_nodes=guest,
    )


def _guest_nodes(unit: Unit) -> tuple[GuestNode, ...]:
    later = max(unit.memory.size - machine_memory(unit), 0)
    growing = growth_index(unit)
    return tuple(
        GuestNode(
            vcpus=node.vcpus,
            memory=size + (later if index == growing else 0) if is_auto(unit, index) else 0,
            within=() if is_auto(unit, index) else on,
        )
        for index, (node, size, on) in enumerate(zip(unit.numa, node_sizes(unit), host_nodes(unit), strict=True))
    )


def _plain(unit: Unit) -> _Entry:
    """A VM without a place yet."""
    iothreads = {iothread.id: frozenset(iothread.pin) for iothread in unit.iothreads if iothread.pin}
    return _Entry(
        vcpus=unit.cpu.vcpus,
        emulator=frozenset(unit.cpu.emulator_pin),
        iothreads=iothreads,
        helper=frozenset(unit.cpu.helper_pin),
    )


def named_place(name: str, unit: Unit) -> Resident | None:
    """The place that a unit names, ``None`` for none."""
    if isinstance(unit.cpu.pin, str) or not _says_something(unit):
        return None
    sets = tuple(map(frozenset, unit.cpu.pin))
    number = effective_max_vcpus(unit)
    each = sets * number if len(sets) == 1 else sets
    place = evolve(_plain(unit).beside, vcpus=each)
    place = evolve(place, emulator=place.emulator or frozenset().union(*sets))
    return Resident(name=name, sets=place, exclusive=unit.cpu.exclusive, named=True)
