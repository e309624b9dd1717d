"""Changes that outlast a VM's life, on real QEMUs: what its unit says afterwards, and what is said of each key."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import ChangeError, DeniedError, NoSuchDevice, QmpCommandError, RequestError, UnitError
from qsup.unit.dropin import CHANGES
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, linux_unit, rom_unit
from tests.real.hotplug import (
    agree,
    attach_lasting,
    detach_lasting,
    fdsets,
    finished,
    image,
    nodes,
    patch,
    peripherals,
    qmp,
    shown,
)
from tests.real.lasting import disks, said, start
from tests.waiting import came_true

pytestmark = [pytest.mark.real]


def keys(daemon: Daemon, values: dict[str, str], query: str = "", name: str = "web") -> dict[str, Any]:
    """Change keys and wait: the finished operation."""
    return patch(daemon, name, {"keys": values}, query)


def test_what_is_attached_stays_and_what_is_detached_does_not_come_back(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest
) -> None:
    """With a live guest: the unit's files follow, `verify` and `cat` know them, and nothing needs a restart."""
    daemon.unit("web", linux_unit(qemu, linux_guest))
    daemon.do("web", "start")
    image(daemon, "data.img")
    attach_lasting(daemon, "web", "disks", id="data", path="data.img")
    assert said(daemon) == '[[disk]]\nid = "data"\npath = "data.img"\n'
    assert daemon.ctl("diff", "web").stdout.strip().endswith("runs as its unit says")
    assert CHANGES in daemon.ctl("cat", "web").stdout
    assert daemon.ctl("verify", str(daemon.units)).returncode == 0
    view = daemon.view("web")
    assert (view["unit"]["stale"], view["unit"]["needs_restart"], len(view["unit"]["files"])) == (True, False, 2)
    daemon.do("web", "restart")
    assert disks(daemon) == ["data"]
    assert detach_lasting(daemon, "web", "disks/data")["state"] == "succeeded"
    assert [path.name for path in daemon.units.iterdir()] == ["web.toml"]
    assert not daemon.view("web")["unit"]["needs_restart"]
    assert agree(daemon, "web")


