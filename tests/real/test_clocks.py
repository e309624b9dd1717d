"""Somebody sets the host's clock: no operation lies for it, and no guest loses its time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests import Emulator
from tests.real.clocks import ShiftedDaemon
from tests.real.daemons import DEADLINE, rom_unit
from tests.real.together import UP, ended, substates, waits_for
from tests.waiting import poll_until

pytestmark = pytest.mark.real

DAY = 86400.0
DEAF = f'stop-timeout = "2s"\n{UP}'


@pytest.fixture
def daemon(root_dir: Path) -> Iterator[ShiftedDaemon]:
    """A running daemon with a clock of its own."""
    found = ShiftedDaemon(root_dir)
    found.start()
    try:
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("step", [-60.0, -DAY, DAY], ids=["back", "a day back", "a day on"])
def test_a_restart_survives_a_step_of_the_clock(
    daemon: ShiftedDaemon, emulator: Emulator, rom_guest: Path, step: float
) -> None:
    """It was started before the clock was set, and the daemon is killed in the stop half: it is started again."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service=DEAF))
    pid = daemon.do("web", "start")["pid"]
    daemon.type("web", "D")
    if step < 0:
        daemon.set_clock(step)
    operation = daemon.post("/v1/instances/web/restart")
    daemon.wait("web", "stopping-guest")
    daemon.set_clock(step)
    daemon.restart()
    assert daemon.get(f"/v1/operations/{operation['id']}")["state"] == "running"
    assert ended(daemon, operation)["state"] == "succeeded"
    view = daemon.view("web")
    assert (view["substate"], view["pid"] != pid) == ("running", True)


@pytest.mark.parametrize("step", [-DAY, DAY], ids=["back", "on"])
def test_a_start_is_not_begun_twice_for_a_step_of_the_clock(
    daemon: ShiftedDaemon, emulator: Emulator, rom_guest: Path, step: float
) -> None:
    """It went down before it was asked for, by a clock that nobody sets: it is started after all."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service=UP))
    daemon.unit("db", rom_unit(emulator, rom_guest, unit='conflicts = ["web"]', service=DEAF))
    daemon.do("db", "start")
    daemon.do("db", "stop", timeout=0.1)
    daemon.do("web", "start")
    daemon.type("web", "D")
    daemon.set_clock(step)
    # waits for web to go down; until then nothing of it is done
    operation = daemon.post("/v1/instances/db/start")
    waits_for(daemon, operation, "web (stopping-guest)")
    daemon.restart()
    daemon.do("web", "kill")
    assert ended(daemon, operation)["state"] == "succeeded"
    assert substates(daemon) == {"web": "dead", "db": "running"}


@pytest.mark.parametrize("step", [-DAY, 600.0], ids=["back", "on"])
def test_stopping_all_keeps_its_time_whatever_the_clock_says(
    daemon: ShiftedDaemon, emulator: Emulator, rom_guest: Path, step: float
) -> None:
    """The guest keeps its own time to shut down, and all of it ends when it would have."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service=f'stop-timeout = "60s"\n{UP}'))
    daemon.do("web", "start")
    daemon.type("web", "D")
    operation = daemon.post("/v1/stop-all", {"timeout": 120.0})
    daemon.wait("web", "stopping-guest")
    daemon.set_clock(step)
    daemon.restart()
    daemon.wait("web", "stopping-guest")
    assert daemon.get(f"/v1/operations/{operation['id']}")["state"] == "running"
    daemon.type("web", "O", after="")
    told = ended(daemon, operation)
    assert (told["state"], told["result"]["killed"]) == ("succeeded", [])


def test_what_waits_for_its_guest_is_resumed_whatever_the_clock_says(
    daemon: ShiftedDaemon, emulator: Emulator, rom_guest: Path
) -> None:
    """A stop that was accepted a day ago by the clock is carried out, and not said to be of an earlier boot."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service=DEAF))
    daemon.do("web", "start")
    daemon.type("web", "D")
    operation = daemon.post("/v1/instances/web/stop")
    daemon.wait("web", "stopping-guest")
    daemon.set_clock(DAY)
    daemon.restart()
    poll_until(lambda: daemon.view("web")["substate"] == "dead", "it is stopped", seconds=DEADLINE)
    assert ended(daemon, operation)["state"] == "succeeded"
