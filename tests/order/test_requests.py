"""Requests of several VMs: one transaction, in which one that cannot be begun keeps no other from its turn."""

from __future__ import annotations

import pytest
import trio

from qsup.errors import BusyError, DeniedError, DependencyError, NoSpaceError, NoSuchInstance
from qsup.instance.driver import Driver
from qsup.instance.operation import Begun, KeyUse
from qsup.instance.state import Request, State
from qsup.order.requests import Requests
from qsup.order.shutdown import Shutdown
from qsup.unit.sections.service import UnitSection
from tests.order.drivers import Crowd
from tests.unit.test_graph import unit


class Desk(Crowd):
    """Takes requests."""

    def __init__(self, **units: UnitSection) -> None:
        super().__init__(units)
        self.shutdown = Shutdown(self.drivers, self.services, self.transactions, seconds=1.0)
        self.desk = Requests(self.services, self.transactions, self.shutdown, self._find)

    def _find(self, name: str, request: Request) -> Driver:
        if name not in self.drivers:
            raise NoSuchInstance(f"there is no VM {name!r}")
        return self.drivers[name]

    async def ask(self, request: Request, *names: str, key: str = "", timeout: float | None = None) -> Begun:
        """Ask for something, as a user of the API."""
        return await self.desk.begin(names, KeyUse(uid=7, key=key, kind=request.value, timeout=timeout))

    async def refused(self, request: Request, *names: str) -> dict[str, str]:
        """Ask for it; the codes of what was refused."""
        return {name: error.code for name, error in (await self.ask(request, *names)).refused.items()}


async def test_all_hold_their_vms_before_any_is_begun(nursery: trio.Nursery) -> None:
    """So that those that are `after` others wait for them, whatever the order in which they were named."""
    desk = Desk(web=unit(after="db"), db=unit(), shop=unit(before="web"))
    desk.turns.run_in(nursery)
    begun = await desk.ask(Request.START, "web", "db", "shop", timeout=4.0)
    assert [(each.kind, each.target, each.timeout) for each in begun.operations] == [
        ("start", name, 4.0) for name in ("web", "db", "shop")
    ]
    assert begun.refused == {}
    assert desk.journal.written == [3]
    waiting = {each.target: desk.turns.try_start(each.target, each.id) for each in begun.operations}
    assert waiting == {"web": False, "db": True, "shop": True}
    for name in desk.drivers:
        desk.end(name, State.RUNNING)
    await desk.ask(Request.STOP, "db", "web")
    assert [desk.turns.may_stop(name) for name in ("db", "web")] == [False, True]


async def test_what_is_brought_along_is_begun_once() -> None:
    """Whoever requires it, and also when it is named as well."""
    desk = Desk(a=unit(requires="db"), b=unit(requires="db log"), db=unit(), log=unit())
    begun = await desk.ask(Request.START, "a", "b", "db")
    assert [operation.target for operation in begun.operations] == ["a", "b", "db"]
    assert desk.requests() == dict.fromkeys(("a", "b", "db", "log"), "start")
    assert len(desk.operations.all()) == 4
    for name in desk.drivers:
        desk.end(name, State.RUNNING)
    begun = await desk.ask(Request.RESTART, "db", "a")
    assert [operation.target for operation in begun.operations] == ["db", "a"]
    assert desk.requests() == dict.fromkeys(("a", "b", "db"), "restart")


async def test_one_that_is_refused_keeps_no_other_from_its_turn() -> None:
    """A name that does not exist, a VM that is held, one whose requirement cannot be: each says why."""
    desk = Desk(web=unit(), busy=unit(), lame=unit(requires="none"), late=unit(requires="lame"), db=unit())
    desk.put("busy", State.RUNNING)
    desk.hold("busy", Request.PAUSE)
    desk.put("db", State.RUNNING)
    begun = await desk.ask(Request.RESTART, "gone", "web", "busy", "lame", "late", "db")
    assert [operation.target for operation in begun.operations] == ["web", "db"]
    assert {name: (error.code, error.instance) for name, error in begun.refused.items()} == {
        "gone": (NoSuchInstance.code, ""),
        "busy": (BusyError.code, "busy"),
        "lame": (DependencyError.code, "lame"),
        "late": (DependencyError.code, "late"),
    }
    assert desk.requests() == {"busy": "pause", "web": "restart", "db": "restart"}


async def test_what_excludes_each_other_is_refused_before_anything_is_begun() -> None:
    """Two that are down, one that runs and is named as well, and a cycle; the others are not begun, either."""
    desk = Desk(
        a=unit(conflicts="b"), b=unit(), c=unit(), user=unit(requires="b"), x=unit(after="y"), y=unit(after="x")
    )
    for names in (("a", "b", "c"), ("c", "user", "a"), ("x", "c", "y"), ("gone", "a", "b")):
        with pytest.raises(DependencyError):
            await desk.ask(Request.START, *names)
    for name in ("b", "user"):
        desk.put(name, State.RUNNING)
    for named in ("b", "user"):
        with pytest.raises(DependencyError, match=f"{named} would be stopped for what conflicts with it"):
            await desk.ask(Request.START, "a", named, "c")
    with pytest.raises(DependencyError):
        await desk.ask(Request.RESTART, "a", "b")
    assert desk.operations.all() == ()
    assert desk.journal.records == []
    # neither is in the other's way of being stopped
    assert len((await desk.ask(Request.STOP, "a", "b")).operations) == 2


async def test_what_is_so_already_succeeds_and_what_is_under_way_is_joined() -> None:
    """A stop of one that is down, of one that is being killed, and of one that runs."""
    desk = Desk(down=unit(), up=unit(), going=unit())
    desk.put("up", State.RUNNING)
    desk.put("going", State.RUNNING)
    kill = desk.hold("going", Request.KILL)
    begun = await desk.ask(Request.STOP, "going", "down", "up", key="k")
    assert begun.operations[0].id == kill
    assert [operation.target for operation in begun.operations] == ["going", "down", "up"]
    assert desk.requests() == {"going": "kill", "down": "stop", "up": "stop"}
    again = await desk.ask(Request.STOP, "going", "down", "up", key="k")
    assert [each.id for each in again.operations] == [each.id for each in begun.operations]
    # all of them are under way
    third = await desk.ask(Request.STOP, "up", "going", key="other")
    assert [each.id for each in third.operations] == [begun.operations[2].id, kill]
    alone = await desk.ask(Request.STOP, "up", key="last")
    assert [use.key for use in alone.operations[0].joined] == ["last"]


async def test_while_all_are_being_stopped_none_is_started(nursery: trio.Nursery) -> None:
    """Each is refused, and says so."""
    desk = Desk(a=unit(), b=unit())
    desk.put("a", State.RUNNING)
    desk.shutdown.run_in(nursery)
    await desk.shutdown.begin(uid=0, timeout=5.0, key="")
    assert await desk.refused(Request.START, "a", "b") == dict.fromkeys("ab", DeniedError.code)
    nursery.cancel_scope.cancel()


async def test_a_full_disk_begins_none_of_them_and_stops_all() -> None:
    """As with one VM."""
    desk = Desk(a=unit(), b=unit())
    desk.journal.room = 1
    with pytest.raises(NoSpaceError):
        await desk.ask(Request.START, "a", "b")
    assert (desk.requests(), desk.operations.all()) == ({}, ())
    for name in "ab":
        desk.put(name, State.RUNNING)
    assert len((await desk.ask(Request.STOP, "a", "b")).operations) == 2
