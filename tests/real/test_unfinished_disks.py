"""Changes of disks whose daemon dies between any two of their steps: done by the next one, or nothing is left of them.

Decides: that QEMU, the API and the record agree on what came of it.
Must not: know the steps; `tests.real.dying` counts them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from qsup.errors import DaemonUnreachable
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, rom_unit
from tests.real.hotplug import agree, fdsets, image, nodes, peripherals, qmp
from tests.real.test_operations import BEYOND, SETTLED, Mortal, is_on_disk, may_die, points
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]

MIB = 1 << 20


@pytest.fixture
def mortal(root_dir: Path) -> Iterator[Mortal]:
    """One that has not been told to die."""
    with may_die(root_dir) as daemon:
        yield daemon


@frozen(kw_only=True)
class Case:
    """One change.

    Args:
        tables: of the unit.
        method, path, body: the request.
        done: whether QEMU and the API say that it was done.
    """

    kind: str
    method: str
    path: str
    body: dict[str, Any]
    done: Callable[[Daemon], bool]
    tables: str = ""


def drive(daemon: Daemon, device: str) -> dict[str, Any]:
    """QEMU's drive of a device, nothing where there is none."""
    found = [each for each in qmp(daemon, "web", "query-block") if device in each["qdev"].split("/")]
    return dict(found[0]) if found else {}


def attached(daemon: Daemon) -> bool:
    """Whether the disk is there, all of it or nothing."""
    there = "disk-data" in peripherals(daemon, "web")
    mine = {name for name in nodes(daemon, "web") if name.endswith("-data")}
    shown = [disk["id"] for disk in daemon.view("web")["disks"]]
    claims = [claim["entry"] for claim in record(daemon)["claims"]]
    if there:
        assert drive(daemon, "disk-data")["inserted"]["iops"] == 55
        assert mine == {"disk-data", "file-data"}
        assert len(fdsets(daemon, "web")) == 1
        assert (shown, claims) == (["data"], ["disk.data"])
    else:
        assert (mine, fdsets(daemon, "web"), shown, claims) == (set(), [], [], [])
    return there


def inserted(daemon: Daemon) -> bool:
    """Whether the other medium is in the closed drive; else the former one is."""
    found = drive(daemon, "disk-cd")
    assert not found["tray_open"]
    (shown,) = daemon.view("web")["disks"]
    there = bool(found["inserted"]["image"]["virtual-size"] == 3 * MIB)
    assert shown["path"] == ("two.iso" if there else "one.iso")
    assert (len(nodes(daemon, "web")), len(fdsets(daemon, "web"))) == (2, 1)
    assert [claim["path"] for claim in record(daemon)["claims"]] == [shown["path"]]
    return there


def uncached(daemon: Daemon) -> bool:
    """Whether the host's cache is passed by; in either case a set has its two members."""
    assert [len(each["fds"]) for each in qmp(daemon, "web", "query-fdsets")] == [2]
    return bool(drive(daemon, "disk-root")["inserted"]["cache"]["direct"])


def larger(daemon: Daemon) -> bool:
    """Whether the disk is."""
    return bool(drive(daemon, "disk-root")["inserted"]["image"]["virtual-size"] == 16 * MIB)


def record(daemon: Daemon) -> dict[str, Any]:
    """The run record."""
    found: dict[str, Any] = json.loads((daemon.run / "instances" / "web" / "record.json").read_text())
    return found


ROOT = '[[disk]]\nid = "root"\npath = "root.img"\n'
DISK = {"id": "data", "path": "data.img", "bus": "scsi", "throttle": {"iops": 55}}
CASES = {
    "attach": Case(kind="attach", method="POST", path="/disks?persist=0", body=DISK, done=attached),
    "insert": Case(
        kind="set",
        method="POST",
        path="/disks/cd/insert",
        body={"path": "two.iso"},
        done=inserted,
        tables='[[disk]]\nid = "cd"\ntype = "cdrom"\npath = "one.iso"\n',
    ),
    "cache": Case(
        kind="set",
        method="PATCH",
        path="?persist=0",
        body={"changes": {"disk": [{"id": "root", "cache": "none"}]}},
        done=uncached,
        tables=ROOT,
    ),
    "resize": Case(kind="resize", method="PATCH", path="/disks/root", body={"size": "16M"}, done=larger, tables=ROOT),
}


def ask(daemon: Mortal, case: Case) -> dict[str, Any] | None:
    """Ask for it, until it has ended and all of it is written down, or the daemon died: the last answer."""
    said = None
    try:
        with daemon.client() as client:
            body = json.dumps(case.body).encode()
            said = json.loads(client.exchange(case.method, f"/v1/instances/web{case.path}", body=body))
            said = client.get(f"/v1/operations/{said['id']}/wait?timeout={DEADLINE}")
    except DaemonUnreachable:
        poll_until(lambda: not daemon.is_alive(), "it is dead", seconds=DEADLINE)
    else:
        poll_until(lambda: is_on_disk(daemon, said) or not daemon.is_alive(), "its end is on disk", seconds=DEADLINE)
    return said


def bring(daemon: Daemon, images: dict[str, int]) -> None:
    """The VM afresh, with images as they were."""
    daemon.do("web", "kill")
    for name, size in images.items():
        image(daemon, name, size)
    daemon.do("web", "start")


def died_at(daemon: Mortal, case: Case, step: int, images: dict[str, int]) -> tuple[str, str] | None:
    """One death: the step, and what became of the operation; ``None`` where that step did not come."""
    bring(daemon, images)
    known = daemon.operations()
    daemon.die_at(step)
    said = ask(daemon, case)
    if daemon.is_alive():
        daemon.die_at(0)
    if daemon.is_alive():
        return None
    at = daemon.steps()[-1]
    daemon.start()
    daemon.wait("web", "running")
    found = daemon.newest(case.kind, known)
    assert said is None or found is not None, f"{said} was told of, and is forgotten"
    if found is not None:
        found = daemon.get(f"/v1/operations/{found['id']}/wait?timeout={SETTLED}")
        assert found["state"] == "succeeded", (step, at, found)
    assert agree(daemon, "web")
    poll_until(lambda: case.done(daemon) is (found is not None), f"step {step} ({at}) is as it is told", seconds=5)
    return at, found["state"] if found else "unknown"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_change_is_completed_by_the_next_daemon(mortal: Mortal, qemu: Emulator, rom_guest: Path, name: str) -> None:
    """Whatever step the daemon dies before: what was accepted is done, and nothing of it is there twice."""
    case = CASES[name]
    images = {"root.img": 8 * MIB, "data.img": MIB, "one.iso": 2 * MIB, "two.iso": 3 * MIB}
    for image_name, size in images.items():
        image(mortal, image_name, size)
    mortal.unit("web", rom_unit(qemu, rom_guest, tables=case.tables))
    mortal.do("web", "start")
    mortal.die_at(BEYOND)
    ask(mortal, case)
    assert case.done(mortal)
    steps = mortal.steps()[1:]
    died = [found for step in points(steps) if (found := died_at(mortal, case, step, images))]
    assert died[-1][1] == "succeeded", died
    assert len(died) >= 5, (steps, died)
    assert "driver failed" not in mortal.log()
