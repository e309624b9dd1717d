"""A host drawn with characters.

Decides: frames, bars and cells, how they adapt to a width, and what stands for them in plain ASCII.
Must not: know what is drawn; `qsup.ctl.hostpicture` says it.
"""

from __future__ import annotations

from qsup.ctl.hostpicture import MARKS, marks
from qsup.ctl.render import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from qsup.api.wire import CpuWire
    from qsup.ctl.hostpicture import Bar, Group, HostPicture, NodePicture

#: Columns below which it gets no narrower, and beyond which no wider.
_NARROWEST, _WIDEST = 40, 160
_LONGEST_BAR = 40


class Signs:
    """What a drawing consists of.

    Args:
        corners: from the left above clockwise.
        across, down: between them.
        full, empty: parts of a bar.
        signs: of CPUs, by `MARKS`.
    """

    __slots__ = ("across", "corners", "down", "empty", "full", "marks")

    def __init__(self, corners: str, across: str, down: str, full: str, empty: str, signs: str) -> None:
        self.corners = corners
        self.across = across
        self.down = down
        self.full = full
        self.empty = empty
        self.marks: Mapping[str, str] = dict(zip(MARKS, signs, strict=True))


UNICODE = Signs("┌┐┘└", "─", "│", "█", "░", "✕⊘◌●")
ASCII = Signs("++++", "-", "|", "#", ".", "x-i*")


def draw(host: HostPicture, signs: Signs, width: int) -> str:
    """The drawing.

    Args:
        width: columns that there are.
    """
    width = max(_NARROWEST, min(width, _WIDEST))
    lines = [*_fill(host.title, width)]
    cell = _Cell(host, signs)
    for node in host.nodes:
        lines += ["", *_framed(node.title, list(_node(node, cell, signs, width - 4)), signs, width)]
    lines += _distances(host, width)
    if host.pinned:
        lines += ["", "pinned"]
        for name, words in host.pinned:
            lines += _fill(f"{clean(name)}: {words}", width, "  ")
    if host.marks:
        lines += ["", *_fill("; ".join(f"{signs.marks[mark]} {MARKS[mark]}" for mark in host.marks), width)]
    return "".join(f"{line}\n" for line in lines)


class _Cell:
    """How a CPU is written: each as wide as any other of the host."""

    def __init__(self, host: HostPicture, signs: Signs) -> None:
        cpus = [cpu for node in host.nodes for group in node.groups for core in group.cores for cpu in core]
        self._signs = signs
        self._digits = max((len(str(cpu["number"])) for cpu in cpus), default=1)
        self._marks = max((len(marks(cpu)) for cpu in cpus), default=0)

    def __call__(self, cpu: CpuWire) -> str:
        found = "".join(self._signs.marks[mark] for mark in marks(cpu))
        return f"{cpu['number']:>{self._digits}}{found:<{self._marks}}"


def _framed(title: str, lines: list[str], signs: Signs, width: int) -> Iterator[str]:
    corners, across, down = signs.corners, signs.across, signs.down
    yield f"{corners[0]}{across} {title} ".ljust(width - 1, across) + corners[1]
    for line in lines:
        yield f"{down} {line:<{width - 4}} {down}"
    yield corners[3] + across * (width - 2) + corners[2]


def _node(node: NodePicture, cell: _Cell, signs: Signs, width: int) -> Iterator[str]:
    label = max((len(bar.label) for bar in node.bars), default=0)
    words = max((len(bar.words) for bar in node.bars), default=0)
    length = min(_LONGEST_BAR, width - label - words - 4)
    for bar in node.bars:
        yield f"{bar.label:<{label}}  {_bar(bar, signs, length)}  {bar.words}"
    if not node.bars:
        yield "no memory"
    for group in node.groups:
        yield from _group(group, cell, width)
    if not node.groups:
        yield "no CPUs"


def _bar(bar: Bar, signs: Signs, length: int) -> str:
    # what is not empty shows, and what is not full does, too
    parts = round(bar.share * length)
    parts = max(parts, 1) if bar.share > 0 else parts
    parts = min(parts, length - 1) if bar.share < 1 else parts
    return signs.full * parts + signs.empty * (length - parts)


def _group(group: Group, cell: _Cell, width: int) -> Iterator[str]:
    yield group.title
    line = " "
    for core in group.cores:
        words = f" [{' '.join(map(cell, core))}]"
        if len(line) + len(words) > width and line.strip():
            yield line
            line = " "
        # a core of many threads may be wider than all there is
        while len(line) + len(words) > width:
            cut = words.rindex(" ", 0, width - len(line))
            if cut <= 0:
                break
            yield line + words[:cut]
            line, words = "  ", words[cut:]
        line += words
    yield line


def _distances(host: HostPicture, width: int) -> Iterator[str]:
    """A table, in parts where it is too wide."""
    if not host.distances:
        return
    column = 1 + max(len(str(number)) for number in (*host.numbers, *(far for row in host.distances for far in row)))
    fitting = max(1, (width - 6) // column)
    yield ""
    yield "distances"
    for first in range(0, len(host.numbers), fitting):
        part = slice(first, first + fitting)
        yield f"  {'node':<4}" + "".join(f"{number:>{column}}" for number in host.numbers[part])
        for number, row in zip(host.numbers, host.distances, strict=True):
            yield f"  {number:>4}" + "".join(f"{far:>{column}}" for far in row[part])


def _fill(text: str, width: int, indent: str = "") -> Iterator[str]:
    """The words on as many lines as they take, those after the first further in."""
    line = indent
    for word in text.split():
        if line.strip() and len(line) + 1 + len(word) > width:
            yield line
            line = f"{indent}  "
        line += word if not line.strip() else f" {word}"
    yield line
