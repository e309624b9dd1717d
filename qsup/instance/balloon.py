"""The balloon besides its changes: what it leaves a guest from the start, and what the guest tells through it.

Decides: which of the guest's figures are figures.
Must not: wait for the guest: QEMU keeps what it was asked for, and what the guest's driver sent last.

The guest is only asked while somebody wants to know, and anew on each connection: a daemon that is killed leaves it
being asked, which costs it next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qsup.errors import QmpCommandError
from qsup.plan.spec import PlanSummary
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.unit.effective import effective_resize
from qsup.unit.model import Unit

_PATH: Final = "/machine/peripheral/balloon"
#: Seconds between two times that the guest's driver sends its figures.
_INTERVAL = 5
_TIMEOUT = 3.0
#: What a driver sends for a figure that it does not have is -1 as an unsigned number.
_NONE = 1 << 63


async def impose(unit: Unit, summary: PlanSummary, monitor: Monitor) -> None:
    """Have the balloon leave the guest what its unit says, as soon as its driver is there.

    Raises:
        QmpCommandError: QEMU has no balloon that works.
        MonitorError: it did not answer.
    """
    if effective_resize(unit) == "balloon" and unit.memory.size < summary.memory_base:
        await commands.balloon(monitor, unit.memory.size, timeout=_TIMEOUT)


class BalloonSampler:
    """The figures of one VM's guest, as last sent."""

    def __init__(self) -> None:
        self.figures: Mapping[str, int] = {}
        self._asked: Monitor | None = None

    async def sample(self, connection: Monitor) -> None:
        """Read them; none where the guest has no driver, or nobody has a balloon any more.

        Raises:
            MonitorError: QEMU did not answer.
        """
        try:
            if self._asked is not connection:
                await self._ask(connection, _INTERVAL)
                self._asked = connection
            found = await commands.query_guest_stats(connection, _PATH, timeout=_TIMEOUT)
        except QmpCommandError:
            self.figures = {}
            return
        self.figures = {name: value for name, value in found.items() if 0 <= value < _NONE}

    async def rest(self) -> None:
        """Nobody wants to know any more: the guest is left alone."""
        connection, self._asked, self.figures = self._asked, None, {}
        if connection is not None and connection.close_reason is None:
            try:
                await self._ask(connection, 0)
            except QmpCommandError:
                pass  # it is gone

    async def _ask(self, connection: Monitor, seconds: int) -> None:
        name = "guest-stats-polling-interval"
        await commands.qom_set(connection, _PATH, name, seconds, timeout=_TIMEOUT)
