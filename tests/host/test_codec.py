"""Tests of `qsup.host.codec`: records as JSON, strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import StateFileError
from qsup.host import codec


@frozen(kw_only=True)
class Part:
    """A record within a record."""

    path: str
    writable: bool


@frozen(kw_only=True)
class Sample:
    """One field of every kind."""

    SCHEMA: ClassVar[int] = 2
    UPGRADES: ClassVar[codec.Upgrades] = {1: lambda values: {"count": int(values.pop("number")), **values}}

    name: str
    count: int
    started: float
    pid: int | None = None
    words: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    labels: Mapping[str, str] = field(factory=dict)
    rest: Mapping[str, Any] = field(factory=dict)


GOOD: dict[str, Any] = {"schema": 2, "name": "web", "count": 3, "started": 1.5}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
samples = st.builds(
    Sample,
    name=st.text(),
    count=st.integers(),
    started=st.floats(allow_nan=False, allow_infinity=False),
    pid=st.none() | st.integers(),
    words=st.lists(st.text()).map(tuple),
    parts=st.lists(st.builds(Part, path=st.text(), writable=st.booleans())).map(tuple),
    labels=st.dictionaries(st.text(), st.text()),
    rest=st.dictionaries(st.text(), json_values),
)


@given(samples)
def test_reads_back_what_was_written(sample: Sample) -> None:
    """Every record survives its way through JSON unchanged."""
    assert codec.decode(Sample, json.loads(json.dumps(codec.encode(sample)))) == sample


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"count": "3"}, "count: expected int, not a string"),
        ({"count": True}, "count: expected int, not a boolean"),
        ({"count": 3.0}, "count: expected int, not a float"),
        ({"started": "now"}, "started: expected float, not a string"),
        ({"name": None}, "name: expected str, not null"),
        ({"words": "abc"}, "words: expected an array, not a string"),
        ({"words": ["a", 1]}, r"words\[1\]: expected str, not an integer"),
        ({"parts": [{"path": "x"}]}, r"missing key parts\[0\].'writable'"),
        ({"parts": [[]]}, r"parts\[0\]\.: expected an object, not an array"),
        ({"labels": {"a": 1}}, "labels.a: expected str, not an integer"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"schema": 3}, "its schema is 3, and this qsupd reads up to 2"),
        ({"schema": True}, "schema True is no version"),
        ({"schema": None}, "schema None is no version"),
        ({"schema": 0}, "schema 0 is no version"),
    ],
)
def test_names_what_is_wrong(change: dict[str, Any], complaint: str) -> None:
    """A value of another type, an unknown key and a newer schema are refused with the key's name, never coerced."""
    with pytest.raises(ValueError, match=complaint):
        codec.decode(Sample, GOOD | change)


def test_missing_key_is_named() -> None:
    """A key without a default must be there."""
    with pytest.raises(ValueError, match="missing key 'count'"):
        codec.decode(Sample, {"schema": 2, "name": "web", "started": 0})


def test_reads_an_older_schema() -> None:
    """A record of an older schema is upgraded first; what is none says so."""
    older = {"schema": 1, "name": "web", "number": 3, "started": 1.5}
    assert codec.decode(Sample, older) == codec.decode(Sample, GOOD)
    with pytest.raises(ValueError, match="it is no record of schema 1: KeyError"):
        codec.decode(Sample, GOOD | {"schema": 1})


BAD_FILES = {
    "empty": b"",
    "truncated": json.dumps(GOOD).encode()[:-5],
    "random": bytes(range(256)) * 9,
    "nested": b"[" * 10_000,
    "nested object": b'{"schema":1,"rest":' + b'{"a":' * 100_000,
    "nan": json.dumps(GOOD | {"started": float("nan")}).encode(),
    "long integer": b'{"schema":' + b"9" * 5000 + b"}",
    "array": b"[1]",
    "surrogate": b'{"schema":1,"name":"\xff"}',
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_file_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    """Whatever a record's file holds, the error names the file, and the file stays as it is."""
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(StateFileError, match=r"record\.json is not a valid record: ."):
        codec.load(Sample, path)
    assert path.read_bytes() == content


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    """100 MB are refused without being read into memory."""
    path = tmp_path / "record.json"
    with open(path, "wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(StateFileError, match="larger than 1048576 bytes"):
        codec.load(Sample, path)
    assert path.stat().st_size == 100_000_000


def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    """A link in a record's place is refused, even to a good record."""
    codec.save(Sample(**{key: value for key, value in GOOD.items() if key != "schema"}), tmp_path / "good.json")
    (tmp_path / "record.json").symlink_to("good.json")
    with pytest.raises(StateFileError, match=r"record\.json cannot be read"):
        codec.load(Sample, tmp_path / "record.json")
