"""Where in a TOML text each key stands: `tomllib` says what a text means, not where.

Decides: the line of every key path; which texts are too deep or too finely dotted to be read at all.
Must not: judge syntax (what it reads was accepted by `tomllib`, or is about to be judged by it), or interpret values.

Paths are tuples of table and key names and of 0-based array positions, as `tomllib.loads` nests them. On a text that is
no TOML the scan ends where it no longer makes sense, and what was found until then is returned.

Source: https://toml.io/en/v1.0.0.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left

Path = tuple[str | int, ...]

#: No unit nests deeper; far below both Python's recursion limit and where `tomllib` turns quadratic.
MAX_DEPTH = 32

# No possessive quantifiers: Python 3.11 before 3.11.5 matches them wrongly. Alternatives exclude each other instead, so
# that there is nothing to backtrack into.
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|[A-Za-z0-9_-]+')
# a closing delimiter of three quotes may have one or two quotes of content right before it
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|""?(?!"))*"""(?:"{0,2})'
    r"|'''(?:[^']|''?(?!'))*'''(?:'{0,2})"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
# numbers, dates and booleans; a date and its time may have a space between them
_OTHER = re.compile(r"[^,\]}#\n]+")


class TooComplex(ValueError):
    """A text nested or dotted beyond `MAX_DEPTH`.

    Args:
        line: 1-based.
    """

    def __init__(self, line: int) -> None:
        super().__init__(f"nested deeper than {MAX_DEPTH} levels")
        self.line = line


class _End(Exception):
    """The text makes no sense from here on."""


class _Scanner:
    """One pass over a text: a cursor, and the lines found."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._array_lengths: dict[Path, int] = {}

    def line(self) -> int:
        return bisect_left(self._newlines, self.at) + 1

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def take(self, word: str) -> bool:
        found = self.text.startswith(word, self.at)
        self.at += len(word) if found else 0
        return found

    def expect(self, word: str) -> None:
        if not self.take(word):
            raise _End

    def key(self) -> list[str]:
        """A dotted key, its parts decoded."""
        line, parts = self.line(), []
        while True:
            self.skip(_SPACE)
            match = _KEY.match(self.text, self.at)
            if match is None:
                raise _End
            self.at = match.end()
            parts.append(_decoded(match[0]))
            if len(parts) > MAX_DEPTH:
                raise TooComplex(line)
            self.skip(_SPACE)
            if not self.take("."):
                return parts

    def document(self) -> None:
        table: Path = ()
        self.skip(_BLANK)
        while self.at < len(self.text):
            if self.text.startswith("[", self.at):
                table = self.header()
            else:
                self.pair(table)
            self.skip(_BLANK)

    def header(self) -> Path:
        line = self.line()
        many = self.take("[[")
        if not many:
            self.expect("[")
        *parents, last = self.key()
        self.expect("]]" if many else "]")
        path: Path = ()
        for part in parents:
            path = self.entry((*path, part), line)
        path = (*path, last)
        if many:
            position = self._array_lengths[path] = self._array_lengths.get(path, -1) + 1
            self.lines.setdefault(path, line)
            path = (*path, position)
        self.lines[path] = line
        return path

    def entry(self, path: Path, line: int) -> Path:
        """The path itself or, where it is an array of tables, that of its newest entry."""
        self.lines.setdefault(path, line)
        return (*path, self._array_lengths[path]) if path in self._array_lengths else path

    def pair(self, table: Path) -> None:
        """``key = value``; the value may be an array or inline table over several lines."""
        self.value(self.assignment(table))

    def assignment(self, table: Path) -> Path:
        line, path = self.line(), table
        for part in self.key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.expect("=")
        self.skip(_SPACE)
        return path

    def value(self, path: Path) -> None:
        """A value and all that is nested in it; a stack of open brackets instead of recursion."""
        opened: list[tuple[Path, int]] = []  # (path, number of entries so far), -1 entries for an inline table
        while True:
            if len(opened) > MAX_DEPTH:
                raise TooComplex(self.line())
            if self.take("["):
                opened.append((path, 0))
            elif self.take("{"):
                opened.append((path, -1))
            else:
                self.scalar()
            inner = self.next_in(opened)
            if inner is None:
                return
            path = inner

    def next_in(self, opened: list[tuple[Path, int]]) -> Path | None:
        """Go on to the next value within the open brackets, closing those that end; ``None`` when all are closed."""
        while opened:
            self.skip(_BLANK)
            self.take(",")
            self.skip(_BLANK)
            path, count = opened[-1]
            if self.take("}" if count < 0 else "]"):
                opened.pop()
                continue
            if count < 0:
                return self.assignment(path)
            opened[-1] = (path, count + 1)
            self.lines[(*path, count)] = self.line()
            return (*path, count)
        return None

    def scalar(self) -> None:
        match = _STRING.match(self.text, self.at) or _OTHER.match(self.text, self.at)
        if match is None:
            raise _End
        self.at = match.end()


def _decoded(key: str) -> str:
    if key[0] == '"' and "\\" in key:
        try:
            return next(iter(tomllib.loads(f"{key} = 0")))
        except ValueError as error:
            raise _End from error
    return key[1:-1] if key[0] in "\"'" else key


def locate(text: str) -> dict[Path, int]:
    """The 1-based line of every table, key and array entry.

    A table that is only implied stands where it is first mentioned; an array of tables at its first entry.

    Raises:
        TooComplex: the text is nested or dotted beyond `MAX_DEPTH`.
    """
    scanner = _Scanner(text)
    try:
        scanner.document()
    except _End:
        # no TOML from here on: tomllib reports it, better than we could
        pass
    return scanner.lines
