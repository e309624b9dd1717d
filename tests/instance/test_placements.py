"""The list of all VMs' places: what units ask of it, and what it says of a VM as others come and go, on hosts in the
shapes of real machines.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
import trio
import trio.lowlevel
from attrs import evolve

from qsup.errors import PlacementError
from qsup.instance.placements import Placements
from qsup.instance.reconciler import Reconciler
from qsup.plan.pinning import Pins
from qsup.unit.model import Unit
from qsup.unit.quantity import format_cpu_set
from tests.instance.placing import Host, said, threaded, unit
from tests.plan.hosts import HOSTS, changed
from tests.waiting import wait_until


@pytest.fixture
def host() -> Host:
    """The host."""
    return Host()


@pytest.fixture
def placements(host: Host) -> Placements:
    """Nobody is there."""
    return Placements(host)


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ({}, "anywhere + anywhere"),
        ({"vcpus": 2, "pin": ((2,), (3,))}, "2 3 + 2-3"),
        ({"vcpus": 2, "pin": ((2, 3),)}, "2-3 2-3 + 2-3"),
        ({"vcpus": 1, "pin": ((2,),), "emulator_pin": (0, 1)}, "2 + 0-1"),
        ({"emulator_pin": (0,)}, "anywhere + 0"),
        ({"vcpus": 2, "pin": "auto"}, "0-15 + 0-15"),
        ({"vcpus": 2, "pin": "auto", "emulator_pin": (5,)}, "0-15 + 5"),
        ({"vcpus": 2, "max_vcpus": 3, "pin": "auto", "exclusive": True}, "0 8 1 + 2-7,10-15"),
        ({"vcpus": 2, "pin": ((2,), (3,)), "exclusive": True, "emulator_pin": (4,)}, "2 3 + 4"),
    ],
)
async def test_what_units_ask_for(placements: Placements, cpu: dict[str, Any], expected: str) -> None:
    """What each key means of a VM that is alone."""
    chosen = await placements.take("web", unit(**cpu))
    assert said(placements, "web") == expected
    assert (chosen is not None) is (cpu.get("pin") == "auto")
    assert placements.chosen("web") == chosen
    placements.release("web")
    assert placements.pins("web") is None


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (threaded((), ()), "anywhere + anywhere"),
        (threaded((3, 4)), "anywhere + anywhere + io0 3-4"),
        (threaded((3,), (), pin=((2,),)), "2 + 2 + io0 3"),
        (threaded((3,), emulator_pin=(1,)), "anywhere + 1 + io0 3"),
        (threaded((3,), (), vcpus=2, pin="auto"), "0-15 + 0-15 + io0 3"),
        (threaded((2,), (), vcpus=1, pin="auto", exclusive=True), "0 + 1-7,9-15 + io0 2"),
    ],
)
async def test_what_units_say_of_iothreads(placements: Placements, unit: Unit, expected: str) -> None:
    """One of which nothing is said is where everything else is, also where that is chosen."""
    await placements.take("web", unit)
    assert said(placements, "web") == expected
    later = Placements()
    later.restore("web", unit, placements.chosen("web"))
    if unit.cpu.pin != "auto":
        assert said(later, "web") == expected, "so it is under the next daemon"


async def test_iothreads_keep_off_what_is_exclusively_somebodys(placements: Placements) -> None:
    """They are refused where they name it, and others that want what they name; without a word they leave."""
    await placements.take("named", threaded((6,)))
    await placements.take("chosen", threaded((7,), pin="auto"))
    await placements.take("plain", threaded(()))
    await placements.take("db", unit(pin=((5,),), exclusive=True))
    for cpu, other in ((6, "named"), (7, "chosen")):
        with pytest.raises(PlacementError, match=f"CPU {cpu}, which it wants for itself, {other} names as well"):
            await placements.take("second", unit(pin=((cpu,),), exclusive=True))
    for wanted in (threaded((5,)), threaded((5,), pin="auto"), threaded((), (4, 5), pin=((4,),))):
        with pytest.raises(PlacementError, match="CPU 5 is exclusively db's"):
            await placements.take("second", wanted)
    with pytest.raises(PlacementError, match="there is no CPU 4000"):
        await placements.take("second", threaded((4000,)))
    others = "0-4,6-12,14-15"
    assert said(placements, "named") == f"{others} + {others} + io0 6"
    assert said(placements, "chosen") == f"{others} + {others} + io0 7"
    assert said(placements, "plain") == f"{others} + {others}"


async def test_cpus_that_are_named_besides_chosen_ones_are_not_given_away(placements: Placements) -> None:
    """Whole cores are free of anybody's named threads, and who names such a CPU for itself is refused."""
    await placements.take("web", threaded((0,), pin="auto", emulator_pin=(1,)))
    with pytest.raises(PlacementError, match="CPU 1, which it wants for itself, web names as well"):
        await placements.take("db", unit(pin=((1,),), exclusive=True))
    chosen = await placements.take("db", unit(vcpus=2, pin="auto", exclusive=True))
    assert chosen is not None
    assert chosen.vcpus == ((2,), (10,))
    assert said(placements, "web").endswith(" + 1 + io0 0")


