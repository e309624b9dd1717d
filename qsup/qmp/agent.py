"""The guest agent's channel: one command at a time, to a peer in the guest that need not be honest or alive.

Decides: when the channel is in step with the agent, how much an answer may hold, and how a call ends in time.
Must not: know what a command does, or hold up anything but its own callers.

Theory of operation. The channel is a byte stream through a virtio-serial port, and nobody says when the agent at its
other end comes, goes, or dies in the middle of an answer. So a connection is used only after ``guest-sync-delimited``:
the byte 0xFF makes the agent forget half a command, and another 0xFF marks where its own output makes sense again;
everything before that is thrown away unread. Whatever goes wrong in a call ends its connection, and the next call
connects and synchronises anew: there is one way back, and it does not depend on what went wrong. A command's outcome is
unknown when its error says ``sent: true``.
"""

from __future__ import annotations

import itertools
import math
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import UnexpectedTypeError

from qsup.errors import AgentCommandError, AgentProtocolError, AgentTimeout, AgentUnavailable
from qsup.qmp.dial import connect_unix
from qsup.qmp.messages import describe, make_request, parse_answer
from qsup.qmp.wire import LineSplitter, decode, encode

MAX_REPLY: Final = 4 * 1024 * 1024
_MAX_VALUES: Final = 100_000
_MAX_SYNC_REPLY: Final = 4096
_MAX_WORDS: Final = 4096
_RECEIVE_SIZE: Final = 64 * 1024
_MESSAGES_PER_TURN: Final = 64
_DELIMITER: Final = b"\xff"


class GuestAgent:
    """The agent of one VM, connected when first used and whenever it must be anew.

    Its deadlines and its lock are its own: a guest that plays dead delays its agent's callers and nobody else.

    Args:
        path: the socket that QEMU listens on for the agent's virtio-serial port, of any length.
        name: the VM's, for errors.
    """

    def __init__(self, path: Path, *, name: str) -> None:
        self.name = name
        self._path = path
        self._lock = trio.Lock()
        self._link: _Link | None = None
        self._ids = map(f"{secrets.token_hex(8)}-{{}}".format, itertools.count())

    def disconnect_nowait(self) -> None:
        """End the connection, and the call in progress with it; the next call connects again.

        To be called when the guest was reset: its agent has forgotten what was asked.
        """
        if self._link is not None:
            self._link.close_nowait()
            self._link = None

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float) -> object:
        """Send a command and wait for its answer.

        Args:
            command: the agent's name for it, such as ``guest-info``.
            arguments: its arguments, JSON values only.
            timeout: seconds for everything, waiting for other callers included.

        Returns:
            the answer's ``return`` member: a JSON value from the guest, which may be hostile.

        Raises:
            AgentCommandError: the agent's own answer.
            AgentTimeout: no answer in time.
            AgentUnavailable: there is no channel, or it ended.
            AgentProtocolError: what came was not the agent's protocol, or more than 4 MiB.
            RequestError: the arguments cannot be expressed in JSON.
        """
        message = await self._call(command, arguments, timeout, None)
        assert message is not None
        return self._result(command, message)

    async def tell(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float, listen: float
    ) -> None:
        """Send a command that is answered only when it fails, such as ``guest-shutdown``.

        Args:
            command: as in `execute`, and so are ``arguments`` and ``timeout``.
            listen: seconds of silence after which it counts as done.

        Raises:
            AgentError: as `execute` does.
        """
        message = await self._call(command, arguments, timeout, listen)
        if message is not None:
            self._result(command, message)

    async def _call(
        self, command: str, arguments: Mapping[str, object] | None, timeout: float, listen: float | None
    ) -> dict[str, object] | None:
        call_id = next(self._ids)
        line = encode(make_request(command, arguments, call_id, oob=False))
        sent = False
        with trio.move_on_after(max(timeout, 0)):
            async with self._lock:
                in_step = False
                try:
                    link = await self._synchronised()
                    await link.send(line)
                    sent = True
                    message = await link.answer(call_id, listen)
                    in_step = message is not None
                except ProtocolError as error:
                    words = f"{command}: the agent sent {error.error_message}"
                    raise AgentProtocolError(words, instance=self.name, sent=sent) from error
                except (OSError, EOFError, trio.ClosedResourceError) as error:
                    if listen is not None and sent:
                        return None  # it was done so well that the guest is gone
                    words = f"{command}: {_why_unavailable(error)}"
                    raise AgentUnavailable(words, instance=self.name, sent=sent) from error
                finally:
                    if not in_step:
                        self.disconnect_nowait()
                return message
        raise AgentTimeout(f"{command}: no answer within {timeout:g} s", instance=self.name, sent=sent)

    async def _synchronised(self) -> _Link:
        if self._link is None:
            self._link = _Link(connect_unix(self._path))
            await self._link.synchronise()
        return self._link

    def _result(self, command: str, message: Mapping[str, object]) -> object:
        try:
            result, error = parse_answer(message, command)
        except ProtocolError as fault:
            raise AgentProtocolError(f"the agent sent {fault.error_message}", instance=self.name) from fault
        if error is not None:
            raise AgentCommandError(command, error.class_, error.desc[:_MAX_WORDS], instance=self.name)
        return result


