"""Counting what the tests of a campaign report.

Decides: what counts as a try and as lost, and how the table looks.
Must not: run anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from attrs import define, field

from tests.faults.cases import CASES, Case
from tests.faults.trial import MEASURED, NOTHING, TRIED

HEADINGS = ("case", "what is done", "tries", "lost", "worst, of what is promised", "promise")


@define(kw_only=True)
class Row:
    """One case's line.

    Args:
        tries: how often it was tried.
        lost: how many of them broke a promise or left something behind.
        longest: seconds of the longest test.
        worst: by what was measured and what is promised of it, the largest value and the unit.
        left_out: tests that were not run for want of root.
    """

    case: Case
    tries: int = 0
    lost: int = 0
    longest: float = 0.0
    worst: dict[tuple[str, float], tuple[float, str]] = field(factory=dict)
    left_out: set[str] = field(factory=set)

    def leave_out(self, test: str) -> None:
        """A test of it is not run, for it needs root."""
        self.left_out.add(test)

    def what_is_left_out(self) -> str:
        """How much of it is not run."""
        if not self.tries:
            return "all"
        return f"{len(self.left_out)} {'test' if len(self.left_out) == 1 else 'tests'}"

    def cells(self) -> list[str]:
        """The line's cells, as `HEADINGS` names them."""
        tries = str(self.tries) if self.tries else "not run"
        if self.left_out:
            tries += f" ({len(self.left_out)} {'test needs' if len(self.left_out) == 1 else 'tests need'} root)"
        worst = "; ".join(
            f"{what} {_short(value, unit)}" + (f" of {_short(within, unit)}" if within < NOTHING else "")
            for (what, within), (value, unit) in self.worst.items()
        )
        if self.tries and not worst:
            worst = f"a whole test {self.longest:.3g} s"
        lost = str(self.lost) if self.tries or self.lost else ""
        return [self.case.name, self.case.fault, tries, f"**{lost}**" if self.lost else lost, worst, self.case.promise]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _short(value: float, unit: str) -> str:
    return f"{1e3 * value:.3g} ms" if unit == "s" and value < 1 else f"{value:.3g} {unit}"


class Tally:
    """All cases that were asked for."""

    def __init__(self, names: Iterable[str]) -> None:
        self.rows = {name: Row(case=CASES[name]) for name in CASES if name in set(names)}
        #: Failures that are no case's, such as of the session's last look around.
        self.strays = 0

    def count(self, name: str | None, *, failed: bool, seconds: float, told: Sequence[tuple[str, Any]]) -> None:
        """Count one test, or what failed before or after all of them.

        Args:
            name: its case's.
            failed: a promise was broken, or something was left behind.
            told: its report's properties, as a `tests.faults.trial.Trial` puts them there.
        """
        if name is None:
            self.strays += failed
            return
        row = self.rows[name]
        row.lost += failed
        row.tries += sum(number for what, number in told if what == TRIED) or 1
        row.longest = max(row.longest, seconds)
        for what, value, within, unit in (measured for key, measured in told if key == MEASURED):
            known = row.worst.get((what, within))
            if known is None or value > known[0]:
                row.worst[what, within] = (value, unit)

    def summary(self) -> str:
        """What was done in all, and what was not, in one line."""
        words = f"{sum(row.tries for row in self.rows.values())} tries, {self.lost} lost"
        left_out = [f"{row.what_is_left_out()} of {name}" for name, row in self.rows.items() if row.left_out]
        return f"{words}; not run for want of root: {', '.join(left_out)}" if left_out else f"{words}; nothing left out"

    @property
    def lost(self) -> int:
        """How much was lost in all."""
        return self.strays + sum(row.lost for row in self.rows.values())

    @property
    def exit_code(self) -> int:
        """0 when nothing was lost and something was tried."""
        return int(self.lost > 0 or not any(row.tries for row in self.rows.values()))

    def text(self) -> str:
        """A table for a terminal: without the words that the cases' descriptions repeat."""
        rows = [
            [cell for cell, heading in zip(row, HEADINGS, strict=True) if heading != "promise"] for row in self._all()
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def markdown(self, before: str = "") -> str:
        """A table for a document.

        Args:
            before: what stands there; its lines of cases that were not asked for this time stay.
        """
        lines = {name: line for line in before.splitlines() for name in CASES if line.startswith(f"| {name} |")}
        head, *rows = self._all()
        lines |= {row[0]: _line(row) for row in rows}
        return "\n".join([_line(head), _line(["---"] * len(head)), *(lines[name] for name in CASES if name in lines)])

    def _all(self) -> list[list[str]]:
        return [list(HEADINGS), *(row.cells() for row in self.rows.values())]
