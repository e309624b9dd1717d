"""The NUMA nodes of a guest: what follows for each from a whole unit, and what they cannot be.

Decides: how much memory each has, where the host keeps that, and which nodes contradict each other.
Must not: look at a host, or choose nodes of it.

Source: hw/core/numa.c in QEMU's source, which ends QEMU for most of what is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from qsup.unit.effective import effective_max_vcpus, effective_resize, huge_page, machine_family, machine_memory
from qsup.unit.families import FAMILIES
from qsup.unit.kinds import AUTO
from qsup.unit.model import Unit
from qsup.unit.quantity import did_you_mean, format_cpu_set, format_size
from qsup.unit.sections.memory import LOCAL_DISTANCE, MAX_GUEST_NODES, MEMORY_BLOCK
from qsup.unit.tree import Key

_Found = tuple[str, Sequence[Key]]


def node_sizes(unit: Unit) -> tuple[int, ...]:
    """Bytes that the machine is started with in each node; those that leave it open share what is left.

    Each gets whole pages, the last of them what is left over then.
    """
    unsized = [node for node in unit.numa if not node.size]
    left = max(machine_memory(unit) - sum(node.size for node in unit.numa), 0)
    share = left // max(len(unsized), 1) // _block(unit) * _block(unit)
    rest = left - share * (len(unsized) - 1)
    return tuple(node.size or (rest if node is unsized[-1] else share) for node in unit.numa)


def host_nodes(unit: Unit, chosen: Sequence[int] = (), homes: Sequence[int] = ()) -> tuple[tuple[int, ...], ...]:
    """The nodes of the host that the memory of each node is to be on; none: nothing is said of it.

    Args:
        chosen: for the VM as a whole.
        homes: for each node of its guest.
    """
    found: list[tuple[int, ...]] = []
    for index, node in enumerate(unit.numa):
        said = node.nodes or unit.memory.nodes
        if not isinstance(said, str):
            found.append(said)
        else:
            found.append((homes[index],) if index < len(homes) else tuple(chosen))
    return tuple(found)


def is_auto(unit: Unit, index: int) -> bool:
    """Whether the node of the host for one node's memory is to be chosen."""
    return (unit.numa[index].nodes or unit.memory.nodes) == AUTO


def growth_index(unit: Unit) -> int:
    """The number of the node to which memory comes while the VM runs."""
    return next((index for index, node in enumerate(unit.numa) if node.id == unit.memory.growth_node), 0)


def effective_sockets(unit: Unit) -> int:
    """How many sockets the vCPUs are arranged in; 0 leaves it to QEMU, which takes one.

    A guest wants the nodes' borders to be those of sockets: Linux warns of a cache that vCPUs of two nodes share
    (topology_sane() in arch/x86/kernel/smpboot.c).
    """
    topology, sets = unit.cpu.topology, [node.vcpus for node in unit.numa if node.vcpus]
    in_order = [vcpu for vcpus in sets for vcpu in vcpus] == list(range(effective_max_vcpus(unit)))
    if topology == type(topology)() and in_order and len({len(vcpus) for vcpus in sets}) == 1:
        return len(sets)
    return topology.sockets


def _block(unit: Unit) -> int:
    return max(MEMORY_BLOCK, huge_page(unit))


def contradictions(unit: Unit) -> Iterator[_Found]:
    """What is wrong with them: a message, and the keys that it rests on."""
    yield from _growth(unit)
    if not unit.numa:
        return
    family = machine_family(unit.machine.type)
    first = ("numa", unit.numa[0].id, "id")
    if family and not FAMILIES[family].has_nodes:
        yield f"a {family} machine tells its guest of no nodes", [first, ("machine", "type")]
    if len(unit.numa) > MAX_GUEST_NODES:
        beyond = unit.numa[MAX_GUEST_NODES]
        yield f"QEMU has at most {MAX_GUEST_NODES} nodes, not {len(unit.numa)}", [("numa", beyond.id, "id")]
    yield from _vcpus(unit)
    yield from _sizes(unit)
    yield from _distances(unit)
    for node in unit.numa:
        if node.nodes == AUTO and unit.cpu.pin != AUTO:
            words = 'nodes is "auto", and no CPUs are chosen: say [cpu] pin = "auto", or name the nodes'
            yield words, [("numa", node.id, "nodes"), ("cpu", "pin")]


