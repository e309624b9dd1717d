"""Where on the host the memory of VMs is: by NUMA node, as it was last read.

Decides: when it is read, how long that may take, and how much of the host's time goes into it.
Must not: hold anybody up: the kernel goes through all pages of a process for it, and waits while that changes its
mappings, so each reading is in a thread of its own and has a deadline.

Who looks gets what was read last, with its age, and has it read again soon after; for those who ask for it outright it
is read then. What is read for those who only look takes no more than a hundredth of a CPU, however many VMs there are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial

import structlog
import trio
from attrs import define, field, frozen

from qsup.errors import HostError
from qsup.host import proc, usage
from qsup.host.usage import NodeMemory, NodePart

_log = structlog.get_logger()

#: Seconds that one reading may take: those of a terabyte in small pages.
DEADLINE = 10.0
#: Seconds before what was read is read again, or after it could not be.
_AGE, _RESPITE = 30.0, 600.0
#: Seconds for which it goes on after somebody has looked.
_WANTED_FOR = 150.0
#: How many times as long as a reading has taken of a CPU nothing is read then.
_PAUSE = 100


@frozen
class Whose:
    """A life: what was read of one is nothing of the next one's."""

    name: str
    life: int
    pid: int


@define
class _Kept:
    """What is known of one.

    Args:
        wanted: when somebody looked last.
        due: when it is to be read again.
        limiter: so that a kernel that hangs costs one thread, however many ask.
    """

    last: NodeMemory | None = None
    wanted: float = -math.inf
    due: float = -math.inf
    limiter: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))


class NodeMemories:
    """The memory of all VMs of a daemon."""

    def __init__(self) -> None:
        self._kept: dict[Whose, _Kept] = {}
        self._wanted = trio.Event()

    def look(self, whose: Whose) -> NodeMemory | None:
        """What was read last, ``None`` when nothing was; it is read again soon."""
        kept = self._want(whose)
        if kept.due <= trio.current_time():
            self._wanted.set()
        return kept.last

    async def read(self, whose: Whose) -> NodeMemory:
        """Where it is now.

        Raises:
            HostError: the kernel did not say it, or not within `DEADLINE`.
        """
        kept = self._want(whose)
        await self._read(whose, kept)
        assert kept.last is not None  # it was read
        return kept.last

    async def run(self) -> None:
        """Read again and again what somebody looks at."""
        while True:
            now = trio.current_time()
            self._kept = {whose: kept for whose, kept in self._kept.items() if now - kept.wanted < _WANTED_FOR}
            whose, kept = min(self._kept.items(), key=lambda item: item[1].due, default=(None, None))
            if whose is None or kept is None or kept.due > now:
                self._wanted = trio.Event()
                with trio.move_on_at(math.inf if kept is None else kept.due):
                    await self._wanted.wait()
                continue
            try:
                took = await self._read(whose, kept)
            except HostError as error:
                _log.debug("could not read where the memory is", instance=whose.name, why=error.message)
                kept.due = trio.current_time() + _RESPITE
            else:
                await trio.sleep(took * _PAUSE)

    def _want(self, whose: Whose) -> _Kept:
        kept = self._kept.setdefault(whose, _Kept())
        kept.wanted = trio.current_time()
        return kept

    async def _read(self, whose: Whose, kept: _Kept) -> float:
        """Read it, and say how long that had a CPU."""
        try:
            with trio.fail_after(DEADLINE):
                read = partial(_read_timed, whose.pid)
                took, nodes = await trio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=kept.limiter)
        except trio.TooSlowError as error:
            words = f"the kernel did not say within {DEADLINE:g} s where its memory is"
            hint = "it waits for a QEMU that changes its mappings, or hangs"
            raise HostError(words, instance=whose.name, hint=hint) from error
        kept.last = NodeMemory(read_at=proc.uptime(), nodes=nodes)
        kept.due = trio.current_time() + _AGE
        return took


def _read_timed(pid: int) -> tuple[float, Mapping[int, NodePart]]:
    """How long the thread that this runs in had a CPU for it, in seconds, and what was read."""
    began = time.thread_time()
    found = usage.read_numa_maps(pid)
    return time.thread_time() - began, found
