"""What this host is made of, read from sysfs: CPUs, caches, NUMA nodes, pools of huge pages.

Decides: which files say what, what stands for what they do not say, and how long a look at them may take.
Must not: fail for what a file says: what cannot be read is not there, and said in the log.

What changes only when CPUs or nodes go on- or offline is read again when they do; memory and pools are read each time.
For 512 CPUs on 16 nodes, in plain files, that is 35 ms once and then 0.5 ms; sysfs takes two to three times as long.

Sources: Documentation/ABI/stable/sysfs-devices-system-cpu, sysfs-devices-node and testing/sysfs-kernel-mm-hugepages in
Linux's source; proc_meminfo(5).
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import structlog
import trio
from attrs import evolve, frozen

from qsup.errors import HostError
from qsup.host.attributes import NUMBER, Attributes
from qsup.plan.topology import LOCAL, Cache, Cpu, HostPool, HugePages, Node, Topology

_log = structlog.get_logger(__name__)

#: Seconds for a look, which takes a hundredth of one: only a kernel that hangs needs more.
DEADLINE = 5.0
_CPU, _NODE, _POOLS = "devices/system/cpu", "devices/system/node", "kernel/mm/hugepages"
_CACHE_SIZE = re.compile(r"([0-9]{1,12})K")
_CACHE_TYPES = ("Data", "Instruction", "Unified")
_POOL = re.compile(r"hugepages-([0-9]{1,12})kB")
#: Of the largest cpu_capacity, below which a core is one for efficiency: such have a quarter to a half of it, while
#: cores of one kind differ by their clocks.
_LITTLE = 0.75
#: How often it is begun anew when a CPU goes on- or offline meanwhile.
_TRIES = 3
_SAID = 5  # problems in a line of the log


def _own_affinity() -> Iterable[int]:
    return os.sched_getaffinity(os.getpid())  # a thread may have another one


def _reachable(cpus: frozenset[int]) -> frozenset[int]:
    """Those of some CPUs that the kernel lets one of our threads be put on.

    It says so when one is: CPUs that our cpuset lacks it passes over (sched_setaffinity(2)). That thread ends with the
    question, so nobody else ever works in such a place.
    """
    found: set[int] = set()

    def ask() -> None:
        with suppress(OSError):  # none of them
            os.sched_setaffinity(0, cpus)
            found.update(os.sched_getaffinity(0))

    if cpus:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    return frozenset(found)


@frozen(kw_only=True)
class _NodeFiles:
    """Where one node's figures are, and what of it does not change.

    Args:
        meminfo: a path.
        pools: a directory for each size of pages, by that size in bytes.
    """

    number: int
    distances: Mapping[int, int]
    meminfo: str
    pools: tuple[tuple[int, str], ...]


@frozen
class _Key:
    """What tells that a CPU or node went on- or offline, or that the daemon may use others."""

    texts: tuple[str, ...]
    allowed: frozenset[int]


@frozen(kw_only=True)
class _Lasting:
    """What stays as it is while the key does.

    Args:
        problems: met on the way.
    """

    key: _Key
    cpus: tuple[Cpu, ...]
    caches: tuple[Cache, ...]
    nodes: tuple[_NodeFiles, ...]
    problems: tuple[str, ...]


class TopologyReader:
    """Reads a host's topology again and again.

    Args:
        root: where sysfs is mounted.
        proc: where procfs is.
        affinity: the CPUs that this daemon may use.
    """

    def __init__(
        self,
        root: Path = Path("/sys"),
        *,
        proc: Path = Path("/proc"),
        affinity: Callable[[], Iterable[int]] = _own_affinity,
    ) -> None:
        self._root = str(root)
        self._meminfo = f"{proc}/meminfo"
        self._affinity = affinity
        self._lasting: _Lasting | None = None
        self._told: tuple[str, ...] = ()
        # a kernel that hangs costs one thread, however many ask
        self._limiter = trio.CapacityLimiter(1)

    async def look(self) -> Topology:
        """The host as it is now, read in a thread.

        Raises:
            HostError: it was not read within `DEADLINE`, or others who ask are still waiting for the kernel.
        """
        try:
            with trio.fail_after(DEADLINE):
                return await trio.to_thread.run_sync(self.read, abandon_on_cancel=True, limiter=self._limiter)
        except trio.TooSlowError as error:
            words = f"the kernel did not say within {DEADLINE:g} s what the host is made of"
            raise HostError(words, hint=f"does `cat {self._root}/{_NODE}/node*/meminfo` answer?") from error

    def is_still(self, topology: Topology) -> bool:
        """Whether no CPU, node or pool of huge pages changed since a look, and this daemon may use the same CPUs.

        That is some short files which the kernel writes from bit masks and counters, without waiting for anybody.
        """
        lasting, files = self._lasting, Attributes(self._root)
        if lasting is None or lasting.cpus is not topology.cpus or lasting.key != self._key(files):
            return False
        totals = Counter({pool.size: 0 for pool in topology.pools})
        for pool in (pool for node in topology.nodes for pool in node.hugepages):
            totals[pool.size] += pool.total
        return all(
            files.number(f"{_POOLS}/hugepages-{size >> 10}kB/nr_hugepages", optional=True) in (total, None)
            for size, total in totals.items()
        )

    def read(self) -> Topology:
        """The host as it is now. Blocks for as long as the kernel takes to answer; one thread at a time may call it."""
        files = Attributes(self._root)
        for _ in range(_TRIES):
            key = self._key(files)
            if self._lasting is None or self._lasting.key != key:
                self._lasting = _read_lasting(self._root, self._meminfo, key)
            if self._key(files) == key:
                break
        assert self._lasting is not None  # read above
        nodes = _read_nodes(files, self._lasting.nodes, self._meminfo)
        pools = tuple(_host_pools(files, nodes))
        self._tell((*self._lasting.problems, *files.problems))
        return Topology(cpus=self._lasting.cpus, nodes=nodes, caches=self._lasting.caches, pools=pools)

    def _key(self, files: Attributes) -> _Key:
        allowed = frozenset(self._affinity())
        names = (f"{_CPU}/present", f"{_CPU}/online", f"{_CPU}/isolated", f"{_NODE}/online")
        return _Key(tuple(files.text(name, optional=True) for name in names), allowed)

    def _tell(self, problems: tuple[str, ...]) -> None:
        """Say what could not be read, once for as long as it is the same."""
        if problems and problems != self._told:
            _log.warning("topology not read whole", count=len(problems), first=problems[:_SAID])
        self._told = problems


def _read_lasting(root: str, meminfo: str, key: _Key) -> _Lasting:
    files = Attributes(root)
    online = set(files.numbers(f"{_CPU}/online") or key.allowed)
    present = set(files.numbers(f"{_CPU}/present")) | online
    isolated = set(files.numbers(f"{_CPU}/isolated", optional=True))
    # who did not ask for isolated CPUs has none of them, and may be put there all the same (isolcpus=)
    allowed = key.allowed | _reachable(frozenset(isolated & online - key.allowed))
    nodes, node_of = _find_nodes(files, meminfo)
    kinds = _kinds(files, sorted(online))
    cpus = []
    for number in sorted(present):
        node = node_of.get(number)
        if node is None and len(nodes) > 1:
            node = _node_beside(files, number, {each.number for each in nodes})
        place = _place(files, number) if number in online else {}
        cpus.append(
            Cpu(
                number=number,
                node=nodes[0].number if node is None else node,
                kind=kinds.get(number, ""),
                online=number in online,
                isolated=number in isolated,
                allowed=number in allowed,
                **place,
            )
        )
    caches = tuple(sorted(_caches(files, online), key=lambda cache: (cache.level, cache.type, min(cache.cpus))))
    return _Lasting(
        key=key, cpus=tuple(_told_apart(files, cpus)), caches=caches, nodes=nodes, problems=tuple(files.problems)
    )


def _place(files: Attributes, cpu: int) -> dict[str, int]:
    """Where a CPU that is online is. What has no packages or dies is in the first."""
    directory = f"{_CPU}/cpu{cpu}/topology"
    core = files.number(f"{directory}/core_id")
    return {
        "package": max(0, files.number(f"{directory}/physical_package_id") or 0),
        "die": max(0, files.number(f"{directory}/die_id", optional=True) or 0),  # Linux 5.2
        # it shares its core with nobody then, and no core has such a number
        "core": -1 - cpu if core is None or core < 0 else core,
    }


def _told_apart(files: Attributes, cpus: list[Cpu]) -> Iterator[Cpu]:
    """CPUs with cores of different numbers where the kernel gives several one number: clusters of ARM, AMD's 15h."""
    alike: dict[tuple[int, int, int], list[int]] = {}
    for cpu in cpus:
        if cpu.online:
            alike.setdefault((cpu.package, cpu.die, cpu.core), []).append(cpu.number)
    first: dict[int, int] = {}
    for numbers in alike.values():
        for number in numbers if len(numbers) > 1 else ():
            siblings = files.numbers(f"{_CPU}/cpu{number}/topology/thread_siblings_list", optional=True)
            lowest = min((sibling for sibling in siblings if sibling in numbers), default=numbers[0])
            if lowest != numbers[0]:
                first[number] = lowest
    for cpu in cpus:
        yield evolve(cpu, core=-1 - first[cpu.number]) if cpu.number in first else cpu


