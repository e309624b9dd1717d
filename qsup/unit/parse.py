"""TOML values -> what they say in the model's terms, with every error of the file.

Decides: which sections and keys a file may hold, whether each value is of its key's kind, and what is said when not.
Must not: compare keys with each other (`qsup.unit.check`), or know of other files (`qsup.unit.tree` merges).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from attrs import evolve, frozen

from qsup.errors import Diagnostic
from qsup.unit.document import Document
from qsup.unit.keys import Key as KeyFacts
from qsup.unit.keys import keys_of, sections_of
from qsup.unit.kinds import toml_type
from qsup.unit.locate import Path
from qsup.unit.model import Unit
from qsup.unit.quantity import alternatives, closest, did_you_mean, shown
from qsup.unit.specifier import SpecifierContext, awaits_instance, expand
from qsup.unit.tree import Entries, Key, Leaf, Node, Origin, Table

#: More errors than this in one file are not looked for: nobody reads them, and each costs a suggestion.
MAX_ERRORS = 100


class _TooMany(Exception):
    """`MAX_ERRORS` is reached."""


@frozen(kw_only=True)
class _Place:
    """A value's path in its document, and its key as messages show it."""

    path: Path = ()
    key: Key = ()

    def at(self, name: str) -> _Place:
        return _Place(path=(*self.path, name), key=(*self.key, name))

    def entry(self, position: int) -> _Place:
        return _Place(path=(*self.path, position), key=self.key)

    def named(self, name: str) -> _Place:
        return _Place(path=self.path, key=(*self.key, name))


def parse_document(document: Document, context: SpecifierContext) -> tuple[Table, tuple[Diagnostic, ...]]:
    """Read a document's values by the model.

    Args:
        document: a unit file or a drop-in.
        context: what its specifiers stand for.

    Returns:
        What it says (without what could not be read, which is marked), and its errors, those of reading included.
    """
    reader = _Reader(document, context)
    try:
        table = reader.table(Unit, document.values, _Place())
    except _TooMany:
        table = Table(origin=Origin(document=document, path=()), items={}, broken=True)
        reader.diagnostics.append(too_many(document.file))
    if document.diagnostics:
        table = evolve(table, broken=True)
    return table, (*document.diagnostics, *reader.diagnostics)


def too_many(file: str) -> Diagnostic:
    """What stands for the errors beyond `MAX_ERRORS`."""
    return Diagnostic(file, 0, "", f"more than {MAX_ERRORS} errors; the rest is not shown")


def unit_from_values(values: Mapping[str, Any]) -> Unit:
    """The unit that `qsup.unit.write.values_of` was given.

    Specifiers are expanded already, and keys that this version does not know are passed over: another version of the
    daemon may have written them.

    Raises:
        ValueError: with the first value that is not of its key's kind.
    """
    table, diagnostics = parse_values(Document(file="", text="", values=values), ignore_unknown=True)
    builder = Builder()
    unit = builder.build(Unit, table, ())
    for diagnostic in (*diagnostics, *builder.missing):
        raise ValueError(f"{diagnostic.key}: {diagnostic.message}")
    assert isinstance(unit, Unit)
    return unit


def parse_values(document: Document, *, ignore_unknown: bool = False) -> tuple[Table, tuple[Diagnostic, ...]]:
    """Read values in which specifiers mean nothing; otherwise as `parse_document`.

    Args:
        ignore_unknown: pass over keys that the model does not have.
    """
    reader = _Reader(document, None, ignore_unknown=ignore_unknown)
    try:
        table = reader.table(Unit, document.values, _Place())
    except _TooMany:
        table = Table(origin=Origin(document=document, path=()), items={}, broken=True)
        reader.diagnostics.append(too_many(document.file))
    return table, tuple(reader.diagnostics)


#: What stands before the position of an entry without an id of its own; no id begins with it.
_NAMELESS = "#"


