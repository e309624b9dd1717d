"""Unit files on the search path: which files make up which unit.

Decides: which file names are unit files, which of several files of one name counts, and in which order drop-ins apply.
Must not: look into what it reads; and it never waits for a file: only regular files of a bounded size are read.

The rules are systemd.unit(5)'s: a file in a later directory replaces the one of the same name in an earlier directory;
``web.toml.d/*.toml`` of all directories apply on top, in the order of their file names; an empty file or a symbolic
link to /dev/null masks; ``web@blue`` comes from ``web@blue.toml``, else from the template ``web@.toml``, and takes the
drop-ins of both.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import field, frozen

from qsup.errors import Diagnostic
from qsup.unit.document import MAX_BYTES, Document, read_document
from qsup.unit.kinds import NAME_RULE, is_instance_name, is_template_name

SUFFIX = ".toml"
DROPIN_SUFFIX = ".toml.d"
_NULL_DEVICE = os.makedev(1, 3)

#: Reads one file: a document, or ``None`` for a file that masks.
Read = Callable[[Path], Document | None]


@frozen(kw_only=True)
class UnitFiles:
    """The files of one unit.

    Args:
        name: ``web``, ``web@blue``, or ``web@`` for a template.
        documents: the unit file and then the drop-ins, as they apply.
    """

    name: str
    documents: tuple[Document, ...]


@frozen(kw_only=True)
class Names:
    """What a search path holds.

    Args:
        units: names of units, instances of templates and templates, sorted.
        diagnostics: files whose names are no unit names, and directories that cannot be read.
    """

    units: tuple[str, ...]
    diagnostics: tuple[Diagnostic, ...] = field(default=())


def printable(path: object) -> str:
    """A path for messages: on one line, and text whatever its bytes are."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]


def template_of(name: str) -> str:
    """``web@`` for ``web@blue``, ``""`` for ``web``."""
    prefix, at, _ = name.partition("@")
    return prefix + at if at else ""


def read_file(path: Path) -> Document | None:
    """Read one unit file or drop-in.

    Args:
        path: a file that a listing named; its symbolic links are followed.

    Returns:
        The document, with a diagnostic when the file cannot be read; ``None`` when it masks: empty, or /dev/null.
    """
    try:
        data = _bytes(path)
    except OSError as error:
        return _unreadable(path, os.strerror(error.errno or errno.EIO))
    except ValueError as error:
        return _unreadable(path, str(error))
    return read_document(printable(path), data) if data else None


def _unreadable(path: Path, why: str) -> Document:
    file = printable(path)
    try:
        link = f"a symbolic link to {printable(os.readlink(path))}: "
    except OSError:
        # not a link, or gone by now
        link = ""
    return Document(file=file, text="", diagnostics=(Diagnostic(file, 0, "", link + why),))


def _bytes(path: Path) -> bytes:
    # asked before opening too: to open some devices is to act on them
    if _masks(os.stat(path)):
        return b""
    # without O_NONBLOCK the open itself waits when a FIFO came in between
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with open(fd, "rb", closefd=True) as file:
        return b"" if _masks(os.fstat(fd)) else file.read(MAX_BYTES + 1)


def _masks(status: os.stat_result) -> bool:
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL_DEVICE:
        return True
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is not a regular file")
    return False


def name_errors(path: Path, name: str) -> tuple[Diagnostic, ...]:
    """What is wrong with the name of a unit that a file is named after."""
    if is_instance_name(name) or is_template_name(name):
        return ()
    return (Diagnostic(printable(path), 0, "", f"'{printable(name)}' is not a valid unit name: {NAME_RULE}"),)


def find_unit(name: str, dirs: Sequence[Path], read: Read = read_file) -> UnitFiles | None:
    """The files of one unit.

    Args:
        name: a valid instance or template name.
        dirs: the search path; later directories win.
        read: reads one file; `read_file`, or one that remembers.

    Returns:
        ``None`` when there is no such unit, or it is masked.
    """
    main = _main_file(name, dirs)
    document = read(main) if main else None
    if document is None:
        return None
    return UnitFiles(name=name, documents=(document, *dropins(name, dirs, read)))


def _main_file(name: str, dirs: Sequence[Path]) -> Path | None:
    for candidate in dict.fromkeys((name, template_of(name))):
        for directory in reversed(dirs):
            path = directory / f"{candidate}{SUFFIX}"
            if candidate and os.path.lexists(path):
                return path
    return None


def dropins(name: str, dirs: Sequence[Path], read: Read = read_file) -> tuple[Document, ...]:
    """The drop-ins of one unit, in the order in which they apply; a folder that cannot be read is one with an error.

    Of several with one file name the one of the most specific folder counts (``web@blue.toml.d`` before
    ``web@.toml.d``), and among those the one of the latest directory.
    """
    chosen: dict[str, Path] = {}
    unreadable: list[Document] = []
    for folder in dict.fromkeys((template_of(name), name)):
        for directory in dirs if folder else ():
            here = directory / f"{folder}{DROPIN_SUFFIX}"
            try:
                chosen |= {file: here / file for file in os.listdir(here) if _is_toml(file)}
            except FileNotFoundError:
                continue
            except OSError as error:
                unreadable.append(_unreadable(here, os.strerror(error.errno or errno.EIO)))
    documents = (read(chosen[file]) for file in sorted(chosen))
    return (*(document for document in documents if document is not None), *unreadable)


def _is_toml(file: str) -> bool:
    # a hidden file is an editor's, or one that is being written
    return file.endswith(SUFFIX) and not file.startswith(".")


def list_names(dirs: Sequence[Path]) -> Names:
    """Every unit, instance and template of the search path.

    An instance of a template counts when a file or a folder of drop-ins is named after it.
    """
    found: set[str] = set()
    diagnostics: list[Diagnostic] = []
    for directory in dirs:
        try:
            files = sorted(os.listdir(directory))
        except FileNotFoundError:
            continue
        except OSError as error:
            message = os.strerror(error.errno or errno.EIO)
            diagnostics.append(Diagnostic(printable(directory), 0, "", message))
            continue
        for file in files:
            name = unit_name_of(file)
            if name is None:
                continue
            if misnamed := name_errors(directory / file, name):
                diagnostics += misnamed
            else:
                found.add(name)
    return Names(units=tuple(sorted(found)), diagnostics=tuple(diagnostics))


def unit_name_of(file: str) -> str | None:
    """The unit that a file or folder of drop-ins is named after, valid or not; ``None`` for what is neither."""
    if _is_toml(file):
        return file.removesuffix(SUFFIX)
    return file.removesuffix(DROPIN_SUFFIX) if file.endswith(DROPIN_SUFFIX) and not file.startswith(".") else None