def _why_unavailable(error: OSError | EOFError | trio.ClosedResourceError) -> str:
    if isinstance(error, OSError):
        return f"the agent's channel cannot be used: {error.strerror}"
    return "the agent's channel ended" if isinstance(error, EOFError) else "the guest was reset meanwhile"


class _Link:
    """One connection to the channel."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._lines = LineSplitter(MAX_REPLY)

    def close_nowait(self) -> None:
        trio.lowlevel.notify_closing(self._stream)
        self._stream.close()

    async def send(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[self._stream.send(rest, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._stream)

    async def _receive(self) -> bytes:
        while True:
            if self._stream.fileno() < 0:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self._stream)
            try:
                data = self._stream.recv(_RECEIVE_SIZE)
            except BlockingIOError:
                continue
            if not data:
                raise EOFError
            return data

    async def synchronise(self) -> None:
        """Find the place in the agent's output from which on it answers us (QAPI ``guest-sync-delimited``)."""
        token = secrets.randbits(48)
        request = make_request("guest-sync-delimited", {"id": token}, f"sync-{token}", oob=False)
        await self.send(_DELIMITER + encode(request))
        window = bytearray()
        while True:
            window += await self._receive()
            # what an honest agent answers stands after its last mark, and a flood of marks costs no more than any other
            mark = window.rfind(_DELIMITER)
            del window[: len(window) if mark < 0 else mark]
            line, newline, _ = window.partition(b"\n")
            if newline and _answers_sync(bytes(line[1:]), token):
                return
            if newline or len(window) > _MAX_SYNC_REPLY:
                window.clear()

    async def answer(self, call_id: str, listen: float | None) -> dict[str, object] | None:
        """Wait for the answer to ``call_id``; ``None`` after ``listen`` seconds of silence."""
        with trio.move_on_after(math.inf if listen is None else listen):
            while True:
                for count, line in enumerate(self._lines.feed(await self._receive()), 1):
                    message = decode(line, max_values=_MAX_VALUES)
                    if "return" not in message and "error" not in message:
                        raise UnexpectedTypeError("a message that is no answer", describe(message))
                    # agents before QEMU 3.0 do not repeat the id; here one command is answered at a time
                    if message.get("id", call_id) == call_id:
                        return message
                    if count % _MESSAGES_PER_TURN == 0:
                        await trio.lowlevel.checkpoint()
        return None


def _answers_sync(line: bytes, token: int) -> bool:
    try:
        return decode(line).get("return") == token
    except ProtocolError:
        return False
