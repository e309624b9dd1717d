"""Disks of each bus that come and go while a Linux guest runs: QEMU, the API and the guest agree."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import pytest

from qsup.errors import ImageInUse
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, linux_unit, rom_unit
from tests.real.hotplug import agree, attach, change, detach, fdsets, image, in_guest, nodes, peripherals, qmp, state
from tests.waiting import poll_until

pytestmark = [pytest.mark.real]

#: Bytes of the test's images: each disk is known in the guest by its size in sectors.
SIZE = 3 << 20
#: Where the guest shows a disk, by its bus; its kernel has no USB.
SHOWN = {"virtio": "vd", "scsi": "sd", "nvme": "nvme"}


def sizes(daemon: Daemon) -> dict[str, int]:
    """The guest's disks with their sectors."""
    said = in_guest(daemon, "web", "cd /sys/block; for d in $(ls); do echo $d $(cat $d/size); done")
    return {name: int(sectors) for name, sectors in map(str.split, said.splitlines())}


def seen(daemon: Daemon, bus: str, sectors: int) -> bool:
    """Whether the guest has a disk of that bus and size."""
    return any(name.startswith(SHOWN[bus]) and size == sectors for name, size in sizes(daemon).items())


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_disks_of_each_bus(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest, machine: str) -> None:
    """With their controllers where there are none yet; the guest sees them come and go; nothing is left of them."""
    daemon.unit("web", linux_unit(qemu, linux_guest, machine=f'type = "{machine}"'))
    daemon.do("web", "start")
    before = nodes(daemon, "web"), fdsets(daemon, "web")
    known, there = set(sizes(daemon)), peripherals(daemon, "web")
    buses = {"virtio": 0, "scsi": 1, "nvme": 2, "usb": 3}
    for bus, number in buses.items():
        image(daemon, f"{bus}.img", SIZE + number * 4096)
        operation = attach(daemon, "web", "disks", id=bus, path=f"{bus}.img", bus=bus, serial=f"s-{bus}")
        assert operation["state"] == "succeeded", operation
        if bus in SHOWN:
            shown = partial(seen, daemon, bus, (SIZE + number * 4096) // 512)
            poll_until(shown, f"the guest sees a {bus} disk", seconds=15)
    assert agree(daemon, "web")
    assert peripherals(daemon, "web") - there == {"disk-virtio", "scsi", "disk-scsi", "disk-nvme", "usb", "disk-usb"}
    # a second disk needs no second controller
    image(daemon, "more.img", SIZE)
    operation = attach(daemon, "web", "disks", id="more", path="more.img", bus="scsi", shareable=True)
    assert operation["state"] == "succeeded", operation
    poll_until(lambda: seen(daemon, "scsi", SIZE // 512), "the guest sees the second SCSI disk", seconds=15)
    for disk in (*buses, "more"):
        operation = detach(daemon, "web", f"disks/{disk}")
        assert operation["state"] == "succeeded", operation
    assert agree(daemon, "web")
    poll_until(lambda: set(sizes(daemon)) == known, "the guest has its own disks only", seconds=15)
    assert (nodes(daemon, "web"), fdsets(daemon, "web")) == before
    assert daemon.view("web")["disks"] == []


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_a_controller_goes_with_the_last_disk_on_it(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest, machine: str
) -> None:
    """It gives its slot back; a disk that comes meanwhile comes to another, and stays there."""
    daemon.unit("web", linux_unit(qemu, linux_guest, machine=f'type = "{machine}"'))
    daemon.do("web", "start")
    there, slots = peripherals(daemon, "web"), daemon.view("web")["slots"]
    for name in ("a", "b"):
        image(daemon, f"{name}.img", SIZE)
    for bus in ("scsi", "usb"):
        for name in ("a", "b"):
            assert attach(daemon, "web", "disks", id=name, path=f"{name}.img", bus=bus)["state"] == "succeeded"
        assert detach(daemon, "web", "disks/a")["state"] == "succeeded"
        assert bus in peripherals(daemon, "web")
        assert detach(daemon, "web", "disks/b")["state"] == "succeeded"
        # at once: its controller is still there, on its way out, or gone
        assert attach(daemon, "web", "disks", id="a", path="a.img", bus=bus)["state"] == "succeeded"
        poll_until(lambda: len(peripherals(daemon, "web") - there) == 2, "one disk, one controller", seconds=15)
        assert agree(daemon, "web")
        assert detach(daemon, "web", "disks/a")["state"] == "succeeded"
        poll_until(lambda: peripherals(daemon, "web") == there, "no controller is left", seconds=15)
        assert agree(daemon, "web")
    assert daemon.view("web")["slots"] == slots


def test_a_guest_that_keeps_a_controller_costs_one_slot(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """However often a disk comes and goes; a later daemon and a reset have it go."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.do("web", "start")
    image(daemon, "a.img", SIZE)
    there = peripherals(daemon, "web")
    for _ in range(4):
        assert attach(daemon, "web", "disks", id="a", path="a.img", bus="scsi")["state"] == "succeeded"
        assert detach(daemon, "web", "disks/a")["state"] == "succeeded"
        poll_until(lambda: state(daemon, "web", "scsi") == "leaving", "it is asked for", seconds=5)
    assert peripherals(daemon, "web") - there == {"scsi", "scsi2"}
    assert (state(daemon, "web", "scsi2"), agree(daemon, "web")) == ("there", True)
    daemon.restart()
    daemon.wait("web", "running")
    daemon.do("web", "reset")
    poll_until(lambda: "scsi" not in peripherals(daemon, "web"), "a reset has it go", seconds=5)
    poll_until(lambda: state(daemon, "web", "scsi2") == "leaving", "the other is asked for", seconds=5)
    daemon.do("web", "reset")
    poll_until(lambda: peripherals(daemon, "web") == there, "no controller is left", seconds=5)
    assert agree(daemon, "web")


def test_a_chain_of_images(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """An overlay on its declared backing file, read-only, with a serial number: as the unit says, also to the guest."""
    daemon.unit("web", linux_unit(qemu, linux_guest))
    daemon.do("web", "start")
    before = nodes(daemon, "web"), fdsets(daemon, "web")
    overlay(qemu, daemon, "top.qcow2", image(daemon, "base.img", SIZE))
    entry = {"id": "data", "path": "top.qcow2", "format": "qcow2", "read-only": True, "serial": "12345"}
    operation = attach(daemon, "web", "disks", **entry, backing=[{"path": "base.img", "format": "raw"}])
    assert operation["state"] == "succeeded", operation
    assert nodes(daemon, "web") - before[0] == {"disk-data", "file-data", "base1-data", "basefile1-data"}
    poll_until(lambda: seen(daemon, "virtio", SIZE // 512), "the guest sees it", seconds=15)
    assert in_guest(daemon, "web", "cat /sys/block/vda/ro /sys/block/vda/serial").split() == ["1", "12345"]
    assert detach(daemon, "web", "disks/data")["state"] == "succeeded"
    assert (nodes(daemon, "web"), fdsets(daemon, "web")) == before


def overlay(qemu: Emulator, daemon: Daemon, name: str, base: Path) -> Path:
    """A qcow2 image on a raw one."""
    path = daemon.images / name
    command = [str(qemu.img), "create", "-q", "-f", "qcow2", "-b", base.name, "-F", "raw", str(path)]
    subprocess.run(command, check=True, cwd=daemon.images)
    return path


def test_cd_drives_come_and_go(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """On SCSI and USB, with a medium and without."""
    daemon.unit("web", linux_unit(qemu, linux_guest))
    daemon.do("web", "start")
    before = nodes(daemon, "web"), fdsets(daemon, "web")
    image(daemon, "cd.iso", SIZE)
    for bus in ("scsi", "usb"):
        operation = attach(daemon, "web", "disks", id="cd", type="cdrom", bus=bus, path="cd.iso")
        assert operation["state"] == "succeeded", operation
        assert attach(daemon, "web", "disks", id="bare", type="cdrom", bus=bus)["state"] == "succeeded"
        assert agree(daemon, "web")
        if bus == "scsi":
            # whichever of the two its guest has found first is sr0
            poll_until(lambda: SIZE // 512 in sizes(daemon).values(), "the guest sees the medium", seconds=15)
        for disk in ("cd", "bare"):
            operation = detach(daemon, "web", f"disks/{disk}")
            assert operation["state"] == "succeeded", operation
        assert agree(daemon, "web")
        assert (nodes(daemon, "web"), fdsets(daemon, "web")) == before


def test_many_scsi_disks_by_one_request(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """Their controller comes with them, and each has a place of its own."""
    daemon.unit("web", linux_unit(qemu, linux_guest))
    daemon.do("web", "start")
    names = [f"d{number}" for number in range(16)]
    for number, name in enumerate(names):
        image(daemon, f"{name}.img", SIZE + number * 4096)
    disks = [{"id": name, "path": f"{name}.img", "bus": "scsi"} for name in names]
    operation = change(daemon, "web", disk=disks)
    assert operation["state"] == "succeeded", operation
    assert agree(daemon, "web")
    wanted = {(SIZE + number * 4096) // 512 for number in range(16)}
    poll_until(lambda: wanted <= set(sizes(daemon).values()), "the guest sees them all", seconds=30)
    addresses = {d["address"] for d in daemon.get("/v1/instances/web/devices")["devices"] if d["bus"] == "scsi.0"}
    assert len(addresses) == 16


def test_what_a_machine_cannot_take_is_refused(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Before QEMU is asked: SATA and IDE disks, and anything on microvm."""
    image(daemon, "data.img")
    daemon.unit("web", rom_unit(emulator, rom_guest).replace('type = "q35"', 'type = "pc"'))
    daemon.unit("small", rom_unit(emulator, rom_guest).replace('type = "q35"', 'type = "microvm"'))
    for name, buses in {"web": ("ide", "sata"), "small": ("virtio", "scsi")}.items():
        daemon.do(name, "start")
        before = nodes(daemon, name), fdsets(daemon, name), qmp(daemon, name, "query-block")
        for bus in buses:
            operation = attach(daemon, name, "disks", id="data", path="data.img", bus=bus)
            assert (operation["error"]["code"], operation["error"]["status"]) == ("unsupported", 422), operation
            assert "while" in operation["error"]["detail"]
        assert (nodes(daemon, name), fdsets(daemon, name), qmp(daemon, name, "query-block")) == before


def test_an_image_that_two_vms_share(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Both must say so; a third that does not is refused, with the names of those who have it."""
    image(daemon, "shared.img")
    for name in ("web", "other", "third"):
        daemon.unit(name, rom_unit(qemu, rom_guest))
        daemon.do(name, "start")
    for name in ("web", "other"):
        operation = attach(daemon, name, "disks", id="data", path="shared.img", shareable=True)
        assert operation["state"] == "succeeded", operation
    operation = attach(daemon, "third", "disks", id="data", path="shared.img")
    assert operation["error"]["code"] == ImageInUse.code
    assert "VM web" in operation["error"]["detail"]
