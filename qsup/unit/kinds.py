"""The kinds of values a unit key can hold: what TOML gives in, what the model keeps, how JSON Schema says it.

Decides: what is a well-formed size, time, CPU set, name, forward and so on.
Must not: look at other keys (that is `qsup.unit.check`), at the host, or at files.

One `Kind` per key serves the parser, the JSON Schema and the unit reference, so the three cannot drift apart.
A kind rejects with `ValueError`, whose text is the message a user reads after ``file:line: key:``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

from qsup.unit import quantity

#: A VM's, disk's, NIC's or device's name: letters, digits, ``_ . -``, starting with a letter or digit.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}"
#: An instance's full name: a name, or ``template@instance``.
INSTANCE_PATTERN = rf"{NAME_PATTERN}(@{NAME_PATTERN})?"
_NAME = re.compile(NAME_PATTERN)
_INSTANCE = re.compile(INSTANCE_PATTERN)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def is_instance_name(text: str) -> bool:
    """Whether ``text`` names an instance: ``web`` or ``web@blue``."""
    return _INSTANCE.fullmatch(text) is not None


@frozen(kw_only=True)
class Kind:
    """What one key holds.

    Args:
        word: the kind in one or two words for messages and the unit reference, such as ``size`` or ``list of names``.
        parse: TOML value -> model value; raises `ValueError` with the text for the user.
        schema: the JSON Schema of the TOML value.
    """

    word: str
    parse: Callable[[Any], Any]
    schema: Mapping[str, Any] = field(factory=dict)


def toml_type(value: object) -> str:
    """The TOML word for a Python value, for messages: ``expected a string, not an integer``."""
    words = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array", dict: "a table"}
    return words.get(type(value), "a date or time")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, not {toml_type(value)}")
    if _CONTROL.search(value):
        raise ValueError("control characters are not allowed here")
    return value


def _filled(value: object) -> str:
    text = _text(value)
    if not text:
        raise ValueError("must not be empty")
    return text


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {toml_type(value)}")
    return value


STRING = Kind(word="string", parse=_text, schema={"type": "string"})
PATH = Kind(word="path", parse=_filled, schema={"type": "string", "minLength": 1})
BOOLEAN = Kind(word="boolean", parse=_boolean, schema={"type": "boolean"})


def integer(minimum: int, maximum: int) -> Kind:
    """A whole number within ``minimum..maximum``, both included."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"expected an integer, not {toml_type(value)}")
        if not minimum <= value <= maximum:
            raise ValueError(f"must be from {minimum} to {maximum}, not {value}")
        return value

    return Kind(word="integer", parse=parse, schema={"type": "integer", "minimum": minimum, "maximum": maximum})


def choice(*words: str) -> Kind:
    """One of a fixed set of words."""

    def parse(value: object) -> str:
        text = _text(value)
        if text not in words:
            raise ValueError(
                f"must be {quantity.alternatives(words)}, not {text!r}{quantity.did_you_mean(text, words)}"
            )
        return text

    return Kind(word=" | ".join(words), parse=parse, schema={"enum": list(words)})


def _matching(word: str, pattern: re.Pattern[str], rule: str) -> Kind:
    def parse(value: object) -> str:
        text = _text(value)
        if not pattern.fullmatch(text):
            raise ValueError(f"{text!r} is not a valid {word}: {rule}")
        return text

    return Kind(word=word, parse=parse, schema={"type": "string", "pattern": f"^{pattern.pattern}$"})


_NAME_RULE = "use letters, digits, '_', '.' and '-', at most 48, starting with a letter or digit"
NAME = _matching("name", _NAME, _NAME_RULE)
UNIT_NAME = _matching("unit name", _INSTANCE, _NAME_RULE)
MAC = _matching("MAC address", _MAC, "six lower-case hexadecimal pairs such as 52:54:00:12:34:56")
UUID = _matching("UUID", re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "lower case, 8-4-4-4-12")
INTERFACE = _matching("interface name", re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}"), "at most 15 characters, no '/'")


def optional(kind: Kind) -> Kind:
    """The same kind, or the empty string for "not given"."""
    return Kind(
        word=kind.word,
        parse=lambda value: value if value == "" else kind.parse(value),
        schema={"anyOf": [{"const": ""}, dict(kind.schema)]},
    )


CPU_SET = Kind(
    word="CPU set",
    parse=lambda value: quantity.parse_cpu_set(_text(value)),
    schema={"type": "string", "pattern": r"^\d+(-\d+)?(,\d+(-\d+)?)*$"},
)


