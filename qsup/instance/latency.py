"""How long things took, counted in buckets.

Decides: the buckets.
Must not: keep single values; memory stays the same however long the daemon runs.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

#: Upper bounds of the latency buckets, in seconds; one more bucket without a bound follows.
LATENCY_BUCKETS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
#: Names that one table keeps; commands of clients beyond that are counted together.
_NAMES_MAX = 256
_OTHERS = "other"

#: Counts by bucket (not cumulative; the last is what is beyond all bounds), and the sum in seconds.
Latencies = tuple[Sequence[int], float]


class Histogram:
    """How long something took, counted in `LATENCY_BUCKETS`."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self.total += seconds


class LatencyTable:
    """A histogram for each name, such as each QMP command."""

    def __init__(self) -> None:
        self._histograms: dict[str, Histogram] = {}

    def observe(self, name: str, seconds: float) -> None:
        """Count one of ``name``."""
        histogram = self._histograms.get(name)
        if histogram is None:
            if len(self._histograms) >= _NAMES_MAX:
                name = _OTHERS
            histogram = self._histograms.setdefault(name, Histogram())
        histogram.observe(seconds)

    def snapshot(self) -> Mapping[str, Latencies]:
        """All histograms as they are now."""
        return {name: (tuple(h.counts), h.total) for name, h in self._histograms.items()}
