"""Several documents -> one unit, or all their errors.

Decides: in which order files are merged, what is required, and which file and line a contradiction is blamed on.
Must not: find or open files (`qsup.unit.load`).
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from qsup.errors import Diagnostic
from qsup.unit.check import Finding, check
from qsup.unit.document import Document
from qsup.unit.model import Unit
from qsup.unit.parse import MAX_ERRORS, Builder, parse_document, parse_values, too_many
from qsup.unit.specifier import SpecifierContext
from qsup.unit.tree import Key, Table, broken_keys, merge, origin_of, without_absent
from qsup.unit.write import values_of


@frozen(kw_only=True)
class Composed:
    """What documents amount to: a unit when there are no errors, else the errors.

    Args:
        unit: ``None`` when there are errors.
        diagnostics: the errors, in the order of the files and lines: of each file, and of the rules between keys, at
            most `MAX_ERRORS`.
        merged: all that the files say, and where.
    """

    unit: Unit | None
    diagnostics: tuple[Diagnostic, ...]
    merged: Table


def compose(documents: Sequence[Document], context: SpecifierContext) -> Composed:
    """Merge documents into one unit.

    Args:
        documents: at least one; each later one wins over those before it.
        context: what specifiers stand for; its name is the VM's.
    """
    return _build(documents, [parse_document(document, context) for document in documents], context.name)


def raw(documents: Sequence[Document], context: SpecifierContext) -> Unit:
    """What documents say, by no rule between keys, and with the entries that are not ``present``.

    What is wrong or missing in them is left out: it is for `compose` to tell.
    """
    merged = functools.reduce(merge, (parse_document(document, context)[0] for document in documents))
    unit = Builder().build(Unit, merged, ())
    assert isinstance(unit, Unit)
    return unit


def amend(unit: Unit, changes: Mapping[str, Any], name: str) -> Composed:
    """A unit with changes, which merge as a drop-in's would; specifiers in them mean nothing.

    Args:
        changes: sections and keys as JSON spells them, of arrays of tables the entries that change or come.
        name: the VM's.
    """
    named = ((f"VM {name}", values_of(unit)), ("the request", changes))
    documents = [Document(file=file, text="", values=values) for file, values in named]
    return _build(documents, [parse_values(document) for document in documents], name)


def pick(changes: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Those of some changes that concern keys, each with all that is below it.

    Args:
        changes: as for `amend`.
        keys: such as ``cpu.vcpus``, ``disk.data`` or ``disk.data.throttle.iops``.
    """
    return _picked(changes, "", tuple(keys))


def _picked(values: Mapping[str, Any], place: str, keys: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        here = f"{place}{name}"
        if any(here == key or here.startswith(f"{key}.") for key in keys):
            found[name] = value
        elif isinstance(value, Mapping):
            if inner := _picked(value, f"{here}.", keys):
                found[name] = inner
        elif isinstance(value, list) and all(isinstance(entry, Mapping) and "id" in entry for entry in value):
            entries = [(entry, _picked(entry, f"{here}.{entry['id']}.", keys)) for entry in value]
            whole = {entry["id"] for entry in value if f"{here}.{entry['id']}" in keys}
            kept = [
                e if e["id"] in whole else {"id": e["id"], **inner} for e, inner in entries if inner or e["id"] in whole
            ]
            if kept:
                found[name] = kept
    return found


def _build(
    documents: Sequence[Document], parsed: Sequence[tuple[Table, tuple[Diagnostic, ...]]], name: str
) -> Composed:
    merged = without_absent(functools.reduce(merge, (table for table, _ in parsed)))
    builder = Builder()
    unit = builder.build(Unit, merged, ())
    found = [diagnostic for _, diagnostics in parsed for diagnostic in diagnostics]
    # where a whole file could not be read, what seems to be missing may be in it
    if not merged.broken:
        found += builder.missing
        broken = [*broken_keys(merged), *builder.missing_keys]
        findings = (finding for finding in check(unit, name) if not _rests_on(finding, broken))
        found += [blame(merged, finding) for finding in itertools.islice(findings, MAX_ERRORS)]
        more = [too_many(documents[0].file)] if next(findings, None) else []
    else:
        more = []
    order = {document.file: position for position, document in enumerate(documents)}
    # what concerns a file as a whole comes after what has a line in it
    found.sort(key=lambda diagnostic: (order[diagnostic.file], diagnostic.line or sys.maxsize))
    found += more  # last, for the first error is the one that is told
    return Composed(unit=None if found else unit, diagnostics=tuple(dict.fromkeys(found)), merged=merged)


def _rests_on(finding: Finding, broken: list[Key]) -> bool:
    """Whether a finding may be the mere consequence of a value that could not be read."""
    return any(key[: len(bad)] == bad or bad[: len(key)] == key for key in finding.keys for bad in broken)


def blame(merged: Table, finding: Finding) -> Diagnostic:
    """The error at the first of the finding's keys that a file holds, else at the table around the first."""
    for key in finding.keys:
        origin, said = origin_of(merged, key)
        if said:
            return origin.document.diagnostic(origin.path, key, finding.message)
    origin, _ = origin_of(merged, finding.keys[0])
    return origin.document.diagnostic(origin.path, finding.keys[0], finding.message)
