"""Whose turn it is: nobody waits for himself, nobody waits without end, and so many start at a time."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import DependencyError
from qsup.instance.state import Request, State
from tests.order.drivers import Crowd
from tests.unit.test_graph import NAMES, Units, graphs, unit
from tests.waiting import wait_until

VERBS = (Request.START, Request.STOP, Request.RESTART, Request.KILL)


@given(graphs(), st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VERBS)))
def test_whatever_is_begun_comes_to_its_end(units: Units, asked: dict[str, Request]) -> None:
    """Any starts, stops and restarts of any VMs at once, whatever their relations, cycles too: somebody can always go.

    And nobody goes too early: a start finds those before it settled and those that stop down, a stop those behind it.
    """
    crowd = Crowd(units)
    pending = {name: request for name, request in asked.items() if name in units}
    for name, request in pending.items():
        crowd.put(name, State.DEAD if request is Request.START else State.RUNNING)
        crowd.hold(name, request)
    graph = crowd.turns.graph
    halves = dict(pending)
    while halves:
        going = [name for name, request in sorted(halves.items()) if _may_go(crowd, name, request)]
        assert going, f"nobody can go: {halves}"
        name = going[0]
        if halves[name] is Request.START:
            assert not any(halves.get(other) is Request.START for other in graph.earlier(name))
            crowd.end(name, State.RUNNING)
            del halves[name]
        elif halves[name] is Request.RESTART:
            assert not any(halves.get(other) is Request.STOP for other in graph.later(name))
            crowd.put(name, State.DEAD)
            crowd.hold(name, Request.START)
            halves[name] = Request.START
        else:
            crowd.end(name, State.DEAD)
            del halves[name]


def _may_go(crowd: Crowd, name: str, request: Request) -> bool:
    if request is Request.START:
        return next(crowd.turns._before_start(name), None) is None
    return request is Request.KILL or crowd.turns.may_stop(name)


async def test_a_start_waits_no_longer_than_the_others_may_take(autojump_clock: trio.testing.MockClock) -> None:
    """A VM that never becomes ready, and whose own deadline does not come, is named in the end."""
    crowd = Crowd({"web": unit(after="db"), "db": unit()})
    crowd.put("db", State.WAITING_READY)
    crowd.hold("db", Request.START)
    operation = crowd.hold("web", Request.START)
    assert not crowd.turns.try_start("web", operation)
    with pytest.raises(DependencyError, match=r"in vain for db, which is activating \(waiting-ready\)"):
        await crowd.turns.wait_to_start("web", operation)
    assert 20 < trio.current_time() < 300


async def test_a_stop_goes_on_when_the_others_take_too_long(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing ever refuses a stop."""
    crowd = Crowd({"web": unit(after="db"), "db": unit()})
    for name in ("web", "db"):
        crowd.put(name, State.RUNNING)
    crowd.hold("web", Request.STOP)
    operation = crowd.hold("db", Request.STOP)
    assert not crowd.turns.may_stop("db")
    await crowd.turns.wait_to_stop("db", operation)
    assert 10 < trio.current_time() < 300


async def test_a_view_says_what_its_vm_waits_for(nursery: trio.Nursery) -> None:
    """As the operation does: while a start or a stop waits, as long as that is so, and nobody is told twice."""
    crowd = Crowd({"web": unit(after="db"), "db": unit(), "log": unit(before="web")}, concurrency=1)
    crowd.turns.run_in(nursery)
    view = crowd.drivers["web"]
    held = {name: crowd.hold(name, Request.START) for name in ("db", "log", "web")}
    crowd.turns.start_together(held.values())
    assert crowd.turns.try_start("db", held["db"])
    nursery.start_soon(crowd.turns.wait_to_start, "web", held["web"])
    await wait_until(lambda: view.view.waits_for == "db (dead), log (dead)", "it waits for both")
    assert crowd.operations.get(held["web"]).progress == f"waiting for {view.view.waits_for}"
    told = view.next_touch()
    crowd.put("db", State.WAITING_READY)
    await wait_until(lambda: view.view.waits_for == "db (waiting-ready), log (dead)", "it is told of the change")
    assert told.is_set()
    told = view.next_touch()
    crowd.drivers["db"].touch()
    await trio.testing.wait_all_tasks_blocked()
    assert not told.is_set()
    crowd.end("log", State.RUNNING)
    crowd.drivers["db"].touch()
    await wait_until(lambda: view.view.waits_for == "db (waiting-ready)", "one is left")
    crowd.end("db", State.RUNNING)
    await wait_until(lambda: view.view.waits_for == "", "it waits no more")
    crowd.end("web", State.RUNNING)
    crowd.hold("web", Request.STOP)
    crowd.hold("db", Request.STOP)
    async with trio.open_nursery() as waiting:
        waiting.start_soon(crowd.turns.wait_to_stop, "db", "")
        await wait_until(lambda: crowd.drivers["db"].view.waits_for == "web (running)", "the stop waits")
        waiting.cancel_scope.cancel()
    assert crowd.drivers["db"].view.waits_for == ""


