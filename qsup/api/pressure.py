"""What the process around the server is short of, and which clients go for that.

Decides: the order in which connections are ended: idle ones, then endless answers, those with the most unread first.
Must not: end a request that is being served, or measure anything itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from attrs import frozen

from qsup.api.connection import Connection


def _never_short() -> bool:
    return False


def _always_left() -> bool:
    return True


def _tell_nobody(what: str, count: int) -> None:
    """Say nothing."""


@frozen(kw_only=True)
class Pressure:
    """How the server learns of shortages.

    Args:
        descriptors_left: whether one more client leaves the process as many descriptors as it needs itself.
        memory_short: whether the process has more memory than it should.
        on_shed: called with what was short and how many connections were ended for that.
    """

    descriptors_left: Callable[[], bool] = _always_left
    memory_short: Callable[[], bool] = _never_short
    on_shed: Callable[[str, int], None] = _tell_nobody


NO_PRESSURE = Pressure()


def idle(connections: Iterable[Connection]) -> list[tuple[float, Connection]]:
    """The idle ones, each after the time since when it is."""
    return [(connection.idle_since, connection) for connection in connections if connection.idle_since is not None]


def endless(connections: Iterable[Connection]) -> list[Connection]:
    """Those that send an answer without end, who costs the most first: by what its client has not read, then by age."""
    found = [connection for connection in connections if connection.endless_since is not None]
    return sorted(found, key=lambda each: (-each.backlog(), each.endless_since or math.inf))