async def test_a_vms_own_named_cpus_are_none_for_its_vcpus(placements: Placements) -> None:
    """A vCPU of its own CPU would share that with the threads that its unit has put there."""
    await placements.take("db", threaded((1,), vcpus=2, pin="auto", exclusive=True, emulator_pin=(0,)))
    assert said(placements, "db") == "2 10 + 0 + io0 1"
    with pytest.raises(PlacementError, match="web names 3-9,11-15"):
        await placements.take(
            "web", unit(pin="auto", exclusive=True, emulator_pin=(0, 1, *range(3, 10), *range(11, 16)))
        )


async def test_a_chosen_place_is_kept_when_other_threads_move(host: Host, placements: Placements) -> None:
    """By this daemon and the next, though another would be chosen now; what is asked of vCPUs anew is chosen anew."""
    alone = {"vcpus": 2, "pin": "auto", "exclusive": True}
    await placements.take("before", unit(pin="auto", exclusive=True))
    first = await placements.take("db", unit(**alone))
    placements.release("before")
    later = Placements(host)
    later.restore("db", unit(**alone), first)
    for each in (placements, later):
        assert await each.take("db", threaded((6,), **alone, emulator_pin=(7,))) == first
        assert said(each, "db") == "1 9 + 7 + io0 6"
        await each.take("db", unit(vcpus=2, pin="auto"))
        await each.take("db", unit(**alone))
        assert said(each, "db") == "0 8 + 1-7,9-15"


async def test_a_place_is_chosen_anew_at_each_start(placements: Placements) -> None:
    """Also of a VM that has kept its own while it waited for that; whether there is one is known before it ends."""
    alone = unit(vcpus=2, pin="auto", exclusive=True)
    await placements.take("before", unit(pin="auto", exclusive=True), starts=True)
    await placements.take("db", alone, starts=True)
    placements.release("before")
    await placements.take_next("db", unit(vcpus=14, pin="auto", exclusive=True))
    for wanted in (unit(vcpus=16, pin="auto", exclusive=True), unit(pin=((4000,),))):
        with pytest.raises(PlacementError):
            await placements.take_next("db", wanted)
    assert said(placements, "db").startswith("1 9 + ")
    await placements.take("db", alone, starts=True)
    assert said(placements, "db").startswith("0 8 + ")


