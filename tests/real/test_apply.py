"""A unit that somebody has changed, and its VM that runs: what is said of each key before, and what becomes of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.ctl.running import terminal
from tests.guests import Emulator
from tests.real.daemons import Daemon
from tests.real.hotplug import image
from tests.real.lasting import disks, said, start

pytestmark = [pytest.mark.real]


def test_a_unit_that_was_edited_is_applied(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """What comes, comes at once; what cannot, and what would have to go, waits for the next start and says so."""
    text = start(daemon, emulator, rom_guest)
    image(daemon, "data.img")
    edited = text.replace('id = "root"', 'id = "data"').replace("root.img", "data.img")
    edited = edited.replace("[machine]", '[machine]\nrtc = "localtime"')
    etag = daemon.get("/v1/units/web")["etag"]
    with daemon.client() as client:
        preview = client.post_text("/v1/units/web/preview", edited, etag=etag)
    assert (preview["running"], daemon.get("/v1/units/web")["etag"]) == (True, etag)
    (daemon.units / "web.toml").write_text(edited)
    diff = daemon.get("/v1/instances/web/diff")["changes"]
    needs = {"machine.rtc": "restart", "disk.root": "restart", "disk.data": "live"}
    assert {change["key"]: change["needs"] for change in diff} == needs
    shown = daemon.ctl("diff", "web", check=False).stdout
    assert "a restart applies it, or qsupctl apply web what is live" in shown
    assert "data" not in "".join(disks(daemon))
    assert daemon.post("/v1/instances/web/apply?wait=30&dry-run=1")["result"]["keys"] == preview["keys"]
    trial = daemon.ctl("apply", "web", "--dry-run").stdout
    assert daemon.ctl("apply", "web").stdout == trial
    assert "the guest lets it go" in trial
    assert disks(daemon) == ["root", "data"]
    assert (said(daemon), daemon.view("web")["unit"]["needs_restart"]) == ("", True)
    daemon.do("web", "kill")
    assert "its next start takes its unit" in daemon.ctl("apply", "web", check=False).stderr
    assert [disk["id"] for disk in daemon.do("web", "start")["disks"]] == ["data"]
    assert daemon.ctl("apply", "web").stdout == ""
    daemon.do("web", "kill")
    with daemon.client() as client:
        preview = client.post_text("/v1/units/web/preview", text, etag=daemon.get("/v1/units/web")["etag"])
    assert not preview["running"]
    counts = {key: said["applied"] for key, said in preview["keys"].items()}
    assert counts == dict.fromkeys(("machine.rtc", "disk.root", "disk.data"), "start")


def test_a_unit_is_edited_and_applied(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an editor to QEMU; a unit with errors can be mended, and another's gets a drop-in."""
    start(daemon, emulator, rom_guest)
    image(daemon, "data.img")
    entry = r'[[disk]]\nid = "data"\npath = "data.img"'
    monkeypatch.setenv("EDITOR", f"sed -i -e '$a{entry}' -e 's/^balloon.*/balloon = true/'")
    before = (daemon.units / "web.toml").read_text()
    with terminal("--root", str(daemon.root), "edit", "web") as started:
        shown = started.read_until(b"[q]uit? ").decode()
        assert re.search(r"memory\.balloon +at the next start .*\r\ndisk\.data +now", shown)
        assert ((daemon.units / "web.toml").read_text(), disks(daemon)) == (before, ["root"])
        started.type(b"a\n")
        assert started.end() == 0
        # what became of it is what was shown, and so is not shown again
        assert started.seen.decode().endswith("Written.\r\nApplied.\r\n")
    assert disks(daemon) == ["root", "data"]
    assert "# mine" in (daemon.units / "web.toml").read_text()
    (daemon.units / "web.toml").write_text(text := (daemon.units / "web.toml").read_text() + "nonsense = 1\n")
    daemon.post("/v1/reload")
    monkeypatch.setenv("EDITOR", "sed -i /nonsense/d")
    daemon.ctl("edit", "web", "--no-apply")
    assert (daemon.units / "web.toml").read_text() == text.replace("nonsense = 1\n", "")
    vendor = daemon.run / "units"
    vendor.mkdir(exist_ok=True)
    (daemon.units / "web.toml").rename(vendor / "web.toml")
    monkeypatch.setenv("EDITOR", "sed -i '$a[service]\\nrestart = \"always\"'")
    assert "service.restart" in daemon.ctl("edit", "web", "--apply").stdout
    assert 'restart = "always"' in (daemon.units / "web.toml.d" / "80-local.toml").read_text()
    assert "service.restart" not in daemon.ctl("diff", "web", check=False).stdout
