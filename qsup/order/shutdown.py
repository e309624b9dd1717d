"""Stopping every VM within a time, in the reverse of the order in which they start.

Decides: which VMs that concerns, what becomes of those that are not down when the time is over, and what is told.
Must not: stop one by itself: each has an operation of its own, whose driver knows how and waits for its turn.

It is an operation of the daemon's, of no VM: it goes on when its client leaves, and in the next daemon.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import structlog
import trio
from attrs import frozen

from qsup.errors import QsupError, StopError
from qsup.host import proc
from qsup.instance.driver import Driver
from qsup.instance.operation import KeyUse, Operation
from qsup.instance.services import Services
from qsup.instance.settle import DOWN
from qsup.instance.state import Request, State
from qsup.instance.stop import KILL_TIMEOUT
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
    operation: str
    uid: int
    seconds: float


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
            return await operations.join(self._present, KeyUse(uid=uid, key=key, kind=STOP_ALL, timeout=timeout))
        seconds = self._seconds if timeout is None else timeout
        operation = operations.begin(STOP_ALL, "", uid=uid, key=key, timeout=timeout)
        self._present, self._was_asked = operation.id, True
        try:
            await operations.record(operation.id)
        except QsupError as error:
            # a full disk must not keep anyone from stopping VMs
            _log.error("operation not recorded", operation=operation.id, why=str(error))
        self._start(_Order(operation=operation.id, uid=uid, seconds=seconds))
        return operation

    def resume(self, operation: Operation) -> None:
        """Go on with what an earlier daemon left unfinished, for what is left of the time."""
        given = self._seconds if operation.timeout is None else operation.timeout
        left = max(0.0, operation.uptime + given - proc.uptime())
        self._present, self._was_asked = operation.id, True
        self._start(_Order(operation=operation.id, uid=operation.requested_by, seconds=min(left, given)))

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
        deadline = trio.current_time() + order.seconds
        with trio.move_on_after(_ADOPTION_WAIT):
            for driver in list(self._drivers.values()):
                await driver.wait_adopted()
        names = [name for name, driver in sorted(self._drivers.items()) if is_up(driver)]
        _log.info("stopping all", vms=names, seconds=order.seconds, operation=order.operation)
        await self._carry_out(Request.STOP, names, order, deadline)
        late = self._up(names)
        if late:
            _log.warning("killed at the end of the time", vms=late, operation=order.operation)
            await self._carry_out(Request.KILL, late, order, trio.current_time() + _KILLED_WAIT)
        self._finish(order, names, late)

    async def _carry_out(self, request: Request, names: list[str], order: _Order, deadline: float) -> None:
        """Stop or kill these; returns when all of these operations have ended, or at the deadline."""
        ending = (Request.KILL,) if request is Request.KILL else (Request.STOP, Request.KILL)
        pending: dict[str, str] = {}
        steps = []
        for name in names:
            holder = self._drivers[name].holder
            if holder is not None and holder.request in ending:
                pending[name] = holder.operation
            else:
                steps.append(Step(name=name, request=request))
        for step, operation in zip(steps, await self._transactions.begin(steps, {}, uid=order.uid), strict=True):
            pending[step.name] = operation.id
        self._tell(order, names, pending)
        with trio.move_on_at(deadline):
            async with trio.open_nursery() as nursery:
                for name, operation_id in list(pending.items()):
                    nursery.start_soon(self._await_one, name, operation_id, order, names, pending)

    async def _await_one(
        self, name: str, operation_id: str, order: _Order, names: list[str], pending: dict[str, str]
    ) -> None:
        await self._operations.wait_ended(operation_id)
        del pending[name]
        self._tell(order, names, pending)

    def _tell(self, order: _Order, names: list[str], pending: Iterable[str]) -> None:
        left = [f"{name} ({self._drivers[name].state.substate})" for name in sorted(pending) if name in self._drivers]
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        waiting = f", waiting for {', '.join(left[:_SHOWN])}{more}" if left else ""
        self._operations.progress(order.operation, f"{len(names) - len(left)} of {len(names)} stopped{waiting}")

    def _up(self, names: Iterable[str]) -> list[str]:
        """Those of the VMs that are not down; one without a unit has gone by then."""
        return [name for name in names if name in self._drivers and self._drivers[name].state.level not in DOWN]

    def _finish(self, order: _Order, names: list[str], killed: list[str]) -> None:
        self._present = None
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
        finished = self._operations.finish(order.operation, result=result, error=error)
        if finished is not None:
            data = {"operation": finished.id, "kind": finished.kind, "state": finished.state.value}
            self._services.publish("operation", None, data | ({"error": error.message} if error else {}))
