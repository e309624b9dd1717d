"""What starts by itself: once in a boot, not against an operator's word, and as soon as it can be written ahead."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import trio
from attrs import evolve

from qsup.host import proc
from qsup.host.once import OncePerBoot
from qsup.instance.state import Request, State
from qsup.order.autostart import Autostart
from qsup.order.shutdown import Shutdown
from qsup.order.transaction import Read
from qsup.unit.load import LoadedUnit
from qsup.unit.sections.service import InstallSection
from tests.order.drivers import Crowd
from tests.unit.test_graph import unit
from tests.waiting import wait_until


class Boot:
    """Some VMs that start by themselves, and what starts them."""

    def __init__(self, crowd: Crowd, directory: Path) -> None:
        self.crowd = crowd
        self.once = OncePerBoot(directory, "autostarted")
        install = InstallSection(autostart=True)
        units: Mapping[str, LoadedUnit] = {
            name: evolve(loaded, unit=evolve(loaded.unit, install=install)) for name, loaded in crowd.loaded.items()
        }
        self.shutdown = Shutdown(crowd.drivers, crowd.services, crowd.transactions, seconds=1.0)
        self.autostart = Autostart(crowd.drivers, lambda: units, crowd.transactions, self.shutdown, self.once)


async def test_it_is_done_once_in_a_boot(tmp_path: Path) -> None:
    """A marker of another boot is none, and goes."""
    (tmp_path / "autostarted.another-boot").touch()
    boot = Boot(Crowd({"web": unit()}), tmp_path)
    await boot.autostart.run()
    assert boot.crowd.requests() == {"web": "start"}
    assert os.listdir(tmp_path) == [f"autostarted.{proc.boot_id()}"]
    boot.crowd.end("web", State.DEAD)
    await boot.autostart.run()
    assert boot.crowd.requests() == {}


async def test_a_stop_of_all_that_comes_meanwhile_is_the_last_word(tmp_path: Path, nursery: trio.Nursery) -> None:
    """While the units are read: it finds nothing to stop, is over at once, and nothing starts after it."""
    boot = Boot(Crowd({"web": unit()}), tmp_path)
    boot.shutdown.run_in(nursery)
    read = boot.crowd.transactions.read

    async def read_while_all_are_stopped(names: list[str]) -> Read:
        operation = await boot.shutdown.begin(uid=0, timeout=None, key="")
        await boot.crowd.operations.wait_ended(operation.id)
        assert not boot.shutdown.is_under_way
        return await read(names)

    boot.crowd.transactions.read = read_while_all_are_stopped  # type: ignore[method-assign,assignment]  # a moment to hit
    await boot.autostart.run()
    assert boot.crowd.requests() == {}
    assert boot.once.is_done


async def test_want_of_room_only_delays_it(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """It is tried again, says so meanwhile, and starts all that have not been started by somebody since."""
    boot = Boot(Crowd({"web": unit(), "db": unit()}), tmp_path)
    boot.crowd.journal.room = 0
    nursery.start_soon(boot.autostart.run)
    await wait_until(lambda: list(boot.autostart.problems()), "it says so")
    assert boot.crowd.requests() == {}
    assert os.listdir(tmp_path) == []
    (problem,) = boot.autostart.problems()
    assert "what starts by itself could not be started" in problem
    assert "No space left on device" in problem
    boot.crowd.hold("db", Request.START)
    boot.crowd.journal.room = 100
    await wait_until(lambda: boot.once.is_done, "it is done", seconds=30)
    assert boot.crowd.requests() == {"web": "start", "db": "start"}
    assert [record["target"] for record in boot.crowd.journal.records] == ["web"]
    assert list(boot.autostart.problems()) == []