def test_at_run_time_alone_nothing_is_written(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """And a VM whose unit is not the administrator's is so by itself, unless somebody says otherwise."""
    start(daemon, emulator, rom_guest)
    image(daemon, "data.img")
    with daemon.client() as client:
        client.post("/v1/instances/web/disks?wait=30&persist=0", {"id": "data", "path": "data.img"})
    assert (disks(daemon), said(daemon)) == (["root", "data"], "")
    daemon.do("web", "kill")
    daemon.do("web", "start")
    assert disks(daemon) == ["root"]
    vendor = daemon.run / "units"
    vendor.mkdir(exist_ok=True)
    (daemon.units / "web.toml").rename(vendor / "web.toml")
    daemon.post("/v1/reload")
    attach_lasting(daemon, "web", "disks", id="data", path="data.img")
    assert said(daemon) == ""
    assert keys(daemon, {"disk.data.path": "data.img"}, "&persist=1")["result"]["persisted"]
    assert said(daemon) == '[[disk]]\nid = "data"\npath = "data.img"\n'


def test_a_persons_entry_is_said_not_to_be_there(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Its file stays as it is; attached again as it was, nothing is left of that."""
    text = start(daemon, emulator, rom_guest)
    operation = detach_lasting(daemon, "web", "disks/root", query="&force=1&force-after=0.2")
    assert operation["state"] == "succeeded"
    assert said(daemon) == '[[disk]]\nid = "root"\npresent = false\n'
    daemon.do("web", "kill")
    daemon.do("web", "start")
    assert disks(daemon) == []
    attach_lasting(daemon, "web", "disks", id="root", path="root.img")
    assert (disks(daemon), said(daemon)) == (["root"], "")
    assert (daemon.units / "web.toml").read_text() == text


@pytest.mark.parametrize(("query", "state", "after"), [("", "succeeded", []), ("&persist=0", "failed", ["root"])])
def test_a_pending_detach_ends_with_the_vm(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, query: str, state: str, after: list[str]
) -> None:
    """One that is to last is fulfilled by that: the disk is not there at the next start, be it at once."""
    start(daemon, emulator, rom_guest, service='restart = "on-failure"\nrestart-delay = "10ms"')
    operation = detach_lasting(daemon, "web", "disks/root", wait=0, query=f"&force=1{query}")
    assert came_true(lambda: daemon.view("web")["operation"] is None, seconds=5)
    assert said(daemon) == ""
    daemon.do("web", "restart")
    assert finished(daemon, operation)["state"] == state
    assert disks(daemon) == after


def test_a_pending_detach_that_is_to_last_outlives_the_daemon(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """The next one writes it down, whether the guest is reset under it or the VM ended before."""
    start(daemon, emulator, rom_guest)
    image(daemon, "data.img")
    attach_lasting(daemon, "web", "disks", id="data", path="data.img")
    waiting = [detach_lasting(daemon, "web", path, wait=0, query="&force=1") for path in ("disks/data",)]
    assert came_true(lambda: daemon.view("web")["operation"] is None, seconds=5)
    daemon.restart()
    daemon.wait("web", "running")
    assert "data" in said(daemon)
    daemon.do("web", "reset")
    assert [finished(daemon, operation)["state"] for operation in waiting] == ["succeeded"]
    assert came_true(lambda: said(daemon) == "", seconds=5)


def test_each_key_has_its_verdict(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Of one request: what the VM has at once, what the daemon does, and what counts from the next start on."""
    start(daemon, emulator, rom_guest)
    image(daemon, "data.img")
    wanted = {"disk.data.path": "data.img", "service.restart": "always", "boot-menu": "true", "rtc": "utc"}
    operation = keys(daemon, wanted)
    assert operation["state"] == "succeeded", operation
    found = operation["result"]
    assert (found["changed"], found["persisted"], found["dry_run"]) == (True, True, False)
    assert {key: value["applied"] for key, value in found["keys"].items()} == {
        "disk.data": "live",
        "service.restart": "daemon",
        "machine.boot-menu": "start",
    }
    assert (found["keys"]["service.restart"]["old"], found["keys"]["service.restart"]["new"]) == ("no", "always")
    assert found["keys"]["machine.boot-menu"]["why"] == "machine.boot-menu cannot be changed while it runs"
    assert disks(daemon) == ["root", "data"]
    assert said(daemon).count("\n") == 9
    assert daemon.view("web")["unit"]["needs_restart"]
    changes = daemon.get("/v1/instances/web/diff")["changes"]
    assert [(change["key"], change["needs"]) for change in changes] == [("machine.boot-menu", "restart")]
    again = keys(daemon, wanted)["result"]
    assert {key: value["applied"] for key, value in again["keys"].items()} == {"machine.boot-menu": "start"}


def test_one_key_that_is_refused_refuses_all(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """With what would have become of each; nothing was done."""
    start(daemon, emulator, rom_guest)
    image(daemon, "data.img")
    before = shown(daemon, "web"), nodes(daemon, "web"), fdsets(daemon, "web")
    wanted = {"disk.data.path": "data.img", "service.restart": "always", "boot-menu": "true"}
    error = keys(daemon, wanted, "&persist=0")["error"]
    assert (error["code"], error["status"]) == (ChangeError.code, 409)
    assert {key: value["applied"] for key, value in error["keys"].items()} == {
        "disk.data": "live",
        "service.restart": "refused",
        "machine.boot-menu": "refused",
    }
    assert "goes by the unit's files; machine.boot-menu cannot" in error["detail"]
    error = keys(daemon, {"disk.root.present": "false", "vcpus": "1"}, "&persist=0")["error"]
    assert error["hint"] == "detach disk.root"
    assert keys(daemon, {"disk.new.bus": "virtio"})["error"]["code"] == NoSuchDevice.code
    with pytest.raises(RequestError, match="did you mean 'vcpus'"):
        keys(daemon, {"vcpu": "2"})
    assert (shown(daemon, "web"), nodes(daemon, "web"), fdsets(daemon, "web")) == before
    assert (said(daemon), disks(daemon)) == ("", ["root"])


def test_none_of_a_kind_is_what_an_empty_list_says(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """As it does in a unit's file: what is told of each entry is what is written."""
    start(daemon, emulator, rom_guest, more='[[disk]]\nid = "log"\npath = "log.img"\n')
    assert patch(daemon, "web", {"changes": {"disk": []}}, "&persist=0")["error"]["code"] == ChangeError.code
    found = patch(daemon, "web", {"changes": {"disk": []}})["result"]["keys"]
    assert {key: value["applied"] for key, value in found.items()} == {"disk.root": "start", "disk.log": "start"}
    assert said(daemon).count("present = false") == 2
    assert disks(daemon) == ["root", "log"]
    daemon.do("web", "restart")
    assert disks(daemon) == []


def test_a_trial_and_the_next_start_leave_the_vm_alone(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The one says what would be, the other changes the unit only."""
    start(daemon, emulator, rom_guest)
    image(daemon, "data.img")
    found = keys(daemon, {"disk.data.path": "data.img", "rtc": "localtime"}, "&dry-run=1")["result"]
    assert {key: value["applied"] for key, value in found["keys"].items()} == {
        "disk.data": "live",
        "machine.rtc": "start",
    }
    assert (found["changed"], found["persisted"], found["dry_run"]) == (False, False, True)
    assert (said(daemon), disks(daemon)) == ("", ["root"])
    found = keys(daemon, {"disk.data.path": "data.img"}, "&next-start=1")["result"]
    assert (found["keys"]["disk.data"]["applied"], disks(daemon)) == ("start", ["root"])
    daemon.do("web", "restart")
    assert disks(daemon) == ["root", "data"]
    with pytest.raises(RequestError, match="must be written down"):
        keys(daemon, {"vcpus": "1"}, "&next-start=1&persist=0")
    with pytest.raises(RequestError, match="either 'changes' or 'keys'"):
        patch(daemon, "web", {})


def test_what_is_down_is_changed_by_its_unit(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """All counts at the next start; an instance of a template that never ran is one of them."""
    daemon.unit("web@", rom_unit(emulator, rom_guest))
    found = keys(daemon, {"memory": "32M", "service.restart": "always"}, name="web@a")["result"]
    assert {key: value["applied"] for key, value in found["keys"].items()} == {
        "service.restart": "start",
        "memory.size": "start",
    }
    assert daemon.view("web@a")["memory"]["size"] == 32 << 20
    error = keys(daemon, {"memory": "64M"}, "&persist=0", name="web@a")["error"]
    assert "it does not run" in error["detail"]
    assert not keys(daemon, {"memory": "64M"}, "&dry-run=1", name="web@a")["result"]["changed"]
    assert daemon.do("web@a", "start")["memory"]["size"] == 32 << 20


def test_many_disks_come_as_one(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Sixteen of one request are all there, and in the unit; with one too many, none is."""
    start(daemon, qemu, rom_guest, machine="hotplug-slots = 16")
    entries = [{"id": f"d{number}", "path": image(daemon, f"d{number}.img").name} for number in range(17)]
    before = shown(daemon, "web"), nodes(daemon, "web"), fdsets(daemon, "web")
    error = patch(daemon, "web", {"changes": {"disk": entries}}, "&persist=0")["error"]
    assert "there is no free slot" in error["detail"]
    assert (shown(daemon, "web"), nodes(daemon, "web"), fdsets(daemon, "web")) == before
    found = patch(daemon, "web", {"changes": {"disk": entries[:16]}})
    assert found["state"] == "succeeded", found
    assert {value["applied"] for value in found["result"]["keys"].values()} == {"live"}
    assert agree(daemon, "web")
    assert len(peripherals(daemon, "web") & {f"disk-d{number}" for number in range(16)}) == 16
    assert said(daemon).count("[[disk]]") == 16
    assert disks(daemon) == ["root", *(f"d{number}" for number in range(16))]


def test_what_cannot_be_written_is_not_done(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The files come first: QEMU hears of nothing that could not last, unless it need not."""
    start(daemon, emulator, rom_guest)
    image(daemon, "data.img")
    (daemon.units / "web.toml.d" / f".{CHANGES}.new").mkdir(parents=True)
    before = shown(daemon, "web"), nodes(daemon, "web"), fdsets(daemon, "web")
    for operation in (
        attach_lasting(daemon, "web", "disks", id="data", path="data.img"),
        detach_lasting(daemon, "web", "disks/root", query="&force=1"),
        keys(daemon, {"disk.data.path": "data.img"}),
    ):
        assert operation["error"]["code"] == "host"
        assert "could not write" in operation["error"]["detail"]
        assert "--runtime" in operation["error"]["hint"]
    assert (shown(daemon, "web"), nodes(daemon, "web"), fdsets(daemon, "web")) == before
    (daemon.units / "web.toml").write_text("nonsense")
    error = attach_lasting(daemon, "web", "disks", id="data", path="data.img")["error"]
    assert error["code"] == UnitError.code
    with daemon.client() as client:
        done = client.post("/v1/instances/web/disks?wait=30&persist=0", {"id": "data", "path": "data.img"})
    assert done["state"] == "succeeded"


def test_whoever_takes_a_change_up_completes_it(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A daemon that is killed at any moment: in the end the VM and its unit both have the disk, once."""
    start(daemon, emulator, rom_guest, machine="hotplug-slots = 16")
    for number in range(6):
        image(daemon, f"d{number}.img")
        # it is killed after that many seconds, whatever it is doing then
        with daemon.client() as client:
            body = {"keys": {f"disk.d{number}.path": f"d{number}.img"}}
            operation = client.patch(f"/v1/instances/web?wait={number * 0.004:g}", body)
        daemon.restart()
        assert finished(daemon, operation)["state"] == "succeeded", operation
        assert agree(daemon, "web")
        assert f'id = "d{number}"\npath = "d{number}.img"\n' in said(daemon)
    assert disks(daemon) == ["root", *(f"d{number}" for number in range(6))]
    assert not daemon.view("web")["unit"]["needs_restart"]


def test_a_pending_detach_is_shown_and_cannot_be_taken_back(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """QEMU has no command for that, and asked a second time it goes on unplugging; a reset ends it."""
    start(daemon, qemu, rom_guest)
    total = daemon.view("web")["slots"]["total"]
    operation = detach_lasting(daemon, "web", "disks/root", wait=0, query="&force=1")
    assert came_true(lambda: daemon.view("web")["operation"] is None, seconds=5)
    assert operation["arguments"]["entry"] == "disk.root"
    assert "disk.root" in daemon.ctl("operations").stdout
    view = daemon.view("web")
    assert ([disk["state"] for disk in view["disks"]], view["slots"]["total"]) == (["leaving"], total)
    assert "leaving: the guest has yet to let it go" in daemon.ctl("status", "web").stdout
    assert not daemon.get(f"/v1/operations/{operation['id']}")["cancellable"]
    words = "QEMU does not take a request to unplug back"
    with daemon.client() as client, pytest.raises(DeniedError, match=words) as no:
        client.delete(f"/v1/operations/{operation['id']}")
    assert "a reset of the guest" in no.value.hint
    # what QEMU offers for devices, in its own words: nothing that would take it back
    commands = {command["name"] for command in qmp(daemon, "web", "query-commands")}
    known = {"device_add", "device_del", "device-list-properties", "device-sync-config"}
    assert {name for name in commands if name.startswith("device")} <= known
    # asked again, it says that it is at it, or takes it for the same
    with suppress(QmpCommandError):
        qmp(daemon, "web", "device_del", id="disk-root")
    assert "disk-root" in peripherals(daemon, "web")
    daemon.do("web", "reset")
    assert finished(daemon, operation)["state"] == "succeeded"
    assert "disk-root" not in peripherals(daemon, "web")


def test_the_command_line_shows_what_became_of_each_key(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """And its exit code tells whether they were changed."""
    start(daemon, emulator, rom_guest)
    image(daemon, "data.img")
    shown = daemon.ctl("set", "web", "disk.data.path=data.img", "restart=always", "rtc=localtime").stdout.splitlines()
    assert [line.split()[0] for line in shown[:4]] == ["KEY", "service.restart", "machine.rtc", "disk.data"]
    assert shown[1].split()[1:] == ["now", '"no"', '"always"']
    assert "at the next start" in shown[2]
    assert shown[4:] == ["machine.rtc cannot be changed while it runs"]
    for option in ("--runtime", "--persist", "--next-start"):
        unknown = daemon.ctl("set", "web", option, "disk.dat.cache=none", check=False)
        assert (unknown.returncode, "no disk 'dat'; did you mean 'data'?" in unknown.stderr) == (1, True), unknown
    refused = daemon.ctl("set", "web", "--runtime", "vcpus=2", check=False)
    assert refused.returncode == 1
    assert "cpu.vcpus" in refused.stdout
    assert "never" in refused.stdout
    assert "it was started for at most 1 vCPUs, not 2" in refused.stderr
    daemon.ctl("detach", "web", "data", "--force-after", "200ms")
    daemon.ctl("attach", "web", "disk", "id=data", "path=data.img", "--runtime")
    assert said(daemon).count("[[disk]]") == 0


def test_what_fails_is_not_written(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """QEMU refuses a disk: neither it nor what was asked for beside it is in the unit; what stands is said."""
    start(daemon, qemu, rom_guest)
    image(daemon, "data.img")
    qmp(daemon, "web", "blockdev-add", **{"driver": "null-co", "node-name": "disk-data", "read-zeroes": True})
    assert attach_lasting(daemon, "web", "disks", id="data", path="data.img")["error"]["code"] == QmpCommandError.code
    error = keys(daemon, {"disk.data.path": "data.img", "service.restart": "always"})["error"]
    assert error["code"] == QmpCommandError.code
    assert {key: value["applied"] for key, value in error["keys"].items()} == dict.fromkeys(error["keys"], "refused")
    assert error["keys"].keys() == {"disk.data", "service.restart"}
    assert [path.name for path in daemon.units.iterdir()] == ["web.toml"]
    assert daemon.get("/v1/instances/web/diff")["changes"] == []
