"""Drivers that nobody runs: tests say where they stand.

Decides: how a set of VMs is made from relations, and moved.
Must not: know what is expected of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsup.errors import NoSpaceError, NoSuchUnit, QsupError
from qsup.host.claims import Claims
from qsup.host.rundir import Layout
from qsup.instance.driver import Driver
from qsup.instance.operations import OperationTable
from qsup.instance.services import Services
from qsup.instance.settle import Holder
from qsup.instance.state import Event, Request, State
from qsup.order.transaction import Transactions
from qsup.order.turns import Turns
from qsup.unit.load import LoadedUnit
from qsup.unit.model import Unit
from qsup.unit.sections.service import ServiceSection, UnitSection

#: The shortest way into each state that tests need.
_WAYS = {
    State.DEAD: (),
    State.RUNNING: (Event.START, Event.LAUNCHED, Event.READY),
    State.WAITING_READY: (Event.START, Event.LAUNCHED),
    State.WAITING_DEPS: (Event.QUEUED,),
    State.AUTO_RESTART: (Event.START, Event.LAUNCHED, Event.READY, Event.RESTARTING),
    State.EXITING: (Event.START, Event.LAUNCHED, Event.READY, Event.DYING),
    State.CRASHED: (Event.START, Event.LAUNCHED, Event.READY, Event.FAILED),
    State.START_FAILED: (Event.START, Event.START_FAILED),
    State.STOPPING_GUEST: (Event.START, Event.LAUNCHED, Event.READY, Event.STOP),
    State.STUCK: (Event.START, Event.LAUNCHED, Event.KILL, Event.STAGE_TIMEOUT),
}


class Journal:
    """Keeps in memory what is recorded, until it is full.

    Args:
        room: how many records it takes.

    Attributes:
        written: how many came together, each time.
    """

    def __init__(self, room: float = float("inf")) -> None:
        self.records: list[dict[str, Any]] = []
        self.written: list[int] = []
        self.room = room

    async def append(self, *records: dict[str, Any], flush: bool = True) -> None:
        """Keep all; `NoSpaceError` when there is no room for them."""
        if len(self.records) + len(records) > self.room:
            raise NoSpaceError("could not write: No space left on device")
        self.records.extend(records)
        self.written.append(len(records))


def _unused(*_arguments: Any, **_named: Any) -> Any:
    raise AssertionError("not to be called")


class Crowd:
    """Some VMs that have to do with each other.

    Args:
        units: their ``[unit]`` sections.
        seconds: every timeout of theirs.
        concurrency: how many start at a time.
    """

    def __init__(self, units: Mapping[str, UnitSection], *, seconds: float = 10.0, concurrency: int = 100) -> None:
        service = ServiceSection(start_timeout=seconds, stop_timeout=seconds)
        self.loaded = {
            name: LoadedUnit(name=name, unit=Unit(unit=unit, service=service), files=("x",), etag="", text="")
            for name, unit in units.items()
        }
        self.journal = Journal()
        self.operations = OperationTable(self.journal)
        self.drivers: dict[str, Driver] = {}
        self.turns = Turns(self.drivers, self.operations, concurrency=concurrency)
        self.services = Services(
            layout=Layout.for_root(Path("/nowhere")),
            load=self._load,
            persist=_unused,
            facts=_unused,
            capabilities=_unused,
            claims=Claims(),
            cgroups=_unused,  # type: ignore[arg-type]  # never called by these tests
            identities=_unused,  # type: ignore[arg-type]  # never called by these tests
            operations=self.operations,
            publish=lambda event_type, instance, data: None,
            block_devices=(),
            uids=None,
            on_latency=_unused,
            turns=self.turns,
        )
        self.transactions = Transactions(self.drivers, self.services, self.turns, self._add)
        for each in self.loaded.values():
            self._add(each)._adopted.set()

    async def _load(self, name: str) -> LoadedUnit:
        if name not in self.loaded:
            raise NoSuchUnit(f"no unit {name!r}")
        return self.loaded[name]

    def _add(self, loaded: LoadedUnit) -> Driver:
        found = self.drivers[loaded.name] = Driver(loaded, self.services)
        return found

    def put(self, name: str, state: State) -> None:
        """Have a VM be in a state, by way of the table."""
        driver = self.drivers[name]
        driver._position._state = State.DEAD
        for event in _WAYS[state]:
            driver._position.move(event, None)
        driver.touch()

    def hold(self, name: str, request: Request, **how: Any) -> str:
        """Have an operation hold a VM; its id."""
        operation = self.operations.begin(request.value, name, uid=0)
        self.drivers[name].hold(Holder(operation=operation.id, request=request, **how))
        return operation.id

    def end(self, name: str, state: State, error: QsupError | None = None) -> None:
        """The operation that holds a VM ends, and leaves it in a state."""
        self.put(name, state)
        driver = self.drivers[name]
        assert driver.holder is not None, "an operation holds it"
        driver._hold.end(driver.holder.operation, error=error)

    def requests(self) -> dict[str, str]:
        """What holds which VM."""
        return {name: driver.holder.request.value for name, driver in self.drivers.items() if driver.holder}
