"""Unit files on the search path -> units.

Decides: what makes up a loaded unit, and how the errors of a whole search path are gathered.
Must not: know rules of single keys; `qsup.unit.compose` does. It blocks for as long as the files take to read and parse
(1 ms for a usual unit): a daemon with many units calls it from a worker thread.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import evolve, frozen

from qsup.errors import Diagnostic, NoSuchUnit, UnitError
from qsup.unit.compose import Composed, compose
from qsup.unit.cycles import cycle_diagnostics
from qsup.unit.document import read_document
from qsup.unit.files import SUFFIX, UnitFiles, dropins, find_unit, list_names, name_errors, printable, read_file
from qsup.unit.kinds import NAME_RULE, is_instance_name, is_template_name
from qsup.unit.model import Unit
from qsup.unit.quantity import shown
from qsup.unit.specifier import SpecifierContext


@frozen(kw_only=True)
class LoadedUnit:
    """One unit without errors.

    Args:
        name: ``web``, ``web@blue``, or ``web@`` for a template.
        unit: what it says. In a template ``%i`` stands for itself; values that await the instance have their default.
        files: the paths of its files, in the order in which they apply.
        etag: changes whenever any of its files does.
        text: the text of all its files with a ``# path`` line before each.
    """

    name: str
    unit: Unit
    files: tuple[str, ...]
    etag: str
    text: str


@frozen(kw_only=True)
class Catalog:
    """Everything on a search path.

    Args:
        units: the units without errors by name, instances of templates that have files of their own included.
        templates: the templates without errors by name (``web@``).
        broken: the names of those with errors.
        diagnostics: all errors of all files, and cycles in the order of units, which break none of them.
    """

    units: Mapping[str, LoadedUnit]
    templates: Mapping[str, LoadedUnit]
    broken: frozenset[str] = frozenset()
    diagnostics: tuple[Diagnostic, ...] = ()


def etag_of(files: UnitFiles) -> str:
    """A hash over the paths and texts of a unit's files."""
    digest = hashlib.sha256()
    for document in files.documents:
        for part in (document.file, document.text):
            encoded = part.encode("utf-8", "surrogateescape")
            digest.update(b"%d:%b" % (len(encoded), encoded))
    return digest.hexdigest()[:32]


def text_of(files: UnitFiles) -> str:
    """The text of a unit's files with a ``# path`` line before each, as ``systemctl cat`` shows it."""
    return "\n".join(f"# {document.file}\n{document.text}".rstrip("\n") + "\n" for document in files.documents)


def read_unit(name: str, dirs: Sequence[Path]) -> UnitFiles:
    """The files of one unit as they are, with or without errors.

    Raises:
        NoSuchUnit: there is none, it is masked, or ``name`` is no unit name.
    """
    if not (is_instance_name(name) or is_template_name(name)):
        raise NoSuchUnit(f"{shown(name)} is not a valid unit name: {NAME_RULE}")
    files = find_unit(name, dirs)
    if files is None:
        searched = ", ".join(printable(directory) for directory in dirs)
        raise NoSuchUnit(f"no unit {name!r}, or it is masked", hint=f"unit files are looked for in {searched}")
    return files


def load_unit(name: str, dirs: Sequence[Path], context: SpecifierContext) -> LoadedUnit:
    """Load one unit.

    Args:
        name: ``web``, ``web@blue``, or ``web@`` for a template.
        dirs: the search path; later directories win.
        context: what its specifiers stand for.

    Raises:
        NoSuchUnit: there is none, it is masked, or ``name`` is no unit name.
        UnitError: with every error of its files.
    """
    loaded, composed = _loaded(read_unit(name, dirs), context)
    if loaded is None:
        raise UnitError(composed.diagnostics, instance=name)
    return loaded


def load_catalog(dirs: Sequence[Path], context_factory: Callable[[str], SpecifierContext]) -> Catalog:
    """Load every unit of a search path; no file's error hides another's.

    Args:
        dirs: the search path; later directories win.
        context_factory: name of a unit -> what its specifiers stand for.
    """
    names = list_names(dirs)
    diagnostics = list(names.diagnostics)
    loaded: dict[str, LoadedUnit] = {}
    composed: dict[str, Composed] = {}
    broken: set[str] = set()
    # a template's files are read once, whatever the number of its instances
    read = functools.cache(read_file)
    for name in names.units:
        files = find_unit(name, dirs, read)
        if files is not None:
            unit, composed[name] = _loaded(files, context_factory(name))
            diagnostics += composed[name].diagnostics
            if unit is None:
                broken.add(name)
            else:
                loaded[name] = unit

    def instance(name: str) -> Composed | None:
        files = find_unit(name, dirs, read) if is_instance_name(name) else None
        return _loaded(files, context_factory(name))[1] if files else None

    diagnostics += cycle_diagnostics(composed, instance)
    templates = {name: unit for name, unit in loaded.items() if is_template_name(name)}
    units = {name: unit for name, unit in loaded.items() if name not in templates}
    return Catalog(
        units=units, templates=templates, broken=frozenset(broken), diagnostics=tuple(dict.fromkeys(diagnostics))
    )


def read_text(
    name: str, text: str | bytes, context: SpecifierContext, *, dirs: Sequence[Path] = ()
) -> tuple[Unit | None, tuple[Diagnostic, ...]]:
    """A unit whose own file, ``NAME.toml``, is a text, and every error that it has then.

    Args:
        name: the unit's name.
        text: the file's future contents.
        context: what its specifiers stand for.
        dirs: the search path whose drop-ins apply to it.
    """
    if misnamed := name_errors(Path(f"{name}{SUFFIX}"), name):
        return None, misnamed
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    document = read_document(f"{name}{SUFFIX}", data)
    composed = compose((document, *dropins(name, dirs)), evolve(context, name=name))
    return composed.unit, composed.diagnostics


def _loaded(files: UnitFiles, context: SpecifierContext) -> tuple[LoadedUnit | None, Composed]:
    composed = compose(files.documents, evolve(context, name=files.name))
    if composed.unit is None:
        return None, composed
    loaded = LoadedUnit(
        name=files.name,
        unit=composed.unit,
        files=tuple(document.file for document in files.documents),
        etag=etag_of(files),
        text=text_of(files),
    )
    return loaded, composed
