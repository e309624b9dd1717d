"""Pace: how much of what a guest or a QEMU causes without end is taken in per second.

Decides: how long a task waits that has done more than its allowance.
Must not: know what is counted, or delay what keeps to the allowance.

Whoever is not trusted and may go on for ever is read at a pace: what it sends then waits in its own pipe or socket, so
a flood slows the flooder and costs the daemon a few percent of a core.
"""

from __future__ import annotations

import math

import trio


class Pace:
    """A token bucket (ITU-T I.371's virtual scheduling).

    Args:
        rate: units a second in the long run.
        burst: units that are free after a rest.
    """

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst / rate
        self._full_at = -math.inf

    async def spend(self, units: float) -> None:
        """Count work that was done, and wait where it exceeds the allowance; without a checkpoint where it does not."""
        now = trio.current_time()
        self._full_at = max(self._full_at, now) + units / self._rate
        debt = self._full_at - now - self._burst
        if debt > 0:
            await trio.sleep(debt)
