"""Which keys are changed while a VM runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qsup.instance.change import LIVE
from qsup.unit.model import Applies, Unit, keys_of, sections_of


def keys(cls: type[Any], place: str = "") -> Iterator[tuple[str, Applies]]:
    """Every key as a change names it, and when the model says that it counts."""
    for name, (_, facts) in keys_of(cls).items():
        yield f"{place}{name}", facts.applies
    for name, (_, nested, section) in sections_of(cls).items():
        entry = "one." if section.many and "id" in keys_of(nested) else ""
        yield from keys(nested, f"{place}{name}.{entry}")


def test_what_the_model_calls_live_is_carried_out_and_nothing_else_is() -> None:
    """Each live key has one who carries it out; a key that needs a restart has none."""
    for key, applies in keys(Unit):
        concerned = [each for each in LIVE if each.concerns(key)]
        assert len(concerned) == (applies is Applies.LIVE), key
