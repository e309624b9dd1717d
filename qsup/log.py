"""Setting up structlog: one line a record, for people on a terminal, for machines otherwise.

Decides: the form of log lines and where they go (standard error, or the journal's native protocol under systemd).
Must not: be imported by anything but the daemon (modules take ``structlog.get_logger()``), or wait for whoever reads
the log: the daemon has one thread.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import stat
import sys
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import Any, TextIO, cast

import structlog

LEVELS = ("debug", "info", "warning", "error")
#: Priorities of the journal by level (syslog(3)).
_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}
_LONGEST_VALUE = 4096

_DROPPED = "records of the log were dropped: nobody took them"

EventDict = MutableMapping[str, Any]


def configure(level: str, *, send_to_journal: Callable[[dict[str, str]], bool] | None = None) -> None:
    """Set logging up for this process.

    Args:
        level: one of `LEVELS`.
        send_to_journal: takes one record's fields by the journal's native protocol, in place of standard error; whether
            it was taken.
    """
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        _drop_empty,
    ]
    form: list[Any] = []
    if send_to_journal is not None:
        processors.append(_Journal(send_to_journal))
    elif sys.stderr.isatty():
        form = [structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False), _render_line]
    else:
        form = [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors + form,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _StandardError(form))),
        cache_logger_on_first_use=True,
    )


class _StandardError:
    """Standard error, which nobody waits for: a terminal may be stopped, a pipe's reader may sleep, a disk may be full.

    What cannot be written at once is dropped and counted; the count is told as soon as something can be written again.
    Of a record that was taken in part the rest is kept, so that a line is whole or missing.

    Args:
        form: the processors that make a line of an event.
    """

    def __init__(self, form: Sequence[Callable[[Any, str, Any], Any]]) -> None:
        self._form = form
        self._write = _writer()
        self._rest = b""
        self._lost = 0

    def write(self, text: str) -> None:
        """Write it, or drop it; never waits."""
        self._rest = self._put(self._rest)
        if self._lost and self._take(self._count()):
            self._lost = 0
        if not self._take(text):
            self._lost += 1

    def _count(self) -> str:
        line: Any = {"level": "error", "event": _DROPPED, "dropped": self._lost}
        for processor in self._form:
            line = processor(None, "error", line)
        return f"{line}\n"

    def _take(self, text: str) -> bool:
        """Whether any of it could be written; what is left of it then is written first."""
        if self._rest:
            return False
        data = text.encode(errors="backslashreplace")
        left = self._put(data)
        if len(left) < len(data):
            self._rest = left
        return len(left) < len(data)

    def _put(self, data: bytes) -> bytes:
        """What is left of it once as much was written as can be."""
        try:
            while data:
                written = self._write(data)
                if not written:
                    break
                data = data[written:]
        except BlockingIOError:
            pass  # what is left is the answer
        except OSError:
            return b""  # the reader is gone, or the disk is full: there is nobody left to tell
        return data

    def flush(self) -> None:
        """Nothing is held back that could be written."""


def _writer() -> Callable[[bytes], int]:
    """How to write to standard error without waiting.

    Whether writes wait is a property of the open file, which whoever started the daemon shares; so a pipe or a terminal
    is opened once more. Where that is not allowed, it is asked whether there is room for a little.
    """
    try:
        mode = os.fstat(2).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            fd = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            return partial(os.write, fd)
        if stat.S_ISSOCK(mode):
            return _send
    except OSError:
        return _write_if_ready
    return partial(os.write, 2)


def _send(data: bytes) -> int:
    with socket.socket(fileno=os.dup(2)) as channel:
        return channel.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _write_if_ready(data: bytes) -> int:
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    # poll(2) promises of a pipe that so much can be written at once
    return os.write(2, data[: select.PIPE_BUF]) if poll.poll(0) else 0


def _drop_empty(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Leave out what says nothing, and cut what a hostile guest made long."""
    return {
        key: value[:_LONGEST_VALUE] if isinstance(value, str) and key != "exception" else value
        for key, value in event.items()
        if value is not None
    }


def _render_line(_logger: Any, _method: str, event: EventDict) -> str:
    head = f"{event.pop('timestamp')} {event.pop('level'):7} {event.pop('event')}"
    exception = event.pop("exception", "")
    fields = " ".join(f"{key}={value!r}" if " " in str(value) else f"{key}={value}" for key, value in event.items())
    return "\n".join(filter(None, (f"{head}  {fields}".rstrip(), exception)))


class _Journal:
    """The last processor under systemd: fields become journal fields, ``QSUP_INSTANCE=web`` among them."""

    def __init__(self, send: Callable[[dict[str, str]], bool]) -> None:
        self._send = send
        self._lost = 0

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> str:
        message = str(event.pop("event"))
        level = str(event.pop("level", "info"))
        exception = event.pop("exception", None)
        fields = {f"QSUP_{key.upper()}": str(value) for key, value in event.items()}
        words = " ".join(f"{key}={value}" for key, value in event.items())
        text = f"{message}  {words}".rstrip() + (f"\n{exception}" if exception else "")
        if not self._tell(level, text, fields):
            self._lost += 1
        elif self._lost and self._tell("error", f"{_DROPPED}  dropped={self._lost}", {}):
            self._lost = 0
        raise structlog.DropEvent

    def _tell(self, level: str, text: str, fields: dict[str, str]) -> bool:
        known = {"MESSAGE": text, "PRIORITY": str(_PRIORITY.get(level, 6)), "SYSLOG_IDENTIFIER": "qsupd"}
        return self._send(known | fields)


def stderr_is_journal(env: MutableMapping[str, str]) -> bool:
    """Whether standard error leads to the journal (``JOURNAL_STREAM``, systemd.exec(5)); takes the variable away."""
    stream = env.pop("JOURNAL_STREAM", "")
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"