def _kinds(files: Attributes, online: list[int]) -> Mapping[int, str]:
    """What kind of core each CPU is on, where there are two."""
    large = set(files.numbers("devices/cpu_core/cpus", optional=True)).intersection(online)
    if large and files.numbers("devices/cpu_atom/cpus", optional=True):
        # besides cpu_atom, the newest have cpu_lowpower
        return {cpu: "performance" if cpu in large else "efficiency" for cpu in online}
    capacities: dict[int, int] = {}
    for cpu in online:
        capacity = files.number(f"{_CPU}/cpu{cpu}/cpu_capacity", optional=True)
        if capacity is None:
            return {}
        capacities[cpu] = capacity
    limit = _LITTLE * max(capacities.values(), default=0)
    if all(capacity >= limit for capacity in capacities.values()):
        return {}
    return {cpu: "performance" if capacity >= limit else "efficiency" for cpu, capacity in capacities.items()}


def _caches(files: Attributes, online: set[int]) -> Iterator[Cache]:
    """Every cache once: one of those who share it is asked."""
    asked: set[tuple[int, int]] = set()
    found: set[Cache] = set()
    for cpu in sorted(online):
        for index in range(10):
            if (index, cpu) in asked:
                continue
            directory = f"{_CPU}/cpu{cpu}/cache/index{index}"
            level = files.number(f"{directory}/level", optional=True)
            if level is None:
                break  # virtual CPUs have no caches to be seen
            cpus = frozenset(files.numbers(f"{directory}/shared_cpu_list")) & online | {cpu}
            asked.update((index, other) for other in cpus)
            kind, size = files.text(f"{directory}/type"), _CACHE_SIZE.fullmatch(files.text(f"{directory}/size"))
            if not 1 <= level <= 4 or kind not in _CACHE_TYPES or size is None:
                files.problems.append(f"{directory}: neither level, type nor size may be missing")
                continue
            cache = Cache(level=level, type=kind, size=int(size[1]) << 10, cpus=cpus)
            if cache not in found:
                found.add(cache)
                yield cache


