"""From the SIGKILL of a QEMU to the event in another process.

Decides: the reference is the end of a bare script's connection to the monitor, and what is compared is the first event
that says that the VM ends and why. The event that its process is gone, and the bare process's own end, are shown beside
it: with KVM the kernel takes its time for that. The same is measured of VMs that a daemon before this one started, for
whose end it can only watch.
Must not: count the time that anybody needs to clean up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.bench.figures import Figure, at_most, milliseconds
from tests.bench.kept import Kept, request
from tests.bench.twin import Twin
from tests.bench.workshop import Workshop, clock, in_turns, power, power_all
from tests.real.daemons import kill_process

#: As many VMs run at a time.
ADOPTED = 50


def measure(shop: Workshop, repeat: int) -> Iterator[Figure]:
    """Kill one VM's QEMU again and again, and listen; then as many adopted ones, one after the other."""
    shop.add("vm")
    connection, events = shop.connect(), _listen(shop)
    power(connection, "vm", "start")
    argv = shop.argv("vm")
    power(connection, "vm", "stop")

    def bare() -> tuple[float, float]:
        twin = Twin(argv, shop.directory)
        twin.start()
        end = clock(twin.kill)
        return end, end + clock(twin.reap)

    def qsup() -> tuple[float, float]:
        power(connection, "vm", "start")
        return _kill(connection, events, "vm")

    (bare_end, bare_gone), (told, gone) = in_turns(repeat, bare, qsup)
    connection.close()
    events.close()
    yield _figure("`failed`", gone, bare_gone, "bare process's end", adopted=False)
    yield _figure("with its cause", told, bare_end, "bare EOF", adopted=False)
    told, gone = zip(*_adopted(shop, repeat), strict=True)
    yield _figure("`failed`", gone, bare_gone, "bare process's end", adopted=True)
    yield _figure("with its cause", told, bare_end, "bare EOF", adopted=True)


def _adopted(shop: Workshop, repeat: int) -> Iterator[tuple[float, float]]:
    names = [f"vm-{number:03}" for number in range(min(repeat, ADOPTED))]
    shop.add(*names)
    for _ in range(-(-repeat // ADOPTED)):
        power_all(shop, names, "start")
        shop.daemon.restart()
        connection, events = shop.connect(), _listen(shop)
        for name in names:
            yield _kill(connection, events, name)
        connection.close()
        events.close()


def _listen(shop: Workshop) -> Kept:
    events = shop.connect()
    events.send(request("GET", "/v1/events"))
    events.read_until(b"\r\n\r\n")
    return events


def _kill(connection: Kept, events: Kept, name: str) -> tuple[float, float]:
    """Kill a VM's QEMU: the seconds to the event that names the cause, and to the one that the VM has failed."""
    pid = connection.ask("GET", f"/v1/instances/{name}")["pid"]
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


def _figure(event: str, ours: Sequence[float], bare: Sequence[float], reference: str, *, adopted: bool) -> Figure:
    return Figure(
        name=f"SIGKILL of {'an adopted' if adopted else 'a'} QEMU to the event {event} in another process",
        unit="ms",
        qsup=milliseconds(ours),
        bare=milliseconds(bare),
        reference=reference,
        limit=at_most(8, "ms") if reference == "bare EOF" else None,
    )
