"""Telling others what happens to a VM: in events and in the log.

Decides: what an event carries, and how much of what a guest or a QEMU causes without end is told.
Must not: decide what follows from anything.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from attrs import frozen

from qsup.instance.cause import Cause
from qsup.instance.state import Event, State

#: Events of one VM that are kept with its last words.
_SAID_MAX = 8
#: Seconds between two events of one kind that the guest can cause without end.
_TELL_INTERVAL = 1.0


@frozen(kw_only=True)
class Change:
    """A change of a VM's state.

    Args:
        by: the event of the table.
        pid: QEMU's, ``None`` where there is none.
        operation: the one that holds the VM.
    """

    state: State
    before: State
    by: Event
    cause: Cause | None
    pid: int | None
    operation: str | None


class Teller:
    """Tells of one VM.

    Args:
        publish: takes an event's type, the VM's name, and the event's data.
    """

    def __init__(self, name: str, publish: Callable[[str, str | None, dict[str, Any]], None]) -> None:
        self._name = name
        self._publish = publish
        self._told_at: dict[str, float] = {}
        self._said: deque[dict[str, Any]] = deque(maxlen=_SAID_MAX)
        self._log = structlog.get_logger().bind(instance=name)

    def changed(self, change: Change) -> None:
        """Its state, or the cause of it, has changed."""
        state, cause = change.state, change.cause
        words = cause.values() if cause else None
        data = {
            "state": state.level.value,
            "substate": state.substate,
            "previous": change.before.substate,
            "cause": words,
            "pid": change.pid,
            "operation": change.operation,
        }
        self._publish("instance-state", self._name, data)
        if words is not None and (words["output"] or words["console"]):
            self._bound_words(words)
        self._log.info(
            "state changed",
            state=state.substate,
            before=change.before.substate,
            by=change.by.value,
            cause=cause.text if cause else None,
            detail=(cause.detail or None) if cause else None,
            output="\n".join(cause.output) or None if cause else None,
            console="\n".join(cause.console) or None if cause else None,
            operation=change.operation,
        )

    def _bound_words(self, words: dict[str, Any]) -> None:
        """Of this VM's events the newest alone keep what was last said: a hostile QEMU can panic without end."""
        if len(self._said) == self._said.maxlen:
            self._said[0].update(output=[], console=[])
        self._said.append(words)

    def noted(self, changes: Mapping[str, Any], warnings: set[str]) -> None:
        """Something else than its state has changed.

        Args:
            warnings: what is new of what is not as the VM was started.
        """
        for words in warnings:
            self._log.warning("not as it was started", what=words)
        self._publish("instance-changed", self._name, dict(changes))

    def happened(self, type: str, data: Mapping[str, Any], *, of_guest: bool = True) -> None:
        """Something that is no change of state.

        Args:
            of_guest: the guest did it, and may do so without end: it is told once a second at most, by kind.
        """
        now = time.monotonic()
        if not of_guest or now - self._told_at.get(type, -math.inf) >= _TELL_INTERVAL:
            self._told_at[type] = now
            self._publish(type, self._name, dict(data))
            self._log.info(type, **data)

    def removed(self, entry: str) -> None:
        """An entry of the unit, such as ``disk.data``, is no part of the VM any more."""
        self._publish("device-removed", self._name, {"entry": entry})
        self._log.info("device removed", entry=entry)

    def operation_ended(self, data: dict[str, Any]) -> None:
        """An operation that held it is over."""
        self._publish("operation", self._name, data)
