"""Bytes to JSON messages and back, for the monitor and the guest agent alike.

Decides: where one message ends, how large it may be, and which JSON is fit to be handed on.
Must not: do I/O, or know what a message means.

Both peers may be hostile (a guest that took over its QEMU, a guest's own agent), so reading is strict where Python's
`json` is lenient: no NaN, no infinity, no lone surrogate, nothing but UTF-8. Writing avoids what makes QEMU answer with
an error that names no command (a noncharacter, a nesting deeper than its 1,024): such an answer costs the connection.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import NoReturn, TypeVar

from qemu.qmp.error import ProtocolError
from qemu.qmp.message import DeserializationError, UnexpectedTypeError

from qsup.errors import RequestError

_T = TypeVar("_T")

# An empty list costs 3 bytes on the wire and 64 in memory: a bound on bytes alone does not bound memory. QEMU's schema,
# its largest answer by far, holds 16,000 values.
MAX_VALUES = 250_000
# One character beyond the basic plane makes Python hold every character of a text at four bytes.
_MAX_WIDE = 1024 * 1024
# Below this size a line cannot hold enough values to matter, and counting them would cost more than it protects.
_UNCOUNTED = 64 * 1024
# QEMU reads its monitor byte by byte; more would take it many seconds.
_MAX_REQUEST = 2 * 1024 * 1024
_QUOTE = 100

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
# Noncharacters (Unicode 23.7) and surrogates, which QEMU's parser refuses.
_UNSENDABLE = re.compile(
    "[\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
    + "]"
)


class LineTooLong(ProtocolError):
    """A line beyond the limit, which may not even end."""


class LineSplitter:
    """Cuts a byte stream into lines, holding one unfinished line of a bounded length.

    Args:
        limit: the longest line accepted, in bytes without its newline; may be changed between calls.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._tail = bytearray()

    @property
    def pending(self) -> int:
        """Bytes held of a line whose end has not come."""
        return len(self._tail)

    def feed(self, data: bytes) -> list[bytes]:
        """Take what a socket gave and return the lines it completed, without their newlines.

        Raises:
            LineTooLong: a finished or unfinished line exceeds ``limit``.
        """
        *lines, tail = data.split(b"\n")
        if lines and self._tail:
            self._tail += lines[0]
            lines[0] = bytes(self._tail)
            self._tail = bytearray()
        self._tail += tail
        if len(self._tail) > self.limit or max(map(len, lines), default=0) > self.limit:
            raise LineTooLong(f"a message of more than {self.limit} bytes")
        return lines


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is beyond a double's range")
    return number


_decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_plain_encoder = json.JSONEncoder(ensure_ascii=False)


def decode(line: bytes, *, max_values: int = MAX_VALUES) -> dict[str, object]:
    """Read one message.

    Args:
        line: one JSON object as UTF-8; surrounding white space is allowed (QEMU ends its lines with CR LF).
        max_values: how many JSON values a large message may hold.

    Raises:
        DeserializationError: not UTF-8, not JSON, too deep, too many values or wide characters, or holding what JSON
            cannot express.
        UnexpectedTypeError: JSON, but not an object.
    """
    if len(line) > _UNCOUNTED and line.count(b",") + line.count(b"[") + line.count(b"{") > max_values:
        raise DeserializationError(f"a message of more than {max_values} values", line[:_QUOTE])
    if len(line) > _MAX_WIDE and not (line.isascii() and _SURROGATE_ESCAPE.search(line) is None):
        raise DeserializationError(f"a message of more than {_MAX_WIDE} bytes with wide characters", line[:_QUOTE])
    message, fault = _parse(line)
    if fault:
        # raised out here, or the error would keep the whole line alive for as long as a closed connection is remembered
        raise DeserializationError(f"a message that is not JSON ({fault})", line[:_QUOTE])
    if not isinstance(message, dict):
        raise UnexpectedTypeError("a message that is not a JSON object", type(message).__name__)
    return message


def _parse(line: bytes) -> tuple[object, str]:
    try:
        message = _decoder.decode(line.decode())
        if _SURROGATE_ESCAPE.search(line):
            _plain_encoder.encode(message).encode()
    except UnicodeEncodeError:
        return None, "a lone surrogate"
    except UnicodeDecodeError:
        return None, "invalid UTF-8"
    except RecursionError:
        return None, "nested too deeply"
    except ValueError as error:
        return None, str(error)[:_QUOTE]
    return message, ""


def encode(message: Mapping[str, object]) -> bytes:
    """Write one message as a line of ASCII.

    Raises:
        RequestError: it holds what QEMU's parser or JSON itself does not take.
    """
    try:
        line = _encoder.encode(message).encode() + b"\n"
        if b"\\u" in line and (found := _UNSENDABLE.search(_plain_encoder.encode(message))):
            raise ValueError(f"U+{ord(found[0]):04X} is not a character")
    except (TypeError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"these arguments cannot be sent to QEMU: {reason}") from error
    if len(line) > _MAX_REQUEST:
        raise RequestError(f"these arguments cannot be sent to QEMU: more than {_MAX_REQUEST} bytes")
    return line


def member(value: object, key: str, kind: type[_T], default: _T | None = None) -> _T:
    """Take one member of a JSON object that a peer sent.

    Args:
        value: what should be the object.
        key: the member's name.
        kind: the Python type it must have; ``int`` does not take a bool.
        default: what stands for an absent member; ``None`` makes it mandatory.

    Raises:
        UnexpectedTypeError: ``value`` is no object, or the member is absent or of another type.
    """
    if not isinstance(value, dict):
        raise UnexpectedTypeError(f"no object where '{key}' was expected", type(value).__name__)
    found = value.get(key, default)
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise UnexpectedTypeError(f"'{key}' is not of type {kind.__name__}", type(found).__name__)
    return found


def elements(value: object) -> list[object]:
    """Take a JSON array that a peer sent.

    Raises:
        UnexpectedTypeError: it is something else.
    """
    if not isinstance(value, list):
        raise UnexpectedTypeError("no array where one was expected", type(value).__name__)
    return value
