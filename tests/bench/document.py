"""Where a document shows what was measured.

Decides: the marks between which a table stands.
Must not: know what is measured.
"""

from __future__ import annotations

import re
from pathlib import Path


def put_measured(file: Path, text: str, *, what: str = "measured") -> None:
    """Put a text between ``<!-- what -->`` and ``<!-- end -->``.

    Raises:
        ValueError: the document has no such place.
    """
    document, found = _place(what).subn(lambda mark: f"{mark[1]}{text}\n{mark[3]}", file.read_text())
    if not found:
        raise ValueError(f"{file} has no place that is marked <!-- {what} -->")
    file.write_text(document)


def measured(file: Path, *, what: str = "measured") -> str:
    """What stands there now; ``""`` where there is no such place."""
    found = _place(what).search(file.read_text())
    return found[2] if found else ""


def _place(what: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {re.escape(what)} -->\n)(.*?)(<!-- end -->)", re.DOTALL)
