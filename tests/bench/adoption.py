"""Taking over what runs: from the spawn of a daemon to its list, and to every VM having answered a command.

Decides: the list counts when it is complete, with each VM's process; a VM has answered when its state is no longer
`unreachable`, for what it is instead is what its QEMU answered this daemon. What is compared is a bare script that
connects to the same monitors, negotiates and asks; and an interpreter that only imports what the daemon does.
Must not: let the client's own start count: it waits beside, connected as soon as somebody listens.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from tests.bare import BareConnection
from tests.bench.figures import Figure, Limit, at_most
from tests.bench.kept import Kept, connects, request
from tests.bench.workshop import Workshop, clock, in_turns, power_all
from tests.waiting import poll_until

FEW, MANY = 50, 200
#: What the daemon's own start does, too.
IMPORT = "import gc; gc.disable(); import qsup.daemon"


def measure(shop: Workshop, repeat: int) -> Iterator[Figure]:
    """Kill the daemon of fifty VMs and start the next, and so on; then of two hundred."""
    names = [f"vm-{number:03}" for number in range(MANY)]
    shop.add(*names)
    try:
        power_all(shop, names[:FEW], "start")
        yield from _adoptions(shop, names[:FEW], max(3, repeat // 3), at_most(0.40, "s"), at_most(0.50, "s"))
        power_all(shop, names[FEW:], "start")
        yield from _adoptions(shop, names, max(3, repeat // 10), None, at_most(1.2, "s"))
    finally:
        power_all(shop, names, "kill")


def _adoptions(
    shop: Workshop, names: Sequence[str], repeat: int, listed_within: Limit | None, answered_within: Limit
) -> Iterator[Figure]:
    def bare() -> tuple[float, float]:
        shop.daemon.signal(signal.SIGKILL)
        asked = clock(_ask_all, shop, names)
        return clock(_import), asked

    def qsup() -> tuple[float, float, float]:
        return (*_adopt(shop, names), shop.cpu_seconds())

    (imported, asked), (listed, answered, used) = in_turns(repeat, bare, qsup)
    yield Figure(
        name=f"spawn of the daemon to the complete list of {len(names)} VMs",
        unit="s",
        qsup=listed,
        bare=imported,
        reference="importing the daemon",
        limit=listed_within,
    )
    yield Figure(
        name=f"spawn of the daemon to an answer of each of {len(names)} VMs",
        unit="s",
        qsup=answered,
        bare=[a + b for a, b in zip(imported, asked, strict=True)],
        reference="importing, and a bare script",
        limit=answered_within,
    )
    yield Figure(name=f"CPU time of the daemon until then, {len(names)} VMs", unit="s", qsup=used, limit=None)


def _adopt(shop: Workshop, names: Sequence[str]) -> tuple[float, float]:
    """Start a daemon where none is left; the seconds to its list, and to the last answer."""
    if shop.daemon.is_alive():
        shop.daemon.signal(signal.SIGKILL)
    began = time.perf_counter()
    shop.daemon.spawn()
    poll_until(lambda: connects(shop.socket), "the API accepts", seconds=30)
    connection = Kept(shop.socket)
    get = request("GET", f"/v1/instances?limit={MANY}")
    body = connection.exchange(get)
    listed = time.perf_counter() - began
    found = {view["name"]: view["pid"] for view in json.loads(body)["instances"]}
    assert all(found[name] for name in names), "not every VM is listed with its process"
    while b'"unreachable"' in body:
        body = connection.exchange(get)
    answered = time.perf_counter() - began
    connection.close()
    return listed, answered


def _ask_all(shop: Workshop, names: Sequence[str]) -> None:
    """What a script would do: one after the other."""
    for name in names:
        with BareConnection(shop.daemon.run / "instances" / name / "qmp") as monitor:
            monitor.negotiate()
            assert monitor.ask("query-status")["status"] == "running"


def _import() -> None:
    subprocess.run([sys.executable, "-c", IMPORT], check=True, timeout=60)
