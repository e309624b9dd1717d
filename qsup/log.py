"""Setting up structlog: one line a record, for people on a terminal, for machines otherwise.

Decides: the form of log lines and where they go (standard error, or the journal's native protocol under systemd).
Must not: be imported by anything but the daemon; modules take ``structlog.get_logger()``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO, cast

import structlog

LEVELS = ("debug", "info", "warning", "error")
#: Priorities of the journal by level (syslog(3)).
_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}
_LONGEST_VALUE = 4096

EventDict = MutableMapping[str, Any]


def configure(level: str, *, send_to_journal: Callable[[dict[str, str]], object] | None = None) -> None:
    """Set logging up for this process.

    Args:
        level: one of `LEVELS`.
        send_to_journal: takes one record's fields by the journal's native protocol, in place of standard error.
    """
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        _drop_empty,
    ]
    if send_to_journal is not None:
        processors.append(_Journal(send_to_journal))
    elif sys.stderr.isatty():
        processors += [structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False), _render_line]
    else:
        processors += [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _StandardError())),
        cache_logger_on_first_use=True,
    )


class _StandardError:
    """Standard error, whose disk may be full or whose reader may be gone: then there is nobody left to tell."""

    def write(self, text: str) -> None:
        """Write it, all of it at once."""
        try:
            os.write(2, text.encode(errors="backslashreplace"))
        except OSError:
            pass  # the record is lost, and must not take anything with it

    def flush(self) -> None:
        """Nothing is held back."""


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

    def __init__(self, send: Callable[[dict[str, str]], object]) -> None:
        self._send = send

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> str:
        message = str(event.pop("event"))
        level = str(event.pop("level", "info"))
        exception = event.pop("exception", None)
        fields = {f"QSUP_{key.upper()}": str(value) for key, value in event.items()}
        words = " ".join(f"{key}={value}" for key, value in event.items())
        text = f"{message}  {words}".rstrip() + (f"\n{exception}" if exception else "")
        self._send({"MESSAGE": text, "PRIORITY": str(_PRIORITY.get(level, 6)), "SYSLOG_IDENTIFIER": "qsupd", **fields})
        raise structlog.DropEvent


def stderr_is_journal(env: MutableMapping[str, str]) -> bool:
    """Whether standard error leads to the journal (``JOURNAL_STREAM``, systemd.exec(5)); takes the variable away."""
    stream = env.pop("JOURNAL_STREAM", "")
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"
