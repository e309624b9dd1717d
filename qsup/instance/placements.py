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
from qsup.instance import wishes
from qsup.instance.wishes import says_something
from qsup.plan import explained
from qsup.plan.hostmemory import check_nodes
from qsup.plan.ledger import Ledger
from qsup.plan.pinning import Pins
from qsup.plan.placement import check_fence, check_named, place
from qsup.plan.residents import Placement, Request, Resident, Sets
from qsup.plan.topology import Topology
from qsup.unit.effective import effective_max_vcpus, huge_page
from qsup.unit.fence import MEMS
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
        fence: the CPUs that nothing of it leaves, empty for none.
        resident: its place, ``None`` where its unit asks for none.
        chosen: that, where it was chosen.
    """

    vcpus: int
    emulator: frozenset[int] = frozenset()
    iothreads: Mapping[str, frozenset[int]] = field(factory=dict)
    helper: frozenset[int] = frozenset()
    fence: frozenset[int] = frozenset()
    resident: Resident | None = None
    chosen: Chosen | None = None

    @property
    def counted(self) -> Resident | None:
        """Its place, with as many vCPUs as it has by now where these have no CPUs of their own."""
        place = self.resident
        if place is None or place.exclusive or place.vcpu_nodes:
            return place
        if place.named:
            # those that may come name their CPUs already
            here, later = place.sets.vcpus[: self.vcpus], place.sets.vcpus[self.vcpus :]
            return evolve(place, sets=evolve(place.sets, vcpus=here, iothreads=place.sets.iothreads.union(*later)))
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

    Attributes:
        has_vms: there is any, with a place of its own or without.
    """

    def __init__(self, reader: TopologyReader | None = None) -> None:
        self.has_vms = False
        self._reader = reader or TopologyReader()
        self._topology: Topology | None = None
        self._entries: dict[str, _Entry] = {}
        self._found: _Found | None = None
        self._change = trio.Event()
        #: Counted once for each change: every VM is asked for its pins after that.
        self._taken = self._exclusive = 0

    # taking and giving back

    async def take(self, name: str, unit: Unit, *, starts: bool = False) -> Chosen | None:
        """Give a VM the place that its unit asks for, from now on; in place of the one it has.

        Args:
            starts: none of its threads is anywhere yet: what was chosen for an earlier life of it holds nothing.

        Returns:
            What was chosen for it, to be kept with it, ``None`` where there was nothing to choose.

        Raises:
            PlacementError: what it wants is not left, or not there; it has what it had.
            HostError: the host could not be looked at.
        """
        if unit.cpu.pin == AUTO:
            await self.look()  # also at how much memory each node has left
        else:
            await self.refresh(unit)
        self._put(name, entry := self._entry(name, unit, starts=starts))
        return entry.chosen

    def check(self, name: str, unit: Unit, *, starts: bool = False) -> None:
        """See that a VM could have the place that its unit asks for, as far as the host is known.

        Args:
            starts: it is to start with that, once it has ended.

        Raises:
            PlacementError: what it wants is not left, or not there.
        """
        if self._topology is not None:
            self._entry(name, unit, starts=starts)

    def restore(self, name: str, unit: Unit, chosen: Chosen | None) -> None:
        """A VM runs that an earlier daemon has given its place."""
        named = named_place(name, unit)
        entry, resident = _plain(unit), named
        if chosen is not None:
            resident = evolve(chosen.resident(name), page=huge_page(unit), within=entry.fence or None)
        self._put(name, evolve(entry, resident=resident, chosen=chosen))

    def recount(self, name: str, vcpus: int) -> None:
        """A VM has so many vCPUs by now: the place of the next one hangs on it, where they share CPUs."""
        entry = self._entries.get(name)
        if entry is not None and entry.vcpus != vcpus:
            self._put(name, evolve(entry, vcpus=vcpus))

    def release(self, name: str) -> None:
        """A VM is down, and nothing has it start again; nothing happens when it has none."""
        if self._entries.pop(name, None) is not None:
            self._changed()

    def _entry(self, name: str, unit: Unit, *, starts: bool = False) -> _Entry:
        entry, mems = _plain(unit), unit.limits.cpuset_mems
        if not wishes.depends_on_host(unit):
            return entry
        assert self._topology is not None
        others = _residents(self._entries, self._topology)
        check_fence(name, entry.fence, others, self._topology)
        check_nodes(name, mems, self._topology, MEMS)
        if not says_something(unit):
            return entry
        if unit.cpu.pin != AUTO:
            resident = named_place(name, unit)
            assert resident is not None
            check_named(resident, others, self._topology)
            return evolve(entry, resident=resident)
        if entry.names_some:
            check_named(Resident(name=name, sets=entry.beside, named=True), others, self._topology)
        known = None if starts else self._entries.get(name)
        request = evolve(
            wishes.request(name, unit, self._topology), beside=entry.beside.emulator | entry.beside.iothreads
        )
        if known is not None and known.chosen is not None and known.chosen.is_for(unit):
            assert known.resident is not None
            if _lies_within(known.resident, request.within, self._topology):
                # only other threads of it are to move
                resident = evolve(known.resident, within=entry.fence or None)
                return evolve(entry, resident=resident, chosen=known.chosen)
        if known is not None and known.chosen is not None and known.chosen.memory:
            placement = _place_by_memory(request, known.chosen, others, self._topology)
        else:
            placement = place(request, others, self._topology)
        promised = placement.resident.memory
        chosen = Chosen(
            vcpus=tuple(tuple(sorted(cpus)) for cpus in placement.resident.sets.vcpus),
            exclusive=unit.cpu.exclusive,
            nodes=placement.resident.nodes,
            memory=tuple(promised.get(node, 0) for node in placement.resident.nodes) if promised else (),
            explanation=(*explained.fence(entry.fence, mems), *placement.explanation),
            homes=placement.homes,
            vcpu_nodes=placement.resident.vcpu_nodes,
        )
        return evolve(entry, resident=evolve(placement.resident, within=entry.fence or None), chosen=chosen)

    def _put(self, name: str, entry: _Entry) -> None:
        self._entries[name] = entry
        self._changed()

    def see(self, topology: Topology) -> None:
        """The host is like this now."""
        before, self._topology = self._topology, topology
        if before is None or (before.online, before.placeable) != (topology.online, topology.placeable):
            self._changed()

    def _changed(self) -> None:
        self._found, self.has_vms = None, bool(self._entries)
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
        place, fence = entry.resident, entry.fence
        if place is not None and place.named and place.sets.vcpus:
            return Pins(place.sets.vcpus, place.sets.emulator, entry.iothreads, entry.helper, fence=fence)
        if (place is None or place.named) and not self._exclusive:
            return Pins((), entry.emulator, entry.iothreads, entry.helper, fence=fence)
        if (found := self._look_up()) is None:
            return None
        if place is not None and place.named:
            shared = found.shared & fence or fence or found.shared
            return Pins((shared,), entry.emulator or shared, entry.iothreads, entry.helper, fence=fence)
        sets = found.sets[name]
        apart = place is not None and (place.exclusive or place.vcpu_nodes)
        vcpus = sets.vcpus if apart else (sets.emulator,)
        lack = found.lacks.get(name, "")
        return Pins(vcpus, entry.emulator or sets.emulator, entry.iothreads, entry.helper, lack, fence)

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

    async def refresh(self, unit: Unit | None = None) -> None:
        """See which CPUs are online and ours, if a unit, where one is given, says anything of CPUs; `HostError`."""
        matters = unit is None or wishes.depends_on_host(unit)
        if matters and (self._topology is None or not self.is_still(self._topology)):
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
    """All of them; whose vCPUs were given no place is all over the host, and may name CPUs for other threads."""
    nodes = tuple(node.number for node in topology.nodes)
    found = []
    for name, entry in entries.items():
        place = entry.counted
        if place is None or not place.sets.vcpus:
            anywhere = Sets(vcpus=(frozenset(),) * entry.vcpus, emulator=frozenset())
            place = Resident(name=name, sets=anywhere, nodes=nodes, within=entry.fence or None)
        found.append(place)
        if entry.names_some and not place.named:
            found.append(Resident(name=name, sets=entry.beside, named=True))
    return found


