"""The guest agent's commands as typed verbs.

Decides: each command's arguments, what its answer must look like, and how much of a program's output is kept.
Must not: decide when the guest may be asked, or keep state.

Every verb takes ``timeout``, seconds for all of it, and raises what `GuestAgent.execute` raises; `AgentProtocolError`
also for an answer that is not of the command's type. Each names its command in QEMU's guest agent schema.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import attrs
import trio
from qemu.qmp.message import UnexpectedTypeError

from qsup.errors import AgentProtocolError, AgentTimeout
from qsup.qmp.agent import GuestAgent
from qsup.qmp.wire import elements, member

_T = TypeVar("_T")

MAX_OUTPUT = 1024 * 1024
# a refusal comes within milliseconds from an agent that has just answered
_LISTEN = 0.5
_FIRST_POLL, _LAST_POLL = 0.02, 0.5


@attrs.frozen(kw_only=True)
class GuestInfo:
    """``guest-info``: the agent's version, and the commands it takes."""

    version: str
    commands: frozenset[str]

    @classmethod
    def parse(cls, value: object) -> GuestInfo:
        """Read the answer."""
        supported = member(value, "supported_commands", list)
        enabled = (member(item, "name", str) for item in supported if member(item, "enabled", bool))
        return cls(version=member(value, "version", str), commands=frozenset(enabled))


@attrs.frozen(kw_only=True)
class GuestAddress:
    """An address of a guest's interface: ``kind`` is ``ipv4`` or ``ipv6``, ``prefix`` its length in bits."""

    kind: str
    address: str
    prefix: int

    @classmethod
    def parse(cls, value: object) -> GuestAddress:
        """Read one element of the answer."""
        return cls(
            kind=member(value, "ip-address-type", str),
            address=member(value, "ip-address", str),
            prefix=member(value, "prefix", int),
        )


@attrs.frozen(kw_only=True)
class GuestInterface:
    """One of ``guest-network-get-interfaces``; ``mac`` is ``""`` for an interface without."""

    name: str
    mac: str
    addresses: tuple[GuestAddress, ...]

    @classmethod
    def parse(cls, value: object) -> GuestInterface:
        """Read one element of the answer."""
        return cls(
            name=member(value, "name", str),
            mac=member(value, "hardware-address", str, ""),
            addresses=tuple(GuestAddress.parse(item) for item in member(value, "ip-addresses", list, [])),
        )


@attrs.frozen(kw_only=True)
class GuestVcpu:
    """One of ``guest-get-vcpus``: a processor by the guest's own number."""

    number: int
    online: bool
    can_offline: bool

    @classmethod
    def parse(cls, value: object) -> GuestVcpu:
        """Read one element of the answer."""
        return cls(
            number=member(value, "logical-id", int),
            online=member(value, "online", bool),
            can_offline=member(value, "can-offline", bool, False),
        )


@attrs.frozen(kw_only=True)
class ExecResult:
    """What a program in the guest gave.

    Args:
        exit_code: its exit status, ``None`` when a signal ended it.
        signal: that signal's number (or Windows' exception code), else ``None``.
        stdout: the beginning of its output.
        stderr: the beginning of its error output.
        truncated: whether there was more of either.
    """

    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool


async def _ask(
    agent: GuestAgent,
    command: str,
    parse: Callable[[object], _T],
    timeout: float,
    arguments: Mapping[str, object] | None = None,
) -> _T:
    answer = await agent.execute(command, arguments, timeout=timeout)
    try:
        return parse(answer)
    except UnexpectedTypeError as error:
        words = f"the agent answered {command} with something else: {error.error_message}"
        raise AgentProtocolError(words, instance=agent.name) from error


async def ping(agent: GuestAgent, *, timeout: float) -> None:
    """``guest-ping``: whether it answers."""
    await agent.execute("guest-ping", timeout=timeout)


async def info(agent: GuestAgent, *, timeout: float) -> GuestInfo:
    """``guest-info``."""
    return await _ask(agent, "guest-info", GuestInfo.parse, timeout)


async def network_get_interfaces(agent: GuestAgent, *, timeout: float) -> tuple[GuestInterface, ...]:
    """``guest-network-get-interfaces``: what the guest says its addresses are."""
    return await _ask(
        agent,
        "guest-network-get-interfaces",
        lambda answer: tuple(GuestInterface.parse(item) for item in elements(answer)),
        timeout,
    )


