"""The kinds of values a unit key can hold: what TOML gives in, what the model keeps, how JSON Schema says it.

Decides: what is a well-formed size, time, CPU set, name, forward and so on, and how each is spelled when written back.
Must not: look at other keys (that is `qsup.unit.check`), at the host, or at files.

One `Kind` per key serves the parser, the writer, the JSON Schema and the unit reference: the four cannot drift apart.
A kind rejects with `ValueError`, whose text is the message a user reads after ``file:line: key:``. Long because it is
the list of all kinds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

from qsup.unit import quantity
from qsup.unit.quantity import shown

#: A VM's, disk's, NIC's or device's name: letters, digits, ``_ . -``, starting with a letter or digit.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}"
#: An instance's full name: a name, or ``template@instance``.
INSTANCE_PATTERN = rf"{NAME_PATTERN}(@{NAME_PATTERN})?"
NAME_RULE = "use letters, digits, '_', '.' and '-', at most 48, starting with a letter or digit"
_NAME = re.compile(NAME_PATTERN)
_INSTANCE = re.compile(INSTANCE_PATTERN)
# a tab is harmless; a newline in an argument, a log line or a listing is not
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def is_instance_name(text: str) -> bool:
    """Whether ``text`` names an instance: ``web`` or ``web@blue``."""
    return _INSTANCE.fullmatch(text) is not None


def is_template_name(text: str) -> bool:
    """Whether ``text`` names a template: ``web@``."""
    return text.endswith("@") and _NAME.fullmatch(text[:-1]) is not None


def _same(value: Any) -> Any:
    return value


@frozen(kw_only=True)
class Kind:
    """What one key holds.

    Args:
        word: the kind in one or two words for messages and the unit reference, such as ``size`` or ``array of name``.
        parse: TOML value -> model value; raises `ValueError` with the text for the user.
        format: model value -> the TOML value it is written as; ``parse(format(value)) == value``.
        schema: the JSON Schema of the TOML value.
        specifiers: whether ``%i`` and its like are expanded in it. Words of a fixed set are not made from specifiers,
            so that the schema can list them.
    """

    word: str
    parse: Callable[[Any], Any]
    format: Callable[[Any], Any] = _same
    schema: Mapping[str, Any] = field(factory=dict)
    specifiers: bool = True


def toml_type(value: object) -> str:
    """The TOML word for a Python value, for messages: ``expected a string, not an integer``."""
    words = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array", dict: "a table"}
    # which TOML does not have, but a request in JSON may
    return "null" if value is None else words.get(type(value), "a date or time")


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


def _program(value: object) -> str:
    text = _filled(value)
    if "/" in text and not text.startswith("/"):
        raise ValueError(f"{shown(text)} must be a name looked up in PATH, or an absolute path")
    return text


PROGRAM = Kind(word="program", parse=_program, schema={"type": "string", "pattern": r"^(/|[^/]+$)"})


def word_or_path(*words: str) -> Kind:
    """One of a fixed set of words, or a path; a path shows as one by a ``/`` or ``.``, so that a typo is no path."""

    def parse(value: object) -> str:
        text = _filled(value)
        if text not in words and not re.search("[/.]", text):
            allowed = quantity.alternatives([*words, "a path with a / or ."])
            raise ValueError(f"must be {allowed}, not {shown(text)}{quantity.did_you_mean(text, words)}")
        return text

    schema = {"anyOf": [{"enum": list(words)}, {"type": "string", "pattern": "[/.]"}]}
    return Kind(word=" | ".join([*words, "path"]), parse=parse, schema=schema)


def integer(minimum: int, maximum: int) -> Kind:
    """A whole number within ``minimum..maximum``, both included."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"expected an integer, not {toml_type(value)}")
        if not minimum <= value <= maximum:
            raise ValueError(f"must be from {minimum} to {maximum}, not {shown(value)}")
        return value

    schema = {"type": "integer", "minimum": minimum, "maximum": maximum}
    return Kind(word=f"{minimum} to {maximum}", parse=parse, schema=schema)


def choice(*words: str) -> Kind:
    """One of a fixed set of words."""

    def parse(value: object) -> str:
        text = _text(value)
        if text not in words:
            near = quantity.did_you_mean(text, words)
            raise ValueError(f"must be {quantity.alternatives(words)}, not {shown(text)}{near}")
        return text

    return Kind(word=" | ".join(words), parse=parse, schema={"enum": list(words)}, specifiers=False)


def _matching(word: str, pattern: str, rule: str) -> Kind:
    compiled = re.compile(pattern)

    def parse(value: object) -> str:
        text = _text(value)
        if not compiled.fullmatch(text):
            raise ValueError(f"{shown(text)} is not a valid {word}: {rule}")
        return text

    return Kind(word=word, parse=parse, schema={"type": "string", "pattern": f"^{pattern}$"})


