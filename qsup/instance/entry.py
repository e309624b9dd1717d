"""One VM in the list of places: what its unit names, what was chosen for it, and what it is for the place of others.

Decides: as what a VM counts where another is to be placed.
Must not: choose CPUs (`qsup.plan.placement`), or know who is in the list (`qsup.instance.placements`).
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve, field, frozen

from qsup.instance import wishes
from qsup.plan.residents import Resident, Sets
from qsup.plan.topology import Topology
from qsup.unit.effective import effective_max_vcpus
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
class Entry:
    """One VM in the list.

    Args:
        vcpus: how many it has.
        emulator: what its unit says of all other threads, empty for nothing.
        iothreads: what it says of single ones, by their ids.
        helper: what it says of the programs that serve its devices, empty for nothing.
        fence: the CPUs that nothing of it leaves, empty for none.
        bound: its memory on nodes that its unit names, ``None`` for none.
        resident: its place, ``None`` where its unit asks for none.
        chosen: that, where it was chosen.
    """

    vcpus: int
    emulator: frozenset[int] = frozenset()
    iothreads: Mapping[str, frozenset[int]] = field(factory=dict)
    helper: frozenset[int] = frozenset()
    fence: frozenset[int] = frozenset()
    bound: Resident | None = None
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


def plain(unit: Unit) -> Entry:
    """A VM without a place yet."""
    iothreads = {iothread.id: frozenset(iothread.pin) for iothread in unit.iothreads if iothread.pin}
    return Entry(
        vcpus=unit.cpu.vcpus,
        emulator=frozenset(unit.cpu.emulator_pin),
        iothreads=iothreads,
        helper=frozenset(unit.cpu.helper_pin),
        fence=frozenset(unit.limits.cpuset_cpus),
        bound=wishes.bound_memory(unit),
    )


def named_place(name: str, unit: Unit) -> Resident | None:
    """The place that a unit names, ``None`` for none."""
    if isinstance(unit.cpu.pin, str) or not wishes.says_something(unit):
        return None
    sets = tuple(map(frozenset, unit.cpu.pin))
    number = effective_max_vcpus(unit)
    each = sets * number if len(sets) == 1 else sets
    place = evolve(plain(unit).beside, vcpus=each)
    place = evolve(place, emulator=place.emulator or frozenset().union(*sets))
    return Resident(name=name, sets=place, exclusive=unit.cpu.exclusive, named=True)


def residents(entries: Mapping[str, Entry], topology: Topology) -> list[Resident]:
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
