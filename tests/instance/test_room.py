"""Looking for room: which disks are believed to want it, when a guest may go on, and whom that delays."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from qsup.host.storage import free_space
from qsup.instance import room
from qsup.instance.cause import CauseKind
from qsup.instance.life import Life
from qsup.instance.messages import Happened, Message
from qsup.instance.room import Tries, Trouble, Watch, cause_of
from qsup.instance.state import Event
from tests.instance.test_watch import serve
from tests.qmp.support import by_hand

FULL = Trouble(disk="root", path="web.img", nospace=True)
BROKEN = Trouble(disk="data", path="data.img", nospace=False)
LIFE = cast(
    Life,
    SimpleNamespace(
        number=1,
        record=SimpleNamespace(name="web"),
        summary=SimpleNamespace(
            disks=(
                SimpleNamespace(id="root", node="disk-root", path="web.img"),
                SimpleNamespace(id="thin", node="disk-thin", path="/dev/vg0/thin"),
                SimpleNamespace(id="empty", node="", path=""),
            )
        ),
    ),
)


def block(node: str, status: str) -> dict[str, Any]:
    """One drive as ``query-block`` has it."""
    return {"device": "", "qdev": "/machine/x", "io-status": status, "inserted": {"node-name": node, "drv": "raw"}}


def test_the_worst_error_gives_the_cause() -> None:
    """One that no room mends comes first, and the guest does not go on by itself; nothing known is said to be so."""
    cause = cause_of([FULL, BROKEN])
    assert (cause.kind, cause.disk, cause.nospace) == (CauseKind.IO_ERROR, "data", False)
    assert cause.detail == "disk data: I/O error; disk root: No space left on device"
    assert (cause_of([FULL]).disk, cause_of([FULL]).nospace) == ("root", True)
    assert (cause_of([]).disk, cause_of([]).nospace) == ("", False)


def test_tries_are_ever_more_seldom_until_one_does_well() -> None:
    """At once, then 1, 2, 4... and never more than 60 seconds apart; a guest that ran for a minute begins anew."""
    tries, now, waits = Tries(), 1000.0, []
    for _ in range(9):
        waits.append(tries.next_delay(now))
        now += waits[-1] + 0.5
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert tries.next_delay(now + 61) == 0.0


async def watch(
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    blocks: list[dict[str, Any] | None],
    free: Callable[[Path], int],
) -> tuple[list[Message], trio.CancelScope]:
    """Watch a VM whose QEMU answers so, and whose file systems have so much room; what is posted."""

    async def asked(path: Path, *, limiter: trio.CapacityLimiter) -> int:
        await trio.lowlevel.checkpoint()
        return free(path)

    monkeypatch.setattr(room, "free_space", asked)
    posted: list[Message] = []
    scope = trio.CancelScope()
    inner = await nursery.start(_watch, scope, blocks, posted)
    assert inner
    return posted, scope


async def _watch(
    scope: trio.CancelScope,
    blocks: list[dict[str, Any] | None],
    posted: list[Message],
    task_status: trio.TaskStatus[bool],
) -> None:
    with scope:
        async with trio.open_nursery() as nursery, by_hand(nursery) as (monitor, peer):
            nursery.start_soon(partial(serve, peer, {"query-block": blocks}))
            task_status.started(True)
            await Watch("web", Path("/pool")).run(LIFE, monitor, posted.append)
            nursery.cancel_scope.cancel()


def events(posted: list[Message]) -> list[Event]:
    """What was posted."""
    return [message.event for message in posted if isinstance(message, Happened)]


async def test_a_guest_may_go_on_when_there_is_more_room_than_there_was(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cause first, in full; then nothing while nothing changes; then the room, and again while it stays paused."""
    left = {Path("/pool/web.img"): 4096}
    posted, scope = await watch(
        nursery, monkeypatch, [None, {"return": [block("disk-root", "nospace")]}], left.__getitem__
    )
    await trio.sleep(40)  # virtual time
    assert events(posted) == [Event.GUEST_IO_ERROR]
    left[Path("/pool/web.img")] += 4096
    await trio.sleep(2 * room.INTERVAL)  # virtual time
    assert events(posted) == [Event.GUEST_IO_ERROR, Event.ROOM_AGAIN]
    left[Path("/pool/web.img")] = room.ENOUGH
    await trio.sleep(30)  # virtual time
    assert events(posted).count(Event.ROOM_AGAIN) >= 2
    scope.cancel()


async def test_a_guest_is_tried_after_a_minute_whatever_is_seen(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room that was made before the first look, and is little, shows in no change."""
    posted, scope = await watch(nursery, monkeypatch, [{"return": [block("disk-root", "nospace")]}], lambda _path: 4096)
    await trio.sleep(50)  # virtual time
    assert Event.ROOM_AGAIN not in events(posted)
    await trio.sleep(20)  # virtual time
    assert Event.ROOM_AGAIN in events(posted)
    scope.cancel()


@pytest.mark.parametrize(
    "blocks",
    [
        [block("disk-root", "nospace"), block("disk-other", "failed")],
        [block("disk-root", "failed")],
        [block("disk-thin", "nospace")],
        [block("of-extra-args", "nospace")],
        [block("disk-root", "ok")],
    ],
    ids=["one-is-broken", "broken", "no-file-system", "unknown", "none"],
)
async def test_whom_no_room_helps_is_left_alone(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    blocks: list[dict[str, Any]],
) -> None:
    """A broken disk, a thin volume, or one that nobody knows: whoever mends it says `resume`."""
    posted, scope = await watch(nursery, monkeypatch, [{"return": blocks}], lambda _path: 1 << 30)
    await trio.sleep(120)  # virtual time
    assert events(posted) == [Event.GUEST_IO_ERROR]
    assert not scope.cancel_called


async def test_a_file_system_that_cannot_be_asked_is_asked_again(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is no room, and not the end of looking for it."""
    answers = [OSError(5, "oh"), OSError(5, "oh")]

    def free(_path: Path) -> int:
        if answers:
            raise answers.pop()
        return room.ENOUGH

    posted, scope = await watch(nursery, monkeypatch, [{"return": [block("disk-root", "nospace")]}], free)
    await trio.sleep(5 * room.INTERVAL)  # virtual time
    assert Event.ROOM_AGAIN in events(posted)
    scope.cancel()


async def test_storage_that_hangs_keeps_one_thread_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for it is free at once when he gives up; the next one of this VM waits for the same thread."""
    asked, answer = threading.Event(), threading.Event()
    real = os.statvfs
    calls: list[Path] = []

    def statvfs(path: Path) -> os.statvfs_result:
        calls.append(path)
        asked.set()
        assert answer.wait(5)
        return real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    limiter = trio.CapacityLimiter(1)
    with trio.fail_after(5):
        for _ in range(3):
            with trio.move_on_after(0.05) as scope:
                await free_space(Path("/"), limiter=limiter)
            assert scope.cancelled_caught
        assert len(calls) == 1
        answer.set()
        assert await free_space(Path("/"), limiter=limiter) > 0
        assert await free_space(Path("/no such file"), limiter=limiter) > 0
