"""Who wants a place on a host, and who has one.

Decides: what the placement of VMs is given and what it gives.
Must not: place anybody (`qsup.plan.placement`).
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen


@frozen(kw_only=True)
class GuestNode:
    """One NUMA node of a guest, which is to be on one node of the host.

    Args:
        vcpus: the numbers of those that are in it.
        memory: bytes wanted there, 0 where that does not count.
        within: the nodes of the host that it may be on; none: any.
    """

    vcpus: tuple[int, ...]
    memory: int = 0
    within: tuple[int, ...] = ()


@frozen(kw_only=True)
class Request:
    """What a VM wants.

    Args:
        vcpus: how many, at least 1.
        exclusive: nobody else may use its cores.
        threads: per core of the guest; 0 or 1 where that is not known to be more.
        memory: bytes wanted on its nodes, 0 where that does not count.
        page: bytes of the huge pages that these are to be in, 0 for none.
        within: the CPUs that it may use at all, ``None`` for all.
        mems: the nodes that its memory may be on; none: all.
        guest_nodes: those of its guest, where it has any; all vCPUs are in one of them, and ``memory`` is theirs.
        beside: those that its unit names for other threads of it.
    """

    name: str
    vcpus: int
    exclusive: bool = False
    threads: int = 0
    memory: int = 0
    page: int = 0
    within: frozenset[int] | None = None
    mems: tuple[int, ...] = ()
    guest_nodes: tuple[GuestNode, ...] = ()
    beside: frozenset[int] = frozenset()


@frozen(kw_only=True)
class Sets:
    """Where a VM's threads may run.

    Args:
        vcpus: the CPUs of each vCPU.
        emulator: those of its other threads: the main loop, workers, and iothreads of which nothing else is said.
        iothreads: those of which something is, and programs that serve its devices, all together.
    """

    vcpus: tuple[frozenset[int], ...]
    emulator: frozenset[int]
    iothreads: frozenset[int] = frozenset()


@frozen(kw_only=True)
class Resident:
    """A VM that has its place on a host.

    Args:
        sets: as they were chosen. Those of an automatically placed VM may have changed since (`Ledger.present`).
        exclusive: nobody else may use the CPUs of its vCPUs, nor, if they were chosen automatically, their cores.
        named: its unit names its sets, and they do not move.
        nodes: of an automatically placed VM, those that were chosen for it.
        within: the CPUs that its unit allows, which the kernel lets it leave for no others; ``None`` for all.
        memory: bytes promised to it, by node.
        page: bytes of the huge pages that these are in, 0 for none.
        vcpu_nodes: of one whose guest has nodes, the host's for each vCPU; else none, and all are for all.
    """

    name: str
    sets: Sets
    exclusive: bool = False
    named: bool = False
    nodes: tuple[int, ...] = ()
    within: frozenset[int] | None = None
    memory: Mapping[int, int] = field(factory=dict)
    page: int = 0
    vcpu_nodes: tuple[int, ...] = ()

    @property
    def vcpu_cpus(self) -> frozenset[int]:
        """All CPUs of its vCPUs together."""
        return frozenset().union(*self.sets.vcpus)

    @property
    def cpus(self) -> frozenset[int]:
        """All CPUs that any of its threads may run on."""
        return self.vcpu_cpus | self.sets.emulator | self.sets.iothreads


@frozen(kw_only=True)
class Placement:
    """A VM's place, and why it is that.

    Args:
        resident: what it is for the placement of others: keep it with the VM.
        explanation: sentences, in the order in which it was found.
        homes: the node of the host for each of its guest's.
    """

    resident: Resident
    explanation: tuple[str, ...]
    homes: tuple[int, ...] = ()
