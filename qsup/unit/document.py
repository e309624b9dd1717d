"""One unit file as text, as TOML values, and as places to point at.

Decides: which bytes are a readable TOML document, and how an error in one is placed.
Must not: know sections and keys (`qsup.unit.parse`), or open files (`qsup.unit.files`).
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen

from qsup.errors import Diagnostic
from qsup.unit.locate import MAX_DEPTH, Path, TooComplex, locate

#: A unit file is at most this long. Real ones have a few KiB; of the worst of this size `tomllib` makes 0.1 s of work.
MAX_BYTES = 64 * 1024

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")
_POSITION = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_TWICE = re.compile(r"Cannot declare \((.*)\) twice", re.DOTALL)
_LONG_NUMBER = re.compile(r"[0-9_]{1000}")


def dotted(key: Iterable[str]) -> str:
    """A key as messages show it: ``disk.root.path``, on one line, quoted where TOML wants it."""
    return ".".join(part if _BARE_KEY.fullmatch(part) else json.dumps(part[:60]) for part in key)


@frozen(kw_only=True, eq=False)
class Document:
    """One file as it was read.

    Args:
        file: its path as the user knows it.
        text: its text; what is not UTF-8 is replaced.
        values: what `tomllib` made of it, empty when it could not be read.
        diagnostics: why it could not be read.
    """

    file: str
    text: str
    values: Mapping[str, Any] = field(factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()

    @functools.cached_property
    def _lines(self) -> Mapping[Path, int]:
        # made for an error message only: no line is needed to load a unit without errors
        try:
            return locate(self.text)
        except TooComplex:
            return {}  # nested beyond any key of the model, though not beyond TOML: errors then name the file alone

    def line(self, path: Path) -> int:
        """The 1-based line of a path into `values`, or of the nearest table around it; 0 for the whole document."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines[path] if path else 0

    def diagnostic(self, path: Path, key: Iterable[str], message: str) -> Diagnostic:
        """An error at ``path``, shown as ``key``."""
        return Diagnostic(self.file, self.line(path), dotted(key), message)


def read_document(file: str, data: bytes) -> Document:
    """Read one file's bytes; never raises, whatever they are."""
    text = data.decode("utf-8", "replace")
    line, values = 0, {}
    if len(data) > MAX_BYTES:
        return _unreadable(file, text, 0, f"is larger than {MAX_BYTES // 1024} KiB")
    try:
        values = _values(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8: {error.reason} 0x{data[error.start]:02x}"
    except TooComplex as error:
        line, message = error.line, str(error)
    except tomllib.TOMLDecodeError as error:
        line, message = _syntax_error(text, str(error))
    except ValueError as error:
        # int() refuses a number of more than 4300 digits, in words for programmers
        number = _LONG_NUMBER.search(text)
        line = text.count("\n", 0, number.start()) + 1 if number else 0
        message = "a number of more than 1000 digits" if number else str(error)
    except RecursionError:
        message = "nested too deeply"
    else:
        return Document(file=file, text=text, values=values)
    return _unreadable(file, text, line, message)


def _unreadable(file: str, text: str, line: int, message: str) -> Document:
    return Document(file=file, text=text, diagnostics=(Diagnostic(file, line, "", message),))


def _values(text: str) -> dict[str, Any]:
    if text.startswith("\ufeff"):
        raise tomllib.TOMLDecodeError("a byte order mark is not allowed (at line 1, column 1)")
    # tomllib takes quadratic time for long dotted keys
    if any(line.count(".") > MAX_DEPTH for line in text.split("\n")):
        locate(text)
    try:
        return tomllib.loads(text)
    except RecursionError:
        # the scanner needs no recursion and knows the line
        locate(text)
        raise


def _syntax_error(text: str, message: str) -> tuple[int, str]:
    position = _POSITION.search(message)
    if position is None:
        return 0, message
    line = int(position[1]) if position[1] else text.rstrip("\n").count("\n") + 1
    bare = _TWICE.sub(_declared_twice, message[: position.start()])
    at_end = "" if position[1] else " before the end of the file"
    return line, f"not TOML: {bare[:1].lower()}{bare[1:200]}{at_end}"


def _declared_twice(match: re.Match[str]) -> str:
    """The words of `tomllib` about a Python tuple, as TOML would be written."""
    name = ".".join(re.findall(r"'([^']*)'", match[1]))
    return f"cannot declare [{name}] twice; if there may be several, write [[{name}]]"
