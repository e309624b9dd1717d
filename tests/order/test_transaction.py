"""What a request brings along on other VMs, and that it is begun as a whole or not at all."""

from __future__ import annotations

import pytest
import trio

from qsup.errors import BusyError, DependencyError, NoSpaceError
from qsup.instance.state import Request, State
from qsup.order.transaction import Step
from tests.order.drivers import Crowd
from tests.unit.test_graph import unit
from tests.waiting import wait_until

SHOP = {
    "db": unit(),
    "web": unit(requires="db", wants="cache", after="db"),
    "shop": unit(requires="web", after="web"),
    "cache": unit(),
    "test": unit(conflicts="db"),
    "user": unit(requires="test"),
}


async def along(crowd: Crowd, name: str, request: Request) -> dict[str, str]:
    """What a request of one VM brings along: VM -> verb."""
    read = await crowd.transactions.read([name])
    return {step.name: step.request.value for step in crowd.transactions.along([name], request, read)}


async def test_a_start_brings_along_only_what_is_down() -> None:
    """What runs or starts is left alone, and what that requires; what conflicts is stopped with whoever requires it."""
    crowd = Crowd(SHOP)
    assert await along(crowd, "shop", Request.START) == {"db": "start", "web": "start", "cache": "start"}
    for name in ("test", "user"):
        crowd.put(name, State.RUNNING)
    stops = {"test": "stop", "user": "stop"}
    assert await along(crowd, "web", Request.START) == {"db": "start", "cache": "start", **stops}
    crowd.put("cache", State.WAITING_READY)
    crowd.put("web", State.RUNNING)
    crowd.hold("test", Request.STOP)
    assert await along(crowd, "shop", Request.START) == {}
    assert await along(crowd, "db", Request.START) == {"user": "stop"}


async def test_a_required_vm_that_is_being_stopped_refuses_a_start_and_a_wanted_one_does_not() -> None:
    """The operation that holds it is named."""
    crowd = Crowd(SHOP)
    crowd.put("db", State.RUNNING)
    crowd.hold("db", Request.STOP)
    with pytest.raises(DependencyError, match="it requires db: stop is under way"):
        await along(crowd, "web", Request.START)
    crowd = Crowd(SHOP)
    crowd.put("cache", State.STOPPING_GUEST)
    assert await along(crowd, "web", Request.START) == {"db": "start"}


async def test_a_start_does_not_stop_what_it_needs() -> None:
    """A VM that conflicts with what one of its own requires is refused, not stopped again and again."""
    crowd = Crowd({"web": unit(requires="db", conflicts="old"), "db": unit(requires="old"), "old": unit()})
    for name in ("db", "old"):
        crowd.put(name, State.RUNNING)
    with pytest.raises(DependencyError, match="it needs db, and conflicts with what db is or requires"):
        await along(crowd, "web", Request.START)


async def test_a_stop_and_a_restart_take_along_who_runs_and_requires_it() -> None:
    """Also who only waits to start, but a restart leaves that waiting; what is held is not restarted."""
    crowd = Crowd(SHOP)
    for name in ("db", "web", "cache"):
        crowd.put(name, State.RUNNING)
    crowd.put("shop", State.WAITING_DEPS)
    crowd.hold("shop", Request.START)
    assert await along(crowd, "db", Request.STOP) == {"shop": "stop", "web": "stop"}
    assert await along(crowd, "db", Request.RESTART) == {"web": "restart"}
    assert await along(crowd, "cache", Request.STOP) == {}
    assert await along(crowd, "db", Request.KILL) == {}
    crowd.hold("web", Request.PAUSE)
    with pytest.raises(BusyError, match="pause is under way"):
        await along(crowd, "db", Request.RESTART)


async def test_all_that_was_asked_for_is_on_record_together() -> None:
    """A daemon that dies in between has accepted all of it or nothing."""
    crowd = Crowd(SHOP)
    read = await crowd.transactions.read(["shop"])
    steps = crowd.transactions.with_start(["shop"], read)
    begun = await crowd.transactions.begin(steps, read, uid=7)
    assert [operation.target for operation in begun] == ["cache", "db", "web", "shop"]
    assert crowd.journal.written == [4]
    assert crowd.requests() == dict.fromkeys(("db", "web", "shop", "cache"), "start")
    assert {operation.requested_by for operation in begun} == {7}


@pytest.mark.parametrize("room", [0, 2, 3])
async def test_a_full_disk_begins_nothing(room: int) -> None:
    """Each VM is free again, and nothing is known of any of it."""
    crowd = Crowd(SHOP)
    crowd.journal.room = room
    read = await crowd.transactions.read(["shop"])
    with pytest.raises(NoSpaceError):
        await crowd.transactions.begin(crowd.transactions.with_start(["shop"], read), read, uid=0)
    assert crowd.requests() == {}
    assert all(not len(driver._inbox) for driver in crowd.drivers.values())
    assert crowd.operations.all() == ()


async def test_a_full_disk_stops_no_stop() -> None:
    """What cannot be written ahead is begun all the same."""
    crowd = Crowd(SHOP)
    crowd.journal.room = 0
    for name in ("db", "web"):
        crowd.put(name, State.RUNNING)
    steps = [Step(name=name, request=Request.STOP) for name in ("web", "db")]
    assert len(await crowd.transactions.begin(steps, {}, uid=0)) == 2
    assert crowd.requests() == {"db": "stop", "web": "stop"}


async def test_of_those_that_start_by_themselves_as_many_start_as_can() -> None:
    """A requirement that is missing, a cycle and a conflict cost those concerned, and nobody else."""
    crowd = Crowd(
        {
            "a": unit(after="b"),
            "b": unit(after="a"),
            "c": unit(wants="a"),
            "d": unit(requires="gone"),
            "e": unit(conflicts="f"),
            "f": unit(),
            "g": unit(requires="h"),
            "h": unit(),
        }
    )
    read = await crowd.transactions.read("abcdefg")
    steps, refused = crowd.transactions.with_starts("abcdefg", read)
    assert refused.keys() == set("abcdf")
    assert "it requires gone" in refused["d"].message
    assert [step.name for step in steps] == ["e", "h", "g"] or [step.name for step in steps] == ["e", "g", "h"]


async def test_those_that_are_restarted_along_start_so_many_at_a_time(nursery: trio.Nursery) -> None:
    """Not all that require one VM at once, as soon as that is ready again."""
    crowd = Crowd({"x": unit(), "a": unit(requires="x"), "b": unit(requires="x")}, concurrency=1)
    crowd.turns.run_in(nursery)
    crowd.put("x", State.RUNNING)
    steps = [Step(name=name, request=Request.RESTART) for name in "ab"]
    first, second = await crowd.transactions.begin(steps, {}, uid=0)
    assert crowd.turns.try_start("a", first.id)
    assert not crowd.turns.try_start("b", second.id)
    crowd.end("a", State.RUNNING)
    await wait_until(lambda: crowd.turns.try_start("b", second.id), "the slot is given back")
