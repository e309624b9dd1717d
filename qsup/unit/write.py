"""Units and changes of units -> TOML and JSON values.

Decides: how a unit is spelled when it is written: every key's own kind says how, and strings are escaped so that
reading expands nothing in them.
Must not: write files, or keep the comments and the order of a file that a person wrote: changes go into drop-ins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qsup.unit.keys import keys_of, sections_of
from qsup.unit.model import Unit
from qsup.unit.quantity import alternatives
from qsup.unit.specifier import escape
from qsup.unit.tree import Key


def values_of(unit: Unit) -> dict[str, Any]:
    """Every section and key with its value as TOML and JSON spell it: ``{"memory": {"size": "2G", ...}, ...}``.

    What a unit leaves to another key (``bus = ""``) stays so. `qsup.unit.parse.unit_from_values` is the way back.
    """
    return section_values(Unit, unit)


def section_values(cls: type[Any], section: Any) -> dict[str, Any]:
    """The same of one section, or of one entry of an array of tables."""
    values = {name: facts.kind.format(getattr(section, a.name)) for name, (a, facts) in keys_of(cls).items()}
    for name, (attribute, nested, facts) in sections_of(cls).items():
        inner = getattr(section, attribute.name)
        values[name] = (
            [section_values(nested, entry) for entry in inner] if facts.many else section_values(nested, inner)
        )
    return values


def difference(rest: Unit, wanted: Unit) -> dict[str, Any]:
    """What a drop-in must say for a unit to become another one: no more, and nothing where both are the same.

    Args:
        rest: without that drop-in; entries that are not ``present`` in it may be among its own.
    """
    return _difference(Unit, rest, wanted)


def _difference(cls: type[Any], rest: Any, wanted: Any) -> dict[str, Any]:
    """Of one section; what no file says of a new entry has its default. ``rest``: ``None`` for a new one."""
    values: dict[str, Any] = {}
    for name, (attribute, facts) in keys_of(cls).items():
        value = getattr(wanted, attribute.name)
        if value != (attribute.default if rest is None else getattr(rest, attribute.name)):
            values[name] = facts.kind.format(value)
    for name, (attribute, nested, section) in sections_of(cls).items():
        after = getattr(wanted, attribute.name)
        before = None if rest is None else getattr(rest, attribute.name)
        inner: Any
        if not section.many:
            inner = _difference(nested, before, after) or None
        elif "id" in keys_of(nested):
            inner = _changed_entries(nested, before or (), after) or None
        else:
            inner = [section_values(nested, entry) for entry in after] if after != (before or ()) else None
        if inner is not None:
            values[name] = inner
    return values


def _changed_entries(cls: type[Any], before: Sequence[Any], after: Sequence[Any]) -> list[dict[str, Any]]:
    known = {entry.id: entry for entry in before}
    found = []
    for entry in after:
        rest = known.pop(entry.id, None)
        if rest is None or (values := _difference(cls, rest, entry)):
            found.append({"id": entry.id, **(_difference(cls, None, entry) if rest is None else values)})
    # what another file has can only be taken away in words
    found += [{"id": entry.id, "present": False} for entry in known.values() if entry.present]
    return found


def unit_text(values: Mapping[str, Any]) -> str:
    """The text of a unit file.

    Args:
        values: sections and keys, all or some, as `values_of` spells them.

    Raises:
        ValueError: a section or key that the model does not have, or a value that is not of its kind.
    """
    return "\n".join(_lines(Unit, values, ())).strip("\n") + "\n"


def dropin_text(changes: Mapping[Key, Any]) -> str:
    """The text of a drop-in that changes single keys.

    Args:
        changes: values, spelled as `values_of` does, by key: ``{("install", "autostart"): True}``, or
            ``("disk", "root", "cache")`` for the disk whose id is ``root``.

    Raises:
        ValueError: a key that the model does not have, or a value that is not of its kind.
    """
    values: dict[str, Any] = {}
    for key, value in changes.items():
        _put(Unit, values, key, value)
    return unit_text(values)


def _put(cls: type[Any], values: dict[str, Any], key: Key, value: Any) -> None:
    name, *rest = key
    sections = sections_of(cls)
    if not rest or name not in sections:
        values[".".join(key)] = value
    elif sections[name][2].many:
        id_, *inner = rest
        entries = values.setdefault(name, [])
        entry = next((entry for entry in entries if entry["id"] == id_), None)
        if entry is None:
            entries.append(entry := {"id": id_})
        if inner:
            _put(sections[name][1], entry, tuple(inner), value)
    else:
        _put(sections[name][1], values.setdefault(name, {}), tuple(rest), value)


def _lines(cls: type[Any], values: Mapping[str, Any], path: Key) -> Iterator[str]:
    keys, sections = keys_of(cls), sections_of(cls)
    if unknown := [name for name in values if name not in keys and name not in sections]:
        raise ValueError(f"{'.'.join(path) or 'a unit'} has no {alternatives(unknown)}")
    for name, (_, facts) in keys.items():
        if name in values:
            facts.kind.parse(values[name])
            yield f"{name} = {toml_value(values[name], specifiers=facts.kind.specifiers)}"
    # before any header: a key after one would belong to it
    yield from (f"{name} = []" for name in sections if values.get(name) == [])
    for name, (_, nested, section) in sections.items():
        inner = (*path, name)
        for table in values.get(name, []) if section.many else filter(None, [values.get(name)]):
            yield ""
            yield f"[[{'.'.join(inner)}]]" if section.many else f"[{'.'.join(inner)}]"
            yield from _lines(nested, table, inner)


def toml_value(value: object, *, specifiers: bool = True) -> str:
    """A TOML value on one line; tables inline.

    Args:
        specifiers: those in it would be expanded, so what looks like one is escaped.

    Raises:
        ValueError: a value that no key of a unit takes.
    """
    match value:
        case str():
            # TOML's basic strings are JSON's, but for DEL
            text = escape(value) if specifiers else value
            return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
        case bool() | int():
            return json.dumps(value)
        case list() | tuple():
            return f"[{', '.join(toml_value(each, specifiers=specifiers) for each in value)}]"
        case Mapping():
            inner = (f"{name} = {toml_value(each, specifiers=specifiers)}" for name, each in value.items())
            return f"{{ {', '.join(inner)} }}"
    raise ValueError(f"TOML has no {type(value).__name__}")
