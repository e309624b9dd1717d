"""Opening, and asking after, what lies on storage that may not answer.

Decides: that only a thread of its own waits for storage, and is left alone when nobody waits for it any more.
Must not: know what is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import trio

T = TypeVar("T")


async def open_in_thread(opening: Callable[[], T], *, close: Callable[[T], None]) -> T:
    """Open something in a thread, which is abandoned when the caller is cancelled.

    Args:
        opening: blocks for as long as the storage likes.
        close: gives back what was opened when nobody is there to take it; called in either thread.

    Raises:
        whatever ``opening`` raises.
    """
    opened: list[T] = []
    given_up = False

    def give_back() -> None:
        with suppress(IndexError):  # the other side was first
            close(opened.pop())

    def work() -> None:
        opened.append(opening())
        if given_up:
            give_back()

    try:
        await trio.to_thread.run_sync(work, abandon_on_cancel=True)
    except trio.Cancelled:
        given_up = True
        give_back()
        raise
    return opened[0]


async def free_space(path: Path, *, limiter: trio.CapacityLimiter) -> int:
    """Bytes that a user without privilege may still write where a file lies, or lay.

    Args:
        limiter: bounds the threads that ask, the abandoned ones among them.

    Raises:
        OSError: the file system does not say.
    """
    return await trio.to_thread.run_sync(_free_space, path, abandon_on_cancel=True, limiter=limiter)


def _free_space(path: Path) -> int:
    try:
        found = os.statvfs(path)
    except FileNotFoundError:  # whoever has it open can write to it all the same
        found = os.statvfs(path.parent)
    return found.f_bavail * found.f_frsize