class _Reader:
    """One pass over one document; without a context, specifiers are left as they are."""

    def __init__(self, document: Document, context: SpecifierContext | None, *, ignore_unknown: bool = False) -> None:
        self.document = document
        self.context = context
        self.ignore_unknown = ignore_unknown
        self.diagnostics: list[Diagnostic] = []

    def report(self, place: _Place, message: str) -> None:
        if len(self.diagnostics) == MAX_ERRORS:
            raise _TooMany
        self.diagnostics.append(self.document.diagnostic(place.path, place.key, message))

    def origin(self, place: _Place) -> Origin:
        return Origin(document=self.document, path=place.path)

    def table(self, cls: type[Any], values: Any, place: _Place) -> Table:
        keys, sections = keys_of(cls), sections_of(cls)
        items: dict[str, Node] = {}
        for name, value in values.items():
            inner = place.at(name)
            if name in keys:
                leaf = self.leaf(keys[name][1], value, inner)
                items[name] = leaf
            elif name in sections:
                _, nested, section = sections[name]
                read = self.entries if section.many else self.section
                items[name] = read(nested, value, inner)
            elif not self.ignore_unknown:
                self.report(inner, _unknown(cls, name, value))
        return Table(origin=self.origin(place), items=items)

    def leaf(self, facts: KeyFacts, value: Any, place: _Place) -> Leaf:
        """The value, or a broken leaf; a template's value that awaits its instance is broken without being an error."""
        origin = self.origin(place)
        if self.context and facts.kind.specifiers:
            try:
                value = expand(value, self.context)
            except ValueError as error:
                # whatever the instance will be
                self.report(place, str(error))
                return Leaf(value=None, origin=origin, broken=True)
        try:
            return Leaf(value=facts.kind.parse(value), origin=origin)
        except ValueError as error:
            if not (self.context and awaits_instance(value, self.context)):
                self.report(place, str(error))
        return Leaf(value=None, origin=origin, broken=True)

    def section(self, cls: type[Any], value: Any, place: _Place) -> Table:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            self.report(place, f"there is only one: write {_header(place.path, many=False)} once")
            value, place = value[0], place.entry(0)
        if not isinstance(value, dict):
            self.report(place, f"expected a table {_header(place.path, many=False)}, not {toml_type(value)}")
            return Table(origin=self.origin(place), items={}, broken=True)
        return self.table(cls, value, place)

    def entries(self, cls: type[Any], value: Any, place: _Place) -> Entries:
        tables, broken = self.entry_tables(cls, value, place)
        by_id = "id" in keys_of(cls)
        items: dict[str, Table] = {}
        for position, (where, entry) in enumerate(tables):
            name = self.entry_name(entry, items, where) if by_id else str(position + 1)
            table = self.table(cls, entry, where.named(name or str(position + 1)))
            if name:
                items[name] = table
            else:
                # in its place, so that what is said of the others is not held back
                items[f"{_NAMELESS}{position + 1}"] = evolve(table, broken=True)
        # without ids, entries of different files cannot be told apart: the later file's replace the earlier's
        return Entries(origin=self.origin(place), items=items, reset=not by_id or not tables, broken=broken)

    def entry_tables(
        self, cls: type[Any], value: Any, place: _Place
    ) -> tuple[list[tuple[_Place, dict[str, Any]]], bool]:
        """The entries that are tables, and whether anything else was found among them."""
        form = _header(place.path, many=True)
        if isinstance(value, dict):
            self.report(place, f"there may be several: write {form}, not {form[1:-1]}")
            known = bool(value.keys() & keys_of(cls).keys())
            return ([(place, value)] if known else []), not known
        if not isinstance(value, list):
            self.report(place, f"expected an array of tables {form}, not {toml_type(value)}")
            return [], True
        tables = []
        for position, entry in enumerate(value):
            where = place.entry(position)
            if isinstance(entry, dict):
                tables.append((where, entry))
            else:
                self.report(where, f"entry {position + 1}: expected a table {form}, not {toml_type(entry)}")
        return tables, len(tables) < len(value)

    def entry_name(self, entry: dict[str, Any], earlier: dict[str, Table], where: _Place) -> str:
        """The entry's id, or ``""`` when there is none to merge it by."""
        if "id" not in entry:
            self.report(where, "the key 'id' is missing")
            return ""
        try:
            name = expand(entry["id"], self.context) if self.context else entry["id"]
        except ValueError:
            # reported with the key itself
            return ""
        if not isinstance(name, str) or not name:
            return ""
        if name in earlier:
            line = self.document.line(earlier[name].origin.path)
            # values of a request have no lines
            who = f"line {line}" if line else "another entry"
            self.report(where, f"the id {shown(name)} is taken: {who} has it already")
            return ""
        return name


