"""What a monitor's messages mean to the transport: requests, the greeting, answers.

Decides: which messages are malformed.
Must not: do I/O, or know any command.

The checks are those of `qemu.qmp`'s models; what fails them is one of its protocol errors.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from qemu.qmp.message import Message, UnexpectedTypeError
from qemu.qmp.models import ErrorInfo, ErrorResponse, Greeting
from qemu.qmp.qmp_client import BadReplyError, ServerParseError

from qsup.qmp.wire import member

_QUOTE = 100


@attrs.frozen(kw_only=True)
class MonitorGreeting:
    """What QEMU said on connecting.

    Args:
        major: QEMU's version; never to be compared for what QEMU can do.
        minor: its second number.
        micro: its third.
        package: the distribution's version, or ``""``.
        capabilities: the monitor's own, such as ``oob``.
    """

    major: int
    minor: int
    micro: int
    package: str
    capabilities: frozenset[str]


def make_request(
    command: str, arguments: Mapping[str, object] | None, call_id: str | int, *, oob: bool
) -> dict[str, object]:
    """Make a command's message (QMP specification, "Issuing Commands")."""
    request: dict[str, object] = {"exec-oob" if oob else "execute": command, "id": call_id}
    if arguments is not None:
        request["arguments"] = arguments
    return request


def parse_greeting(message: Mapping[str, object]) -> MonitorGreeting:
    """Read QMP's first message.

    Raises:
        UnexpectedTypeError: it is something else.
    """
    try:
        greeting = Greeting(message).QMP
    except (KeyError, TypeError) as error:
        raise UnexpectedTypeError(f"no greeting: {error.args[0]}", describe(message)) from error
    version = member(greeting.version, "qemu", dict)
    return MonitorGreeting(
        major=member(version, "major", int),
        minor=member(version, "minor", int),
        micro=member(version, "micro", int),
        package=member(greeting.version, "package", str, ""),
        capabilities=frozenset(name for name in greeting.capabilities if isinstance(name, str)),
    )


def parse_answer(message: Mapping[str, object], command: str) -> tuple[object, ErrorInfo | None]:
    """Read the answer to ``command``: its result, or its error.

    Raises:
        BadReplyError: the error lacks its class or its text.
    """
    if "error" not in message:
        return message["return"], None
    try:
        return None, ErrorResponse(message).error
    except (KeyError, TypeError) as error:
        # without the answer itself: it may be large, and a closed connection's reason is kept
        sent = Message({"execute": command})
        raise BadReplyError(f"a malformed error in answer to {command}: {error.args[0]}", Message({}), sent) from None


def refuse_anonymous_error(message: Mapping[str, object]) -> None:
    """An error without an id says that QEMU could not read a command, and not which one.

    Raises:
        ServerParseError: ``message`` is such an error.
        BadReplyError: it is, and malformed.
    """
    if "error" in message and "id" not in message:
        _, error = parse_answer(message, "no command")
        raise ServerParseError(f"an error that answers no command: {error.desc if error else ''}", Message({}))


def describe(message: Mapping[str, object]) -> str:
    """The names of a message's members, at most 100 characters."""
    return ", ".join(message)[:_QUOTE]
