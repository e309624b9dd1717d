"""Figures: what was measured, what it is compared with, and whether it is what was promised.

Decides: how samples become a median and a 99th percentile, and how a table of them looks.
Must not: measure anything.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

import attrs


@attrs.frozen(kw_only=True)
class Limit:
    """A target: its words, and the most that is allowed given the reference's median."""

    words: str
    allowed: Callable[[float], float]


def at_most(most: float, unit: str) -> Limit:
    """A target that depends on nothing."""
    return Limit(words=f"≤ {most:g} {unit}", allowed=lambda _: most)


def times(factor: float, *, plus: float = 0.0, unit: str = "") -> Limit:
    """A multiple of the reference, and a little more."""
    words = f"≤ {factor:g} x" + (f" + {plus:g} {unit}" if plus else "")
    return Limit(words=words, allowed=lambda reference: factor * reference + plus)


def plus(more: float, unit: str) -> Limit:
    """The reference and a little more."""
    return Limit(words=f"≤ bare + {more:g} {unit}", allowed=lambda reference: reference + more)


@attrs.frozen(kw_only=True)
class Figure:
    """One line of the table.

    Args:
        name: what was measured.
        unit: of the samples.
        qsup: the samples.
        bare: samples of the reference in the same run; none when there is no reference.
        reference: what the reference is.
        limit: the target; none for what only explains another figure.
    """

    name: str
    unit: str
    qsup: Sequence[float]
    bare: Sequence[float] = ()
    reference: str = ""
    limit: Limit | None

    @property
    def is_met(self) -> bool:
        """Whether the median keeps to the target."""
        reference = statistics.median(self.bare) if self.bare else 0.0
        return self.limit is None or statistics.median(self.qsup) <= self.limit.allowed(reference)

    def cells(self) -> list[str]:
        """The line's cells, as `HEADINGS` names them."""
        bare = [_short(statistics.median(self.bare)), _short(percentile(self.bare, 0.99))] if self.bare else ["", ""]
        ratio = f"{statistics.median(self.qsup) / statistics.median(self.bare):.2f}" if self.bare else ""
        ours = [_short(statistics.median(self.qsup)), _short(percentile(self.qsup, 0.99))]
        target = [self.limit.words, "yes" if self.is_met else "**no**"] if self.limit else ["", ""]
        return [self.name, self.unit, *ours, self.reference, *bare, ratio, *target, str(len(self.qsup))]


HEADINGS = tuple("figure,unit,median,p99,compared with,its median,its p99,ratio,target,met,samples".split(","))


def percentile(samples: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: of few samples it is the largest."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def milliseconds(samples: Iterable[float]) -> list[float]:
    """Seconds as milliseconds."""
    return [1e3 * sample for sample in samples]


def text_table(figures: Sequence[Figure]) -> str:
    """A table for a terminal."""
    rows = [list(HEADINGS), *(figure.cells() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def markdown_table(figures: Sequence[Figure]) -> str:
    """A table for a document."""
    rows = [HEADINGS, ["---"] * len(HEADINGS), *(figure.cells() for figure in figures)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _short(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
