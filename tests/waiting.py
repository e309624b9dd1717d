"""Waiting for a named condition: the one place where tests sleep."""

from __future__ import annotations

from collections.abc import Callable

import trio


async def wait_until(condition: Callable[[], object], what: str, *, seconds: float = 5.0) -> None:
    """Return as soon as a condition holds.

    Args:
        condition: called again and again; any true value will do.
        what: names it in the failure.
        seconds: real time it may take.
    """
    with trio.move_on_after(seconds):
        while not condition():
            await trio.sleep(0.002)
        return
    raise AssertionError(f"not within {seconds:g} s: {what}")
