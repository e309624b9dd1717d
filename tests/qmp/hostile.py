"""A hostile QEMU's repertoire, each piece a change of a named recording.

Decides: what a QEMU that a guest took over may say.
Must not: say what is to come of it; the tests do.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator

from tests.qmp.player import GREETING, HANG_UP, Change, Fault, as_recorded
from tests.recordings.recording import Recording, load

SESSION = load("session")
PANIC = load("panic")
SCHEMA = load("schema")
UNREADABLE = load("unreadable")
STATUS = "query-status"


def _silence(_lines: list[bytes]) -> Iterable[bytes]:
    return []


def _hang_up(_lines: list[bytes]) -> Iterable[bytes]:
    return [HANG_UP]


def _half_and_hang_up(lines: list[bytes]) -> Iterable[bytes]:
    return [lines[-1][: len(lines[-1]) // 2], HANG_UP]


def _garbage(lines: list[bytes]) -> Iterable[bytes]:
    return [bytes(byte ^ 0x55 for byte in lines[-1]) + b"\n"]


def _no_newline(lines: list[bytes]) -> Iterable[bytes]:
    return itertools.repeat(lines[-1].ljust(65536))


def _replace(old: bytes, new: bytes) -> Change:
    """Replace one piece of the line that has it."""

    def change(lines: list[bytes]) -> Iterable[bytes]:
        assert any(old in line for line in lines), f"{old!r} is not in {lines!r}"
        return as_recorded([line.replace(old, new, 1) for line in lines])

    return change


def _member(key: str, value: object) -> Change:
    """Send the last line with one member set, or removed by ``...``."""

    def change(lines: list[bytes]) -> Iterable[bytes]:
        message = json.loads(lines[-1])
        message[key] = value
        left = {name: given for name, given in message.items() if given is not ...}
        return as_recorded([*lines[:-1], json.dumps(left).encode()])

    return change


def _nested(depth: int) -> Change:
    return _replace(b'"prelaunch"', b"[" * depth + b"]" * depth)


def _listed(lines: list[bytes]) -> Iterable[bytes]:
    return as_recorded([b"[" + lines[-1] + b"]"])


def _twice(lines: list[bytes]) -> Iterable[bytes]:
    return as_recorded([*lines, lines[-1]])


def _long(lines: list[bytes]) -> Iterable[bytes]:
    """12 MB of the human monitor's text."""
    message = json.loads(lines[-1])
    message["return"] *= 12_000_000 // len(message["return"])
    return as_recorded([json.dumps(message).encode()])


def _long_schema(lines: list[bytes]) -> Iterable[bytes]:
    """12 MB of schema, its entities over and over again, that would take 110 in memory."""
    message = json.loads(lines[-1])
    message["return"] *= 12_000_000 // len(lines[-1])
    return as_recorded([json.dumps(message).encode()])


def _values(lines: list[bytes]) -> Iterable[bytes]:
    """12 MB that would take 300 in memory."""
    return _replace(b'"prelaunch"', b"[" + b"[]," * 4_000_000 + b"[]]")(lines)


def _endless(lines: list[bytes]) -> Iterator[bytes]:
    """The first line, an event, for ever."""
    while True:
        yield b"".join(as_recorded(lines[:1])) * 100


def _preceded_by_endless_greeting(lines: list[bytes]) -> Iterable[bytes]:
    return itertools.repeat(lines[0][:-1])


def _fault(name: str, change: Change, at: str = STATUS, recording: Recording = SESSION) -> Fault:
    return Fault(name=name, recording=recording, at=at, change=change)


def _answer_to(command: str, recording: Recording) -> Change:
    """Send what was recorded as the answer to another command."""
    return lambda _lines: as_recorded(list(recording.answers(command)[0]))


# After each of these nothing sensible can follow: the connection must end, with the cause named.
NOT_QMP = (
    _fault("garbage", _garbage),
    _fault("no newline", _no_newline),
    _fault("1,500-deep nesting", _nested(1500)),
    _fault("200,000-deep nesting", _nested(200_000)),
    _fault("a list", _listed),
    _fault("NaN", _replace(b"false", b"NaN")),
    _fault("infinity", _replace(b"false", b"-Infinity")),
    _fault("a number beyond a double", _replace(b"false", b"1e999")),
    _fault("a number of 5,000 digits", _replace(b"false", b"9" * 5000)),
    _fault("lone surrogate", _replace(b"prelaunch", rb"\ud800")),
    _fault("invalid UTF-8", _replace(b"prelaunch", b"\xc3\x28")),
    _fault("four million values", _values),
    _fault("12 MB of small values", _long_schema, at="query-qmp-schema", recording=SCHEMA),
    _fault("error without id", _answer_to("", UNREADABLE)),
    _fault("error without class", _member("error", {"desc": "?"}), at="no-such-command"),
    _fault("error that is text", _member("error", "?"), at="no-such-command"),
    _fault("error that is null", _member("error", None), at="no-such-command"),
    _fault("neither answer nor event", _member("return", ...)),
    _fault("a second greeting", lambda _lines: as_recorded([SESSION.greeting])),
    _fault("event without timestamp", lambda lines: as_recorded([b'{"event": "STOP"}', *lines])),
    _fault("event whose name is a number", _member("event", 5)),
    _fault("event whose data is a list", _replace(b'"data": {', b'"data": 1, "x": {'), "quit"),
    _fault("SHUTDOWN without its members", _replace(b'"guest"', b'"ghost"'), "quit"),
    _fault("GUEST_PANICKED whose action is null", _replace(b'"pause"', b"null"), "human-monitor-command", PANIC),
)

# These cost the command at most, not the connection.
TOLERATED = (
    _fault("mute", _silence),
    _fault("another id", _member("id", "OLD")),
    _fault("id that is a list", _member("id", [1])),
    _fault("id that is an object", _member("id", {})),
    _fault("endless events", _endless, at="system_reset"),
)

ENDED = (
    _fault("hangs up", _hang_up),
    _fault("hangs up in the middle", _half_and_hang_up),
)

ANSWERED = (
    _fault("answers twice", _twice),
    _fault("12 MB", _long, at="human-monitor-command"),
)

# What can go wrong before the connection is of any use.
NEVER_READY = (
    _fault("mute from the start", _silence, at=GREETING),
    _fault("hangs up at the start", _hang_up, at=GREETING),
    _fault("hangs up after the greeting", _hang_up, at="qmp_capabilities"),
    _fault("garbage from the start", _garbage, at=GREETING),
    _fault("another greeting", _replace(b'"QMP"', b'"SMTP"'), at=GREETING),
    _fault("greeting without version", _replace(b'"version"', b'"ver"'), at=GREETING),
    _fault("greeting with a version of text", _replace(b'"major": 7', b'"major": "7"'), at=GREETING),
    _fault("endless greeting", _preceded_by_endless_greeting, at=GREETING),
    _fault("mute after the greeting", _silence, at="qmp_capabilities"),
    _fault("refuses to negotiate", _member("error", {"class": "GenericError", "desc": "?"}), at="qmp_capabilities"),
)