async def test_two_that_restart_do_not_both_get_the_last_core(placements: Placements) -> None:
    """What one is to come back with is nobody else's, though nobody leaves for it yet, until it does or does not."""
    few, many = unit(vcpus=2, pin="auto", exclusive=True), unit(vcpus=12, pin="auto", exclusive=True)
    for name in ("one", "two"):
        await placements.take(name, few, starts=True)
    await placements.take("plain", unit())
    before = said(placements, "plain")
    await placements.take_next("one", many)
    assert said(placements, "plain") == before
    with pytest.raises(PlacementError):
        await placements.take_next("two", unit(vcpus=4, pin="auto", exclusive=True))
    with pytest.raises(PlacementError):
        await placements.take("three", few)
    placements.forgo("one")
    await placements.take_next("one", many)
    await placements.take_next("one", unit())  # overtakes that, and asks for none any more
    await placements.take_next("two", many)
    placements.release("one")
    chosen = await placements.take("two", many, starts=True)
    assert chosen is not None and len(chosen.vcpus) == 12
    await placements.take("three", few)


async def test_the_host_is_not_looked_at_for_vms_that_ask_for_no_place(host: Host, placements: Placements) -> None:
    """It takes time at each start."""
    await placements.take("web", unit(vcpus=4))
    await placements.take("disks", threaded(()))
    assert host.reads == 0


async def test_all_others_keep_off_what_is_exclusively_somebodys(placements: Placements) -> None:
    """Those that said nothing, too, and only for as long as that is there; named sets do not move."""
    await placements.take("plain", unit(vcpus=2))
    await placements.take("half", unit(emulator_pin=(7,)))
    await placements.take("auto", unit(vcpus=2, pin="auto"))
    await placements.take("named", unit(pin=((6,),)))
    await placements.take("db", unit(vcpus=2, pin="auto", exclusive=True))
    assert said(placements, "db") == "4 12 + 0-3,5-11,13-15"
    others = "0-3,5-11,13-15"
    assert said(placements, "plain") == said(placements, "auto") == f"{others} + {others}"
    assert said(placements, "half") == f"{others} + 7"
    assert said(placements, "named") == "6 + 6"
    placements.release("db")
    assert (said(placements, "plain"), said(placements, "auto")) == ("anywhere + anywhere", "0-15 + 0-15")


@pytest.mark.parametrize(
    ("cpu", "words"),
    [
        ({"pin": ((4000,),)}, "there is no CPU 4000"),
        ({"pin": ((8,),)}, "exclusively db's"),
        ({"pin": ((5,),), "emulator_pin": (0,)}, "exclusively db's"),
        ({"pin": "auto", "emulator_pin": (0,)}, "exclusively db's"),
        ({"pin": ((6,),), "exclusive": True}, "named names as well"),
        ({"vcpus": 16, "pin": "auto", "exclusive": True}, "16 CPUs of its own"),
    ],
)
async def test_what_cannot_be_had_is_refused_and_changes_nothing(
    placements: Placements, cpu: dict[str, Any], words: str
) -> None:
    """It has what it had, and so have the others."""
    await placements.take("db", unit(vcpus=2, pin="auto", exclusive=True))
    await placements.take("named", unit(pin=((6,),)))
    await placements.take("web", unit(pin=((7,),)))
    before = [said(placements, name) for name in ("db", "named", "web")]
    for attempt in (placements.take, _checked(placements)):
        with pytest.raises(PlacementError, match=words):
            await attempt("web", unit(**cpu))
    assert [said(placements, name) for name in ("db", "named", "web")] == before


def _checked(placements: Placements) -> Callable[[str, Unit], Any]:
    async def check(name: str, unit: Unit) -> None:
        await trio.lowlevel.checkpoint()
        placements.check(name, unit)

    return check


async def test_two_that_come_at_once_do_not_both_get_the_last_core(placements: Placements) -> None:
    """Whoever is later is refused, whatever each saw before."""
    refused = []
    await placements.take("db", unit(vcpus=12, pin="auto", exclusive=True))

    async def come(name: str) -> None:
        try:
            await placements.take(name, unit(pin="auto", exclusive=True))
        except PlacementError:
            refused.append(name)

    async with trio.open_nursery() as nursery:
        for name in ("one", "two"):
            nursery.start_soon(come, name)
    assert len(refused) == 1


