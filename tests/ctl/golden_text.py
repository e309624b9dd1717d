"""Golden outputs: what a verb printed once, and was found right by a person.

Decides: where they are, and how they are written anew (``QSUP_GOLDEN=write``).
Must not: compare anything but text.
"""

from __future__ import annotations

import os
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden")


def check_golden(name: str, text: str) -> None:
    """Compare a text with the golden file of that name."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("QSUP_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text(), f"differs from {path.name}; QSUP_GOLDEN=write takes it as right"
