"""Operations whose daemon dies between any two of their steps, and what their ids answer afterwards.

Decides: that what an operation says is what has become of its VM's QEMU, asked of that itself.
Must not: know the steps; `tests.real.dying` counts them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import DaemonUnreachable
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, rom_unit
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]

#: Seconds for the next daemon to say how an operation ended.
SETTLED = 10.0
#: The guest counts its boots here (contrib/guest/rom.S); memory outlives a reset.
BOOTS = re.compile(r"0x([0-9a-f]{4}) 0x5175")


class Mortal(Daemon):
    """A daemon that can be told before which of its next steps to die."""

    def die_at(self, step: int) -> None:
        """From now on count steps, and die before one of them; 0 for never, unless it dies even now."""
        (self.root / "dies-at").write_text(str(step))
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        begun = f"begun {step}"
        poll_until(lambda: self.steps()[:1] == [begun] or not self.is_alive(), "it counts", seconds=DEADLINE)

    def steps(self) -> list[str]:
        """Those made, the last one begun only."""
        return (self.root / "steps").read_text().splitlines()

    def newest(self, kind: str, before: set[str]) -> dict[str, Any] | None:
        """The operation of a kind that was not there before, if it is known."""
        operations = self.get("/v1/operations")["operations"]
        return next((each for each in operations if each["kind"] == kind and each["id"] not in before), None)

    def operations(self) -> set[str]:
        """All ids that are known."""
        return {each["id"] for each in self.get("/v1/operations")["operations"]}


@pytest.fixture
def mortal(root_dir: Path) -> Iterator[Mortal]:
    """One that has not been told to die."""
    with may_die(root_dir) as daemon:
        yield daemon


@contextmanager
def may_die(root_dir: Path) -> Iterator[Mortal]:
    """A daemon that has not been told to die yet, and is ended with all its VMs."""
    daemon = Mortal(root_dir, command=(sys.executable, "-m", "tests.real.dying"))
    daemon.start()
    yield daemon
    if not daemon.is_alive():
        daemon.start()  # whoever ends all its VMs has to live
    daemon.close()


def status(daemon: Daemon) -> str:
    """What QEMU says of its guest, ``""`` without QEMU."""
    if daemon.view("web")["pid"] is None:
        return ""
    return str(daemon.post("/v1/instances/web/qmp", {"execute": "query-status"})["result"]["status"])


def boots(daemon: Daemon) -> int:
    """How often the guest has booted in this life of its QEMU."""
    command = {"execute": "human-monitor-command", "arguments": {"command-line": "xp /2hx 0x500"}}
    found = BOOTS.search(daemon.post("/v1/instances/web/qmp", command)["result"])
    return int(found[1], 16) if found else 0


def bring(daemon: Daemon, verb: str) -> dict[str, Any]:
    """The VM as it must be before a verb, freshly started; its guest has booted once."""
    daemon.do("web", "kill")
    if verb == "start":
        return daemon.view("web")
    daemon.do("web", "start")
    poll_until(lambda: boots(daemon) == 1, "the guest has booted", seconds=DEADLINE)
    if verb == "resume":
        daemon.do("web", "pause")
    return daemon.view("web")


def is_on_disk(daemon: Daemon, operation: dict[str, Any]) -> bool:
    """Whether the end of an operation has been written down."""
    lines = (daemon.root / "state" / "operations.jsonl").read_text().splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines[1:]]
    return bool(next(each["state"] for each in reversed(records) if each["id"] == operation["id"]) != "running")


def ask(daemon: Mortal, verb: str) -> dict[str, Any] | None:
    """Ask for it, until it has ended and all of it is written down, or the daemon died: the last answer."""
    said = None
    try:
        with daemon.client() as client:
            said = client.post(f"/v1/instances/web/{verb}")
            said = client.get(f"/v1/operations/{said['id']}/wait?timeout={DEADLINE}")
    except DaemonUnreachable:
        poll_until(lambda: not daemon.is_alive(), "it is dead", seconds=DEADLINE)
    else:
        poll_until(lambda: is_on_disk(daemon, said) or not daemon.is_alive(), "its end is on disk", seconds=DEADLINE)
    return said


def check(daemon: Daemon, verb: str, operation: dict[str, Any] | None, before: dict[str, Any]) -> None:
    """What the operation says is true."""
    view = daemon.view("web")
    if operation is None:
        # nobody was told of it, and nothing of it happened
        assert (view["substate"], view["pid"]) == (before["substate"], before["pid"])
        return
    succeeded = operation["state"] == "succeeded"
    match verb:
        case "start" | "restart" if succeeded:
            assert (view["substate"], status(daemon)) == ("running", "running")
            assert view["pid"] != before["pid"]
        case "start" | "restart":
            assert (view["substate"], view["pid"]) == ("start-failed", None)
        case "stop" | "kill":
            assert (operation["state"], view["substate"], view["pid"]) == ("succeeded", "dead", None)
        case "pause" | "resume":
            wanted = "paused" if verb == "pause" else "running"
            assert (operation["state"], view["substate"], status(daemon)) == ("succeeded", wanted, wanted)
        case "reset" if not succeeded:
            assert boots(daemon) in (1, 2)
            assert "whether it was carried out is not known" in operation["error"]["detail"]
        case "reset":
            poll_until(lambda: boots(daemon) == 2, "the guest has booted again, and once", seconds=DEADLINE)
        case "powerdown" if succeeded:
            assert daemon.wait("web", "dead")["cause"]["text"] == "guest-shutdown"
        case _:
            assert succeeded or "whether it was carried out is not known" in operation["error"]["detail"]
    if view["pid"] is None:
        assert daemon.remains() == []


VERBS = ("start", "stop", "restart", "kill", "pause", "resume", "reset", "powerdown", "nmi")


#: More than any operation has.
BEYOND = 10_000


def points(steps: list[str]) -> list[int]:
    """Which steps to die before, counted from 1: of a row of the same calls, such as removals, the first and the last.

    ``QSUP_ALL_STEPS`` asks for every one of them.
    """
    rows = [(before, at, after) for before, at, after in zip(["", *steps], steps, [*steps[1:], ""], strict=False)]
    every = bool(os.environ.get("QSUP_ALL_STEPS"))
    return [number for number, row in enumerate(rows, 1) if every or len(set(row)) > 1]


def died_at(daemon: Mortal, verb: str, step: int) -> tuple[str, str] | None:
    """One death: the step, and what became of the operation; ``None`` where that step did not come."""
    before = bring(daemon, verb)
    known = daemon.operations()
    daemon.die_at(step)
    said = ask(daemon, verb)
    if daemon.is_alive():
        daemon.die_at(0)
    if daemon.is_alive():
        return None
    at = daemon.steps()[-1]
    daemon.start()
    found = daemon.newest(verb, known)
    if said is not None:
        assert found is not None, f"{said} was told of, and is forgotten"
    if found is not None:
        found = daemon.get(f"/v1/operations/{found['id']}/wait?timeout={SETTLED}")
        assert found["state"] != "running", f"step {step} ({at})"
        if said is not None and said["state"] != "running":
            assert (found["state"], found["result"]) == (said["state"], said["result"]), "as it was told before"
    check(daemon, verb, found, before)
    return at, found["state"] if found else "unknown"


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_daemon_killed_between_any_two_steps_is_followed_by_one_that_tells_the_truth(
    mortal: Mortal, emulator: Emulator, rom_guest: Path, verb: str
) -> None:
    """It is completed or rolled back, its id answers with what happened, and never that it is under way for ever."""
    mortal.unit("web", rom_unit(emulator, rom_guest, service='stop-timeout = "10s"'))
    mortal.do("web", "start")  # what is only done at a first start
    bring(mortal, verb)
    mortal.die_at(BEYOND)
    ask(mortal, verb)
    steps = mortal.steps()[1:]
    died = [found for step in points(steps) if (found := died_at(mortal, verb, step))]
    assert ("fdatasync", "succeeded") in died, ("what is written ahead is known from then on", died)
    assert died[-1][1] != "unknown", died
    assert len(died) >= 7, (steps, died)
    assert "driver failed" not in mortal.log()
