"""What a daemon costs that has nothing to do: its memory, its threads, its CPU time; and lists of many.

Decides: a hundred running VMs for what grows with them, fifty for the time; how long idleness is watched.
Must not: measure while anything is still being started.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.bench.command import list_figure
from tests.bench.figures import Figure, at_most, milliseconds
from tests.bench.kept import Kept, request
from tests.bench.workshop import Workshop, clock, in_turns, power_all

MANY = 100
IDLE = 50
#: Seconds: several heartbeats of every VM.
WATCHED = 30.0


def measure(shop: Workshop, repeat: int) -> Iterator[Figure]:
    """Look at a daemon with no VM, with a hundred, with fifty."""
    connection = shop.connect()
    connection.ask("GET", "/v1/instances")
    yield _memory(shop, "resident memory, no VM", 40)
    names = [f"vm-{number:03}" for number in range(MANY)]
    shop.add(*names)
    power_all(shop, names, "start")
    yield _list(connection, 10 * repeat)
    yield list_figure(shop, repeat, f"`qsupctl list` of {MANY} VMs", more=8)
    yield _memory(shop, f"resident memory, {MANY} VMs", 55)
    power_all(shop, names[IDLE:], "stop")
    yield from _idleness(shop)
    connection.close()


def _memory(shop: Workshop, name: str, most: float) -> Figure:
    return Figure(name=name, unit="MiB", qsup=[shop.status("VmRSS") / 1024], limit=at_most(most, "MiB"))


def _list(connection: Kept, count: int) -> Figure:
    get = request("GET", "/v1/instances")
    ((ours,),) = in_turns(count, lambda: (clock(connection.exchange, get),))
    return Figure(name=f"`GET /v1/instances` of {MANY} VMs", unit="ms", qsup=milliseconds(ours), limit=at_most(2, "ms"))


def _idleness(shop: Workshop) -> Iterator[Figure]:
    """Watch for a while; worker threads that the stops have used end in the first half of it."""
    time.sleep(WATCHED / 2)
    before = shop.cpu_seconds()
    threads = []
    began = time.monotonic()
    while (passed := time.monotonic() - began) < WATCHED:
        threads.append(float(shop.status("Threads")))
        time.sleep(0.5)
    share = 100 * (shop.cpu_seconds() - before) / passed
    yield Figure(name=f"CPU, {IDLE} idle VMs", unit="% of a core", qsup=[share], limit=at_most(0.4, "%"))
    yield Figure(name=f"threads, {IDLE} idle VMs", unit="", qsup=threads, limit=at_most(4, ""))
