"""Whatever is in a file, reading it gives a unit or errors, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qsup.unit.compose import Composed, compose
from qsup.unit.document import read_document
from qsup.unit.parse import MAX_ERRORS
from qsup.unit.specifier import SpecifierContext
from tests.unit.strategies import nearly_toml


def composed(*contents: bytes, name: str = "web") -> Composed:
    """What files of these contents amount to."""
    documents = [read_document(f"{number}.toml", data) for number, data in enumerate(contents)]
    return compose(documents, SpecifierContext(name=name))


def assert_sound(result: Composed, *contents: bytes) -> None:
    """There is a unit or there are errors; each error is one line of text at a line that exists."""
    assert (result.unit is None) == bool(result.diagnostics)
    for diagnostic in result.diagnostics:
        assert str(diagnostic).isprintable()
        assert diagnostic.message
        assert len(str(diagnostic)) < 1000
        assert 0 <= diagnostic.line <= max(data.count(b"\n") for data in contents) + 1


@given(st.binary(max_size=200))
@example(b"\xff")
@example(b"a = " + b"[" * 5000)
@example(b"a = " + b"{a=" * 5000)
@example(b"a" + b".a" * 5000 + b" = 1")
@example(b"a = " + b"9" * 5000)
@example(b"a = 0x" + b"f" * 5000)
@example(b"[memory]\nsize = 0x" + b"f" * 5000)
@example(b"[cpu]\nvcpus = 0x" + b"f" * 5000)
@example(b'"\\u0000\\n" = 1')
@example(b'["\\u2028"]')
def test_any_bytes_make_a_unit_or_errors(data: bytes) -> None:
    """Any bytes at all are a unit or a list of errors."""
    assert_sound(composed(data), data)


@given(st.lists(nearly_toml.map(str.encode), min_size=1, max_size=3), st.sampled_from(["web", "web@", "web@blue"]))
def test_near_toml_makes_a_unit_or_errors(contents: list[bytes], name: str) -> None:
    """So are texts that are nearly TOML, merged, for a unit, a template and an instance."""
    assert_sound(composed(*contents, name=name), *contents)


MANY = {
    "unknown": "".join(f"k{number} = 1\n" for number in range(4000)),
    "nameless": "[[disk]]\n" * 4000,
    "namesakes": "[[disk]]\nid = 'a'\n" * 3000,
    "contradictory": "".join(f"[[nic]]\nid = '{number}'\ntype = 'tap'\n" for number in range(2000)),
    "forwards": "".join(f"[[nic]]\nid = '{number}'\nforward = ['1:1']\n" for number in range(1500)),
}


@pytest.mark.parametrize("text", MANY.values(), ids=MANY)
def test_many_errors_are_cut(text: str) -> None:
    """Of thousands of errors as many are reported as somebody may read, and it is said that there are more."""
    result = composed(text.encode())
    assert_sound(result, text.encode())
    assert [diagnostic.message for diagnostic in result.diagnostics][MAX_ERRORS:] == [
        f"more than {MAX_ERRORS} errors; the rest is not shown"
    ]
