"""VMs under the next daemon: the same processes, under control and watched as by the one that started them.

Decides: what a daemon that was killed while nothing was under way must not be missed by: T2 and T3.
Must not: repeat what became of requests that were under way (`tests.real.test_takeover`, `tests.real.test_random`).
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.trial import Promise, Tries
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, Events, elapsed, kill_process, rom_unit, signal_process
from tests.real.wrecking import record, start
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]


@pytest.mark.slow
@pytest.mark.user
def test_t2_twenty_vms_are_the_same_under_the_next_daemon(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, tries: Tries, promise: Promise
) -> None:
    """Each is listed at once with its process, answers through the new daemon within 3 s, and obeys."""
    names = tuple(f"vm{number:02}" for number in range(20))
    pids = start(daemon, emulator, rom_guest, names)
    started = {name: start_time(pid) for name, pid in pids.items()}
    for number in tries:
        daemon.signal(signal.SIGKILL)
        began = time.monotonic()
        daemon.start()
        listed = {view["name"]: view["pid"] for view in daemon.get("/v1/instances")["instances"]}
        assert listed == pids
        promise.kept("all listed", elapsed(began), within=3.0)
        with daemon.client() as client:
            for name in names:
                answer = client.post(f"/v1/instances/{name}/qmp", {"execute": "query-status"})
                assert answer["result"]["status"] == "running"
        promise.kept("all answered", elapsed(began), within=3.0)
        assert {name: start_time(pid) for name, pid in pids.items()} == started
        assert daemon.do(names[number % 20], "pause")["substate"] == "paused"
        assert daemon.do(names[number % 20], "resume")["pid"] == pids[names[number % 20]]


@pytest.mark.alone
def test_t2_one_that_stands_still_keeps_nobody_from_the_list(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, promise: Promise
) -> None:
    """A QEMU stopped by a signal while no daemon runs: listed as `unreachable` with its process, the others answer."""
    pids = start(daemon, emulator, rom_guest, ("one", "still", "two", "quiet"))
    daemon.signal(signal.SIGKILL)
    for name in ("still", "quiet"):
        signal_process(pids[name], signal.SIGSTOP)
    began = time.monotonic()
    daemon.start()
    listed = {view["name"]: (view["pid"], view["substate"]) for view in daemon.get("/v1/instances")["instances"]}
    promise.kept("listed beside two that stand still", elapsed(began), within=2.0)
    states = {"one": "running", "two": "running", "still": "unreachable", "quiet": "unreachable"}
    assert listed == {name: (pids[name], state) for name, state in states.items()}
    for name in ("still", "quiet"):
        signal_process(pids[name], signal.SIGCONT)
        assert daemon.wait(name, "running")["pid"] == pids[name]


def start_time(pid: int) -> str:
    """When a process was started, in proc(5)'s words."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]


def test_a_record_that_says_nothing_new_is_not_written_again(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """Taking a VM over is no change of its; what changes then is written down as ever."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    kept = record(daemon, "web")
    poll_until(lambda: json.loads(kept.read_text())["state"]["was_ready"], "the start is on record", seconds=DEADLINE)
    before = kept.stat().st_mtime_ns
    daemon.restart()
    daemon.wait("web", "running")
    assert kept.stat().st_mtime_ns == before
    daemon.do("web", "pause")
    poll_until(lambda: kept.stat().st_mtime_ns != before, "the pause is on record", seconds=DEADLINE)


@pytest.mark.user
def test_t3_the_death_of_an_adopted_qemu_is_told_at_once(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, tries: Tries, promise: Promise
) -> None:
    """The event names the signal, the VM is `crashed` or started again as its policy says."""
    policy = 'restart = "on-failure"\nrestart-delay = "20ms"\nrestart-max-delay = "20ms"\nstart-limit-burst = 1000'
    units, ends = {"down": "", "again": policy}, {"down": "crashed", "again": "auto-restart"}
    for name, service in units.items():
        daemon.unit(name, rom_unit(emulator, rom_guest, service=service))
        daemon.do(name, "start")
    for number in tries:
        daemon.restart()
        pids = {name: daemon.wait(name, "running")["pid"] for name in units}
        with daemon.events() as events:
            for name, pid in pids.items():
                began = time.monotonic()
                kill_process(pid)
                told = told_of_signal(events, name)
                promise.kept("event", elapsed(began), within=0.1)
                assert told["cause"]["text"] == "signal KILL"
                while told["substate"] == "exiting":
                    told = told_of_signal(events, name)
                assert told["substate"] == ends[name]
                promise.told("its end", elapsed(began))
        assert daemon.wait("down", "crashed")["cause"]["text"] == "signal KILL"
        poll_until(lambda: daemon.view("again")["substate"] == "running", "it is started again", seconds=DEADLINE)
        assert daemon.view("again")["pid"] != pids["again"]
        assert daemon.view("again")["restarts"] == number + 1
        daemon.do("down", "start")


def told_of_signal(events: Events, name: str) -> dict[str, Any]:
    """What the next event says that names a signal as the cause of a VM's state."""
    while True:
        event = events.next("instance-state")
        cause = event["data"]["cause"]
        if event["instance"] == name and cause is not None and cause["kind"] == "signal":
            data: dict[str, Any] = event["data"]
            return data