class Builder:
    """Turns a tree into model objects; what is broken is left out, what is missing is reported."""

    def __init__(self) -> None:
        self.missing: list[Diagnostic] = []
        self.missing_keys: list[Key] = []

    def build(self, cls: type[Any], table: Table, key: Key) -> Any:
        """A model object, or ``None`` when a required key of it is missing or broken."""
        values: dict[str, Any] = {}
        complete = True
        for name, (attribute, _) in keys_of(cls).items():
            leaf = table.items.get(name)
            if isinstance(leaf, Leaf) and not leaf.broken:
                values[attribute.name] = leaf.value
            elif attribute.default is attrs.NOTHING:
                complete = False
                if leaf is None:
                    self._report_missing(table, key, name)
        for name, (attribute, nested, _) in sections_of(cls).items():
            match table.items.get(name):
                case Table() as inner:
                    values[attribute.name] = self.build(nested, inner, (*key, name))
                case Entries() as entries:
                    named = [entry for entry in entries.items.items() if not entry[0].startswith(_NAMELESS)]
                    built = [self.build(nested, inner, (*key, name, id_)) for id_, inner in named]
                    values[attribute.name] = tuple(entry for entry in built if entry is not None)
        return cls(**values) if complete else None

    def _report_missing(self, table: Table, key: Key, name: str) -> None:
        document, path = table.origin.document, table.origin.path
        self.missing.append(document.diagnostic(path, key, f"the key {name!r} is missing"))
        self.missing_keys.append(key)


def _header(path: Path, *, many: bool) -> str:
    """How the header of a section is written: ``[cpu.topology]``, ``[[disk]]``, ``[[disk.backing]]``."""
    names = ".".join(part for part in path if isinstance(part, str))
    return f"[[{names}]]" if many else f"[{names}]"


def _walk(cls: type[Any], path: Path) -> Iterator[tuple[str, str, type[Any]]]:
    for name, (_, nested, section) in sections_of(cls).items():
        yield name, _header((*path, name), many=section.many), nested
        yield from _walk(nested, (*path, name))


@functools.cache
def _homes() -> dict[str, list[str]]:
    """The headers of the sections that have a key, for each key; for each section, its own."""
    homes: dict[str, list[str]] = {}
    for _, form, cls in _walk(Unit, ()):
        for key in keys_of(cls):
            homes.setdefault(key, []).append(form)
    for name, form, _ in _walk(Unit, ()):
        homes[name] = list(dict.fromkeys([form, *homes.get(name, ())]))
    return homes


def _unknown(cls: type[Any], name: str, value: Any) -> str:
    """What is said of a key or section that ``cls`` does not have."""
    what = "section" if cls is Unit and isinstance(value, dict | list) else "key"
    if name in _homes():
        return f"unknown {what} {shown(name)}; it belongs in {alternatives(_homes()[name])}"
    if near := did_you_mean(name, [*keys_of(cls), *sections_of(cls)]):
        return f"unknown {what} {shown(name)}{near}"
    if word := closest(name, _homes()):
        return f"unknown {what} {shown(name)}; did you mean '{word}' in {alternatives(_homes()[word])}?"
    return f"unknown {what} {shown(name)}"
