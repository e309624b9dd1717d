"""Check unit files without a daemon: what ``qsupctl verify`` does.

Decides: which unit a file belongs to, and which drop-ins beside it are checked with it.
Must not: look at the host beyond the files themselves; a unit is right or wrong wherever it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from qsup.errors import Diagnostic
from qsup.unit.compose import compose
from qsup.unit.files import DROPIN_SUFFIX, SUFFIX, dropins, name_errors, printable, read_file, unit_name_of
from qsup.unit.parse import parse_document
from qsup.unit.specifier import SpecifierContext


def verify_files(paths: Iterable[str | os.PathLike[str]]) -> tuple[Diagnostic, ...]:
    """Check unit files, templates and drop-ins.

    Args:
        paths: files named as on the search path. A unit file is checked with the drop-ins that lie beside it, in
            ``web.toml.d`` for ``web.toml``; a drop-in by itself is checked key by key.

    Returns:
        Every error of every file, in their order, each once.
    """
    found = [diagnostic for path in paths for diagnostic in _verify(Path(path))]
    return tuple(dict.fromkeys(found))


def _verify(path: Path) -> tuple[Diagnostic, ...]:
    document = read_file(path)
    if document is None:
        # an empty file masks a unit, and is right
        return ()
    if path.parent.name.endswith(DROPIN_SUFFIX):
        owner = path.parent.name.removesuffix(DROPIN_SUFFIX)
        return (*name_errors(path.parent, owner), *parse_document(document, SpecifierContext(name=owner))[1])
    name = unit_name_of(path.name)
    if name is None:
        return (Diagnostic(printable(path), 0, "", f"a unit file's name ends in {SUFFIX} and begins with no dot"),)
    misnamed = name_errors(path, name)
    beside = () if misnamed else dropins(name, (path.parent,))
    return (*misnamed, *compose((document, *beside), SpecifierContext(name=name)).diagnostics)
