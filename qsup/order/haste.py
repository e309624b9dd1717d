"""When VMs that are all being stopped are cut short, so that each is asked before the time is over. Pure.

Decides: by when each is told to quit, and by when it is killed.
Must not: do either, or look at a clock.

A guest that does not shut down keeps those that stop after it waiting, and at the end of the time they would be killed
without ever having been asked. So each link of a chain of VMs that wait for each other has a slot at the end of the
time, and whoever holds others up is cut short before the first of theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from attrs import frozen

from qsup.unit.graph import Graph

#: Seconds of a slot at most, and what part of all the time all slots together may take.
_SLOT, _SLOTS = 30.0, 0.5
#: Seconds that QEMU has to quit at the end of the time at most, and what part of it.
_QUIT, _QUITS = 2.0, 0.1


@frozen(kw_only=True)
class Moments:
    """By when a VM is told to quit and, if it is there still, killed."""

    quit: float
    kill: float


def last_moments(
    names: Collection[str], graph: Graph, *, links: int, began: float, until: float
) -> Mapping[str, Moments]:
    """The moments of each of these, which are not down yet.

    Args:
        links: `chain` of all that were to be stopped.
        began, until: seconds of any clock, the result's too.
    """
    whole = max(0.0, until - began)
    quits = min(_QUIT, whole * _QUITS)
    slot = min(_SLOT, whole * _SLOTS / max(1, links))
    found = {}
    for name, held_up in _held_up(names, graph).items():
        at = until - quits - slot * held_up
        found[name] = Moments(quit=at, kill=at + (slot / 2 if held_up else quits))
    return found


def chain(names: Collection[str], graph: Graph) -> int:
    """How many VMs wait for each other, one behind the other, at most, the first not counted."""
    return max(_held_up(names, graph).values(), default=0)


def _held_up(names: Collection[str], graph: Graph) -> dict[str, int]:
    """The longest chain of those that stop after each, one behind the other."""
    wanted, found = set(names), dict[str, int]()
    for name in graph.order(wanted):
        found[name] = max((found[other] + 1 for other in graph.earlier(name) & wanted), default=0)
    return found
