"""Where a VM runs that a unit keeps to some CPUs and nodes, and how that changes while it runs; without a kernel."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import evolve

from qsup.errors import ChangeError, PlacementError
from qsup.instance.live.pins import PinKeys, are_about_places
from qsup.instance.placements import Placements
from qsup.instance.reconciler import Reconciler
from qsup.plan.hostmemory import demand
from qsup.unit.compare import compare
from qsup.unit.model import Unit
from qsup.unit.sections.limits import LimitsSection
from tests.instance.placing import Host, said, unit
from tests.plan.hosts import HOSTS, changed
from tests.waiting import wait_until


def fenced(*cpus: int, mems: tuple[int, ...] = (), **cpu: Any) -> Unit:
    """A unit with these CPUs as its fence."""
    return evolve(unit(**cpu), limits=LimitsSection(cpuset_cpus=cpus, cpuset_mems=mems))


async def test_what_is_chosen_is_within_the_fence() -> None:
    """Shared CPUs and CPUs of one's own alike; the explanation says what does not count. A fence alone pins nobody."""
    placements = Placements(Host())
    web = await placements.take("web", fenced(4, 5, 6, 7, 12, 13, 14, 15, pin="auto"))
    assert said(placements, "web") == "4-7,12-15 + 4-7,12-15"
    assert web is not None
    assert web.explanation[0] == (
        "limits.cpuset-cpus keeps it to CPUs 4-7,12-15: others are for it as if they were offline"
    )
    db = await placements.take("db", fenced(6, 7, 14, 15, vcpus=2, pin="auto", exclusive=True))
    assert db is not None and set(db.vcpus) <= {(6,), (14,), (7,), (15,)}
    assert await placements.take("free", fenced(1, 2)) is None
    assert said(placements, "free") == "1-2 + 1-2", "an exclusive VM is there, and it keeps off"
    placements.release("db")
    assert said(placements, "free") == "anywhere + anywhere"
    pins = placements.pins("free")
    assert pins is not None and pins.fence == {1, 2}


async def test_a_fence_is_refused_that_cannot_be() -> None:
    """The key is named, and the CPU or node that is not there; or who has all of it."""
    placements = Placements(Host())
    with pytest.raises(PlacementError, match=r"limits\.cpuset-cpus is 0,99, and there is no CPU 99 on this host"):
        await placements.take("web", fenced(0, 99))
    with pytest.raises(PlacementError, match=r"node 3 by limits\.cpuset-mems, which is not there") as refused:
        await placements.take("web", fenced(mems=(3,)))
    assert "limits.cpuset-mems" in refused.value.hint
    await placements.take("db", unit(pin=((1,),), exclusive=True))
    with pytest.raises(PlacementError, match=r"limits\.cpuset-cpus is 1, and CPU 1 is exclusively db's"):
        await placements.take("web", fenced(1))
    with pytest.raises(PlacementError, match=r"wants 4 CPUs of its own on whole cores, within CPUs 2-3,10"):
        await placements.take("web", fenced(2, 3, 10, vcpus=4, pin="auto", exclusive=True))


async def test_who_can_go_nowhere_else_keeps_a_cpu() -> None:
    """An exclusive VM is refused what another is fenced to, chosen or named; elsewhere it is welcome."""
    placements = Placements(Host())
    await placements.take("web", fenced(0, 8))
    for one in (unit(vcpus=2, pin="auto", exclusive=True), unit(vcpus=2, pin=((0,), (8,)), exclusive=True)):
        with pytest.raises(PlacementError, match="CPUs 0,8 for itself, and web can run nowhere else"):
            await placements.take("db", one)
    await placements.take("db", fenced(1, 9, vcpus=2, pin="auto", exclusive=True))


async def test_a_fence_whose_shared_cpus_went_is_not_left() -> None:
    """The kernel lets nothing out; what the VM lacks is told."""
    host = Host()
    placements = Placements(host)
    await placements.take("db", unit(vcpus=2, pin="auto", exclusive=True))
    await placements.take("web", fenced(0, 1, pin="auto"))
    assert said(placements, "web") == "1 + 1"
    host.topology = changed(HOSTS["1 socket"], offline=frozenset({1}))
    await placements.look()
    assert said(placements, "web") == "0 + 0"
    pins = placements.pins("web")
    assert pins is not None
    assert pins.lack == "none of the CPUs 0-1 is left to be shared, so it runs beside VMs that were to be alone"


