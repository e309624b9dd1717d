"""Stopping every VM within a time, in the reverse of the order in which they start.

Decides: which VMs that concerns, who of them is cut short and when, and what is told.
Must not: stop one by itself: each has an operation of its own, whose driver knows how and waits for its turn.

It is an operation of the daemon's, of no VM: it goes on when its client leaves, and in the next daemon.

Who does not shut down in time (`qsup.order.haste`) is cut short: QEMU is told to quit, and killed if it does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import structlog
import trio
from attrs import define, field, frozen

from qsup.errors import QsupError, StopError
from qsup.host import proc
from qsup.instance.driver import Driver
from qsup.instance.operation import KeyUse, Operation
from qsup.instance.services import Services
from qsup.instance.settle import DOWN
from qsup.instance.state import Request, State
from qsup.instance.stop import KILL_TIMEOUT
from qsup.order.haste import chain, last_moments
from qsup.order.standing import is_up, words
from qsup.order.transaction import Step, Transactions

_log = structlog.get_logger()

#: The operation's kind, which is no request of a VM.
STOP_ALL = "stop-all"
#: Seconds for what is killed to be gone and tidied up after.
_KILLED_WAIT = KILL_TIMEOUT + 10.0
#: Seconds to find out what an earlier daemon left, at most.
_ADOPTION_WAIT = 10.0
#: VMs that the progress names at most.
_SHOWN = 5


@frozen(kw_only=True)
class _Order:
    """What is asked for.

    Args:
        seconds: for all of it.
        names: those that an earlier daemon was to stop, and has stopped some of.
        late: those of them that did not shut down by themselves in the time.
    """

    operation: str
    uid: int
    seconds: float
    names: tuple[str, ...] = ()
    late: tuple[str, ...] = ()


@define(kw_only=True)
class _Leaving:
    """How far it is.

    Args:
        names: all that is to be stopped.
        began: seconds of trio's clock.
        links: see `chain`.
        pending: those that are not down, and the operation that each ends by.
        hastened: those that were told to quit.
        killed: those that were killed, and when.
        late: those that did not shut down by themselves in the time.
    """

    order: _Order
    names: list[str]
    began: float
    links: int
    pending: dict[str, str] = field(factory=dict)
    hastened: set[str] = field(factory=set)
    killed: dict[str, float] = field(factory=dict)
    late: set[str] = field(factory=set)


class Shutdown:
    """Stops all VMs of a daemon.

    Args:
        drivers: all VMs; the supervisor's own table.
        seconds: the time that all of it may take when nobody says another.
    """

    def __init__(
        self, drivers: Mapping[str, Driver], services: Services, transactions: Transactions, *, seconds: float
    ) -> None:
        self._drivers = drivers
        self._services = services
        self._operations = services.operations
        self._transactions = transactions
        self._seconds = seconds
        self._nursery: trio.Nursery | None = None
        self._present: str | None = None
        self._was_asked = False
        self._until = math.inf
        self._changed = trio.Event()

    @property
    def was_asked(self) -> bool:
        """Whether all VMs were to be stopped, be that over or not: nothing starts by itself any more."""
        return self._was_asked

    @property
    def is_under_way(self) -> bool:
        """Whether all VMs are being stopped."""
        return self._present is not None

    def run_in(self, nursery: trio.Nursery) -> None:
        """Where the work is done from now on."""
        self._nursery = nursery

    async def begin(self, *, uid: int, timeout: float | None, key: str) -> Operation:
        """Begin to stop every VM; while that is under way, whoever asks again gets the same operation."""
        operations = self._operations
        known = operations.repeated(uid, key, STOP_ALL, "", timeout)
        if known is not None:
            return known
        if self._present is not None:
            if timeout is not None:
                await self._shorten(self._present, timeout)
            return await operations.join(self._present, KeyUse(uid=uid, key=key, kind=STOP_ALL, timeout=timeout))
        seconds = self._seconds if timeout is None else timeout
        operation = operations.begin(STOP_ALL, "", uid=uid, key=key, timeout=timeout)
        self._present, self._was_asked = operation.id, True
        self._until = trio.current_time() + seconds
        try:
            await operations.record(operation.id)
        except QsupError as error:
            # a full disk must not keep anyone from stopping VMs
            _log.error("operation not recorded", operation=operation.id, why=str(error))
        self._start(_Order(operation=operation.id, uid=uid, seconds=seconds))
        return operation

    async def _shorten(self, operation: str, seconds: float) -> None:
        """The shorter time counts of two that ask for it."""
        until = trio.current_time() + seconds
        if until < self._until:
            self._until = until
            self._wake()
            await self._operations.limit(operation, proc.uptime() + seconds)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def resume(self, operation: Operation) -> None:
        """Go on with what an earlier daemon left unfinished, for what is left of the time."""
        given = self._seconds if operation.timeout is None else operation.timeout
        until = operation.uptime + given if operation.until is None else operation.until
        seconds = min(max(0.0, until - proc.uptime()), given)
        self._present, self._was_asked = operation.id, True
        self._until = trio.current_time() + seconds
        known = operation.result or {}
        names, late = tuple(known.get("vms", ())), tuple(known.get("killed", ()))
        order = _Order(operation=operation.id, uid=operation.requested_by, seconds=seconds, names=names, late=late)
        self._start(order)

    def _start(self, order: _Order) -> None:
        assert self._nursery is not None, "the supervisor runs"
        self._nursery.start_soon(self._run, order)

    async def _run(self, order: _Order) -> None:
        try:
            await self._stop_all(order)
        except Exception:
            # it costs this operation, and neither the daemon nor the stops that have begun
            _log.exception("stopping all failed by a bug", operation=order.operation)
            self._present = None
            self._operations.finish(order.operation, error=QsupError("the daemon failed at it by a bug"))

    async def _stop_all(self, order: _Order) -> None:
        began = trio.current_time()
        with trio.move_on_after(_ADOPTION_WAIT):
            for driver in list(self._drivers.values()):
                await driver.wait_adopted()
        up = {name for name, driver in self._drivers.items() if is_up(driver)}
        names = sorted(up.union(order.names))
        _log.info("stopping all", vms=names, seconds=order.seconds, operation=order.operation)
        links = chain(names, self._transactions.graph)
        leaving = _Leaving(order=order, names=names, began=began, links=links, late=set(order.late))
        await self._account(leaving)
        accounted = len(leaving.late)
        async with trio.open_nursery() as nursery:
            await self._begin(Request.STOP, sorted(up), leaving, nursery)
            while leaving.pending:
                if len(leaving.late) > accounted:
                    accounted = len(leaving.late)
                    await self._account(leaving)
                now = trio.current_time()
                wake, late = self._cut_short(leaving, now)
                if late:
                    _log.warning("killed at the end of the time", vms=late, operation=order.operation)
                    leaving.late.update(late)
                    leaving.killed.update(dict.fromkeys(late, now))
                    await self._begin(Request.KILL, late, leaving, nursery)
                elif wake == math.inf:
                    break  # the kernel keeps what is left
                else:
                    with trio.move_on_at(wake):
                        await self._changed.wait()
            nursery.cancel_scope.cancel()
        await self._finish(order, names, sorted(leaving.late))

    async def _account(self, leaving: _Leaving) -> None:
        """What the next daemon cannot see any more, should it be the one that ends this."""
        so_far = {"vms": leaving.names, "killed": sorted(leaving.late)}
        await self._operations.account(leaving.order.operation, so_far)

    def _cut_short(self, leaving: _Leaving, now: float) -> tuple[float, list[str]]:
        """Hasten those whose time has come. Returns when to look again, and who is to be killed."""
        graph, links = self._transactions.graph, leaving.links
        moments = last_moments(leaving.pending, graph, links=links, began=leaving.began, until=self._until)
        wake, late = math.inf, list[str]()
        for name, moment in moments.items():
            if name in leaving.killed:
                given_up = leaving.killed[name] + _KILLED_WAIT
                wake = min(wake, given_up if given_up > now else math.inf)
            elif moment.kill <= now:
                late.append(name)
            elif moment.quit > now:
                wake = min(wake, moment.quit)
            else:
                wake = min(wake, moment.kill)
                if name not in leaving.hastened and name in self._drivers:
                    leaving.hastened.add(name)
                    self._drivers[name].hasten(leaving.pending[name], partial(leaving.late.add, name))
        return wake, late

    async def _begin(self, request: Request, names: list[str], leaving: _Leaving, nursery: trio.Nursery) -> None:
        """Stop or kill these, and follow their operations."""
        steps = []
        for name in names:
            leaving.pending[name] = ""  # what it had until now is overtaken
            holder = self._drivers[name].holder if name in self._drivers else None
            if holder is not None and holder.request in (request, Request.KILL):
                leaving.pending[name] = holder.operation
            elif name in self._drivers:
                steps.append(Step(name=name, request=request))
        begun = await self._transactions.begin(steps, {}, uid=leaving.order.uid)
        for step, operation in zip(steps, begun, strict=True):
            leaving.pending[step.name] = operation.id
        self._tell(leaving)
        for name in names:
            nursery.start_soon(self._follow, name, leaving.pending[name], leaving)

    async def _follow(self, name: str, operation: str, leaving: _Leaving) -> None:
        """Until its operation has ended, or whoever has overtaken that, and means the same."""
        while True:
            await self._operations.wait_ended(operation)
            if leaving.pending.get(name) != operation:
                return  # it is killed by now
            holder = self._drivers[name].holder if name in self._drivers else None
            if holder is None or holder.request not in (Request.STOP, Request.KILL):
                break
            operation = leaving.pending[name] = holder.operation
        del leaving.pending[name]
        self._tell(leaving)
        self._wake()

    def _tell(self, leaving: _Leaving) -> None:
        pending = (name for name in sorted(leaving.pending) if name in self._drivers)
        left = [f"{name} ({self._drivers[name].state.substate})" for name in pending]
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        waiting = f", waiting for {', '.join(left[:_SHOWN])}{more}" if left else ""
        count = len(leaving.names)
        self._operations.progress(leaving.order.operation, f"{count - len(left)} of {count} stopped{waiting}")

    def _up(self, names: Iterable[str]) -> list[str]:
        """Those of the VMs that are not down; one without a unit has gone by then."""
        return [name for name in names if name in self._drivers and self._drivers[name].state.level not in DOWN]

    async def _finish(self, order: _Order, names: list[str], killed: list[str]) -> None:
        result: dict[str, Any] = {
            "changed": bool(names),
            "stopped": [name for name in names if name not in killed],
            "killed": killed,
            # whether these run is not known, and nothing of them is touched
            "quarantined": [name for name, driver in self._drivers.items() if driver.state is State.QUARANTINED],
        }
        error = None
        if left := self._up(names):
            detail = "; ".join(f"{name} is {words(self._drivers[name])}" for name in left)
            hint = "what the kernel keeps waits mostly for storage"
            error = StopError(f"not all could be stopped: {detail}", hint=hint, **result, left=left)
        await self._operations.foretell(order.operation, result=result, error=error)
        self._present = None
        finished = self._operations.finish(order.operation, result=result, error=error)
        if finished is not None:
            data = {"operation": finished.id, "kind": finished.kind, "state": finished.state.value}
            self._services.publish("operation", None, data | ({"error": error.message} if error else {}))