NAME = _matching("name", NAME_PATTERN, NAME_RULE)
UNIT_NAME = _matching("unit name", INSTANCE_PATTERN, NAME_RULE)
MAC = _matching(
    "MAC address",
    # QEMU takes all zeros for "not given" and makes up another (qemu_macaddr_default_if_unset)
    r"(?!00(:00){5})[0-9a-f][02468ace](:[0-9a-f]{2}){5}",
    "six lower-case hexadecimal pairs such as 52:54:00:12:34:56, the first of them even (unicast), not all zero",
)
UUID = _matching("UUID", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "lower case, 8-4-4-4-12")
INTERFACE = _matching("interface name", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", "at most 15 characters, no '/'")


USB_IDENTITY = _matching(
    "USB identity", r"[0-9a-f]{4}:[0-9a-f]{4}", "vendor and product, four lower-case hexadecimal digits each"
)
USB_PORT = _matching("USB port", r"[1-9][0-9]{0,2}-[1-9][0-9]{0,2}(\.[1-9][0-9]{0,2}){0,5}", "such as 1-2 or 1-2.3")
PCI_ADDRESS = _matching(
    "PCI address",
    r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]",
    "domain, bus, device and function, such as 0000:03:00.0",
)


def optional(kind: Kind, nothing: Any = "") -> Kind:
    """The same kind, or the empty string for "not given", which the model keeps as ``nothing``."""
    return Kind(
        word=kind.word,
        parse=lambda value: nothing if value == "" else kind.parse(value),
        format=lambda value: "" if value == nothing else kind.format(value),
        schema={"anyOf": [{"const": ""}, dict(kind.schema)]},
        specifiers=kind.specifiers,
    )


#: A boolean, or the empty string for whatever is usual.
SWITCH = optional(BOOLEAN, None)

CPU_SET = Kind(
    word="CPU set",
    parse=lambda value: quantity.parse_cpu_set(_text(value)),
    format=quantity.format_cpu_set,
    schema={"type": "string", "pattern": f"^{quantity.CPU_SET_PATTERN}$"},
)


def _cpu_quota(value: object) -> int:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f'expected a string, such as "{shown(value)}" for so many CPUs, or "50%" of one')
    amount = quantity.parse_cpu_quota(_text(value))
    if not MIN_CPU_QUOTA <= amount <= MAX_CPU_QUOTA:
        bounds = f"{quantity.format_cpu_quota(MIN_CPU_QUOTA)} to {quantity.format_cpu_quota(MAX_CPU_QUOTA)} CPUs"
        raise ValueError(f"must be from {bounds}, not {shown(value)}")
    return amount


#: Thousandths of a CPU. The kernel's least is a thousandth of a second of each tenth (min_cfs_quota_period in
#: kernel/sched/core.c).
MIN_CPU_QUOTA, MAX_CPU_QUOTA = quantity.CPU_SHARE // 100, (quantity.MAX_CPU + 1) * quantity.CPU_SHARE
CPU_QUOTA = Kind(
    word="CPU quota",
    parse=_cpu_quota,
    format=quantity.format_cpu_quota,
    schema={"type": "string", "pattern": f"^{quantity.CPU_QUOTA_PATTERN}$"},
    specifiers=False,  # its % is a percentage's
)