def size(minimum: int, maximum: int = 1 << 62) -> Kind:
    """A number of bytes written as ``"512M"``; the model keeps bytes."""

    def parse(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            raise ValueError(f'expected a string with a unit, such as "{value}M"')
        amount = quantity.parse_size(_text(value))
        if not minimum <= amount <= maximum:
            raise ValueError(
                f"must be from {quantity.format_size(minimum)} to {quantity.format_size(maximum)}, not {value!r}"
            )
        return amount

    return Kind(word="size", parse=parse, schema={"type": "string", "pattern": r"^\d+(\.\d+)?[KMGT]?(i?B)?$"})


def duration(minimum: float = 0.0, maximum: float = 365 * 86400.0) -> Kind:
    """A time written as ``"90s"`` or ``"1min 30s"``; the model keeps seconds."""

    def parse(value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f'expected a string with a unit, such as "{value}s"')
        seconds = quantity.parse_duration(_text(value))
        if not minimum <= seconds <= maximum:
            raise ValueError(
                f"must be from {quantity.format_duration(minimum)} to {quantity.format_duration(maximum)}, not {value!r}"
            )
        return seconds

    return Kind(word="time", parse=parse, schema={"type": "string", "pattern": r"^\d"})


def list_of(kind: Kind, *, maximum: int = 1024) -> Kind:
    """An array; the model keeps a tuple. The first wrong entry is named by its position, counted from 1."""

    def parse(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"expected an array, not {toml_type(value)}")
        if len(value) > maximum:
            raise ValueError(f"at most {maximum} entries are allowed, not {len(value)}")
        parsed = []
        for position, entry in enumerate(value, 1):
            try:
                parsed.append(kind.parse(entry))
            except ValueError as error:
                raise ValueError(f"entry {position}: {error}") from error
        return tuple(parsed)

    return Kind(word=f"list of {kind.word}s", parse=parse, schema={"type": "array", "items": dict(kind.schema)})


@frozen(kw_only=True)
class Forward:
    """One port of the host forwarded to one port of the guest (user networking)."""

    protocol: str
    host_address: str
    host_port: int
    guest_port: int

    def __str__(self) -> str:
        return f"{self.host_address}:{self.host_port}:{self.guest_port}/{self.protocol}"


_FORWARD = re.compile(r"(?:(\d+\.\d+\.\d+\.\d+):)?(\d{1,5}):(\d{1,5})(?:/(tcp|udp))?")


def _forward(value: object) -> Forward:
    text = _text(value)
    match = _FORWARD.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a forward: write [ADDRESS:]HOST-PORT:GUEST-PORT[/tcp|/udp], such as 2222:22")
    ports = int(match[2]), int(match[3])
    if any(not 0 < port < 65536 for port in ports):
        raise ValueError(f"{text!r}: a port is from 1 to 65535")
    address = match[1] or "127.0.0.1"
    if any(int(part) > 255 for part in address.split(".")):
        raise ValueError(f"{text!r}: {address} is not an IPv4 address")
    return Forward(protocol=match[4] or "tcp", host_address=address, host_port=ports[0], guest_port=ports[1])


FORWARD = Kind(word="forward", parse=_forward, schema={"type": "string", "pattern": f"^{_FORWARD.pattern}$"})


@frozen(kw_only=True)
class Ready:
    """What makes a starting VM ready: exactly one of the four.

    Args:
        on: ``running`` (QEMU runs the guest), ``agent`` (the guest agent answers), ``serial`` or ``port``.
        text: for ``serial``: the literal text awaited on the serial console.
        port: for ``port``: the guest's TCP port that must accept a connection through its forward.
    """

    on: str
    text: str = ""
    port: int = 0


def _ready(value: object) -> Ready:
    if value in ("running", "agent"):
        return Ready(on=str(value))
    if isinstance(value, dict) and len(value) == 1:
        if isinstance(text := value.get("serial"), str) and 0 < len(text.encode()) <= 256:
            return Ready(on="serial", text=text)
        port = value.get("port")
        if isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536:
            return Ready(on="port", port=port)
    raise ValueError('must be "running", "agent", { serial = "TEXT" } (1 to 256 bytes) or { port = NUMBER }')


READY = Kind(
    word="readiness",
    parse=_ready,
    schema={
        "oneOf": [
            {"enum": ["running", "agent"]},
            {
                "type": "object",
                "properties": {"serial": {"type": "string", "minLength": 1, "maxLength": 256}},
                "required": ["serial"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"port": {"type": "integer", "minimum": 1, "maximum": 65535}},
                "required": ["port"],
                "additionalProperties": False,
            },
        ]
    },
)
