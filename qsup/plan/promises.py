"""How full each node of a host is, by what VMs were promised of it. Pure.

Decides: what of a node's CPUs and memory is given away.
Must not: give any of it away (`qsup.plan.placement`), or know what is used.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from qsup.plan.ledger import Ledger


@frozen(kw_only=True)
class Promise:
    """What is promised of one node.

    Args:
        own: CPUs that are one VM's alone, with those beside them on its cores.
        vcpus: that run on the others; one that may run elsewhere counts in part.
        memory: bytes.
    """

    own: int = 0
    vcpus: float = 0.0
    memory: int = 0


@frozen(kw_only=True)
class Promises:
    """What is promised of a host.

    Args:
        nodes: by number.
        owners: by CPU, the VM that alone may use it.
    """

    nodes: Mapping[int, Promise] = field(factory=dict)
    owners: Mapping[int, str] = field(factory=dict)


def promises(ledger: Ledger) -> Promises:
    """What is promised to the VMs of a ledger."""
    nodes = {}
    for node in ledger.topology.nodes:
        there = [cpu.number for cpu in ledger.topology.cpus_on.get(node.number, ()) if cpu.online]
        nodes[node.number] = Promise(
            own=sum(number in ledger.owners for number in there),
            vcpus=float(ledger.promised_vcpus(there)),
            memory=ledger.promised_memory.get(node.number, 0),
        )
    return Promises(nodes=nodes, owners=dict(ledger.owners))
