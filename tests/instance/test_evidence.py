"""The last words before a failure: few, short, and harmless whatever a guest wrote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.instance.cause import Cause, CauseKind
from qsup.instance.evidence import LINES, WIDTH, add, last_lines, wanted


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", ()),
        (b"one\r\ntwo\n\n \n", ("one", "two")),
        (b"\x1b[31mred\x1b[0m\x07\tx\n", ("red x",)),
        (b"a\xe2\x80\xaeb\xe2\x80\xa8c\xff", ("ab c\ufffd",)),
        (b"x" * 1000, ("x" * (WIDTH - 1) + "\u2026",)),
        (b"\n".join(b"%d" % number for number in range(50)), tuple(map(str, range(40, 50)))),
    ],
    ids=["nothing", "blank", "escapes", "directions", "long", "many"],
)
def test_last_lines(data: bytes, lines: tuple[str, ...]) -> None:
    """What holds nothing is left out, what is too long is cut, and the newest stay."""
    assert last_lines(data) == lines


@given(st.binary(max_size=5000))
def test_whatever_was_written_is_bounded_and_printable(data: bytes) -> None:
    """No byte of a guest reaches a terminal, a log or a record as a control character."""
    lines = last_lines(data)
    assert len(lines) <= LINES
    for line in lines:
        assert 0 < len(line) <= WIDTH
        assert not any(ord(sign) < 0x20 or 0x7F <= ord(sign) < 0xA0 for sign in line)


def test_an_operators_end_needs_no_evidence() -> None:
    """Whoever ended it knows why; of everything else the last words are kept."""
    assert not wanted(None)
    assert not wanted(Cause(kind=CauseKind.OPERATOR))
    cause = Cause(kind=CauseKind.GUEST_PANIC)
    assert wanted(cause)
    assert add(cause, b"out\n", b"con\n") == Cause(kind=CauseKind.GUEST_PANIC, output=("out",), console=("con",))
