"""From the SIGKILL of a QEMU to the event in another process.

Decides: the reference is the end of a bare script's connection to the monitor, and what is compared is the first event
that says that the VM ends and why. The event that its process is gone, and the bare process's own end, are shown beside
it: with KVM the kernel takes its time for that.
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

    def qsup() -> tuple[float, float]:
        power(connection, "vm", "start")
        pid = connection.ask("GET", "/v1/instances/vm")["pid"]

        line = b""

        def listen(*words: bytes) -> None:
            nonlocal line
            while not all(word in line for word in words):
                line = events.read_until(b"\n")

        def kill() -> None:
            kill_process(pid)
            # without KVM the process may be gone as soon as its monitor is: then one event says both
            listen(b'"type":"instance-state"', b'"signal KILL"')

        told = clock(kill)
        return told, told + clock(listen, b'"substate":"crashed"')

    (bare_end, bare_gone), (told, gone) = in_turns(repeat, bare, qsup)
    connection.close()
    events.close()
    yield Figure(
        name="SIGKILL of QEMU to the event `failed` in another process",
        unit="ms",
        qsup=milliseconds(gone),
        bare=milliseconds(bare_gone),
        reference="bare process's end",
        limit=None,
    )
    yield Figure(
        name="SIGKILL of QEMU to the event with its cause in another process",
        unit="ms",
        qsup=milliseconds(told),
        bare=milliseconds(bare_end),
        reference="bare EOF",
        limit=at_most(8, "ms"),
    )
