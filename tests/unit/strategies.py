"""Hypothesis strategies for unit files: texts, documents and values.

Decides: what random input looks like; valid values are drawn from the model's own kinds, so that a new key is covered.
Must not: assert anything.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping
from typing import Any

import attrs
from hypothesis import strategies as st

from qsup.unit import quantity
from qsup.unit.keys import keys_of, sections_of
from qsup.unit.kinds import Kind

#: One line of text without control characters; every script, quotes, percent signs and backslashes included.
lines = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True)


def accepted(kind: Kind, value: object) -> bool:
    """Whether the kind takes the value."""
    try:
        kind.parse(value)
    except ValueError:
        return False
    return True


def values_of_kind(kind: Kind) -> st.SearchStrategy[Any]:
    """TOML values that a kind takes, drawn from its own schema."""
    match kind.word:
        case "size":
            drawn: st.SearchStrategy[Any] = st.integers(1, 1 << 24).map(
                lambda pages: quantity.format_size(pages * 4096)
            )
        case "time":
            drawn = st.integers(0, 10**12).map(lambda microseconds: quantity.format_duration(microseconds / 10**6))
        case _:
            drawn = _of_schema(kind.schema)
    return drawn.filter(functools.partial(accepted, kind))


def _of_schema(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    match schema:
        case {"anyOf": choices} | {"oneOf": choices}:
            return st.one_of([_of_schema(choice) for choice in choices])
        case {"enum": words}:
            return st.sampled_from(words)
        case {"const": word}:
            return st.just(word)
        case {"type": "boolean"}:
            return st.booleans()
        case {"type": "integer", "minimum": minimum, "maximum": maximum}:
            return st.integers(minimum, maximum)
        case {"type": "string", "pattern": "[/.]"}:
            return lines.map(lambda text: f"/{text}")
        case {"type": "string", "pattern": pattern}:
            return st.from_regex(pattern, alphabet=st.characters(codec="ascii"), fullmatch=True)
        case {"type": "string"}:
            return lines
        case {"type": "array", "items": items}:
            return st.lists(_of_schema(items), max_size=3)
        case {"type": "object", "properties": properties}:
            return st.fixed_dictionaries({name: _of_schema(inner) for name, inner in properties.items()})
    raise AssertionError(f"no strategy for {schema}")


def tables(cls: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Values of one section and those nested in it, as TOML has them; every key may be left out that has a default."""
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for name, (attribute, facts) in keys_of(cls).items():
        group = required if attribute.default is attrs.NOTHING else optional
        group[name] = values_of_kind(facts.kind)
    for name, (_, nested, section) in sections_of(cls).items():
        optional[name] = arrays(nested) if section.many else tables(nested)
    return st.fixed_dictionaries(required, optional=optional)


def arrays(cls: type[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """An array of tables, its ids unique where it has any."""
    unique = (lambda table: table["id"]) if "id" in keys_of(cls) else None
    return st.lists(tables(cls), max_size=2, unique_by=unique)


# Texts that are nearly TOML: more of the parser is reached than with random characters

_FRAGMENTS = [
    *(
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        ".",
        ",",
        "\n",
        "\r\n",
        " ",
        "#",
        '"',
        "'",
        '"""',
        "'''",
        "\\",
        "\x00",
        "\ufeff",
    ),
    *("cpu", "disk", "nic", "service", "id", "vcpus", "ready", "backing", "topology", "true", "1", "-1", "1e9", "0x10"),
    *('"2G"', '"%i"', '"%"', "1979-05-27 07:32:00", "[[disk]]\nid = 'a'\n", "[cpu]\n", "vcpus = 1\n", "a.b.c = {}\n"),
]
nearly_toml = st.lists(st.sampled_from(_FRAGMENTS) | st.text(string.printable, max_size=3), max_size=30).map("".join)
