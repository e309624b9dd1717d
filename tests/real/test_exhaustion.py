"""A daemon that runs out of descriptors: T18.

Decides: what its clients are told then, and that everything is given back.
Must not: know what a VM needs descriptors for.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.trial import Promise
from tests.guests import Emulator
from tests.real.beside import refusal, words
from tests.real.daemons import DEADLINE, Daemon, rom_unit
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]

LIMIT = 64


@pytest.fixture
def poor(root_dir: Path) -> Iterator[Daemon]:
    """A daemon that may have few descriptors, ended with all its VMs."""
    limited = ("prlimit", f"--nofile={LIMIT}:{LIMIT}", sys.executable, "-m", "qsup.daemon")
    found = Daemon(root_dir, command=limited)
    found.start()
    try:
        yield found
    finally:
        found.close()


def descriptors(daemon: Daemon) -> int:
    """How many it has open."""
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


@pytest.mark.user
@pytest.mark.slow
def test_t18_a_daemon_without_descriptors_says_so_and_gets_them_back(
    poor: Daemon, emulator: Emulator, rom_guest: Path, promise: Promise
) -> None:
    """Starts fail and name the want; the VMs that run are listed, answer and stop; then there are as many as before."""
    poor.unit("first", rom_unit(emulator, rom_guest))
    poor.do("first", "start")
    poor.do("first", "kill")
    before, process = descriptors(poor), poor.pid
    names = [f"vm{number}" for number in range(LIMIT)]
    for name in names:
        (poor.units / f"{name}.toml").write_text(rom_unit(emulator, rom_guest))
    poor.post("/v1/reload")
    running: dict[str, int] = {}
    told = ""
    for name in names:
        operation = poor.power(name, "start")
        if operation["state"] != "succeeded":
            told = words(operation["error"])
            break
        running[name] = poor.view(name)["pid"]
    assert running
    assert re.search("Too many open files|descriptors", told), told
    assert re.search("Too many open files|descriptors", words(refusal(poor, name)))
    assert {view["name"]: view["pid"] for view in poor.get("/v1/instances")["instances"] if view["pid"]} == running
    for each in running:
        assert poor.do(each, "stop", timeout=0.1)["substate"] == "dead"
    assert poor.remains() == []
    assert poor.pid == process
    assert poor.is_alive()

    def surplus() -> int:
        return abs(descriptors(poor) - before)

    poll_until(lambda: surplus() <= 5, "the descriptors are back", seconds=DEADLINE)
    promise.kept("descriptors more or less", surplus(), within=5, unit="")
    assert poor.do(name, "start")["substate"] == "running"
