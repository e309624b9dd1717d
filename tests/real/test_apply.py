"""A unit that somebody has changed, and its VM that runs: what is said of each key before, and what becomes of it."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import DeniedError, QmpCommandError
from tests.ctl.running import terminal
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, free_port, linux_unit, rom_unit
from tests.real.hotplug import (
    agree,
    fdsets,
    finished,
    image,
    nodes,
    peripherals,
    qmp,
    state,
)
from tests.real.lasting import disks, said, start, verdicts
from tests.waiting import came_true

pytestmark = [pytest.mark.real]


def test_a_unit_that_was_edited_is_applied(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """What comes, comes at once; what cannot come or go waits for the next start and says so."""
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
    assert "disk.root is what the VM boots from, and goes only when that is asked for" in trial
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
        assert started.seen.decode().endswith("Written.\r\nApplied; the rest counts at the next start.\r\n")
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


ENTRIES = {
    "data": '[[disk]]\nid = "data"\npath = "data.img"\nbus = "scsi"\n',
    "log": '[[disk]]\nid = "log"\npath = "log.img"\n',
    "dmz": '[[nic]]\nid = "dmz"\n',
    "word": '[[device]]\nid = "word"\ntype = "serial"\n',
    "random": '[[device]]\nid = "random"\ntype = "rng"\n',
}


def rewrite(daemon: Daemon, text: str) -> None:
    """The unit's own file says that from now on."""
    (daemon.units / "web.toml").write_text(text)


def begin_apply(daemon: Daemon, wait: float = 0) -> dict[str, Any]:
    """Have the VM be as its unit says: the operation as it is then."""
    operation: dict[str, Any] = daemon.post(f"/v1/instances/web/apply?wait={wait:g}")
    return operation


def is_leaving(daemon: Daemon, device: str) -> bool:
    """Whether the guest has been asked to let a device go, and has yet to."""
    return state(daemon, "web", device) == "leaving"


