"""The outer fence of a VM, ``limits.cpuset-cpus`` and ``limits.cpuset-mems``, and what a unit names outside of it.

Decides: which keys contradict it.
Must not: look at a host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from qsup.unit.model import Unit
from qsup.unit.quantity import format_cpu_set
from qsup.unit.tree import Key

#: The keys, as a message names them.
CPUS, MEMS = "limits.cpuset-cpus", "limits.cpuset-mems"


def contradictions(unit: Unit) -> Iterator[tuple[str, Sequence[Key]]]:
    """What is wrong: a message, and the keys that it rests on."""
    cpu, limits = unit.cpu, unit.limits
    pins: list[tuple[Key, Iterable[int]]] = [
        (("cpu", "pin"), () if isinstance(cpu.pin, str) else {number for each in cpu.pin for number in each}),
        (("cpu", "emulator-pin"), cpu.emulator_pin),
        (("cpu", "helper-pin"), cpu.helper_pin),
        *((("iothread", each.id, "pin"), each.pin) for each in unit.iothreads),
    ]
    nodes: list[tuple[Key, str | tuple[int, ...]]] = [
        (("memory", "nodes"), unit.memory.nodes),
        *((("numa", each.id, "nodes"), each.nodes) for each in unit.numa),
    ]
    for key, named in pins:
        yield from _outside(key, named, limits.cpuset_cpus, CPUS, "CPU")
    for key, on in nodes:
        yield from _outside(key, () if isinstance(on, str) else on, limits.cpuset_mems, MEMS, "node")


def _outside(
    key: Key, named: Iterable[int], fence: Iterable[int], name: str, noun: str
) -> Iterator[tuple[str, Sequence[Key]]]:
    outside = set(named).difference(fence)
    if fence and outside:
        which = f"{noun}{'' if len(outside) == 1 else 's'} {format_cpu_set(outside)}"
        words = f"{key[-1]} names {which}, outside of {name} ({format_cpu_set(fence)}), which nothing of it leaves"
        yield words, [key, tuple(name.split("."))]
