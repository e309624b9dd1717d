"""Check unit files without a daemon: what ``qsupctl verify`` does.

Decides: which unit a file belongs to, which files a directory stands for, and which drop-ins are checked with a unit.
Must not: look at the host beyond the files themselves; a unit is right or wrong wherever it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from qsup.errors import Diagnostic
from qsup.unit.compose import Composed, compose
from qsup.unit.cycles import cycle_diagnostics
from qsup.unit.files import (
    DROPIN_SUFFIX,
    SUFFIX,
    UnitFiles,
    dropins,
    find_unit,
    list_names,
    name_errors,
    printable,
    read_file,
    template_of,
    unit_name_of,
)
from qsup.unit.kinds import is_instance_name
from qsup.unit.parse import parse_document
from qsup.unit.specifier import SpecifierContext


def verify_files(paths: Iterable[str | os.PathLike[str]]) -> tuple[Diagnostic, ...]:
    """Check unit files, templates, drop-ins, and directories of them.

    Args:
        paths: files named as on the search path. A unit file is checked with the drop-ins that lie beside it, in
            ``web.toml.d`` for ``web.toml``; ``web@blue.toml`` may be absent where its template lies; a drop-in is
            checked with its unit where that lies beside, else key by key. A directory stands for every unit that a file
            or a folder of drop-ins in it is named after, and such a folder for its unit.

    Returns:
        Every error of every file, in their order, each once; then the cycles in the order of the units given.
    """
    return verify_units(paths)[0]


def verify_units(paths: Iterable[str | os.PathLike[str]]) -> tuple[tuple[Diagnostic, ...], Mapping[str, Composed]]:
    """The same, and what each unit amounts to that was given as a whole, by its name."""
    found = _Found()
    errors = [diagnostic for path in paths for diagnostic in found.verify(Path(path))]
    return tuple(dict.fromkeys((*errors, *cycle_diagnostics(found.composed, found.instance)))), found.composed


class _Found:
    """The units that were checked, for what is between them."""

    def __init__(self) -> None:
        self.composed: dict[str, Composed] = {}
        self._places: dict[str, Path] = {}

    def _check(self, unit: UnitFiles, place: Path) -> tuple[Diagnostic, ...]:
        composed = compose(unit.documents, SpecifierContext(name=unit.name))
        if unit.name not in self.composed:
            self.composed[unit.name], self._places[unit.name] = composed, place
        return composed.diagnostics

    def instance(self, name: str) -> Composed | None:
        """An instance that no file is named after, of a template that was given."""
        place = self._places.get(template_of(name))
        unit = find_unit(name, (place,)) if place is not None and is_instance_name(name) else None
        return compose(unit.documents, SpecifierContext(name=name)) if unit else None

    def verify(self, path: Path) -> tuple[Diagnostic, ...]:
        """What is wrong with what one path stands for."""
        # a directory named as a unit file is one that cannot be read, and is told as such
        if os.path.isdir(path) and not path.name.endswith(SUFFIX):
            return self._verify_directory(path)
        document = read_file(path)
        if document is None:
            # an empty file masks a unit, and is right
            return ()
        is_dropin = path.parent.name.endswith(DROPIN_SUFFIX)
        named = path.parent if is_dropin else path
        name = unit_name_of(named.name)
        if name is None or unit_name_of(path.name) is None:
            ending = Diagnostic(printable(path), 0, "", f"a unit file's name ends in {SUFFIX} and begins with no dot")
            # of what does not exist, the name is not what is wrong
            return document.diagnostics or (ending,)
        context, misnamed = SpecifierContext(name=name), name_errors(named, name)
        unit = None if misnamed else find_unit(name, (named.parent,))
        if unit is not None and (not is_dropin or any(each.file == document.file for each in unit.documents)):
            return self._check(unit, named.parent)
        alone = parse_document(document, context)[1] if is_dropin else compose((document,), context).diagnostics
        return (*misnamed, *alone)

    def _verify_directory(self, path: Path) -> tuple[Diagnostic, ...]:
        if path.name.endswith(DROPIN_SUFFIX):
            name = path.name.removesuffix(DROPIN_SUFFIX)
            return name_errors(path, name) or self._verify_unit(name, path.parent)
        names = list_names((path,))
        found = (diagnostic for name in names.units for diagnostic in self._verify_unit(name, path))
        return (*names.diagnostics, *found)

    def _verify_unit(self, name: str, directory: Path) -> tuple[Diagnostic, ...]:
        """A unit with the drop-ins beside it; of drop-ins without their unit, each by itself."""
        unit = find_unit(name, (directory,))
        if unit is not None:
            return self._check(unit, directory)
        context = SpecifierContext(name=name)
        found = (parse_document(document, context)[1] for document in dropins(name, (directory,)))
        return tuple(diagnostic for diagnostics in found for diagnostic in diagnostics)
