"""The entries of a unit's arrays of tables, by their names: ``disk.data``, ``nic.lan``.

Decides: how an entry is named.
Must not: know what an entry is for.
"""

from __future__ import annotations

from typing import Any

from attrs import evolve

from qsup.unit.model import Unit, sections_of


def without_entry(unit: Unit, entry: str) -> Unit:
    """A unit without one entry of an array of tables, such as ``disk.data``; as it is when it has none of that name."""
    section, _, name = entry.partition(".")
    attribute = sections_of(Unit)[section][0].name
    changes: dict[str, Any] = {attribute: tuple(each for each in getattr(unit, attribute) if each.id != name)}
    return evolve(unit, **changes)


def entry_of(unit: Unit, entry: str) -> Any:
    """The entry itself, ``None`` when the unit has none of that name."""
    section, _, name = entry.partition(".")
    known = sections_of(Unit).get(section)
    if known is None or not known[2].many:
        return None
    return next((each for each in getattr(unit, known[0].name) if each.id == name), None)
