"""Who has what on a host: CPUs that are somebody's alone, CPUs that are named, and what is left for all others.

Decides: which CPUs nobody else may have, which cores are free to be given away, what the shared CPUs are, where the
threads of automatically placed VMs are now, and how much of each node is promised.
Must not: place anybody (`qsup.plan.placement`).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction

from qsup.plan.residents import Resident, Sets
from qsup.plan.topology import Core, Topology
from qsup.unit.quantity import format_cpu_set

_NONE: frozenset[int] = frozenset()


class SharedCpus:
    """The CPUs that all share who have none for themselves.

    Args:
        topology: the host.
        pool: which of its CPUs these are.
    """

    def __init__(self, topology: Topology, pool: frozenset[int]) -> None:
        self.topology = topology
        self.pool = pool
        self._near: dict[tuple[tuple[int, ...], frozenset[int] | None], frozenset[int]] = {}

    @functools.cached_property
    def by_node(self) -> Mapping[int, frozenset[int]]:
        """Those of each node that has any."""
        found = {
            node: frozenset([cpu.number for cpu in cpus if cpu.number in self.pool])
            for node, cpus in self.topology.cpus_on.items()
        }
        return {node: shared for node, shared in found.items() if shared}

    def sets(self, resident: Resident) -> Sets:
        """Where the threads of an automatically placed VM belong.

        Threads without a CPU of their own belong on the shared ones of the VM's nodes; where these nodes have none
        left, on those of the nearest node that has. Where the unit allows none of the shared ones they are on the VM's
        own, and else on what it allows, which they cannot leave. The same counts for each vCPU alone where a guest has
        nodes. A vCPU whose own CPU cannot be used now (it is offline) is among the shared ones until it can again.
        Where nothing is shared at all any more, all are where anything can run.
        """
        placeable = self.topology.placeable
        own = resident.vcpu_cpus if resident.exclusive else _NONE
        shared = (
            self._nearest(resident.nodes, resident.within)
            or own & placeable
            or (resident.within or _NONE) & placeable
            or self._nearest(resident.nodes, None)
            or placeable
        )
        if not resident.exclusive:
            each = (shared,) * len(resident.sets.vcpus)
            if resident.vcpu_nodes:
                each = tuple(self._nearest((node,), resident.within) or shared for node in resident.vcpu_nodes)
            return Sets(vcpus=each, emulator=shared)
        return Sets(vcpus=tuple(cpus if cpus <= placeable else shared for cpus in resident.sets.vcpus), emulator=shared)

    def lack(self, resident: Resident) -> str:
        """What an automatically placed VM has not got now of what it was promised, a sentence, or ``""``."""
        if not resident.exclusive:
            left = self.pool if resident.within is None else self.pool & resident.within
            which = "no CPU" if resident.within is None else f"none of the CPUs {format_cpu_set(resident.within)}"
            return "" if left else f"{which} is left to be shared, so it runs beside VMs that were to be alone"
        placeable = self.topology.placeable
        lost = {vcpu: cpus for vcpu, cpus in enumerate(resident.sets.vcpus) if not cpus <= placeable}
        if not lost:
            return ""
        numbers = frozenset().union(*lost.values()) - placeable
        why = self.topology.unusable(numbers) or f"CPU {min(numbers)} is isolated"
        one = len(lost) == 1
        who = (
            f"vCPU {min(lost)} is not alone on a CPU" if one else f"vCPUs {format_cpu_set(lost)} are not alone on CPUs"
        )
        return f"{who} now: {why}"

    def _nearest(self, nodes: tuple[int, ...], within: frozenset[int] | None) -> frozenset[int]:
        """The shared CPUs of some nodes, or of the nearest other one; none where no node has any."""
        if (nodes, within) not in self._near:
            allowed = self.pool if within is None else self.pool & within
            found = allowed & _NONE.union(*(self.by_node.get(node, _NONE) for node in nodes))
            if allowed and not found:
                members = [node for node in self.topology.nodes if node.number in nodes]
                others = [node for node, cpus in self.by_node.items() if not cpus.isdisjoint(allowed)]
                near = min(others, key=lambda other: (sum(node.distance(other) for node in members), other))
                found = allowed & self.by_node[near]
            self._near[nodes, within] = found
        return self._near[nodes, within]


class Ledger:
    """A host and the VMs on it at one moment.

    Args:
        topology: the host.
        residents: in any order.

    Attributes:
        owners: by CPU the VM that alone may use it: what it names, or whole cores where it was given these.
        namers: by CPU a VM whose unit names it.
        shared: what is left; nobody is put beside an exclusive VM on one of its cores.
    """

    def __init__(self, topology: Topology, residents: Iterable[Resident]) -> None:
        self.topology = topology
        self.residents = sorted(residents, key=lambda resident: resident.name)
        self.owners: dict[int, str] = {}
        self.namers: dict[int, str] = {}
        private: set[int] = set()
        for resident in self.residents:
            if not (resident.exclusive or resident.named):
                continue
            own = resident.vcpu_cpus
            if resident.exclusive:
                whole = self._whole(own)
                private |= whole
                for number in own if resident.named else whole:
                    self.owners.setdefault(number, resident.name)
            if resident.named:
                for number in resident.cpus:
                    self.namers.setdefault(number, resident.name)
        self.shared = SharedCpus(topology, topology.placeable - private)

    def _whole(self, cpus: Iterable[int]) -> set[int]:
        """CPUs and all that are on the same cores."""
        core_of = self.topology.core_of
        found = set(cpus)
        for number in tuple(found):
            if core := core_of.get(number):
                found.update(core.cpus)
        return found

    def free_cores(self, within: frozenset[int] | None) -> list[Core]:
        """The cores of which every CPU that is online can be given away.

        Args:
            within: what a unit allows, ``None`` for all.
        """
        free = self.shared.pool - self.namers.keys()
        if within is not None:
            free &= within
        return [core for core in self.topology.cores if free.issuperset(core.cpus)]

    def beside(self, resident: Resident) -> SharedCpus:
        """The CPUs that are shared when one more VM has CPUs for itself."""
        return SharedCpus(self.topology, self.shared.pool - self._whole(resident.vcpu_cpus))

    def present(self) -> dict[str, Sets]:
        """Where the threads of every automatically placed VM belong now, by name."""
        return {resident.name: self.shared.sets(resident) for resident in self.residents if not resident.named}

    def lacks(self) -> dict[str, str]:
        """What automatically placed VMs have not got now, by name of those that lack something."""
        said = {resident.name: self.shared.lack(resident) for resident in self.residents if not resident.named}
        return {name: lack for name, lack in said.items() if lack}

    def promised_vcpus(self, cpus: Iterable[int]) -> Fraction:
        """How many vCPUs without CPUs of their own run on some CPUs; one that may run elsewhere counts in part."""
        sizes: Counter[int] = Counter()
        for cpu in cpus:
            for size, number in self._crowds.get(cpu, {}).items():
                sizes[size] += number
        return sum((Fraction(number, size) for size, number in sizes.items()), Fraction())

    @functools.cached_property
    def _crowds(self) -> Mapping[int, Mapping[int, int]]:
        """By CPU, the vCPUs that run there: how many, by the number of CPUs that they run on."""
        alike: Counter[frozenset[int]] = Counter()
        for resident in self.residents:
            if not resident.exclusive:
                alike.update((resident.sets if resident.named else self.shared.sets(resident)).vcpus)
        found: dict[int, dict[int, int]] = {}
        for cpus, number in alike.items():
            size = len(cpus)
            for cpu in cpus:
                sizes = found.setdefault(cpu, {})
                sizes[size] = sizes.get(size, 0) + number
        return found

    def promised_memory(self, page: int) -> Mapping[int, int]:
        """Bytes promised in pages of a size, by node.

        Args:
            page: as `Resident` has it.
        """
        found: dict[int, int] = {}
        for resident in self.residents:
            for node, promised in resident.memory.items() if resident.page == page else ():
                found[node] = found.get(node, 0) + promised
        return found