async def test_a_place_is_found_again_by_the_next_daemon(host: Host, placements: Placements) -> None:
    """What was chosen stays chosen, before the host was looked at and afterwards."""
    await placements.take("small", unit(pin="auto", exclusive=True))
    chosen = await placements.take("db", unit(vcpus=2, pin="auto", exclusive=True))
    later = Placements(host)
    later.restore("db", unit(vcpus=2, pin="auto", exclusive=True), chosen)
    later.restore("named", unit(pin=((7,),)), None)
    later.restore("plain", unit(vcpus=2), None)
    assert (said(later, "db"), said(later, "named"), said(later, "plain")) == ("unknown", "7 + 7", "unknown")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Reconciler(later).run)
        await wait_until(lambda: said(later, "db") != "unknown", "the host was looked at")
        nursery.cancel_scope.cancel()
    assert said(later, "db") == "1 9 + 0,2-8,10-15"
    assert said(later, "plain") == "0,2-8,10-15 + 0,2-8,10-15"
    assert later.chosen("db") == chosen


async def test_places_follow_cpus_that_go_offline(
    host: Host, placements: Placements, autojump_clock: trio.testing.MockClock
) -> None:
    """Within five seconds, and whoever waits for a change hears of it; nobody looks while nothing hangs on it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Reconciler(placements).run)
        await trio.sleep(60)  # virtual time
        assert host.reads == 0
        await placements.take("web", unit(vcpus=2, pin="auto"))
        await trio.lowlevel.checkpoint()
        cpus = tuple(evolve(cpu, online=cpu.number not in (3, 11)) for cpu in host.topology.cpus)
        host.topology = evolve(host.topology, cpus=cpus)
        with trio.fail_after(5):
            while said(placements, "web") == "0-15 + 0-15":
                await placements.next_change().wait()
        assert said(placements, "web") == "0-2,4-10,12-15 + 0-2,4-10,12-15"
        nursery.cancel_scope.cancel()


async def test_the_kernel_tells_of_a_cpu_that_goes(
    host: Host, placements: Placements, mock_clock: trio.testing.MockClock
) -> None:
    """Nobody waits for the next look then; a second one finds what the kernel did after it had told."""
    say, said_by_kernel = trio.open_memory_channel[None](1)

    async def changes() -> AsyncGenerator[None, None]:
        async for word in said_by_kernel:
            yield word

    def offline(*numbers: int) -> None:
        cpus = tuple(evolve(cpu, online=cpu.number not in numbers) for cpu in host.topology.cpus)
        host.topology = evolve(host.topology, cpus=cpus)

    async with trio.open_nursery() as nursery:
        await placements.take("web", unit(vcpus=2, pin="auto"))
        nursery.start_soon(Reconciler(placements, cpu_changes=changes).run)
        await trio.testing.wait_all_tasks_blocked()
        offline(3)
        await say.send(None)
        await trio.testing.wait_all_tasks_blocked()
        assert said(placements, "web") == "0-2,4-15 + 0-2,4-15", "no time has passed"
        offline(3, 11)
        mock_clock.jump(0.5)
        await trio.testing.wait_all_tasks_blocked()
        assert said(placements, "web") == "0-2,4-10,12-15 + 0-2,4-10,12-15"
        nursery.cancel_scope.cancel()


async def test_vcpus_that_came_later_count_where_the_next_vm_is_placed(host: Host, placements: Placements) -> None:
    """By this daemon and the next; what is exclusive was counted at the start."""
    host.topology = HOSTS["2 sockets"]
    few, many = unit(vcpus=2, max_vcpus=16, pin="auto"), unit(vcpus=16, max_vcpus=16, pin="auto")
    first, second = [await placements.take(name, few) for name in ("one", "two")]
    assert first is not None and second is not None and (first.nodes, second.nodes) == ((0,), (1,))
    placements.recount("one", 16)
    placements.recount("gone", 16)
    later = Placements(host)
    later.restore("one", many, first)
    later.restore("two", few, second)
    for each in (placements, later):
        for name in ("three", "four"):
            third = await each.take(name, few)
            assert third is not None and third.nodes == (1,)


async def test_vcpus_count_that_there_are(host: Host, placements: Placements) -> None:
    """Also those that name CPUs, which are kept for those that may come; and of a VM that names some for the rest."""
    promised = {
        "named": unit(vcpus=1, max_vcpus=4, pin=((0,), (1,), (2,), (3,))),
        "half": unit(vcpus=2, emulator_pin=(7,)),
    }
    for name, each in promised.items():
        await placements.take(name, each)

    def count() -> float:
        return float(placements.ledger(host.topology).promised_vcpus(range(16)))

    assert count() == 3
    placements.recount("named", 4)
    assert count() == 6
    placements.recount("named", 1)
    await placements.take("db", unit(vcpus=2, pin="auto", exclusive=True))
    assert said(placements, "db").startswith("4 12 + ")
    assert said(placements, "half") == "0-3,5-11,13-15 + 7"


async def test_a_vm_that_is_not_alone_any_more_is_told_of(host: Host, placements: Placements) -> None:
    """Its CPU went offline, or the daemon may use it no more; or those who share have no CPU but others' own."""

    async def change(*, offline: frozenset[int] = frozenset(), foreign: frozenset[int] = frozenset()) -> None:
        host.topology = changed(HOSTS["1 socket"], offline=offline, foreign=foreign)
        await placements.look()

    def lack(name: str) -> str:
        pins = placements.pins(name)
        assert pins is not None
        return pins.lack

    for name in ("db", "plain", "auto"):
        await placements.take(name, unit(vcpus=2, pin="auto", exclusive=name == "db") if name != "plain" else unit())
    assert (lack("db"), lack("plain"), lack("auto")) == ("", "", "")
    await change(offline=frozenset({8}))
    assert lack("db") == "vCPU 1 is not alone on a CPU now: CPU 8 is offline"
    assert said(placements, "db") == "0 1-7,9-15 + 1-7,9-15"
    await change(foreign=frozenset({0, 8}))
    assert lack("db") == "vCPUs 0-1 are not alone on CPUs now: CPU 0 is not among those that this daemon may use"
    await change(foreign=frozenset(range(16)) - {0, 8})
    assert lack("plain") == lack("auto") == "no CPU is left to be shared, so it runs beside VMs that were to be alone"
    assert (lack("db"), said(placements, "db"), said(placements, "auto")) == ("", "0 8 + 0,8", "0,8 + 0,8")
    await change()
    assert (lack("db"), lack("plain"), lack("auto")) == ("", "", "")


async def test_what_serves_devices_has_its_place() -> None:
    """With all other threads, or where the unit says, on no CPU that is exclusively another's."""
    placements = Placements(Host())
    await placements.take("web", unit(pin=((1,),), emulator_pin=(2,)))
    await placements.take("far", unit(helper_pin=(3,)))
    await placements.take("auto", unit(pin="auto", helper_pin=(4,)))
    await placements.take("plain", unit())
    pins = {name: placements.pins(name) for name in ("web", "far", "auto", "plain")}
    cpus = {name: format_cpu_set(each.of_helpers) for name, each in pins.items() if each is not None}
    assert cpus == {"web": "2", "far": "3", "auto": "4", "plain": ""}
    await placements.take("db", unit(pin=((5,),), exclusive=True))
    assert format_cpu_set((placements.pins("plain") or Pins()).of_helpers) == "0-4,6-12,14-15"
    with pytest.raises(PlacementError, match="CPU 5 is exclusively db's"):
        await placements.take("far", unit(helper_pin=(5,)))
    with pytest.raises(PlacementError, match="CPU 3, which it wants for itself, far names as well"):
        await placements.take("more", unit(pin=((3,),), exclusive=True))
