"""How files merge."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings

from qsup.unit.document import Document
from qsup.unit.model import Unit
from qsup.unit.parse import parse_document, unit_from_values
from qsup.unit.specifier import SpecifierContext
from qsup.unit.tree import Entries, Leaf, Node, Table, broken_keys, merge, origin_of
from qsup.unit.write import values_of
from tests.unit.strategies import tables

CONTEXT = SpecifierContext(name="web")


def tree(values: dict[str, Any], file: str = "") -> Table:
    """What a document of these values says."""
    table, diagnostics = parse_document(Document(file=file, text="", values=values), CONTEXT)
    assert diagnostics == ()
    return table


def said(node: Node) -> Any:
    """A tree as plain values: each leaf with the file it comes from."""
    match node:
        case Leaf():
            return node.value, node.origin.document.file
        case Table():
            return {name: said(inner) for name, inner in node.items.items()}
        case Entries():
            return node.reset, {name: said(inner) for name, inner in node.items.items()}


# specifiers are not the matter here; `%` alone is a word of limits of CPU time
units = tables(Unit).filter(lambda values: "%" not in str(values | {"limits": {}}))
# now and then most of the first ones have some
some = settings(max_examples=50, suppress_health_check=[HealthCheck.filter_too_much])


@some
@given(units, units, units)
def test_merging_is_associative(first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]) -> None:
    """It is the same whether drop-ins are merged into each other first, or one after the other."""
    a, b, c = tree(first, "a"), tree(second, "b"), tree(third, "c")
    assert said(merge(merge(a, b), c)) == said(merge(a, merge(b, c)))


@some
@given(units)
def test_nothing_changes_nothing(values: dict[str, Any]) -> None:
    """An empty file before or after changes nothing."""
    table, empty = tree(values), tree({})
    assert said(merge(table, empty)) == said(merge(empty, table)) == said(table)


@some
@given(units)
def test_the_same_again_changes_nothing(values: dict[str, Any]) -> None:
    """A file merged into itself is itself."""
    table = tree(values)
    assert said(merge(table, table)) == said(table)


@some
@given(units, units)
def test_the_later_file_wins(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Every key that the later file holds has its value, every other one the earlier's."""
    merged = said(merge(tree(first, "a"), tree(second, "b")))
    for section in ("unit", "install", "service", "machine", "memory", "console", "agent", "display", "qemu"):
        both = {**said(tree(first, "a")).get(section, {}), **said(tree(second, "b")).get(section, {})}
        assert merged.get(section, {}) == both


def test_arrays_of_tables_merge_by_id() -> None:
    """An entry with a known id changes that one key by key, with a new id it is added at the end."""
    first = {"disk": [{"id": "a", "path": "a.raw", "cache": "none"}, {"id": "b"}]}
    second = {"disk": [{"id": "c"}, {"id": "a", "path": "z.raw"}]}
    disks = said(merge(tree(first), tree(second)))["disk"][1]
    assert list(disks) == ["a", "b", "c"]
    assert {key: value for key, (value, _) in disks["a"].items()} == {"id": "a", "path": "z.raw", "cache": "none"}


def test_an_empty_array_drops_what_was_said() -> None:
    """`disk = []` drops all disks of earlier files; those of later files count."""
    first, empty, third = ({"disk": [{"id": id_} for id_ in ids]} for ids in ("a", "", "b"))
    merged = merge(merge(tree(first), tree(empty)), tree(third))
    assert list(said(merged)["disk"][1]) == ["b"]


def test_entries_without_ids_are_replaced_as_a_whole() -> None:
    """Backing files have no ids: the later file's chain replaces the earlier's."""
    chains = [[{"path": name, "format": "raw"} for name in names] for names in (["a", "b"], ["c"])]
    first, second = ({"disk": [{"id": "d", "backing": chain}]} for chain in chains)
    backing = said(merge(tree(first), tree(second)))["disk"][1]["d"]["backing"][1]
    assert [entry["path"][0] for entry in backing.values()] == ["c"]


def test_origins() -> None:
    """Each key knows its file; a key that nobody said is placed at the nearest table that somebody did."""
    merged = merge(tree({"disk": [{"id": "d", "path": "p"}]}, "a"), tree({"disk": [{"id": "d", "cache": "none"}]}, "b"))
    keys = [("disk", "d", "path"), ("disk", "d", "cache"), ("disk", "d", "bus"), ("cpu", "vcpus")]
    origins = [origin_of(merged, key) for key in keys]
    assert [(origin.document.file, origin.path, known) for origin, known in origins] == [
        ("a", ("disk", 0, "path"), True),
        ("b", ("disk", 0, "cache"), True),
        ("a", ("disk", 0), False),
        ("a", (), False),
    ]


def test_broken_keys() -> None:
    """What could not be read is known by its key, so that nothing is concluded from its default."""
    document = Document(file="", text="", values={"cpu": {"vcpus": "4"}, "memory": 1, "nic": [{"model": "x"}, 5]})
    table, diagnostics = parse_document(document, CONTEXT)
    assert len(diagnostics) == 5
    assert set(broken_keys(table)) == {
        ("cpu", "vcpus"),
        ("memory",),
        ("nic",),
        ("nic", "#1"),
        ("nic", "#1", "model"),
    }


@some
@given(units)
def test_values_are_read_as_they_are_written(values: dict[str, Any]) -> None:
    """Every key's value is in the unit, spelled back as its kind spells it; the rest has its default."""
    default = values_of(Unit())
    written = values_of(unit_from_values(values))
    for section, table in default.items():
        if isinstance(table, dict):
            untouched = table.keys() - values.get(section, {}).keys()
            assert {key: written[section][key] for key in untouched} == {key: table[key] for key in untouched}
    assert values_of(unit_from_values(written)) == written
