"""How VMs relate: what a start pulls in, who waits for whom, who excludes whom. Pure.

Decides: the meaning of `after before requires wants conflicts`, which is systemd.unit(5)'s.
Must not: know which VMs run, or read files; who asks gives the units, or a way to find them.

`requires` and `wants` say what is started along, and order nothing; `after` and `before` order what is started or
stopped anyway, and start nothing. A stop goes the other way round: a VM stops before what it is `after`. A name that
no unit has is no error where it only orders, is left out where it is wanted, and fails a start where it is required.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set

from attrs import field, frozen

from qsup.errors import DependencyError, QsupError
from qsup.unit.sections.service import UnitSection

#: VMs that one start comes to at most, for each further one that is named one more: a template can name ever further
#: instances of itself.
MAX_PULLED = 1000


class Graph:
    """The relations among some units; names of others are ignored.

    Args:
        units: the ``[unit]`` section of each, by name.
    """

    def __init__(self, units: Mapping[str, UnitSection]) -> None:
        self._units = units
        self._earlier: dict[str, set[str]] = {name: set() for name in units}
        self._conflicts: dict[str, set[str]] = defaultdict(set)
        self._requirers: dict[str, set[str]] = defaultdict(set)
        for name, unit in units.items():
            self._earlier[name].update(other for other in unit.after if other in units)
            for other in unit.before:
                if other in units:
                    self._earlier[other].add(name)
            for other in unit.conflicts:
                self._conflicts[name].add(other)
                self._conflicts[other].add(name)
            for other in unit.requires:
                self._requirers[other].add(name)
        # a unit's own name, which no file may hold there, would wait for itself
        for name in units:
            self._earlier[name].discard(name)
            self._conflicts[name].discard(name)
        self._tangles = _tangles(self._earlier)
        # an edge within a cycle orders nothing: whoever obeyed it would wait for ever
        for tangle in self._tangles:
            for name in tangle:
                self._earlier[name] -= tangle
        self._later: dict[str, set[str]] = {name: set() for name in units}
        for name, others in self._earlier.items():
            for other in others:
                self._later[other].add(name)

    def earlier(self, name: str) -> Set[str]:
        """Those it starts after, and stops before."""
        return self._earlier.get(name, set())

    def later(self, name: str) -> Set[str]:
        """Those that start after it, and stop before it."""
        return self._later.get(name, set())

    def conflicts(self, name: str) -> Set[str]:
        """Those that are not to be active together with it, whichever of the two says so."""
        return self._conflicts.get(name, set())

    def requires(self, name: str) -> Collection[str]:
        """Those it requires."""
        unit = self._units.get(name)
        return unit.requires if unit else ()

    def requirers(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those that require one of ``names``, or one that does, and so on; sorted, ``names`` left out."""
        given = tuple(names)
        return tuple(sorted(_reach(given, lambda name: self._requirers.get(name, set())) - set(given)))

    def order(self, names: Iterable[str]) -> tuple[str, ...]:
        """``names`` as they start: each behind those it is after, else by name. Reversed, as they stop."""
        wanted = set(names)
        left = {name: len(self.earlier(name) & wanted) for name in wanted}
        ready = [name for name, count in left.items() if not count]
        heapq.heapify(ready)
        ordered = []
        while ready:
            ordered.append(name := heapq.heappop(ready))
            for other in self.later(name) & wanted:
                left[other] -= 1
                if not left[other]:
                    heapq.heappush(ready, other)
        return tuple(ordered)

    def cycles(self) -> tuple[tuple[str, ...], ...]:
        """One cycle of each knot of the order, each VM waiting for the next one and the last for the first."""
        return tuple(sorted(_shortest_cycle(tangle, self._written) for tangle in self._tangles))

    def _written(self, name: str) -> set[str]:
        """Those it starts after as the units say it, cycles and all."""
        others = set(self._units[name].after)
        return (others | {other for other, unit in self._units.items() if name in unit.before}) - {name}


def shown_cycle(cycle: Collection[str]) -> str:
    """A cycle for people: ``a -> b -> a``; each waits for the next."""
    return " -> ".join((*cycle, *tuple(cycle)[:1]))


def _reach(names: Iterable[str], step: Callable[[str], Iterable[str]]) -> set[str]:
    """``names`` and all that steps lead to."""
    seen: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue.extend(step(name))
    return seen


def _tangles(edges: Mapping[str, set[str]]) -> list[set[str]]:
    """The strongly connected components of more than one node; mostly there is none."""
    back: dict[str, set[str]] = defaultdict(set)
    for name, others in edges.items():
        for other in others:
            back[other].add(name)
    left = _peel(_peel(set(edges), edges, back), back, edges)
    found = []
    while left:
        tangle = _around(min(left), edges, left) & _around(min(left), back, left)
        left -= tangle
        if len(tangle) > 1:
            found.append(tangle)
    return found


def _around(name: str, edges: Mapping[str, set[str]], among: set[str]) -> set[str]:
    """Those of ``among`` that edges lead to from one of them, itself included."""
    return _reach([name], lambda each: edges[each] & among)


