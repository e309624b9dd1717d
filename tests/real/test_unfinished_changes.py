"""Changes of running VMs whose daemon dies between any two of their steps: done by the next one, or nothing is left.

Decides: that QEMU, the API and the record agree on what came of it.
Must not: know the steps; `tests.real.dying` counts them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit
from tests.real.hotplug import agree, fdsets, image, nodes, peripherals, qmp
from tests.real.mortal import Asked, Mortal, points
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]

MIB = 1 << 20


@frozen(kw_only=True)
class Case:
    """One change.

    Args:
        done: whether QEMU and the API say that it was done.
        tables: of the unit.
        cpu, memory: sections of it.
    """

    asked: Asked
    done: Callable[[Daemon], bool]
    tables: str = ""
    cpu: str = ""
    memory: str = ""


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


def has_card(daemon: Daemon) -> bool:
    """Whether the NIC is there, all of it or nothing; its address is that of its id."""
    there = "nic-lan" in peripherals(daemon, "web")
    shown = [(nic["id"], nic["mac"]) for nic in daemon.view("web")["nics"]]
    assert len(shown) == there
    if there:
        (card,) = qmp(daemon, "web", "query-rx-filter")
        assert (card["name"], shown) == ("nic-lan", [("lan", card["main-mac"])])
    cards = qmp(daemon, "web", "human-monitor-command", **{"command-line": "info network"})
    assert ("lan" in cards) is there, cards
    return there


def has_rng(daemon: Daemon) -> bool:
    """Whether the device is there, and what it stands on, all of it or nothing."""
    there = "device-luck" in peripherals(daemon, "web")
    objects = {each["name"] for each in qmp(daemon, "web", "qom-list", path="/objects")}
    assert ("rng-luck" in objects) is there
    return there


def detached(daemon: Daemon) -> bool:
    """Whether nothing is left of the disk; else all of it is there."""
    there = "disk-root" in peripherals(daemon, "web")
    assert nodes(daemon, "web") == ({"disk-root", "file-root"} if there else set())
    assert len(fdsets(daemon, "web")) == len(record(daemon)["claims"]) == there
    return not there


def has_more_memory(daemon: Daemon) -> bool:
    """Whether there is a module more, and one alone."""
    plugged = int(qmp(daemon, "web", "query-memory-size-summary")["plugged-memory"])
    assert plugged in (0, 128 * MIB)
    assert len([each for each in peripherals(daemon, "web") if each.startswith("memory-")]) == bool(plugged)
    assert daemon.view("web")["memory"]["size"] == 16 * MIB + plugged
    return bool(plugged)


def has_more_vcpus(daemon: Daemon) -> bool:
    """Whether there are two more; never one."""
    number = len(qmp(daemon, "web", "query-cpus-fast"))
    assert number in (1, 3)
    assert daemon.view("web")["cpus"]["vcpus"] == number
    return number > 1


ROOT = '[[disk]]\nid = "root"\npath = "root.img"\n'
DISK = {"id": "data", "path": "data.img", "bus": "scsi", "throttle": {"iops": 55}}
WEB = "instances/web"
CASES = {
    "attach-disk": Case(
        asked=Asked(kind="attach", path=f"{WEB}/disks?persist=0", body=DISK),
        done=attached,
    ),
    "attach-nic": Case(
        asked=Asked(kind="attach", path=f"{WEB}/nics?persist=0", body={"id": "lan"}),
        done=has_card,
    ),
    "attach-device": Case(
        asked=Asked(kind="attach", path=f"{WEB}/devices?persist=0", body={"id": "luck", "type": "rng"}),
        done=has_rng,
    ),
    # its guest is one that lets nothing go before it is reset
    "detach": Case(
        asked=Asked(kind="detach", path=f"{WEB}/disks/root?persist=0&force=1&force-after=0.2", method="DELETE"),
        done=detached,
        tables=ROOT,
    ),
    "insert": Case(
        asked=Asked(kind="set", path=f"{WEB}/disks/cd/insert?persist=0", body={"path": "two.iso"}),
        done=inserted,
        tables='[[disk]]\nid = "cd"\ntype = "cdrom"\npath = "one.iso"\n',
    ),
    "cache": Case(
        asked=Asked(
            kind="set",
            method="PATCH",
            path=f"{WEB}?persist=0",
            body={"changes": {"disk": [{"id": "root", "cache": "none"}]}},
        ),
        done=uncached,
        tables=ROOT,
    ),
    "resize": Case(
        asked=Asked(kind="resize", method="PATCH", path=f"{WEB}/disks/root", body={"size": "16M"}),
        done=larger,
        tables=ROOT,
    ),
    "memory": Case(
        asked=Asked(
            kind="set", method="PATCH", path=f"{WEB}?persist=0", body={"changes": {"memory": {"size": "144M"}}}
        ),
        done=has_more_memory,
        memory='max = "1G"\nslots = 2\nresize = "dimm"',
    ),
    "vcpus": Case(
        asked=Asked(kind="set", method="PATCH", path=f"{WEB}?persist=0", body={"changes": {"cpu": {"vcpus": 3}}}),
        done=has_more_vcpus,
        cpu="max-vcpus = 4",
    ),
}


def bring(daemon: Daemon, images: dict[str, int]) -> None:
    """The VM afresh, with images as they were."""
    daemon.do("web", "kill")
    for name, size in images.items():
        image(daemon, name, size)
    daemon.do("web", "start")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_change_is_completed_by_the_next_daemon(mortal: Mortal, qemu: Emulator, rom_guest: Path, name: str) -> None:
    """Whatever step the daemon dies before: what was accepted is done, and nothing of it is there twice."""
    case = CASES[name]
    images = {"root.img": 8 * MIB, "data.img": MIB, "one.iso": 2 * MIB, "two.iso": 3 * MIB}
    for image_name, size in images.items():
        image(mortal, image_name, size)
    sections = {key: text for key, text in (("cpu", case.cpu), ("memory", case.memory)) if text}
    mortal.unit("web", rom_unit(qemu, rom_guest, tables=case.tables, **sections))
    mortal.do("web", "start")
    steps = mortal.steps_of(case.asked)
    assert case.done(mortal)
    died = []
    for step in points(steps):
        bring(mortal, images)
        if (death := mortal.die_during(case.asked, step)) is None:
            continue
        mortal.wait("web", "running")
        assert death.found is None or death.found["state"] == "succeeded", death
        assert agree(mortal, "web")
        true = f"{death} is as it is told"
        poll_until(lambda: case.done(mortal) is (death.found is not None), true, seconds=5)
        died.append(death.outcome)
    assert died[-1][1] == "succeeded", died
    assert len(died) >= 5, (steps, died)
    assert "driver failed" not in mortal.log()