def _growth(unit: Unit) -> Iterator[_Found]:
    wanted, known = unit.memory.growth_node, [node.id for node in unit.numa]
    if wanted and wanted not in known:
        yield f"there is no numa {wanted!r}{did_you_mean(wanted, known)}", [("memory", "growth-node")]
    if wanted and effective_resize(unit) not in ("virtio-mem", "dimm"):
        keys = [("memory", "growth-node"), ("memory", "max")]
        yield "growth-node is for memory that comes by virtio-mem or dimm, and none does: say max", keys


def _vcpus(unit: Unit) -> Iterator[_Found]:
    most, owners = effective_max_vcpus(unit), dict[int, str]()
    counts = [("cpu", "max-vcpus"), ("cpu", "vcpus")]
    for node in unit.numa:
        key = ("numa", node.id, "vcpus")
        if beyond := [vcpu for vcpu in node.vcpus if vcpu >= most]:
            yield f"there is no vCPU {beyond[0]}: it has {most} (max-vcpus, else vcpus), counted from 0", [key, *counts]
        if twice := [vcpu for vcpu in node.vcpus if vcpu in owners]:
            yield f"vCPU {twice[0]} is in numa {owners[twice[0]]!r} already", [key, ("numa", owners[twice[0]], "vcpus")]
        for vcpu in node.vcpus:
            owners.setdefault(vcpu, node.id)
    if nowhere := [vcpu for vcpu in range(most) if vcpu not in owners]:
        words = f"vCPU{'' if len(nowhere) == 1 else 's'} {format_cpu_set(nowhere)}"
        keys = [*(("numa", node.id, name) for node in unit.numa for name in ("vcpus", "id")), *counts]
        yield f"{words} {'is' if len(nowhere) == 1 else 'are'} in no node: each vCPU is in one [[numa]]", keys
    threads = max(unit.cpu.topology.threads, 1)
    split = [vcpu for vcpu in owners if vcpu < most and owners.get(vcpu - vcpu % threads) != owners[vcpu]]
    if split and not nowhere:
        whose = ("numa", owners[split[0]], "vcpus")
        words = f"vCPU {split[0]} is of one core with {split[0] - split[0] % threads}, and in another node"
        yield words, [whose, ("cpu", "topology", "threads")]


def _sizes(unit: Unit) -> Iterator[_Found]:
    total, block = machine_memory(unit), _block(unit)
    given = sum(node.size for node in unit.numa)
    for node in unit.numa:
        if node.size % block:
            words = f"size ({format_size(node.size)}) is not a multiple of {format_size(block)}"
            yield words, [("numa", node.id, "size"), ("memory", "hugepages")]
    keys = [
        *(("numa", node.id, "size") for node in unit.numa),
        ("memory", "size"),
        ("memory", "max"),
        ("memory", "min"),
    ]
    unsized = [node for node in unit.numa if not node.size]
    what = f"the {format_size(total)} that the machine is started with"
    if not unsized and given != total:
        yield f"the sizes of all nodes add up to {format_size(given)}, and not to {what}", keys
    elif unsized and total - given < block * len(unsized):
        left, each = format_size(max(total - given, 0)), format_size(block)
        who = f"{len(unsized)} of the nodes without a size, each of {each} at least"
        yield f"of {what} {left} are left for {who}", keys


def _distances(unit: Unit) -> Iterator[_Found]:
    count, rows = len(unit.numa), [node.distances for node in unit.numa]
    for index, node in enumerate(unit.numa):
        row, key = node.distances, ("numa", node.id, "distances")
        if row and len(row) != count:
            yield f"has {len(row)} of {count} distances: give one for each node, its own among them", [key]
            return
        if row and row[index] != LOCAL_DISTANCE:
            yield f"its distance to itself, number {index + 1}, is {LOCAL_DISTANCE}, not {row[index]}", [key]
        near = [other for other, far in enumerate(row) if other != index and far <= LOCAL_DISTANCE]
        if near:
            yield f"node {unit.numa[near[0]].id!r} is another one, and so farther than {LOCAL_DISTANCE}", [key]
    if not any(rows):
        return
    keys = [("numa", node.id, name) for node in unit.numa for name in ("distances", "id")]
    pairs = list(combinations(range(count), 2))
    for one, other in pairs:
        if not rows[one] and not rows[other]:
            names = f"{unit.numa[one].id!r} and {unit.numa[other].id!r}"
            yield f"neither of the nodes {names} says how far the other is, and some do", keys
            return
    lopsided = any(rows[one] and rows[other] and rows[one][other] != rows[other][one] for one, other in pairs)
    if lopsided and not all(rows):
        yield "where a way there is not as far as the way back, all nodes say their distances", keys
