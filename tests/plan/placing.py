"""VMs placed one after the other on hosts in the shapes of real machines, as text.

Decides: which VMs those are, and how the text of their placements looks.
Must not: judge it; `test_placement_golden` compares it with what was read and kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import evolve

from qsup.errors import PlacementError
from qsup.plan.ledger import Ledger
from qsup.plan.placement import check_named, place
from qsup.plan.residents import GuestNode, Request, Resident, Sets
from qsup.unit.quantity import format_cpu_set
from tests.plan.hosts import GIB, HOSTS

KEPT = Path(__file__).resolve().parent / "placements"


def named(name: str, *vcpus: int, emulator: int, exclusive: bool = False) -> Resident:
    """A VM whose unit names a CPU for each vCPU."""
    sets = Sets(vcpus=tuple(frozenset({cpu}) for cpu in vcpus), emulator=frozenset({emulator}))
    return Resident(name=name, sets=sets, named=True, exclusive=exclusive)


def guest(*sizes: tuple[int, int], **more: Any) -> Request:
    """A VM whose nodes have so many vCPUs and so many GiB each."""
    nodes, first = [], 0
    for vcpus, memory in sizes:
        nodes.append(GuestNode(vcpus=tuple(range(first, first + vcpus)), memory=memory * GIB))
        first += vcpus
    total = sum(memory for _, memory in sizes)
    request = Request(name="web", vcpus=first, memory=total * GIB, guest_nodes=tuple(nodes))
    return evolve(request, **more)


def _exclusive(name: str, vcpus: int, memory: int = 0, threads: int = 0) -> Request:
    return Request(name=name, vcpus=vcpus, exclusive=True, memory=memory * GIB, threads=threads)


def _shared(name: str, vcpus: int, memory: int = 0) -> Request:
    return Request(name=name, vcpus=vcpus, memory=memory * GIB)


#: For each host, who comes, in this order.
ARRIVALS: dict[str, tuple[Request | Resident, ...]] = {
    "1 socket": (
        _exclusive("db", 6, 8, threads=2),
        _shared("web", 4, 2),
        _exclusive("cache", 2, 2, threads=2),
        _exclusive("odd", 3),
        evolve(_exclusive("bound", 2, threads=2), within=frozenset({5, 6, 13, 14})),
        evolve(_exclusive("halved", 1), within=frozenset({7})),
        named("pinned", 7, 15, emulator=7),
        named("wrong", 0, 1, emulator=7),
        _exclusive("many", 6),
        _shared("wide", 12),
        _shared("heavy", 1, 64),
    ),
    "2 sockets": (
        _exclusive("db", 8, 16),
        _shared("web", 4, 8),
        _shared("mail", 4, 8),
        _exclusive("small", 2),
        _exclusive("large", 14, 16),
        _shared("spread", 2, 100),
        _exclusive("rest", 8),
        _exclusive("too-many", 3),
    ),
    "memory node": (
        _exclusive("db", 4, 16),
        _shared("web", 8, 16),
        _shared("heavy", 2, 128),
        _exclusive("wide", 10, 8),
        _exclusive("far", 2, 200),
        _shared("late", 4),
    ),
    "hybrid": (
        _exclusive("game", 8, threads=2),
        _exclusive("build", 9),
        _exclusive("quiet", 1),
        _shared("web", 2),
        _exclusive("last", 2),
        _exclusive("none", 2),
    ),
    "offline": (
        _exclusive("db", 8, threads=2),
        named("isolated", 8, 24, emulator=10, exclusive=True),
        named("gone", 5, emulator=2),
        named("foreign", 16, emulator=2),
        _shared("web", 12),
        _exclusive("odd", 3),
        _exclusive("too-many", 20),
    ),
}


def render(host: str) -> str:
    """All that is said while they come, and where everybody is in the end."""
    return "\n".join([*_arrive(host), ""])


def _arrive(host: str) -> Iterator[str]:
    topology = HOSTS[host]
    residents: list[Resident] = []
    for wish in ARRIVALS[host]:
        yield f"# {wish.name}"
        try:
            if isinstance(wish, Resident):
                check_named(wish, residents, topology)
                residents.append(wish)
                yield "as its unit says"
            else:
                placement = place(wish, residents, topology)
                residents.append(placement.resident)
                yield from placement.explanation
        except PlacementError as error:
            yield f"refused: {error}"
            yield f"         {error.hint}"
        yield ""
    yield "# in the end"
    for name, sets in Ledger(topology, residents).present().items():
        vcpus = " ".join(dict.fromkeys(map(format_cpu_set, sets.vcpus)))
        yield f"{name}: vCPUs {vcpus}, others {format_cpu_set(sets.emulator)}"
