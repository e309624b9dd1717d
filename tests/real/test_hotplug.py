"""Disks that come and go while a VM runs, on every QEMU: what the API says is what QEMU has."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import ChangeError, ImageInUse, NoSuchDevice, UnitError
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import DEADLINE, Daemon, linux_unit, rom_unit
from tests.real.hotplug import (
    agree,
    attach,
    detach,
    fdsets,
    finished,
    image,
    nodes,
    peripherals,
    qmp,
    shown,
    state,
)
from tests.waiting import came_true

pytestmark = [pytest.mark.real]


def start(daemon: Daemon, qemu: Emulator, rom: Path, name: str = "web", **sections: str) -> None:
    """A VM that obeys no unplug: its guest is a ROM."""
    daemon.unit(name, rom_unit(qemu, rom, **sections))
    daemon.do(name, "start")


def test_a_disk_comes_and_goes_with_a_live_guest(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """The operation ends when QEMU has it, and when it has not; nothing of it is left anywhere."""
    daemon.unit("web", linux_unit(qemu, linux_guest))
    daemon.do("web", "start")
    before, claims = (peripherals(daemon, "web"), nodes(daemon, "web"), fdsets(daemon, "web")), record(daemon)["claims"]
    image(daemon, "data.img")
    operation = attach(daemon, "web", "disks", id="data", path="data.img")
    assert (operation["kind"], operation["state"], operation["result"]) == ("attach", "succeeded", {"changed": True})
    assert agree(daemon, "web")
    assert peripherals(daemon, "web") - before[0] == {"disk-data"}
    assert nodes(daemon, "web") - before[1] == {"disk-data", "file-data"}
    assert [disk["id"] for disk in daemon.view("web")["disks"]] == ["data"]
    assert [claim["entry"] for claim in record(daemon)["claims"]] == ["disk.data"]
    operation = detach(daemon, "web", "disks/data")
    assert (operation["kind"], operation["state"], operation["progress"]) == ("detach", "succeeded", "done")
    assert agree(daemon, "web")
    assert (peripherals(daemon, "web"), nodes(daemon, "web"), fdsets(daemon, "web")) == before
    assert (daemon.view("web")["disks"], record(daemon)["claims"]) == ([], claims)
    assert daemon.view("web")["operation"] is None


def record(daemon: Daemon, name: str = "web") -> dict[str, Any]:
    """The run record."""
    found: dict[str, Any] = json.loads((daemon.run / "instances" / name / "record.json").read_text())
    return found


def test_an_answer_to_device_del_ends_nothing(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A guest without an operating system lets nothing go: the detach waits, holds nobody, and ends with a reset."""
    start(daemon, qemu, rom_guest)
    image(daemon, "data.img")
    attach(daemon, "web", "disks", id="data", path="data.img")
    operation = detach(daemon, "web", "disks/data", wait=1)
    assert (operation["state"], operation["progress"]) == ("running", "acknowledged")
    assert state(daemon, "web", "disk-data") == "leaving"
    assert daemon.view("web")["operation"] is None
    image(daemon, "more.img")
    assert attach(daemon, "web", "disks", id="more", path="more.img")["state"] == "succeeded"
    again = detach(daemon, "web", "disks/data")
    assert (again["state"], again["error"]["code"]) == ("failed", ChangeError.code)
    assert "is being detached already" in again["error"]["detail"]
    with daemon.client() as client:
        larger = client.patch("/v1/instances/web/disks/data?wait=30", {"size": "2M"})
    for refused in (larger, attach(daemon, "web", "disks", id="data", path="data.img")):
        assert "disk.data is still being detached" in refused["error"]["detail"], refused
        assert "wait until the guest has let it go" in refused["error"]["hint"]
    said = came_true(lambda: "pending until" in daemon.get(f"/v1/operations/{operation['id']}")["progress"], seconds=10)
    assert said
    daemon.do("web", "reset")
    assert finished(daemon, operation)["state"] == "succeeded"
    assert agree(daemon, "web")
    assert "disk-data" not in shown(daemon, "web")


