"""The HTTP kernel's bounds: times, sizes, connections, the drain. Times are virtual."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from qsup.api.connection import Connection, Service
from qsup.api.http import Answer, Limits, Request, Response, serve
from qsup.api.peer import Peer, peer_of
from qsup.api.transport import Transport
from qsup.errors import HostError
from tests.api.serving import Client, Served, echo_body, request, routes, serving


async def seconds_until_closed(client: Client) -> float:
    """How long the server takes to close, without a further word."""
    begin = trio.current_time()
    assert await client.closed() == b""
    return trio.current_time() - begin


async def test_silent_connection_ends_after_the_idle_timeout(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A connection without a request is closed after 60 s, without a word; a later one later."""
    async with serving(tmp_path, routes()) as served:
        first = await served.connect()
        await trio.sleep(20)  # virtual time
        second = await served.connect()
        await second.get("/health")
        assert await seconds_until_closed(first) == pytest.approx(40)
        assert await seconds_until_closed(second) == pytest.approx(20)


async def test_slow_header_is_refused(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A header that trickles in is given up 5 s after its first byte: 408, closed."""
    async with serving(tmp_path, routes()) as served:
        client = await served.connect()
        await trio.sleep(30)  # virtual time
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle, client, b"GET /health HTTP/1.1\r\n" + b"X-A: b\r\n" * 100)
            reply = await client.reply()
            took = trio.current_time() - begin
            assert await client.closed() == b""
            nursery.cancel_scope.cancel()
    assert (reply.status, reply.code, reply.headers["connection"]) == (408, "request-timeout", "close")
    assert took == pytest.approx(5, abs=1)


async def trickle(client: Client, data: bytes) -> None:
    """Send byte after byte, each a second after the last, until nobody takes them."""
    for byte in data:
        try:
            await client.stream.send_all(bytes([byte]))
        except trio.BrokenResourceError:
            return
        await trio.sleep(1)  # virtual time


async def test_slow_body_is_refused(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A body that trickles in is given up after 10 s: 408, closed."""
    async with serving(tmp_path, routes(echo=echo_body)) as served:
        client = await served.connect()
        await client.send(request("POST /echo", "Content-Length: 1000"))
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle, client, b"x" * 1000)
            reply = await client.reply("POST")
            assert await client.closed() == b""
            took = trio.current_time() - begin
            nursery.cancel_scope.cancel()
    assert (reply.status, reply.code, reply.headers["connection"]) == (408, "request-timeout", "close")
    assert took == pytest.approx(10, abs=1)