async def test_a_choice_stays_as_long_as_it_is_within() -> None:
    """A wider fence moves nobody, one that it lies outside of does; an adopted VM is in its fence, too."""
    placements = Placements(Host())
    one = await placements.take("db", fenced(0, 1, 8, 9, vcpus=2, pin="auto", exclusive=True))
    same = await placements.take("db", fenced(vcpus=2, pin="auto", exclusive=True))
    assert one is not None and same == one
    other = await placements.take("db", fenced(2, 3, 10, 11, vcpus=2, pin="auto", exclusive=True))
    assert other is not None and set(other.vcpus) <= {(2,), (10,), (3,), (11,)}
    later = Placements(Host())
    await later.look()
    web = fenced(4, 5, pin="auto")
    later.restore("web", web, await placements.take("web", web))
    assert said(later, "web") == said(placements, "web") == "4-5 + 4-5"


async def test_nodes_are_chosen_within_the_fence() -> None:
    """Of memory, and so of CPUs; memory that is bound to none is promised on these."""
    host = Host()
    host.topology = HOSTS["2 sockets"]
    placements = Placements(host)
    first = await placements.take("plain", unit(vcpus=2, pin="auto"))
    assert first is not None and first.nodes == (0,)
    placements.release("plain")
    one = fenced(mems=(1,), vcpus=2, pin="auto")
    chosen = await placements.take("web", one)
    assert chosen is not None and chosen.nodes == (1,)
    assert "limits.cpuset-mems keeps its memory to node 1" in chosen.explanation[0]
    auto = evolve(one, memory=evolve(one.memory, nodes="auto"))
    chosen = await placements.take("db", auto)
    assert chosen is not None and (chosen.nodes, len(chosen.memory)) == ((1,), 1)
    assert demand("web", one, ()).nodes == (1,)
    assert demand("web", Unit(), ()).nodes == ()


class Fake:
    """A VM that runs: what it is told, in order.

    Attributes:
        refuse: what the kernel refuses of a fence.
        misplaced: how often a thread is not where it is to be, from the next time on.
    """

    def __init__(self, before: Unit) -> None:
        self.told: list[str] = []
        self.refuse: frozenset[int] | None = None
        self.misplaced = 0
        self.placements = Placements(Host())
        self.hardware = SimpleNamespace(unit=before, summary=SimpleNamespace(memory_nodes=(0,)))
        self.effective = SimpleNamespace(items=lambda: {"cpuset_cpus": self.fence, "cpuset_mems": None})
        self.fence: frozenset[int] | None = frozenset(before.limits.cpuset_cpus) or None
        self.trouble = "it does not"

    @property
    def context(self) -> Any:
        """What a change works on."""
        life = SimpleNamespace(pinning=self, limiting=self)
        services = SimpleNamespace(placements=self.placements, capacity=self)
        return SimpleNamespace(life=life, hardware=self.hardware, name="web", services=services)

    def why_not(self, name: str) -> str:
        """It can be kept."""
        return ""

    def excused(self) -> Any:
        """Nothing counts."""
        return trio.CancelScope()

    async def change(self, unit: Unit, names: frozenset[str]) -> dict[str, str]:
        """A fence."""
        wanted = frozenset(unit.limits.cpuset_cpus) or None
        if wanted is not None and wanted == self.refuse:
            return {"cpuset_cpus": "no"}
        self.fence = wanted
        self.told.append(f"fence {','.join(map(str, sorted(wanted or ()))) or 'none'}")
        return {}

    def put(self) -> None:
        """Threads."""
        self.told.append(f"pins {said(self.placements, 'web')}")
        self.misplaced -= 1

    @property
    def is_misplaced(self) -> bool:
        """As the test says."""
        return self.misplaced == 0

    def settle(self, name: str, **_: Any) -> None:
        """A promise."""


async def moved(vm: Fake, after: Unit) -> Any:
    """What a `set` does."""
    await vm.placements.take("web", vm.hardware.unit)
    keys, changes = PinKeys(), compare(vm.hardware.unit, after)
    assert all(keys.concerns(each.key) for each in changes)
    for each in changes:
        keys.check(each, after, vm.context)
    return await keys.apply(changes, after, vm.context)


async def test_a_fence_grows_before_threads_move_and_shrinks_after() -> None:
    """So each may be where it belongs at each moment."""
    vm = Fake(fenced(0, 1, pin=((0,),)))
    assert await moved(vm, fenced(2, 3, pin=((3,),))) == {"limits.cpuset-cpus": {"limit": "2-3"}}
    assert vm.told == ["fence 0,1,2,3", "pins 3 + 3", "fence 2,3", "pins 3 + 3"]
    plain = Fake(unit(pin=((0,),)))
    await moved(plain, unit(pin=((3,),)))
    assert plain.told == ["pins 3 + 3", "pins 3 + 3"]


