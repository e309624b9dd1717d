"""Operations whose daemon dies between any two of their steps, and what their ids answer afterwards.

Decides: that what an operation says is what has become of its VM's QEMU, asked of that itself.
Must not: know the steps; `tests.real.dying` counts them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, kill_process, rom_unit
from tests.real.mortal import Asked, Mortal, points
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]

#: The guest counts its boots here (contrib/guest/rom.S); memory outlives a reset.
BOOTS = re.compile(r"0x([0-9a-f]{4}) 0x5175")


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
    pid = daemon.do("web", "start")["pid"]
    poll_until(lambda: boots(daemon) == 1, "the guest has booted", seconds=DEADLINE)
    if verb == "resume":
        daemon.do("web", "pause")
    elif verb == "reset-failed":
        kill_process(pid)
        daemon.wait("web", "crashed")
    return daemon.view("web")


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
        case "stop" | "kill" | "stop-all" | "reset-failed":
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


VERBS = ("start", "stop", "restart", "kill", "pause", "resume", "reset", "powerdown", "nmi", "reset-failed", "stop-all")


#: How often a daemon dies at least; what needs no QEMU has fewer steps.
MANY = {"reset-failed": 4}


def asked(verb: str) -> Asked:
    """How it is asked for."""
    return Asked(kind=verb, path="stop-all" if verb == "stop-all" else f"instances/web/{verb}")


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_daemon_killed_between_any_two_steps_is_followed_by_one_that_tells_the_truth(
    mortal: Mortal, emulator: Emulator, rom_guest: Path, verb: str
) -> None:
    """It is completed or rolled back, its id answers with what happened, and never that it is under way for ever."""
    mortal.unit("web", rom_unit(emulator, rom_guest, service='stop-timeout = "10s"'))
    mortal.do("web", "start")  # what is only done at a first start
    bring(mortal, verb)
    steps = mortal.steps_of(asked(verb))
    died: list[tuple[str, str]] = []

    def die_before(step: int) -> None:
        before = bring(mortal, verb)
        if death := mortal.die_during(asked(verb), step):
            check(mortal, verb, death.found, before)
            died.append(death.outcome)

    for step in points(steps):
        die_before(step)
    assert died[-1][1] != "unknown", died
    written_ahead = ("fdatasync", "succeeded")
    # threads take their steps in another order each time: where that one was missed, all are tried
    for step in range(1, len(steps) + 1):
        if written_ahead not in died:
            die_before(step)
    assert written_ahead in died, ("what is written ahead is known from then on", died)
    assert len(died) >= MANY.get(verb, 7), (steps, died)
    assert "driver failed" not in mortal.log()
