"""Trees like /sys and /proc of hosts in the shapes of real machines.

Decides: what the kernel says of such hosts, file by file, and which shapes there are.
Must not: know who reads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import field, frozen

from qsup.host.topology import TopologyReader
from qsup.unit.quantity import format_cpu_set

GIB = 1 << 30
M2, G1 = 2 << 20, GIB


@frozen(kw_only=True)
class Place:
    """A NUMA node, or a part of one that is a package or a die of its own.

    Args:
        cores: how many it has.
        memory, free: bytes; of that which is not free a half is what programs have read.
        pools: of huge pages: total and free by size.
    """

    node: int
    package: int = 0
    die: int = 0
    cores: int = 0
    memory: int = 0
    free: int = 0
    pools: Mapping[int, tuple[int, int]] = field(factory=dict)


@frozen(kw_only=True)
class Machine:
    """A host.

    Args:
        threads: of a core.
        little: so many of the last cores have one thread, and are for efficiency.
        beside: CPUs of one core have numbers in a row, else the first threads of all cores come first.
        sharing: cores that share an L3, 0 for all of a place.
        near, far: distance of nodes in one package, and in two.
        offline, isolated: CPUs.
        absent: CPUs that are possible, and not there.
    """

    places: tuple[Place, ...]
    threads: int = 2
    little: int = 0
    beside: bool = False
    sharing: int = 0
    l3: int = 32 << 20
    near: int = 12
    far: int = 21
    offline: frozenset[int] = frozenset()
    isolated: frozenset[int] = frozenset()
    absent: int = 0

    @property
    def count(self) -> int:
        """CPUs that are present."""
        cores = sum(place.cores for place in self.places)
        return (cores - self.little) * self.threads + self.little

    @property
    def online(self) -> frozenset[int]:
        """CPUs that are online."""
        return frozenset(range(self.count)) - self.offline

    def cores(self) -> list[tuple[Place, tuple[int, ...]]]:
        """Each core's place and CPUs."""
        total = sum(place.cores for place in self.places)
        large = total - self.little
        found: list[tuple[Place, tuple[int, ...]]] = []
        for place in self.places:
            for core in range(len(found), len(found) + place.cores):
                if core >= large:
                    cpus: Iterable[int] = [large * self.threads + core - large]
                elif self.beside:
                    cpus = range(core * self.threads, (core + 1) * self.threads)
                else:
                    cpus = range(core, large * self.threads, large)
                found.append((place, tuple(cpus)))
        return found


