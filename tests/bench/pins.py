"""What it costs that threads are where they are to be: at a start, and ever after.

Decides: a start of eight vCPUs is measured with pins and without, in turns; what looking after the threads costs is the
daemon's CPU time with a hundred VMs that are pinned, less that with the same hundred before.
Must not: pin to CPUs that are not there: two VMs share what the machine has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from tests.bench.figures import Figure, at_most, milliseconds, plus
from tests.bench.workshop import Workshop, clock, in_turns, power, power_all, unit

VCPUS, CROWD, EACH = 8, 100, 4
#: Seconds: several looks at every VM.
WATCHED = 30.0


def measure(shop: Workshop, repeat: int) -> Iterator[Figure]:
    """Starts, then a crowd."""
    yield _start(shop, repeat)
    yield _care(shop)


def _start(shop: Workshop, repeat: int) -> Figure:
    cpus = sorted(os.sched_getaffinity(0))
    sets = ", ".join(f'"{cpus[number % len(cpus)]}"' for number in range(VCPUS))
    _add(shop, "free", f"vcpus = {VCPUS}")
    _add(shop, "pinned", f"vcpus = {VCPUS}\npin = [{sets}]")
    connection = shop.connect()

    def start(name: str) -> tuple[float]:
        seconds = clock(power, connection, name, "start")
        power(connection, name, "stop")
        return (seconds,)

    (free,), (pinned,) = in_turns(repeat, lambda: start("free"), lambda: start("pinned"))
    connection.close()
    return Figure(
        name=f"start to `running`, {VCPUS} vCPUs pinned",
        unit="ms",
        qsup=milliseconds(pinned),
        bare=milliseconds(free),
        reference="qsup, not pinned",
        limit=plus(3, "ms"),
    )


def _care(shop: Workshop) -> Figure:
    names = [f"vm-{number:03}" for number in range(CROWD)]
    for name in names:
        _add(shop, name, f"vcpus = {EACH}")
    power_all(shop, names, "start")
    before = _idle(shop)
    connection = shop.connect()
    cpus = sorted(os.sched_getaffinity(0))
    sets = [str(cpus[number % len(cpus)]) for number in range(EACH)]
    for name in names:
        body = {"changes": {"cpu": {"pin": sets}}}
        operation = connection.ask("PATCH", f"/v1/instances/{name}?wait=30&persist=0", body)
        assert operation["state"] == "succeeded", operation
    connection.close()
    share = _idle(shop) - before
    return Figure(
        name=f"CPU for the pins of {CROWD} VMs of {EACH} vCPUs",
        unit="% of a core",
        qsup=[share],
        limit=at_most(0.1, "%"),
    )


def _idle(shop: Workshop) -> float:
    """Percent of a core that the daemon takes while nobody asks anything."""
    time.sleep(WATCHED / 2)  # worker threads end
    began, before = time.monotonic(), shop.cpu_seconds()
    time.sleep(WATCHED)
    return 100 * (shop.cpu_seconds() - before) / (time.monotonic() - began)


def _add(shop: Workshop, name: str, cpu: str) -> None:
    """A VM of the ROM guest with these keys of ``[cpu]``."""
    text = unit()
    text = text.replace("[cpu]\n", f"[cpu]\n{cpu}\n") if "[cpu]" in text else f"{text}[cpu]\n{cpu}\n"
    (shop.daemon.units / f"{name}.toml").write_text(text)
    shop.daemon.post("/v1/reload")
