"""A host whose places are given, and what the list of them says."""

from __future__ import annotations

from typing import Any

import trio
import trio.lowlevel
from attrs import evolve

from qsup.host.topology import TopologyReader
from qsup.instance.placements import Placements
from qsup.plan.topology import Topology
from qsup.unit.model import Unit
from qsup.unit.quantity import format_cpu_set
from qsup.unit.sections.disks import IothreadSection
from qsup.unit.sections.machine import CpuSection
from tests.plan.hosts import HOSTS


class Host(TopologyReader):
    """One socket: CPUs 0 to 7, and 8 to 15 for their siblings; reads are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.topology = HOSTS["1 socket"]
        self.reads = 0

    async def look(self) -> Topology:
        """As it is now."""
        await trio.lowlevel.checkpoint()
        self.reads += 1
        return self.topology


def unit(**cpu: Any) -> Unit:
    """One with these keys of `[cpu]`."""
    return Unit(cpu=CpuSection(**cpu))


def threaded(*pins: tuple[int, ...], **cpu: Any) -> Unit:
    """One that has an iothread besides for each of these sets, called after its place."""
    iothreads = tuple(IothreadSection(id=f"io{number}", pin=pin) for number, pin in enumerate(pins))
    return evolve(unit(**cpu), iothreads=iothreads)


def said(placements: Placements, name: str) -> str:
    """Where its vCPUs belong, and all else; and those of its iothreads that belong elsewhere."""
    pins = placements.pins(name)
    if pins is None:
        return "unknown"
    words = f"{' '.join(map(format_cpu_set, pins.vcpus)) or 'anywhere'} + {format_cpu_set(pins.emulator) or 'anywhere'}"
    return " + ".join([words, *(f"{name} {format_cpu_set(cpus)}" for name, cpus in pins.iothreads.items())])
