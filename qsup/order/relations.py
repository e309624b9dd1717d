"""The relations of all VMs, for people who ask who needs whom.

Decides: which VMs are shown besides those that are known: what units name, though no file may be named after it.
Must not: wait for a VM, or make one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from qsup.errors import QsupError
from qsup.instance.driver import Driver
from qsup.instance.state import State
from qsup.order.view import Relation, Relations
from qsup.unit.graph import MAX_PULLED, Graph
from qsup.unit.load import LoadedUnit


async def relations(drivers: Mapping[str, Driver], load: Callable[[str], Awaitable[LoadedUnit]]) -> Relations:
    """The relations as units say them now.

    Args:
        load: a unit by its name, for instances of templates that nobody has started yet.
    """
    found = {
        name: Relation(name=name, state=driver.state, unit=driver.loaded.unit.unit) for name, driver in drivers.items()
    }
    bound = len(found) + MAX_PULLED
    queue = deque(found.values())
    while queue:
        unit = queue.popleft().unit
        for name in (*unit.requires, *unit.wants, *unit.after, *unit.before, *unit.conflicts):
            if name not in found and len(found) < bound:
                found[name] = await _unknown(name, load)
                queue.append(found[name])
    graph = Graph({name: each.unit for name, each in found.items()})
    return Relations(vms=tuple(found[name] for name in sorted(found)), cycles=graph.cycles())


async def _unknown(name: str, load: Callable[[str], Awaitable[LoadedUnit]]) -> Relation:
    try:
        loaded = await load(name)
    except QsupError:
        return Relation(name=name, state=None)  # what is wrong with it, health says
    return Relation(name=name, state=State.DEAD, unit=loaded.unit.unit)
