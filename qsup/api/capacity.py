"""What may be promised of the host, as the API tells it. Pure.

Decides: which sums there are, and what is told of a node.
Must not: decide what may be promised (`qsup.plan.capacity`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qsup.api import hostwire
from qsup.instance.view import CapacityView
from qsup.plan.capacity import SPARE, Host, Promise, bound
from qsup.plan.topology import Node


def capacity(view: CapacityView) -> hostwire.Capacity:
    """The whole account."""
    host, promises = view.host, view.promises
    nodes, there = host.topology.nodes, frozenset(host.node_memory)
    pages = {size: sum(sum(each.by_nodes(size, there).values()) for each in promises) for size in host.page_sizes}
    of_nodes = bound(promises, there)
    memory = _memory(host, nodes, sum(each.memory for each in promises), host.memory_limit)
    memory["total"], memory["reserved"] = host.memory, host.bounds.memory_reserve
    return {
        "memory": memory,
        "hugepages": [_pages(host, nodes, size, promised, spare=True) for size, promised in pages.items()],
        "cpus": _cpus(host, promises),
        "nodes": [_node(host, node, of_nodes) for node in nodes],
        "instances": [_instance(each) for each in promises],
    }


def _memory(host: Host, nodes: Sequence[Node], promised: int, limit: int | None) -> hostwire.CapacityMemory:
    total, free = sum(host.node_memory[node.number] for node in nodes), sum(node.free for node in nodes)
    return {
        "total": total,
        "reserved": 0,
        "overcommit": host.bounds.memory_overcommit,
        "limit": limit,
        "promised": promised,
        "left": None if limit is None else limit - promised,
        "used": max(total - free, 0),
        "free": free,
    }


def _pages(
    host: Host, nodes: Sequence[Node], size: int, promised: int, *, spare: bool = False
) -> hostwire.CapacityPages:
    """Of some nodes; ``promised`` in bytes."""
    room = host.pages(size)
    total = sum(room.get(node.number, 0) for node in nodes) + (room[SPARE] if spare else 0)
    pages = -(-promised // size)
    free = host.topology.free_pages(size) if spare else _free(nodes, size)
    return {"size": size, "total": total, "promised": pages, "left": total - pages, "free": free}


def _free(nodes: Sequence[Node], size: int) -> int:
    return sum(pool.free for node in nodes for pool in node.hugepages if pool.size == size)


def _cpus(host: Host, promises: Sequence[Promise]) -> hostwire.CapacityCpus:
    limit, promised = host.vcpu_limit, sum(each.shared_vcpus for each in promises)
    return {
        "total": len(host.usable_cpus),
        "exclusive": len(host.usable_cpus & host.owned),
        "overcommit": host.bounds.cpu_overcommit,
        "limit": limit,
        "promised": promised,
        "left": None if limit is None else limit - promised,
    }


def _node(host: Host, node: Node, promised: Mapping[tuple[int, int], int]) -> hostwire.CapacityNode:
    cpus = host.usable_cpus.intersection(cpu.number for cpu in host.topology.cpus_on.get(node.number, ()))
    limits: Mapping[int, int] = host.node_limits() or {}
    return {
        "number": node.number,
        "cpus": len(cpus),
        "exclusive": len(cpus & host.owned),
        "memory": _memory(host, [node], promised.get((node.number, 0), 0), limits.get(node.number)),
        "hugepages": [
            _pages(host, [node], pool.size, promised.get((node.number, pool.size), 0)) for pool in node.hugepages
        ],
    }


def _instance(promise: Promise) -> hostwire.CapacityInstance:
    return {
        "name": promise.name,
        "memory": sum(part.size for part in promise.guest),
        "own": promise.own,
        "page": max((part.page for part in promise.guest), default=0),
        "nodes": sorted({node for part in promise.guest for node in part.nodes}),
        "vcpus": promise.vcpus,
        "exclusive": promise.exclusive,
    }
