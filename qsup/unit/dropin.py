"""What the daemon's own drop-in says of a unit.

Decides: its name, and its text: what the unit's other files do not say already, so that nobody's own file is touched
and what is changed back leaves it.
Must not: write it (`qsup.catalog` does).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from qsup.errors import ChangeError, Diagnostic, UnitError
from qsup.unit.compare import compare
from qsup.unit.compose import amend, compose, raw
from qsup.unit.document import Document, read_document
from qsup.unit.effective import effective_resize
from qsup.unit.entries import check_known, without_entry
from qsup.unit.files import printable
from qsup.unit.load import read_unit
from qsup.unit.model import Unit
from qsup.unit.specifier import SpecifierContext
from qsup.unit.write import difference, unit_text

#: The drop-in of a unit that changes of its VM are written to.
CHANGES = "90-changes.toml"
_HEADER = (
    "# What was changed by `qsupctl set`, `attach`, `insert` and so on. qsupd writes this file anew at each change.\n\n"
)


def changed_text(
    path: Path,
    name: str,
    dirs: Sequence[Path],
    context: SpecifierContext,
    changes: Mapping[str, Any],
    replaced: Sequence[str] = (),
) -> str:
    """What a drop-in must say for its unit to be changed.

    Args:
        path: the drop-in, there or not.
        name: the unit's.
        dirs: the search path.
        context: what specifiers stand for.
        changes: as for `qsup.unit.compose.amend`.
        replaced: entries, such as ``disk.data``, of which the changes say all there is.

    Returns:
        Its text, ``""`` when the other files say all of it.

    Raises:
        NoSuchUnit: there is no such unit.
        UnitError: it has errors, or would have some.
        NoSuchDevice: see `qsup.unit.entries.check_known`.
        ChangeError: another file has the last word.
    """
    context = evolve(context, name=name)
    documents = read_unit(name, dirs).documents
    now = compose(documents, context)
    base = _valid(now.unit, now.diagnostics, name)
    check_known(changes, base, "its unit", replaced)
    wanted = amend(functools.reduce(without_entry, replaced, base), changes, name)
    unit = _valid(wanted.unit, wanted.diagnostics, name)
    others = [document for document in documents if document.file != printable(path)]
    rest = raw(others, context)
    unit = _without_needless_room(unit, rest)
    values = difference(rest, unit)
    text = _HEADER + unit_text(values) if values else ""
    _check(others, path, text, unit, context)
    return text


def _without_needless_room(unit: Unit, rest: Unit) -> Unit:
    """A guest that has all its memory back needs no `max` for its balloon, unless a person's file says one.

    Nor does one that has no more than its machine was started with need `min`.

    Args:
        rest: what other files say.
    """
    if unit.memory.min >= unit.memory.size and not rest.memory.min:
        unit = evolve(unit, memory=evolve(unit.memory, min=0))
    memory, others = unit.memory, rest.memory
    plain = evolve(unit, memory=evolve(memory, max=0, resize=others.resize))
    is_needless = memory.max == memory.size and not others.max and effective_resize(unit) == "balloon"
    return plain if is_needless and effective_resize(plain) == "balloon" else unit


def _valid(unit: Unit | None, diagnostics: tuple[Diagnostic, ...], name: str) -> Unit:
    if unit is None:
        raise UnitError(diagnostics, instance=name, hint="nothing was changed")
    return unit


def _check(others: Sequence[Document], path: Path, text: str, wanted: Unit, context: SpecifierContext) -> None:
    """See that the unit's files, the drop-in among them in its place, say what is wanted."""
    found = compose(_placed(others, path, text), context)
    unit = _valid(found.unit, found.diagnostics, context.name)
    if other := [change.key for change in compare(unit, wanted) if "." in change.key]:
        files = ", ".join(document.file for document in others[_place(others, path) :]) or "a file that it hides"
        words = f"{', '.join(other)}: {files} has the last word, after {path.name}"
        raise ChangeError(words, instance=context.name, hint="change it there")


def read_dropin(
    path: Path, name: str, dirs: Sequence[Path], context: SpecifierContext, text: str
) -> tuple[Unit | None, tuple[Diagnostic, ...]]:
    """A unit once one of its drop-ins has a text, and every error that it has then; `NoSuchUnit`."""
    documents = read_unit(name, dirs).documents
    others = [document for document in documents if document.file != printable(path)]
    composed = compose(_placed(others, path, text), evolve(context, name=name))
    return composed.unit, composed.diagnostics


def _placed(others: Sequence[Document], path: Path, text: str) -> list[Document]:
    """Files in the order in which they apply, with a drop-in among them; without a text it is not there."""
    place = _place(others, path)
    ours = [read_document(printable(path), text.encode("utf-8", "surrogatepass"))] if text else []
    return [*others[:place], *ours, *others[place:]]


def _place(others: Sequence[Document], path: Path) -> int:
    return 1 + sum(1 for document in others[1:] if Path(document.file).name < path.name)
