"""Changes of a VM that runs, by key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qsup.instance.change import LIVE
from qsup.unit.model import Applies, Unit, keys_of, sections_of


def keys(cls: type[Any], path: str = "") -> Iterator[tuple[str, Applies]]:
    """Every key as a change names it, and when it applies; entries of arrays are called ``x.y``."""
    yield from ((f"{path}{name}", facts.applies) for name, (_, facts) in keys_of(cls).items())
    for name, (_, nested, section) in sections_of(cls).items():
        if not section.many or "id" in keys_of(nested):
            yield from keys(nested, f"{path}{name}.{'x.y.' if section.many else ''}")


def test_each_live_key_is_somebodys() -> None:
    """What the model says to be changed live is carried out by one, and nobody carries out anything else."""
    for key, applies in keys(Unit):
        whose = [each for each in LIVE if each.concerns(key)]
        # without one of its own, the most follows the number
        assert len(whose) == (applies is Applies.LIVE or key == "cpu.max-vcpus"), key
