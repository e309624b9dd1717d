"""What may be promised of a host to VMs, and what a VM is promised. Pure.

Decides: what a VM may come to use without asking again, and how much of a host may be promised.
Must not: judge whether one more promise can be kept (`qsup.plan.admission`), or look whether the host has it now
(`qsup.plan.hostmemory`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from attrs import evolve, frozen

from qsup.plan.hostmemory import Demand, demands
from qsup.plan.spec import PlanSummary
from qsup.plan.topology import Topology
from qsup.unit.model import Unit
from qsup.unit.needs import own_memory

#: Some nodes of the host, and how much of something each of them has.
Nodes = frozenset[int]
Room = Mapping[int, int]
#: Where huge pages are that the kernel makes besides its pools: on any node.
SPARE = -1


@frozen(kw_only=True)
class Bounds:
    """How much of a host may be promised.

    Args:
        memory: bytes in place of what the host has, 0 for that.
        memory_reserve: bytes of that for the host itself.
        memory_overcommit: how many times what is left may be promised, 0 for any amount.
        cpu_overcommit: how many vCPUs may be promised of each CPU, 0 for any number.
    """

    memory: int = 0
    memory_reserve: int = 0
    memory_overcommit: float = 2.0
    cpu_overcommit: float = 0.0


@frozen(kw_only=True)
class Promise:
    """What a VM may come to use.

    Args:
        name: the VM's.
        guest: its memory.
        own: bytes that QEMU takes besides.
        vcpus: how many.
        exclusive: these have CPUs of their own.
    """

    name: str
    guest: tuple[Demand, ...]
    own: int
    vcpus: int
    exclusive: bool = False

    @property
    def memory(self) -> int:
        """Bytes besides huge pages."""
        return self.own + sum(part.size for part in self.guest if not part.page)

    @property
    def shared_vcpus(self) -> int:
        """VCPUs that share CPUs with others."""
        return 0 if self.exclusive else self.vcpus

    @property
    def is_particular(self) -> bool:
        """Whether its memory is to be on some nodes, or in huge pages."""
        return any(part.page or part.nodes for part in self.guest)

    def joined(self, other: Promise) -> Promise:
        """What keeps either of them: of each kind the larger amount.

        What the one has bound and the other has not counts for both, which is more than either.
        """
        parts: dict[tuple[int, tuple[int, ...]], Demand] = {}
        for promised in (self, other):
            sizes = Counter[tuple[int, tuple[int, ...]]]()
            for part in promised.guest:
                kind = (part.page, part.nodes)
                sizes[kind] += part.size
                parts[kind] = evolve(part, size=max(sizes[kind], parts[kind].size if kind in parts else 0))
        return Promise(
            name=self.name,
            guest=tuple(parts.values()),
            own=max(self.own, other.own),
            vcpus=max(self.shared_vcpus, other.shared_vcpus) or max(self.vcpus, other.vcpus),
            exclusive=self.exclusive and other.exclusive,
        )

    def by_nodes(self, page: int, there: Nodes) -> Mapping[Nodes, int]:
        """Bytes of its memory in pages of a size, by the nodes that they are bound to; none: any.

        Args:
            page: bytes of a page, 0 for the usual ones.
            there: the nodes that there are; one may have gone since.
        """
        found: Counter[Nodes] = Counter()
        for part in self.guest:
            if part.page == page:
                found[there.intersection(part.nodes)] += part.size
        return found


def bound(promises: Iterable[Promise], there: Nodes) -> Mapping[tuple[int, int], int]:
    """Bytes that are bound to nodes, by node and bytes of a page: an even part of what is bound to several.

    Args:
        there: as `Promise.by_nodes` takes it.
    """
    found: Counter[tuple[int, int]] = Counter()
    for each in promises:
        for page in {part.page for part in each.guest}:
            for on, size in each.by_nodes(page, there).items():
                for node in on:
                    found[node, page] += size // len(on)
    return found


def promise(name: str, unit: Unit, plan: PlanSummary) -> Promise:
    """What a VM is promised.

    Args:
        unit: with the memory and vCPUs that it is to have.
        plan: of the VM, with the accelerator and the nodes that its memory is on.
    """
    return Promise(
        name=name,
        guest=demands(name, unit, plan.memory_nodes, plan.guest_nodes),
        own=own_memory(unit, plan.accel),
        vcpus=unit.cpu.vcpus,
        exclusive=unit.cpu.exclusive,
    )


@frozen(kw_only=True, eq=False)
class Host:
    """What there is to be promised.

    Args:
        owned: CPUs that are exclusively some VM's.
    """

    topology: Topology
    bounds: Bounds
    owned: frozenset[int] = frozenset()

    @cached_property
    def node_memory(self) -> Room:
        """Bytes of each node that are not kept for huge pages."""
        return {node.number: self.topology.room(node, 0) for node in self.topology.nodes}

    @property
    def memory(self) -> int:
        """Bytes of all of them, or what counts in their place; 0: it is not known."""
        return self.bounds.memory or sum(self.node_memory.values())

    @property
    def memory_limit(self) -> int | None:
        """Bytes that may be promised in all; ``None`` for any amount."""
        ratio = self.bounds.memory_overcommit
        return int(max(self.memory - self.bounds.memory_reserve, 0) * ratio) if ratio and self.memory else None

    def node_limits(self) -> Room | None:
        """Bytes of each node that may be promised to who is bound to it; ``None`` for any amount."""
        ratio = self.bounds.memory_overcommit
        known = ratio and any(self.node_memory.values())
        return {node: int(amount * ratio) for node, amount in self.node_memory.items()} if known else None

    @property
    def page_sizes(self) -> Sequence[int]:
        """Of huge pages, the smallest first."""
        return sorted({pool.size for node in self.topology.nodes for pool in node.hugepages})

    def pages(self, size: int) -> Room:
        """How many huge pages each node has, free or not, and how many there may be besides."""
        found = {n.number: pool.total for n in self.topology.nodes for pool in n.hugepages if pool.size == size}
        return {**found, SPARE: sum(pool.spare for pool in self.topology.pools if pool.size == size)}

    @property
    def usable_cpus(self) -> frozenset[int]:
        """CPUs that are online and the daemon's to use; those that the kernel isolates can be named."""
        return frozenset([cpu.number for cpu in self.topology.cpus if cpu.online and cpu.allowed])

    @property
    def shared_cpus(self) -> int:
        """How many of them are nobody's own."""
        return len(self.usable_cpus - self.owned)

    @property
    def vcpu_limit(self) -> int | None:
        """VCPUs that may be promised on them; ``None`` for any number."""
        ratio = self.bounds.cpu_overcommit
        return int(self.shared_cpus * ratio) if ratio else None
