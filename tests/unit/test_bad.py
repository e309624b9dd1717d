"""Wrong unit files and what is said of them: each ``bad/NAME.toml`` has its errors in ``bad/NAME.txt``."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsup.unit.verify import verify_files

BAD = Path(__file__).parent / "bad"
FILES = sorted(BAD.glob("*.toml"))


def errors_of(path: Path) -> str:
    """All errors of one file, one a line, the file named without its directory."""
    return "".join(f"{diagnostic}\n".removeprefix(f"{BAD}/") for diagnostic in verify_files([path]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_errors(path: Path) -> None:
    """All errors of a file are reported, in its order, each with its line and what to do."""
    assert errors_of(path) == path.with_suffix(".txt").read_text()


def test_nothing_is_left_over() -> None:
    """Every expectation belongs to a file."""
    assert {path.stem for path in BAD.iterdir()} == {path.stem for path in FILES}