def _find_nodes(files: Attributes, meminfo: str) -> tuple[tuple[_NodeFiles, ...], Mapping[int, int]]:
    """The nodes, at least one, and the node of each CPU that is online."""
    online = files.numbers(f"{_NODE}/online", optional=True)
    nodes: list[_NodeFiles] = []
    node_of: dict[int, int] = {}
    for number in online:
        directory = f"{_NODE}/node{number}"
        if not os.path.isdir(f"{files.top}/{directory}"):
            files.problems.append(f"{directory}: not there")
            continue
        for cpu in files.numbers(f"{directory}/cpulist"):
            node_of.setdefault(cpu, number)
        nodes.append(
            _NodeFiles(
                number=number,
                distances=_distances(files, f"{directory}/distance", online),
                meminfo=f"{directory}/meminfo",
                pools=tuple(_find_pools(files, f"{directory}/hugepages")),
            )
        )
    if not nodes:
        pools = tuple(_find_pools(files, _POOLS))
        nodes.append(_NodeFiles(number=0, distances={0: LOCAL}, meminfo=meminfo, pools=pools))
    return tuple(nodes), node_of


def _node_beside(files: Attributes, cpu: int, nodes: set[int]) -> int | None:
    """The node of a CPU that no node lists: those that are offline have a link to theirs beside their files."""
    for name in files.names(f"{_CPU}/cpu{cpu}"):
        if name[:4] == "node" and NUMBER.fullmatch(name[4:]) and int(name[4:]) in nodes:
            return int(name[4:])
    return None


