"""Start to running, and stop by quit.

Decides: a start is measured from the request to the answer that the guest runs, a stop to the answer that QEMU is gone.
Must not: compare with a QEMU that has another command line.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.figures import Figure, milliseconds, plus, times
from tests.bench.twin import Twin
from tests.bench.workshop import Workshop, clock, in_turns, power


def measure(shop: Workshop, repeat: int) -> Iterator[Figure]:
    """Start and stop one VM again and again."""
    shop.add("vm")
    connection = shop.connect()
    power(connection, "vm", "start")
    argv = shop.argv("vm")
    power(connection, "vm", "stop")

    def bare() -> tuple[float, float]:
        twin = Twin(argv, shop.directory)
        return clock(twin.start), clock(twin.quit)

    def qsup() -> tuple[float, float]:
        return clock(power, connection, "vm", "start"), clock(power, connection, "vm", "stop")

    (bare_start, bare_stop), (start, stop) = in_turns(repeat, bare, qsup)
    connection.close()
    yield Figure(
        name="start to `running`",
        unit="ms",
        qsup=milliseconds(start),
        bare=milliseconds(bare_start),
        reference="bare script",
        limit=times(1.25),
    )
    yield Figure(
        name="stop by `quit`",
        unit="ms",
        qsup=milliseconds(stop),
        bare=milliseconds(bare_stop),
        reference="bare script",
        limit=plus(10, "ms"),
    )
