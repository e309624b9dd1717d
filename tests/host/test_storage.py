"""Opening in a thread: nobody waits for storage longer than he wants to, and nothing that was opened is lost."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import trio

from qsup.host.storage import open_in_thread

DEADLINE = 5.0


async def test_what_is_opened_after_all_is_closed() -> None:
    """The caller is free at once; what the thread opens later is given back, once."""
    asked, answer, closed = threading.Event(), threading.Event(), threading.Event()
    given_back: list[str] = []

    def opening() -> str:
        asked.set()
        assert answer.wait(DEADLINE)
        return "image"

    def close(opened: str) -> None:
        given_back.append(opened)
        closed.set()

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(open_in_thread, opening, close=close))
            await trio.to_thread.run_sync(asked.wait)
            nursery.cancel_scope.cancel()
    assert not given_back
    answer.set()
    assert closed.wait(DEADLINE)
    assert given_back == ["image"]


async def test_the_result_or_the_error_is_the_callers() -> None:
    """Nothing is closed where nobody gave up."""

    def refuse() -> str:
        raise FileNotFoundError("there is none")

    def close(opened: str) -> None:
        raise AssertionError(opened)

    assert await open_in_thread(lambda: "image", close=close) == "image"
    with pytest.raises(FileNotFoundError, match="there is none"):
        await open_in_thread(refuse, close=close)
