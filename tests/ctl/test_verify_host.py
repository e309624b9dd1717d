"""``verify --host``: what the daemon finds of units, at their files and lines."""

from __future__ import annotations

import json
from pathlib import Path

from qsup.instance.hostcheck import HostFinding
from tests.api.calling import Daemon
from tests.ctl.running import Ctl

UNIT = '[cpu]\npin = ["0"]\n\n[memory]\nsize = "1G"\n'


async def test_what_the_daemon_finds_has_its_line(served: Daemon, ctl: Ctl, tmp_path: Path) -> None:
    """The first of the keys that a file holds is blamed, in the drop-in that says it, and the VM named where
    the file is not its alone; a file with errors keeps none.
    """
    (tmp_path / "web.toml").write_text(UNIT)
    (tmp_path / "web.toml.d").mkdir()
    (tmp_path / "web.toml.d/big.toml").write_text('[memory]\nsize = "40T"\n')
    (tmp_path / "web@.toml").write_text(UNIT)
    (tmp_path / "web@1.toml.d").mkdir()
    (tmp_path / "web@1.toml.d/alone.toml").write_text("[cpu]\nexclusive = true\n")
    (tmp_path / "bad.toml").write_text("[cpu]\nvcpu = 1\n")
    found = [
        HostFinding(unit="web", keys=[("cpu", "pin")], message="no CPU"),
        HostFinding(unit="web", keys=[("memory", "nodes"), ("memory", "size")], message="no memory"),
        HostFinding(unit="web", keys=[("machine", "emulator")], message="no QEMU"),
        HostFinding(unit="web@1", keys=[("cpu", "exclusive"), ("cpu", "pin")], message="no core"),
        HostFinding(unit="web@1", keys=[("cpu", "pin")], message="no CPU"),
        HostFinding(unit="other", keys=[("cpu", "pin")], message="not asked for"),
    ]
    served.backend.unfit = found
    result = await ctl("verify", "--host", str(tmp_path))
    bad, *lines = result.err.splitlines()
    assert (result.code, bad.startswith(f"{tmp_path}/bad.toml:2: cpu.vcpu: ")) == (1, True)
    assert lines == [
        f"{tmp_path}/web.toml:2: cpu.pin: no CPU",
        f"{tmp_path}/web.toml.d/big.toml:2: memory.size: no memory",
        f"{tmp_path}/web.toml: machine.emulator: no QEMU",
        f"{tmp_path}/web@1.toml.d/alone.toml:2: cpu.exclusive: no core",
        f"{tmp_path}/web@.toml:2: cpu.pin: VM web@1: no CPU",
    ]
    told = json.loads((await ctl("verify", "--host", "-o", "json", str(tmp_path / "web.toml"))).out)
    assert [each["line"] for each in told["diagnostics"]] == [2, 2, 0]
    assert (await ctl("verify", str(tmp_path / "web.toml"))).code == 0


async def test_units_without_trouble_are_silent(served: Daemon, ctl: Ctl, tmp_path: Path) -> None:
    """Nothing found is nothing said."""
    (tmp_path / "web.toml").write_text(UNIT)
    assert await ctl.ok("verify", "--host", str(tmp_path)) == ""
