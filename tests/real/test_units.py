"""Unit files that change, or go, beneath VMs that run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from qsup.errors import DeniedError, NoSuchInstance
from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit

pytestmark = pytest.mark.real


def test_a_vm_whose_unit_file_is_gone_says_so(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """It runs on, also beneath the next daemon, and is forgotten once it is down."""
    text = rom_unit(emulator, rom_guest, install="autostart = true")
    daemon.unit("web", text)
    daemon.do("web", "start")
    (daemon.units / "web.toml").unlink()
    assert daemon.post("/v1/reload")["removed"] == ["web"]
    unit = daemon.view("web")["unit"]
    assert (unit["files"], unit["autostart"], unit["stale"]) == ([], False, False)
    daemon.restart(signal.SIGTERM)
    assert daemon.wait("web", "running")["unit"] == unit
    assert "no unit file any more" in daemon.ctl("status", "web").stdout
    daemon.unit("web", text)
    assert daemon.view("web")["unit"]["files"] == [str(daemon.units / "web.toml")]
    (daemon.units / "web.toml").unlink()
    daemon.do("web", "kill")
    daemon.post("/v1/reload")
    with pytest.raises(NoSuchInstance):
        daemon.view("web")


def test_a_template_stays_while_an_instance_runs(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Like the file of a plain unit, it can be deleted once nothing runs by it."""
    daemon.unit("web@", rom_unit(emulator, rom_guest))
    daemon.do("web@blue", "start")
    with daemon.client() as client:
        with pytest.raises(DeniedError, match="web@blue: cannot delete the unit web@: it is active"):
            client.delete("/v1/units/web@")
        daemon.do("web@blue", "kill")
        client.delete("/v1/units/web@")
    assert not (daemon.units / "web@.toml").exists()
