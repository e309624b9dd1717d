"""The HTTP kernel in a process that runs out of descriptors or memory: who goes, and when. Times are virtual."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import trio
from attrs import field, frozen
from trio.testing import MockClock

from qsup.api.http import Answer, Pressure, Request, StreamResponse
from tests.api.serving import Client, healthy, request, routes, serving


@frozen(kw_only=True)
class Shortage:
    """What the process is short of, as the test says it, and what was told of that."""

    of: set[str] = field(factory=set)
    told: list[tuple[str, int]] = field(factory=list)

    def pressure(self) -> Pressure:
        """For the server."""
        return Pressure(
            descriptors_left=lambda: "descriptors" not in self.of,
            memory_short=lambda: "memory" in self.of,
            on_shed=lambda what, count: self.told.append((what, count)),
        )


async def _ticks(size: int) -> AsyncIterator[bytes]:
    """A piece now and then, without end."""
    while True:
        yield b"x" * size
        await trio.sleep(1)  # virtual time


async def ticks(request: Request) -> Answer:
    """An endless answer of little pieces."""
    return StreamResponse(chunks=_ticks(10))


async def flood(request: Request) -> Answer:
    """An endless answer that soon is more than a client has read."""
    return StreamResponse(chunks=_ticks(100_000))


async def slow(request: Request) -> Answer:
    """An ordinary answer that takes its time."""
    await trio.sleep(5)  # virtual time
    return await healthy(request)


ROUTES = routes(ticks=ticks, flood=flood, slow=slow)


async def follow(client: Client, path: str) -> None:
    """Ask for an endless answer and read its beginning."""
    await client.send(request(f"GET {path}"))
    assert b"200" in await client.stream.receive_some(64)


async def is_closed(client: Client) -> bool:
    """Whether the server closes it within a few seconds, whatever is still to be read."""
    with trio.move_on_after(3):  # virtual time
        try:
            while await client.stream.receive_some(65536):
                pass  # what was under way
        except trio.BrokenResourceError:
            pass  # closed on what we have not read
        return True
    return False


async def test_descriptors_are_taken_from_the_idle_first(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Each newcomer costs the longest idle one its place; then who follows without end; a request is never ended."""
    shortage = Shortage()
    async with serving(tmp_path, ROUTES, pressure=shortage.pressure()) as served:
        idle, follower, busy = [await served.connect() for _ in range(3)]
        await follow(follower, "/ticks")
        await busy.send(request("GET /slow"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        shortage.of.add("descriptors")
        first = await served.connect()
        await first.send(request("GET /slow"))
        assert await is_closed(idle)
        second = await served.connect()
        await second.send(request("GET /slow"))
        assert await is_closed(follower)
        third = await served.connect()
        refusal = await third.reply()
        assert (refusal.status, "file descriptors" in str(refusal.json())) == (503, True)
        for client in (busy, first, second):
            assert (await client.reply()).status == 200
        shortage.of.clear()
        assert (await (await served.connect()).get("/health")).status == 200
    assert shortage.told == [("file descriptors", 1)] * 3, "who was idle, who followed, and who was not let in"


async def test_memory_is_taken_from_who_costs_most(tmp_path: Path, autojump_clock: MockClock) -> None:
    """While there is too much: the idle ones, and each second half of the endless ones, the mute before the others."""
    shortage = Shortage()
    async with serving(tmp_path, ROUTES, pressure=shortage.pressure()) as served:
        idle, reader, mute, busy = [await served.connect() for _ in range(4)]
        await follow(reader, "/ticks")
        await follow(mute, "/flood")
        await busy.send(request("GET /slow"))
        await trio.sleep(2)  # virtual time
        shortage.of.add("memory")
        assert await is_closed(idle)
        shortage.of.clear()
        assert shortage.told == [("memory", 2)]
        assert await is_closed(mute)
        assert not await is_closed(reader)
        assert (await busy.reply()).status == 200
        shortage.of.add("memory")
        assert await is_closed(reader)


async def test_without_a_shortage_nobody_goes(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Who follows may do so for as long as they like."""
    shortage = Shortage()
    async with serving(tmp_path, ROUTES, pressure=shortage.pressure()) as served:
        follower = await served.connect()
        await follow(follower, "/ticks")
        await trio.sleep(60)  # virtual time
        assert not await is_closed(follower)
    assert shortage.told == []
