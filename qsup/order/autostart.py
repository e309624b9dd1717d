"""What starts by itself, with the first daemon after each boot of the host.

Decides: which VMs these are, that they start together, and what becomes of those that cannot.
Must not: start a VM that has run since the boot and is down, or any once all were to be stopped.

It is done when the operations of all of them are on record, and that is remembered for the boot. A full disk therefore
only delays it, in this daemon or to the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import structlog
import trio

from qsup.errors import DependencyError, NoSuchUnit, QsupError, UnitError
from qsup.host.once import OncePerBoot
from qsup.instance.driver import Driver
from qsup.instance.state import State
from qsup.order.shutdown import Shutdown
from qsup.order.standing import is_there
from qsup.order.transaction import Transactions
from qsup.unit.load import LoadedUnit

_log = structlog.get_logger()

#: Seconds until it is tried again, growing to the longest.
_AGAIN_FIRST, _AGAIN_LONGEST = 1.0, 10.0


class Autostart:
    """Starts what starts by itself.

    Args:
        drivers: all VMs; the supervisor's own table.
        units: every unit by its name, as last read.
        once: where it is remembered that it was done.
    """

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        units: Callable[[], Mapping[str, LoadedUnit]],
        transactions: Transactions,
        shutdown: Shutdown,
        once: OncePerBoot,
    ) -> None:
        self._drivers = drivers
        self._units = units
        self._transactions = transactions
        self._shutdown = shutdown
        self._once = once
        self._trouble = ""
        self._refused: dict[str, str] = {}

    async def run(self) -> None:
        """Do it, unless that was done in this boot; as often as is needed for that."""
        wait = _AGAIN_FIRST
        while not self._once.is_done:
            try:
                await self._start()
                self._once.note()
            except QsupError as error:
                words = f"what starts by itself could not be started: {error.message}"
                if words != self._trouble:
                    _log.error("what starts by itself could not be started", why=error.message)
                self._trouble = words
                await trio.sleep(wait)
                wait = min(2 * wait, _AGAIN_LONGEST)
        self._trouble = ""

    async def _start(self) -> None:
        names = list(self._wanted())
        read = await self._transactions.read(names)
        if self._shutdown.was_asked:
            return
        # each of them may have been started or removed meanwhile; from here on nothing comes in between
        left = [name for name in names if name in self._drivers and not is_there(self._drivers[name])]
        steps, refused = self._transactions.with_starts(left, read)
        await self._transactions.begin(steps, read, uid=-1)
        for name, error in refused.items():
            own = isinstance(error, NoSuchUnit | UnitError)
            self._refused[name] = error.message
            self._drivers[name].refuse(error if own else DependencyError(error.message, hint=error.hint))

    def _wanted(self) -> Iterator[str]:
        for name, loaded in self._units().items():
            # a cause says that it ended in this boot: then it is down by somebody's will, or by its policy
            view = self._drivers[name].view
            if loaded.unit.install.autostart and view.state is State.DEAD and view.cause is None:
                yield name

    def problems(self) -> Iterator[str]:
        """What keeps it from being done, and which VMs could not be started, as long as they are not up."""
        if self._trouble:
            yield self._trouble
        for name, words in self._refused.items():
            driver = self._drivers.get(name)
            if driver is not None and driver.state is State.START_FAILED:
                yield f"{name}: it was to start by itself: {words}"
