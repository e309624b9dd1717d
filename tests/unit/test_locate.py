"""Where keys stand in a TOML text."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.unit.locate import MAX_DEPTH, Path, TooComplex, locate
from tests.unit.strategies import nearly_toml
from tests.unit.toml_writer import paths_of, toml_documents


@given(toml_documents())
def test_every_path_is_on_its_line(document: tuple[str, dict[Path, int]]) -> None:
    """Every table, key and array entry that tomllib yields is found, on the line where it was written."""
    text, expected = document
    paths = set(paths_of(tomllib.loads(text)))
    assert paths == expected.keys()
    found = locate(text)
    assert {path: found.get(path) for path in paths} == expected


@given(nearly_toml)
def test_a_text_that_is_no_toml_is_no_error(text: str) -> None:
    """On what is no TOML the scan ends quietly; its lines exist."""
    assert all(1 <= line <= text.count("\n") + 1 for line in locate(text).values())


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("[a.b]\n\n[a]\n", ("a",), 3),
        ("[a.b.c]\n[[x]]\n", ("a", "b"), 1),
        ("[[disk]]\n\n[[disk]]\n[[disk.backing]]\npath = 1\n", ("disk", 1, "backing", 0, "path"), 5),
        ("[[disk]]\n[[disk.backing]]\n[[disk]]\n[[disk.backing]]\n", ("disk", 1, "backing", 0), 4),
        ("a = [\n  1, # one\n  2,\n]\n", ("a", 1), 3),
        ("a = '''\n[b]\nc = 1\n'''\nd = 1", ("d",), 5),
    ],
    ids=["explicit-over-implied", "implied", "nested-array", "nested-array-again", "array-entry", "multi-line-string"],
)
def test_line_of(text: str, path: Path, line: int) -> None:
    """A header stands where it is written, not where it is implied; nested arrays count within their parent."""
    assert locate(text)[path] == line


@pytest.mark.parametrize("text", ["x = 1\na = " + "[" * 10**5, "x = 1\na = " + "{a=" * 10**5, "x=1\n[a" + ".a" * 10**5])
def test_too_deep(text: str) -> None:
    """A text beyond the depth bound is refused with its line, without recursion."""
    with pytest.raises(TooComplex, match=f"deeper than {MAX_DEPTH} levels") as caught:
        locate(text)
    assert caught.value.line == 2


@given(st.integers(1, MAX_DEPTH - 1))
def test_depth_below_the_bound(depth: int) -> None:
    """A text within the bound is located."""
    path: Path = ("a", *([0] * depth))
    assert locate("a = " + "[" * depth + "1" + "]" * depth)[path] == 1
