"""Seeing to it that the threads of all VMs stay where they belong.

Decides: when threads are looked at (soon after a place has changed or a CPU has come or gone, and every few seconds for
as long as anybody has one, or is in a group), and how it is told that somebody had moved one.
Must not: decide where a thread belongs (`qsup.instance.placements`), or how one is put there (`qsup.instance.pinning`,
`qsup.instance.limiting`).

One task does it for all VMs: to wake one for each would take longer than the look at its threads. As long as nobody's
place changes, a look asks the kernel of each thread where it may run, and does nothing else.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import structlog
import trio
from attrs import define

from qsup.errors import HostError
from qsup.host.uevents import cpu_changes
from qsup.instance.limiting import Limiting
from qsup.instance.pinning import Drift, Pinning
from qsup.instance.placements import Placements

_log = structlog.get_logger()

#: Seconds between two looks; what was moved is back within five.
INTERVAL = 4.0
#: Seconds from the word that a CPU came or went to the second look: the kernel lets threads run anywhere then, and does
#: so in a task of its own (cpuset_hotplug_workfn()).
_SETTLED = 0.5
#: VMs that are looked at without letting others run in between: some 10 us each, and three times that after a change.
_AT_ONCE = 20
#: Threads that one event names.
_NAMED = 4

Tell = Callable[[Mapping[str, Any]], None]


@define
class _Watched:
    """One life.

    Args:
        trouble: what was last said of threads that cannot be where they belong.
    """

    pinning: Pinning
    limiting: Limiting
    tell: Tell
    trouble: str = ""


class Reconciler:
    """Puts threads back.

    Args:
        placements: where they belong.
        cpu_changes: comes with each change of the CPUs that are online.
    """

    def __init__(
        self, placements: Placements, *, cpu_changes: Callable[[], AsyncGenerator[None, None]] = cpu_changes
    ) -> None:
        self._placements = placements
        self._cpu_changes = cpu_changes
        self._rest = trio.CancelScope()
        self._settled = -math.inf  # until then the kernel itself may move threads
        self._watched: dict[Pinning, _Watched] = {}
        #: Those that have a place, or are to lose it, and what that was found from.
        self._placed: list[_Watched] = []
        self._found_from: tuple[trio.Event, frozenset[int] | None] | None = None

    def watch(self, pinning: Pinning, limiting: Limiting, tell: Tell) -> None:
        """From now on a life's threads are looked after.

        Args:
            limiting: has them in groups and in a fence, where it does.
            tell: takes what is said of threads that somebody has moved, or that cannot be where they belong.
        """
        self._watched[pinning] = _Watched(pinning, limiting, tell)
        self._found_from = None

    def forget(self, pinning: Pinning) -> None:
        """It has ended."""
        self._watched.pop(pinning, None)

    async def run(self) -> None:
        """Look again and again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await self._look_again(nursery)

    async def _listen(self) -> None:
        """End the rest between two looks when a CPU came or went: without a word the next one finds that."""
        try:
            async with aclosing(self._cpu_changes()) as changes:
                async for _ in changes:
                    self._settled = trio.current_time() + _SETTLED + INTERVAL / 2  # beyond the second look
                    self._rest.cancel()
                    await trio.sleep(_SETTLED)
                    self._rest.cancel()
        except OSError as error:
            _log.warning("CPUs that come and go are noticed late", why=str(error), seconds=INTERVAL)

    async def _look_again(self, nursery: trio.Nursery) -> None:
        while True:
            change = self._placements.next_change()
            if self._placements.are_taken:
                try:
                    await self._placements.refresh()
                except HostError as error:
                    _log.error("could not look at the host's CPUs", why=error.message)
            await self._look_at_fences(nursery)
            if self._placements.are_taken or self._placed:
                await self._look(change)
            await self._look_at_groups(nursery)
            # with all that wakes on whole seconds
            until = math.floor(trio.current_time() + INTERVAL) if self._placements.has_vms else math.inf
            with trio.CancelScope(deadline=until) as self._rest:
                await change.wait()

    async def _look_at_fences(self, nursery: trio.Nursery) -> None:
        """Look whether fences have lost something; they are mended in a nursery: the kernel lets whoever does wait."""
        for number, each in enumerate(list(self._watched.values()), 1):
            if each.limiting.has_lost():
                nursery.start_soon(_mend, each)
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    async def _look_at_groups(self, nursery: trio.Nursery) -> None:
        """Look whether threads are in their groups, of VMs that have any.

        Args:
            nursery: where they are put right, as the kernel lets the mover wait.
        """
        divided = [each for each in self._watched.values() if each.limiting.is_divided]
        for number, each in enumerate(divided, 1):
            if not each.limiting.is_as_divided():
                nursery.start_soon(_put_right, each)
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    async def _look(self, change: trio.Event) -> None:
        """Look at all of them.

        Args:
            change: what the next change sets: while it is the same, nobody's place has changed.
        """
        online = self._placements.online
        is_new = self._found_from is None or self._found_from != (change, online)
        if is_new:
            self._found_from = change, online
            self._placed = [each for each in self._watched.values() if not each.pinning.is_free]
        for number, each in enumerate(self._placed, 1):
            if (is_new or not each.pinning.is_as_left()) and each.pinning in self._watched:
                _tell(each, each.pinning.put(online, excused=trio.current_time() < self._settled))
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        if is_new:
            # those that were to be free again are
            self._placed = [each for each in self._placed if not each.pinning.is_free]


async def _mend(watched: _Watched) -> None:
    """Have a fence be whole again, and threads where they belong in it: the kernel has let them go anywhere there."""
    try:
        with watched.pinning.excused():
            await watched.limiting.mend()
    except HostError as error:
        _log.error("could not look after the cpuset of a VM", why=error.message)


async def _put_right(watched: _Watched) -> None:
    before = watched.limiting.troubles
    await watched.limiting.put_right()
    if (now := watched.limiting.troubles) != before:
        words = "; ".join(now) or "all threads are in their groups"
        watched.tell({"detail": words, "threads": [], "vcpus": [], "iothreads": [], "helpers": []})


def _tell(watched: _Watched, moved: Sequence[Drift]) -> None:
    words = list(map(str, moved[:_NAMED])) + [f"{len(moved) - _NAMED} more"] * (len(moved) > _NAMED)
    if watched.pinning.trouble != watched.trouble:
        watched.trouble = watched.pinning.trouble
        words.append(watched.trouble or "all threads are where they belong")
    if words:
        vcpus = [drift.vcpu for drift in moved if drift.vcpu is not None]
        iothreads = [drift.iothread for drift in moved if drift.iothread]
        helpers = sorted({drift.helper for drift in moved if drift.helper})
        told = {"threads": [drift.thread for drift in moved], "vcpus": vcpus, "iothreads": iothreads}
        watched.tell({"detail": "; ".join(words), **told, "helpers": helpers})
