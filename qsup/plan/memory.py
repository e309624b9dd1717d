"""What holds a guest's memory: at the start, in its NUMA nodes, and what comes later.

Decides: the objects that hold it, on which nodes of the host each is, and in which node the guest sees it.
Must not: choose nodes of the host (`qsup.plan.placement`), or say whether there is room (`qsup.plan.hostmemory`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from attrs import evolve, frozen

from qsup.plan.board import Board
from qsup.plan.part import Backend, Part
from qsup.plan.spec import GuestNodePlan, HostFacts, PlanSummary
from qsup.unit.effective import effective_resize, huge_page, machine_memory, shares_memory, takes_memory_at_once
from qsup.unit.guestnodes import growth_index, host_nodes, node_sizes
from qsup.unit.model import Unit
from qsup.unit.sections.memory import MEMORY_BLOCK

_MIB = 1 << 20
#: The object that holds the guest's memory, where more is said of it than its size; of a guest with nodes, what the
#: names of those of each begin with.
RAM = "ram"
#: The id of the virtio-mem device, and of the memory behind it.
GROWTH = "memory"


@frozen(kw_only=True)
class _Where:
    """Where the host keeps some of it: ``nodes`` by ``policy``, none for anywhere."""

    nodes: tuple[int, ...] = ()
    policy: str = "bind"


def guest_nodes(unit: Unit, chosen: Sequence[int] = (), homes: Sequence[int] = ()) -> tuple[GuestNodePlan, ...]:
    """The nodes that a guest is started with; ``chosen``, ``homes``: as `host_nodes` takes them."""
    return tuple(
        GuestNodePlan(id=node.id, size=size, vcpus=node.vcpus, nodes=nodes)
        for node, size, nodes in zip(unit.numa, node_sizes(unit), host_nodes(unit, chosen, homes), strict=True)
    )


def machine_settings(unit: Unit) -> dict[str, str]:
    """What the machine is told of its memory."""
    memory = unit.memory
    settings = {} if memory.merge is None else {"mem-merge": "on" if memory.merge else "off"}
    return settings | ({"memory-backend": RAM} if has_store(unit) else {})


def host_warnings(unit: Unit, host: HostFacts) -> tuple[str, ...]:
    """What a unit asks for and the host does not do."""
    found, memory = [], unit.memory
    if memory.merge and not host.merges_pages:
        found.append("[memory] merge: this host merges no pages, as its ksmd does not run (/sys/kernel/mm/ksm/run)")
    file = "shmem_enabled" if shares_memory(unit) else "enabled"
    if memory.transparent_hugepages and host.hugepages.get(file) in ("never", "deny"):
        words = f"/sys/kernel/mm/transparent_hugepage/{file} is {host.hugepages[file]}"
        found.append(f"[memory] transparent-hugepages: this host gives none, as {words}")
    return tuple(found)


def has_store(unit: Unit) -> bool:
    """Whether one object of its own (`RAM`) holds the memory at the start."""
    return not unit.numa and (shares_memory(unit) or unit.memory.prealloc or bool(unit.memory.nodes))


def memory_part(
    unit: Unit,
    nodes: Sequence[int] = (),
    guest: Sequence[GuestNodePlan] = (),
    cpus: Sequence[Sequence[int]] = (),
) -> Part:
    """The memory at the start, and the room for more.

    Args:
        nodes: of the host, that it is to be on.
        guest: the nodes of a guest that has any.
        cpus: of the host, from which the memory of each of these is to be taken; none: from all that QEMU begins on.
    """
    memory, start = unit.memory, machine_memory(unit)
    sizes = {"size": start} | ({"maxmem": memory.max} if memory.max > start else {})
    words = [f"{name}={size // _MIB}M" if size % _MIB == 0 else f"{name}={size}B" for name, size in sizes.items()]
    if "maxmem" in sizes and memory.slots:
        words.insert(1, f"slots={memory.slots}")
    locking = ("-overcommit", "mem-lock=on") if memory.lock else ()
    backends = [_store(RAM, start, unit, _Where(nodes=tuple(nodes), policy=memory.policy))] if has_store(unit) else []
    for index, node in enumerate(guest):
        threads = len([vcpu for vcpu in node.vcpus if vcpu < unit.cpu.vcpus])
        store = _store(f"{RAM}-{index}", node.size, unit, _where(unit, index, node), threads=threads)
        if index < len(cpus) and cpus[index] and store.properties.get("prealloc"):
            # made before the sandbox, which forbids its threads to choose their CPUs themselves (vl.c)
            context = {"qom-type": "thread-context", "id": f"prealloc-{index}", "cpu-affinity": list(cpus[index])}
            backends.append(Backend(kind="object", properties=context))
            store = evolve(store, properties={**store.properties, "prealloc-context": context["id"]})
        backends.append(store)
    numa = [argument for text in _numa(unit, guest) for argument in ("-numa", text)]
    return Part(subject="[memory]", arguments=("-m", ",".join(words), *locking, *numa), backends=tuple(backends))


def _numa(unit: Unit, guest: Sequence[GuestNodePlan]) -> Iterator[str]:
    """The values of ``-numa``: nodes before the distances of which they are."""
    for index, node in enumerate(guest):
        cpus = "".join(f",cpus={first}" if first == last else f",cpus={first}-{last}" for first, last in _runs(node))
        yield f"node,nodeid={index}{cpus},memdev={RAM}-{index}"
    for index, section in enumerate(unit.numa):
        for other, far in enumerate(section.distances):
            if other != index:
                yield f"dist,src={index},dst={other},val={far}"


def _runs(node: GuestNodePlan) -> Iterator[tuple[int, int]]:
    """The vCPUs of a node from first to last, without a gap."""
    for _, run in groupby(enumerate(sorted(node.vcpus)), key=lambda each: each[1] - each[0]):
        numbers = [vcpu for _, vcpu in run]
        yield numbers[0], numbers[-1]


def _where(unit: Unit, index: int, node: GuestNodePlan) -> _Where:
    return _Where(nodes=node.nodes, policy=unit.numa[index].policy or unit.memory.policy)


def _store(
    name: str, size: int, unit: Unit, where: _Where, *, shared: bool = False, grows: bool = False, threads: int = 0
) -> Backend:
    """The object that holds some of the guest's memory.

    Args:
        shared: other programs are given the guest's memory, whatever the unit says.
        grows: it is taken from the host bit by bit, by its device.
        threads: that take it, where the unit does not say; 0: as many as it has vCPUs.
    """
    memory, page = unit.memory, huge_page(unit)
    properties: dict[str, object] = {"qom-type": "memory-backend-ram", "id": name, "size": size}
    if shared or shares_memory(unit):
        properties |= {"qom-type": "memory-backend-memfd", "share": True}
    if page:
        properties |= {"hugetlb": True, "hugetlbsize": page}
    if where.nodes:
        properties |= {"host-nodes": list(where.nodes), "policy": where.policy}
    if grows:
        # not reserved: a guest that never grows costs no room for what it may become
        properties |= {"reserve": False}
    elif memory.prealloc or page:
        # QEMU has no more threads for it than there are CPUs, and 16 at most (get_memset_num_threads)
        properties |= {"prealloc": True, "prealloc-threads": memory.prealloc_threads or threads or unit.cpu.vcpus}
    return Backend(kind="object", properties=properties)


def _growth_place(unit: Unit, nodes: Sequence[int], guest: Sequence[GuestNodePlan]) -> tuple[_Where, dict[str, object]]:
    """Where the host keeps what comes, and what its device is told of the guest's node."""
    if not guest:
        return _Where(nodes=tuple(nodes), policy=unit.memory.policy), {}
    index = growth_index(unit)
    return _where(unit, index, guest[index]), {"node": index}