def _place_by_memory(request: Request, present: Chosen, others: Sequence[Resident], topology: Topology) -> Placement:
    """Place a VM once more whose memory is on the nodes that were chosen for it, and stays there."""
    if request.guest_nodes:
        homes = zip(request.guest_nodes, present.homes, strict=True)
        guest = tuple(evolve(node, within=(home,)) if node.memory else node for node, home in homes)
        return place(evolve(request, guest_nodes=guest), others, topology)
    there = frozenset(cpu.number for node in present.nodes for cpu in topology.cpus_on.get(node, ()))
    within = there if request.within is None else there & request.within
    placement = place(evolve(request, memory=0, within=within), others, topology)
    memory = present.resident(request.name).memory
    return evolve(placement, resident=evolve(placement.resident, nodes=present.nodes, memory=memory))


def _lies_within(place: Resident, within: frozenset[int] | None, topology: Topology) -> bool:
    """Whether a VM may stay where it is by what was chosen for it."""
    if within is None:
        return True
    if place.exclusive:
        return place.vcpu_cpus <= within
    nodes = [topology.cpus_on[node] for node in place.nodes if node in topology.cpus_on]
    return all(any(cpu.number in within for cpu in cpus) for cpus in nodes)


def _plain(unit: Unit) -> _Entry:
    """A VM without a place yet."""
    iothreads = {iothread.id: frozenset(iothread.pin) for iothread in unit.iothreads if iothread.pin}
    return _Entry(
        vcpus=unit.cpu.vcpus,
        emulator=frozenset(unit.cpu.emulator_pin),
        iothreads=iothreads,
        helper=frozenset(unit.cpu.helper_pin),
        fence=frozenset(unit.limits.cpuset_cpus),
    )


def named_place(name: str, unit: Unit) -> Resident | None:
    """The place that a unit names, ``None`` for none."""
    if isinstance(unit.cpu.pin, str) or not says_something(unit):
        return None
    sets = tuple(map(frozenset, unit.cpu.pin))
    number = effective_max_vcpus(unit)
    each = sets * number if len(sets) == 1 else sets
    place = evolve(_plain(unit).beside, vcpus=each)
    place = evolve(place, emulator=place.emulator or frozenset().union(*sets))
    return Resident(name=name, sets=place, exclusive=unit.cpu.exclusive, named=True)
