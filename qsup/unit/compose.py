"""Several documents -> one unit, or all their errors.

Decides: in which order files are merged, what is required, and which file and line a contradiction is blamed on.
Must not: find or open files (`qsup.unit.load`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from attrs import frozen

from qsup.errors import Diagnostic
from qsup.unit.check import Finding, check
from qsup.unit.document import Document
from qsup.unit.model import Unit
from qsup.unit.parse import Builder, parse_document
from qsup.unit.specifier import SpecifierContext
from qsup.unit.tree import Key, Table, broken_keys, merge, origin_of


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
    builder = Builder()
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
