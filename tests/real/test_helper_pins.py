"""The CPUs of programs that serve devices of a VM: read back from the kernel, with QEMU's own virtiofsd."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qsup.host import affinity
from qsup.unit.quantity import format_cpu_set
from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit
from tests.real.growing import ask
from tests.real.hotplug import attach
from tests.real.test_pins import WITHIN
from tests.waiting import poll_until

pytestmark = [pytest.mark.real]

DATA = '[[device]]\nid = "data"\ntype = "share"\npath = "data"\n'


@pytest.fixture(autouse=True)
def two_cpus(daemon: Daemon) -> None:
    """Pins of one CPU of one alone say nothing."""
    assert {0, 1} <= os.sched_getaffinity(0), "these tests need the CPUs 0 and 1"
    (daemon.images / "data").mkdir()


def served(daemon: Daemon) -> dict[str, set[str]]:
    """Where the threads of all programs of each file server may run, by the entry that it serves."""
    record = json.loads((daemon.run / "instances" / "web" / "record.json").read_text())
    pids = {each["entry"]: each["pid"] for each in record["state"]["helpers"]}
    return {
        entry: {format_cpu_set(affinity.get(thread) or ()) for each in family for thread in affinity.threads(each)}
        for entry, family in ((entry, affinity.family(pid)) for entry, pid in pids.items())
        if len(family) > 1  # the server has a process of its own for its sandbox
    }


def start(daemon: Daemon, emulator: Emulator, rom: Path, cpu: str) -> None:
    """A VM of the ROM guest with a share."""
    daemon.unit("web", rom_unit(emulator, rom, cpu=cpu, tables=DATA))
    daemon.do("web", "start")


def test_a_file_server_is_where_other_threads_are(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """From its beginning, as that is shown, and again when somebody has moved it, under a later daemon, too."""
    start(daemon, emulator, rom_guest, 'pin = ["0"]\nemulator-pin = "1"')
    assert served(daemon) == {"device.data": {"1"}}
    for _ in range(2):
        threads = [each for each in daemon.get("/v1/instances/web/cpus")["threads"] if each["helper"]]
        assert {(each["helper"], each["pin"], each["allowed"]) for each in threads} == {("device.data", "1", "1")}
        assert len(threads) >= 2
        with daemon.events() as events:
            os.sched_setaffinity(threads[-1]["thread"], {0})
            poll_until(lambda: served(daemon) == {"device.data": {"1"}}, "it is back", seconds=WITHIN)
            told = events.next("pin-drift")["data"]
        assert (told["helpers"], told["threads"]) == (["device.data"], [threads[-1]["thread"]])
        daemon.restart()
        daemon.wait("web", "running")
    assert "device.data" in daemon.ctl("cpus", "web").stdout


def test_a_file_server_has_cpus_of_its_own(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Where the unit says so; that is changed while it runs, and counts for one that comes."""
    start(daemon, emulator, rom_guest, 'helper-pin = "1"')
    assert served(daemon) == {"device.data": {"1"}}
    assert ask(daemon, {"cpu": {"helper-pin": "0"}})["state"] == "succeeded"
    assert served(daemon) == {"device.data": {"0"}}
    attach(daemon, "web", "devices", id="more", type="share", path="data", tag="more")
    assert served(daemon) == {"device.data": {"0"}, "device.more": {"0"}}
    assert ask(daemon, {"cpu": {"helper-pin": ""}})["state"] == "succeeded"
    everywhere = format_cpu_set(os.sched_getaffinity(0))
    assert served(daemon) == {"device.data": {everywhere}, "device.more": {everywhere}}
