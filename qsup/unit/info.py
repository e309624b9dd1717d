"""What the outside may know of unit files. Pure.

Decides: the contents of a listing, and of what a reload found.
Must not: read files; `qsup.unit.load` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from qsup.errors import Diagnostic
from qsup.unit.compare import Change


@frozen(kw_only=True)
class UnitInfo:
    """One unit of the search path.

    Args:
        etag: changes whenever any of its files does.
        text: the text of all its files with a ``# path`` line before each, as ``qsupctl cat`` shows it.
        values: every key with its effective value, JSON values, as the schema spells them.
    """

    name: str
    files: tuple[str, ...]
    template: bool
    autostart: bool
    description: str
    etag: str
    text: str
    values: Mapping[str, Any] | None


@frozen(kw_only=True)
class UnitSources:
    """The files of one unit as they are, with or without errors.

    Args:
        etag: of all of them, as that of `UnitInfo`.
        sources: path and text of each, in the order in which they apply.
        own: the path of the unit's own file where the administrator has one, else ``""``.
    """

    name: str
    etag: str
    sources: tuple[tuple[str, str], ...]
    own: str


@frozen(kw_only=True)
class Precondition:
    """Which version of a unit a change is meant for (RFC 9110, section 13.1).

    Args:
        among: etags of which the unit must have one; ``None`` for any.
        exists: whether there must be such a unit, with or without errors; ``None`` for either.
    """

    among: frozenset[str] | None = None
    exists: bool | None = None

    def holds(self, etag: str | None) -> bool:
        """Whether a unit with this etag is meant: ``""`` for one with errors, ``None`` where there is none."""
        if self.exists is not None and self.exists is not (etag is not None):
            return False
        return self.among is None or etag in self.among


@frozen(kw_only=True)
class UnitChanges:
    """One VM against its unit as the files say it now.

    Args:
        running: it runs; what does not has nothing to be compared with.
        changes: from what it was started with to what the files say.
    """

    instance: str
    running: bool
    changes: tuple[Change, ...]


@frozen(kw_only=True)
class UnitPreview:
    """What would become of each key if a file of a unit were written, and its VM had to be as it says.

    Args:
        running: its VM runs.
        keys: by the name of the key, as the result of a change has them.
    """

    name: str
    running: bool
    keys: Mapping[str, Mapping[str, Any]]


@frozen(kw_only=True)
class ReloadResult:
    """What a reload of the unit files found.

    Args:
        running: the VMs that run, and what this reload changed of the units they were started with.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    diagnostics: tuple[Diagnostic, ...]
    running: tuple[UnitChanges, ...] = ()
