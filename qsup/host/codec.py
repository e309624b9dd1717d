"""Records of ours as JSON: frozen attrs classes out, and strictly back in.

Decides: the JSON shape of a record, and what is refused when reading one: unknown or missing keys, another type than
declared (no ``"4"`` for 4, no ``true`` for 1), a newer schema, anything that is not JSON. How a record of an older
schema becomes one of today.
Must not: touch files, except that `load` and `save` join it to `qsup.host.atomic`.

The first key of every record is ``schema``, its class's ``SCHEMA``. Whatever changes of a record's fields raises that,
so that an older daemon can tell a newer record from a damaged one, and registers in the class's ``UPGRADES`` how a
record of the schema before becomes one of the new: a pure function for each step, applied on reading (tests/records).
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import attrs

from qsup.errors import StateFileError
from qsup.host import atomic

#: From a schema -> the members of a record of that schema as one of the next has them (both without ``schema``).
#: What cannot be upgraded raises `ValueError`, `KeyError` or `TypeError`.
Upgrades = Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]


class Record(attrs.AttrsInstance, Protocol):
    """A frozen attrs class with a schema version, and the steps that lead there from the first one."""

    SCHEMA: ClassVar[int]
    UPGRADES: ClassVar[Upgrades]


class NewerSchema(ValueError):
    """A record of a schema that only a later qsup knows."""


R = TypeVar("R", bound=Record)
_SCALARS = frozenset({str, int, float, bool, types.NoneType})
_Decoder = Callable[[Any, str], Any]


def encode(record: Record) -> dict[str, Any]:
    """A record as JSON values."""
    return {"schema": record.SCHEMA, **_plain(record)}


def _plain(value: Any) -> Any:
    """`attrs.asdict` takes three times as long, and a record is written at each step of a VM's life."""
    kind: Any = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict:
        return {key: _plain(item) for key, item in value.items()}
    if kind in (tuple, list):
        return [_plain(item) for item in value]
    if kind is frozenset:
        # a set has no order of its own, and the same record must give the same text
        return sorted(_plain(item) for item in value)
    return {name: _plain(getattr(value, name)) for name in _names(kind)}


@functools.cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(item.name for item in attrs.fields(cls))


def decode(cls: type[R], value: object) -> R:
    """JSON values as a record.

    Raises:
        ValueError: it is not one; the text names the key and what is wrong with it. `NewerSchema` among them.
    """
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, not {_word(value)}")
    schema = value.get("schema")
    if type(schema) is not int or schema < 1:
        raise ValueError(f"schema {schema!r} is no version")
    if schema > cls.SCHEMA:
        raise NewerSchema(f"its schema is {schema}, and this qsupd reads up to {cls.SCHEMA}")
    values = {key: item for key, item in value.items() if key != "schema"}
    for version in range(schema, cls.SCHEMA):
        values = _upgraded(cls, values, version)
    record: R = _decode_class(cls, values, "")
    return record


def _upgraded(cls: type[Record], values: dict[str, Any], version: int) -> dict[str, Any]:
    try:
        return cls.UPGRADES[version](values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no record of schema {version}: {error!r}") from error


def load(cls: type[R], path: Path) -> R:
    """Read a record from its file.

    Raises:
        StateFileError: the file or its content is not what it must be; it names both, and the file is left as it is.
            ``details["missing"]`` is true when there is no such file.
    """
    data = atomic.read_bounded(path)
    try:
        return decode(cls, json.loads(data, parse_constant=_no_constant))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise refused(path, error) from error


def refused(path: Path, error: Exception) -> StateFileError:
    """What is said of a record file that `decode` refuses."""
    if isinstance(error, NewerSchema):
        return StateFileError(
            f"{path} was written by a newer qsupd: {error}",
            path=str(path),
            hint="run that qsupd again; the file is left as it is",
        )
    return StateFileError(f"{path} is not a valid record: {error}", path=str(path))


def save(record: Record, path: Path) -> None:
    """Write a record to its file, mode 0600, to outlive the machine; see `atomic.write_atomic`."""
    atomic.write_atomic(path, _text(record))


def save_for_boot(record: Record, path: Path) -> None:
    """Write a record that need outlive this process alone, also where no room is left; see `atomic.write_reserved`."""
    atomic.write_reserved(path, _text(record))


def _text(record: Record) -> bytes:
    return json.dumps(encode(record), allow_nan=False).encode() + b"\n"


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def _word(value: object) -> str:
    words = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a float",
    }
    return words.get(type(value), "null")


def _decode_class(cls: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, not {_word(value)}")
    decoders: dict[str, _Decoder] = _decoders(cls)
    required = {item.name for item in attrs.fields(cls) if item.default is attrs.NOTHING}
    for problem, keys in (("unknown", value.keys() - decoders.keys()), ("missing", required - value.keys())):
        if keys:
            raise ValueError(f"{problem} key {where}{min(keys)!r}")
    return cls(**{key: decoders[key](item, f"{where}{key}") for key, item in value.items()})


@functools.cache
def _decoders(cls: Any) -> dict[str, _Decoder]:
    hints = typing.get_type_hints(cls)
    return {item.name: _decoder(hints[item.name]) for item in attrs.fields(cls)}


def _decoder(hint: Any) -> _Decoder:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object):
        return lambda value, where: value
    if origin in (typing.Union, types.UnionType):
        (inner,) = (item for item in arguments if item is not types.NoneType)
        some = _decoder(inner)
        return lambda value, where: None if value is None else some(value, where)
    if origin in (tuple, frozenset):
        return functools.partial(_decode_array, origin, _decoder(arguments[0]))
    if origin in (dict, Mapping):
        return functools.partial(_decode_mapping, _decoder(arguments[1]))
    if attrs.has(hint):
        return lambda value, where: _decode_class(hint, value, f"{where}.")
    return functools.partial(_decode_scalar, (int, float) if hint is float else (hint,))


def _decode_array(collection: type[Any], item: _Decoder, value: object, where: str) -> Any:
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected an array, not {_word(value)}")
    return collection(item(element, f"{where}[{index}]") for index, element in enumerate(value))


def _decode_mapping(item: _Decoder, value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, not {_word(value)}")
    return {key: item(element, f"{where}.{key}") for key, element in value.items()}


def _decode_scalar(kinds: tuple[type, ...], value: object, where: str) -> object:
    if type(value) not in kinds:
        raise ValueError(f"{where}: expected {kinds[-1].__name__}, not {_word(value)}")
    return kinds[-1](value)
