"""Several documents -> one unit, or all their errors.

Decides: in which order files are merged, what is required, and which file and line a contradiction is blamed on.
Must not: find or open files (`qsup.unit.load`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import attrs
from attrs import frozen

from qsup.errors import Diagnostic
from qsup.unit.check import Finding, check
from qsup.unit.document import Document
from qsup.unit.model import Unit, keys_of, sections_of
from qsup.unit.parse import parse_document
from qsup.unit.specifier import SpecifierContext
from qsup.unit.tree import Entries, Key, Leaf, Table, broken_keys, merge, origin_of


@frozen(kw_only=True)
class Composed:
    """What documents amount to: a unit when there are no errors, else the errors.

    Args:
        unit: ``None`` when there are errors.
        diagnostics: every error found, in the order of the files and lines.
    """

    unit: Unit | None
    diagnostics: tuple[Diagnostic, ...]


def compose(documents: Sequence[Document], context: SpecifierContext) -> Composed:
    """Merge documents into one unit.

    Args:
        documents: at least one; each later one wins over those before it.
        context: what specifiers stand for; its name is the VM's.
    """
    parsed = [parse_document(document, context) for document in documents]
    merged = functools.reduce(merge, (table for table, _ in parsed))
    builder = _Builder()
    unit = builder.build(Unit, merged, ())
    found = [diagnostic for _, diagnostics in parsed for diagnostic in diagnostics]
    # where a whole file could not be read, what seems to be missing may be in it
    if not merged.broken:
        found += builder.missing
        findings = check(unit, context.name)
        broken = [*broken_keys(merged), *builder.missing_keys]
        found += [_blame(merged, finding) for finding in findings if not _rests_on(finding, broken)]
    order = {document.file: position for position, document in enumerate(documents)}
    found.sort(key=lambda diagnostic: (order[diagnostic.file], diagnostic.line))
    return Composed(unit=None if found else unit, diagnostics=tuple(dict.fromkeys(found)))


class _Builder:
    """Turns the merged tree into model objects; what is broken or missing is left out."""

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
                    self.report_missing(table, key, name)
        for name, (attribute, nested, _) in sections_of(cls).items():
            match table.items.get(name):
                case Table() as inner:
                    values[attribute.name] = self.build(nested, inner, (*key, name))
                case Entries() as entries:
                    built = [self.build(nested, inner, (*key, name, id_)) for id_, inner in entries.items.items()]
                    values[attribute.name] = tuple(entry for entry in built if entry is not None)
        return cls(**values) if complete else None

    def report_missing(self, table: Table, key: Key, name: str) -> None:
        document, path = table.origin.document, table.origin.path
        self.missing.append(document.diagnostic(path, key, f"the key {name!r} is missing"))
        self.missing_keys.append(key)


def _rests_on(finding: Finding, broken: list[Key]) -> bool:
    """Whether a finding may be the mere consequence of a value that could not be read."""
    return any(key[: len(bad)] == bad or bad[: len(key)] == key for key in finding.keys for bad in broken)


def _blame(merged: Table, finding: Finding) -> Diagnostic:
    """The error at the first of the finding's keys that a file holds, else at the table around the first."""
    for key in finding.keys:
        origin, said = origin_of(merged, key)
        if said:
            return origin.document.diagnostic(origin.path, key, finding.message)
    origin, _ = origin_of(merged, finding.keys[0])
    return origin.document.diagnostic(origin.path, finding.keys[0], finding.message)
