"""The inbox of a VM's task: order, and no growth without limit."""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from qsup.instance.inbox import OVERTAKING, Inbox


@given(st.lists(st.tuples(st.integers(), st.booleans()), max_size=OVERTAKING))
def test_urgent_messages_come_first_and_each_kind_in_order(posted: list[tuple[int, bool]]) -> None:
    """What the guest and the process did overtakes what people ask for."""

    async def drain() -> list[tuple[int, bool]]:
        inbox: Inbox[tuple[int, bool]] = Inbox()
        for message in posted:
            inbox.post(message, urgent=message[1])
        return [await inbox.receive() for _ in posted]

    wanted = [m for m in posted if m[1]] + [m for m in posted if not m[1]]
    assert trio.run(drain) == wanted


async def test_a_request_is_overtaken_a_bounded_number_of_times() -> None:
    """Whoever wants to kill a VM that never stops talking gets his turn."""
    inbox: Inbox[str] = Inbox()
    inbox.post("kill")
    for _ in range(OVERTAKING + 1):
        inbox.post("event", urgent=True)
    taken = [await inbox.receive() for _ in range(OVERTAKING + 2)]
    assert taken == ["event"] * OVERTAKING + ["kill", "event"]


async def test_a_producer_can_wait_until_its_messages_are_taken() -> None:
    """A flood of events never lies in the inbox: the next batch waits for the one before it."""
    inbox: Inbox[int] = Inbox()
    longest = 0

    async def produce() -> None:
        for batch in range(50):
            for number in range(10):
                inbox.post(batch * 10 + number, urgent=True)
            await inbox.wait_taken()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        for number in range(500):
            assert await inbox.receive() == number
            longest = max(longest, len(inbox))
    assert longest < 10


async def test_a_receiver_waits_for_the_next_message() -> None:
    """An empty inbox costs nothing and wakes at once."""
    inbox: Inbox[str] = Inbox()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.testing.wait_all_tasks_blocked)
        with trio.fail_after(1):
            nursery.start_soon(_post_later, inbox)
            assert await inbox.receive() == "late"


async def _post_later(inbox: Inbox[str]) -> None:
    await trio.testing.wait_all_tasks_blocked()
    inbox.post("late")
