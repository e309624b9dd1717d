"""Cycles in the order of units, blamed on the lines that make them.

Decides: which units are looked at besides those that files are named after, and which line of a cycle is shown.
Must not: know what a cycle is (`qsup.unit.graph` does), or read files; who asks says how an instance is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from qsup.errors import Diagnostic
from qsup.unit.check import Finding
from qsup.unit.compose import Composed, blame
from qsup.unit.graph import MAX_PULLED, Graph, shown_cycle
from qsup.unit.kinds import is_template_name
from qsup.unit.sections.service import UnitSection


def cycle_diagnostics(
    composed: Mapping[str, Composed], read: Callable[[str], Composed | None]
) -> tuple[Diagnostic, ...]:
    """One error for each knot, at the key of the first VM of the cycle that orders it behind the second.

    Args:
        composed: units by name; templates and those with errors are passed over.
        read: an instance that no file is named after, by its name; ``None`` when there is none.
    """
    found = {name: each for name, each in composed.items() if each.unit and not is_template_name(name)}
    units = {name: each.unit.unit for name, each in found.items() if each.unit}
    seen = set(composed)
    queue = deque(units.values())
    while queue:
        for name in _named(queue.popleft()):
            if name in seen or "@" not in name or len(units) > len(composed) + MAX_PULLED:
                continue
            seen.add(name)
            instance = read(name)
            if instance is not None and instance.unit is not None:
                found[name], units[name] = instance, instance.unit.unit
                queue.append(instance.unit.unit)
    return tuple(_blame(cycle, found, units) for cycle in Graph(units).cycles())


def _named(unit: UnitSection) -> tuple[str, ...]:
    return (*unit.after, *unit.before, *unit.requires, *unit.wants)


def _blame(cycle: tuple[str, ...], composed: Mapping[str, Composed], units: Mapping[str, UnitSection]) -> Diagnostic:
    first, second = cycle[0], cycle[1]
    here = second in units[first].after
    said = composed[first if here else second]
    message = f"there is a cycle in the order: {shown_cycle(cycle)}; each waits for the next"
    return blame(said.merged, Finding(message, [("unit", "after" if here else "before")]))
