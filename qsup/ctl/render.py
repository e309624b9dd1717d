"""How things look on a terminal.

Decides: tables, colours, sizes, times, and what of foreign text may reach a terminal.
Must not: ask the daemon, or print what a guest or QEMU wrote without `clean`.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from qsup.api.wire import Instance

# C0 and C1 controls, DEL, line separators and what turns the direction of writing: none may reach a terminal
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_VISIBLE = dict.fromkeys(_CONTROLS, "\N{REPLACEMENT CHARACTER}")
_VISIBLE_LINES = {code: sign for code, sign in _VISIBLE.items() if code not in (0x09, 0x0A)}
_VISIBLE[0x09] = _VISIBLE[0x0A] = " "

_GREEN, _YELLOW, _RED, _BOLD = "32", "33", "31", "1"
_LEVEL_COLOURS = {"active": _GREEN, "activating": _YELLOW, "deactivating": _YELLOW, "failed": _RED}
_UNITS = ((1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))
#: What tells people which entry it is.
_TELLING = ("path", "type", "bus", "bridge", "name", "address", "socket")
_SPANS = ((31536000, "y"), (2592000, " month"), (604800, "w"), (86400, " day"), (3600, "h"), (60, "min"), (1, "s"))


def clean(text: object) -> str:
    """Text of foreign origin on one line: no control character, no change of direction (tabs become blanks)."""
    return str(text).translate(_VISIBLE)


def clean_lines(text: str) -> str:
    """The same for text of several lines: tabs, line feeds and the carriage returns before them stay."""
    return text.replace("\r\n", "\n").translate(_VISIBLE_LINES)


def colours_wanted() -> bool:
    """Whether standard output is a terminal that may be coloured (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def unicode_wanted() -> bool:
    """Whether the locale is one of UTF-8, so that signs beyond ASCII reach who reads (locale(7))."""
    environ = os.environ
    name = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or ""
    # without any, Python itself puts this one into the environment (PEP 538)
    invented = name == "C.UTF-8" and not environ.get("LC_ALL") and environ.get("LANG", "") in ("", "C", "POSIX")
    return name.lower().replace("-", "").endswith("utf8") and not invented


def terminal_width() -> int | None:
    """Columns to fit lines into, ``None`` when standard output is no terminal."""
    if not sys.stdout.isatty():
        return None
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns) > 0:
        return int(columns)
    # serial lines and the terminals of scripts often do not know their size and say 0
    return os.get_terminal_size(sys.stdout.fileno()).columns or None


def paint(text: str, level: str) -> str:
    """The text in the colour of an instance's level."""
    colour = _LEVEL_COLOURS.get(level)
    return f"\033[{colour}m{text}\033[0m" if colour and colours_wanted() else text


def is_named_by_cause(instance: Instance) -> bool:
    """Whether its state is only understood with the cause: it is down, waits to come back, or does not answer."""
    return instance["state"] in ("inactive", "failed") or instance["substate"] in ("unresponsive", "auto-restart")


def bold(text: str) -> str:
    """The text in bold."""
    return f"\033[{_BOLD}m{text}\033[0m" if colours_wanted() else text


