"""Pace: what is within the allowance is free, what is beyond waits."""

from __future__ import annotations

import trio
import trio.testing

from qsup.pace import Pace


async def test_a_burst_is_free_and_the_rest_comes_at_the_rate(autojump_clock: trio.testing.MockClock) -> None:
    """Ten a second with a burst of five: five at once, then one every tenth of a second, however long it goes on."""
    pace = Pace(rate=10, burst=5)
    began = trio.current_time()
    for _ in range(5):
        await pace.spend(1)
    assert trio.current_time() == began
    for _ in range(1000):
        await pace.spend(1)
    assert round(trio.current_time() - began, 6) == 100


async def test_a_rest_restores_the_burst_and_no_more(autojump_clock: trio.testing.MockClock) -> None:
    """An allowance that was not used is not saved up."""
    pace = Pace(rate=10, burst=5)
    await pace.spend(5)
    await trio.sleep(1000)  # virtual time
    began = trio.current_time()
    await pace.spend(6)
    assert round(trio.current_time() - began, 6) == 0.1
