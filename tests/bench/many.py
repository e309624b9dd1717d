"""Fifty VMs, started and stopped a few at a time.

Decides: both sides work through them with as many clients as `CONCURRENCY` says.
Must not: leave one of them running.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.figures import Figure, times
from tests.bench.twin import Twin
from tests.bench.workshop import CONCURRENCY, Workshop, clock, in_turns, power, power_all, together

COUNT = 50


def measure(shop: Workshop, repeat: int) -> Iterator[Figure]:
    """Start all, stop all, a tenth as often as what takes milliseconds."""
    names = [f"vm-{number:02}" for number in range(COUNT)]
    shop.add(*names)
    connection = shop.connect()
    power(connection, names[0], "start")
    argv = shop.argv(names[0])
    power(connection, names[0], "stop")
    connection.close()

    def bare() -> tuple[float, float]:
        twins = [Twin(argv, _directory(shop.directory / name)) for name in names]
        return clock(_all, twins, Twin.start), clock(_all, twins, Twin.quit)

    def qsup() -> tuple[float, float]:
        return clock(power_all, shop, names, "start"), clock(power_all, shop, names, "stop")

    (bare_start, bare_stop), (start, stop) = in_turns(max(1, repeat // 10), bare, qsup)
    yield Figure(
        name=f"{COUNT} VMs started, {CONCURRENCY} at a time",
        unit="s",
        qsup=start,
        bare=bare_start,
        reference="bare script",
        limit=times(1.3),
    )
    yield Figure(
        name=f"{COUNT} VMs stopped, {CONCURRENCY} at a time",
        unit="s",
        qsup=stop,
        bare=bare_stop,
        reference="bare script",
        limit=times(1.75),
    )


def _directory(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _all(twins: Sequence[Twin], verb: object) -> None:
    def work(share: Sequence[Twin]) -> None:
        for twin in share:
            assert callable(verb)
            verb(twin)

    together(work, [twins[number::CONCURRENCY] for number in range(CONCURRENCY)])
