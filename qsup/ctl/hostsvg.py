"""A host drawn as SVG 1.1: one document that needs no other, no script and no font of its own.

Decides: where things stand, their colours, and what of foreign text may become part of the document.
Must not: know what is drawn; `qsup.ctl.hostpicture` says it.
"""

from __future__ import annotations

from qsup.ctl.hostpicture import FULL, HIGH, MARKS
from qsup.ctl.render import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from qsup.api.hostwire import CpuWire
    from qsup.ctl.hostpicture import Bar, Group, HostPicture, NodePicture

_WIDTH, _EDGE, _LINE, _LETTER = 960, 16, 20, 7.3
_CELL, _GAP = 22, 8
_BAR, _LABEL = 320, 90
_STYLE = """\
text { font: 12px monospace; fill: #222; }
.title { font-weight: bold; }
.paper { fill: #fff; }
.node { fill: #f6f6f4; stroke: #888; }
.core { fill: #fff; stroke: #888; }
.cpu { fill: #e4e4e0; }
.offline { fill: #fff; stroke: #bbb; stroke-dasharray: 2 2; }
.foreign { fill: #bbb; }
.isolated { fill: #cfe0f4; }
.owned { fill: #f4d3c4; stroke: #c04000; stroke-width: 2; }
.pinned { stroke: #c04000; stroke-width: 2; }
.empty { fill: #e4e4e0; }
.promised { fill: #b9c9bd; }
.low { fill: #3f8f4f; }
.high { fill: #c98a00; }
.full { fill: #c0392b; }
"""


def draw(host: HostPicture) -> str:
    """The document, in ASCII."""
    page = _Page()
    page.text(_EDGE, host.title, "title")
    page.go(_LINE)
    cells = [cpu for node in host.nodes for group in node.groups for core in group.cores for cpu in core]
    digits = max((len(str(cpu["number"])) for cpu in cells), default=1)
    width = max(_CELL, round(digits * _LETTER) + 8)
    for node in host.nodes:
        _draw_node(page, node, width, host.marks_of)
    if host.distances:
        _draw_distances(page, host.numbers, host.distances)
    if host.residents:
        page.heading("on several nodes")
        for resident in host.residents:
            _draw_resident(page, resident)
    if host.marks:
        page.heading("CPUs")
        for mark in host.marks:
            page.box(2 * _EDGE, -12, _CELL, 16, f"cpu {mark}")
            page.text(2 * _EDGE + _CELL + _GAP, MARKS[mark])
            page.go(_LINE)
    return page.document()


class _Page:
    """What has been drawn, and how far down it goes."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._width = float(_WIDTH)
        self.y = 2 * _EDGE

    def go(self, down: int) -> None:
        """Go on further down."""
        self.y += down

    def heading(self, text: str) -> None:
        """A part's title."""
        self.go(2 * _GAP)
        self.text(_EDGE, text, "title")
        self.go(_LINE)

    def text(self, x: float, text: str, kind: str = "", *, anchor: str = "") -> None:
        """Words whose base line is where the page has got to."""
        self._width = max(self._width, x + _EDGE)
        what = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
        self._parts.append(f'<text x="{x:g}" y="{self.y}"{what}>{_escaped(text)}</text>')

    def box(self, x: float, above: int, width: float, height: int, kind: str, title: str = "") -> None:
        """A rectangle, its upper edge so far below that."""
        self._parts.append(self._box(x, self.y + above, width, height, kind, title))

    def mark(self) -> tuple[int, int]:
        """A place that `frame` puts a rectangle at, behind what is drawn from then on."""
        self._parts.append("")
        return len(self._parts) - 1, self.y

    def frame(self, place: tuple[int, int], kind: str) -> None:
        """A rectangle from the place to where the page has got to."""
        part, y = place
        self._parts[part] = self._box(_EDGE, y, _WIDTH - 2 * _EDGE, self.y - y, kind, "")

    def _box(self, x: float, y: int, width: float, height: int, kind: str, title: str) -> str:
        self._width = max(self._width, x + width + _EDGE)
        told = f"><title>{_escaped(title)}</title></rect>" if title else "/>"
        return f'<rect class="{kind}" x="{x:g}" y="{y}" width="{width:g}" height="{height}" rx="2"{told}'

    def document(self) -> str:
        """All of it."""
        width, height = round(self._width), self.y + _EDGE
        size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        head = f'<?xml version="1.0" encoding="UTF-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" version="1.1" {size}>'
        paper = f'<rect class="paper" width="{width}" height="{height}"/>'
        return "\n".join([head, f"<style>\n{_STYLE}</style>", paper, *filter(None, self._parts), "</svg>", ""])


