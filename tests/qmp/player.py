"""A player of recordings: the other end of a monitor's or an agent's socket.

Decides: what is said when, by a recording alone, or by a `Fault`, which is a named change of what one says.
Must not: invent a message of its own.

It blocks, and runs in a thread (or in a process of its own), so that it is no part of what is tested.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import attrs

from tests.recordings.recording import Recording, command_of

DEADLINE = 20.0
GREETING = "greeting"
DELIMITER = b"\xff"

# What is sent in place of the lines recorded at some point: bytes as they go out, or HANG_UP to end the connection.
HANG_UP = b""
Change = Callable[[list[bytes]], Iterable[bytes]]


def as_recorded(lines: list[bytes]) -> Iterable[bytes]:
    """The lines themselves."""
    return [line + b"\r\n" for line in lines]


@attrs.frozen(kw_only=True)
class Fault:
    """A peer that departs from a recording.

    Args:
        name: what it does wrong.
        recording: the recording it departs from.
        at: the command whose answer is changed, or ``greeting``.
        change: what is sent instead.
        times: how often, before it keeps to the recording.
    """

    name: str
    recording: Recording
    at: str
    change: Change
    times: float = math.inf


def faithful(recording: Recording) -> Fault:
    """No fault at all."""
    return Fault(name="faithful", recording=recording, at="", change=as_recorded)


class Player:
    """Says what was recorded, to one client after the other.

    A command is answered by what was recorded after the same command: the first time by the first such passage, and so
    on, the last one being repeated; one that was not recorded, by what QEMU says to a command that it does not have.
    The answer's id becomes the command's.

    Args:
        fault: the recording, and the point at which to depart from it.
        greets: whether a greeting comes first, as from QEMU and not from an agent.
    """

    def __init__(self, fault: Fault, *, greets: bool = True) -> None:
        self._fault = fault
        self._greets = greets
        self._times: defaultdict[str, int] = defaultdict(int)
        self._departures = 0
        self.received: list[bytes] = []

    def serve(self, stream: socket.socket) -> None:
        """Talk to one client until it or the recording ends the connection."""
        with stream, contextlib.suppress(ConnectionError):
            stream.settimeout(DEADLINE)
            if self._greets and not self._say(stream, GREETING, [self._fault.recording.greeting]):
                return
            with stream.makefile("rb") as lines:
                for line in lines:
                    self.received.append(line)
                    if not self._answer(stream, line):
                        return

    def _answer(self, stream: socket.socket, line: bytes) -> bool:
        command = command_of(line)
        recording = self._fault.recording
        passages = recording.answers(command if command in recording.commands else "no-such-command")
        passage = passages[min(self._times[command], len(passages) - 1)]
        self._times[command] += 1
        request = json.loads(line.lstrip(DELIMITER))
        return self._say(stream, command, [_addressed(answer, request) for answer in passage])

    def _say(self, stream: socket.socket, point: str, lines: list[bytes]) -> bool:
        change: Change = as_recorded
        if point == self._fault.at and self._departures < self._fault.times:
            self._departures += 1
            change = self._fault.change
        for data in change(lines):
            if data == HANG_UP:
                return False
            stream.sendall(data)
        return True


def _addressed(line: bytes, request: dict[str, object]) -> bytes:
    """Give a recorded answer the id of the command it now answers; a stale one keeps its own."""
    mark, text = (DELIMITER, line[1:]) if line.startswith(DELIMITER) else (b"", line)
    message = json.loads(text)
    if not str(message.get("id", "")).startswith("bare-"):
        return line
    message["id"] = request["id"]
    arguments = request.get("arguments")
    if request.get("execute") == "guest-sync-delimited" and isinstance(arguments, dict):
        message["return"] = arguments["id"]
    return mark + json.dumps(message).encode()


@contextlib.contextmanager
def playing(player: Player, *, connections: int = 1) -> Iterator[list[socket.socket]]:
    """Let a player serve ``connections`` socket pairs at a time, and give the other ends."""
    pairs = [socket.socketpair() for _ in range(connections)]
    threads = [threading.Thread(target=player.serve, args=(theirs,)) for _, theirs in pairs]
    for thread in threads:
        thread.start()
    try:
        yield [ours for ours, _ in pairs]
    finally:
        for ours, _ in pairs:
            ours.close()
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), "the player does not end"
