"""Whether a host has the memory that a VM is to start with, where its unit wants it. Pure.

Decides: what is refused before QEMU is there to fail for it, and the arithmetic that is told.
Must not: read the host (`qsup.host.topology`), or choose nodes (`qsup.plan.placement`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from qsup.errors import PlacementError
from qsup.plan.explained import nodes
from qsup.plan.spec import GuestNodePlan
from qsup.plan.topology import Topology
from qsup.unit.effective import huge_page, machine_memory, takes_memory_at_once
from qsup.unit.guestnodes import growth_index
from qsup.unit.model import Unit
from qsup.unit.quantity import alternatives, format_size

_MIB = 1 << 20


@frozen(kw_only=True)
class Demand:
    """Memory that a VM wants of its host.

    Args:
        name: the VM's.
        size: bytes.
        page: bytes of the huge pages that it is to be in, 0 for none.
        at_once: all of it is taken now.
        nodes: it may be of these alone; none: of any.
    """

    name: str
    size: int
    page: int = 0
    at_once: bool = False
    nodes: tuple[int, ...] = ()

    def meets(self, other: Demand) -> bool:
        """Whether both may take the same memory."""
        apart = self.nodes and other.nodes and set(self.nodes).isdisjoint(other.nodes)
        return self.at_once and other.at_once and self.page == other.page and not apart


def demand(name: str, unit: Unit, on: tuple[int, ...], size: int = 0) -> Demand:
    """What a unit wants.

    Args:
        on: the nodes that its memory is to be on, as far as anything was said of them.
        size: bytes, where it is not all that it starts with.
    """
    return Demand(
        name=name,
        size=size or max(machine_memory(unit), unit.memory.size),
        page=huge_page(unit),
        at_once=takes_memory_at_once(unit),
        nodes=on if on and unit.memory.policy == "bind" else unit.limits.cpuset_mems,
    )


def demands(name: str, unit: Unit, on: tuple[int, ...], guest: Sequence[GuestNodePlan]) -> tuple[Demand, ...]:
    """What a unit wants in all: of a guest with nodes, what each of them does.

    Args:
        on: as `demand` takes it, of a guest without.
        guest: its nodes; to one of them all comes that it is not started with.
    """
    if not guest:
        return (demand(name, unit, on),)
    later = max(machine_memory(unit), unit.memory.size) - sum(node.size for node in guest)
    growing = growth_index(unit)
    return tuple(
        Demand(
            name=name,
            size=node.size + (max(later, 0) if index == growing else 0),
            page=huge_page(unit),
            at_once=takes_memory_at_once(unit),
            nodes=node.nodes
            if node.nodes and (unit.numa[index].policy or unit.memory.policy) == "bind"
            else unit.limits.cpuset_mems,
        )
        for index, node in enumerate(guest)
    )


def check_nodes(name: str, on: Iterable[int], topology: Topology, key: str = "") -> None:
    """See that nodes which a unit names, by `[memory] nodes` or ``key``, are there with memory; `PlacementError`."""
    having = [node.number for node in topology.nodes if node.memory]
    for number in on:
        # a host that does not say what memory it has may have some everywhere
        if having and number not in having:
            known = any(node.number == number for node in topology.nodes)
            trouble = "has no memory" if known else "is not there"
            where = f"node {number} by {key}" if key else f"node {number}"
            raise PlacementError(
                f"its memory is to be on {where}, which {trouble}: this host has memory on {nodes(having)}",
                instance=name,
                hint=f"name other {key or '[memory] nodes'}: `qsupctl topology` shows them",
            )


def check_room(wanted: Demand, topology: Topology, others: Sequence[Demand] = ()) -> None:
    """See that there is so much memory now, beside what others are given of it; `PlacementError`."""
    sizes = sorted({pool.size for node in topology.nodes for pool in node.hugepages})
    if wanted.page and wanted.page not in sizes:
        there = f"has those of {alternatives(map(format_size, sizes), 'and')}" if sizes else "has none at all"
        raise PlacementError(
            f"wants huge pages of {format_size(wanted.page)}, and this host {there}",
            instance=wanted.name,
            hint="say another [memory] hugepages, or none; those of 1G may have to be asked for when the kernel starts",
        )
    if why := shortage(wanted, topology, others):
        where = "/sys/kernel/mm/hugepages" if len(topology.nodes) == 1 else "/sys/devices/system/node/node*/hugepages"
        more = f"reserve more (nr_hugepages below {where})" if wanted.page else "name other nodes"
        raise PlacementError(why, instance=wanted.name, hint=f"{more}, give it less memory, or stop another VM")


def shortage(wanted: Demand, topology: Topology, others: Iterable[Demand] = ()) -> str:
    """Why there may be too little memory, ``""`` if there is enough.

    Args:
        others: what may be gone already, whatever the host says.
    """
    taken = sum(other.size for other in others if wanted.meets(other))
    where = f" on {nodes(wanted.nodes)}" if wanted.nodes else ""
    if wanted.page:
        pages, free = -(-wanted.size // wanted.page), topology.free_pages(wanted.page, wanted.nodes)
        free -= taken // wanted.page
        if pages <= free:
            return ""
        wish = f"wants {pages} huge pages of {format_size(wanted.page)}{where} for {format_size(wanted.size)} of memory"
        return f"{wish}, and {free} are free: {pages - free} are missing"
    if not any(node.memory for node in topology.nodes):
        return ""  # it does not say what it has
    most = sum(node.memory for node in topology.nodes if node.number in wanted.nodes)
    if wanted.nodes and wanted.size > most:
        return f"wants {in_mib(wanted.size)} of memory{where}, and there are {in_mib(most)} in all"
    free = topology.free_memory(wanted.nodes) - taken
    if not wanted.at_once or wanted.size <= free:
        return ""
    missing = in_mib(wanted.size - free)
    return f"wants {in_mib(wanted.size)} of memory{where} at once, and {in_mib(free)} can be had: {missing} are missing"


def in_mib(amount: int) -> str:
    """Bytes as a message tells them: in whole MiB where there are more."""
    return format_size(amount if amount < _MIB else amount // _MIB * _MIB)
