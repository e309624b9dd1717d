"""Amounts that may each lie on some nodes alone, laid so that as many as possible find room. Pure.

Decides: whether an amount has room beside those that are there, wherever these lie, and which nodes are too full
where it has none.
Must not: know what the amounts are of.

What is there moves for what comes, as far as it may: so nothing is refused that has room, and the order does not count.
These are the augmenting paths of Ford and Fulkerson, the shortest first.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from attrs import frozen


@frozen
class _Step:
    """One step of a path: what is put on ``node`` makes room by moving as much of what may lie ``on`` these."""

    node: int
    on: frozenset[int]


class Spread:
    """Amounts on nodes.

    Args:
        room: what each node holds.
    """

    def __init__(self, room: Mapping[int, int]) -> None:
        self._left = dict(room)
        self._laid: dict[frozenset[int], Counter[int]] = {}

    def lay(self, amount: int, on: frozenset[int]) -> frozenset[int]:
        """Lay an amount down, as much of it as has room.

        Args:
            on: the nodes that it may be on, all of them there.

        Returns:
            None where it has room. Else the nodes whose room all goes to what may be on these alone.
        """
        while amount > 0:
            end, steps = self._path(on)
            if end is None:
                return frozenset(steps)
            amount -= self._move(end, steps, amount, on)
        return frozenset()

    def laid(self, node: int) -> int:
        """How much is on a node."""
        return sum(each[node] for each in self._laid.values())

    def _path(self, on: frozenset[int]) -> tuple[int | None, dict[int, _Step | None]]:
        """The node that has room at the end of the shortest path, and how each node is reached."""
        steps: dict[int, _Step | None] = dict.fromkeys(sorted(on))
        queue = deque(steps)
        while queue:
            node = queue.popleft()
            if self._left[node] > 0:
                return node, steps
            for others, there in self._laid.items():
                for other in sorted(others) if there[node] else ():
                    if other not in steps:
                        steps[other] = _Step(node, others)
                        queue.append(other)
        return None, steps

    def _move(self, end: int, steps: Mapping[int, _Step | None], most: int, on: frozenset[int]) -> int:
        """Move along a path what can be; how much that was."""
        amount, node = min(most, self._left[end]), end
        while (step := steps[node]) is not None:
            amount, node = min(amount, self._laid[step.on][step.node]), step.node
        self._left[end] -= amount
        node = end
        while (step := steps[node]) is not None:
            self._laid[step.on][node] += amount
            self._laid[step.on][step.node] -= amount
            node = step.node
        self._laid.setdefault(on, Counter())[node] += amount
        return amount
