"""A daemon that is ended again and again, by SIGKILL or SIGTERM, while VMs are started, stopped, paused, and crash.

Decides: that no VM is lost, no QEMU is an orphan and no VM a ghost, whenever the daemon ends; what was accepted is done
by the next one, or said to have failed.
Must not: know what the daemon does at the moment it is ended; chance decides that, with a seed that a failure names.
"""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from tests.bench.kept import Kept, request
from tests.faults.trial import Promise, Tries
from tests.guests import Emulator
from tests.real.daemons import Daemon, elapsed, kill_process, rom_unit
from tests.real.test_adopted import start_time
from tests.waiting import came_true

pytestmark = [pytest.mark.real, pytest.mark.fault]

#: The longest that a daemon lives after it was asked for something: longer than any of it takes.
LIFE = 0.2
#: Seconds after which all must be settled under the next daemon.
SETTLED = 5.0
#: How the daemon is ended, as likely as each other: by a crash, or for an upgrade.
ENDS = (signal.SIGKILL, signal.SIGTERM)
POLICIES = {
    "one": "no",
    "two": "no",
    "three": "on-failure",
    "four": "on-failure",
    "five": "always",
    "six": "always",
    "some@one": "on-failure",
    "many@one": "always",
}
ACTIONS = {
    "running": ("stop", "kill", "pause", "restart", "restart", "crash"),
    "paused": ("resume", "resume", "stop", "kill", "restart"),
}
DOWN = frozenset({"dead", "crashed", "start-failed"})


@frozen(kw_only=True)
class Deed:
    """What was done to one VM before the daemon ended.

    Args:
        verb: of the API, or ``crash``: its QEMU was killed.
        operation: of the request, ``""`` when the daemon did not come to answer it.
    """

    verb: str
    operation: str = ""


@pytest.mark.slow
@pytest.mark.user
def test_random_ends_of_the_daemon_lose_nothing(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, tries: Tries, promise: Promise
) -> None:
    """After each end and restart every VM is what it was asked to be, and the list is what /proc says."""
    seed = time.time_ns()
    chance = random.Random(seed)
    again = 'restart-delay = "20ms"\nrestart-max-delay = "20ms"\nstart-limit-burst = 100000'
    for name, policy in POLICIES.items():
        service = f'stop-methods = ["quit"]\nrestart = "{policy}"\n{again}'
        file = f"{name.partition('@')[0]}@" if "@" in name else name
        (daemon.units / f"{file}.toml").write_text(rom_unit(emulator, rom_guest, service=service))
    daemon.post("/v1/reload")
    for name in POLICIES:
        daemon.do(name, "start")
    for number in tries:
        before = views(daemon)
        deeds = act(daemon, before, chance)
        began = time.monotonic()
        daemon.start()
        settled = came_true(lambda: is_settled(daemon), seconds=SETTLED)
        promise.kept("settled", elapsed(began), within=SETTLED)
        after = views(daemon)
        found = [*misdeeds(daemon, before, after, deeds), *strays(daemon, after)]
        assert settled, (seed, number, deeds, after)
        assert not found, (seed, number, deeds, found)


def views(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """The VMs as listed."""
    return {view["name"]: view for view in daemon.get("/v1/instances")["instances"]}


def act(daemon: Daemon, before: dict[str, dict[str, Any]], chance: random.Random) -> dict[str, Deed]:
    """Do something to one to three VMs at the same time, and end the daemon meanwhile."""
    verbs = {
        name: chance.choice(ACTIONS.get(before[name]["substate"], ("start",)))
        for name in chance.sample(sorted(before), chance.randint(1, 3))
    }
    socket = Path(daemon.address.path)
    connections = {name: Kept(socket) for name, verb in verbs.items() if verb != "crash"}
    for name, verb in verbs.items():
        if verb == "crash":
            kill_process(before[name]["pid"])
        else:
            connections[name].send(request("POST", f"/v1/instances/{name}/{verb}"))
    came_true(lambda: not daemon.is_alive(), seconds=chance.uniform(0.0, LIFE))
    daemon.signal(chance.choice(ENDS))
    return {
        name: Deed(verb=verb, operation=accepted(connections[name]) if name in connections else "")
        for name, verb in verbs.items()
    }


def accepted(connection: Kept) -> str:
    """The id of the operation that was answered, ``""`` when there was no whole answer."""
    try:
        answer = json.loads(connection.exchange(b""))
    except (AssertionError, OSError):
        return ""
    finally:
        connection.close()
    assert "id" in answer, answer
    return str(answer["id"])


def is_settled(daemon: Daemon) -> bool:
    """Whether nothing is under way."""
    known = {*DOWN, *ACTIONS}
    return all(view["substate"] in known and not view["operation"] for view in views(daemon).values())


def misdeeds(
    daemon: Daemon, before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]], deeds: dict[str, Deed]
) -> list[str]:
    """Each VM that is not what it should be after what was done."""
    found = []
    for name, old in before.items():
        new = after.get(name)
        deed = deeds.get(name)
        if new is None:
            found.append(f"{name} is not listed")
        elif not any(is_as(old, new, outcome, name) for outcome in outcomes(daemon, deed, name)):
            found.append(f"{name} was {standing(old)}, then {deed}, and is {standing(new)}: {new['cause']}")
    return found


