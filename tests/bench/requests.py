"""Requests on a kept connection.

Decides: reads are compared with a canned responder on the same libraries, raw QMP with a bare script's own command.
Must not: measure a client; the bytes are prepared.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.figures import Figure, milliseconds, plus, times
from tests.bench.kept import Kept, connects, request
from tests.bench.twin import Twin
from tests.bench.workshop import Workshop, clock, in_turns, power
from tests.waiting import poll_until

BATCH = 25


def measure(shop: Workshop, repeat: int) -> Iterator[Figure]:
    """Ask for one running VM, and ask its QEMU."""
    shop.add("vm")
    connection = shop.connect()
    power(connection, "vm", "start")
    yield _read(shop, connection, BATCH * repeat)
    yield _command(shop, connection, BATCH * repeat)
    connection.close()


def _read(shop: Workshop, connection: Kept, count: int) -> Figure:
    get = request("GET", "/v1/instances/vm")
    with _canned(shop.directory, connection.exchange(get)) as canned:
        (reference,), (ours,) = in_turns(
            count,
            lambda: (clock(canned.exchange, get),),
            lambda: (clock(connection.exchange, get),),
            batch=BATCH,
        )
    return Figure(
        name="`GET /v1/instances/{i}`, kept connection",
        unit="ms",
        qsup=milliseconds(ours),
        bare=milliseconds(reference),
        reference="canned h11 on trio",
        limit=times(1.3),
    )


@contextmanager
def _canned(directory: Path, body: bytes) -> Iterator[Kept]:
    file, path = directory / "body", directory / "canned"
    file.write_bytes(body)
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.canned", str(path), str(file)])
    try:
        poll_until(lambda: connects(path), "the canned responder answers", seconds=20)
        connection = Kept(path)
        assert connection.exchange(request("GET", "/")) == body
        yield connection
        connection.close()
    finally:
        process.kill()
        process.wait()


def _command(shop: Workshop, connection: Kept, count: int) -> Figure:
    ask = request("POST", "/v1/instances/vm/qmp", {"execute": "query-status"})
    twin = Twin(shop.argv("vm"), shop.directory)
    twin.start()
    assert twin.monitor is not None
    monitor = twin.monitor
    try:
        (bare,), (ours,) = in_turns(
            count,
            lambda: (clock(monitor.ask, "query-status"),),
            lambda: (clock(connection.exchange, ask),),
            batch=BATCH,
        )
    finally:
        twin.quit()
    return Figure(
        name="raw QMP through the API",
        unit="ms",
        qsup=milliseconds(ours),
        bare=milliseconds(bare),
        reference="bare round trip",
        limit=plus(0.2, "ms"),
    )