async def get_vcpus(agent: GuestAgent, *, timeout: float) -> tuple[GuestVcpu, ...]:
    """``guest-get-vcpus``: the processors that the guest knows, by its numbers."""
    found = await _ask(
        agent, "guest-get-vcpus", lambda answer: [GuestVcpu.parse(item) for item in elements(answer)], timeout
    )
    return tuple(sorted(found, key=lambda vcpu: vcpu.number))


async def set_vcpus(agent: GuestAgent, numbers: Sequence[int], online: bool, *, timeout: float) -> int:
    """``guest-set-vcpus``: put some online or offline, in order, until one cannot be.

    Returns:
        How many were.
    """
    vcpus = [{"logical-id": number, "online": online} for number in numbers]

    def parse(answer: object) -> int:
        if not isinstance(answer, int) or isinstance(answer, bool):
            raise UnexpectedTypeError("no number", type(answer).__name__)
        return answer

    return await _ask(agent, "guest-set-vcpus", parse, timeout, {"vcpus": vcpus})


async def shutdown(agent: GuestAgent, *, timeout: float, mode: str = "powerdown") -> None:
    """``guest-shutdown``: have the guest shut itself down; returns once it was not refused.

    Args:
        mode: ``powerdown``, ``reboot`` or ``halt``.
    """
    await agent.tell("guest-shutdown", {"mode": mode}, timeout=timeout, listen=_LISTEN)


async def run(
    agent: GuestAgent,
    path: str,
    arguments: Sequence[str] = (),
    *,
    timeout: float,
    input: bytes = b"",
    max_output: int = MAX_OUTPUT,
) -> ExecResult:
    """``guest-exec`` and ``guest-exec-status``: run a program in the guest, as the agent's user, and wait for its end.

    Args:
        path: the program, looked up in the agent's PATH unless absolute.
        arguments: its arguments, without its own name.
        timeout: seconds; a program that runs longer is left running.
        input: its standard input.
        max_output: how much of each output to keep, in bytes. The agent itself keeps 16 MiB, but an answer of more
            than 4 MiB in all, base64, is refused.

    Raises:
        AgentTimeout: ``details["pid"]`` is the program's in the guest when it was started.
    """
    deadline = trio.current_time() + timeout
    request: dict[str, object] = {"path": path, "arg": list(arguments), "capture-output": True}
    if input:
        request["input-data"] = base64.b64encode(input).decode()
    pid = await _ask(agent, "guest-exec", lambda answer: member(answer, "pid", int), timeout, request)
    try:
        return await _wait_exit(agent, pid, max_output, deadline)
    except AgentTimeout as error:
        words = f"{path} still ran in the guest after {timeout:g} s"
        raise AgentTimeout(words, instance=agent.name, pid=pid) from error


async def _wait_exit(agent: GuestAgent, pid: int, max_output: int, deadline: float) -> ExecResult:
    poll = _FIRST_POLL
    while True:
        left = deadline - trio.current_time()
        result = await _ask(
            agent, "guest-exec-status", lambda answer: _parse_status(answer, max_output), left, {"pid": pid}
        )
        if result is not None:
            return result
        await trio.sleep(min(poll, max(left, 0)))
        poll = min(poll * 2, _LAST_POLL)


def _parse_status(value: object, max_output: int) -> ExecResult | None:
    if not member(value, "exited", bool):
        return None
    stdout, stderr = _output(value, "out-data"), _output(value, "err-data")
    cut = member(value, "out-truncated", bool, False) or member(value, "err-truncated", bool, False)
    return ExecResult(
        exit_code=_number(value, "exitcode"),
        signal=_number(value, "signal"),
        stdout=stdout[:max_output],
        stderr=stderr[:max_output],
        truncated=cut or max(len(stdout), len(stderr)) > max_output,
    )


def _number(value: object, key: str) -> int | None:
    return member(value, key, int) if isinstance(value, dict) and key in value else None


def _output(value: object, key: str) -> bytes:
    try:
        return base64.b64decode(member(value, key, str, ""), validate=True)
    except ValueError as error:
        raise UnexpectedTypeError(f"'{key}' is not base64", key) from error