def size(minimum: int, maximum: int = 1 << 62) -> Kind:
    """A number of bytes written as ``"512M"``; the model keeps bytes."""

    def parse(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            raise ValueError(f'expected a string with a unit, such as "{shown(value)}M"')
        amount = quantity.parse_size(_text(value))
        if not minimum <= amount <= maximum:
            bounds = f"{quantity.format_size(minimum)} to {quantity.format_size(maximum)}"
            raise ValueError(f"must be from {bounds}, not {shown(value)}")
        return amount

    schema = {"type": "string", "pattern": f"^{quantity.SIZE_PATTERN}$"}
    return Kind(word="size", parse=parse, format=quantity.format_size, schema=schema)


def duration(minimum: float = 0.0, maximum: float = 365 * 86400.0) -> Kind:
    """A time written as ``"90s"`` or ``"1min 30s"``; the model keeps seconds."""

    def parse(value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f'expected a string with a unit, such as "{shown(value)}s"')
        seconds = quantity.parse_duration(_text(value))
        if not minimum <= seconds <= maximum:
            bounds = f"{quantity.format_duration(minimum)} to {quantity.format_duration(maximum)}"
            raise ValueError(f"must be from {bounds}, not {shown(value)}")
        return seconds

    schema = {"type": "string", "pattern": r"^([ \t]*[0-9]+(\.[0-9]+)?[ \t]*[a-zµμ]+)+[ \t]*$"}
    return Kind(word="time", parse=parse, format=quantity.format_duration, schema=schema)


def _count(value: object) -> int:
    text = _text(value)
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ValueError(f"{shown(text)} is not a number from 1 to 999999999")
    return int(text)


#: A number that is part of a text.
COUNT = Kind(word="number", parse=_count, format=str, schema={"type": "string", "pattern": "^[1-9][0-9]{0,8}$"})


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

    return Kind(
        word=f"array of {kind.word}",
        parse=parse,
        format=lambda values: [kind.format(value) for value in values],
        schema={"type": "array", "items": dict(kind.schema), "maxItems": maximum},
        specifiers=kind.specifiers,
    )


#: A VM's CPUs are chosen for it.
AUTO = "auto"


def _pins(value: object) -> str | tuple[tuple[int, ...], ...]:
    if value == AUTO:
        return AUTO
    if isinstance(value, str):
        example = value if quantity.is_cpu_set(value) else "0-3"
        raise ValueError(f'must be "{AUTO}" or an array of CPU sets, such as ["{example}"]')
    sets: tuple[tuple[int, ...], ...] = _CPU_SETS.parse(value)
    return sets


_CPU_SETS = list_of(CPU_SET, maximum=4096)
PINS = Kind(
    word="auto | array of CPU set",
    parse=_pins,
    format=lambda value: value if value == AUTO else _CPU_SETS.format(value),
    schema={"anyOf": [{"const": AUTO}, dict(_CPU_SETS.schema)]},
)


NODE_SET = Kind(
    word="node set",
    parse=lambda value: quantity.parse_cpu_set(_text(value), of="node"),
    format=quantity.format_cpu_set,
    schema=dict(CPU_SET.schema),
)


def _nodes(value: object) -> str | tuple[int, ...]:
    if value == AUTO:
        return AUTO
    nodes: tuple[int, ...] = () if value == "" else NODE_SET.parse(value)
    return nodes


NODES = Kind(
    word="auto | node set",
    parse=_nodes,
    format=lambda value: value if value == AUTO else quantity.format_cpu_set(value),
    schema={"anyOf": [{"enum": ["", AUTO]}, {"type": "string", "pattern": CPU_SET.schema["pattern"]}]},
)


@frozen(kw_only=True)
class DeviceLimit:
    """An amount, of a device of the host that is named by a path: its own, or that of what is on it."""

    path: str
    amount: int


def device_limit(amount: Kind) -> Kind:
    """A path and an amount of some kind, with a space between them: ``"/dev/sda 50M"``."""

    def parse(value: object) -> DeviceLimit:
        path, _, rest = _text(value).rpartition(" ")
        if not path.startswith("/") or path != path.rstrip():
            raise ValueError(f"{shown(value)} is not an absolute path, a space and a {amount.word}")
        return DeviceLimit(path=path, amount=amount.parse(rest))

    pattern = amount.schema["pattern"].strip("^$")
    return Kind(
        word=f"path and {amount.word}",
        parse=parse,
        format=lambda value: f"{value.path} {amount.format(value.amount)}",
        schema={"type": "string", "pattern": rf"^/(.*[^ ])? ({pattern})$"},
    )


@frozen(kw_only=True)
class Forward:
    """One port of the host forwarded to one port of the guest (user networking)."""

    protocol: str
    host_address: str
    host_port: int
    guest_port: int

    def __str__(self) -> str:
        return f"{self.host_address}:{self.host_port}:{self.guest_port}/{self.protocol}"


_FORWARD_PATTERN = r"(?:([0-9]+\.[0-9]+\.[0-9]+\.[0-9]+):)?([0-9]{1,5}):([0-9]{1,5})(?:/(tcp|udp))?"
_FORWARD = re.compile(_FORWARD_PATTERN)


def _forward(value: object) -> Forward:
    text = _text(value)
    match = _FORWARD.fullmatch(text)
    if match is None:
        form = "write [ADDRESS:]HOST-PORT:GUEST-PORT[/tcp|/udp], such as 2222:22"
        raise ValueError(f"{shown(text)} is not a forward: {form}")
    ports = int(match[2]), int(match[3])
    if any(not 0 < port < 65536 for port in ports):
        raise ValueError(f"{shown(text)}: a port is from 1 to 65535")
    parts = (match[1] or "127.0.0.1").split(".")
    # a leading zero means octal to some readers and decimal to others
    if any(len(part) > 3 or int(part) > 255 or (part[0] == "0" and part != "0") for part in parts):
        raise ValueError(f"{shown(text)}: {shown(match[1])} is not an IPv4 address")
    return Forward(protocol=match[4] or "tcp", host_address=".".join(parts), host_port=ports[0], guest_port=ports[1])


FORWARD = Kind(
    word="forward", parse=_forward, format=str, schema={"type": "string", "pattern": f"^{_FORWARD_PATTERN}$"}
)


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


def _format_ready(value: Ready) -> object:
    match value.on:
        case "serial":
            return {"serial": value.text}
        case "port":
            return {"port": value.port}
        case word:
            return word


def _only(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}


READY = Kind(
    word="readiness",
    parse=_ready,
    format=_format_ready,
    schema={
        "oneOf": [
            {"enum": ["running", "agent"]},
            _only("serial", {"type": "string", "minLength": 1, "maxLength": 256}),
            _only("port", {"type": "integer", "minimum": 1, "maximum": 65535}),
        ]
    },
)
