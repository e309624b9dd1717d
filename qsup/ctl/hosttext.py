"""A host drawn with characters.

Decides: frames, bars and cells, how they adapt to a width, and what stands for them in plain ASCII.
Must not: know what is drawn; `qsup.ctl.hostpicture` says it.
"""

from __future__ import annotations

from qsup.ctl.hostpicture import FULL, HIGH, MARKS
from qsup.ctl.render import clean, paint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from qsup.api.hostwire import CpuWire
    from qsup.ctl.hostpicture import Bar, Group, HostPicture, NodePicture

#: Columns below which it gets no narrower, and beyond which no wider.
_NARROWEST, _WIDEST = 40, 160
#: Columns that a node has where several stand beside each other.
_BESIDE = 80
_LONGEST_BAR = 40


class Signs:
    """What a drawing consists of.

    Args:
        corners: from the left above clockwise.
        across, down: between them.
        full, promised, empty: parts of a bar.
        signs: of CPUs, by `MARKS`.
    """

    __slots__ = ("across", "corners", "down", "empty", "full", "marks", "promised")

    def __init__(self, corners: str, across: str, down: str, bar: str, signs: str) -> None:
        self.corners = corners
        self.across = across
        self.down = down
        self.full, self.promised, self.empty = tuple(bar)
        self.marks: Mapping[str, str] = dict(zip(MARKS, signs, strict=True))


UNICODE = Signs("┌┐┘└", "─", "│", "█▒░", "✕⊘◌●○")
ASCII = Signs("++++", "-", "|", "#=.", "x-i!*")


def draw(host: HostPicture, signs: Signs, width: int, *, brief: bool = False) -> str:
    """The drawing.

    Args:
        width: columns that there are.
        brief: how full each node is, and no more.
    """
    columns = max(1, min(len(host.nodes), (width + 1) // (_BESIDE + 1)))
    width = max(_NARROWEST, min(width, _WIDEST if columns == 1 else width))
    lines = [*_fill(host.title, width)]
    cell = _Cell(host, signs)
    each = (width + 1) // columns - 1
    for first in range(0, len(host.nodes), columns):
        row = host.nodes[first : first + columns]
        inside = [list(_bars(node, signs, each - 4)) for node in row]
        if not brief:
            inside = [[*bars, *_rest(node, cell, each - 4)] for node, bars in zip(row, inside, strict=True)]
        height = max(map(len, inside))
        frames = [
            _framed(node.title, [*drawn, *[_Line("")] * (height - len(drawn))], signs, each)
            for node, drawn in zip(row, inside, strict=True)
        ]
        lines += ["", *map(" ".join, zip(*frames, strict=True))]
    if brief:
        return "".join(f"{line}\n" for line in lines)
    lines += _distances(host, width)
    if host.residents:
        lines += ["", "on several nodes"]
        for names, words in host.residents:
            lines += _fill(f"{clean(names)}: {words}", width, "  ")
    if host.marks:
        lines += ["", *_fill("; ".join(f"{signs.marks[mark]} {MARKS[mark]}" for mark in host.marks), width)]
    return "".join(f"{line}\n" for line in lines)


class _Cell:
    """How a CPU is written: each as wide as any other of the host."""

    def __init__(self, host: HostPicture, signs: Signs) -> None:
        cpus = [cpu for node in host.nodes for group in node.groups for core in group.cores for cpu in core]
        self._signs = signs
        self._marks_of = host.marks_of
        self._digits = max((len(str(cpu["number"])) for cpu in cpus), default=1)
        self._marks = max(map(len, host.marks_of.values()), default=0)

    def __call__(self, cpu: CpuWire) -> str:
        found = "".join(self._signs.marks[mark] for mark in self._marks_of[cpu["number"]])
        return f"{cpu['number']:>{self._digits}}{found:<{self._marks}}"


class _Line:
    """One line of a node, with a bar in it or without.

    Args:
        bar: a part of the text, to be coloured by the share.
    """

    __slots__ = ("bar", "share", "text")

    def __init__(self, text: str, bar: str = "", share: float = 0.0) -> None:
        self.text = text
        self.bar = bar
        self.share = share

    def shown(self, width: int) -> str:
        """So wide, and coloured where the terminal has colours."""
        level = "active" if self.share < HIGH else "activating" if self.share < FULL else "failed"
        text = f"{self.text:<{width}}"
        return text.replace(self.bar, paint(self.bar, level), 1) if self.bar else text


def _framed(title: str, lines: list[_Line], signs: Signs, width: int) -> Iterator[str]:
    corners, across, down = signs.corners, signs.across, signs.down
    yield f"{corners[0]}{across} {title} ".ljust(width - 1, across) + corners[1]
    for line in lines:
        yield f"{down} {line.shown(width - 4)} {down}"
    yield corners[3] + across * (width - 2) + corners[2]


def _bars(node: NodePicture, signs: Signs, width: int) -> Iterator[_Line]:
    label = max((len(bar.label) for bar in node.bars), default=0)
    words = max((len(bar.words) for bar in node.bars), default=0)
    length = min(_LONGEST_BAR, width - label - words - 4)
    for bar in node.bars:
        drawn = _bar(bar, signs, length)
        yield _Line(f"{bar.label:<{label}}  {drawn}  {bar.words}", drawn, bar.share)
    if not any(bar.label == "memory" for bar in node.bars):
        yield _Line("no memory")
    if not node.groups:
        yield _Line("no CPUs")


def _rest(node: NodePicture, cell: _Cell, width: int) -> Iterator[_Line]:
    """What is below the bars: cores, and who runs there."""
    for group in node.groups:
        yield from map(_Line, _group(group, cell, width))
    for names, told in node.residents:
        yield from map(_Line, _fill(f"{clean(names)}: {told}", width))


def _bar(bar: Bar, signs: Signs, length: int) -> str:
    used, promised = _parts(bar.share, length), _parts(bar.promised, length)
    more = max(0, promised - used)
    return signs.full * used + signs.promised * more + signs.empty * (length - used - more)


def _parts(share: float, length: int) -> int:
    """Of so many: what is not empty shows, and what is not full does, too."""
    parts = round(share * length)
    parts = max(parts, 1) if share > 0 else parts
    return min(parts, length - 1) if share < 1 else parts


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
