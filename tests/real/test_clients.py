"""A real daemon with a running VM and clients that are careless or hostile: T12 and T13.

Decides: that the whole daemon, all its routes mounted, is as hard as its HTTP kernel is by itself.
Must not: repeat the kernel's own tests; its attacks are borrowed from them.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from qsup.ctl.client import Client as ApiClient
from tests.api.serving import Client, ConnectionEnded, Reply, request
from tests.api.test_abuse import ATTACKS, CPUS, endless, has_hung_up
from tests.faults.trial import Promise
from tests.guests import Emulator
from tests.real.beside import BYSTANDER, MEBIBYTE, bystander, forget_peak, peak
from tests.real.daemons import Daemon, elapsed, rom_unit
from tests.waiting import poll_until, wait_until

pytestmark = [pytest.mark.real, pytest.mark.fault]

#: How much the daemon's peak memory may grow under any of this, in bytes.
GROWTH_MAX = 16 * MEBIBYTE
#: Seconds any one answer may take.
PATIENCE = 20.0
QMP = f"POST /v1/instances/{BYSTANDER}/qmp"


async def connected(daemon: Daemon) -> Client:
    """A raw connection. The socket blocks until it is one: trio takes a full backlog for a success."""
    sock = socket.socket(socket.AF_UNIX)
    await trio.to_thread.run_sync(sock.connect, daemon.address.path)
    return Client(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))


async def attack(daemon: Daemon, pieces: Iterator[bytes], method: str) -> Reply | None:
    """Send pieces until they end or nobody takes them; the answer, ``None`` for a connection closed without one."""
    client = await connected(daemon)
    async with client.stream:
        with trio.fail_after(PATIENCE):
            try:
                for piece in pieces:
                    await client.stream.send_all(piece)
            except trio.BrokenResourceError:
                pass  # closed by the daemon; what it said first can still be read
            try:
                return await client.reply(method)
            except (trio.BrokenResourceError, ConnectionEnded):
                return None


def qmp(arguments: bytes, command: bytes = b"query-status") -> Callable[[], Iterator[bytes]]:
    """A raw QMP command with these arguments, as they are."""
    body = b'{"execute": "' + command + b'", "arguments": ' + arguments + b"}"
    return lambda: iter([request(QMP, "Content-Type: application/json", body=body)])


def unit(text: bytes) -> Callable[[], Iterator[bytes]]:
    """A unit file."""
    return lambda: iter([request("PUT /v1/units/web", "Content-Type: application/toml", body=text)])


WIDE = 1_000_000
INTO_QEMU: dict[str, Callable[[], Iterator[bytes]]] = {
    "arguments that are a list": qmp(b"[1]"),
    "arguments 100,000 deep": qmp(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "arguments 900 deep": qmp(b'{"a":' * 900 + b"1" + b"}" * 900),
    "a lone surrogate": qmp(b'{"a": "\\ud800"}'),
    "a noncharacter": qmp(b'{"a": "\\uffff"}'),
    "NaN": qmp(b'{"a": NaN}'),
    "2^63": qmp(b'{"a": 9223372036854775808}'),
    "-2^63 - 1": qmp(b'{"a": -9223372036854775809}'),
    "a million digits": qmp(b'{"a": ' + b"9" * WIDE + b"}"),
    "a command with a newline": qmp(b"{}", b"query-status\\n{}"),
    "a command of 900 KB": qmp(b"{}", b"q" * 900_000),
    "an unknown command": qmp(b"{}", b"no.such.command"),
    "a negative time": lambda: iter([request(QMP, body=b'{"execute": "query-status", "timeout": -1}')]),
    "an endless time": lambda: iter([request(QMP, body=b'{"execute": "query-status", "timeout": 1e308}')]),
    "time that is text": lambda: iter([request(QMP, body=b'{"execute": "query-status", "timeout": "1"}')]),
}
INTO_UNITS: dict[str, Callable[[], Iterator[bytes]]] = {
    "no TOML": unit(b"\x00\xff" * 1000),
    "arrays 100,000 deep": unit(b"a = " + b"[" * 100_000 + b"]" * 100_000),
    "a key of 100,000 dots": unit(b"a." * 100_000 + b"a = 1"),
    "100,000 tables": unit(b"[[disk]]\n" * 100_000),
    "a number of 500,000 digits": unit(b"[cpu]\nvcpus = " + b"9" * 500_000),
    "beyond a megabyte": unit(b"# " + b"x" * (1 << 20)),
}


async def test_t12_malformed_requests_get_a_problem_or_an_end(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, promise: Promise
) -> None:
    """Bodies, headers, raw QMP, unit files: refused in time, memory hardly grows, and the VM's monitor lives on."""
    attacks = {name: lambda pieces=pieces: _aimed(pieces()) for name, pieces in ATTACKS.items()}
    with bystander(daemon, emulator, rom_guest):
        for _ in range(20):
            daemon.get("/v1/instances")
        before = forget_peak(daemon)
        for name, pieces in (attacks | INTO_QEMU | INTO_UNITS).items():
            began = time.monotonic()
            reply = await attack(daemon, pieces(), "CONNECT" if name == "CONNECT" else "POST")
            promise.kept("an answer or an end", elapsed(began), within=PATIENCE)
            if reply is not None:
                assert reply.status >= 400, (name, reply)
                assert reply.status != 500, (name, reply)
                assert reply.json()["status"] == reply.status, name
        answer = daemon.post(f"/v1/instances/{BYSTANDER}/qmp", {"execute": "query-status"})
        assert answer["result"]["status"] == "running"
        assert daemon.view(BYSTANDER)["substate"] == "running"
        promise.kept("memory grew", (peak(daemon) - before) / MEBIBYTE, within=GROWTH_MAX / MEBIBYTE, unit="MiB")
        assert "request failed by a bug" not in daemon.log()
        assert not (daemon.units / "web.toml").exists()


