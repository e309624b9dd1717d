"""The entries of a unit's arrays of tables, by their names: ``disk.data``, ``nic.lan``.

Decides: how an entry is named, and which change names one that is not there.
Must not: know what an entry is for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from attrs import evolve

from qsup.errors import NoSuchDevice
from qsup.unit.keys import sections_of
from qsup.unit.model import Unit
from qsup.unit.quantity import alternatives, did_you_mean, shown


def entries_of(unit: Unit) -> Iterator[tuple[str, Any]]:
    """Every entry, with its section, such as ``disk``."""
    for name, (attribute, _, section) in sections_of(Unit).items():
        if section.many:
            yield from ((name, entry) for entry in getattr(unit, attribute.name))


def without_entry(unit: Unit, entry: str) -> Unit:
    """A unit without one entry of an array of tables, such as ``disk.data``; as it is when it has none of that name."""
    section, _, name = entry.partition(".")
    attribute = sections_of(Unit)[section][0].name
    changes: dict[str, Any] = {attribute: tuple(each for each in getattr(unit, attribute) if each.id != name)}
    return evolve(unit, **changes)


#: Sections whose entries come to a VM that runs, and leave it.
MOVABLE = ("disk", "nic", "device")
#: The keys one of which says what a new entry is.
_FOUNDING = {
    "disk": ("path", "type"),
    "iothread": ("present",),
    "numa": ("present",),
    "nic": ("type",),
    "device": ("type",),
}


def check_known(changes: Mapping[str, Any], unit: Unit, owner: str, new: Collection[str] = ()) -> None:
    """See that entries which are to be changed are there, or said to be new by what they are.

    Args:
        changes: as for `qsup.unit.compose.amend`.
        unit: that is to be changed.
        owner: whose it is, for the message.
        new: entries of which the changes say all there is.

    Raises:
        NoSuchDevice: one is not there, so its name may be wrong.
    """
    for section, founding in _FOUNDING.items():
        known = [each.id for each in getattr(unit, sections_of(Unit)[section][0].name)]
        entries = changes.get(section)
        for entry in entries if isinstance(entries, list | tuple) else ():
            id_ = entry.get("id") if isinstance(entry, Mapping) else None
            # what is not of its kind is for whoever reads the change
            if (
                not isinstance(id_, str)
                or id_ in known
                or f"{section}.{id_}" in new
                or entry.keys() & {*founding, "present"}
            ):
                continue
            if entry.keys() - {"id"}:
                words = f"{owner} has no {section} {shown(id_)}{did_you_mean(id_, known)}"
                there = f"it has {alternatives(known, 'and')}" if known else f"it has no {section} at all"
                needs = f"its {alternatives(founding)}" if section in MOVABLE else "present = true"
                raise NoSuchDevice(words, hint=f"{there}; a new one needs {needs}")


def entry_of(unit: Unit, entry: str) -> Any:
    """The entry itself, ``None`` when the unit has none of that name."""
    section, _, name = entry.partition(".")
    known = sections_of(Unit).get(section)
    if known is None or not known[2].many:
        return None
    return next((each for each in getattr(unit, known[0].name) if each.id == name), None)
