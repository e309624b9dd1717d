"""The best of all choices of whole cores for a VM that wants CPUs of its own.

Decides: which free cores of which nodes it gets, by the cost of `COST`, and in which order its vCPUs have them.
Must not: decide which cores are free (`qsup.plan.ledger`), or which nodes come into question (`qsup.plan.nodesets`).

The choice is exact. What a choice costs is a sum over the blocks (nodes, packages, dies, caches) it touches and the
cores it takes, so the cheapest way to take a number of CPUs from a block is made of the cheapest ways for its parts: a
knapsack from the caches up. Kinds of cores do not sum up; all of one are tried before both together. A cost is packed
into one integer, earlier fields in higher bits, because comparing and adding these is most of the work. Its lowest bits
are the CPUs that are taken, so the cheapest cost also tells what it is the cost of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import nsmallest
from itertools import accumulate, combinations, groupby

from attrs import frozen

from qsup.plan.topology import Core, Topology

#: What is least first: each counts only among choices that are equal in those before it. A block is touched where a CPU
#: of it is taken, and what is left in it are free CPUs of whole cores; a package with two nodes is a block of each.
#: After these, lower CPU numbers are better.
COST = (
    "kinds of cores",
    "efficiency CPUs",
    "packages",
    "dies",
    "last-level caches",
    "idle CPUs",
    "CPUs left in its nodes",
    "CPUs left in its packages",
    "CPUs left in its dies",
    "CPUs left behind its caches",
)
# a field holds any number of CPUs that Linux can have (NR_CPUS is 8192 at most) and never runs over into the next
_BITS = 20
#: By number of CPUs taken, the least cost of taking as many.
_Table = dict[int, int]
#: Package, die and last-level cache.
_Path = tuple[int, int, int]
#: A core that is free, where it is, and its CPUs, which no two cores share: so these sort.
_Found = tuple[_Path, tuple[int, ...], Core]


def _field(name: str) -> int:
    return 1 << _BITS * (len(COST) - 1 - COST.index(name))


#: What touching a block costs, from nodes inwards: once, and for each CPU that is free in it.
_ONCE = (0, _field("packages"), _field("dies"), _field("last-level caches"))
_LEFT = (
    _field("CPUs left in its nodes"),
    _field("CPUs left in its packages"),
    _field("CPUs left in its dies"),
    _field("CPUs left behind its caches"),
)
_KINDS = _field("kinds of cores")
_EFFICIENCY = _field("efficiency CPUs")
_IDLE = _field("idle CPUs")


@frozen(kw_only=True)
class Choice:
    """Cores for a VM.

    Args:
        cores: in the order of its vCPUs.
        nodes: those it was chosen from, ascending.
        cost: as `COST` names the numbers.
    """

    cores: tuple[Core, ...]
    nodes: tuple[int, ...]
    cost: tuple[int, ...]

    @property
    def cpus(self) -> tuple[int, ...]:
        """The CPUs in the order of vCPUs: those of one core are neighbours."""
        return tuple(number for core in self.cores for number in core.cpus)


class FreeCores:
    """The free cores of a host, and the best choices of so many CPUs from them.

    Args:
        cores: the free ones.
        most: how many CPUs a choice may be asked for.
    """

    def __init__(self, topology: Topology, cores: Iterable[Core], most: int) -> None:
        last_level = topology.last_level
        self._cores: dict[int, list[_Found]] = {}
        for core in cores:
            # cores of which no cache is known are behind one together
            path = (core.package, core.die, last_level.get(core.cpus[0], -1))
            self._cores.setdefault(core.node, []).append((path, core.cpus, core))
        for found in self._cores.values():
            found.sort()
        free = [core for found in self._cores.values() for *_, core in found]
        self._kinds = {core.kind for core in free}
        self._widest = max((len(core.cpus) for core in free), default=1)
        self._most = most + self._widest - 1
        self._highest = max((core.cpus[-1] for core in free), default=0)
        self._tables: dict[tuple[int, frozenset[str]], _Table] = {}

    def count(self, node: int) -> tuple[int, int]:
        """How many cores of a node are free, and how many CPUs these have."""
        found = self._cores.get(node, ())
        return len(found), sum(len(core.cpus) for *_, core in found)

    def choices(self, sets: Iterable[tuple[int, ...]], wanted: int) -> list[Choice]:
        """The best choice from each of some sets of nodes that has enough CPUs: the two best of these, best first.

        Args:
            sets: each ascending.
            wanted: how many CPUs a choice has at least.
        """
        costs = [(cost, nodes) for nodes in sets if (cost := self._cheapest(nodes, wanted)) is not None]
        return [self._unpacked(cost, nodes) for cost, nodes in nsmallest(2, costs)]

    def _cheapest(self, nodes: tuple[int, ...], wanted: int) -> int | None:
        """The least cost of enough CPUs from some nodes together; ``None`` if they have too few."""
        there = [node for node in nodes if node in self._cores]
        if not there:
            return None
        for number in range(1, len(self._kinds) + 1):
            costs = []
            for kinds in map(frozenset, combinations(sorted(self._kinds), number)):
                table = {0: 0}
                for node in there[:-1]:
                    table = self._joined(table, self._table_of_node(node, kinds))
                last = self._table_of_node(there[-1], kinds)
                costs += [
                    cost + last[more] + self._packed(_IDLE * (total - wanted))
                    for taken, cost in table.items()
                    for total in range(wanted, wanted + self._widest)
                    if (more := total - taken) in last
                ]
            if costs:
                return min(costs) + self._packed(_KINDS * number)
        return None

    def _table_of_node(self, node: int, kinds: frozenset[str]) -> _Table:
        if (node, kinds) not in self._tables:
            self._tables[node, kinds] = self._table(self._cores[node], kinds, 0)
        return self._tables[node, kinds]

    def _table(self, cores: Sequence[_Found], kinds: frozenset[str], level: int) -> _Table:
        """What a block costs: `cores` are all that are free in it, level 0 is a node, 3 a last-level cache."""
        if level == len(_ONCE) - 1:
            table = self._table_of_cores([core for *_, core in cores if core.kind in kinds])
        else:
            table = {0: 0}
            for _, inner in groupby(cores, key=lambda each: each[0][level]):
                table = self._joined(table, self._table(list(inner), kinds, level + 1))
        touched = self._packed(_ONCE[level] + _LEFT[level] * sum([len(cpus) for _, cpus, _ in cores]))
        return {taken: cost + touched if taken else cost for taken, cost in table.items()}

    def _table_of_cores(self, cores: Sequence[Core]) -> _Table:
        """What cores behind one cache cost: of those that differ in their numbers alone, the lowest are taken first."""
        alike: dict[tuple[str, int], list[Core]] = {}
        for core in cores:
            alike.setdefault((core.kind, len(core.cpus)), []).append(core)
        table = {0: 0}
        for (kind, width), found in alike.items():
            each = self._packed(width * ((_EFFICIENCY if kind == "efficiency" else 0) - sum(_LEFT)))
            costs = accumulate((each - self._mask(core) for core in found), initial=0)
            table = self._joined(table, {number * width: cost for number, cost in enumerate(costs)})
        return table

    def _joined(self, one: _Table, other: _Table) -> _Table:
        """What two blocks cost together."""
        joined: _Table = {}
        for taken, cost in one.items():
            for more, extra in other.items():
                both = taken + more
                if both <= self._most and (both not in joined or cost + extra < joined[both]):
                    joined[both] = cost + extra
        return joined

    def _packed(self, fields: int) -> int:
        return fields << self._highest + 1

    def _mask(self, core: Core) -> int:
        # of two sets of one size the greater mask has the lowest number that is not in both
        return sum(1 << self._highest - number for number in core.cpus)

    def _unpacked(self, cost: int, nodes: tuple[int, ...]) -> Choice:
        mask = -cost & (1 << self._highest + 1) - 1
        fields = -(-cost >> self._highest + 1)
        taken = [
            (core.node, -len(cpus), path, cpus, core)
            for node in nodes
            for path, cpus, core in self._cores.get(node, ())
            if mask >> self._highest - cpus[0] & 1
        ]
        # the widest first: what the guest takes for one core of two threads is one, too, where the host has single ones
        taken.sort()
        cores = tuple(core for *_, core in taken)
        numbers = [fields >> _BITS * place & (1 << _BITS) - 1 for place in reversed(range(len(COST)))]
        return Choice(cores=cores, nodes=nodes, cost=tuple(numbers))
