"""``verify --host``: what starts would find out is told beforehand, all at once; those starts leave nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit
from tests.real.hotplug import finished

pytestmark = [pytest.mark.real]

SIZE, QEMU, ROM = 'size = "16M"', "QEMU", "ROM"
LARGE = 'size = "40T"'
DISK = '[[disk]]\nid = "root"\npath = "gone.qcow2"\nformat = "qcow2"'
#: What is wrong with a unit: further sections, a text in place of another, the key that is blamed, and the words.
BAD: dict[str, tuple[dict[str, str], tuple[str, str], str, str]] = {
    "pin": ({"cpu": 'pin = ["77"]'}, ("", ""), "cpu.pin", "names CPU 77, and there is no CPU 77 on this host"),
    "emulator": ({"cpu": 'emulator-pin = "78"'}, ("", ""), "cpu.emulator-pin", "names CPU 78, and there is no CPU 78"),
    "node": (
        {"memory": 'nodes = "77"'},
        ("", ""),
        "memory.nodes",
        "its memory is to be on node 77, which is not there",
    ),
    "pages": ({"memory": 'hugepages = "1G"'}, (SIZE, 'size = "2T"'), "memory.hugepages", "huge pages of 1G"),
    "once": ({"memory": "prealloc = true"}, (SIZE, LARGE), "memory.size", "wants 40T of memory at once, and"),
    "large": ({}, (SIZE, LARGE), "memory.size", "wants 41943169M of memory (40T for its guest, 129M for QEMU itself)"),
    "qemu": ({}, (QEMU, "/nowhere/qemu"), "machine.emulator", "emulator '/nowhere/qemu': No such file or directory"),
    "disk": ({"tables": DISK}, ("", ""), "disk.root.path", "could not open disk image gone.qcow2: No such file"),
    "rom": ({}, (ROM, "/nowhere/rom"), "machine.firmware", "could not open /nowhere/rom: No such file or directory"),
}


def text(name: str, emulator: Emulator, rom: Path) -> str:
    """The unit of that name."""
    sections, (old, new), _, _ = BAD[name]
    old = {QEMU: str(emulator.path), ROM: str(rom)}.get(old, old)
    return rom_unit(emulator, rom, **sections).replace(old, new, 1) if old else rom_unit(emulator, rom, **sections)


def test_what_a_host_cannot_do(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Each at its file and line, all at once, and in the words of a start that fails for it and leaves nothing."""
    for name in BAD:
        (daemon.units / f"{name}.toml").write_text(text(name, emulator, rom_guest))
    daemon.post("/v1/reload")
    assert daemon.ctl("verify", str(daemon.units)).stderr == ""
    told = daemon.ctl("verify", "--host", str(daemon.units), check=False)
    lines = told.stderr.splitlines()
    assert (told.returncode, len(lines)) == (1, len(BAD)), told.stderr
    for name, (_, _, key, words) in BAD.items():
        (line,) = (line for line in lines if f"/{name}.toml:" in line)
        where, _, rest = line.partition(": ")
        assert (rest.startswith(f"{key}: "), words in rest) == (True, True), line
        said = (daemon.units / f"{name}.toml").read_text().splitlines()[int(where.rpartition(":")[2]) - 1]
        assert said.startswith(f"{key.rpartition('.')[2]} = ")
        operation = finished(daemon, daemon.post(f"/v1/instances/{name}/start"))
        assert (operation["state"], words in operation["error"]["detail"]) == ("failed", True), operation
        assert daemon.view(name)["pid"] is None
    assert daemon.remains() == []
    assert daemon.get("/v1/capacity")["instances"] == []


def test_cpus_that_two_units_name(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """One that wants them alone is told of the other, given or known; VMs that never run together may share them."""
    (mine, *_) = sorted(os.sched_getaffinity(0))
    alone = f'pin = ["{mine}"]\nexclusive = true'
    daemon.unit("db", rom_unit(emulator, rom_guest, cpu=f'pin = ["{mine}"]'))
    daemon.unit("rt", rom_unit(emulator, rom_guest, cpu=alone))
    told = daemon.ctl("verify", "--host", str(daemon.units / "rt.toml"), check=False)
    assert (
        f"rt.toml:8: cpu.pin: CPU {mine}, which it wants for itself, db names as well; name other CPUs" in told.stderr
    )
    both = daemon.ctl("verify", "--host", str(daemon.units), check=False)
    assert f"db.toml:8: cpu.pin: CPU {mine} is exclusively rt's" in both.stderr
    daemon.unit("rt", rom_unit(emulator, rom_guest, cpu=alone, unit='conflicts = ["db"]'))
    assert daemon.ctl("verify", "--host", str(daemon.units)).stderr == ""


def test_what_can_start(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A unit that has no more than there is is right, while its VM runs, too; without a daemon nothing can be said."""
    daemon.unit("web", rom_unit(emulator, rom_guest, cpu='pin = "auto"', memory='nodes = "auto"'))
    assert daemon.ctl("verify", "--host", str(daemon.units)).stderr == ""
    daemon.do("web", "start")
    assert daemon.ctl("verify", "--host", str(daemon.units)).stderr == ""
    daemon.do("web", "kill")
    daemon.signal(15)
    assert daemon.ctl("verify", str(daemon.units)).returncode == 0
    told = daemon.ctl("verify", "--host", str(daemon.units), check=False)
    assert (told.returncode, "qsupd" in told.stderr) == (5, True)
    daemon.start()
