"""Entries that are not present: left out before any rule is applied, in whichever file it says so."""

from __future__ import annotations

import pytest

from qsup.unit.compose import compose
from qsup.unit.document import read_document
from qsup.unit.specifier import SpecifierContext

UNIT = '[[disk]]\nid = "a"\npath = "x.img"\n\n[[disk]]\nid = "b"\npath = "y.img"\n'


def disks(*dropins: str, unit: str = UNIT) -> tuple[list[str], list[str]]:
    """The disks of a unit with drop-ins, and its errors."""
    texts = (unit, *dropins)
    documents = [read_document(f"{number}.toml", text.encode()) for number, text in enumerate(texts)]
    found = compose(documents, SpecifierContext(name="web"))
    return [disk.id for disk in found.unit.disks] if found.unit else [], [str(each) for each in found.diagnostics]


@pytest.mark.parametrize(
    ("dropins", "left"),
    [
        ((), ["a", "b"]),
        (('[[disk]]\nid = "a"\npresent = false\n',), ["b"]),
        (('[[disk]]\nid = "a"\npresent = false\n', '[[disk]]\nid = "a"\npresent = true\n'), ["a", "b"]),
        (('[[disk]]\nid = "none"\npresent = false\n',), ["a", "b"]),
        (('[[disk]]\nid = "b"\npath = "x.img"\npresent = false\n',), ["a"]),
    ],
)
def test_what_is_not_present_is_not_there(dropins: tuple[str, ...], left: list[str]) -> None:
    """The last word counts; no rule looks at what is left out, nor is anything required of it."""
    assert disks(*dropins) == (left, [])


def test_what_is_wrong_in_it_is_told_all_the_same() -> None:
    """A key that does not exist is an error wherever it stands."""
    left, errors = disks('[[disk]]\nid = "a"\npresent = false\ncash = "none"\n')
    assert left == []
    assert errors == ["1.toml:4: disk.a.cash: unknown key 'cash'; did you mean 'cache'?"]
