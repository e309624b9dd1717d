"""What the daemon itself has of descriptors and memory, and the clients who had to go for their lack.

Decides: when the daemon counts as short of either, and in which words that is told.
Must not: turn anybody out; the API's server does, and says so here.
"""

from __future__ import annotations

import math
import time

import structlog

from qsup.host import descriptors
from qsup.host.memory import OwnMemory

_log = structlog.get_logger()

DESCRIPTORS, MEMORY = "file descriptors", "memory"
#: Seconds for which a shortage counts after the last client that had to go for it.
_RECENT = 60.0
#: Seconds between two lines of the log about one shortage: clients can come without end.
_TELL_INTERVAL = 1.0
_MEBIBYTE = 1 << 20


class _Shortage:
    """Who had to go for one thing."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = self._untold = 0
        self._last = self._told = -math.inf

    def note(self, count: int, now: float) -> None:
        """As many clients have just been turned out."""
        self._count = self.recent(now) + count
        self._untold += count
        self._last = now
        if now - self._told >= _TELL_INTERVAL:
            _log.warning("API clients were turned out", short_of=self._what, clients=self._untold)
            self._told, self._untold = now, 0

    def recent(self, now: float) -> int:
        """How many clients have been turned out since the shortage began, 0 once it is over."""
        return self._count if now - self._last < _RECENT else 0


class OwnResources:
    """The daemon's own descriptors and memory.

    Args:
        memory: this process's, against its ceiling.
    """

    def __init__(self, memory: OwnMemory) -> None:
        self._memory = memory
        self._memory_short = False
        self._shortages = {what: _Shortage(what) for what in (DESCRIPTORS, MEMORY)}

    def descriptors(self) -> tuple[int, int]:
        """How many are open, and how many may be."""
        return descriptors.used(), descriptors.limit()

    def memory(self) -> tuple[int, int | None]:
        """Bytes that are resident, and those that may be; ``None``: as many as there are."""
        return self._memory.resident(), self._memory.ceiling or None

    def descriptors_left(self) -> bool:
        """Whether one more client leaves the daemon what it must always have."""
        return descriptors.are_left(descriptors.KEPT)

    def memory_short(self) -> bool:
        """Whether there is more memory than there should be; to be asked every second."""
        self._memory_short = self._memory.is_short()
        return self._memory_short

    def on_shed(self, what: str, count: int) -> None:
        """Clients were turned out for want of this."""
        self._shortages[what].note(count, time.monotonic())

    def problems(self) -> list[str]:
        """What the daemon is short of, one sentence each, with what a person can do."""
        found = []
        used, limit = self.descriptors()
        if (gone := self._gone(DESCRIPTORS)) or not self.descriptors_left():
            words = f"short of file descriptors: {used} of {limit} are in use (RLIMIT_NOFILE){gone}"
            hint = "stop VMs or end API clients, or raise LimitNOFILE= in its service, or `ulimit -n`"
            found.append(f"{words}; {hint}")
        resident, ceiling = self.memory()
        if ceiling is not None and ((gone := self._gone(MEMORY)) or self._memory_short):
            words = f"short of memory: {resident / _MEBIBYTE:.0f} of {ceiling / _MEBIBYTE:.0f} MiB are in use{gone}"
            found.append(f"{words}; end API clients that follow events or consoles, or raise memory-ceiling")
        return found

    def _gone(self, what: str) -> str:
        count = self._shortages[what].recent(time.monotonic())
        return f", {count} API client{'s' if count > 1 else ''} turned out for that" if count else ""
