"""What the outside may know of unit files. Pure.

Decides: the contents of a listing, and of what a reload found.
Must not: read files; `qsup.unit.load` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from qsup.errors import Diagnostic


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
class ReloadResult:
    """What a reload of the unit files found."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    diagnostics: tuple[Diagnostic, ...]