def standing(view: dict[str, Any]) -> str:
    """State and process."""
    return f"{view['substate']} ({view['pid']})"


def outcomes(daemon: Daemon, deed: Deed | None, name: str) -> tuple[str, ...]:
    """What may have become of a VM, in the words of `is_as`."""
    if deed is None:
        return ("same",)
    if deed.verb == "crash":
        return ("crashed",) if POLICIES[name] == "no" else ("new",)
    done, failed = DONE[deed.verb], FAILED[deed.verb]
    if failed == ROLLED_BACK and POLICIES[name] != "no":
        failed = ("new",)  # and then it is tried again
    if not deed.operation:
        return ("same", *done, *failed)
    operation = daemon.get(f"/v1/operations/{deed.operation}")
    return {"succeeded": done, "failed": failed}.get(operation["state"], ())


DONE = {
    "start": ("new",),
    "stop": ("dead",),
    "kill": ("dead",),
    "pause": ("paused",),
    "resume": ("running",),
    "restart": ("new",),
}
ROLLED_BACK = ("start-failed",)
#: A start that cannot be completed is rolled back; of a pause and a resume it is said that nobody knows.
FAILED = {
    "start": ROLLED_BACK,
    "stop": (),
    "kill": (),
    "pause": ("paused", "running"),
    "resume": ("paused", "running"),
    "restart": ROLLED_BACK,
}


def is_as(old: dict[str, Any], new: dict[str, Any], outcome: str, name: str) -> bool:
    """Whether a VM has become what a word says."""
    match outcome:
        case "same":
            return standing(old) == standing(new)
        case "new":
            return bool(new["substate"] == "running" and new["pid"] != old["pid"])
        case "paused" | "running":
            return bool(new["substate"] == outcome and new["pid"] == old["pid"])
        case _:
            return bool(new["substate"] == outcome and new["pid"] is None)


def strays(daemon: Daemon, after: dict[str, dict[str, Any]]) -> list[str]:
    """Where the list and the machine differ: orphans, ghosts, run directories of VMs that do not run."""
    listed = {view["pid"]: name for name, view in after.items() if view["pid"]}
    found = [f"pid {pid} is an orphan" for pid in emulators_below(daemon.root) - listed.keys()]
    for pid, name in listed.items():
        if not is_emulator_of(pid, name):
            found.append(f"{name} is a ghost: pid {pid} is not its QEMU")
            continue
        answer = daemon.post(f"/v1/instances/{name}/qmp", {"execute": "query-status"})
        if answer["result"]["status"] != after[name]["substate"]:
            found.append(f"{name} is {after[name]['substate']}, and its QEMU says {answer['result']['status']}")
    if daemon.remains() != sorted(listed.values()):
        found.append(f"run directories of {daemon.remains()}, but VMs {sorted(listed.values())}")
    return found


def is_emulator_of(pid: int, name: str) -> bool:
    """Whether a process is the QEMU of a VM."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return start_time(pid) != "" and any(word.startswith(b"guest=" + name.encode()) for word in command)
    except OSError:
        return False


def emulators_below(root: Path) -> set[int]:
    """Every QEMU that has something below a directory open, whoever started it: a FIFO, a socket's place, an image."""
    return {int(name.name) for name in Path("/proc").iterdir() if name.name.isdecimal() and _is_below(name, str(root))}


def _is_below(process: Path, root: str) -> bool:
    try:
        if not (process / "comm").read_text().startswith("qemu-system"):
            return False
        return any(str(link.readlink()).startswith(root) for link in (process / "fd").iterdir())
    except OSError:
        return False  # gone meanwhile, or another user's
