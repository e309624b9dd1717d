"""Streams and long polls of the HTTP kernel, and clients that leave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import trio
import trio.testing

from qsup.api.http import Answer, Request, Response, StreamResponse
from qsup.errors import BusyError
from tests.api.serving import request, routes, serving


async def numbers(count: int) -> AsyncIterator[bytes]:
    """So many lines with a number each."""
    for number in range(count):
        yield f"{number}\n".encode()


async def test_stream_is_sent_in_chunks(tmp_path: Path) -> None:
    """A stream's chunks arrive in order, its end is seen, and the connection goes on behind it."""

    async def count(request: Request) -> Answer:
        return StreamResponse(headers={"content-type": "text/plain"}, chunks=numbers(5))

    async with serving(tmp_path, routes(count=count)) as served:
        client = await served.connect()
        reply = await client.get("/count")
        assert (await client.get("/health")).status == 200
    assert reply.headers["transfer-encoding"] == "chunked"
    assert reply.body == b"0\n1\n2\n3\n4\n"


async def test_head_of_a_stream_starts_nothing(tmp_path: Path) -> None:
    """HEAD on a stream is answered without taking anything from its iterator."""
    taken: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        taken.append(1)
        yield b"x"

    async def stream(request: Request) -> Answer:
        return StreamResponse(chunks=chunks())

    async with serving(tmp_path, routes(stream=stream)) as served:
        client = await served.connect()
        await client.send(request("HEAD /stream"))
        assert (await client.reply("HEAD")).body == b""
        assert (await client.get("/health")).status == 200
    assert taken == []


class Endless:
    """A stream that says one thing and then waits for ever; `ended` is set when its iterator is closed."""

    def __init__(self) -> None:
        self.ended = trio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The stream."""
        try:
            yield b"first\n"
            await trio.sleep_forever()
        finally:
            self.ended.set()

    async def handler(self, request: Request) -> Answer:
        """Answer with it."""
        return StreamResponse(chunks=self.chunks())


async def test_client_that_leaves_ends_its_stream(tmp_path: Path) -> None:
    """A subscriber's connection closes: the iterator is cancelled and closed though it had nothing to send."""
    endless = Endless()
    async with serving(tmp_path, routes(endless=endless.handler)) as served:
        client = await served.connect()
        await client.send(request("GET /endless"))
        assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 200")
        await client.stream.aclose()
        with trio.fail_after(5):
            await endless.ended.wait()
    assert served.bugs == []


async def test_half_closed_subscriber_keeps_its_stream(tmp_path: Path) -> None:
    """A subscriber that shut down its sending side still gets what comes later."""
    gate = trio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await gate.wait()
        yield b"second"

    async def stream(request: Request) -> Answer:
        return StreamResponse(chunks=chunks())

    async with serving(tmp_path, routes(stream=stream)) as served:
        client = await served.connect()
        await client.send(request("GET /stream"))
        await client.stream.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        assert (await client.reply()).body == b"firstsecond"


async def test_failing_stream_is_torn(tmp_path: Path) -> None:
    """A bug in the middle of a stream ends the connection without the final chunk, so the client cannot miss it."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        raise ZeroDivisionError

    async def stream(request: Request) -> Answer:
        return StreamResponse(chunks=chunks())

    async with serving(tmp_path, routes(stream=stream)) as served:
        client = await served.connect()
        await client.send(request("GET /stream"))
        assert (await client.closed()).endswith(b"5\r\nfirst\r\n")
    assert [type(bug.error) for bug in served.bugs] == [ZeroDivisionError]


class Slow:
    """A handler that waits for `gate`, bare or only as long as its client does."""

    def __init__(self) -> None:
        self.begun, self.gate, self.ended = trio.Event(), trio.Event(), trio.Event()
        self.outcomes: list[str] = []

    async def wait(self, request: Request) -> Answer:
        """Wait."""
        try:
            self.begun.set()
            await self.gate.wait()
            self.outcomes.append("finished")
        except trio.Cancelled:
            self.outcomes.append("cancelled")
            raise
        finally:
            self.ended.set()
        return Response(body=b"done")

    async def poll(self, request: Request) -> Answer:
        """Wait while the client is there."""
        return await request.while_connected(self.wait, request)


async def test_client_that_leaves_cancels_nothing(tmp_path: Path) -> None:
    """A handler runs to its end although its client is gone."""
    slow = Slow()
    async with serving(tmp_path, routes(slow=slow.wait)) as served:
        client = await served.connect()
        await client.send(request("POST /slow"))
        await slow.begun.wait()
        await client.stream.aclose()
        assert (await (await served.connect()).get("/health")).status == 200
        slow.gate.set()
        await slow.ended.wait()
    assert slow.outcomes == ["finished"]
    assert served.bugs == []


async def test_long_poll_ends_with_its_client(tmp_path: Path) -> None:
    """What a handler does `while_connected` is cancelled when the client closes the connection."""
    slow = Slow()
    async with serving(tmp_path, routes(slow=slow.poll)) as served:
        client = await served.connect()
        await client.send(request("GET /slow"))
        await slow.begun.wait()
        await client.stream.aclose()
        with trio.fail_after(5):
            await slow.ended.wait()
    assert slow.outcomes == ["cancelled"]
    assert served.bugs == []


async def test_long_poll_survives_a_half_close_and_read_ahead(tmp_path: Path) -> None:
    """A long poll is answered to a client that already sent its next request and shut down its sending side."""
    slow = Slow()
    async with serving(tmp_path, routes(slow=slow.poll)) as served:
        client = await served.connect()
        await client.send(request("GET /slow") + request("GET /health"))
        await client.stream.send_eof()
        await slow.begun.wait()
        await trio.testing.wait_all_tasks_blocked()
        slow.gate.set()
        assert (await client.reply()).body == b"done"
        assert (await client.reply()).json() == {"status": "ok"}
        assert await client.closed() == b""


async def test_errors_pass_through_a_long_poll(tmp_path: Path) -> None:
    """An error of what is done `while_connected` is answered as such."""

    async def fails() -> Answer:
        raise BusyError("held")

    async def poll(request: Request) -> Answer:
        return await request.while_connected(fails)

    async with serving(tmp_path, routes(poll=poll)) as served:
        assert (await (await served.connect()).get("/poll")).code == "busy"
