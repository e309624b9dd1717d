"""What is drawn of a host: nodes with their bars, cores in groups, marks, distances, who is pinned where.

Decides: what a picture of a host holds and in what order, and how it is worded.
Must not: know how it is drawn; `qsup.ctl.hosttext` and `qsup.ctl.hostsvg` do.
"""

from __future__ import annotations

from qsup.ctl.render import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qsup.api.wire import CpuWire, NodeWire, Topology

#: What there may be to know of a CPU, in the order in which it is shown, and the words for it.
MARKS = {
    "offline": "offline",
    "foreign": "not for this daemon",
    "isolated": "isolated",
    "pinned": "with pinned vCPUs",
}


class Bar:
    """How full something is.

    Attributes:
        label: what it is.
        share: 0 to 1.
        words: the figures.
    """

    __slots__ = ("label", "share", "words")

    def __init__(self, label: str, used: int, total: int, words: str) -> None:
        self.label = label
        self.share = used / total if total else 0.0
        self.words = words


class Group:
    """Cores that stand together.

    Attributes:
        title: what they have in common.
        cores: each core's CPUs.
    """

    __slots__ = ("cores", "title")

    def __init__(self, title: str, cores: list[list[CpuWire]]) -> None:
        self.title = title
        self.cores = cores


class NodePicture:
    """One NUMA node.

    Attributes:
        title: its name.
        bars: its memory, where it has any, and its pools of huge pages that hold any.
        groups: its cores; last, each by itself, CPUs that are offline.
    """

    __slots__ = ("bars", "groups", "title")

    def __init__(self, title: str, bars: list[Bar], groups: list[Group]) -> None:
        self.title = title
        self.bars = bars
        self.groups = groups


class HostPicture:
    """A host.

    Attributes:
        title: how much there is of what.
        nodes: in order.
        numbers: of the nodes.
        distances: for each node how far each is, where there are several.
        pinned: names of VMs and their vCPUs with the CPUs that these are pinned to.
        marks: those of `MARKS` that any CPU has.
    """

    __slots__ = ("distances", "marks", "nodes", "numbers", "pinned", "title")

    def __init__(self, topology: Topology) -> None:
        cpus, nodes = topology["cpus"], topology["nodes"]
        online = [cpu for cpu in cpus if cpu["online"]]
        packages = {cpu["package"] for cpu in online}
        cores = {_core(cpu) for cpu in online}
        found = [mark for cpu in cpus for mark in marks(cpu)]
        self.marks = [mark for mark in MARKS if mark in found]
        counted = ((nodes, "node"), (packages, "package"), (cores, "core"), (cpus, "CPU"))
        self.title = ", ".join(_count(len(things), noun) for things, noun in counted)
        if told := ", ".join(f"{found.count(mark)} {MARKS[mark]}" for mark in self.marks):
            self.title += f" ({told})"
        several = len({(cpu["package"], cpu["die"]) for cpu in online}) > len(packages)
        cache_of = _last_caches(topology)
        self.nodes = [_node(node, cpus, cache_of, several) for node in nodes]
        self.numbers = [node["number"] for node in nodes]
        self.distances = (
            [[node["distances"][str(other)] for other in self.numbers] for node in nodes] if len(nodes) > 1 else []
        )
        self.pinned = _pinned(cpus)


def marks(cpu: CpuWire) -> list[str]:
    """Those of `MARKS` that a CPU has."""
    online = cpu["online"]
    found = {
        "offline": not online,
        "foreign": online and not cpu["allowed"],
        "isolated": online and cpu["isolated"],
        "pinned": bool(cpu["pinned"]),
    }
    return [mark for mark, has in found.items() if has]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _core(cpu: CpuWire) -> tuple[int, ...]:
    """What all CPUs of a core have, and no others."""
    return (cpu["package"], cpu["die"], cpu["core"])


def _last_caches(topology: Topology) -> dict[int, tuple[str, int]]:
    """By CPU the cache of the last level: its words, and which one it is, -1 for any that one core has for itself."""
    core_of = {cpu["number"]: _core(cpu) for cpu in topology["cpus"]}
    found: dict[int, tuple[str, int]] = {}
    # smallest level first: the last one stays
    for cache in topology["caches"]:
        if cache["type"] != "Instruction":
            which = min(cache["cpus"]) if len({core_of[cpu] for cpu in cache["cpus"]}) > 1 else -1
            found |= dict.fromkeys(cache["cpus"], (f"L{cache['level']} {size(cache['size'])}", which))
    return found


def _node(
    node: NodeWire, cpus: Iterable[CpuWire], cache_of: dict[int, tuple[str, int]], several_dies: bool
) -> NodePicture:
    groups: dict[tuple[object, ...], Group] = {}
    cores: dict[tuple[int, ...], list[CpuWire]] = {}
    offline: list[list[CpuWire]] = []
    for cpu in cpus:
        if cpu["node"] != node["number"]:
            continue
        if not cpu["online"]:
            offline.append([cpu])
            continue
        if (core := _core(cpu)) in cores:
            cores[core].append(cpu)
            continue
        cores[core] = [cpu]
        cache, which = cache_of.get(cpu["number"], ("", -1))
        words = [f"package {cpu['package']}", f"die {cpu['die']}" if several_dies else "", cache, cpu["kind"]]
        group = groups.setdefault((*words, which), Group(", ".join(filter(None, words)), []))
        group.cores.append(cores[core])
    found = [*groups.values(), *([Group("offline", offline)] if offline else [])]
    return NodePicture(f"node {node['number']}", _bars(node), found)


def _bars(node: NodeWire) -> list[Bar]:
    bars = []
    if node["memory"]:
        used = node["memory"] - node["free"]
        bars.append(Bar("memory", used, node["memory"], f"{size(used)} of {size(node['memory'])} used"))
    for pool in node["hugepages"]:
        if pool["total"]:
            used = pool["total"] - pool["free"]
            bars.append(Bar(f"{size(pool['size'])} pages", used, pool["total"], f"{used} of {pool['total']} used"))
    return bars


def _pinned(cpus: Iterable[CpuWire]) -> list[tuple[str, str]]:
    """VMs by name, each with the vCPUs that are pinned; those with the same CPUs are told together."""
    sets: dict[str, dict[int, list[int]]] = {}
    for cpu in cpus:
        for pinned in cpu["pinned"]:
            sets.setdefault(pinned["instance"], {}).setdefault(pinned["vcpu"], []).append(cpu["number"])
    return [(name, "; ".join(_together(vcpus))) for name, vcpus in sorted(sets.items())]


def _together(vcpus: dict[int, list[int]]) -> list[str]:
    by_set: dict[tuple[int, ...], list[int]] = {}
    for vcpu, numbers in sorted(vcpus.items()):
        by_set.setdefault(tuple(numbers), []).append(vcpu)
    return [f"vCPU {_listed(same)} on {_listed(numbers)}" for numbers, same in by_set.items()]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
