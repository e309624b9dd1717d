"""The inbox of a VM's task: two queues, what the guest and the process did before what people ask for.

Decides: the order in which a driver sees its messages.
Must not: interpret them.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

#: Urgent messages that overtake an ordinary one at most: a VM that never stops talking can be killed all the same.
OVERTAKING = 64


class Inbox(Generic[T]):
    """A queue whose producers bound themselves.

    Urgent messages come from the VM's own few tasks. The one that hands on QMP's events, which a guest can cause
    without end, waits for each batch to be taken (`wait_taken`). Ordinary ones are requests, one for a VM at a time.
    """

    def __init__(self) -> None:
        self._urgent: deque[T] = deque()
        self._ordinary: deque[T] = deque()
        self._overtaken = 0
        self._wakeup = trio.Event()
        self._taken = trio.Event()

    def __len__(self) -> int:
        """How many messages wait."""
        return len(self._urgent) + len(self._ordinary)

    def post(self, message: T, *, urgent: bool = False) -> None:
        """Add a message; never waits."""
        (self._urgent if urgent else self._ordinary).append(message)
        self._wakeup.set()

    async def receive(self) -> T:
        """The next message, urgent ones first (but no more than `OVERTAKING` in a row), each kind in order."""
        while not self._urgent and not self._ordinary:
            self._wakeup = trio.Event()
            await self._wakeup.wait()
        await trio.lowlevel.checkpoint()
        message = self._next_queue().popleft()
        if not self._urgent:
            self._taken.set()
        return message

    def _next_queue(self) -> deque[T]:
        if self._urgent and not (self._ordinary and self._overtaken >= OVERTAKING):
            self._overtaken += bool(self._ordinary)
            return self._urgent
        self._overtaken = 0
        return self._ordinary

    async def wait_taken(self) -> None:
        """Wait until every urgent message posted so far has been taken."""
        while self._urgent:
            self._taken = trio.Event()
            await self._taken.wait()
