"""What a test tells of its tries and of what it measured, to whoever counts.

Decides: that a promise which was broken fails the test.
Must not: know the campaign; outside of one, what is told is kept with the test's report and nobody reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import frozen

#: How often a test that repeats a fault does so in the ordinary test run.
FEW = 3
TRIED, MEASURED = "tried", "measured"

#: Of something that was measured, without a promise.
NOTHING = float("inf")

#: pytest's ``user_properties``.
Properties = list[tuple[str, Any]]


@frozen(kw_only=True)
class Tries:
    """The repetitions of one test; iterating numbers and counts them.

    Args:
        count: how many.
        properties: of the test's report.
    """

    count: int
    properties: Properties

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            self.properties.append((TRIED, 1))
            yield number


@frozen(kw_only=True)
class Promise:
    """Where one test tells what it measured; raises AssertionError when that is not what was promised."""

    properties: Properties

    def told(self, what: str, value: float, *, unit: str = "s") -> None:
        """Something took so long, or became so large, and nothing is promised of that."""
        self.properties.append((MEASURED, (what, value, NOTHING, unit)))

    def kept(self, what: str, value: float, *, within: float, unit: str = "s") -> None:
        """Something took so long, or became so large."""
        self.properties.append((MEASURED, (what, value, within, unit)))
        assert value <= within, f"{what}: {value:.3g} {unit}, not within {within:g} {unit}"
