"""How things look: foreign text, tables, sizes, times."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.ctl import render

EVIL = "\033]0;owned\007 \x9b31m red \u202egnp.exe \u2028 \x7f\x00"


@given(text=st.text())
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    """Cleaned text holds no control character, no line break and no change of direction, and is as long as before."""
    cleaned = render.clean(text)
    assert not any(unicodedata.category(sign) in ("Cc", "Zl", "Zp") for sign in cleaned)
    assert not set(cleaned) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert len(cleaned) == len(text)


@given(text=st.text())
def test_lines_keep_their_breaks_and_nothing_else(text: str) -> None:
    """Text of several lines keeps tabs and line feeds; every other control character goes."""
    assert not any(unicodedata.category(sign) == "Cc" and sign not in "\t\n" for sign in render.clean_lines(text))


def test_escape_sequences_are_visible() -> None:
    """What wanted to steer the terminal is shown as text instead."""
    assert "\033" not in render.clean(EVIL)
    assert "owned" in render.clean(EVIL)


@given(text=st.text(max_size=30), width=st.integers(0, 40))
def test_fitted_text_fits(text: str, width: int) -> None:
    """Cut text is never wider than asked for, and uncut text is untouched."""
    text = render.clean(text)
    cut = render.fit(text, width)
    assert render.display_width(cut) <= width
    assert cut == text or render.display_width(text) > width


CELLS = st.lists(st.tuples(*[st.text(max_size=12)] * 3), min_size=1, max_size=5)


@given(rows=CELLS, width=st.none() | st.integers(1, 60))
def test_a_table_never_wraps(rows: list[tuple[str, ...]], width: int | None) -> None:
    """Every row is one line, none wider than the terminal, whatever the cells hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "terminal_width", lambda: width)
        text = render.table(("NAME", ">PID", "TEXT"), rows)
    lines = text.splitlines()
    assert len(lines) in (0, len(rows) + 1)
    assert all(width is None or render.display_width(line) <= width for line in lines)


def test_columns_are_aligned_and_empty_ones_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers to the right, text to the left, wide signs counted double, empty columns gone."""
    rows = [("web", "", "7", "plain"), ("\u30c7\u30fc\u30bf", "", "1234", "wide")]
    assert render.table(("NAME", "CAUSE", ">PID", "TEXT"), rows).splitlines() == [
        "NAME     PID  TEXT",
        "web        7  plain",
        "\u30c7\u30fc\u30bf  1234  wide",
    ]


def test_colours_do_not_count_as_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coloured cell is aligned as the same cell without its colour, and the rest of the row stays plain."""
    monkeypatch.setattr(render, "colours_wanted", lambda: True)
    text = render.table(("STATE", "TEXT"), [("active", "a"), ("failed", "b")], coloured="STATE")
    assert text == "STATE   TEXT\n\033[32mactive\033[0m  a\n\033[31mfailed\033[0m  b\n"


@given(when=st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2399, 12, 31)))
def test_times_are_read_as_datetime_reads_them(when: datetime) -> None:
    """The closed formula agrees with `datetime` to the microsecond."""
    exact = (when - datetime(1970, 1, 1)) / timedelta(seconds=1)
    text = when.replace(tzinfo=UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert render.seconds_since_epoch(text) == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0.4, "0s"),
        (59, "59s"),
        (303, "5min 3s"),
        (3600, "1h"),
        (3605, "1h"),
        (90_000, "1 day 1h"),
        (180_000, "2 days 2h"),
        (40_000_000, "1y 3 months"),
    ],
)
def test_spans_have_two_units(seconds: float, text: str) -> None:
    """A length of time is told in its largest unit and the next, as systemctl does."""
    assert render.span(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0B"), (1023, "1023B"), (1536, "1.5K"), (512 << 20, "512M"), (5 << 40, "5T")]
)
def test_sizes_have_the_largest_unit(amount: int, text: str) -> None:
    """A size is told in the largest unit it fills."""
    assert render.size(amount) == text


def test_a_vm_that_waits_to_come_back_says_why() -> None:
    """As one that is down does."""
    waiting: Any = {"state": "activating", "substate": "auto-restart"}
    assert render.is_named_by_cause(waiting)