async def test_an_automatic_place_follows_the_fence() -> None:
    """It gets another one where it lies outside; where there is none, nothing changes."""
    vm = Fake(unit(vcpus=2, pin="auto", exclusive=True))
    await moved(vm, fenced(2, 10, vcpus=2, pin="auto", exclusive=True))
    assert vm.told[-2:] == ["fence 2,10", vm.told[-1]] and vm.told[-1].startswith("pins 2 10 +")
    vm = Fake(unit(vcpus=2, pin="auto", exclusive=True))
    with pytest.raises(PlacementError, match="within CPU 2"):
        await moved(vm, fenced(2, vcpus=2, pin="auto", exclusive=True))
    assert vm.told == []


@pytest.mark.parametrize("misplaced", [0, 1, 2])
async def test_a_fence_that_cannot_be_leaves_all_as_it_was(misplaced: int) -> None:
    """Pins, fence and place, whether the kernel refuses it or a thread does not move."""
    vm = Fake(fenced(0, 1, pin=((0,),)))
    vm.misplaced = misplaced
    vm.refuse = None if misplaced else frozenset({2})
    with pytest.raises(ChangeError, match="cannot be enforced: no" if not misplaced else "stay where they are"):
        await moved(vm, fenced(2, pin=((2,),)))
    assert (vm.told[-3:], vm.fence) == (["pins 0 + 0", "fence 0,1", "pins 0 + 0"], frozenset({0, 1}))


async def test_memory_that_is_bound_stays_in_the_fence() -> None:
    """Where its pages are bound to, it cannot leave."""
    vm = Fake(unit())
    vm.hardware.summary.memory_nodes = (1,)
    with pytest.raises(ChangeError, match=r"limits\.cpuset-mems \(0\) lacks node 1, which its memory is bound to"):
        await moved(vm, fenced(mems=(0,)))


def test_which_changes_are_about_places() -> None:
    """For these the host is looked at before they are judged."""
    assert are_about_places({"limits": {"cpuset-cpus": "0"}})
    assert are_about_places({"cpu": {"pin": []}, "limits": {"cpu": "1"}})
    assert not are_about_places({"limits": {"cpu": "1"}, "cpu": 5})


async def test_a_fence_that_lost_something_is_mended(autojump_clock: trio.testing.MockClock) -> None:
    """Looked at every few seconds for as long as it can; the threads are put where they belong then, without a word."""

    class Fence:
        is_divided, looks, mended = False, 0, 0

        def has_lost(self) -> bool:
            self.looks += 1
            return self.looks == 2

        async def mend(self) -> None:
            self.mended += 1

    vm: Any = Fake(unit())
    fence: Any = Fence()
    told, reconciler = list[Any](), Reconciler(vm.placements)
    vm.is_free = True
    vm.placements.restore("web", unit(), None)
    reconciler.watch(vm, fence, told.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reconciler.run)
        await wait_until(lambda: fence.looks >= 3, "it is looked at", seconds=20.0)
        nursery.cancel_scope.cancel()
    assert (told, fence.mended) == ([], 1)


async def test_moves_of_the_kernel_while_cpus_come_and_go_are_no_drift(autojump_clock: trio.testing.MockClock) -> None:
    """In the look that follows its word, and in the second one; before that and later somebody has done it."""
    said_so, looks = trio.Event(), list[bool]()

    async def changes() -> AsyncGenerator[None, None]:
        await said_so.wait()
        yield
        await trio.sleep_forever()

    def put(online: object, *, excused: bool = False) -> tuple[()]:
        looks.append(excused)
        return ()

    placements = Placements(Host())
    await placements.take("web", unit(pin=((1,),)))
    pinning: Any = SimpleNamespace(put=put, is_free=False, is_as_left=lambda: False, trouble="")
    watched: Any = type("Hashable", (), vars(pinning))
    reconciler = Reconciler(placements, cpu_changes=changes)
    undivided: Any = SimpleNamespace(is_divided=False, has_lost=lambda: False)
    reconciler.watch(watched, undivided, list[Any]().append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reconciler.run)
        await wait_until(lambda: looks, "it has looked")
        said_so.set()
        await wait_until(lambda: True in looks and not looks[-1], "it looks as usual again", seconds=20.0)
        nursery.cancel_scope.cancel()
    assert looks[:1] + looks[-1:] == [False, False] and looks.count(True) == 2
