"""Units that change beneath VMs that run: what is said of it, and that nothing is done about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qsup.errors import NoSuchUnit, UnitError
from tests.guests import Emulator
from tests.real.beside import MEBIBYTE
from tests.real.daemons import Daemon, rom_unit

pytestmark = pytest.mark.real

DISK = '[[disk]]\nid = "{0}"\npath = "{0}.img"\nformat = "raw"\n'


def needs(diff: dict[str, Any]) -> dict[str, str]:
    """What each changed key needs."""
    return {change["key"]: change["needs"] for change in diff["changes"]}


def images(daemon: Daemon, *names: str) -> None:
    """Images of a MiB."""
    for name in names:
        (daemon.root / f"{name}.img").write_bytes(bytes(MEBIBYTE))


def test_a_changed_unit_is_shown_and_restarts_nothing(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Key by key, with what it needs, by reload, status and diff, and beneath the next daemon; a restart applies it."""
    images(daemon, "one", "two")
    daemon.unit("web", rom_unit(qemu, rom_guest, tables=DISK.format("one")))
    assert daemon.get("/v1/instances/web/diff") == {"instance": "web", "running": False, "changes": []}
    assert "nothing to compare" in daemon.ctl("diff", "web").stdout
    pid = daemon.do("web", "start")["pid"]
    assert daemon.ctl("diff", "web").stdout == "web runs as its unit says\n"
    (daemon.units / "web.toml").write_text(
        rom_unit(qemu, rom_guest, unit='description = "new"', cpu="vcpus = 2", tables=DISK.format("two"))
    )
    (daemon.units / "web.toml.d").mkdir()
    (daemon.units / "web.toml.d" / "10-log.toml").write_text('[service]\nstop-timeout = "7s"\n')
    expected = {
        "unit.description": "at once",
        "service.stop-timeout": "at once",
        "cpu.vcpus": "restart",
        "cpu.max-vcpus": "restart",
        "disk.one": "restart",
        "disk.two": "live",
    }
    assert needs(daemon.get("/v1/instances/web/diff")) == expected, "the files are read as they are, before any reload"
    assert not daemon.view("web")["unit"]["stale"]
    (running,) = daemon.post("/v1/reload")["running"]
    assert (running["instance"], needs(running)) == ("web", expected)
    assert daemon.post("/v1/reload")["running"] == [], "nothing has changed since"
    for _ in range(2):
        view = daemon.view("web")
        assert (view["pid"], view["cpus"]["vcpus"], view["unit"]["needs_restart"]) == (pid, 1, True)
        assert "a restart applies it (qsupctl diff web shows what)" in daemon.ctl("status", "web").stdout
        told = daemon.ctl("diff", "web", check=False)
        assert (told.returncode, told.stderr) == (1, "")
        assert any(line.split() == ["cpu.vcpus", "1", "2", "restart"] for line in told.stdout.splitlines())
        daemon.restart()
        daemon.wait("web", "running")
    daemon.do("web", "kill")
    view = daemon.do("web", "start")
    assert (view["cpus"]["vcpus"], [disk["id"] for disk in view["disks"]]) == (2, ["two"])
    assert not view["unit"]["needs_restart"]
    assert daemon.ctl("diff", "web").stdout == "web runs as its unit says\n"


def test_what_the_daemon_alone_acts_on_is_in_force(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A changed stop timeout and restart policy count for the VM that runs, which needs no restart for that."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service='stop-timeout = "300s"'))
    daemon.do("web", "start")
    daemon.type("web", "D")
    service = 'stop-timeout = "0.2s"\nquit-timeout = "5s"'
    (daemon.units / "web.toml").write_text(rom_unit(emulator, rom_guest, service=service))
    assert "web was started with another unit; what differs counts without a restart" in daemon.ctl("reload").stdout
    unit = daemon.view("web")["unit"]
    assert (unit["stale"], unit["needs_restart"]) == (True, False)
    assert "Note:" not in daemon.ctl("status", "web").stdout
    assert daemon.do("web", "stop")["substate"] == "dead"


def test_a_template_is_compared_by_its_instances(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """An instance without a file of its own runs by the template, and is told of what changes there."""
    daemon.unit("web@", rom_unit(emulator, rom_guest))
    daemon.do("web@blue", "start")
    (daemon.units / "web@.toml").write_text(rom_unit(emulator, rom_guest, cpu="vcpus = 2"))
    (running,) = daemon.post("/v1/reload")["running"]
    assert running["instance"] == "web@blue"
    assert needs(running) == {"cpu.vcpus": "restart", "cpu.max-vcpus": "restart"}


def test_a_unit_that_cannot_be_read_is_an_error(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """There is nothing to compare a running VM with: its file is broken, then gone."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    (daemon.units / "web.toml").write_text("[cpu]\nvcpu = 2\n")
    with pytest.raises(UnitError, match="unknown key"):
        daemon.get("/v1/instances/web/diff")
    assert "web.toml:2: cpu.vcpu: unknown key" in daemon.ctl("diff", "web", check=False).stderr
    (daemon.units / "web.toml").unlink()
    with pytest.raises(NoSuchUnit):
        daemon.get("/v1/instances/web/diff")
    assert daemon.ctl("diff", "web", check=False).returncode == 4
    assert daemon.view("web")["substate"] == "running"
