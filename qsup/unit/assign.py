"""``vcpus=4``, ``disk.data.cache=none``: assignments as people write them -> changes of a unit.

Decides: which key a name means, be it short or whole, and how a text becomes a value of its key's kind.
Must not: know units, or judge values beyond their own key.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from qsup.errors import RequestError
from qsup.unit.keys import keys_of, sections_of
from qsup.unit.kinds import NAME, Kind
from qsup.unit.model import Unit
from qsup.unit.quantity import alternatives, did_you_mean, shown

#: Names of sections that stand for the key that is meant by them.
_ALIASES = {"memory": "memory.size"}
_LONGEST = 200
#: A name and a key of each array of tables.
_EXAMPLES = {
    "disk": "data.cache",
    "iothread": "fast.pin",
    "numa": "a.nodes",
    "nic": "dmz.link",
    "device": "timer.action",
}


def changes_of(assignments: Mapping[str, str]) -> dict[str, Any]:
    """Sections and keys as a drop-in would say them.

    Args:
        assignments: texts by the names of keys: ``cpu.vcpus`` or, where that is no other's name, ``vcpus``;
            ``disk.data.cache`` for an entry of an array of tables, which has an ``id``.

    Raises:
        RequestError: a name means nothing, or may mean several keys; a text is no value of its key.
    """
    changes: dict[str, Any] = {}
    said: dict[tuple[str, ...], str] = {}
    for name, text in assignments.items():
        path, kind = _find(name[:_LONGEST])
        if path in said:
            raise RequestError(f"{said[path]} and {name} are the same key", hint="say it once")
        said[path] = name
        try:
            _put(changes, path, _value(kind, text))
        except ValueError as error:
            raise RequestError(f"{'.'.join(path)}: {error}") from error
    return changes


def entry_of(section: str, assignments: Mapping[str, str]) -> dict[str, Any]:
    """An entry of an array of tables as a drop-in would say it.

    Args:
        assignments: texts by the names of its keys, such as ``throttle.iops``; its ``id`` is among them.

    Raises:
        RequestError: as `changes_of`.
    """
    name = assignments["id"]
    changes = changes_of({f"{section}.{name}.{key}": text for key, text in assignments.items() if key != "id"})
    entry: dict[str, Any] = changes.get(section, [{"id": name}])[0]
    return entry


def _put(changes: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    section, *rest = path
    if sections_of(Unit)[section][2].many:
        id_, *rest = rest
        entries = changes.setdefault(section, [])
        table = next((entry for entry in entries if entry["id"] == id_), None)
        if table is None:
            entries.append(table := {"id": id_})
    else:
        table = changes.setdefault(section, {})
    *tables, key = rest
    for name in tables:
        table = table.setdefault(name, {})
    table[key] = value


# names


def _keys(cls: type[Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Kind]]:
    """The keys of a section and of the sections in it that there is one of."""
    for name, (_, facts) in keys_of(cls).items():
        yield (*path, name), facts.kind
    for name, (_, nested, section) in sections_of(cls).items():
        if not section.many:
            yield from _keys(nested, (*path, name))


@functools.cache
def _single() -> dict[str, tuple[tuple[str, ...], Kind]]:
    """Every key that a unit has once, by its whole name."""
    return {".".join(path): (path, kind) for path, kind in _keys(Unit)}


def _tables(value: object) -> object:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ValueError("expected an array of tables, as JSON spells it")
    return value


#: What is in it is for whoever reads the whole entry.
_TABLES = Kind(word="array of table", parse=_tables)


@functools.cache
def _entry_keys(section: str) -> dict[str, tuple[tuple[str, ...], Kind]]:
    """The keys of an entry of an array of tables, without that of its name, by their names within it."""
    entry = sections_of(Unit)[section][1]
    found = {".".join(path): (path, kind) for path, kind in _keys(entry)}
    found |= {name: ((name,), _TABLES) for name, (_, _, inner) in sections_of(entry).items() if inner.many}
    del found["id"]
    return found


def _find(name: str) -> tuple[tuple[str, ...], Kind]:
    section, _, rest = name.partition(".")
    if name in _single():
        return _single()[name]
    if name in _ALIASES:
        return _single()[_ALIASES[name]]
    if section in sections_of(Unit) and sections_of(Unit)[section][2].many:
        return _find_of_entry(section, rest)
    # a section's name is no key's: whoever says `cpu=2` may well mean `cpu.vcpus`
    found = [] if name in sections_of(Unit) else [whole for whole in _single() if whole.endswith(f".{name}")]
    if len(found) == 1:
        return _single()[found[0]]
    if found:
        raise RequestError(f"{name} may be {alternatives(found)}", hint="say which")
    short = [whole.rpartition(".")[2] for whole in _single()]
    near = did_you_mean(name, [*_single(), *short, *_ALIASES])
    hint = "such as vcpus=4, or disk.data.cache=none for the disk whose id is data"
    raise RequestError(f"there is no key {shown(name)}{near}", hint="" if near else hint)


def _find_of_entry(section: str, rest: str) -> tuple[tuple[str, ...], Kind]:
    """A key of an entry; its id may have dots, too."""
    keys = _entry_keys(section)
    for name in sorted(keys, key=len, reverse=True):
        id_ = rest.removesuffix(f".{name}")
        if id_ != rest:
            try:
                NAME.parse(id_)
            except ValueError as error:
                raise RequestError(f"{section}: {error}") from error
            return (section, id_, *keys[name][0]), keys[name][1]
    id_, _, key = rest.rpartition(".")
    for inner in {name.rpartition(".")[0] for name in keys} - {""}:
        if id_.endswith(f".{inner}"):
            id_, key = id_.removesuffix(f".{inner}"), f"{inner}.{key}"
    if id_ and key != "id":
        near = did_you_mean(key, list(keys))
        known = dict.fromkeys(name.partition(".")[0] for name in keys)
        hint = "" if near else f"it has {alternatives(known, 'and')}"
        raise RequestError(f"{section} {shown(id_)}: there is no key {shown(key)} of a {section}{near}", hint=hint)
    form = f"{section}.ID.KEY"
    words = f"{shown(f'{section}.{rest}'.rstrip('.'))} is no {form}"
    raise RequestError(words, hint=f"such as {section}.{_EXAMPLES[section]}")


# values


def _value(kind: Kind, text: str) -> Any:
    """The text itself where its key takes that, else what it says as JSON, else what stands between its commas."""
    refusal: ValueError | None = None
    for value in _readings(text):
        try:
            kind.parse(value)
        except ValueError as error:
            # what is said of a number is worth more than that a text is none, and so it is with lists
            fits = not isinstance(value, list) or kind.word.startswith("array")
            refusal = error if refusal is None or fits else refusal
        else:
            return value
    assert refusal is not None, "a text is its own first reading"
    raise refusal


def _readings(text: str) -> Iterator[Any]:
    yield text
    try:
        yield json.loads(text)
    except (ValueError, RecursionError):
        pass  # it is no JSON, as most are not
    yield [part.strip() for part in text.split(",")] if text else []
