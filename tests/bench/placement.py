"""Placing a VM: what the pure function takes, and how that grows with the host and with the VMs on it.

Decides: hosts are read afresh each time, so nothing that is worked out of one counts for the next; up to a sixth of the
VMs have CPUs of their own, up to a sixth name them, the others share.
What counts is CPU time: the function waits for nothing, and other programs' turns are no part of it.
Must not: need a daemon for it.

``python -m tests.bench.placement docs/performance.md`` puts the growth into that document, and beside it a drawing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast

from attrs import evolve

from qsup.errors import PlacementError
from qsup.plan.ledger import Ledger
from qsup.plan.placement import check_named, place
from qsup.plan.residents import Request, Resident
from qsup.plan.topology import Topology
from tests.bench.document import put_measured
from tests.bench.figures import Figure, Limit, at_most, milliseconds
from tests.bench.machine import describe
from tests.bench.workshop import Workshop, in_turns
from tests.plan.hosts import GIB, large, machine
from tests.plan.placing import guest, named

TARGET = 5.0
VMS = 300
WANTED = {
    "4 shared vCPUs": Request(name="new", vcpus=4, memory=GIB),
    "8 CPUs of its own": Request(name="new", vcpus=8, exclusive=True, memory=GIB),
    "40 CPUs of its own, on two nodes": Request(name="new", vcpus=40, exclusive=True, memory=GIB),
    **{
        f"{number} guest nodes of 4 {what}": guest(*[(4, 8)] * number, name="new", exclusive=exclusive)
        for what, exclusive in (("shared vCPUs", False), ("CPUs of their own", True))
        for number in (2, 4)
    },
}
#: Nodes of 32 CPUs.
NODES = (1, 4, 16, 32)
GROWN = (0, 100, 300, 1000)


def measure(_shop: Workshop, repeat: int) -> Iterator[Figure]:
    """Place a VM on the largest host that is promised, and tell where all VMs belong."""
    host = large()
    residents = populated(host, VMS)
    on = f"on 512 CPUs, 16 nodes, beside {VMS} VMs"
    for what, request in WANTED.items():
        ((taken,),) = in_turns(repeat, partial(_once, request, residents, host))
        yield _figure(f"placing {what}, {on}", taken, at_most(TARGET, "ms"))
    ((taken,),) = in_turns(repeat, lambda: (_cpu(lambda vms, fresh: Ledger(fresh, vms).present(), residents, host),))
    yield _figure(f"where the threads of {VMS} VMs belong, on 512 CPUs", taken, None)


def _figure(name: str, seconds: Sequence[float], limit: Limit | None) -> Figure:
    return Figure(name=name, unit="ms", qsup=milliseconds(seconds), limit=limit)


def populated(host: Topology, number: int) -> list[Resident]:
    """So many VMs, one after the other; a quarter of the CPUs at most is given away, and those who come later share."""
    residents: list[Resident] = []
    cpus = [cpu.number for cpu in host.cpus if cpu.number % 16 < 2]
    spare = len(host.cpus) // 4
    given = 0
    for index in range(number):
        name = f"vm-{index:04}"
        if index % 6 == 0 and given + 4 <= spare:
            request = Request(name=name, vcpus=1 + index % 4, exclusive=True, memory=GIB >> 4)
            residents.append(place(request, residents, host).resident)
            given += 4
            continue
        pinned = named(name, cpus[index % len(cpus)], emulator=cpus[index % len(cpus)])
        if index % 6 == 1 and _may(pinned, residents, host):
            residents.append(pinned)
            continue
        request = Request(name=name, vcpus=1 + index % 8, memory=GIB >> 4)
        residents.append(place(request, residents, host).resident)
    return residents


def _may(resident: Resident, residents: Sequence[Resident], host: Topology) -> bool:
    try:
        check_named(resident, residents, host)
    except PlacementError:
        return False
    return True


def growth(repeat: int) -> Iterator[tuple[int, list[float]]]:
    """For hosts of more and more nodes, the median milliseconds of an exclusive VM beside more and more others."""
    request = WANTED["8 CPUs of its own"]
    for nodes in NODES:
        host = machine(packages=1 if nodes == 1 else 2, nodes=max(1, nodes // 2), caches=4, cores=4, memory=512, far=32)
        crowds = [populated(host, number) for number in GROWN]
        goes = [partial(_once, request, residents, host) for residents in crowds]
        yield nodes, [statistics.median(milliseconds(taken)) for (taken,) in in_turns(repeat, *goes)]


def _once(request: Request, residents: Sequence[Resident], host: Topology) -> tuple[float]:
    return (_cpu(place, request, residents, host),)


def _cpu(work: Callable[..., object], *arguments: object) -> float:
    """The CPU seconds that something takes which gets the host last: one of its own, of which nothing is known yet."""
    *others, host = arguments
    fresh = evolve(cast(Topology, host))
    began = time.thread_time()
    work(*others, fresh)
    return time.thread_time() - began


def table(lines: Sequence[tuple[int, Sequence[float]]]) -> str:
    """The growth as Markdown."""
    heading = ["host", *(f"{number} VMs" for number in GROWN)]
    rows = [
        heading,
        ["---"] * len(heading),
        *(
            [f"{32 * nodes} CPUs, {nodes} node{'s' * (nodes > 1)}", *(f"{each:.2f} ms" for each in medians)]
            for nodes, medians in lines
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def drawing(lines: Sequence[tuple[int, Sequence[float]]]) -> str:
    """The growth as SVG: milliseconds over VMs, a line for each host, and the target."""
    width, height, left, top = 520, 240, 40, 20
    most = max(TARGET, *(each for _, medians in lines for each in medians)) * 1.1

    def x(number: float) -> float:
        return round(left + number / GROWN[-1] * width, 1)

    def y(milliseconds: float) -> float:
        return round(top + height * (1 - milliseconds / most), 1)

    def text(at_x: float, at_y: float, words: str, anchor: str = "start") -> str:
        return f'<text x="{at_x}" y="{at_y}" text-anchor="{anchor}">{words}</text>'

    def line(points: Sequence[tuple[float, float]], style: str) -> str:
        return f'<polyline fill="none" {style} points="{" ".join(f"{one},{other}" for one, other in points)}"/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 150}" height="{height + 60}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        line([(x(0), y(most)), (x(0), y(0)), (x(GROWN[-1]), y(0))], 'stroke="black"'),
        line([(x(0), y(TARGET)), (x(GROWN[-1]), y(TARGET))], 'stroke="red" stroke-dasharray="4"'),
        text(x(GROWN[-1]) + 6, y(TARGET) + 4, "target"),
        *(text(x(number), y(0) + 16, str(number), "middle") for number in GROWN),
        text(x(GROWN[-1] / 2), y(0) + 34, "VMs on the host", "middle"),
        *(text(left - 6, y(number) + 4, f"{number}", "end") for number in range(int(most) + 1)),
        text(left - 6, top - 6, "ms", "end"),
    ]
    for nodes, medians in lines:
        points = [(x(number), y(each)) for number, each in zip(GROWN, medians, strict=True)]
        parts += [line(points, 'stroke="steelblue"'), text(points[-1][0] + 6, points[-1][1] + 4, f"{32 * nodes} CPUs")]
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Measure the growth and put it where it is shown."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.placement", description="How placement grows.")
    parser.add_argument("document", type=Path, help="gets the table; placement.svg beside it gets the drawing")
    parser.add_argument("--repeat", type=int, default=50, metavar="N", help="how often (default: %(default)s)")
    options = parser.parse_args()
    lines = list(growth(options.repeat))
    put_measured(options.document, f"{describe()}\n\n{table(lines)}", what="placement")
    options.document.with_name("placement.svg").write_text(drawing(lines))


if __name__ == "__main__":
    main()
