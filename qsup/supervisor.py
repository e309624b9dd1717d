"""Every VM of one daemon: which there are, what may be asked of each, and how the daemon begins and ends.

Decides: which instances exist (units, and what runs); whether a request may begin, `qsup.order.requests` does.
Must not: know the inside of a VM's life; its driver does. Nothing here waits for a VM, except who asked to.
Long because how the daemon begins, each request and each reload meet in one table of drivers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import structlog
import trio
from attrs import evolve

from qsup import access
from qsup.catalog import UnitStore
from qsup.errors import DeniedError, NoSuchInstance, NoSuchUnit, QsupError, UnitError
from qsup.host import proc
from qsup.host.once import OncePerBoot
from qsup.host.output import BoundedLog
from qsup.instance import ended
from qsup.instance.capacity import Capacity
from qsup.instance.driver import Driver
from qsup.instance.hostcheck import HostFinding, check_host
from qsup.instance.messages import Waits
from qsup.instance.nodememory import NodeMemories
from qsup.instance.operation import Begun, KeyUse, Operation
from qsup.instance.placements import Placements
from qsup.instance.services import Services
from qsup.instance.settle import DOWN, Unfinished, unknown
from qsup.instance.state import Request, State
from qsup.instance.unrecorded import name_all
from qsup.order.autostart import Autostart
from qsup.order.requests import PREEMPTING, Requests
from qsup.order.shutdown import STOP_ALL, Shutdown
from qsup.order.transaction import STARTING, Transactions
from qsup.order.turns import Turns
from qsup.unit.files import template_of
from qsup.unit.info import ReloadResult, UnitChanges
from qsup.unit.kinds import is_instance_name
from qsup.unit.load import LoadedUnit
from qsup.unit.model import Unit

_log = structlog.get_logger()

#: Seconds that a starting daemon waits for what it finds, before it answers anyway, and for a monitor after the last
#: one that answered: a VM that stands still keeps nobody from the list.
_ADOPTION_WAIT, _MONITOR_WAIT = 2.0, 0.5
#: Seconds before a driver that failed by a bug of ours takes its VM over again.
_DRIVER_RESTART_DELAY = 1.0
#: Requests that have a VM stop.
_NONE: Mapping[str, Any] = {}
_STOPPING = frozenset({Request.STOP, Request.KILL, Request.RESTART})


class Supervisor:
    """All VMs. Long because what concerns them all meets here, in one table of drivers.

    Args:
        services: what the drivers share.
        store: the unit files.
        start_concurrency: how many VMs that are started together start at the same time.
        shutdown_timeout: seconds that stopping all VMs may take when nobody says another time.
    """

    def __init__(
        self, services: Services, store: UnitStore, *, start_concurrency: int, shutdown_timeout: float
    ) -> None:
        self._store = store
        self._drivers: dict[str, Driver] = {}
        self._turns = Turns(self._drivers, services.operations, concurrency=start_concurrency)
        self._services = evolve(services, turns=self._turns)
        self._transactions = Transactions(self._drivers, self._services, self._turns, self._add)
        self._shutdown = Shutdown(self._drivers, self._services, self._transactions, seconds=shutdown_timeout)
        self._requests = Requests(self._services, self._transactions, self._shutdown, self._find)
        once = OncePerBoot(services.layout.run, "autostarted")
        self._autostart = Autostart(self._drivers, lambda: store.units, self._transactions, self._shutdown, once)

    # the daemon's life

    async def run(
        self, *, autostart: bool = True, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Take over what runs, start what starts by itself, and keep all of it until cancelled. VMs then run on.

        Args:
            autostart: whether anything starts by itself.
        """
        await self._store.reload()
        for diagnostic in self._store.diagnostics:
            _log.error("unit file", error=str(diagnostic))
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._turns.run_in(nursery)
            self._shutdown.run_in(nursery)
            nursery.start_soon(self._services.operations.run)
            nursery.start_soon(self._services.reconciler.run)
            nursery.start_soon(self._services.node_memories.run)
            ran = self._services.layout.instance_names()
            for name in ran:
                self._driver_of_leftover(name)
            for loaded in self._store.units.values():
                self._add(loaded)
            for name in ended.names(self._services.layout, besides=self._drivers):
                self._driver_of_leftover(name)
            # before they look for what is left of their VMs, which their drivers do at the next checkpoint
            self._resolve_operations()
            with trio.move_on_after(_ADOPTION_WAIT):
                await self._wait_adopted()
            self._forget_the_gone(ran)
            task_status.started()
            nursery.start_soon(name_all, self._drivers, self._services)
            if autostart:
                nursery.start_soon(self._autostart.run)
            await trio.sleep_forever()

    async def _wait_adopted(self) -> None:
        """Wait until every VM is known, and until those that answer have said how they are."""
        drivers = list(self._drivers.values())
        for driver in drivers:
            await driver.wait_adopted()
        patience = trio.current_time() + _MONITOR_WAIT
        for driver in drivers:
            if driver.state is State.UNREACHABLE:
                with trio.move_on_at(patience) as scope:
                    await driver.wait_state(lambda state: state is not State.UNREACHABLE)
                if not scope.cancelled_caught:
                    patience = trio.current_time() + _MONITOR_WAIT

    def _driver_of_leftover(self, name: str) -> None:
        """A VM that runs, or ran, under an earlier daemon; its unit may have gone or be broken."""
        if not is_instance_name(name):
            _log.warning("not the name of a VM, in the run directory", name=name)
            return
        try:
            self._add(self._store.units.get(name) or self._store.read(name))
        except QsupError as error:
            _log.warning("a VM's unit cannot be read", instance=name, why=str(error))
            # where the record cannot be read either there is nothing to show but that it is quarantined
            nothing = LoadedUnit(name=name, unit=Unit(), files=(), etag="", text="")
            known = access.unit_of_record(name, self._services) or ended.unit_of(self._services.layout, name) or nothing
            self._add(evolve(known, files=()) if isinstance(error, NoSuchUnit) else known)

    def _forget_the_gone(self, ran: Collection[str]) -> None:
        """What was only a directory of a VM without a unit is no VM, nor what was down before, as after a reload."""
        for name, driver in list(self._drivers.items()):
            if driver.is_adopted and not driver.loaded.files and (driver.state is State.DEAD or name not in ran):
                self._forget(driver)
        # nor does a VM that is none leave the history of its console
        for name in set(self._services.layout.console_names()) - self._drivers.keys():
            if not (is_instance_name(name) and self._has_unit(name)):
                BoundedLog(self._services.layout.console_log(name)).remove()

    def _forget(self, driver: Driver) -> bool:
        """Whether a VM that has no unit is down, and so has gone."""
        if driver.state.level not in DOWN or driver.state is State.QUARANTINED or driver.holder is not None:
            return False
        self._drivers.pop(driver.name).retire()
        return True

    def _has_unit(self, name: str) -> bool:
        try:
            self._store.read(name)
        except NoSuchUnit:
            return False
        except QsupError:
            return True  # it has errors
        return True

    def _add(self, loaded: LoadedUnit) -> Driver:
        driver = self._drivers.get(loaded.name)
        if driver is None:
            driver = self._drivers[loaded.name] = Driver(loaded, self._services)
            self._nursery.start_soon(self._keep_driving, driver)
        return driver

    async def _keep_driving(self, driver: Driver) -> None:
        """Run a driver until it retires; a bug in it costs this VM a second of attention, and no other VM anything."""
        while self._drivers.get(driver.name) is driver:
            try:
                await driver.run()
                return
            except Exception:
                _log.exception("driver failed; the VM is taken over again", instance=driver.name)
            await trio.sleep(_DRIVER_RESTART_DELAY)
            if self._drivers.get(driver.name) is driver:
                driver.abandon()
                driver = self._drivers[driver.name] = Driver(driver.loaded, self._services)

    def _resolve_operations(self) -> None:
        """Have each VM take up what an earlier daemon left unfinished, and end what cannot be taken up."""
        operations = self._services.operations
        newest: dict[str, Operation] = {}
        for operation in operations.unfinished():
            if operation.kind == STOP_ALL and operation.boot_id == proc.boot_id():
                self._shutdown.resume(operation)
                continue
            if operation.pending and self._resume_departure(operation):
                continue
            # one at a time holds a VM, and what has overtaken another was asked for later
            if (overtaken := newest.get(operation.target)) is not None:
                words = f"overtaken by {operation.kind}"
                operations.finish(overtaken.id, error=DeniedError(words, instance=operation.target))
            newest[operation.target] = operation
        taken: list[tuple[Driver, Unfinished]] = []
        for operation in newest.values():
            try:
                if (found := self._left_of(operation)) is not None:
                    taken.append(found)
            except QsupError as error:
                _log.warning("operation given up", instance=operation.target, operation=operation.id, why=error.message)
                operations.finish(operation.id, error=error)
        self._turns.start_together(left.operation for _, left in taken if left.request in STARTING)
        stopping = {driver.name for driver, left in taken if left.request in _STOPPING}
        for driver, left in taken:
            driver.resume(evolve(left, waits=not stopping.isdisjoint(self._turns.graph.later(driver.name))))

    def _resume_departure(self, operation: Operation) -> bool:
        """Whether an operation that waits for its guest, and holds nothing, has been given to its VM."""
        driver = self._drivers.get(operation.target)
        if driver is None or operation.boot_id != proc.boot_id():
            return False
        if operation.kind != Request.DETACH.value:
            driver.pending.resume_work(operation.id, operation.arguments["changes"])
            return True
        entry, left = str(operation.arguments["entry"]), operation.time_to_force(proc.uptime())
        persist = bool(operation.arguments["persist"])
        driver.pending.resume_departure(Waits(operation=operation.id, entry=entry, force_after=left, persist=persist))
        return True

    def _left_of(self, operation: Operation) -> tuple[Driver, Unfinished] | None:
        """Who takes up an operation that is left, and what is known of it; ``None`` when it is done.

        Raises:
            QsupError: how it ended, because nothing can take it up.
        """
        name = operation.target
        if operation.boot_id != proc.boot_id():
            words = f"the host was restarted during {operation.kind}, which is not repeated"
            raise QsupError(words, instance=name, hint="look at its status")
        try:
            request = Request(operation.kind)
        except ValueError:
            raise unknown(operation.kind, name) from None
        driver = self._drivers.get(name)
        if driver is None and request in PREEMPTING:
            # a VM without a unit that has no run directory any more, either: it is down
            self._services.operations.finish(operation.id, result={"changed": True})
            return None
        left = Unfinished(
            operation=operation.id,
            request=request,
            asked=operation.uptime,
            timeout=operation.timeout,
            sent=operation.sent,
        )
        return self._find(name, request), left

    # instances

    def driver(self, name: str) -> Driver:
        """The driver of a VM.

        Raises:
            NoSuchInstance: there is none of that name; it says so when that is for errors in its unit files.
        """
        if driver := self._drivers.get(name):
            return driver
        words, hint = f"there is no VM {name!r}", "`qsupctl list` shows all"
        try:
            self._store.read(name)
        except NoSuchUnit:
            pass  # there is nothing more to say
        except UnitError as error:
            words, hint = f"{words}, because its unit has errors: {error.message}", "mend it, then say `qsupctl reload`"
        else:
            new = "say `qsupctl reload`" if not template_of(name) else "an instance is there once it has been started"
            hint = f"its unit is there: {new}"
        raise NoSuchInstance(words, hint=hint)

    async def check_host(self, units: Mapping[str, Unit]) -> Sequence[HostFinding]:
        """Check units against this host; see `qsup.instance.hostcheck`."""
        known = {loaded.name: loaded.unit for loaded in self._store.units.values()}
        return await check_host(units, known, self._services)

    @property
    def placements(self) -> Placements:
        """Where VMs run."""
        return self._services.placements

    @property
    def capacity(self) -> Capacity:
        """What they were promised."""
        return self._services.capacity

    @property
    def node_memories(self) -> NodeMemories:
        """Where the memory of VMs is."""
        return self._services.node_memories

    def drivers(self) -> Iterator[Driver]:
        """Every VM's driver, sorted by name."""
        for name in sorted(self._drivers):
            yield self._drivers[name]

    def problems(self) -> Iterator[str]:
        """What is wrong with VMs, one sentence each."""
        yield from self._autostart.problems()
        for driver in self.drivers():
            if driver.state is State.QUARANTINED and driver.view.cause:
                yield f"{driver.name}: {driver.view.cause.detail}"
            if driver.trouble:
                yield f"{driver.name}: {driver.trouble}"

    def check_down(self, name: str, doing: str) -> None:
        """See that no VM of a unit runs, or of a template.

        Raises:
            DeniedError: one does.
        """
        for driver in self.drivers():
            if name in (driver.name, template_of(driver.name)) and driver.state.level not in DOWN:
                words = f"cannot {doing}: it is {driver.state.level.value}"
                raise DeniedError(words, instance=driver.name, hint="stop it first")

    async def request(
        self,
        name: str,
        request: Request,
        *,
        uid: int,
        timeout: float | None = None,
        idempotency_key: str = "",
        arguments: Mapping[str, Any] = _NONE,
    ) -> Operation:
        """Begin what is asked of a VM; its operation may be finished already, when nothing was to be done.

        Args:
            uid: the caller's, -1 for the daemon itself.
            timeout: seconds in place of the unit's ``stop-timeout``.
            idempotency_key: the same key of the same caller gets the same operation.
            arguments: of a change; see `qsup.instance.change.carry_out`.

        Raises:
            NoSuchInstance: there is no unit of that name.
            KeyReusedError: the key came with another request before.
            DeniedError: the VM's state does not allow it.
            BusyError: another operation holds the VM.
            DependencyError: what it requires, conflicts with or is ordered by does not allow it.
            NoSpaceError: the operation could not be written ahead.
        """
        use = KeyUse(uid=uid, key=idempotency_key, kind=request.value, timeout=timeout, arguments=arguments)
        begun = await self._requests.begin([name], use)
        for error in begun.refused.values():
            raise error
        (operation,) = begun.operations
        return operation

    async def request_all(self, names: Sequence[str], use: KeyUse) -> Begun:
        """Begin a power verb of several VMs as one; see `qsup.order.requests`."""
        return await self._requests.begin(names, use)

    async def stop_all(self, *, uid: int, timeout: float | None, idempotency_key: str = "") -> Operation:
        """Stop every VM that runs, in order, and kill what is left after a time; see `qsup.order.shutdown`."""
        return await self._shutdown.begin(uid=uid, timeout=timeout, key=idempotency_key)

    def _find(self, name: str, request: Request) -> Driver:
        """An instance of a template, or a unit that came after the last reload, is there from its first use on."""
        if name in self._drivers or request not in (*STARTING, Request.SET):
            return self.driver(name)
        try:
            return self._add(self._store.read(name))
        except NoSuchUnit as error:
            raise NoSuchInstance(error.message, hint=error.hint) from error

    # units

    async def reload(self) -> ReloadResult:
        """Read all unit files again. Running VMs go on as they were started."""
        result = await self._store.reload()
        before = {name: driver.loaded.etag for name, driver in self._drivers.items()}
        for loaded in self._store.units.values():
            self._add(loaded).set_unit(loaded)
        for driver in [driver for name, driver in self._drivers.items() if name not in self._store.units]:
            self._reread(driver)
        for driver in self._drivers.values():
            driver.reexamine()
        self._services.publish(
            "units-reloaded",
            None,
            {"added": list(result.added), "changed": list(result.changed), "removed": list(result.removed)},
        )
        changed = (driver for driver in self.drivers() if driver.loaded.etag != before.get(driver.name))
        running = tuple([await access.compared(driver, driver.loaded) for driver in changed if driver.life is not None])
        return evolve(result, running=running)

    async def diff(self, name: str) -> UnitChanges:
        """A VM against its unit as the files say it now, read afresh.

        Raises:
            NoSuchInstance: there is no VM of that name.
            DeniedError: nothing is known of what it was started with.
            NoSuchUnit, UnitError: it runs, and its files are gone or have errors.
        """
        driver = self.driver(name)
        if driver.state is State.QUARANTINED:
            detail = driver.view.cause.detail if driver.view.cause else ""
            raise DeniedError(f"cannot compare: {detail}", instance=name, hint="repair the file, then reload")
        return await access.compared(driver, driver.loaded if driver.life is None else self._store.read(name))

    def _reread(self, driver: Driver) -> None:
        """A VM that no file is named after, or whose unit has errors: one without a unit goes once it is down."""
        try:
            driver.set_unit(self._store.read(driver.name))
        except NoSuchUnit:
            if not self._forget(driver):
                driver.lose_unit()
        except QsupError:
            pass  # its last valid version counts
