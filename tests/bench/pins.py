"""What it costs that threads are where they are to be: at a start, and ever after.

Decides: a start of eight vCPUs is measured with pins and without, in turns; what looking after the threads costs is the
daemon's CPU time with a hundred VMs that are pinned, less that with the same hundred that are not, in turns as well.
Must not: pin to CPUs that are not there: two VMs share what the machine has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from tests.bench.figures import Figure, at_most, milliseconds, plus
from tests.bench.workshop import Workshop, clock, in_turns, power, power_all, unit

VCPUS, CROWD, EACH = 8, 100, 4
#: Seconds: several looks at every VM; and how often with pins and without.
WATCHED, TURNS = 30.0, 3


def measure(shop: Workshop, repeat: int) -> Iterator[Figure]:
    """Starts, then a crowd."""
    yield _start(shop, repeat)
    yield from _care(shop)


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


def _care(shop: Workshop) -> Iterator[Figure]:
    names = [f"vm-{number:03}" for number in range(CROWD)]
    for name in names:
        _add(shop, name, f"vcpus = {EACH}")
    power_all(shop, names, "start")
    cpus = sorted(os.sched_getaffinity(0))
    sets = [str(cpus[number % len(cpus)]) for number in range(EACH)]
    free, pinned = [], []
    for _ in range(TURNS):
        free.append(_idle(shop))
        _pin(shop, names, sets)
        pinned.append(_idle(shop))
        _pin(shop, names, [])
    yield Figure(name=f"CPU, {CROWD} idle VMs of {EACH} vCPUs", unit="% of a core", qsup=free, limit=None)
    yield Figure(
        name=f"CPU for the pins of {CROWD} VMs of {EACH} vCPUs",
        unit="% of a core",
        qsup=[with_pins - without for with_pins, without in zip(pinned, free, strict=True)],
        limit=at_most(0.1, "%"),
    )


def _pin(shop: Workshop, names: list[str], sets: list[str]) -> None:
    connection = shop.connect()
    for name in names:
        body = {"changes": {"cpu": {"pin": sets}}}
        operation = connection.ask("PATCH", f"/v1/instances/{name}?wait=30&persist=0", body)
        assert operation["state"] == "succeeded", operation
    connection.close()


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
