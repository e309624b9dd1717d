"""Whose turn it is: starts wait for what comes before them, stops for what comes after.

Decides: for which other VMs a start or a stop waits, and when such a wait is given up.
Must not: begin operations (`qsup.order.transaction` does), or move a state; the driver of the VM does.

A start waits until
- those it conflicts with are down,
- those that are ordered before or after it, and are being stopped, are down,
- those it is `after`, and are being started, are ready, or have failed.
Then those it requires must be up. A start by a restart policy, which brings nobody along, also waits until those it is
`after`, and that wait for such a start themselves, are ready, or stay down. A stop waits until those that are `after`
it, and are being stopped, are down; it is never refused. Stops wait for stops alone and starts never wait for who comes
after them, so without a cycle in the order, and edges within one count for nothing, nobody waits for himself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import structlog
import trio

from qsup.errors import DependencyError
from qsup.instance.driver import Driver
from qsup.instance.operations import OperationTable
from qsup.instance.settle import DOWN
from qsup.instance.state import Level, State
from qsup.order.standing import is_starting, is_stopping, is_there, start_budget, stop_budget, words
from qsup.unit.graph import Graph
from qsup.unit.load import LoadedUnit

_log = structlog.get_logger()

#: VMs that an operation's progress names at most.
_SHOWN = 3


class Turns:
    """Who waits for whom among the VMs of a daemon.

    Args:
        drivers: all VMs; the supervisor's own table, which changes.
        concurrency: how many of those that are started together start at a time.
    """

    def __init__(self, drivers: Mapping[str, Driver], operations: OperationTable, *, concurrency: int) -> None:
        self._drivers = drivers
        self._operations = operations
        self._concurrency = concurrency
        self._slots: dict[str, trio.Semaphore] = {}
        self._nursery: trio.Nursery | None = None
        self._known: tuple[LoadedUnit, ...] = ()
        self._graph = Graph({})

    def run_in(self, nursery: trio.Nursery) -> None:
        """Where slots are watched from now on."""
        self._nursery = nursery

    @property
    def graph(self) -> Graph:
        """The relations of all VMs as their units say now."""
        loaded = tuple(driver.loaded for driver in self._drivers.values())
        if list(map(id, loaded)) != list(map(id, self._known)):
            self._known = loaded
            self._graph = Graph({each.name: each.unit.unit for each in loaded})
        return self._graph

    def start_together(self, operations: Iterable[str]) -> None:
        """Of these starts, only so many are under way at a time. One by itself is held up by nobody."""
        together = tuple(operations)
        # those that were overtaken before they came to need theirs
        self._slots = {each: slots for each, slots in self._slots.items() if self._operations.is_under_way(each)}
        if len(together) > 1:
            slots = trio.Semaphore(self._concurrency)
            self._slots |= dict.fromkeys(together, slots)

    # starts

    def try_start(self, name: str, operation: str) -> bool:
        """Whether nothing keeps this start; then it counts among those under way.

        Args:
            operation: its id, ``""`` for a start by a restart policy.
        """
        by_policy = not operation
        if next(self._before_start(name, by_policy=by_policy), None) is not None or self._lacking(name, by_policy):
            return False
        slots = self._slots.get(operation)
        if slots is not None:
            try:
                slots.acquire_nowait()
            except trio.WouldBlock:
                return False
            self._give_back_later(operation, slots)
        return True

    async def wait_to_start(self, name: str, operation: str) -> None:
        """Wait until nothing keeps this start.

        Args:
            operation: its id, ``""`` for a start by a restart policy.

        Raises:
            DependencyError: what it requires is not up, what it conflicts with is, or it took too long.
        """
        by_policy = not operation
        pending = [driver for driver in self._drivers.values() if _is_pending(driver, by_policy)]
        patience = sum(start_budget(driver) + driver.restart_delay for driver in pending)
        before = partial(self._before_start, by_policy=by_policy)
        with self._showing(name), trio.move_on_after(patience):
            while True:
                await self._wait_for(name, operation, before, self.graph.requires(name))
                if lacking := self._lacking(name, by_policy):
                    raise DependencyError(lacking, instance=name)
                if await self._has_slot(name, operation):
                    return
        whom = self._for_whom(before(name))
        raise DependencyError(f"it waited for {patience:.0f} s in vain{whom}", instance=name)

    def _for_whom(self, waited: Iterable[Driver]) -> str:
        others = [f"{other.name}, which is {words(other)}" for other in waited]
        return f" for {'; '.join(others[:_SHOWN])}" if others else ""

    async def _wait_for(
        self, name: str, operation: str, before: Callable[[str], Iterator[Driver]], required: Collection[str] = ()
    ) -> None:
        while others := list(dict.fromkeys(before(name))):
            if any(map(_is_hopeless, self._among(required))):
                return  # it need not wait for the others
            shown = [f"{other.name} ({other.state.substate})" for other in others[:_SHOWN]]
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            self._tell(name, operation, f"{', '.join(shown)}{more}")
            await _any_touched({others[0], *self._among(required)})

    @contextmanager
    def _showing(self, name: str) -> Iterator[None]:
        """While a VM waits its view says for what, and no longer."""
        try:
            yield
        finally:
            if name in self._drivers:
                self._drivers[name].wait_for("")

    def _tell(self, name: str, operation: str, whom: str) -> None:
        self._operations.progress(operation, f"waiting for {whom}")
        if name in self._drivers:
            self._drivers[name].wait_for(whom)

    def _among(self, names: Iterable[str]) -> Iterator[Driver]:
        """The VMs there are of these names, sorted."""
        return (self._drivers[name] for name in sorted(names) if name in self._drivers)

    def _before_start(self, name: str, *, by_policy: bool = False) -> Iterator[Driver]:
        """The VMs for which a start waits."""
        graph = self.graph
        conflicts, earlier, required = graph.conflicts(name), graph.earlier(name), graph.requires(name)
        for other in self._among({*conflicts, *earlier, *graph.later(name), *required}):
            goes_down = other.state.level is Level.DEACTIVATING and other.state is not State.STUCK
            if (
                not other.is_adopted
                or is_stopping(other)
                or (other.name in conflicts and goes_down)
                or (other.name in earlier and (is_starting(other) or (by_policy and _comes_back(other))))
                # what becomes of it by its own policy is not known yet
                or (by_policy and goes_down and (other.name in earlier or other.name in required))
            ):
                yield other

    def _lacking(self, name: str, by_policy: bool = False) -> str:
        """Why it cannot be started although nothing keeps it any more; ``""``: nothing is lacking."""
        for required in sorted(self.graph.requires(name)):
            driver = self._drivers.get(required)
            if driver is None:
                return f"it requires {required}, and there is no such VM"
            if not is_there(driver) and not (by_policy and _comes_back(driver)):
                return f"it requires {required}, which is {words(driver)}"
        for other in self._among(self.graph.conflicts(name)):
            if other.state.level not in DOWN:
                return f"it conflicts with {other.name}, which is {words(other)}"
        return ""

    async def _has_slot(self, name: str, operation: str) -> bool:
        """Whether it may go on at once; else it has waited for its turn, and not all is any more as it was before."""
        slots = self._slots.get(operation)
        if slots is None:
            return True
        try:
            slots.acquire_nowait()
        except trio.WouldBlock:
            self._tell(name, operation, f"its turn, {self._concurrency} at a time")
            await slots.acquire()
            if next(self._before_start(name), None) is not None or self._lacking(name):
                slots.release()
                return False
        self._give_back_later(operation, slots)
        return True

    def _give_back_later(self, operation: str, slots: trio.Semaphore) -> None:
        async def give_back() -> None:
            await self._operations.wait_ended(operation)
            slots.release()

        del self._slots[operation]
        assert self._nursery is not None, "the supervisor runs"
        self._nursery.start_soon(give_back)

    # stops

    def may_stop(self, name: str) -> bool:
        """Whether this stop need not wait for another VM's."""
        return next(self._before_stop(name), None) is None

    async def wait_to_stop(self, name: str, operation: str) -> None:
        """Wait until this stop need not wait any more, or has waited for as long as the others may take."""
        patience = sum(stop_budget(driver) for driver in self._drivers.values() if is_stopping(driver))
        with self._showing(name), trio.move_on_after(patience):
            await self._wait_for(name, operation, self._before_stop)
            return
        _log.warning("stopped before its turn: the others take too long", instance=name)

    def _before_stop(self, name: str) -> Iterator[Driver]:
        for other in self._among(self.graph.later(name)):
            if is_stopping(other) and (other.state.level not in DOWN or not other.is_adopted):
                yield other


def _comes_back(driver: Driver) -> bool:
    """Whether it waits for its automatic restart."""
    return driver.state is State.AUTO_RESTART and not is_stopping(driver)


def _is_pending(driver: Driver, by_policy: bool) -> bool:
    """Whether somebody's start may have to wait for it."""
    ends = driver.state.level is Level.DEACTIVATING or _comes_back(driver)
    return is_starting(driver) or is_stopping(driver) or (by_policy and ends)


def _is_hopeless(driver: Driver) -> bool:
    """Whether it is not up, and nothing is under way that could change that."""
    return driver.is_adopted and driver.state.level in DOWN and not is_starting(driver) and not is_stopping(driver)


async def _any_touched(drivers: Iterable[Driver]) -> None:
    """Wait until something about one of these changes; nothing that changes from the call on is missed."""
    events = [driver.next_touch() for driver in drivers]

    async def wait(event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(wait, event, nursery.cancel_scope)
