"""How full each node of a host is, by what VMs were given of its CPUs and promised of its memory. Pure.

Decides: how much of that counts for which node.
Must not: give any of it away (`qsup.plan.placement`, `qsup.plan.admission`), or know what is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from attrs import field, frozen

from qsup.plan.capacity import Promise, bound
from qsup.plan.ledger import Ledger


@frozen(kw_only=True)
class NodeOccupancy:
    """What is given away of one node.

    Args:
        own: CPUs that are one VM's alone, with those beside them on its cores.
        vcpus: that run on the others; one that may run elsewhere counts in part.
        memory: bytes that are bound to it, huge pages included.
    """

    own: int = 0
    vcpus: float = 0.0
    memory: int = 0


@frozen(kw_only=True)
class Occupancy:
    """What is given away of a host.

    Args:
        nodes: by number.
        owners: by CPU, the VM that alone may use it.
    """

    nodes: Mapping[int, NodeOccupancy] = field(factory=dict)
    owners: Mapping[int, str] = field(factory=dict)


def occupancy(ledger: Ledger, promised: Collection[Promise]) -> Occupancy:
    """What is given to the VMs of a ledger, and of memory what was promised."""
    there = frozenset(node.number for node in ledger.topology.nodes)
    memory: Counter[int] = Counter()
    for (node, _), size in bound(promised, there).items():
        memory[node] += size
    nodes = {}
    for number in there:
        cpus = [cpu.number for cpu in ledger.topology.cpus_on.get(number, ()) if cpu.online]
        nodes[number] = NodeOccupancy(
            own=sum(cpu in ledger.owners for cpu in cpus),
            vcpus=float(ledger.promised_vcpus(cpus)),
            memory=memory[number],
        )
    return Occupancy(nodes=nodes, owners=dict(ledger.owners))
