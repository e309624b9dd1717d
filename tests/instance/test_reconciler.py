"""Tests of `qsup.instance.reconciler`: when groups of threads are looked at, by a life that only counts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import pytest
import trio
import trio.testing

from qsup.instance.limiting import Limiting
from qsup.instance.pinning import Pinning
from qsup.instance.placements import Placements
from qsup.instance.reconciler import INTERVAL, Reconciler
from qsup.plan.pinning import Pins
from qsup.unit.model import Unit


class Divided:
    """What is looked at, and put right.

    Attributes:
        is_divided: its threads are to be in groups.
        is_whole: its fence has lost nothing.
        is_right: they are there.
        troubles: why they cannot be.
        found: what that turns out to be at the next repair.
        kernel: what a repair waits for.
        looks, repairs: how often each was done.
    """

    def __init__(self) -> None:
        self.is_divided = self.is_right = self.is_whole = True
        self.troubles: tuple[str, ...] = ()
        self.found: tuple[str, ...] = ()
        self.looks = self.repairs = 0
        self.kernel: trio.Event | None = None

    def is_as_divided(self) -> bool:
        """See `Limiting`."""
        self.looks += 1
        return self.is_right

    def has_lost(self) -> bool:
        """See `Limiting`."""
        return not self.is_whole

    async def mend(self) -> None:
        """See `Limiting`."""
        await self.put_right()

    async def put_right(self) -> None:
        """See `Limiting`."""
        self.repairs += 1
        self.troubles = self.found
        if self.kernel is not None:
            await self.kernel.wait()
        else:
            await trio.lowlevel.checkpoint()


def watched(reconciler: Reconciler, told: list[Mapping[str, Any]]) -> Divided:
    """A life that is looked after."""
    life = Divided()
    reconciler.watch(Pinning(os.getpid(), Pins), cast("Limiting", life), told.append)
    return life


async def test_groups_are_looked_at_again_and_again(autojump_clock: trio.testing.MockClock) -> None:
    """Every few seconds, of VMs that have some; what is wrong is put right, and what is new of that is told."""
    placements = Placements()
    told: list[Mapping[str, Any]] = []
    reconciler = Reconciler(placements)
    placements.restore("web", Unit(), None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reconciler.run)
        await trio.testing.wait_all_tasks_blocked()
        life, free = watched(reconciler, told), watched(reconciler, told)
        free.is_divided = False
        await trio.sleep(3 * INTERVAL)  # virtual time
        assert life.looks >= 2 and (life.repairs, free.looks, told) == (0, 0, [])
        life.is_right, life.found = False, ("no",)
        await trio.sleep(3 * INTERVAL)  # virtual time
        assert life.repairs >= 2 and [each["detail"] for each in told] == ["no"]
        life.found = ()
        await trio.sleep(INTERVAL)  # virtual time
        assert [each["detail"] for each in told[1:]] == ["all threads are in their groups"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("wrong", ["is_right", "is_whole"])
async def test_a_vm_that_is_put_right_delays_no_other(wrong: str, autojump_clock: trio.testing.MockClock) -> None:
    """The kernel lets whoever moves a thread wait, and whoever changes a cpuset for its memory to follow."""
    placements = Placements()
    reconciler = Reconciler(placements)
    placements.restore("web", Unit(), None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reconciler.run)
        slow, other = watched(reconciler, []), watched(reconciler, [])
        slow.kernel = trio.Event()
        for each in (slow, other):
            setattr(each, wrong, False)
        await trio.sleep(3 * INTERVAL)  # virtual time
        assert slow.repairs >= 1 and other.repairs >= 2
        nursery.cancel_scope.cancel()
