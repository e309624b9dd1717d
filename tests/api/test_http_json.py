"""Strict JSON."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.api import jsontext
from qsup.errors import RequestError

scalars = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"]))
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet=st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(value=values, ascii_only=st.booleans())
def test_every_json_value_survives(value: object, ascii_only: bool) -> None:
    """What a client encodes, escaped or not, is what is read, and what is written reads the same."""
    assert jsontext.loads(json.dumps(value, ensure_ascii=ascii_only).encode()) == value
    assert json.loads(jsontext.dumps(value)) == value


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_request_error(data: bytes) -> None:
    """No input leads to any other exception."""
    try:
        jsontext.loads(data)
    except RequestError:
        pass  # the one refusal there is


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1,]", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b"1 2", "not JSON"),
        (b"\xef\xbb\xbf1", "not JSON"),
        ('"ä"'.encode("utf-16"), "not UTF-8"),
        (b'"\xff"', "not UTF-8: invalid start byte at byte 1"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b"NaN", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"1e999", "too large"),
        (str(2**64).encode(), "64 bits"),
        (str(-(2**63) - 1).encode(), "64 bits"),
        (b"9" * 1000000, "64 bits"),
        (b'{"a": 1, "b": 2, "a": 1}', "'a' is given twice"),
        (b'"\\ud800"', "lone surrogate"),
        (b'{"\\udfff": 1}', "lone surrogate"),
        (b"[" * 65 + b"]" * 65, "deeper than 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "deeper than 64"),
        (b"[" * 100000, "deeper than 64"),
        (b"[" * 100000 + b"]" * 100000, "deeper than 64"),
    ],
)
def test_doubtful_texts_are_refused(data: bytes, message: str) -> None:
    """What another parser might read differently, or not at all, is refused with its reason."""
    with pytest.raises(RequestError, match=message):
        jsontext.loads(data)


@pytest.mark.parametrize("text", ["[" * 64 + "]" * 64, '"\\ud83d\\ude00"', "[" + "[]," * 1000 + "[]]"])
def test_what_is_merely_unusual_is_read(text: str) -> None:
    """The deepest allowed nesting, pairs of surrogates and wide arrays are fine."""
    assert jsontext.loads(text.encode()) == json.loads(text)


def test_undecodable_file_names_can_be_written() -> None:
    """A name that is no UTF-8 is written as JSON that gives it back."""
    name = os.fsdecode(b"caf\xe9 \xff.img")
    assert json.loads(jsontext.dumps({"path": name, "also": "é"})) == {"path": name, "also": "é"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_is_no_json_is_not_written(value: object) -> None:
    """NaN, infinity and other objects are errors, not odd output."""
    with pytest.raises((ValueError, TypeError)):
        jsontext.dumps([value])
