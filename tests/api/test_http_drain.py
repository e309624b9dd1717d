"""Clients of the HTTP kernel that do not read, and the drain that they cannot hold up. Times are virtual."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from qsup.api.http import Answer, Request, Response, StreamResponse
from tests.api.serving import Served, request, routes, serving


async def test_peer_that_never_reads_is_given_up(tmp_path: Path, autojump_clock: MockClock) -> None:
    """An answer that a client does not take ends its connection after 10 s."""

    async def large(request: Request) -> Answer:
        return Response(body=b"x" * (8 << 20))

    async with serving(tmp_path, routes(large=large)) as served:
        client = await served.connect()
        await client.send(request("GET /large"))
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(10.1)  # virtual time
        assert len(await client.closed()) < 8 << 20


class Flood:
    """An endless stream as fast as it is taken; `ended` is set when its iterator is closed."""

    def __init__(self) -> None:
        self.ended = trio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The stream."""
        try:
            while True:
                yield b"x" * 65536
        finally:
            self.ended.set()

    async def handler(self, request: Request) -> Answer:
        """Answer with it."""
        return StreamResponse(chunks=self.chunks())


async def test_subscriber_that_never_reads_is_given_up(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A stream whose client takes nothing more ends 10 s after the first chunk that does not fit."""
    flood = Flood()
    async with serving(tmp_path, routes(flood=flood.handler)) as served:
        client = await served.connect()
        await client.send(request("GET /flood"))
        begin = trio.current_time()
        with trio.fail_after(60):
            await flood.ended.wait()
        assert trio.current_time() - begin == pytest.approx(10)


async def drained(served: Served) -> float:
    """Begin the drain; how long it takes."""
    begin = trio.current_time()
    served.scope.cancel()
    with trio.fail_after(60):
        await served.ended.wait()
    return trio.current_time() - begin


async def test_drain_of_idle_connections_takes_no_time(tmp_path: Path, autojump_clock: MockClock) -> None:
    """At shutdown idle connections are closed at once, and nobody can connect any more."""
    async with serving(tmp_path, routes()) as served:
        clients = [await served.connect() for _ in range(5)]
        await clients[0].get("/health")
        await clients[1].send(b"GET /hea")
        await trio.testing.wait_all_tasks_blocked()
        assert await drained(served) == 0
        assert [await client.closed() for client in clients] == [b""] * 5
        with pytest.raises(ConnectionRefusedError):
            await served.connect()


async def test_drain_lets_running_requests_finish(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A request that ends within 2 s is answered at shutdown, and told that the connection closes."""

    async def slow(request: Request) -> Answer:
        await trio.sleep(1.5)  # virtual time
        return Response(body=b"done")

    async with serving(tmp_path, routes(slow=slow)) as served:
        client = await served.connect()
        await client.send(request("GET /slow"))
        await trio.testing.wait_all_tasks_blocked()
        assert await drained(served) == pytest.approx(1.5)
        reply = await client.reply()
    assert (reply.body, reply.headers["connection"]) == (b"done", "close")


async def test_drain_is_bounded(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Handlers that do not end and clients that do not read cannot hold the shutdown longer than 2 s."""

    async def stuck(request: Request) -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    async def large(request: Request) -> Answer:
        return Response(body=b"x" * (8 << 20))

    async with serving(tmp_path, routes(stuck=stuck, large=large, flood=Flood().handler)) as served:
        for target in ("GET /stuck", "GET /large", "GET /flood"):
            client = await served.connect()
            await client.send(request(target))
        await trio.testing.wait_all_tasks_blocked()
        assert await drained(served) == pytest.approx(2)


async def test_stream_that_begins_during_the_drain_ends_at_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A handler that answers with a stream while the server drains does not hold it up."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await trio.sleep_forever()

    async def slow(request: Request) -> Answer:
        await trio.sleep(1)  # virtual time
        return StreamResponse(chunks=chunks())

    async with serving(tmp_path, routes(slow=slow)) as served:
        client = await served.connect()
        await client.send(request("GET /slow"))
        await trio.testing.wait_all_tasks_blocked()
        assert await drained(served) == pytest.approx(1)
        assert (await client.reply()).headers["connection"] == "close"


async def test_chunk_cut_short_by_the_drain_is_not_followed_by_an_end(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A stream that is cut within a chunk stays visibly incomplete."""
    async with serving(tmp_path, routes(flood=Flood().handler)) as served:
        client = await served.connect()
        await client.send(request("GET /flood"))
        await trio.testing.wait_all_tasks_blocked()
        served.scope.cancel()
        assert not (await client.closed()).endswith(b"\r\n")


async def test_drain_ends_streams_in_good_order(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A stream whose client reads gets its final chunk at shutdown, at once."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await trio.sleep_forever()

    async def stream(request: Request) -> Answer:
        return StreamResponse(chunks=chunks())

    async with serving(tmp_path, routes(stream=stream)) as served:
        client = await served.connect()
        await client.send(request("GET /stream"))
        await trio.testing.wait_all_tasks_blocked()
        assert await drained(served) == 0
        assert (await client.reply()).body == b"first"
