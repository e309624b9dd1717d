"""Waiting for a named condition: the one place where tests sleep."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

PAUSE = 0.002


async def wait_until(condition: Callable[[], object], what: str, *, seconds: float = 5.0) -> None:
    """Return as soon as a condition holds.

    Args:
        condition: called again and again; any true value will do.
        what: names it in the failure.
        seconds: real time it may take.
    """
    with trio.move_on_after(seconds):
        while True:
            if condition():
                return
            await trio.sleep(PAUSE)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def came_true(condition: Callable[[], object], *, seconds: float) -> bool:
    """Whether a condition holds within a time, for code that is not async; returns as soon as it does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE)
    return True


def poll_until(condition: Callable[[], object], what: str, *, seconds: float = 5.0) -> None:
    """`wait_until` for tests that are not async."""
    if not came_true(condition, seconds=seconds):
        raise AssertionError(f"not within {seconds:g} s: {what}")
