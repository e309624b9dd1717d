"""Memory of the host that VMs take as they start.

Decides: which VMs may be about to take memory that the host still calls free, and who waits until that is known.
Must not: say how much there is (`qsup.plan.hostmemory`), or promise anything to a VM that has started: then it has it.

A VM that starts holds what it wants until QEMU has it. Another one that would have too little only if that is still to
be taken waits: two that start at once do not both count on the last page, and none is refused for pages counted twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from qsup.plan.hostmemory import Demand, check_nodes, check_room, demand, demands, shortage
from qsup.plan.memory import guest_nodes
from qsup.plan.topology import Topology
from qsup.unit.effective import takes_memory_at_once
from qsup.unit.model import Unit


class HostMemory:
    """What the starts that are under way take.

    Args:
        look: the host as it is now; `HostError`.
    """

    def __init__(self, look: Callable[[], Awaitable[Topology]]) -> None:
        self._look = look
        self._starting: dict[str, tuple[Demand, ...]] = {}
        self._change = trio.Event()

    async def take(
        self, name: str, unit: Unit, chosen: tuple[int, ...], homes: tuple[int, ...] = ()
    ) -> tuple[int, ...]:
        """See that the host has what a VM wants, and hold it until `release`.

        Args:
            chosen: the nodes that were chosen for it.
            homes: those of them for each node of its guest.

        Returns:
            Those of them that have memory.

        Raises:
            PlacementError: the host has not what it wants.
            HostError: the host could not be looked at.
        """
        mems = unit.limits.cpuset_mems
        if not (takes_memory_at_once(unit) or unit.memory.nodes or mems or any(node.nodes for node in unit.numa)):
            return ()
        while True:
            before = dict(self._starting)
            topology = await self._look()
            allowed = set(chosen).intersection(mems or chosen)
            having = tuple(node.number for node in topology.nodes if node.memory and node.number in allowed)
            on = having if isinstance(unit.memory.nodes, str) else unit.memory.nodes
            guest = guest_nodes(unit, having, homes)
            check_nodes(name, sorted({*on, *(node for each in guest for node in each.nodes)}), topology)
            wanted = demands(name, unit, on, guest)
            for index, each in enumerate(wanted):
                check_room(each, topology, wanted[:index])
            # who has taken it while the host was looked at may be in the answer, or not
            others = {**before, **self._starting}
            others.pop(name, None)
            if not any(
                shortage(each, topology, [*wanted[:index], *(other for theirs in others.values() for other in theirs)])
                for index, each in enumerate(wanted)
            ):
                self._starting[name] = wanted
                return having
            if before == self._starting:
                await self._change.wait()

    def release(self, name: str) -> None:
        """A VM has taken what it wanted, or takes nothing; nothing happens when that is known."""
        if self._starting.pop(name, None) is not None:
            self._change.set()
            self._change = trio.Event()

    async def check_named(self, name: str, unit: Unit) -> None:
        """See that the nodes that a unit names are there, and have memory.

        Raises:
            PlacementError: one is not, or has none.
            HostError: the host could not be looked at.
        """
        on = () if isinstance(unit.memory.nodes, str) else unit.memory.nodes
        if named := sorted({*on, *(node for each in guest_nodes(unit) for node in each.nodes)}):
            check_nodes(name, named, await self._look())

    async def check_more(self, name: str, unit: Unit, on: tuple[int, ...], size: int) -> None:
        """See that the host has so many bytes more for a VM that runs, where it takes them at once.

        Args:
            unit: as it runs.
            on: the nodes that its memory is on.

        Raises:
            PlacementError: it has not.
            HostError: the host could not be looked at.
        """
        if takes_memory_at_once(unit):
            check_room(demand(name, unit, on, size), await self._look())