def _peel(names: set[str], edges: Mapping[str, set[str]], back: Mapping[str, set[str]]) -> set[str]:
    """What is left of ``names`` when those without an edge to another are taken away, again and again."""
    left = set(names)
    count = {name: len(edges.get(name, set()) & left) for name in left}
    ends = [name for name in left if not count[name]]
    while ends:
        name = ends.pop()
        left.discard(name)
        for other in back.get(name, ()):
            if other in left:
                count[other] -= 1
                if not count[other]:
                    ends.append(other)
    return left


def _shortest_cycle(tangle: set[str], edges: Callable[[str], set[str]]) -> tuple[str, ...]:
    """A shortest cycle through the first name of a tangle, beginning with it."""
    first = min(tangle)
    before = {name: first for name in sorted(edges(first) & tangle)}
    queue = deque(before)
    while first not in before:
        name = queue.popleft()
        for other in sorted(edges(name) & tangle):
            if other not in before:
                before[other] = name
                queue.append(other)
    path = [before[first]]
    while path[-1] != first:
        path.append(before[path[-1]])
    return tuple(reversed(path))


@frozen(kw_only=True)
class Pulled:
    """What a start of some VMs comes to.

    Args:
        units: the ``[unit]`` section of each VM to be started, by name.
        left_out: wanted VMs that cannot be started along -> why.
    """

    units: Mapping[str, UnitSection]
    left_out: Mapping[str, str] = field(factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The VMs in the order in which they start."""
        return Graph(self.units).order(self.units)


def pull(roots: Iterable[str], find: Callable[[str], UnitSection]) -> Pulled:
    """What a start of ``roots`` pulls in.

    Args:
        find: the section of a unit by its name; `QsupError` where there is none to be had.

    Raises:
        DependencyError: something required is missing or excluded, or there is a cycle in the order.
        QsupError: what ``find`` says of a root.
    """
    return _Pull(tuple(dict.fromkeys(roots)), find).result()


class _Pull:
    """One start, worked out."""

    def __init__(self, roots: tuple[str, ...], find: Callable[[str], UnitSection]) -> None:
        self._roots = roots
        self._units: dict[str, UnitSection] = {}
        #: What cannot be started, and why.
        self._bad: dict[str, str] = {}
        queue = deque(roots)
        while queue:
            name = queue.popleft()
            if name in self._units or name in self._bad:
                continue
            if len(self._units) == MAX_PULLED + len(roots) - 1:
                raise DependencyError(f"this start would pull in more than {MAX_PULLED} VMs")
            try:
                unit = self._units[name] = find(name)
            except QsupError as error:
                if name in roots:
                    raise
                self._bad[name] = error.message
            else:
                queue.extend((*unit.requires, *unit.wants))

    def result(self) -> Pulled:
        while True:
            self._spread()
            mandatory = self._walk(lambda unit: unit.requires)
            names = self._walk(lambda unit: (*unit.requires, *unit.wants))
            conflict = next(self._conflicts(names, mandatory), None)
            if conflict is None:
                break
            one, other = conflict
            if one in mandatory:
                raise DependencyError(
                    f"{one} conflicts with {other}, and this start needs both",
                    hint="`qsupctl list-dependencies` shows who requires them",
                    drop=[max(one, other)],
                )
            self._bad[one] = f"it conflicts with {other}"
        units = {name: unit for name, unit in self._units.items() if name in names}
        for cycle in Graph(units).cycles():
            raise DependencyError(
                f"there is a cycle in the order of what is to be started: {shown_cycle(cycle)}",
                hint="each waits for the next: take one `after` or `before` away",
                cycle=list(cycle),
                drop=list(cycle),
            )
        wanted = {other for unit in units.values() for other in unit.wants}
        return Pulled(units=units, left_out={name: why for name, why in self._bad.items() if name in wanted})

    def _spread(self) -> None:
        """Whatever requires what cannot be started cannot be started; a root is refused for it."""
        found = True
        while found:
            found = False
            for name, unit in self._units.items():
                lacking = next((other for other in unit.requires if other in self._bad), None)
                if lacking is None or name in self._bad:
                    continue
                why = f"it requires {lacking}: {self._bad[lacking]}"
                if name in self._roots:
                    raise DependencyError(why, instance=name, hint="`qsupctl list-dependencies` shows the whole tree")
                self._bad[name] = why
                found = True

    def _walk(self, step: Callable[[UnitSection], Iterable[str]]) -> set[str]:
        return _reach(self._roots, lambda name: (other for other in step(self._units[name]) if other not in self._bad))

    def _conflicts(self, names: set[str], mandatory: set[str]) -> Iterator[tuple[str, str]]:
        """Pairs that exclude each other, the one that can be done without first."""
        for name in sorted(names):
            for other in sorted((set(self._units[name].conflicts) & names) - {name}):
                yield (name, other) if name not in mandatory else (other, name)
