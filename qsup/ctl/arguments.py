"""Arguments of QMP commands as a person types them.

Decides: how ``key=value`` pairs, dotted keys and JSON become one JSON object.
Must not: know a command's schema; QEMU judges.
"""

from __future__ import annotations

import json
import shlex

from qsup.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from qsup.api.wire import QmpRequest

_HINT = 'write key=value pairs such as device=disk0 force=true, or one JSON object such as {"device": "disk0"}'


def parse_arguments(words: Sequence[str]) -> dict[str, Any]:
    """The JSON object that words mean.

    A word is a JSON object, merged in, or ``key=value``. The value is JSON where it reads as such, else a string; a dot
    in the key leads into a nested object.

    >>> parse_arguments(["id=net0", "props.mtu=1500", "props.up=true"])
    {'id': 'net0', 'props': {'mtu': 1500, 'up': True}}

    Raises:
        UsageError: a word is neither, or two words contradict each other.
    """
    arguments: dict[str, Any] = {}
    for word in words:
        if word.startswith("{"):
            arguments |= _json_object(word)
            continue
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r} is not an argument", hint=_HINT)
        _put(arguments, key, _value(text))
    return arguments


def parse_line(line: str) -> QmpRequest:
    """A line of the prompt: ``COMMAND [ARGUMENT...]``, ``COMMAND {JSON}``, or QMP's own ``{"execute": ...}``.

    Raises:
        UsageError: it is none of them.
    """
    if line.startswith("{"):
        request = _json_object(line)
        if not isinstance(request.get("execute"), str) or not isinstance(request.get("arguments", {}), dict):
            raise UsageError('a command in JSON is {"execute": "NAME", "arguments": {...}}')
        return {"execute": request["execute"], "arguments": request.get("arguments", {})}
    command, _, rest = line.partition(" ")
    if rest.lstrip().startswith("{"):
        return {"execute": command, "arguments": _json_object(rest)}
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UsageError(f"{error}".lower()) from error
    return {"execute": command, "arguments": parse_arguments(words)}


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"this is not JSON: {error}", hint=_HINT) from error
    if not isinstance(value, dict):
        raise UsageError("the arguments must be one JSON object", hint=_HINT)
    return value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _put(arguments: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    place = arguments
    for key in path:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise UsageError(f"{dotted!r}: {key!r} has a value already, it cannot be an object too", hint=_HINT)
    if last in place:
        raise UsageError(f"{dotted!r} is given twice", hint=_HINT)
    place[last] = value
