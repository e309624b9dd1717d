"""The ring of events: numbering, overflow, and listeners that cost nothing."""

from __future__ import annotations

import pytest
import trio

from qsup.errors import GoneError
from qsup.instance.events import KEPT, EventRing


def ring_with(count: int) -> EventRing:
    """A ring that has had ``count`` events of type ``tick``."""
    ring = EventRing("life")
    for number in range(count):
        ring.publish("tick", "web", {"number": number})
    return ring


async def test_a_listener_gets_what_comes_after_its_beginning_in_order() -> None:
    """``since`` names the last event that was seen."""
    ring = ring_with(3)
    listener = ring.subscribe(since=1)
    assert [(await anext(listener)).seq for _ in range(2)] == [2, 3]
    ring.publish("tock", None, {})
    with trio.fail_after(1):
        event = await anext(listener)
    assert (event.seq, event.type, event.instance, event.boot_id) == (4, "tock", None, "life")


async def test_without_since_only_what_comes_later_is_told() -> None:
    """A new listener is not flooded with the past."""
    ring = ring_with(5)
    listener = ring.subscribe(since=None)
    ring.publish("tock", None, {})
    assert (await anext(listener)).type == "tock"


async def test_a_waiting_listener_is_woken_by_the_next_event() -> None:
    """Publishing wakes every listener that has read all."""
    ring = ring_with(0)
    got: list[int] = []

    async def listen() -> None:
        async for event in ring.subscribe(since=0):
            got.append(event.seq)
            if event.seq == 2:
                return

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            ring.publish("tick", None, {})
            await trio.testing.wait_all_tasks_blocked()
            ring.publish("tick", None, {})
    assert sorted(got) == [1, 1, 1, 2, 2, 2]


async def test_a_listener_that_is_overtaken_is_told_once_and_ended() -> None:
    """A slow listener gets ``overflow`` with the number of lost events, then the end."""
    ring = ring_with(1)
    listener = ring.subscribe(since=0)
    for number in range(KEPT + 9):
        ring.publish("tick", None, {"number": number})
    event = await anext(listener)
    assert (event.type, event.data) == ("overflow", {"lost": 10})
    with pytest.raises(StopAsyncIteration):
        await anext(listener)


@pytest.mark.parametrize("since", [0, 5, 10**6])
async def test_a_beginning_that_is_not_kept_is_refused_at_once(since: int) -> None:
    """Too old, or from another life of the daemon: the client must read anew."""
    ring = ring_with(KEPT + 10)
    with pytest.raises(GoneError, match="not kept"):
        ring.subscribe(since=since)
