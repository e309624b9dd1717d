"""What VMs have of their host, and the host itself, as the API shows it.

Decides: the shapes of threads, counters, memory by node, and of the topology.
Must not: read any of it.
"""

from __future__ import annotations

from typing import Any, cast

from qsup.api import hostwire
from qsup.host.usage import NodeMemory
from qsup.instance.view import CpusView, StatsView, TopologyView
from qsup.plan.occupancy import NodeOccupancy
from qsup.unit.quantity import format_cpu_set


def cpus(view: CpusView) -> hostwire.Cpus:
    """The threads of one VM."""
    return {
        "threads": [
            {
                "thread": thread.thread,
                "name": thread.usage.name,
                "vcpus": list(thread.vcpus),
                "iothread": thread.iothread,
                "helper": thread.helper,
                "pin": format_cpu_set(thread.pin),
                "allowed": format_cpu_set(thread.allowed),
                "cpu": thread.usage.cpu,
                "seconds": thread.usage.times.seconds,
                "waited": thread.usage.times.waited,
                "migrations": thread.usage.migrations,
                "drifts": thread.stray.times,
                "drift_cpu": thread.stray.cpu,
            }
            for thread in view.threads
        ],
        "count": view.count,
        "drifts": view.drifts,
        "explanation": list(view.explanation),
    }


def stats(view: StatsView) -> hostwire.Stats:
    """Counters of one VM."""
    return {
        "read_at": view.read_at,
        "cpu_seconds": view.cpu_seconds,
        "times": [
            {
                "vcpus": list(each.vcpus),
                "iothread": each.iothread,
                "seconds": each.times.seconds,
                "waited": each.times.waited,
            }
            for each in view.times
        ],
        "memory_rss": view.memory_rss,
        "memory_huge": view.memory_huge,
        "memory_swapped": view.memory_swapped,
        "memory_limit": view.memory_limit,
        "node_memory": None if view.node_memory is None else node_memory(view.node_memory, view.read_at),
        "threads": view.threads,
        "disks": {name: dict(counters) for name, counters in view.disks.items()},
        "nics": {name: dict(counters) for name, counters in view.nics.items()},
        "balloon": dict(view.balloon),
        "drifts": view.drifts,
    }


def node_memory(memory: NodeMemory, now: float) -> hostwire.NodeMemoryWire:
    """Where a VM's memory is.

    Args:
        now: seconds since the boot.
    """
    return {
        "age": max(0.0, now - memory.read_at),
        "nodes": [
            {"node": node, "anonymous": part.anonymous, "huge": part.huge, "file": part.file}
            for node, part in memory.nodes.items()
        ],
    }


def topology(view: TopologyView) -> hostwire.Topology:
    """The host, and who is pinned where."""
    host = view.topology
    return {
        "nodes": [
            {
                "number": node.number,
                "memory": node.memory,
                "free": node.free,
                "distances": {str(other.number): node.distance(other.number) for other in host.nodes},
                "promised": _promised(view.occupancy.nodes.get(node.number, NodeOccupancy())),
                "hugepages": [{"size": pool.size, "total": pool.total, "free": pool.free} for pool in node.hugepages],
            }
            for node in host.nodes
        ],
        "cpus": [
            {
                "number": cpu.number,
                "node": cpu.node,
                "package": cpu.package,
                "die": cpu.die,
                "core": cpu.core,
                "kind": cast("Any", cpu.kind),
                "online": cpu.online,
                "isolated": cpu.isolated,
                "allowed": cpu.allowed,
                "owner": view.occupancy.owners.get(cpu.number, ""),
                "pinned": [
                    {"instance": pinned.instance, "vcpu": pinned.vcpu} for pinned in view.pinned.get(cpu.number, ())
                ],
            }
            for cpu in host.cpus
        ],
        "caches": [
            {"level": cache.level, "type": cast("Any", cache.type), "size": cache.size, "cpus": sorted(cache.cpus)}
            for cache in host.caches
        ],
    }


def _promised(given: NodeOccupancy) -> hostwire.PromisedWire:
    return {"own_cpus": given.own, "vcpus": given.vcpus, "memory": given.memory}
