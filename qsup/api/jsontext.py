"""JSON text, strictly. Pure.

Decides: what counts as JSON from a client (RFC 8259, UTF-8, and nothing that two parsers could read differently).
Must not: know what the values mean.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable

from qsup.errors import RequestError

#: Deepest nesting of arrays and objects that is read.
DEPTH_MAX = 64
#: Integers that QMP and every 64-bit client can hold: int64 and uint64 together.
INTEGER_MIN = -(1 << 63)
INTEGER_MAX = (1 << 64) - 1


def loads(data: bytes) -> object:
    """Parse one JSON text.

    Args:
        data: UTF-8 without a byte order mark.

    Raises:
        RequestError: bad UTF-8, bad JSON, NaN or Infinity, a number beyond 64 bits (or beyond a double), a member
            given twice, nesting beyond `DEPTH_MAX`, a lone surrogate.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise _too_deep() from error
    except json.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    except ValueError as error:
        raise RequestError(f"the body is not acceptable JSON: {error}") from error
    # both checks are only needed for texts that can fail them
    if text.count("[") + text.count("{") > DEPTH_MAX:
        _check_depth(value)
    if "\\u" in text:
        _check_surrogates(value)
    return value


def dumps(value: object) -> bytes:
    """Compact UTF-8 JSON. An undecodable byte of a file name (PEP 383) comes out as JSON's own escape for it.

    Raises:
        ValueError: NaN or Infinity.
        TypeError: not a JSON value.
    """
    return _ENCODER.encode(value).encode("utf-8", "backslashreplace")


def _too_deep() -> RequestError:
    return RequestError(f"the body is nested deeper than {DEPTH_MAX}")


def _check_depth(value: object) -> None:
    layer = [value]
    for _ in range(DEPTH_MAX):
        layer = [child for item in layer for child in _containers_in(item)]
        if not layer:
            return
    raise _too_deep()


def _containers_in(value: object) -> list[object]:
    children: Iterable[object] = ()
    if isinstance(value, dict):
        children = value.values()
    elif isinstance(value, list):
        children = value
    return [child for child in children if isinstance(child, (dict, list))]


def _check_surrogates(value: object) -> None:
    try:
        _ENCODER.encode(value).encode()
    except UnicodeEncodeError as error:
        raise RequestError("the body holds a lone surrogate") from error


def _integer(text: str) -> int:
    # the length first: int() of megabytes of digits is slow, and refused by Python in words of its own
    value = int(text) if len(text) <= 20 else INTEGER_MAX + 1
    if not INTEGER_MIN <= value <= INTEGER_MAX:
        raise ValueError(f"the integer {text[:24]} does not fit into 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:24]} is too large")
    return value


def _constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the member {twice[:40]!r} is given twice")
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
