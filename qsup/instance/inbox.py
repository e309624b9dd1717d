"""The inbox of a VM's task: two queues, what the guest and the process did before what people ask for.

Decides: the order in which a driver sees its messages.
Must not: interpret them.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Inbox(Generic[T]):
    """An unbounded-looking queue whose producers are bounded themselves.

    Urgent messages come from the VM's own few tasks (QMP events are coalesced there), ordinary ones from requests, of
    which one VM holds one at a time: neither queue can grow without limit.
    """

    def __init__(self) -> None:
        self._urgent: deque[T] = deque()
        self._ordinary: deque[T] = deque()
        self._wakeup = trio.Event()

    def post(self, message: T, *, urgent: bool = False) -> None:
        """Add a message; never waits."""
        (self._urgent if urgent else self._ordinary).append(message)
        self._wakeup.set()

    async def receive(self) -> T:
        """The next message, urgent ones first, each kind in order."""
        while not self._urgent and not self._ordinary:
            self._wakeup = trio.Event()
            await self._wakeup.wait()
        await trio.lowlevel.checkpoint()
        return (self._urgent or self._ordinary).popleft()
