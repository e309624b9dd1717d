"""The terminal while it belongs to a guest.

Decides: when it is raw and when it is itself again, what detaches, and how bytes travel between it and a WebSocket.
Must not: interpret what the guest writes: it reaches the terminal as it is.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty

from qsup.ctl.connection import Deadline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from qsup.ctl.websocket import WebSocket

#: Ctrl-], as in telnet(1) and virsh(1).
ESCAPE = b"\x1d"
DETACHED, CLOSED, TIMED_OUT = "detached", "closed", "timed-out"
_READ = 1 << 14
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
#: Bytes of output remembered: as much as the daemon keeps of a console.
_REMEMBERED = 1 << 16
#: Bytes that must agree before output is taken for output that was shown already.
_AGREEMENT = 16
# what a guest most often leaves behind: colours, a hidden cursor
_SOBER = b"\033[0m\033[?25h"


#: A pipe that a signal writes into while a terminal is raw: one that comes right before a select(2) would else be
#: handled after it, when somebody types.
_wakeup: list[int] = []


def _select(sources: list[int], sinks: list[int], seconds: float | None) -> tuple[list[int], list[int]] | None:
    """What is readable and writable, which is nothing after a signal that was handled; ``None`` at the deadline."""
    readable, writable, _ = select.select([*sources, *_wakeup[:1]], sinks, (), seconds)
    if not readable and not writable:
        return None
    if _wakeup and _wakeup[0] in readable:
        readable.remove(_wakeup[0])
        os.read(_wakeup[0], _READ)
    return readable, writable


class RawTerminal:
    """A context in which every key goes to the guest and every byte comes from it.

    The terminal is restored when the context is left, by whatever path: the end, an exception, a signal that ends the
    program, and for as long as the program is stopped (SIGTSTP from elsewhere).

    Args:
        fd: the terminal.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._own: list[int | list[bytes | int]] = []
        self._handlers: dict[int, object] = {}
        self._former_wakeup = -1

    def __enter__(self) -> RawTerminal:
        self._own = termios.tcgetattr(self._fd)
        _wakeup.extend(os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        self._former_wakeup = signal.set_wakeup_fd(_wakeup[1], warn_on_full_buffer=False)
        for number in _ENDING:
            self._handlers[number] = signal.signal(number, self._end)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._stand_still)
        tty.setraw(self._fd, termios.TCSANOW)
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # it is what signal() returned
        signal.set_wakeup_fd(self._former_wakeup)
        while _wakeup:
            os.close(_wakeup.pop())

    def _restore(self) -> None:
        try:
            # at once: a terminal that nobody reads any more would never be drained
            termios.tcsetattr(self._fd, termios.TCSANOW, self._own)
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), _SOBER)
        except (termios.error, OSError):
            pass  # the terminal is gone (SIGHUP); there is nothing left to restore

    def _end(self, number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def _stand_still(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        signal.raise_signal(signal.SIGSTOP)
        tty.setraw(self._fd, termios.TCSANOW)


class Relay:
    """Carries bytes between standard input and output and a WebSocket, one after the other if need be.

    Args:
        interactive: standard input is a terminal: `ESCAPE` detaches, and typing never waits for the guest.
        typing: what is read from standard input is sent; without, only `ESCAPE` is looked for.
    """

    def __init__(self, *, interactive: bool, typing: bool) -> None:
        self._interactive = interactive
        self._typing = typing
        self._input_open = interactive or typing
        self._screen = _Screen()

    def run(self, websocket: WebSocket, deadline: Deadline) -> str:
        """Relay until `DETACHED`, `CLOSED` (by the daemon) or `TIMED_OUT`."""
        self._screen.expect_history()
        self._screen.show(websocket.receive())
        while not websocket.closed:
            readable = self._wait(websocket, deadline)
            if readable is None:
                return TIMED_OUT
            if websocket.fileno() in readable:
                self._screen.show(websocket.receive())
            if sys.stdin.fileno() in readable and self._read_input(websocket):
                return DETACHED
        return CLOSED

    def wait(self, fd: int | None, deadline: Deadline) -> str | None:
        """Wait until something else is readable: ``None``, unless `DETACHED` or `TIMED_OUT` comes first.

        What is typed meanwhile is lost.

        Args:
            fd: what else; ``None`` for nothing.
        """
        other = [] if fd is None else [fd]
        while True:
            sources = [*other, sys.stdin.fileno()] if self._interactive and self._input_open else other
            found = _select(sources, [], deadline.left())
            if found is None:
                return TIMED_OUT
            readable = found[0]
            if sys.stdin.fileno() in readable and self._take_input()[1]:
                return DETACHED
            if fd in readable:
                return None

    def _wait(self, websocket: WebSocket, deadline: Deadline) -> list[int] | None:
        """The readable descriptors; ``None`` at the deadline. Pending output is sent on the way."""
        sources = [websocket.fileno()]
        # a pipe can wait for the guest to read; a person must be able to detach from one that does not
        if self._input_open and (self._interactive or not websocket.is_full):
            sources.append(sys.stdin.fileno())
        sinks = [websocket.fileno()] if websocket.wants_write else []
        found = _select(sources, sinks, deadline.left())
        if found is None:
            return None
        readable, writable = found
        if writable:
            websocket.flush()
        return readable

    def _read_input(self, websocket: WebSocket) -> bool:
        data, escaped = self._take_input()
        if data and self._typing:
            if websocket.is_full:
                _write(b"\a")
            else:
                websocket.send(data)
        return escaped

    def _take_input(self) -> tuple[bytes, bool]:
        """What was typed, and whether the person detaches behind it. The end of a terminal detaches too."""
        data = os.read(sys.stdin.fileno(), _READ)
        if not data:
            self._input_open = False
            return b"", self._interactive
        if not self._interactive:
            return data, False
        before, escape, _ = data.partition(ESCAPE)
        return before, bool(escape)


class _Screen:
    """Standard output, and the end of what it has shown."""

    def __init__(self) -> None:
        self._shown = b""
        self._is_history = False

    def expect_history(self) -> None:
        """What comes next begins with recent output, of which an earlier attachment may have shown a part."""
        self._is_history = True

    def show(self, data: bytes) -> None:
        """Write what was not shown before."""
        if data and self._is_history:
            self._is_history = False
            data = data[overlap(self._shown, data) :]
        self._shown = (self._shown + data)[-_REMEMBERED:]
        _write(data)


def overlap(shown: bytes, history: bytes) -> int:
    """How many bytes of ``history`` are the end of what was ``shown``; few equal bytes are taken for chance.

    >>> overlap(b"..one line, another line", b"one line, another line, a third")
    22
    """
    start = shown.find(history[:_AGREEMENT])
    while start >= 0 and len(shown) - start >= _AGREEMENT:
        if history.startswith(shown[start:]):
            return len(shown) - start
        start = shown.find(history[:_AGREEMENT], start + 1)
    return 0


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]
