"""Media of CD drives whose change a QEMU does not answer: what is said, what is so once it answers, and a repeat."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.guests import Emulator
from tests.real.daemons import DEADLINE, rom_unit, signal_process
from tests.real.hotplug import fdsets, finished, image, nodes, qmp
from tests.real.mortal import BEYOND, Mortal
from tests.waiting import came_true

pytestmark = [pytest.mark.real, pytest.mark.slow]

SIZES = {"": 0, "one.iso": 2 << 20, "two.iso": 3 << 20}
CD = '[[disk]]\nid = "cd"\ntype = "cdrom"\npath = "one.iso"\n'


def ask(daemon: Mortal, verb: str) -> dict[str, Any]:
    """Insert the other medium, or eject, for good: the operation as it begins."""
    with daemon.client() as client:
        changes = {"disk": [{"id": "cd", "path": "two.iso" if verb == "insert" else ""}]}
        operation: dict[str, Any] = client.patch("/v1/instances/web", {"changes": changes})
    return operation


def shown(daemon: Mortal) -> str:
    """The medium that the API shows."""
    (disk,) = daemon.view("web")["disks"]
    return str(disk["path"])


def is_so(daemon: Mortal) -> bool:
    """Whether QEMU has what the API shows, and nothing of any other medium, and the unit's difference is told."""
    (drive,) = qmp(daemon, "web", "query-block")
    path = shown(daemon)
    changes = daemon.get("/v1/instances/web/diff")["changes"]
    unit = "two.iso" if "two.iso" in said(daemon) else "" if "path" in said(daemon) else "one.iso"
    return bool(
        drive.get("inserted", {}).get("image", {}).get("virtual-size", 0) == SIZES[path]
        and (len(nodes(daemon, "web")), len(fdsets(daemon, "web"))) == ((2, 1) if path else (0, 0))
        and [change["key"] for change in changes] == (["disk.cd.path"] if path != unit else [])
        and not [each for each in daemon.view("web")["warnings"] if "medium" in each]
    )


def said(daemon: Mortal) -> str:
    """What the daemon's drop-in says."""
    path = daemon.units / "web.toml.d" / "90-changes.toml"
    return path.read_text().partition("\n\n")[2] if path.exists() else ""


def bring(daemon: Mortal) -> int:
    """The VM afresh with its first medium: the id of its process."""
    daemon.do("web", "kill")
    (daemon.units / "web.toml.d" / "90-changes.toml").unlink(missing_ok=True)
    pid: int = daemon.do("web", "start")["pid"]
    return pid


def has_stopped(pid: int) -> bool:
    """Whether a process was sent SIGSTOP (proc(5): stat)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("verb", ["insert", "eject"])
def test_a_change_that_qemu_does_not_answer(
    mortal: Mortal, emulator: Emulator, rom_guest: Path, verb: str, restarted: bool
) -> None:
    """Whichever command it is deaf to: the error says which, the API what came of it, and a repeat does it."""
    for name, size in SIZES.items():
        if name:
            image(mortal, name, size)
    mortal.unit("web", rom_unit(emulator, rom_guest, tables=CD))
    bring(mortal)
    mortal.die_at(BEYOND)
    assert finished(mortal, ask(mortal, verb))["state"] == "succeeded"
    assert is_so(mortal)
    sends = [number for number, step in enumerate(mortal.steps()[1:], 1) if step.startswith("send")]
    states, words = [], set()
    for step in sends[1 + restarted :: 3]:
        pid = bring(mortal)
        mortal.die_at(step, stops=pid)
        operation = ask(mortal, verb)
        if restarted:
            assert came_true(partial(has_stopped, pid), seconds=DEADLINE)
            mortal.restart()
        else:
            ended = finished(mortal, operation, seconds=40)
            words.add((ended["error"] or {}).get("detail", "").rpartition(", while ")[2])
        signal_process(pid, signal.SIGCONT)
        mortal.die_at(0)
        mortal.wait("web", "running")
        ended = finished(mortal, operation, seconds=40)
        states.append(ended["state"])
        assert came_true(lambda: is_so(mortal), seconds=DEADLINE), (step, ended, mortal.view("web")["disks"])
        again = finished(mortal, ask(mortal, verb))
        assert again["state"] == "succeeded", (step, ended, again)
        wanted = "two.iso" if verb == "insert" else ""
        assert (shown(mortal), is_so(mortal)) == (wanted, True), (step, ended, again)
        assert f'path = "{wanted}"' in said(mortal)
    assert restarted or ("failed" in states and len(words) > 2), (states, words)