def test_what_has_gone_from_a_unit_is_detached(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """Of a live guest, in one request: QEMU has none of it afterwards, nor what it stood on."""
    for name in ("data", "log"):
        image(daemon, f"{name}.img")
    text = linux_unit(qemu, linux_guest)
    daemon.unit("web", text + "\n".join(ENTRIES.values()))
    daemon.do("web", "start")
    rewrite(daemon, text)
    gone = {"disk.data", "disk.log", "nic.dmz", "device.word", "device.random"}
    assert verdicts(daemon) == dict.fromkeys(gone, "live")
    needs = {change["key"]: change["needs"] for change in daemon.get("/v1/instances/web/diff")["changes"]}
    assert needs == dict.fromkeys(gone, "live")
    operation = begin_apply(daemon, 30)
    assert operation["state"] == "succeeded", operation
    assert {key: said["applied"] for key, said in operation["result"]["keys"].items()} == dict.fromkeys(gone, "live")
    entries = {device["entry"] for device in daemon.get("/v1/instances/web/devices")["devices"]}
    assert not entries & gone
    assert agree(daemon, "web")
    assert not nodes(daemon, "web")
    assert not fdsets(daemon, "web")
    assert verdicts(daemon) == {}
    assert (said(daemon), daemon.view("web")["unit"]["needs_restart"]) == ("", False)


def test_what_has_another_name_goes_and_comes_again(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """Its image and its port of the host are the old one's until that has gone, so it takes two steps, and says so."""
    image(daemon, "data.img")
    port = free_port()
    text = linux_unit(qemu, linux_guest)
    tables = f'[[disk]]\nid = "old"\npath = "data.img"\n[[nic]]\nid = "old-lan"\nforward = ["{port}:80"]\n'
    daemon.unit("web", text + tables)
    daemon.do("web", "start")
    path = f"{daemon.images}/./data.img"
    other = tables.replace('"old', '"new').replace("data.img", path)
    rewrite(daemon, text + other + '[[device]]\nid = "random"\ntype = "rng"\n')
    expected = dict.fromkeys(("disk.old", "nic.old-lan", "device.random"), "live")
    assert verdicts(daemon) == {**expected, "disk.new": "start", "nic.new-lan": "start"}
    operation = begin_apply(daemon, 30)
    assert operation["state"] == "succeeded", operation
    why = {key: said.get("why") for key, said in operation["result"]["keys"].items() if said["applied"] == "start"}
    assert why == {
        "disk.new": f"disk.new needs the disk image {path}, which is disk.old's until that has gone",
        "nic.new-lan": f"nic.new-lan needs port {port} of the host, which is nic.old-lan's until that has gone",
    }
    assert verdicts(daemon) == {"disk.new": "live", "nic.new-lan": "live"}
    assert begin_apply(daemon, 30)["state"] == "succeeded"
    assert (disks(daemon), [nic["id"] for nic in daemon.view("web")["nics"]]) == (["new"], ["new-lan"])
    assert (verdicts(daemon), agree(daemon, "web")) == ({}, True)


def test_what_a_guest_does_not_let_go_ends_with_a_reset(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Until then it is there, holds nobody, cannot be taken back, and is `reset` to whoever asks again; also to a later
    daemon.
    """
    text = start(daemon, qemu, rom_guest, more=ENTRIES["log"])
    rewrite(daemon, text.replace(ENTRIES["log"], ""))
    operation = begin_apply(daemon)
    assert came_true(lambda: is_leaving(daemon, "disk-log"), seconds=5)
    assert came_true(lambda: daemon.view("web")["operation"] is None, seconds=5)
    assert "disk-log" in peripherals(daemon, "web")
    assert verdicts(daemon) == {"disk.log": "reset"}
    assert daemon.get("/v1/instances/web/diff")["changes"][0]["needs"] == "guest reset"
    assert "at the guest's next reset" in daemon.ctl("apply", "web").stdout
    words = "QEMU does not take a request to unplug back"
    with daemon.client() as client, pytest.raises(DeniedError, match=words):
        client.delete(f"/v1/operations/{operation['id']}")
    daemon.restart()
    daemon.wait("web", "running")
    found = daemon.get(f"/v1/operations/{operation['id']}")
    assert (found["state"], verdicts(daemon)) == ("running", {"disk.log": "reset"})
    daemon.do("web", "reset")
    assert finished(daemon, operation)["state"] == "succeeded"
    assert "disk-log" not in peripherals(daemon, "web")
    assert (disks(daemon), verdicts(daemon)) == (["root"], {})


@pytest.mark.parametrize("dies", [False, True])
def test_an_apply_may_reset_the_guest(daemon: Daemon, qemu: Emulator, rom_guest: Path, dies: bool) -> None:
    """After the time that its caller gave the guest, counted by a later daemon as well."""
    text = start(daemon, qemu, rom_guest, more=ENTRIES["log"] + ENTRIES["dmz"])
    rewrite(daemon, text.replace(ENTRIES["log"] + ENTRIES["dmz"], ""))
    with daemon.events() as events:
        operation = daemon.post("/v1/instances/web/apply?wait=0&force-after=0.4")
        if not dies:
            events.next("guest-reset", guest=False)
    assert came_true(lambda: daemon.view("web")["operation"] is None, seconds=5)
    if dies:
        daemon.restart()
    found = finished(daemon, operation)
    assert (found["state"], found["arguments"]["force_after"]) == ("succeeded", 0.4)
    assert agree(daemon, "web")
    assert (disks(daemon), verdicts(daemon), fdsets(daemon, "web")) == (["root"], {}, [1])
    rewrite(daemon, text)
    daemon.ctl("apply", "web")
    rewrite(daemon, text.replace(ENTRIES["log"], ""))
    assert "disk.log  now" in daemon.ctl("apply", "web", "--force-after", "100ms").stdout
    assert disks(daemon) == ["root"]


@pytest.mark.parametrize("verb", ["kill", "restart"])
def test_what_is_to_go_is_gone_with_the_vm(daemon: Daemon, emulator: Emulator, rom_guest: Path, verb: str) -> None:
    """Its unit does not have it, so that the VM ends is as good as that its guest lets it go."""
    text = start(daemon, emulator, rom_guest, more=ENTRIES["log"])
    rewrite(daemon, text.replace(ENTRIES["log"], ""))
    operation = begin_apply(daemon)
    assert came_true(lambda: daemon.view("web")["operation"] is None, seconds=5)
    daemon.do("web", verb)
    found = finished(daemon, operation)
    assert (found["state"], found["result"]["keys"]["disk.log"]["applied"]) == ("succeeded", "live")
    assert disks(daemon) == ["root"]


def test_what_cannot_go_while_it_runs_says_why(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """QEMU is not asked, which agrees where it is; and the disk that the VM boots from goes only by its own name."""
    image(daemon, "built.img")
    image(daemon, "root.img")
    built = '[[disk]]\nid = "built"\npath = "built.img"\nbus = "sata"\n\n'
    first = '[[disk]]\nid = "root"\npath = "root.img"\n\n'
    legacy = '[[nic]]\nid = "old"\nmodel = "e1000"\n'
    text = rom_unit(qemu, rom_guest, tables=first + built + legacy)
    daemon.unit("web", text)
    daemon.do("web", "start")
    rewrite(daemon, text.replace(built, "").replace(legacy, "").replace(first, ""))
    operation = begin_apply(daemon, 30)
    assert operation["state"] == "succeeded", operation
    why = {key: said["why"] for key, said in operation["result"]["keys"].items() if said["applied"] == "start"}
    assert why == {
        "disk.root": "disk.root is what the VM boots from, and goes only when that is asked for",
        "disk.built": "disk.built is on a SATA or IDE bus, which lets nothing go while the VM runs",
        "nic.old": "nic.old is on the root bus pcie.0, which lets nothing go while the VM runs",
    }
    assert daemon.view("web")["unit"]["needs_restart"]
    for device in ("disk-built", "nic-old"):
        with pytest.raises(QmpCommandError, match="hotplug"):
            qmp(daemon, "web", "device_del", id=device)


def test_a_daemon_that_is_killed_meanwhile_leaves_it_to_the_next(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """At any moment: in the end the disk is gone, and the operation ends by that and no sooner."""
    extra = [ENTRIES["log"].replace("log", f"d{number}") for number in range(5)]
    for number in range(5):
        image(daemon, f"d{number}.img")
    text = start(daemon, emulator, rom_guest, more="".join(extra))
    for number, entry in enumerate(extra):
        rewrite(daemon, text := text.replace(entry, ""))
        # it is killed after that many seconds, whatever it is doing then
        operation = begin_apply(daemon, number * 0.003)
        daemon.restart()
        assert came_true(partial(is_leaving, daemon, f"disk-d{number}"), seconds=10)
        assert came_true(lambda: daemon.view("web")["operation"] is None, seconds=10)
        assert daemon.get(f"/v1/operations/{operation['id']}")["state"] == "running"
        daemon.do("web", "reset")
        assert finished(daemon, operation)["state"] == "succeeded"
        assert agree(daemon, "web")
    assert (disks(daemon), verdicts(daemon)) == (["root"], {})
