"""The last words before a VM failed: the ends of what QEMU printed and of what the guest wrote to its console.

Decides: how many lines are kept, how long each may be, and that nothing in them can steer whoever reads them.
Must not: decide when they are taken, or interpret them: both may be a hostile guest's.

Of a VM that was taken over the console's history is as old as its life, as far as an earlier daemon kept it.
"""

from __future__ import annotations

import re

from attrs import evolve

from qsup.host.output import printable
from qsup.instance.cause import Cause, CauseKind

#: Lines kept of each, and characters of one.
LINES, WIDTH = 10, 200
#: Bytes that are looked at: a guest that ends no line has no further lines.
_LOOKED_AT = LINES * WIDTH * 8
# what `printable` leaves, and lines of nothing
_BLANK = re.compile(r"[\t\u2028\u2029]")


def last_lines(data: bytes) -> tuple[str, ...]:
    """The last lines that hold anything, oldest first: at most `LINES` of at most `WIDTH` characters."""
    lines = (_BLANK.sub(" ", line).strip() for line in printable(data[-_LOOKED_AT:]).split("\n"))
    kept = [line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}\u2026" for line in lines if line]
    return tuple(kept[-LINES:])


def wanted(cause: Cause | None) -> bool:
    """Whether anybody asks what was last said: an operator who ended a VM knows why it ended."""
    return cause is not None and cause.kind is not CauseKind.OPERATOR


def add(cause: Cause, output: bytes, console: bytes) -> Cause:
    """A cause with what was last said before it."""
    return evolve(cause, output=last_lines(output), console=last_lines(console))
