"""TOML documents in every way TOML allows to write them, together with the line of each of their keys.

Decides: what the generated documents look like. Lines are counted while writing, so they are known without a scanner.
Must not: use `qsup.unit.locate`, which is judged by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from qsup.unit.locate import Path

Draw = Callable[[st.SearchStrategy[Any]], Any]

_SCALARS = [
    *(
        "1",
        "-1_000",
        "0xff",
        "1.5e-3",
        "inf",
        "true",
        "1979-05-27",
        "1979-05-27 07:32:00Z",
        "07:32:00",
        "'a # ] } , b'",
    ),
    *(
        '"a # ] } , = [x] \\" \\\\"',
        "''",
        '""',
        "''''''",
        '""""""',
        "'''\n[x]\n'''",
        "'''''a'' b'''''",
        '""""a"" b"""""',
    ),
    *('"""\n\\"""\n# [y] = 1\n"""', '"""a\\\n   b"""', '"\\u00e9\\U0001F600"'),
]
_KEYS = ["a", "b", "c-d", "1", "key_2", "", "a.b", "é", "x y", "#", "[", '"', "'", "\\", "\n", "="]
_BLANKS = ["", "\n", "# comment\n", "#[x]\n\n", "\n\n# a = 'b\n"]


class TomlWriter:
    """A document as it is written: its text so far, and the lines of its paths."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[Path, int] = {}
        self.used: dict[Path, set[str]] = {}

    @property
    def line(self) -> int:
        """The line that is being written."""
        return self.text.count("\n") + 1

    def put(self, text: str) -> None:
        """Write on."""
        self.text += text

    def new_name(self, table: Path) -> str:
        """A name that the table does not have yet."""
        used = self.used.setdefault(table, set())
        name = str(self.draw(st.sampled_from(_KEYS)))
        while name in used:
            name += "x"
        used.add(name)
        return name

    def put_key(self, names: list[str]) -> None:
        """A dotted key, each part bare or quoted either way."""
        spaces = st.sampled_from(["", " ", "\t"])
        for position, name in enumerate(names):
            if position:
                self.put(f"{self.draw(spaces)}.{self.draw(spaces)}")
            bare = name.isascii() and name and name.replace("_", "").replace("-", "").isalnum()
            literal = "'" not in name and name.isprintable()
            forms = [json.dumps(name), *([name] if bare else []), *([f"'{name}'"] if literal else [])]
            self.put(self.draw(st.sampled_from(forms)))

    def put_blank(self) -> None:
        """Nothing, empty lines or comments."""
        self.put(self.draw(st.sampled_from(_BLANKS)))

    def pair(self, table: Path, depth: int, *, inline: bool = False) -> None:
        """``key = value``, the key dotted or not."""
        names = [self.new_name(table)]
        for _ in range(self.draw(st.integers(0, 2))):
            names.append(self.new_name((*table, *names)))
        for end in range(1, len(names) + 1):
            self.lines[(*table, *names[:end])] = self.line
        self.put_key(names)
        self.put(self.draw(st.sampled_from(["=", " = ", "\t=  "])))
        self.value((*table, *names), depth, inline=inline)

    def value(self, path: Path, depth: int, *, inline: bool) -> None:
        """A scalar, an array or an inline table; within an inline table all on one line (TOML 1.0)."""
        match self.draw(st.sampled_from(["scalar", "array", "table"])) if depth else "scalar":
            case "scalar":
                allowed = [text for text in _SCALARS if not inline or "\n" not in text]
                self.put(self.draw(st.sampled_from(allowed)))
            case "array":
                self.array(path, depth - 1, inline=inline)
            case "table":
                self.put("{ ")
                for position in range(self.draw(st.integers(0, 2))):
                    self.put(", " if position else "")
                    self.pair(path, depth - 1, inline=True)
                self.put(" }")

    def array(self, path: Path, depth: int, *, inline: bool) -> None:
        """An array, over several lines where that is allowed."""
        self.put("[")
        count = self.draw(st.integers(0, 3))
        for position in range(count):
            self.put("" if inline else self.draw(st.sampled_from(_BLANKS)))
            self.lines[(*path, position)] = self.line
            self.value((*path, position), depth, inline=inline)
            self.put("" if inline else self.draw(st.sampled_from(_BLANKS)))
            self.put("," if position < count - 1 or self.draw(st.booleans()) else "")
        self.put("" if inline else self.draw(st.sampled_from(_BLANKS)))
        self.put("]")

    def pairs(self, table: Path) -> None:
        """The pairs of one table, with blanks and comments between them."""
        for _ in range(self.draw(st.integers(0, 3))):
            self.put_blank()
            self.put(self.draw(st.sampled_from(["", "  "])))
            self.pair(table, 2)
            self.put(self.draw(st.sampled_from(["\n", "  # comment ]\n"])))

    def tables(self, names: list[str], path: Path, depth: int) -> None:
        """Tables and arrays of tables below ``path``, whose header is ``names``."""
        for _ in range(self.draw(st.integers(0, 2)) if depth else 0):
            name = self.new_name(path)
            if self.draw(st.booleans()):
                for position in range(self.draw(st.integers(1, 2))):
                    line = self.header([*names, name], "[[", "]]")
                    self.lines.setdefault((*path, name), line)
                    self.lines[(*path, name, position)] = line
                    self.pairs((*path, name, position))
                    self.tables([*names, name], (*path, name, position), depth - 1)
            else:
                self.lines[(*path, name)] = self.header([*names, name], "[", "]")
                self.pairs((*path, name))
                self.tables([*names, name], (*path, name), depth - 1)

    def header(self, names: list[str], opening: str, closing: str) -> int:
        """Write a header, and return its line."""
        self.put_blank()
        self.put(opening)
        self.put_key(names)
        self.put(closing + "\n")
        return self.line - 1


@st.composite
def toml_documents(draw: Draw) -> tuple[str, dict[Path, int]]:
    """A TOML text, and the 1-based line of every table, key and array entry in it."""
    writer = TomlWriter(draw)
    writer.pairs(())
    writer.tables([], (), 2)
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    return writer.text.replace("\n", newline), writer.lines


def paths_of(value: object, path: Path = ()) -> Iterator[Path]:
    """Every path into a value that `tomllib` returned, its own left out."""
    entries: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    for name, inner in entries:
        yield (*path, name)
        yield from paths_of(inner, (*path, name))