async def test_unread_body_is_awaited_no_longer_than_a_read_one(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The rest of a body that nobody asked for has 10 s to come as well."""
    async with serving(tmp_path, routes()) as served:
        client = await served.connect()
        await client.send(request("POST /nowhere", "Content-Length: 1000"))
        assert (await client.reply("POST")).status == 404
        assert await seconds_until_closed(client) == pytest.approx(10)


async def test_handlers_have_no_deadline(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A handler may take longer than any of the connection's timeouts."""

    async def slow(request: Request) -> Answer:
        await trio.sleep(90)  # virtual time
        return Response(body=b"done")

    async with serving(tmp_path, routes(slow=slow)) as served:
        assert (await (await served.connect()).get("/slow")).body == b"done"


async def test_declared_body_beyond_the_bound_is_refused_unread(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A Content-Length above 1 MiB is answered with 413 before a byte of it came."""
    async with serving(tmp_path, routes(echo=echo_body)) as served:
        client = await served.connect()
        await client.send(request("POST /echo", f"Content-Length: {(1 << 20) + 1}"))
        reply = await client.reply("POST")
    assert (reply.status, reply.code, reply.json()["limit"]) == (413, "payload-too-large", 1 << 20)


async def test_body_at_the_bound_is_taken(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A body of exactly 1 MiB is read, sent whole or in chunks, and answered."""
    body = b"x" * (1 << 20)
    async with serving(tmp_path, routes(echo=echo_body)) as served:
        client = await served.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, request("POST /echo", body=body))
            assert (await client.reply("POST")).body == body
            nursery.start_soon(client.send, request("POST /echo", "Transfer-Encoding: chunked") + chunked(body))
            assert (await client.reply("POST")).body == body


def chunked(body: bytes) -> bytes:
    """One chunk and the end."""
    return f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"


async def test_undeclared_body_beyond_the_bound_is_refused(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A chunked body is cut off once it passes 1 MiB."""
    async with serving(tmp_path, routes(echo=echo_body)) as served:
        client = await served.connect()
        async with trio.open_nursery() as nursery:
            body = b"x" * ((1 << 20) + 1)
            nursery.start_soon(client.send, request("POST /echo", "Transfer-Encoding: chunked") + chunked(body))
            reply = await client.reply("POST")
            assert await client.closed() == b""
    assert (reply.status, reply.headers["connection"]) == (413, "close")


async def test_body_in_too_many_pieces_is_refused(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A body in chunks of a byte is cut off before its size is reached: each costs as much as a large one."""
    async with serving(tmp_path, routes(echo=echo_body)) as served:
        client = await served.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, request("POST /echo", "Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 16385)
            assert (await client.reply("POST")).status == 413
            assert await client.closed() == b""


async def test_oldest_idle_connection_makes_room(tmp_path: Path, autojump_clock: MockClock) -> None:
    """At the bound of a user, the connection that is idle longest is closed for a new one; one at work never is."""
    gate = trio.Event()

    async def slow(request: Request) -> Answer:
        await gate.wait()
        return Response(body=b"done")

    async with serving(tmp_path, routes(slow=slow), connections_per_uid=3) as served:
        busy, oldest, youngest = [await served.connect() for _ in range(3)]
        await busy.send(request("GET /slow"))
        await oldest.get("/health")
        await trio.sleep(1)  # virtual time
        await youngest.get("/health")
        newcomer = await served.connect()
        assert (await newcomer.get("/health")).status == 200
        assert await seconds_until_closed(oldest) == 0
        assert (await youngest.get("/health")).status == 200
        gate.set()
        assert (await busy.reply()).body == b"done"


@pytest.mark.parametrize("limits", [{"connections": 2}, {"connections_per_uid": 2}], ids=lambda limits: min(limits))
async def test_newcomer_is_refused_when_all_are_at_work(
    tmp_path: Path, autojump_clock: MockClock, limits: dict[str, Any]
) -> None:
    """With no idle connection left to close, a new one gets 503, and finds room when one of the others ends."""
    gate = trio.Event()

    async def slow(request: Request) -> Answer:
        await gate.wait()
        return Response()

    async with serving(tmp_path, routes(slow=slow), **limits) as served:
        workers = [await served.connect() for _ in range(2)]
        for worker in workers:
            await worker.send(request("GET /slow"))
        await trio.testing.wait_all_tasks_blocked()
        refused = await served.connect()
        reply = await refused.reply()
        assert (reply.status, reply.code) == (503, "overloaded")
        assert await refused.closed() == b""
        gate.set()
        await workers[0].reply()
        assert (await (await served.connect()).get("/health")).status == 200


@pytest.mark.parametrize("limits", [{"connections": 2}, {"connections_per_uid": 2}], ids=lambda limits: min(limits))
async def test_administrators_find_room_beyond_the_bounds(tmp_path: Path, limits: dict[str, Any]) -> None:
    """With all connections at work, one who administers still gets in, as often as is kept for them and no more."""
    administrators: set[int] = set()

    async def slow(request: Request) -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    def administers(peer: Peer) -> bool:
        return peer.uid in administrators

    async def keep_busy(served: Served) -> Client:
        client = await served.connect()
        await client.send(request("GET /slow"))
        await trio.testing.wait_all_tasks_blocked()
        return client

    bounds = {**limits, "connections_for_administrators": 1}
    async with serving(tmp_path, routes(slow=slow), administers=administers, **bounds) as served:
        for _ in range(2):
            await keep_busy(served)
        assert (await (await keep_busy(served)).reply()).status == 503
        administrators.add(os.geteuid())
        administrator = await served.connect()
        assert (await administrator.get("/health")).status == 200
        await administrator.send(request("GET /slow"))
        await trio.testing.wait_all_tasks_blocked()
        assert (await (await keep_busy(served)).reply()).status == 503


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """The lowest limit at which no new descriptor fits, whatever is open above it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as probe:
        lowest_free = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_running_out_of_descriptors_passes(tmp_path: Path, autojump_clock: MockClock) -> None:
    """With no descriptor left, accepting pauses, which is reported once, and goes on when there are some again."""
    async with serving(tmp_path, routes()) as served:
        newcomer = socket.socket(socket.AF_UNIX)
        client = Client(trio.SocketStream(trio.socket.from_stdlib_socket(newcomer)))
        served.clients.append(client)
        with no_descriptor_left():
            newcomer.connect(served.path)
            await trio.sleep(5)  # virtual time
        assert (await client.get("/health")).status == 200
    assert [bug.where for bug in served.bugs] == ["accept"]


async def test_idle_connection_is_given_up_for_its_descriptor(tmp_path: Path, autojump_clock: MockClock) -> None:
    """With no descriptor left, an idle connection is closed for the one that waits."""
    async with serving(tmp_path, routes()) as served:
        idle = await served.connect()
        await idle.get("/health")
        newcomer = socket.socket(socket.AF_UNIX)
        client = Client(trio.SocketStream(trio.socket.from_stdlib_socket(newcomer)))
        served.clients.append(client)
        with no_descriptor_left():
            newcomer.connect(served.path)
            assert await seconds_until_closed(idle) < 1
            assert (await client.get("/health")).status == 200


async def test_broken_listener_is_an_error(tmp_path: Path) -> None:
    """A socket on which nothing can be accepted ends `serve` with an error of the tree."""
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(HostError, match="Invalid argument"):
        sock.bind(str(tmp_path / "api.sock"))
        await serve(sock, routes(), limits=Limits(), authorise=lambda *_: None, on_bug=lambda *_: None)


async def test_evicted_connection_begins_no_request(tmp_path: Path) -> None:
    """A request that arrives while its connection is being evicted is either not begun or carried through."""
    outcomes: list[str] = []

    async def handler(request: Request) -> Answer:
        outcomes.append("begun")
        await trio.lowlevel.checkpoint()
        outcomes.append("finished")
        return Response()

    service = Service(
        router=routes(work=handler),
        limits=Limits(),
        authorise=lambda *_: None,
        on_request=lambda *_: None,
        on_bug=lambda *_: None,
    )

    async def evict_when(alarm: socket.socket, connection: Connection) -> None:
        await trio.lowlevel.wait_readable(alarm)
        if connection.idle_since is not None:
            connection.evict()

    # both sockets become readable at once, and trio runs the two tasks in an order of its own
    for _ in range(50):
        ours, theirs = socket.socketpair()
        bell, alarm = socket.socketpair()
        with theirs, bell, alarm:
            connection = Connection(service, Transport(ours), peer_of(ours))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run)
                nursery.start_soon(evict_when, alarm, connection)
                await trio.testing.wait_all_tasks_blocked()
                theirs.sendall(request("POST /work"))
                bell.sendall(b"x")
                await trio.testing.wait_all_tasks_blocked()
                connection.drain()
    assert outcomes == ["begun", "finished"] * (len(outcomes) // 2)