def test_a_detach_may_reset_the_guest(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """After the time that its caller gave the guest."""
    start(daemon, qemu, rom_guest)
    image(daemon, "data.img")
    attach(daemon, "web", "disks", id="data", path="data.img")
    operation = detach(daemon, "web", "disks/data", query="&force-after=0.5")
    assert operation["state"] == "succeeded"
    assert "disk-data" not in peripherals(daemon, "web")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_detach_outlives_the_daemon(daemon: Daemon, qemu: Emulator, rom_guest: Path, number: int) -> None:
    """The next one waits on, under the same id, and knows of a device that went while no daemon ran."""
    start(daemon, qemu, rom_guest)
    for name in ("one", "two"):
        image(daemon, f"{name}.img")
        attach(daemon, "web", "disks", id=name, path=f"{name}.img")
    waiting = []
    for name in ("one", "two"):
        waiting.append(detach(daemon, "web", f"disks/{name}", wait=0))
        assert came_true(lambda: daemon.view("web")["operation"] is None, seconds=5)
    daemon.restart(number)
    daemon.wait("web", "running")
    for operation in waiting:
        assert daemon.get(f"/v1/operations/{operation['id']}")["state"] == "running"
    assert (state(daemon, "web", "disk-one"), state(daemon, "web", "disk-two")) == ("leaving", "leaving")
    daemon.do("web", "reset")
    assert [finished(daemon, operation)["state"] for operation in waiting] == ["succeeded", "succeeded"]
    assert agree(daemon, "web")
    assert daemon.view("web")["disks"] == []


def test_what_is_attached_outlives_the_daemon(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """The next one shows it, keeps its image from others, and finds the next free slot."""
    start(daemon, qemu, rom_guest)
    image(daemon, "data.img")
    attach(daemon, "web", "disks", id="data", path="data.img")
    before = daemon.get("/v1/instances/web/devices")
    daemon.restart()
    daemon.wait("web", "running")
    assert daemon.get("/v1/instances/web/devices") == before
    start(daemon, qemu, rom_guest, name="other")
    operation = attach(daemon, "other", "disks", id="data", path="data.img")
    assert operation["error"]["code"] == ImageInUse.code
    assert "VM web" in operation["error"]["detail"]
    image(daemon, "more.img")
    assert attach(daemon, "web", "disks", id="more", path="more.img")["state"] == "succeeded"
    assert agree(daemon, "web")


def test_what_qemu_refuses_leaves_nothing(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A device that QEMU does not take: its nodes, descriptors and claims are gone, and QEMU's words are told."""
    start(daemon, qemu, rom_guest)
    image(daemon, "data.img")
    before = nodes(daemon, "web"), fdsets(daemon, "web"), shown(daemon, "web")
    # somebody else's node has the name that the disk's is to have
    qmp(daemon, "web", "blockdev-add", **{"driver": "null-co", "node-name": "disk-data", "read-zeroes": True})
    operation = attach(daemon, "web", "disks", id="data", path="data.img")
    assert operation["state"] == "failed"
    assert "disk 'data'" in operation["error"]["detail"]
    assert operation["error"]["code"] == "qmp-error"
    qmp(daemon, "web", "blockdev-del", **{"node-name": "disk-data"})
    assert (nodes(daemon, "web"), fdsets(daemon, "web"), shown(daemon, "web")) == before
    assert attach(daemon, "web", "disks", id="data", path="data.img")["state"] == "succeeded"


def test_there_are_as_many_slots_as_the_unit_says(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """What is left is shown, and that none is left is said before QEMU is asked."""
    start(daemon, emulator, rom_guest, machine="hotplug-slots = 2")
    for number in range(2):
        image(daemon, f"d{number}.img")
        assert daemon.get("/v1/instances/web/devices")["slots"] == {"free": 2 - number, "total": 2}
        attach(daemon, "web", "disks", id=f"d{number}", path=f"d{number}.img")
    image(daemon, "more.img")
    operation = attach(daemon, "web", "disks", id="more", path="more.img")
    assert (operation["error"]["code"], operation["error"]["status"]) == ("unsupported", 422)
    assert "there is no free slot: all 2 PCIe root ports are taken" in operation["error"]["detail"]


@pytest.mark.parametrize(
    ("entry", "code", "words"),
    [
        ({"id": "data", "path": "data.img", "bus": "isa"}, UnitError.code, "must be virtio"),
        ({"id": "data", "path": "data.img", "buss": "scsi"}, UnitError.code, "unknown key 'buss'"),
        ({"id": "root", "path": "data.img"}, ChangeError.code, "it has disk.root already"),
        ({"id": "data", "path": "data.img", "present": False}, ChangeError.code, "what is attached is present"),
        ({"id": "data", "path": "none.img"}, "image", "a relative path begins at /"),
        ({"id": "data", "path": "data.img", "format": "qcow2"}, "image", "declared qcow2"),
        ({"id": "data", "path": "root.img"}, UnitError.code, "the path of disk 'root' already"),
        ({"id": "data", "path": "link.img"}, ImageInUse.code, "is written by disk.root of this VM"),
        ({"id": "data", "path": "data.img", "bus": "sata"}, "unsupported", "takes no disks while the VM runs"),
        ({"id": "cd", "type": "cdrom"}, "unsupported", "say bus=scsi or bus=usb"),
        ({"id": "data", "path": "/proc/version"}, "image", "/proc/version"),
    ],
    ids=str,
)
def test_a_wrong_disk_is_refused(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, entry: dict[str, object], code: str, words: str
) -> None:
    """Each with its own problem, and nothing is attached by half."""
    image(daemon, "data.img")
    (daemon.images / "link.img").hardlink_to(image(daemon, "root.img"))
    start(daemon, emulator, rom_guest, tables='[[disk]]\nid = "root"\npath = "root.img"\n')
    before = shown(daemon, "web"), nodes(daemon, "web"), fdsets(daemon, "web")
    operation = attach(daemon, "web", "disks", **entry)
    assert operation["state"] == "failed"
    assert operation["error"]["code"] == code, operation["error"]
    assert words in json.dumps(operation["error"])
    assert (shown(daemon, "web"), nodes(daemon, "web"), fdsets(daemon, "web")) == before


def test_a_wrong_detach_is_refused(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """What is not there, and what the VM boots from unless that is meant."""
    image(daemon, "root.img")
    start(daemon, emulator, rom_guest, tables='[[disk]]\nid = "root"\npath = "root.img"\n')
    assert detach(daemon, "web", "disks/none")["error"]["code"] == NoSuchDevice.code
    assert "boots from" in detach(daemon, "web", "disks/root")["error"]["detail"]
    operation = detach(daemon, "web", "disks/root", query="&force=1&force-after=0.2")
    assert operation["state"] == "succeeded"
    assert daemon.view("web")["disks"] == []
    daemon.do("web", "kill")
    daemon.wait("web", "dead", seconds=DEADLINE)


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_what_somebody_else_attached_takes_its_place(
    daemon: Daemon, qemu: Emulator, rom_guest: Path, machine: str
) -> None:
    """With an id or without: it is shown where it is, its slot is no free one, and what comes goes elsewhere."""
    daemon.unit("web", rom_unit(qemu, rom_guest).replace('type = "q35"', f'type = "{machine}"'))
    daemon.do("web", "start")
    image(daemon, "data.img")
    assert attach(daemon, "web", "disks", id="data", path="data.img")["state"] == "succeeded"
    (place,) = [each for each in daemon.get("/v1/instances/web/devices")["devices"] if each["id"] == "disk-data"]
    assert detach(daemon, "web", "disks/data", query="&force-after=0.1")["state"] == "succeeded"
    before = daemon.view("web")["slots"]["free"]
    places = {"bus": place["bus"], "addr": place["address"]}
    second = {**places, "addr": hex(int(place["address"], 16) + 1)} if machine == "pc" else {"bus": "port-free-1"}
    qmp(daemon, "web", "device_add", driver="virtio-rng-pci", id="mine", **places)
    qmp(daemon, "web", "device_add", driver="virtio-rng-pci", **second)
    assert came_true(lambda: daemon.view("web")["slots"]["free"] == before - 2, seconds=5)
    devices = {
        each["id"]: (each["bus"], each["address"]) for each in daemon.get("/v1/instances/web/devices")["devices"]
    }
    assert devices["mine"] == (place["bus"], place["address"])
    assert devices["/machine/peripheral-anon/device[0]"][0] == second["bus"]
    assert attach(daemon, "web", "disks", id="data", path="data.img")["state"] == "succeeded"
    for id_ in ("mine", "/machine/peripheral-anon/device[0]"):
        qmp(daemon, "web", "device_del", id=id_)
    daemon.do("web", "reset")
    assert came_true(lambda: daemon.view("web")["slots"]["free"] == before - 1, seconds=5)