def growth_nodes(unit: Unit, summary: PlanSummary) -> tuple[int, ...]:
    """The nodes of the host that what comes is to be on, and on no others."""
    where, _ = _growth_place(unit, summary.memory_nodes, summary.guest_nodes)
    return where.nodes if where.policy == "bind" else ()


def growth_part(unit: Unit, board: Board, nodes: Sequence[int] = (), guest: Sequence[GuestNodePlan] = ()) -> Part:
    """The device by which a guest gets more memory: at the start what the machine has not of its size."""
    memory, start = unit.memory, machine_memory(unit)
    if effective_resize(unit) != "virtio-mem" or memory.max <= start:
        return Part(subject="[memory] max")
    where, in_guest = _growth_place(unit, nodes, guest)
    store = _store(GROWTH, memory.max - start, unit, where, grows=True)
    device: dict[str, object] = {
        "driver": board.virtio_device("mem"),
        "id": GROWTH,
        **board.place("memory"),
        "memdev": GROWTH,
        **in_guest,
        "block-size": MEMORY_BLOCK,
        "requested-size": memory.size - start,
    }
    if takes_memory_at_once(unit):
        device["prealloc"] = True
    return Part(subject="[memory] max", backends=(store,), devices=(device,))


def module_part(index: int, size: int, unit: Unit, summary: PlanSummary) -> Part:
    """A memory module that comes while the VM runs.

    Args:
        unit: as it runs.
        summary: of what runs.
    """
    name = f"memory-{index}"
    where, in_guest = _growth_place(unit, summary.memory_nodes, summary.guest_nodes)
    return Part(
        subject=f"memory module {index}",
        entry=f"memory.{index}",
        backends=(_store(name, size, unit, where, shared=summary.shared_memory),),
        devices=({"driver": "pc-dimm", "id": name, "memdev": name, **in_guest},),
    )
