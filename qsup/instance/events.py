"""What happened, for everyone who listens: a bounded ring of events.

Decides: numbering, how many are kept, and what a listener gets that is too slow.
Must not: wait for a listener. Each listener is only a position in the ring, so a slow one costs nothing and loses its
place when the ring has moved past it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

import trio

from qsup.errors import GoneError
from qsup.instance.view import EventRecord

KEPT = 8192
#: The type of the last record that an overtaken listener gets.
OVERFLOW = "overflow"


class EventRing:
    """The newest `KEPT` events of this daemon's life.

    Args:
        life: names this life of the daemon; `EventRecord.boot_id` of every event, so that a client can tell that the
            numbering began anew.
        first: the number before the first event's.
    """

    def __init__(self, life: str, *, first: int = 0) -> None:
        self._life = life
        self._ring: deque[EventRecord] = deque(maxlen=KEPT)
        self._sequence = first
        self._wakeup = trio.Event()

    @property
    def sequence(self) -> int:
        """The newest event's number."""
        return self._sequence

    def publish(self, event_type: str, instance: str | None, data: Mapping[str, Any]) -> None:
        """Add an event; never waits.

        Args:
            event_type: such as ``instance-state``.
            data: JSON values.
        """
        self._sequence += 1
        record = EventRecord(
            seq=self._sequence, boot_id=self._life, time=time.time(), type=event_type, instance=instance, data=data
        )
        self._ring.append(record)
        self._wakeup.set()
        self._wakeup = trio.Event()

    async def wait_after(self, position: int) -> EventRecord:
        """The event right after number ``position``, once there is one; ``overflow`` when it is no longer kept."""
        while position >= self._sequence:
            await self._wakeup.wait()
        oldest = self._ring[0].seq
        if position + 1 >= oldest:
            return self._ring[position + 1 - oldest]
        return EventRecord(
            seq=self._sequence,
            boot_id=self._life,
            time=time.time(),
            type=OVERFLOW,
            instance=None,
            data={"lost": oldest - position - 1},
        )

    def subscribe(self, *, since: int | None) -> AsyncIterator[EventRecord]:
        """Events after number ``since`` (``None``: from now on), without end.

        A listener that the ring has overtaken gets one record of type ``overflow``, then the end.

        Raises:
            GoneError: ``since`` is older than what is kept, or from another life of the daemon.
        """
        position = self._sequence if since is None else since
        if position > self._sequence or (self._ring and position < self._ring[0].seq - 1):
            oldest = self._ring[0].seq if self._ring else self._sequence
            raise GoneError(
                f"events after {position} are not kept; the oldest is {oldest}",
                hint="read the instances anew and follow the events from now on",
                oldest=oldest,
            )
        return _Listener(self, position)


class _Listener:
    # a class and not a generator: a wait that is cancelled, for a sign of life in between, must not be the end of it
    def __init__(self, ring: EventRing, position: int) -> None:
        self._ring = ring
        self._position = position
        self._overtaken = False

    def __aiter__(self) -> _Listener:
        return self

    async def __anext__(self) -> EventRecord:
        if self._overtaken:
            raise StopAsyncIteration
        record = await self._ring.wait_after(self._position)
        self._position += 1
        self._overtaken = record.type == OVERFLOW
        return record
