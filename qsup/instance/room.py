"""A guest that QEMU paused for an I/O error: which disks failed and how, and when there is room again.

Decides: which of its disks failed, whether the guest may go on by itself, how often that is looked for and tried.
Must not: let the guest run: an event says that it could, and the table what follows. Storage that does not answer
keeps a thread of its own waiting, one for each VM at most, and nobody else.

A guest goes on by itself after an error of want of room alone, of disks whose files lie in a file system that can be
asked; a thin volume, or a disk that only ``extra-args`` knows, cannot. How each disk is, QEMU knows (``io-status`` of
``query-block``); it forgets that at each ``cont``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import trio
from attrs import frozen

from qsup.errors import MonitorError, MonitorTimeout
from qsup.host.storage import free_space
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.life import Life
from qsup.instance.messages import Happened, Message
from qsup.instance.state import Event
from qsup.plan.blockdev import is_block_device_path
from qsup.qmp import commands
from qsup.qmp.connection import Monitor

_log = structlog.get_logger()

#: Seconds between two looks at the file systems, and that one of them has to answer.
INTERVAL = 1.0
_STATVFS_TIMEOUT = 10.0
_QUERY_TIMEOUT = 10.0
#: Seconds that QEMU has to let the guest run, before it is tried again.
_CONFIRM = 10.0
#: Bytes with which a try is worth it, however much there was when the guest was paused.
ENOUGH = 1 << 20
#: Seconds before a guest goes on that failed again right after it had gone on; each time twice as long.
_DELAY_FIRST, _DELAY_LONGEST = 1.0, 60.0
#: Seconds after which a guest that went on has done well.
_WELL = 60.0
_DISKS_MAX = 8


@frozen(kw_only=True)
class Trouble:
    """A disk that failed.

    Args:
        disk: its id in the unit, or QEMU's name for one that the unit does not have.
        path: of its image as the unit says it, ``""`` where that is not known.
        nospace: for want of room.
    """

    disk: str
    path: str
    nospace: bool


async def look(monitor: Monitor, life: Life) -> tuple[Trouble, ...]:
    """Which disks have failed.

    Raises:
        MonitorError: as QEMU's monitor says.
    """
    disks = {disk.node: disk for disk in life.summary.disks if disk.node}
    found = []
    for block in await commands.query_block(monitor, timeout=_QUERY_TIMEOUT):
        if block.io_status in ("failed", "nospace"):
            disk = disks.get(block.node_name)
            name = disk.id if disk else (block.node_name or block.qdev)[:64]
            path = disk.path if disk else ""
            found.append(Trouble(disk=name, path=path, nospace=block.io_status == "nospace"))
    return tuple(found)


def cause_of(troubles: Sequence[Trouble]) -> Cause:
    """Why the guest stands still, by what `look` found: one failure that is worse than want of room comes first."""
    worst = sorted(troubles, key=lambda trouble: trouble.nospace)
    words = [
        f"disk {trouble.disk}: {'No space left on device' if trouble.nospace else 'I/O error'}"
        for trouble in worst[:_DISKS_MAX]
    ]
    return Cause(
        kind=CauseKind.IO_ERROR,
        detail="; ".join(words) or "QEMU paused it for an I/O error",
        disk=worst[0].disk if worst else "",
        nospace=bool(worst) and worst[0].nospace,
    )


class Tries:
    """When a guest that fails again and again may go on: at once, then after growing delays."""

    def __init__(self) -> None:
        self._last = -math.inf
        self._delay = 0.0

    def next_delay(self, now: float) -> float:
        """Seconds to wait before the next try, which is then taken to be made.

        Args:
            now: monotonic seconds.
        """
        again = now - self._last <= _WELL
        self._delay = min(max(2 * self._delay, _DELAY_FIRST), _DELAY_LONGEST) if again else 0.0
        self._last = now + self._delay
        return self._delay


class Watch:
    """The watch over the room of one VM's disks, over all its lives.

    Args:
        pool: where relative paths of images begin.
    """

    def __init__(self, name: str, pool: Path) -> None:
        self._pool = pool
        self._tries = Tries()
        # storage that hangs keeps this VM's one thread, and the next watch waits for it
        self._limiter = trio.CapacityLimiter(1)
        self._why = ""
        self._log = _log.bind(instance=name)

    async def run(self, life: Life, monitor: Monitor, post: Callable[[Message], None]) -> None:
        """Post what failed, and each time that the guest could go on; returns when it never can by itself."""
        while True:
            try:
                troubles = await look(monitor, life)
            except MonitorTimeout:
                await trio.sleep(INTERVAL)
                continue
            except MonitorError as error:
                self._log.info("which disks failed is not known", why=error.message)
                return
            post(Happened(life=life.number, event=Event.GUEST_IO_ERROR, cause=cause_of(troubles)))
            places = self._places(troubles)
            if not places:
                self._log.info("the guest does not go on by itself", why=cause_of(troubles).detail)
                return
            await self._wait_room(places)
            await trio.sleep(self._tries.next_delay(trio.current_time()))
            self._log.info("there is room again; the guest goes on", disks=[trouble.disk for trouble in troubles])
            post(Happened(life=life.number, event=Event.ROOM_AGAIN))
            await trio.sleep(_CONFIRM)  # mostly, this ends here: it runs

    def _places(self, troubles: Sequence[Trouble]) -> tuple[Path, ...]:
        """The files that want room, none where more is wrong than that."""
        if not all(trouble.nospace and trouble.path and not is_block_device_path(trouble.path) for trouble in troubles):
            return ()
        return tuple(dict.fromkeys(self._pool / trouble.path for trouble in troubles))

    async def _wait_room(self, places: Sequence[Path]) -> None:
        first: dict[Path, int] = {}
        # a little room that was made before the first look shows in no change
        late = trio.current_time() + _DELAY_LONGEST
        while True:
            for place in places:
                count = await self._free(place)
                if count is not None and place not in first:
                    first[place] = count
                    self._log.debug("waiting for room", path=str(place), free=count)
                if count is None or not (count >= ENOUGH or count > first[place] or trio.current_time() >= late):
                    break
            else:
                return
            await trio.sleep(INTERVAL)

    async def _free(self, place: Path) -> int | None:
        """Bytes that QEMU could still write; ``None`` where the file system does not say."""
        why = f"no answer within {_STATVFS_TIMEOUT:g} s"
        with trio.move_on_after(_STATVFS_TIMEOUT):
            try:
                return await free_space(place, limiter=self._limiter)
            except OSError as error:
                why = os.strerror(error.errno or 0)
        if why != self._why:
            self._why = why
            self._log.warning("cannot look for room", path=str(place), why=why)
        return None


async def let_go_on(life: Life, monitor: Monitor) -> None:
    """QMP ``cont``; that the guest runs is told by QEMU's event, and that it does not by the watch, which goes on."""
    try:
        await commands.cont(monitor, timeout=_QUERY_TIMEOUT)
    except MonitorError as error:
        _log.warning("could not let the guest go on", instance=life.record.name, why=error.message)
