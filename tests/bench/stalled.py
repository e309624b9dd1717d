"""One of many VMs stands still: what that costs everybody else.

Decides: reads, commands and power verbs of the other VMs, in the same run, in turns: while one QEMU is stopped by a
signal and while none is.
Must not: ask anything of the stopped one but to be listed.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator

from tests.bench.figures import Figure, milliseconds, percentile, times
from tests.bench.kept import Kept, request
from tests.bench.workshop import Workshop, clock, power_all
from tests.real.daemons import signal_process
from tests.waiting import poll_until

COUNT = 50
#: Seconds for a heartbeat to go unanswered.
NAMED = 15.0
BATCH = 40


def measure(shop: Workshop, repeat: int) -> Iterator[Figure]:
    """Stop one of fifty VMs' QEMUs, let it go on, and so on; each time many requests of several kinds."""
    names = [f"vm-{number:02}" for number in range(COUNT)]
    shop.add(*names)
    power_all(shop, names, "start")
    connection = shop.connect()
    stalled, *others = names
    pid = connection.ask("GET", f"/v1/instances/{stalled}")["pid"]
    with_all: dict[str, list[float]] = {}
    without: dict[str, list[float]] = {}
    _ask(connection, others, {})
    for _ in range(max(2, repeat // 10)):
        _ask(connection, others, with_all)
        signal_process(pid, signal.SIGSTOP)
        _ask(connection, others, without)  # before anybody knows
        _wait(connection, stalled, "unresponsive")
        _ask(connection, others, without)
        signal_process(pid, signal.SIGCONT)
        _wait(connection, stalled, "running")
        _ask(connection, others, with_all)
    power_all(shop, names, "kill")
    connection.close()
    for what, samples in without.items():
        yield Figure(
            name=f"{what}, p99, one of {COUNT} stopped by SIGSTOP",
            unit="ms",
            qsup=[percentile(milliseconds(samples), 0.99)],
            bare=[percentile(milliseconds(with_all[what]), 0.99)],
            reference="none stopped",
            limit=times(1.2),
        )


def _wait(connection: Kept, name: str, substate: str) -> None:
    def is_there() -> bool:
        return bool(connection.ask("GET", f"/v1/instances/{name}")["substate"] == substate)

    poll_until(is_there, f"{name} is {substate}", seconds=NAMED)


def _ask(connection: Kept, others: list[str], into: dict[str, list[float]]) -> None:
    """A share of requests of each kind, in turns."""
    command = {"execute": "query-status"}
    # waited for: from the request to QEMU's word that it is so, by way of the journal
    power = (f"/v1/instances/{name}/{verb}?wait=10" for name in itertools.cycle(others) for verb in ("pause", "resume"))
    kinds = {
        "`GET /v1/health`": itertools.repeat(request("GET", "/v1/health")),
        "`GET /v1/instances`": itertools.repeat(request("GET", "/v1/instances")),
        "`GET /v1/instances/{i}`": (request("GET", f"/v1/instances/{name}") for name in itertools.cycle(others)),
        "raw QMP": (request("POST", f"/v1/instances/{name}/qmp", command) for name in itertools.cycle(others)),
        "`pause` and `resume`": (request("POST", target) for target in power),
    }
    for _ in range(BATCH):
        for what, requests in kinds.items():
            for _ in range(10):
                into.setdefault(what, []).append(clock(connection.exchange, next(requests)))