MACHINES: Mapping[str, Machine] = {
    "one-socket": Machine(places=(Place(node=0, cores=4, memory=16 * GIB, free=9 * GIB),), l3=8 << 20),
    "two-sockets": Machine(
        places=tuple(
            Place(
                node=node, package=node, cores=8, memory=64 * GIB, free=40 * GIB, pools={M2: (4096, 1024), G1: (4, 4)}
            )
            for node in range(2)
        ),
        isolated=frozenset({6, 7, 22, 23}),
    ),
    # the last node is memory alone, as that of a CXL device is; the one before has none at all
    "memory-node": Machine(
        places=(
            Place(node=0, package=0, cores=4, memory=32 * GIB, free=30 * GIB),
            Place(node=1, package=0, cores=4, memory=32 * GIB, free=2 * GIB),
            Place(node=2, package=1, cores=4),
            Place(node=3, package=9, memory=128 * GIB, free=128 * GIB, pools={M2: (1024, 0)}),
        ),
        threads=1,
    ),
    "hybrid": Machine(
        places=(Place(node=0, cores=14, memory=32 * GIB, free=20 * GIB),),
        little=8,
        beside=True,
        l3=24 << 20,
    ),
    "offline": Machine(
        places=(
            Place(node=0, package=0, cores=4, memory=32 * GIB, free=16 * GIB),
            Place(node=1, package=1, cores=4, memory=32 * GIB, free=16 * GIB),
        ),
        offline=frozenset({3, 11, 12, 13, 14, 15}),
        absent=16,
    ),
    "large": Machine(
        places=tuple(
            Place(node=node, package=node // 8, die=node % 8 // 4, cores=16, memory=192 * GIB, free=(20 + node) * GIB)
            for node in range(16)
        ),
        sharing=8,
        far=32,
        isolated=frozenset(range(240, 256)),
    ),
}


def build(top: Path, machine: Machine) -> TopologyReader:
    """Write ``top/sys`` and ``top/proc``, and read them as a daemon that may use each CPU."""
    write_tree(top, machine)
    return reader(top, range(machine.count))


def reader(top: Path, allowed: Iterable[int]) -> TopologyReader:
    """One that reads such a tree."""
    return TopologyReader(top / "sys", proc=top / "proc", affinity=lambda: allowed)


def write_tree(top: Path, machine: Machine) -> None:
    """Write ``top/sys`` and ``top/proc``; what is offline has no files of its own."""
    files = {
        "proc/meminfo": _proc_meminfo(machine),
        "sys/devices/system/cpu/possible": f"0-{machine.count + machine.absent - 1}",
        "sys/devices/system/cpu/present": f"0-{machine.count - 1}",
        "sys/devices/system/cpu/online": format_cpu_set(machine.online),
        "sys/devices/system/cpu/isolated": format_cpu_set(machine.isolated),
    }
    for number in range(machine.count):
        files[f"sys/devices/system/cpu/cpu{number}/uevent"] = ""
    files |= _kinds(machine)
    files |= _cpus(machine)
    files |= _nodes(machine)
    for directory in {name.rpartition("/")[0] for name in files}:
        os.makedirs(top / directory, exist_ok=True)
    for name, text in files.items():
        # there are ten thousand
        with open(f"{top}/{name}", "w", encoding="ascii") as file:
            file.write(f"{text}\n")


def _kinds(machine: Machine) -> dict[str, str]:
    if not machine.little:
        return {}
    large = machine.count - machine.little
    return {
        "sys/devices/cpu_core/cpus": f"0-{large - 1}",
        "sys/devices/cpu_atom/cpus": f"{large}-{machine.count - 1}",
    }


def _cpus(machine: Machine) -> dict[str, str]:
    files: dict[str, str] = {}
    cores = machine.cores()
    places = [id(place) for place, _ in cores]
    for core, (place, cpus) in enumerate(cores):
        first, sharing = places.index(id(place)), machine.sharing or place.cores
        group = first + (core - first) // sharing * sharing
        neighbours = [cpu for _, others in cores[group : group + sharing] for cpu in others]
        for cpu in machine.online.intersection(cpus):
            directory = f"sys/devices/system/cpu/cpu{cpu}"
            files |= {
                f"{directory}/topology/physical_package_id": str(place.package),
                f"{directory}/topology/die_id": str(place.die),
                f"{directory}/topology/core_id": str(core),
            }
            own, shared = (format_cpu_set(machine.online.intersection(who)) for who in (cpus, neighbours))
            caches = ((1, "Data", 32, own), (1, "Instruction", 32, own), (2, "Unified", 1024, own))
            for index, (level, kind, size, who) in enumerate((*caches, (3, "Unified", machine.l3 >> 10, shared))):
                files |= {
                    f"{directory}/cache/index{index}/level": str(level),
                    f"{directory}/cache/index{index}/type": kind,
                    f"{directory}/cache/index{index}/size": f"{size}K",
                    f"{directory}/cache/index{index}/shared_cpu_list": who,
                }
    return files


def _nodes(machine: Machine) -> dict[str, str]:
    numbers = sorted({place.node for place in machine.places})
    files = {"sys/devices/system/node/online": format_cpu_set(numbers)}
    packages = {place.node: place.package for place in machine.places}
    for place in machine.places:
        directory = f"sys/devices/system/node/node{place.node}"
        cpus = [cpu for where, core in machine.cores() if where is place for cpu in core]
        distances = [
            10 if other == place.node else machine.near if packages[other] == place.package else machine.far
            for other in numbers
        ]
        files[f"{directory}/cpulist"] = format_cpu_set(machine.online.intersection(cpus))
        files[f"{directory}/distance"] = " ".join(map(str, distances))
        files[f"{directory}/meminfo"] = _node_meminfo(place)
        # as Linux does, a CPU that is offline has its link to the node still
        files |= {f"sys/devices/system/cpu/cpu{cpu}/node{place.node}/uevent": "" for cpu in cpus}
        for size, (total, free) in place.pools.items():
            files[f"{directory}/hugepages/hugepages-{size >> 10}kB/nr_hugepages"] = str(total)
            files[f"{directory}/hugepages/hugepages-{size >> 10}kB/free_hugepages"] = str(free)
    return files


def _node_meminfo(place: Place) -> str:
    read = (place.memory - place.free) // 2
    amounts = {
        "MemTotal": place.memory,
        "MemFree": place.free,
        "MemUsed": place.memory - place.free,
        "Active(file)": read // 2,
        "Inactive(file)": read // 2,
        "KReclaimable": read // 8,
        "SReclaimable": read // 8,
    }
    return "\n".join(f"Node {place.node} {name + ':':<16} {amount >> 10:>8} kB" for name, amount in amounts.items())


def _proc_meminfo(machine: Machine) -> str:
    total, free = (sum(amounts) for amounts in zip(*((p.memory, p.free) for p in machine.places), strict=True))
    # of what programs have read the kernel keeps some
    available = free + (total - free) // 4
    amounts = {"MemTotal": total, "MemFree": free, "MemAvailable": available}
    return "\n".join(f"{name + ':':<16} {amount >> 10:>8} kB" for name, amount in amounts.items())
