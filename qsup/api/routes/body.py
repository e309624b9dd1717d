"""JSON bodies, checked against the types of `qsup.api.wire`. Pure.

Decides: that a request says exactly what its type names, with a suggestion where it does not.
Must not: hold a shape of its own, or judge values beyond their types.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from qsup.errors import RequestError
from qsup.unit.quantity import alternatives, did_you_mean

_WORDS = {str: "a string", int: "an integer", float: "a number", bool: "a boolean", types.NoneType: "null"}
_JSON_WORDS = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array"}


@functools.cache
def members(shape: type) -> Mapping[str, tuple[Any, bool]]:
    """Each member of a TypedDict: its type, and whether it must be there.

    ``__required_keys__`` cannot be asked: under postponed annotations it does not see ``NotRequired`` (PEP 655).
    """
    found = {}
    for name, hint in get_type_hints(shape, include_extras=True).items():
        optional = get_origin(hint) is NotRequired
        total = getattr(shape, "__total__", True)
        found[name] = (get_args(hint)[0] if optional else hint, total and not optional)
    return found


def check(value: object, shape: Any, place: str = "") -> None:
    """Check a JSON value against a type: TypedDict, ``list``, ``dict``, a union, ``Literal``, a scalar or ``Any``.

    Args:
        value: as parsed from JSON.
        shape: the type.
        place: dotted name of the value for messages, ``""`` for the whole body.

    Raises:
        RequestError: it does not fit; names the member.
    """
    origin = get_origin(shape)
    if shape is Any:
        return
    if is_typeddict(shape):
        _check_object(value, shape, place)
    elif origin is list:
        _check_list(value, get_args(shape)[0], place)
    elif origin is dict:
        _check_map(value, get_args(shape)[1], place)
    elif origin is Literal:
        _check_literal(value, get_args(shape), place)
    elif origin in (Union, types.UnionType):
        _check_union(value, get_args(shape), place)
    elif not _is_scalar(value, shape):
        raise _wrong(place, _WORDS[shape], value)


def _is_scalar(value: object, shape: type) -> bool:
    if isinstance(value, bool):
        return shape is bool
    return isinstance(value, int | float if shape is float else shape)


def _check_object(value: object, shape: type, place: str) -> None:
    if not isinstance(value, dict):
        raise _wrong(place, "an object", value)
    known = members(shape)
    for name, inner in value.items():
        if name not in known:
            suggestion = did_you_mean(name[:40], tuple(known))
            raise RequestError(f"unknown member {_join(place, name[:40])!r} in the body{suggestion}")
        check(inner, known[name][0], _join(place, name))
    if missing := [name for name, (_, required) in known.items() if required and name not in value]:
        raise RequestError(f"the body lacks {_join(place, missing[0])!r}")


def _check_list(value: object, item: Any, place: str) -> None:
    if not isinstance(value, list):
        raise _wrong(place, "an array", value)
    for index, inner in enumerate(value):
        check(inner, item, f"{place}[{index}]")


def _check_map(value: object, item: Any, place: str) -> None:
    if not isinstance(value, dict):
        raise _wrong(place, "an object", value)
    for name, inner in value.items():
        check(inner, item, _join(place, name[:40]))


def _check_literal(value: object, words: tuple[str, ...], place: str) -> None:
    if value not in words:
        suggestion = did_you_mean(value[:40], words) if isinstance(value, str) else ""
        raise RequestError(f"{_name(place)} must be {alternatives(words)}{suggestion}")


def _check_union(value: object, shapes: tuple[Any, ...], place: str) -> None:
    for shape in shapes[:-1]:
        try:
            return check(value, shape, place)
        except RequestError:
            continue
    check(value, shapes[-1], place)


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _name(place: str) -> str:
    return repr(place) if place else "the body"


def _wrong(place: str, wanted: str, value: object) -> RequestError:
    got = "null" if value is None else _JSON_WORDS.get(type(value), "an object")
    return RequestError(f"{_name(place)} must be {wanted}, not {got}")