def display_width(text: str) -> int:
    """Columns that a terminal needs for clean text."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(sign) else 2 if east_asian_width(sign) in "FW" else 1 for sign in text)


def fit(text: str, width: int) -> str:
    """The text cut to a number of columns, with an ellipsis where it was longer."""
    if display_width(text) <= width:
        return text
    while text and display_width(text) >= width:
        text = text[:-1]
    return f"{text}…" if width > 0 else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, coloured: str = "", titled: bool = True) -> str:
    """Columns under their header, each row on one line, cut to the terminal.

    Args:
        header: titles; a column whose cells are all empty is left out. A title that begins with ``>`` is aligned right.
        rows: cells; they are cleaned.
        coloured: the title of the column that holds levels, to be coloured by them.
        titled: whether to write the header.
    """
    cells = [[clean(cell) for cell in row] for row in rows]
    used = [column for column in range(len(header)) if any(row[column] for row in cells)]
    if not used:
        return ""
    titles = [header[column].removeprefix(">") for column in used]
    right = [header[column].startswith(">") for column in used]
    grid = [titles, *([row[column] for column in used] for row in cells)]
    widths = [max(map(display_width, column)) for column in zip(*grid, strict=True)]
    paint_at = titles.index(coloured) if coloured in titles and colours_wanted() else -1
    limit = terminal_width()
    lines = []
    for row in grid if titled else grid[1:]:
        line = [*map(_pad, row, widths, right)]
        line[-1] = line[-1].rstrip()
        if limit is not None:
            line = _fit_columns(line, limit)
        if -1 < paint_at < len(line):
            line[paint_at] = paint(line[paint_at], row[paint_at])
        lines.append("  ".join(line).rstrip() + "\n")
    return "".join(lines)


def _fit_columns(row: Sequence[str], limit: int) -> list[str]:
    shown: list[str] = []
    for cell in row:
        if limit <= 0:
            break
        shown.append(fit(cell, limit))
        limit -= display_width(shown[-1]) + 2
    return shown


def _pad(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - display_width(text))
    return blanks + text if right else text + blanks


def fields(pairs: Iterable[tuple[str, str]]) -> str:
    """``Label: value`` lines with the colons below each other; a repeated label is written once."""
    lines = []
    last = ""
    for label, value in pairs:
        lines.append(f"{f'{label}:' if label != last else '':>12} {value}".rstrip())
        last = label
    return "".join(f"{line}\n" for line in lines)


def size(amount: int) -> str:
    """Bytes in the largest unit that they fill: ``512M``, ``1.5G``."""
    for unit, name in _UNITS:
        if amount >= unit:
            return f"{amount / unit:.1f}".removesuffix(".0") + name
    return f"{amount}B"


def seconds_since_epoch(when: str) -> float:
    """The time that an RFC 3339 text in UTC names; `ValueError` for another text.

    ``datetime`` costs 3 ms at every start; the days since 1970 are a closed formula of the (proleptic) calendar.
    """
    year, month, day = int(when[:4]), int(when[5:7]), int(when[8:10])
    hour, minute, second = int(when[11:13]), int(when[14:16]), float(when[17:].rstrip("Z").removesuffix("+00:00"))
    # years begin in March, so that the leap day is their last
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 719469
    return days * 86400 + hour * 3600 + minute * 60 + second


def span(seconds: float) -> str:
    """A length of time in its largest unit and the next one: ``5min 3s``, ``2 days 3h``, ``1h``, ``0s``."""
    left = max(0, int(seconds))
    parts = []
    for unit, name in _SPANS:
        if left >= unit:
            count, left = divmod(left, unit)
            plural = "s" if count > 1 and name.startswith(" ") else ""
            parts.append(f"{count}{name}{plural}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0s"


def age(when: str) -> str:
    """How long ago that was, in its two largest units; ``""`` for no time."""
    return span(time.time() - seconds_since_epoch(when)) if when else ""


def local_time(when: str) -> str:
    """A time as systemctl writes it, in the local zone: ``Sun 2026-11-22 10:42:01 CET``."""
    return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(seconds_since_epoch(when)))


def document(value: object, style: str) -> str:
    """JSON for programs: one value indented (``json``) or on one line (``jsonl``). Escapes all but ASCII."""
    import json

    return json.dumps(value, indent=2 if style == "json" else None) + "\n"


def documents(values: Iterable[object], style: str, noun: str) -> str:
    """Several values for programs: ``{noun: [...]}`` as the API gives them (``json``), or one per line (``jsonl``)."""
    if style == "json":
        return document({noun: list(values)}, style)
    return "".join(document(value, style) for value in values)


def key_values(values: Mapping[str, object]) -> str:
    """``key=value`` pairs on one line; nested values as JSON."""
    return " ".join(f"{clean(key)}={_plain(value)}" for key, value in values.items() if value not in (None, ""))


def _plain(value: object) -> str:
    if isinstance(value, str):
        return clean(value) if value and " " not in value else document(value, "jsonl").rstrip()
    return clean(document(value, "jsonl").rstrip())


def spelled(value: object) -> str:
    """A value as a unit file spells it; of a whole entry where it is and what it is, ``-`` where there is none.

    An entry has dozens of keys, more than a line of a table takes; other forms of output have all.
    """
    if value is None:
        return "-"
    if isinstance(value, dict):
        told = [f"{name} = {spelled(inner)}" for name, inner in value.items() if name in _TELLING and inner]
        return "{ " + ", ".join([*told, "..."]) + " }"
    return document(value, "jsonl").rstrip()
