"""From the SIGKILL of a QEMU to the event in another process.

Decides: the reference is the end of a bare script's connection to the monitor. How much later the process itself is
gone is shown beside it: with KVM the kernel takes its time, and qsup tells the end of a process, not of a connection.
Must not: count the time that anybody needs to clean up.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.figures import Figure, at_most, milliseconds
from tests.bench.kept import request
from tests.bench.twin import Twin
from tests.bench.workshop import Workshop, clock, in_turns, power
from tests.real.daemons import kill_process


def measure(shop: Workshop, repeat: int) -> Iterator[Figure]:
    """Kill one VM's QEMU again and again, and listen."""
    shop.add("vm")
    connection, events = shop.connect(), shop.connect()
    power(connection, "vm", "start")
    argv = shop.argv("vm")
    power(connection, "vm", "stop")
    events.send(request("GET", "/v1/events"))
    events.read_until(b"\r\n\r\n")

    def bare() -> tuple[float, float]:
        twin = Twin(argv, shop.directory)
        twin.start()
        end = clock(twin.kill)
        return end, end + clock(twin.reap)

    def qsup() -> tuple[float]:
        power(connection, "vm", "start")
        pid = connection.ask("GET", "/v1/instances/vm")["pid"]

        def kill() -> None:
            kill_process(pid)
            events.read_until(b'"substate":"crashed"')

        return (clock(kill),)

    (bare_end, bare_gone), (event,) = in_turns(repeat, bare, qsup)
    connection.close()
    events.close()
    yield Figure(
        name="SIGKILL of a bare QEMU to its process's end",
        unit="ms",
        qsup=milliseconds(bare_gone),
        bare=milliseconds(bare_end),
        reference="bare EOF",
        limit=None,
    )
    yield Figure(
        name="SIGKILL of QEMU to the event in another process",
        unit="ms",
        qsup=milliseconds(event),
        bare=milliseconds(bare_end),
        reference="bare EOF",
        limit=at_most(8, "ms"),
    )