def _distances(files: Attributes, name: str, online: tuple[int, ...]) -> Mapping[int, int]:
    """By node, as many as are online."""
    text = files.text(name)
    words = text.split()
    if len(words) != len(online) or not all(NUMBER.fullmatch(word) and int(word) > 0 for word in words):
        files.problems.append(f"{name}: {text[:40]!r} for {len(online)} nodes")
        return {}
    return dict(zip(online, map(int, words), strict=True))


def _find_pools(files: Attributes, directory: str) -> list[tuple[int, str]]:
    """By the size of their pages in bytes, a directory each."""
    names = map(_POOL.fullmatch, files.names(directory, optional=True))
    return sorted((int(name[1]) << 10, f"{directory}/{name[0]}") for name in names if name)


def _read_nodes(files: Attributes, nodes: tuple[_NodeFiles, ...], meminfo: str) -> tuple[Node, ...]:
    """What nodes have and what of it is free now."""
    amounts = [files.amounts(node.meminfo) for node in nodes]
    free = _free(amounts, files.amounts(meminfo).get("MemAvailable"))
    return tuple(
        Node(
            number=node.number,
            memory=memory.get("MemTotal", 0),
            free=min(unused, memory.get("MemTotal", 0)),
            distances=node.distances,
            hugepages=tuple(_pools(files, node)),
        )
        for node, memory, unused in zip(nodes, amounts, free, strict=True)
    )


def _free(amounts: list[dict[str, int]], available: int | None) -> list[int]:
    """What can be had at once of each node's memory, in bytes.

    That is what is free, and of caches what the kernel counts to that. It counts for the host as a whole
    (``MemAvailable``): each node has its share of it by what is free there or might become so.

    Args:
        amounts: the nodes' meminfo.
        available: bytes, ``None`` before Linux 3.14.
    """
    if available is None:
        return [memory.get("MemFree", 0) for memory in amounts]
    loose = [
        sum(memory.get(name, 0) for name in ("MemFree", "Active(file)", "Inactive(file)"))
        + memory.get("KReclaimable", memory.get("SReclaimable", 0))
        for memory in amounts
    ]
    total = sum(loose)
    return [share * min(available, total) // total if total else 0 for share in loose]


def _pools(files: Attributes, node: _NodeFiles) -> Iterator[HugePages]:
    for size, directory in node.pools:
        total, free = files.count(f"{directory}/nr_hugepages"), files.count(f"{directory}/free_hugepages")
        if total is not None and free is not None:
            yield HugePages(size=size, total=total, free=min(free, total))


def _host_pools(files: Attributes, nodes: tuple[Node, ...]) -> Iterator[HostPool]:
    """What of the nodes' free pages is somebody's, which is counted for the host as a whole alone."""
    for size in sorted({pool.size for node in nodes for pool in node.hugepages}):
        directory = f"{_POOLS}/hugepages-{size >> 10}kB"
        reserved, most, made = (
            files.number(f"{directory}/{name}_hugepages", optional=True) or 0
            for name in ("resv", "nr_overcommit", "surplus")
        )
        yield HostPool(size=size, reserved=max(reserved, 0), spare=max(most - made, 0))
