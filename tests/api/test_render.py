"""From the supervisor's values to JSON."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from qsup.api import render, wire
from qsup.api.render import InstanceCache, timestamp
from qsup.instance.operation import OperationState
from qsup.instance.state import Level
from tests.api.fake import make_view


def test_words_of_the_wire_are_those_of_the_enums() -> None:
    """The levels and operation states that the types promise are the ones there are."""
    assert set(get_args(wire.Level)) == {level.value for level in Level}
    assert set(get_args(wire.OperationState)) == {state.value for state in OperationState}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (1772366400.000001, "2026-03-01T12:00:00.000001Z"),
        (1772366399.9999999, "2026-03-01T12:00:00.000000Z"),
    ],
)
def test_times_are_rfc3339_with_microseconds(seconds: float, text: str) -> None:
    """UTC, always six digits, ``Z``."""
    assert timestamp(seconds) == text


def test_a_view_is_rendered_once() -> None:
    """The same view gives the same bytes object; an equal but newer one is rendered anew."""
    cache, view = InstanceCache(), make_view("web")
    text = cache.one(view)
    assert cache.one(view) is text
    newer = evolve(view)
    assert cache.one(newer) is not text
    assert cache.one(newer) == text


@given(st.lists(st.sampled_from("abcdef"), unique=True), st.none() | st.just("x"))
def test_a_joined_list_is_the_list_of_its_parts(names: list[str], after: str | None) -> None:
    """Joining rendered texts gives the same document as rendering the list."""
    views = [make_view(name) for name in names]
    joined = json.loads(InstanceCache().many(views, after))
    assert joined == {"instances": [render.instance(view) for view in views], "next": after}
