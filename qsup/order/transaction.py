"""What a request brings along on other VMs, begun as one.

Decides: which VMs are started, stopped or restarted with those that somebody named, and that either all of these
operations are on record before anything is done, or none is begun.
Must not: judge the request itself (`qsup.order.requests` does), or wait until anything has been done.

As in systemd: a start brings along what the VM requires and wants, and stops what it conflicts with; a stop and a
restart bring along whoever requires the VM. A kill is of one VM alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import structlog
from attrs import field, frozen

from qsup.errors import BusyError, DeniedError, DependencyError, QsupError
from qsup.instance.driver import Driver
from qsup.instance.messages import Asked
from qsup.instance.operation import Batch, Operation, new_id
from qsup.instance.services import Services
from qsup.instance.settle import Holder
from qsup.instance.state import CHANGES, Request, State, Verdict, judge
from qsup.order.standing import is_stopping, is_there, is_up
from qsup.order.turns import Turns
from qsup.unit.graph import MAX_PULLED, Graph, Pulled, pull
from qsup.unit.load import LoadedUnit
from qsup.unit.sections.service import UnitSection

_log = structlog.get_logger()

#: Requests that have a VM start.
STARTING = frozenset({Request.START, Request.RESTART})
#: What was read of units: each, or why it could not be.
Read = Mapping[str, LoadedUnit | QsupError]


@frozen(kw_only=True)
class Step:
    """One operation of several that belong together; ``operation`` is its id."""

    name: str
    request: Request
    timeout: float | None = None
    key: str = ""
    arguments: Mapping[str, Any] = field(factory=dict)
    batch: Batch | None = None
    operation: str = field(factory=new_id)


class Transactions:
    """Begins operations on one VM or several.

    Args:
        drivers: all VMs; the supervisor's own table.
        add: makes a VM of a unit that is not in that table.
    """

    def __init__(
        self, drivers: Mapping[str, Driver], services: Services, turns: Turns, add: Callable[[LoadedUnit], Driver]
    ) -> None:
        self._drivers = drivers
        self._services = services
        self._turns = turns
        self._add = add

    @property
    def graph(self) -> Graph:
        """The relations of all VMs as their units say now."""
        return self._turns.graph

    # what is brought along

    async def read(self, roots: Iterable[str]) -> Read:
        """Read afresh the units that a start of these concerns; those of VMs that are there already need not be."""
        asked = tuple(roots)
        found: dict[str, LoadedUnit | QsupError] = {}
        queue = deque(asked)
        while queue and len(found) <= MAX_PULLED + len(asked):
            name = queue.popleft()
            driver = self._drivers.get(name)
            if name in found or (name not in asked and driver is not None and is_there(driver)):
                continue
            try:
                loaded = found[name] = await self._services.load(name)
            except QsupError as error:
                found[name] = error
            else:
                queue.extend((*loaded.unit.unit.requires, *loaded.unit.unit.wants))
        return found

    def along(self, names: Sequence[str], request: Request, read: Read) -> list[Step]:
        """What this request of one VM or several brings along on others.

        Raises:
            DependencyError, BusyError: other VMs do not allow it, or these do not each other.
            UnitError, NoSuchUnit: one is to be restarted, and its unit cannot be read.
        """
        steps, named = list[Step](), set(names)
        for unreadable in (read.get(name) for name in names if request is Request.RESTART):
            if isinstance(unreadable, QsupError):
                raise unreadable  # before anything is stopped that goes along
        # a unit that cannot be read brings nothing along: the start will say why it cannot
        roots = [name for name in names if isinstance(read.get(name), LoadedUnit)]
        if request in STARTING and roots:
            steps += (step for step in self.with_start(roots, read) if step.name not in named)
        if request in (Request.STOP, Request.RESTART):
            brought = {step.name for step in steps}
            steps += (step for step in self._with_stop(names, request) if step.name not in brought)
        return steps

    def with_start(self, roots: Sequence[str], read: Read) -> list[Step]:
        """The steps of a start of these, each VM's once.

        Raises:
            DependencyError: what they require cannot be started, or what is to be started excludes each other.
        """
        there = {name for name, driver in self._drivers.items() if name not in roots and is_there(driver)}

        def find(name: str) -> UnitSection:
            # what is there already pulls in nothing
            if name in there:
                return UnitSection()
            if name not in roots:
                self._check_startable(name)
            return self._section(name, read)

        pulled = pull(roots, find)
        for name, why in pulled.left_out.items():
            _log.warning("a wanted VM is not started along", instance=name, wanted_by=list(roots), why=why)
        names = [name for name in pulled.names if name not in there]
        return [*self._excluded(names, pulled), *(Step(name=name, request=Request.START) for name in names)]

    def with_starts(self, roots: Iterable[str], read: Read) -> tuple[list[Step], dict[str, QsupError]]:
        """The steps of a start of as many of these as can be started, and why each of the others cannot."""
        asked, left, refused = tuple(roots), list[str](), dict[str, QsupError]()
        try:
            return self.with_start(asked, read), refused
        except QsupError:
            pass  # somebody is in the way of all; each by itself tells who
        for root in asked:
            try:
                self.with_start([root], read)
            except QsupError as error:
                refused[root] = error
            else:
                left.append(root)
        while left:
            try:
                return self.with_start(left, read), refused
            except DependencyError as error:
                # each by itself could be: they stand in each other's way
                dropped = {root for root in left if self._pulls(root, error.details.get("drop", ()), read)}
                refused |= dict.fromkeys(dropped or left, error)
                left = [root for root in left if dropped and root not in dropped]
        return [], refused

    def _pulls(self, root: str, others: object, read: Read) -> bool:
        return isinstance(others, list) and any(step.name in others for step in self.with_start([root], read))

    def _check_startable(self, name: str) -> None:
        driver = self._drivers.get(name)
        if driver is not None and not is_there(driver):
            check_free(driver, Request.START)
            judgement = judge(driver.state, Request.START)
            if judgement.verdict is Verdict.DENIED:
                raise DeniedError(judgement.reason, instance=name, hint=judgement.hint)

    def _section(self, name: str, read: Read) -> UnitSection:
        found, driver = read.get(name), self._drivers.get(name)
        if found is None and driver is not None:
            found = driver.loaded  # it was there when the units were read, and is no more
        if not isinstance(found, LoadedUnit):
            raise found or DependencyError("it is not known", instance=name)
        return found.unit.unit

    def _excluded(self, names: Sequence[str], pulled: Pulled) -> list[Step]:
        """The stops of what runs and conflicts with something that is started, and of what requires those."""
        units = {name: driver.loaded.unit.unit for name, driver in self._drivers.items()}
        units |= {name: pulled.units[name] for name in names}
        starting = set(names)
        excluded = {other for name in names for other in units[name].conflicts if self._is_up(other)}
        excluded |= {o for o, unit in units.items() if not starting.isdisjoint(unit.conflicts) and self._is_up(o)}
        if not excluded:
            return []
        stopped = excluded | {name for name in Graph(units).requirers(excluded) if self._is_up(name)}
        if both := sorted(stopped & set(pulled.units)):
            words = f"it needs {both[0]}, and conflicts with what {both[0]} is or requires"
            raise DependencyError(words, hint="`qsupctl list-dependencies` shows who requires what", drop=both[:1])
        return [
            Step(name=name, request=Request.STOP) for name in sorted(stopped) if not is_stopping(self._drivers[name])
        ]

    def _with_stop(self, names: Iterable[str], request: Request) -> list[Step]:
        """The steps that a stop or a restart of these brings along: the same for all that run and require one of them.

        Raises:
            BusyError: another operation holds one that is to be restarted.
        """
        steps = []
        for other in self._turns.graph.requirers(names):
            driver = self._drivers.get(other)
            if driver is None or not is_up(driver) or is_stopping(driver):
                continue
            if request is Request.RESTART:
                if driver.state is State.WAITING_DEPS or judge(driver.state, request).verdict is Verdict.DENIED:
                    continue  # it has not begun, and waits on; or is beyond that
                check_free(driver, request)
            steps.append(Step(name=other, request=request))
        return steps

    def _is_up(self, name: str) -> bool:
        driver = self._drivers.get(name)
        return driver is not None and is_up(driver)

    # together

    async def begin(self, steps: Sequence[Step], read: Read, *, uid: int) -> list[Operation]:
        """Begin all these operations: each holds its VM, is on record, and is then handed to its driver.

        They are put on record together, so that a daemon which dies has accepted all of them or none.

        Raises:
            NoSpaceError: they could not be written ahead; none was begun. Stops alone are begun all the same.
        """
        begun = [self._hold(step, read, uid) for step in steps]
        try:
            await self._record(begun)
        except BaseException as error:
            for driver, operation, _ in begun:
                self._take_back(driver, operation, error)
            raise
        self._turns.start_together(operation.id for _, operation, step in begun if step.request in STARTING)
        for driver, operation, step in begun:
            loaded = read.get(step.name)
            known = loaded if isinstance(loaded, LoadedUnit) else None
            driver.post(Asked(operation=operation.id, request=step.request, loaded=known))
        return [operation for _, operation, _ in begun]

    def _hold(self, step: Step, read: Read, uid: int) -> tuple[Driver, Operation, Step]:
        loaded = read.get(step.name)
        driver = self._drivers.get(step.name)
        if isinstance(loaded, LoadedUnit):
            driver = driver or self._add(loaded)
            driver.set_unit(loaded)
        assert driver is not None, "what is to be begun is known, or was read"
        operation = self._services.operations.begin(
            step.request.value,
            step.name,
            uid=uid,
            key=step.key,
            timeout=step.timeout,
            arguments=step.arguments,
            batch=step.batch,
            id=step.operation,
        )
        driver.hold(Holder(operation=operation.id, request=step.request, timeout=step.timeout))
        _log.info("operation begun", instance=step.name, operation=operation.id, kind=step.request.value, uid=uid)
        return driver, operation, step

    async def _record(self, begun: Sequence[tuple[Driver, Operation, Step]]) -> None:
        """Write the operations ahead. A full disk must not keep anyone from stopping a VM."""
        try:
            if begun:
                # what is changed of a QEMU that runs does not outlive the machine
                flush = any(step.request not in CHANGES for _, _, step in begun)
                await self._services.operations.record(*(operation.id for _, operation, _ in begun), flush=flush)
        except QsupError as error:
            if not all(step.request in (Request.STOP, Request.KILL) for _, _, step in begun):
                raise
            for driver, operation, _ in begun:
                _log.error("operation not recorded", instance=driver.name, operation=operation.id, why=str(error))

    def _take_back(self, driver: Driver, operation: Operation, failure: BaseException) -> None:
        """Nothing has been done for it. It may be on record unless that failed; the next daemon is to know it ended."""
        if not isinstance(failure, QsupError):
            words = "the request was given up"
            self._services.operations.finish(operation.id, error=QsupError(words, instance=driver.name))
        elif not self._services.operations.get(operation.id).is_final:
            self._services.operations.discard(operation.id)
        driver.release(operation.id)


def check_free(driver: Driver, request: Request) -> None:
    """See that no operation holds a VM; `BusyError`."""
    holder = driver.holder
    if holder is not None:
        raise BusyError(
            f"{holder.request.value} is under way (operation {holder.operation})",
            instance=driver.name,
            hint="wait for it, or stop or kill the VM",
            operation=holder.operation,
        )
