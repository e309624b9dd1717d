"""Where all VMs of this daemon run: the one list that every choice of CPUs is made from.

Decides: what a unit's keys ask of the placement, and who is in the list and since when.
Must not: choose CPUs (`qsup.plan.placement`), or move a thread (`qsup.instance.pinning`).

A place is taken in one step, so two VMs that start at once cannot both have the last core. A VM that says nothing of
its CPUs has none of its own, and yet keeps off those that are exclusively another's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import trio
from attrs import evolve, frozen

from qsup.errors import PlacementError
from qsup.host.topology import TopologyReader
from qsup.instance import wishes
from qsup.instance.entry import Chosen, Entry, named_place, plain, residents
from qsup.plan import explained
from qsup.plan.hostmemory import check_nodes
from qsup.plan.ledger import Ledger
from qsup.plan.pinning import Pins
from qsup.plan.placement import check_fence, check_named, place
from qsup.plan.residents import Placement, Request, Resident, Sets
from qsup.plan.topology import Topology
from qsup.unit.effective import huge_page
from qsup.unit.fence import MEMS
from qsup.unit.kinds import AUTO
from qsup.unit.model import Unit


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
    """The places of one daemon's VMs. Long because all that is asked of the one list is here.

    Args:
        reader: of the host.
    """

    def __init__(self, reader: TopologyReader | None = None) -> None:
        self._reader = reader or TopologyReader()
        self._topology: Topology | None = None
        self._entries: dict[str, Entry] = {}
        self._next: dict[str, Resident] = {}
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
        entry = self._entry(name, unit, starts=starts)
        if starts:
            self.forgo(name)
        self._put(name, entry)
        return entry.chosen

    async def take_next(self, name: str, unit: Unit) -> None:
        """Give a VM that runs what its unit asks for by now, for when it starts again; it keeps what it has besides.

        Raises:
            PlacementError: what it wants is not left, or not there; it has what it had.
            HostError: the host could not be looked at.
        """
        await self.refresh(unit)
        place, entry = self._entry(name, unit, starts=True).resident, self._entries.get(name)
        if place is None:
            self.forgo(name)  # an earlier restart, which this one has overtaken, may have asked for one
        else:
            self._next[name] = _beside(place, None if entry is None else entry.resident)

    def forgo(self, name: str) -> None:
        """A VM is not about to start again, or has; nothing happens when that is known."""
        self._next.pop(name, None)

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
        entry, resident = plain(unit), named
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
        self.forgo(name)
        if self._entries.pop(name, None) is not None:
            self._changed()

    def _entry(self, name: str, unit: Unit, *, starts: bool = False) -> Entry:
        entry, mems = plain(unit), unit.limits.cpuset_mems
        if not wishes.depends_on_host(unit):
            return entry
        assert self._topology is not None
        # what is kept for a restart moves nobody yet, and is nobody else's any more
        there = residents(self._entries, self._topology)
        others = [*there, *self._next.values()]
        check_fence(name, entry.fence, others, self._topology)
        check_nodes(name, mems, self._topology, MEMS)
        if not wishes.says_something(unit):
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
        if not unit.cpu.exclusive and request.within is None:
            # what is shared by then it floats over, too
            others = [*there, *map(_memory_alone, self._next.values())]
        if known is not None and known.chosen is not None and known.chosen.memory:
            placement = _place_by_memory(request, known.chosen, others, self._topology)
        else:
            placement = self._place(request, others)
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

    def _place(self, request: Request, others: Sequence[Resident]) -> Placement:
        """Place a VM, beside memory that units name nodes for as long as that leaves it room.

        Where it does not, the account of promises judges: more may be promised of a node than it has.
        """
        assert self._topology is not None
        bound = [evolve(each.bound, name=name) for name, each in self._entries.items() if each.bound is not None]
        if request.memory and bound:
            with suppress(PlacementError):
                return place(request, [*others, *bound], self._topology)
        return place(request, others, self._topology)

    def _put(self, name: str, entry: Entry) -> None:
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
        return Ledger(topology, residents(self._entries, topology))

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
    def has_vms(self) -> bool:
        """Whether there is any, with a place of its own or without."""
        return bool(self._entries)

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


def _beside(later: Resident, present: Resident | None) -> Resident:
    """What is kept for a VM's restart beside what it has: of memory only what is more, as it gives back first."""
    has = present.memory if present is not None and present.page == later.page else {}
    return evolve(later, memory={node: max(size - has.get(node, 0), 0) for node, size in later.memory.items()})


def _memory_alone(place: Resident) -> Resident:
    return evolve(place, exclusive=False, named=True, sets=Sets(vcpus=(), emulator=frozenset()), vcpu_nodes=())


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
