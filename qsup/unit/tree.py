"""What one or several unit files say, key by key, each value with the place it comes from.

Decides: how files merge: the later one wins, key by key; arrays of tables merge by ``id``, and an empty one drops what
earlier files said of it.
Must not: know which sections and keys exist, or judge values.

Merging is associative, so that a drop-in can be merged into a drop-in first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import evolve, frozen

from qsup.unit.document import Document
from qsup.unit.locate import Path

#: A key by names alone: table, then the id of an array's entry (its position from 1 where it has none), then the key.
Key = tuple[str, ...]


@frozen(kw_only=True)
class Origin:
    """A place in a file.

    Args:
        document: the file.
        path: the path into its values.
    """

    document: Document
    path: Path


@frozen(kw_only=True)
class Leaf:
    """One key's value, as the model keeps it; ``broken`` when it could not be read (and was reported)."""

    value: Any
    origin: Origin
    broken: bool = False


@frozen(kw_only=True)
class Table:
    """A table's keys and sub-tables; ``broken`` when something in its place could not be read."""

    origin: Origin
    items: Mapping[str, Node]
    broken: bool = False


@frozen(kw_only=True)
class Entries:
    """An array of tables, by id.

    Args:
        reset: what earlier files said of it is dropped.
    """

    origin: Origin
    items: Mapping[str, Table]
    reset: bool = False
    broken: bool = False


Node = Leaf | Table | Entries


def merge(earlier: Table, later: Table) -> Table:
    """Both tables' keys; where both have one, the later's."""
    items: dict[str, Node] = dict(earlier.items)
    for name, node in later.items.items():
        items[name] = _merge_node(items[name], node) if name in items else node
    return evolve(earlier, items=items, broken=earlier.broken or later.broken)


def _merge_node(earlier: Node, later: Node) -> Node:
    match earlier, later:
        case Table(), Table():
            return merge(earlier, later)
        case Entries(), Entries() if not later.reset:
            items = dict(earlier.items)
            for name, table in later.items.items():
                items[name] = merge(items[name], table) if name in items else table
            return evolve(earlier, items=items, broken=earlier.broken or later.broken)
    return later


def without_absent(table: Table) -> Table:
    """The same without the entries of arrays of tables that are not ``present``."""
    items: dict[str, Node] = dict(table.items)
    for name, node in table.items.items():
        if isinstance(node, Entries):
            items[name] = evolve(node, items={id_: entry for id_, entry in node.items.items() if not _is_absent(entry)})
    return evolve(table, items=items)


def _is_absent(entry: Table) -> bool:
    present = entry.items.get("present")
    return isinstance(present, Leaf) and present.value is False


def origin_of(table: Table, key: Key) -> tuple[Origin, bool]:
    """Where ``key`` was said, and whether it was: else the origin is that of the nearest table around it."""
    node: Node | None = table
    origin = table.origin
    for name in key:
        node = node.items.get(name) if isinstance(node, Table | Entries) else None
        if node is None:
            return origin, False
        origin = node.origin
    return origin, True


def broken_keys(node: Node, key: Key = ()) -> Iterator[Key]:
    """Every key whose value could not be read."""
    if node.broken:
        yield key
    if not isinstance(node, Leaf):
        for name, inner in node.items.items():
            yield from broken_keys(inner, (*key, name))