async def test_the_failure_of_a_required_vm_is_not_waited_out(nursery: trio.Nursery) -> None:
    """While another one still starts, what is lacking is told at once."""
    crowd = Crowd({"web": unit(after="a db", requires="db"), "a": unit(), "db": unit()})
    for name in ("a", "db"):
        crowd.put(name, State.WAITING_READY)
        crowd.hold(name, Request.START)
    operation = crowd.hold("web", Request.START)

    async def fail() -> None:
        await wait_until(lambda: "a (waiting-ready)" in crowd.operations.get(operation).progress, "it waits")
        crowd.end("db", State.START_FAILED)

    nursery.start_soon(fail)
    with pytest.raises(DependencyError, match=r"it requires db, which is failed \(start-failed\)"):
        await crowd.turns.wait_to_start("web", operation)


async def test_what_it_conflicts_with_and_does_not_go_down_fails_a_start() -> None:
    """The kernel keeps it, or somebody has started it again."""
    for state in (State.STUCK, State.RUNNING):
        crowd = Crowd({"blue": unit(), "green": unit(conflicts="blue")})
        crowd.put("blue", state)
        operation = crowd.hold("green", Request.START)
        with pytest.raises(DependencyError, match="it conflicts with blue, which is "):
            await crowd.turns.wait_to_start("green", operation)


async def test_so_many_start_at_a_time_and_a_slot_is_given_back(nursery: trio.Nursery) -> None:
    """Those of one transaction share the slots; a start by itself, and one of another transaction, needs none."""
    crowd = Crowd({name: unit() for name in "abcdx"}, concurrency=2)
    crowd.turns.run_in(nursery)
    held = {name: crowd.hold(name, Request.START) for name in "abcd"}
    crowd.turns.start_together(held.values())
    assert [crowd.turns.try_start(name, operation) for name, operation in held.items()] == [True, True, False, False]
    # a slot that nobody came to need is forgotten, however many operations there were since
    gone = crowd.hold("x", Request.START)
    crowd.turns.start_together([gone, "another"])
    crowd.end("x", State.DEAD)
    del crowd.operations._operations[gone]
    alone = crowd.hold("x", Request.START)
    crowd.turns.start_together([alone])
    assert crowd.turns.try_start("x", alone)
    started = []

    async def wait(name: str) -> None:
        await crowd.turns.wait_to_start(name, held[name])
        started.append(name)

    for name in "cd":
        nursery.start_soon(wait, name)
    await wait_until(lambda: all("2 at a time" in crowd.operations.get(held[n]).progress for n in "cd"), "both wait")
    assert started == []
    crowd.end("a", State.RUNNING)
    await wait_until(lambda: len(started) == 1, "one has its turn")
    crowd.end("b", State.START_FAILED)
    await wait_until(lambda: len(started) == 2, "the other has its turn")


BY_POLICY = ""


async def test_a_restart_by_policy_waits_for_those_that_come_back_themselves(nursery: trio.Nursery) -> None:
    """In order, and for the rest of an end of which the policy is not known yet; then it starts, or says why not."""
    crowd = Crowd({"web": unit(after="db", requires="db"), "db": unit()})
    done: list[str] = []

    async def wait() -> None:
        try:
            await crowd.turns.wait_to_start("web", BY_POLICY)
        except DependencyError as error:
            done.append(error.message)
        else:
            done.append("")

    for end, words in ((State.RUNNING, ""), (State.CRASHED, "it requires db, which is failed (crashed)")):
        done.clear()
        crowd.put("db", State.EXITING)
        assert not crowd.turns.try_start("web", BY_POLICY)
        nursery.start_soon(wait)
        for state in (State.AUTO_RESTART, State.WAITING_READY, State.AUTO_RESTART):
            await trio.testing.wait_all_tasks_blocked()
            assert done == []
            crowd.put("db", state)
            assert not crowd.turns.try_start("web", BY_POLICY)
        await trio.testing.wait_all_tasks_blocked()
        crowd.put("db", end)
        await wait_until(lambda: done, "it need not wait any more")
        assert done == [words]
        assert crowd.turns.try_start("web", BY_POLICY) is (words == "")


async def test_a_restart_by_policy_waits_for_order_alone() -> None:
    """Without `after` both come back by themselves; and whoever starts a VM by hand does not wait for a policy."""
    crowd = Crowd({"web": unit(requires="db"), "shop": unit(after="db"), "db": unit()})
    crowd.put("db", State.AUTO_RESTART)
    assert crowd.turns.try_start("web", BY_POLICY)
    assert not crowd.turns.try_start("shop", BY_POLICY)
    assert crowd.turns.try_start("shop", crowd.hold("shop", Request.START))


async def test_a_restart_by_policy_waits_no_longer_than_the_others_may_take(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One that never comes back is named in the end; its own delay counts."""
    crowd = Crowd({"web": unit(after="db"), "db": unit()})
    crowd.put("db", State.AUTO_RESTART)
    crowd.drivers["db"]._position.restart_delay = 1000.0
    with pytest.raises(DependencyError, match=r"in vain for db, which is activating \(auto-restart\)"):
        await crowd.turns.wait_to_start("web", BY_POLICY)
    assert 1010 < trio.current_time() < 1300
