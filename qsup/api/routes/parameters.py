"""Query parameters: what each may hold, read strictly.

Decides: the kinds of parameters, and that an unknown or malformed one is refused instead of ignored.
Must not: know routes, or what a value leads to.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from qsup.api.protocol import WAIT_MAX
from qsup.errors import RequestError
from qsup.unit.quantity import alternatives, did_you_mean

#: Most globs in one parameter, and the longest parameter that is read.
_PATTERNS_MAX = 32
_TEXT_MAX = 512
# what C's %g and JSON write; float() takes more: signs, spaces, underscores, nan, other scripts' digits
_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?(e[+-]?[0-9]{1,2})?")


@frozen(kw_only=True)
class Parameter:
    """One query parameter.

    Args:
        name: as it stands in the URL.
        doc: its meaning, one sentence.
        parse: text -> value; raises `ValueError` with what the text must be.
        schema: the JSON Schema of the value, for the OpenAPI document.
        default: the value when the parameter is absent.
    """

    name: str
    doc: str
    parse: Callable[[str], Any]
    schema: Mapping[str, Any]
    default: Any = None


def read_query(parameters: Sequence[Parameter], query: Mapping[str, str]) -> dict[str, Any]:
    """The values of ``parameters``, in each one's own type.

    Args:
        query: decoded names and texts, as they came.

    Raises:
        RequestError: a parameter that is not among ``parameters`` (with a suggestion), or a malformed one.
    """
    values = {parameter.name: parameter.default for parameter in parameters}
    if not query:
        return values
    by_name = {parameter.name: parameter for parameter in parameters}
    for name, text in query.items():
        if name not in by_name:
            raise RequestError(f"unknown query parameter {name[:40]!r}{did_you_mean(name[:40], tuple(by_name))}")
        try:
            values[name] = by_name[name].parse(text)
        except ValueError as error:
            raise RequestError(f"query parameter {name!r} must be {error}, not {text[:40]!r}") from error
    return values


def count(name: str, doc: str, *, minimum: int, maximum: int, default: int | None = None) -> Parameter:
    """A whole number within ``minimum..maximum``, both included."""
    rule = f"a number from {minimum} to {maximum}"

    def parse(text: str) -> int:
        # int() takes signs, spaces, underscores and other scripts' digits, and megabytes of them
        if not re.fullmatch(r"[0-9]{1,20}", text) or not minimum <= int(text) <= maximum:
            raise ValueError(rule)
        return int(text)

    schema: dict[str, Any] = {"type": "integer", "minimum": minimum, "maximum": maximum}
    if default is not None:
        schema["default"] = default
    return Parameter(name=name, doc=doc, parse=parse, schema=schema, default=default)


def seconds(name: str, doc: str, *, default: float | None = None) -> Parameter:
    """A time in seconds, at most `WAIT_MAX`."""
    rule = f"seconds from 0 to {WAIT_MAX:.0f}"

    def parse(text: str) -> float:
        if not _DECIMAL.fullmatch(text) or float(text) > WAIT_MAX:
            raise ValueError(rule)
        return float(text)

    schema: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": WAIT_MAX}
    if default is not None:
        schema["default"] = default
    return Parameter(name=name, doc=doc, parse=parse, schema=schema, default=default)


def flag(name: str, doc: str, *, default: bool | None = False) -> Parameter:
    """On if it is ``1`` or ``true``; without it off, or ``None`` where that means something else than either."""
    words = {"1": True, "true": True, "0": False, "false": False}

    def parse(text: str) -> bool:
        if text not in words:
            raise ValueError("0 or 1")
        return words[text]

    schema: dict[str, Any] = {"enum": [*words]} | ({} if default is None else {"default": "0"})
    return Parameter(name=name, doc=doc, parse=parse, schema=schema, default=default)


def choice(name: str, doc: str, *words: str) -> Parameter:
    """One of a few words; the first is the default."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(alternatives(words))
        return text

    return Parameter(
        name=name, doc=doc, parse=parse, schema={"enum": list(words), "default": words[0]}, default=words[0]
    )


def word(name: str, doc: str, *words: str) -> Parameter:
    """One of some words; ``None`` when the parameter is absent."""

    def parse(text: str) -> str:
        if text not in words:
            raise _none_of(name, text, words)
        return text

    return Parameter(name=name, doc=doc, parse=parse, schema={"enum": list(words)})


def _none_of(name: str, text: str, words: Sequence[str]) -> RequestError:
    suggestion = did_you_mean(text[:40], words)
    return RequestError(f"query parameter {name!r}: {text[:40]!r} is none of {', '.join(words)}{suggestion}")


def text(name: str, doc: str) -> Parameter:
    """Any text that is not absurdly long; compared, never looked up as a path."""

    def parse(value: str) -> str:
        if not 0 < len(value) <= _TEXT_MAX:
            raise ValueError(f"1 to {_TEXT_MAX} characters")
        return value

    return Parameter(name=name, doc=doc, parse=parse, schema={"type": "string", "minLength": 1, "maxLength": _TEXT_MAX})


@frozen(kw_only=True)
class Globs:
    """Some globs (``*``, ``?``, ``[...]``); a text matches when one of them does, ``None`` never does."""

    patterns: tuple[str, ...]
    _matches: Callable[[str], object] = field(eq=False, repr=False)

    @classmethod
    def compile(cls, patterns: Sequence[str]) -> Globs:
        """Make them ready to match."""
        expression = re.compile("|".join(map(fnmatch.translate, patterns)))
        return cls(patterns=tuple(patterns), matches=expression.match)

    def match(self, text: str | None) -> bool:
        """Whether one of them matches the whole text."""
        return text is not None and self._matches(text) is not None


def globs(name: str, doc: str, *words: str) -> Parameter:
    """Names or globs separated by commas; the value is a `Globs`, ``None`` when the parameter is absent.

    Args:
        words: all that there is to match, where that is known: each name or glob must match one of them.
    """

    def parse(value: str) -> Globs:
        patterns = value.split(",")
        if len(value) > _TEXT_MAX or len(patterns) > _PATTERNS_MAX or not all(patterns):
            raise ValueError(f"names or globs separated by commas, at most {_PATTERNS_MAX}")
        for pattern in patterns if words else ():
            if not any(map(Globs.compile([pattern]).match, words)):
                raise _none_of(name, pattern, words)
        return Globs.compile(patterns)

    return Parameter(name=name, doc=doc, parse=parse, schema={"type": "string", "minLength": 1, "maxLength": _TEXT_MAX})


#: Paging, the same for every list. Without ``limit`` a list is whole: what is kept of each noun is bounded already.
LIMIT = count("limit", "At most that many entries; `next` then says where to go on.", minimum=1, maximum=10_000)
AFTER = text("after", "Begin behind this entry: the `next` of the page before.")
PAGING = (LIMIT, AFTER)
