"""What is drawn of a host: nodes with their bars, cores in groups, who runs where on them, marks, distances.

Decides: what a picture of a host holds and in what order, and how it is worded.
Must not: know how it is drawn; `qsup.ctl.hosttext` and `qsup.ctl.hostsvg` do.
"""

from __future__ import annotations

from qsup.ctl.render import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from qsup.api.hostwire import CpuWire, NodeWire, Topology

#: What there may be to know of a CPU, in the order in which it is shown, and the words for it.
MARKS = {
    "offline": "offline",
    "foreign": "not for this daemon",
    "isolated": "isolated",
    "owned": "exclusive",
    "pinned": "with pinned vCPUs",
}


#: Shares from which on something is rather full, and all but full.
HIGH, FULL = 0.75, 0.9


class Bar:
    """How full something is.

    Attributes:
        label: what it is.
        share: 0 to 1.
        promised: 0 to 1, what of it is given away, used or not.
        words: the figures.
    """

    __slots__ = ("label", "promised", "share", "words")

    def __init__(self, label: str, used: float, total: int, words: str, promised: int = 0) -> None:
        self.label = label
        self.share = min(1.0, used / total) if total else 0.0
        self.promised = min(1.0, promised / total) if total else 0.0
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
        bars: its CPUs and its memory, where it has any, and its pools of huge pages that hold any.
        groups: its cores; last, each by itself, CPUs that are offline.
        residents: as `HostPicture.residents`, of those whose vCPUs are on this node alone.
    """

    __slots__ = ("bars", "groups", "residents", "title")

    def __init__(self, title: str, bars: list[Bar], groups: list[Group], residents: list[tuple[str, str]]) -> None:
        self.title = title
        self.bars = bars
        self.groups = groups
        self.residents = residents


class HostPicture:
    """A host.

    Attributes:
        title: how much there is of what.
        nodes: in order.
        numbers: of the nodes.
        distances: for each node how far each is, where there are several.
        residents: names of VMs whose vCPUs are on CPUs of several nodes, and which these are; those of which the same
            is to be said are told together.
        marks: those of `MARKS` that any CPU has.
        marks_of: by CPU.
    """

    __slots__ = ("distances", "marks", "marks_of", "nodes", "numbers", "residents", "title")

    def __init__(self, topology: Topology) -> None:
        cpus, nodes = topology["cpus"], topology["nodes"]
        online = [cpu for cpu in cpus if cpu["online"]]
        packages = {cpu["package"] for cpu in online}
        cores = {_core(cpu) for cpu in online}
        sets = _sets(cpus)
        fixed = {place for name, places in sets.items() if not _floats(places) for place in _named(name, places)}
        self.marks_of = {cpu["number"]: _marks(cpu, fixed) for cpu in cpus}
        found = [mark for marks in self.marks_of.values() for mark in marks]
        self.marks = [mark for mark in MARKS if mark in found]
        counted = ((nodes, "node"), (packages, "package"), (cores, "core"), (cpus, "CPU"))
        self.title = ", ".join(_count(len(things), noun) for things, noun in counted)
        if told := ", ".join(f"{found.count(mark)} {MARKS[mark]}" for mark in self.marks):
            self.title += f" ({told})"
        several = len({(cpu["package"], cpu["die"]) for cpu in online}) > len(packages)
        cache_of = _last_caches(topology)
        node_of = {cpu["number"]: cpu["node"] for cpu in cpus}
        by_node = _residents(sets, _kept(cpus, sets), node_of)
        self.nodes = [
            _node(node, [cpu for cpu in cpus if cpu["node"] == node["number"]], cache_of, several, by_node)
            for node in nodes
        ]
        self.numbers = [node["number"] for node in nodes]
        self.distances = (
            [[node["distances"][str(other)] for other in self.numbers] for node in nodes] if len(nodes) > 1 else []
        )
        self.residents = by_node.get(None, [])


def _marks(cpu: CpuWire, fixed: set[tuple[str, int]]) -> list[str]:
    """Those of `MARKS` that a CPU has.

    Args:
        fixed: vCPUs that are not merely somewhere among many CPUs with all others of their VM.
    """
    online = cpu["online"]
    is_fixed = any((pinned["instance"], pinned["vcpu"]) in fixed for pinned in cpu["pinned"])
    found = {
        "offline": not online,
        "foreign": online and not cpu["allowed"],
        "isolated": online and cpu["isolated"],
        "owned": bool(cpu["owner"]),
        "pinned": is_fixed and not cpu["owner"],
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
    node: NodeWire,
    cpus: list[CpuWire],
    cache_of: dict[int, tuple[str, int]],
    several_dies: bool,
    residents: dict[int | None, list[tuple[str, str]]],
) -> NodePicture:
    groups: dict[tuple[object, ...], Group] = {}
    cores: dict[tuple[int, ...], list[CpuWire]] = {}
    offline: list[list[CpuWire]] = []
    for cpu in cpus:
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
    return NodePicture(f"node {node['number']}", _bars(node, cpus), found, residents.get(node["number"], []))


def _bars(node: NodeWire, cpus: list[CpuWire]) -> list[Bar]:
    bars = []
    promised = node["promised"]
    if online := [cpu for cpu in cpus if cpu["online"]]:
        shared = [cpu for cpu in online if cpu["allowed"] and not cpu["isolated"] and not cpu["owner"]]
        used = promised["own_cpus"] + min(promised["vcpus"], len(shared))
        bars.append(Bar("CPUs", used, len(online), _cpu_words(promised["own_cpus"], promised["vcpus"], len(shared))))
    if node["memory"]:
        used, given = node["memory"] - node["free"], promised["memory"]
        words = f"{size(used)} of {size(node['memory'])} used" + (f", {size(given)} promised" if given else "")
        bars.append(Bar("memory", used, node["memory"], words, given))
    for pool in node["hugepages"]:
        if pool["total"]:
            used = pool["total"] - pool["free"]
            bars.append(Bar(f"{size(pool['size'])} pages", used, pool["total"], f"{used} of {pool['total']} used"))
    return bars


def _cpu_words(own: int, vcpus: float, shared: int) -> str:
    parts = [f"{own} exclusive"] if own else []
    if shared or vcpus:
        told = f"{vcpus:.1f}".removesuffix(".0")
        parts.append(f"{told} {'vCPU shares' if told == '1' else 'vCPUs share'} {shared}")
    return ", ".join(parts) or "none to be shared"


def _sets(cpus: Iterable[CpuWire]) -> dict[str, dict[int, list[int]]]:
    """By VM and vCPU, the CPUs that it is pinned to."""
    sets: dict[str, dict[int, list[int]]] = {}
    for cpu in cpus:
        for pinned in cpu["pinned"]:
            sets.setdefault(pinned["instance"], {}).setdefault(pinned["vcpu"], []).append(cpu["number"])
    return sets


def _kept(cpus: Iterable[CpuWire], sets: Container[str]) -> dict[str, list[int]]:
    """By VM that has CPUs of its own and no vCPU on any, these: it does not run, and is to come back."""
    kept: dict[str, list[int]] = {}
    for cpu in cpus:
        if cpu["owner"] and cpu["owner"] not in sets:
            kept.setdefault(cpu["owner"], []).append(cpu["number"])
    return kept


def _floats(vcpus: dict[int, list[int]]) -> bool:
    """Whether all vCPUs of a VM are among the same CPUs, more than one."""
    first = next(iter(vcpus.values()))
    return len(first) > 1 and all(numbers == first for numbers in vcpus.values())


def _named(name: str, vcpus: Iterable[int]) -> list[tuple[str, int]]:
    return [(name, vcpu) for vcpu in vcpus]


def _residents(
    sets: dict[str, dict[int, list[int]]], kept: dict[str, list[int]], node_of: dict[int, int]
) -> dict[int | None, list[tuple[str, str]]]:
    """By node the VMs that are on it, under none those that are on several."""
    found: dict[int | None, dict[str, list[str]]] = {}
    there = [(name, "; ".join(_together(vcpus)), [*vcpus.values()]) for name, vcpus in sets.items()]
    there += [(name, f"not up, {ranges(numbers)} kept for it", [numbers]) for name, numbers in kept.items()]
    for name, words, several in sorted(there):
        nodes = {node_of[number] for numbers in several for number in numbers}
        where = nodes.pop() if len(nodes) == 1 else None
        found.setdefault(where, {}).setdefault(words, []).append(name)
    return {where: [(", ".join(names), words) for words, names in told.items()] for where, told in found.items()}


def _together(vcpus: dict[int, list[int]]) -> list[str]:
    """What is to be said of the vCPUs of a VM: those that have a CPU each, and then those that share some."""
    single = {vcpu: numbers[0] for vcpu, numbers in sorted(vcpus.items()) if len(numbers) == 1}
    by_set: dict[tuple[int, ...], list[int]] = {}
    for vcpu, numbers in sorted(vcpus.items()):
        if len(numbers) > 1:
            by_set.setdefault(tuple(numbers), []).append(vcpu)
    words = [f"{_vcpus([*by_set_of])} on {ranges(numbers)}" for numbers, by_set_of in by_set.items()]
    if len(single) > 1 and len(set(single.values())) == 1:
        return [f"{_vcpus([*single])} on {ranges(sorted(set(single.values())))}", *words]
    if single:
        each = " each" if len(single) > 1 else ""
        words.insert(0, f"{_vcpus([*single])}{each} on {_in_order([*single.values()])}")
    return words


def _vcpus(numbers: list[int]) -> str:
    return f"vCPU{'s' if len(numbers) > 1 else ''} {ranges(numbers)}"


def _in_order(numbers: Sequence[int]) -> str:
    """As they come, those that count up by one as a range."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def ranges(numbers: Sequence[int]) -> str:
    """``0-3, 8``."""
    return _in_order(sorted(set(numbers)))
