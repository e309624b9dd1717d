"""What a unit asks of the placement of its VM.

Decides: what its keys mean for that.
Must not: know who has which place (`qsup.instance.placements`), or choose one (`qsup.plan.placement`).
"""

from __future__ import annotations

from collections import Counter

from qsup.plan.residents import GuestNode, Request, Resident, Sets
from qsup.plan.topology import Topology
from qsup.unit.effective import effective_max_vcpus, huge_page, machine_memory
from qsup.unit.guestnodes import growth_index, host_nodes, is_auto, node_sizes
from qsup.unit.kinds import AUTO
from qsup.unit.model import Unit


def says_something(unit: Unit) -> bool:
    """Whether a unit has a word about the CPUs of any thread."""
    cpu = unit.cpu
    return bool(cpu.pin or cpu.emulator_pin or cpu.helper_pin or any(iothread.pin for iothread in unit.iothreads))


def depends_on_host(unit: Unit) -> bool:
    """Whether a unit says anything that a host may not have: CPUs of any thread, or a fence."""
    return says_something(unit) or bool(unit.limits.cpuset_cpus or unit.limits.cpuset_mems)


def request(name: str, unit: Unit, topology: Topology) -> Request:
    """What a unit asks of a placement."""
    exclusive, auto = unit.cpu.exclusive, unit.memory.nodes == AUTO
    guest, wanted = _guest_nodes(unit), max(machine_memory(unit), unit.memory.size)
    return Request(
        name=name,
        # those that may come have a node, too
        vcpus=effective_max_vcpus(unit) if exclusive or guest else unit.cpu.vcpus,
        exclusive=exclusive,
        threads=unit.cpu.topology.threads,
        memory=sum(node.memory for node in guest) if guest else wanted if auto else 0,
        page=huge_page(unit),
        within=within(unit, topology),
        mems=unit.limits.cpuset_mems,
        guest_nodes=guest,
    )


def bound_memory(unit: Unit) -> Resident | None:
    """What a unit binds to nodes that it names, an even part to each of several: a place of memory alone."""
    memory, guest = unit.memory, zip(unit.numa, host_nodes(unit), node_sizes(unit), strict=True)
    places: list[tuple[str, str | tuple[int, ...], int]]
    places = [(node.policy or memory.policy, on, size) for node, on, size in guest]
    found: Counter[int] = Counter()
    for policy, on, size in places or [(memory.policy, memory.nodes, max(machine_memory(unit), memory.size))]:
        if policy == "bind" and not isinstance(on, str):
            for node in on:
                found[node] += size // len(on)
    nobody = Sets(vcpus=(), emulator=frozenset())
    return Resident(name="", sets=nobody, named=True, memory=found, page=huge_page(unit)) if found else None


def within(unit: Unit, topology: Topology) -> frozenset[int] | None:
    """The CPUs that those for a VM are chosen from: near the memory that its unit keeps it to, if there are any."""
    fence = frozenset(unit.limits.cpuset_cpus)
    near = frozenset(cpu.number for node in unit.limits.cpuset_mems for cpu in topology.cpus_on.get(node, ()))
    near &= topology.placeable & (fence or topology.placeable)
    return near or fence or None


def _guest_nodes(unit: Unit) -> tuple[GuestNode, ...]:
    later = max(unit.memory.size - machine_memory(unit), 0)
    growing = growth_index(unit)
    return tuple(
        GuestNode(
            vcpus=node.vcpus,
            memory=size + (later if index == growing else 0) if is_auto(unit, index) else 0,
            within=unit.limits.cpuset_mems if is_auto(unit, index) else on,
        )
        for index, (node, size, on) in enumerate(zip(unit.numa, node_sizes(unit), host_nodes(unit), strict=True))
    )