def _aimed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same at a route of the daemon that reads a body."""
    return (piece.replace(CPUS.encode(), QMP.encode()) for piece in pieces)


async def test_t12_a_console_takes_no_more_than_its_guest(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, promise: Promise
) -> None:
    """Whoever types 20 MB into a guest that reads none is held back or cut off, and memory hardly grows."""
    with bystander(daemon, emulator, rom_guest):
        daemon.unit("web", rom_unit(emulator, rom_guest))
        daemon.do("web", "start")
        daemon.type("web", "H")  # from now on it is deaf
        poll_until(lambda: not daemon.view("web")["console"]["has_writer"], "nobody types", seconds=PATIENCE)
        before = forget_peak(daemon)
        handshake = request(
            "GET /v1/instances/web/console?mode=write",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        frame = b"\x82\xfe\xff\xff" + b"\0\0\0\0" + b"x" * 65535
        client = await connected(daemon)
        async with client.stream:
            await client.stream.send_all(handshake)
            assert b" 101 " in await client.stream.receive_some(65536)
            with trio.move_on_after(3):
                try:
                    for piece in endless(frame, mebibytes=20):
                        await client.stream.send_all(piece)
                except trio.BrokenResourceError:
                    pass  # cut off
        promise.kept("memory grew", (peak(daemon) - before) / MEBIBYTE, within=GROWTH_MAX / MEBIBYTE, unit="MiB")
        assert daemon.do("web", "kill")["substate"] == "dead"


@pytest.mark.slow
@pytest.mark.alone
async def test_t13_idle_connections_and_a_mute_subscriber_harm_nobody(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, promise: Promise
) -> None:
    """200 idle connections, and a subscriber who never reads while events come: evicted; others are served at once."""
    with bystander(daemon, emulator, rom_guest), ExitStack() as clients:
        daemon.unit("web", rom_unit(emulator, rom_guest))
        daemon.do("web", "start")
        before = forget_peak(daemon)
        subscriber = await connected(daemon)
        clients.callback(subscriber.stream.socket.close)
        await subscriber.send(request("GET /v1/events"))
        idle = [await connected(daemon) for _ in range(200)]
        for one in idle:
            clients.callback(one.stream.socket.close)
        with daemon.client() as client:
            # so many that a machine which stands still at times, for others use it, too, is told from a slow daemon
            promise.kept("p99 of the others", slowest_of_99_percent(client, "web", count=2000), within=0.05)
        # the oldest went when the bound of one user was reached
        closed = [await one.closed() for one in idle[:50]]
        assert closed == [b""] * 50
        await wait_until(lambda: has_hung_up(subscriber), "the subscriber is given up", seconds=PATIENCE)
        promise.kept("memory grew", (peak(daemon) - before) / MEBIBYTE, within=GROWTH_MAX / MEBIBYTE, unit="MiB")
        daemon.do("web", "kill")


def slowest_of_99_percent(client: ApiClient, name: str, *, count: int) -> float:
    """The p99 of so many reads, in seconds, while a VM is paused and resumed between them."""
    times = []
    for number in range(count):
        began = time.perf_counter()
        client.get("/v1/instances")
        times.append(time.perf_counter() - began)
        client.post(f"/v1/instances/{name}/qmp", {"execute": "stop" if number % 2 else "cont"})
    return sorted(times)[count * 99 // 100]


CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


@pytest.mark.root
def test_t14_another_user_may_not_even_connect(daemon: Daemon) -> None:
    """Without its group the socket is its owner's alone, whatever directory leads to it."""
    stranger = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")
    told = subprocess.run(
        [*stranger, "/usr/bin/python3", "-c", CONNECT, daemon.address.path],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "PermissionError" in told.stderr
    assert daemon.get("/v1/whoami")["uid"] == 0