def _escaped(text: str) -> str:
    """Text as XML takes it; names of VMs are ASCII, and what is none cannot all be said in XML."""
    plain = clean(text).encode("ascii", "replace").decode()
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _draw_resident(page: _Page, resident: tuple[str, str]) -> None:
    for line in _fill(": ".join(resident)):
        page.text(2 * _EDGE, line)
        page.go(_LINE)


def _draw_node(page: _Page, node: NodePicture, width: int, marks_of: Mapping[int, list[str]]) -> None:
    place = page.mark()
    page.go(_LINE)
    page.text(2 * _EDGE, node.title, "title")
    page.go(_LINE)
    for bar in node.bars:
        _draw_bar(page, bar)
    has_memory = any(bar.label == "memory" for bar in node.bars)
    for words in [*([] if has_memory else ["no memory"]), *([] if node.groups else ["no CPUs"])]:
        page.text(2 * _EDGE, words)
        page.go(_LINE)
    for group in node.groups:
        _draw_group(page, group, width, marks_of)
    for resident in node.residents:
        _draw_resident(page, resident)
    page.frame(place, "node")
    page.go(_GAP)


def _draw_bar(page: _Page, bar: Bar) -> None:
    left = 2 * _EDGE + _LABEL
    page.text(2 * _EDGE, bar.label)
    page.box(left, -11, _BAR, 14, "empty")
    if bar.promised > bar.share:
        page.box(left, -11, max(1.0, round(bar.promised * _BAR, 1)), 14, "promised")
    if bar.share > 0:
        fill = "low" if bar.share < HIGH else "high" if bar.share < FULL else "full"
        page.box(left, -11, max(1.0, round(bar.share * _BAR, 1)), 14, fill)
    page.text(left + _BAR + _GAP, bar.words)
    page.go(_LINE)


def _draw_group(page: _Page, group: Group, width: int, marks_of: Mapping[int, list[str]]) -> None:
    page.text(2 * _EDGE, group.title)
    page.go(_GAP)
    x = left = 2 * _EDGE
    for core in group.cores:
        wide = len(core) * (width + 2) + 4
        if x + wide > _WIDTH - 2 * _EDGE and x > left:
            x = left
            page.go(_CELL + 8)
        page.box(x, 0, wide, _CELL + 4, "core")
        for place, cpu in enumerate(core):
            _draw_cpu(page, x + 3 + place * (width + 2), width, cpu, marks_of[cpu["number"]])
        x += wide + 4
    page.go(_CELL + _LINE)


def _draw_cpu(page: _Page, x: float, width: int, cpu: CpuWire, found: list[str]) -> None:
    told = [MARKS[mark] for mark in found if mark not in ("owned", "pinned")]
    told += [f"{cpu['owner']}'s alone"] if cpu["owner"] else []
    told += [f"{pinned['instance']} vCPU {pinned['vcpu']}" for pinned in cpu["pinned"]]
    title = f"CPU {cpu['number']}" + (f": {', '.join(told)}" if told else "")
    page.box(x, 3, width, _CELL - 2, " ".join(["cpu", *found]), title)
    page.go(17)
    page.text(x + width / 2, str(cpu["number"]), anchor="middle")
    page.go(-17)


def _draw_distances(page: _Page, numbers: Sequence[int], distances: Iterable[Iterable[int]]) -> None:
    page.heading("distances")
    rows = [["node", *map(str, numbers)]]
    rows += [[str(number), *map(str, row)] for number, row in zip(numbers, distances, strict=True)]
    column = (1 + max(len(text) for row in rows for text in row[1:])) * _LETTER
    for row in rows:
        for place, text in enumerate(row):
            page.text(2 * _EDGE + 36 + place * column, text, anchor="end")
        page.go(_LINE)


def _fill(text: str) -> list[str]:
    """The words on as many lines as they take."""
    lines = [""]
    for word in text.split():
        if lines[-1] and (len(lines[-1]) + 1 + len(word)) * _LETTER > _WIDTH - 4 * _EDGE:
            lines.append(" ")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines
