"""qsup on a host that systemd runs, installed as `docs/admin.md` says: what `contrib/systemd` promises.

Decides: what a boot, a shutdown and whatever systemd does to the daemon mean for VMs.
Must not: repeat what the daemon does without systemd (`tests.real.test_service`, `test_orderly`).

Long because all that is promised of such a host stands on the same three fixtures.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.guests import Emulator
from tests.real.booted import Host, HostsDaemon, commands_of_the_guide, install, why_not
from tests.real.daemons import DEADLINE, rom_unit
from tests.real.together import AT_A_WORD, UP, Write, writer
from tests.real.users import CHECKOUT
from tests.waiting import came_true, poll_until

pytestmark = [pytest.mark.real, pytest.mark.root]


@pytest.fixture
def host(root_dir: Path) -> Iterator[Host]:
    """A host that has booted for the first time, and is told to install qsup as its guide says."""
    if reason := why_not(root_dir):
        pytest.skip(reason)
    found = Host(root_dir)
    try:
        found.boot()
        install(found)
        found.run("sh", "-euxc", commands_of_the_guide(), directory=CHECKOUT)
        yield found
    finally:
        found.close()


@pytest.fixture
def daemon(host: Host) -> Iterator[HostsDaemon]:
    """The daemon of that host; whatever runs there ends with it."""
    found = HostsDaemon(host)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def write(daemon: HostsDaemon, emulator: Emulator, rom_guest: Path) -> Write:
    """Writes units of the host."""
    return writer(daemon, emulator, rom_guest)


def test_an_installation_by_the_guide_works(
    host: Host, daemon: HostsDaemon, emulator: Emulator, rom_guest: Path
) -> None:
    """Ready for systemd, the socket for the group alone, VMs as users of their own in scopes of their own."""
    shown = {name: host.property("qsupd.service", name) for name in ("ActiveState", "Type", "StatusText")}
    assert shown == {"ActiveState": "active", "Type": "notify", "StatusText": "0 VMs"}
    assert host.property("qsup-guests.service", "ActiveState") == "active"

    api = (daemon.run / "api.sock").stat()
    group = host.run("getent", "group", "qsup").split(":")[2]
    assert (stat.S_IMODE(api.st_mode), str(api.st_gid)) == (0o660, group)
    accel = "kvm" if host.has_kvm() else "tcg"
    daemon.unit("web", rom_unit(emulator, rom_guest, accel=accel))
    pid = daemon.do("web", "start")["pid"]
    alice = ("setpriv", "--reuid=4321", "--regid=4321")
    ask = ("qsupctl", "--socket=/run/qsup/api.sock", "list")
    assert "running" in host.run(*alice, "--groups=qsup", *ask)
    assert not host.run(*alice, "--clear-groups", *ask, check=False)

    process = (daemon.process(pid) / "status").read_text()
    said = dict(line.split(":\t", 1) for line in process.splitlines() if ":\t" in line)
    (uid,) = set(said["Uid"].split())
    assert 720_000 <= int(uid) <= 729_999
    assert (int(said["CapBnd"], 16), said["NoNewPrivs"], said["Seccomp"]) == (0, "1", "2")
    scope = "/sys/fs/cgroup/qsup.slice/qsup-web.scope"
    assert host.run("cat", f"{scope}/cgroup.procs") == f"{pid}\n"
    assert host.property("qsup-web.scope", "Description") == "QEMU virtual machine web"

    def told() -> bool:
        lines = host.run("journalctl", "-u", "qsupd", "QSUP_INSTANCE=web", "--output=cat", check=False)
        return "running" in lines

    assert came_true(told, seconds=DEADLINE)
    assert not host.failed()


@pytest.mark.slow
def test_systemd_shows_and_serves_vms(host: Host, daemon: HostsDaemon, write: Write) -> None:
    """Each in a scope of its own, whatever its name; stopped or killed by it, and no policy starts what it stopped."""
    write("my-web", service='restart = "always"')
    view = daemon.do("my-web", "start")
    unit = r"qsup-my\x2dweb.scope"
    assert view["warnings"] == []
    shown = {name: host.property(unit, name) for name in ("ActiveState", "Slice", "Delegate", "CollectMode")}
    assert shown == {
        "ActiveState": "active",
        "Slice": "qsup.slice",
        "Delegate": "yes",
        "CollectMode": "inactive-or-failed",
    }
    assert str(view["pid"]) in host.run("systemctl", "status", unit, check=False)
    assert "qsup-guests.service" in host.property(unit, "Before")
    host.run("systemctl", "stop", unit)
    ended = daemon.wait("my-web", "dead")
    assert (ended["cause"]["kind"], ended["restarts"]) == ("operator", 0)
    assert "systemd stopped it" in ended["cause"]["detail"]

    daemon.do("my-web", "start")
    host.run("systemctl", "kill", "--signal=KILL", unit)
    poll_until(lambda: daemon.view("my-web")["restarts"] == 1, "it is started again", seconds=DEADLINE)
    again = daemon.wait("my-web", "running")
    host.run("systemctl", "restart", "qsupd")
    assert daemon.wait("my-web", "running")["pid"] == again["pid"]
    daemon.do("my-web", "kill")
    assert host.property(unit, "ActiveState") == "inactive"


@pytest.mark.slow
def test_a_lingering_users_vms_are_scopes_of_the_users_systemd(host: Host, emulator: Emulator, rom_guest: Path) -> None:
    """It outlives all sessions, as VMs do; whose does not has VMs outside of it."""
    host.run("useradd", "--create-home", "--uid=4321", "alice")
    unit = host.files / "home/alice/.config/qsup/units/web.toml"
    unit.parent.mkdir(parents=True)
    unit.write_text(rom_unit(emulator, rom_guest, accel="tcg"))
    host.run("chown", "-R", "alice:alice", "/home/alice")
    alice = ("setpriv", "--reuid=4321", "--regid=4321", "--clear-groups", "env", "HOME=/home/alice")

    def start() -> str:
        """The cgroup of a VM that a daemon of hers has started, and whether it is warned; both end."""
        daemon = ("systemd-run", "--quiet", "--unit=alices", *alice, "qsupd", "--user")
        host.run(*daemon)
        ask = (*alice, "qsupctl", "--user")
        poll_until(lambda: host.run(*ask, "health", check=False), "her daemon answers", seconds=DEADLINE)
        host.run(*ask, "start", "web")
        pid = host.run("pgrep", "--uid=4321", "qemu-system").strip()
        cgroup = host.run("cat", f"/proc/{pid}/cgroup").strip().rpartition("0::")[2]
        warned = "Warning" in host.run(*ask, "status", "web")
        host.run(*ask, "kill", "web")
        host.run("systemctl", "stop", "alices")
        return f"{cgroup} warned" if warned else cgroup

    assert start() == "/system.slice/alices.service warned"
    host.run("loginctl", "enable-linger", "alice")
    poll_until((host.files / "run/user/4321/bus").exists, "her systemd runs", seconds=DEADLINE)
    place = start()
    assert re.fullmatch(r"/user.slice/user-4321.slice/user@4321.service/qsup.slice/qsup-[0-9a-f]{8}-web.scope", place)


@pytest.mark.slow
def test_a_start_that_its_daemon_did_not_survive_ends_in_a_scope(host: Host, daemon: HostsDaemon, write: Write) -> None:
    """It died while the bus stood still: the next one asks for the scope before it lets the guest run."""
    write("web")
    bus = ("systemctl", "kill", "--kill-whom=main", "dbus.service")
    host.run(*bus, "--signal=STOP")
    former = daemon.pid
    daemon.post("/v1/instances/web/start")
    record = daemon.run / "instances/web/record.json"

    def is_on_record() -> bool:
        return record.exists() and json.loads(record.read_text())["pid"] is not None

    poll_until(is_on_record, "QEMU is on record", seconds=DEADLINE)
    host.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "qsupd")
    host.run(*bus, "--signal=CONT")
    poll_until(lambda: daemon.pid not in (0, former), "another daemon", seconds=DEADLINE)
    view = daemon.wait("web", "running")
    assert view["warnings"] == []
    assert host.run("cat", "/sys/fs/cgroup/qsup.slice/qsup-web.scope/cgroup.procs") == f"{view['pid']}\n"


@pytest.mark.slow
def test_a_vm_that_systemd_gives_no_scope_has_a_cgroup_all_the_same(
    host: Host, daemon: HostsDaemon, write: Write
) -> None:
    """Where there is no bus, its slice is masked or somebody has its name: a warning says it; it ends as any other."""
    write("web")

    def start(why: str) -> None:
        view = daemon.do("web", "start")
        (warning,) = view["warnings"]
        assert warning.startswith("it has no scope of systemd's") and why in warning
        own = "/sys/fs/cgroup/system.slice/qsupd.service/qsup/web/cgroup.procs"
        assert host.run("cat", own) == f"{view['pid']}\n"

    host.run("systemctl", "stop", "dbus.socket", "dbus.service")
    start("no D-Bus connection to systemd by /run/dbus/system_bus_socket")
    host.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "qsupd")
    poll_until(lambda: daemon.pid, "another daemon", seconds=DEADLINE)
    (warning,) = daemon.wait("web", "running")["warnings"]
    assert "it has no scope of systemd's" in warning
    daemon.do("web", "kill")
    host.run("systemctl", "start", "dbus.socket")
    host.run("systemctl", "mask", "--runtime", "qsup.slice")
    start("Unit qsup.slice is masked.")
    daemon.do("web", "kill")
    host.run("systemctl", "unmask", "--runtime", "qsup.slice")

    # a process of somebody else's in a scope of that name
    taken = ("systemd-run", "--quiet", "--unit=other", "systemd-run", "--scope", "--unit=qsup-web", "sleep", "1000")
    host.run(*taken)
    poll_until(lambda: host.property("qsup-web.scope", "ActiveState") == "active", "it is there", seconds=DEADLINE)
    start("Unit qsup-web.scope was already loaded")
    daemon.do("web", "kill")
    host.run("systemctl", "stop", "qsup-web.scope")
    assert daemon.do("web", "start")["warnings"] == []


@pytest.mark.slow
def test_vms_outlive_whatever_systemd_does_to_the_daemon(host: Host, daemon: HostsDaemon, write: Write) -> None:
    """Restarted, stopped, killed or hung, and all that in ten seconds: the next one has the same processes."""
    dropin = host.files / "etc/systemd/system/qsupd.service.d/test.conf"
    dropin.parent.mkdir()
    dropin.write_text("[Service]\nWatchdogSec=1s\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", "qsupd")
    write("db")
    write("web", 'requires = ["db"]\nafter = ["db"]')
    daemon.do("web", "start")
    pids = {name: daemon.view(name)["pid"] for name in ("db", "web")}
    former = daemon.pid

    def is_another_with_all() -> None:
        nonlocal former
        poll_until(lambda: daemon.pid not in (0, former), "another daemon", seconds=DEADLINE)
        former = daemon.pid
        assert {name: daemon.wait(name, "running")["pid"] for name in pids} == pids

    def change(*command: str) -> Callable[[], object]:
        return lambda: host.run(*command)

    changes: list[Callable[[], object]] = [
        change("systemctl", "restart", "qsupd"),
        change("sh", "-c", "systemctl stop qsupd && systemctl start qsupd"),
        # the socket is still there, and whoever comes to it starts the daemon
        change("sh", "-c", "systemctl stop qsupd && qsupctl list"),
        change("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "qsupd"),
        change("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "qsupd"),
        change("systemctl", "restart", "qsupd.socket", "qsupd.service"),
    ]
    for each in changes:
        each()
        is_another_with_all()
    assert "Watchdog timeout" in host.console()

    (daemon.units / "late.toml").write_text((daemon.units / "db.toml").read_text())
    host.run("systemctl", "reload", "qsupd")
    assert daemon.view("late")["substate"] == "dead"
    assert daemon.pid == former
    assert {name: daemon.wait(name, "running")["pid"] for name in pids} == pids


@pytest.mark.slow
def test_a_host_starts_and_stops_its_vms_in_order(
    host: Host, daemon: HostsDaemon, write: Write, emulator: Emulator, rom_guest: Path
) -> None:
    """Down in reverse order within the time, deaf guests included; up again; and after a power cut too."""
    (host.files / "etc/qsup/qsupd.toml").write_text("shutdown-timeout = 3\n")
    host.run("systemctl", "restart", "qsupd")
    patient = 'stop-timeout = "60s"\nquit-timeout = "60s"'
    daemon.unit("db", rom_unit(emulator, late_storage(host, rom_guest), service=UP))
    write("web", 'requires = ["db"]\nafter = ["db"]')
    write("shop", 'requires = ["web"]\nafter = ["web"]')
    write("deaf", service='stop-timeout = "500ms"')
    write("hung", service=patient)
    write("late", service=AT_A_WORD)
    host.run("qsupctl", "enable", "shop", "web", "db", "deaf", "hung")
    every = ["db", "deaf", "hung", "shop", "web"]

    host.run("systemctl", "poweroff")
    host.wait_off()
    host.boot()
    daemon.find()
    for name in every:
        daemon.wait(name, "running")
    assert in_order(history(host), ("db", "running"), ("web", "spawning"), ("web", "running"), ("shop", "spawning"))
    for name in ("deaf", "hung"):
        daemon.type(name, "D")

    host.run("systemctl", "poweroff")
    host.wait_off()
    host.boot()
    daemon.find()
    down = history(host, boot=-1)
    stops = [(name, word) for name in ("shop", "web", "db") for word in ("stopping-guest", "dead")]
    assert in_order(down, *stops)
    assert in_order(down, ("deaf", "stopping-guest"), ("deaf", "stopping-quit"), ("deaf", "dead"))
    operations = daemon.get("/v1/operations")["operations"]
    told = next(each for each in operations if each["kind"] == "stop-all")
    assert told["result"] == {
        "changed": True,
        "stopped": ["db", "deaf", "shop", "web"],
        "killed": ["hung"],
        "quarantined": [],
    }
    created, updated = (datetime.fromisoformat(told[key]) for key in ("created", "updated"))
    assert 2 < (updated - created).total_seconds() < 5
    guests = host.run("journalctl", "--boot=-1", "-u", "qsup-guests", "--output=cat")
    assert "hung: killed: it was not down in time" in guests

    for name in every:
        assert daemon.wait(name, "running")["restarts"] == 0
    # what a run directory on a disk would still hold after a power cut
    keep_run_directory(host)
    begun = daemon.post("/v1/instances/late/start")
    daemon.wait("late", "waiting-ready")
    host.power_cut()
    host.boot()
    daemon.find()
    for name in every:
        assert daemon.wait(name, "running")["restarts"] == 0
    view = daemon.view("late")
    assert (view["substate"], view["pid"]) == ("dead", None)
    operation = daemon.get(f"/v1/operations/{begun['id']}")
    assert (operation["state"], operation["error"]["detail"]) == (
        "failed",
        "the host was restarted during start, which is not repeated",
    )
    assert "removed what a former boot left" in host.run("journalctl", "--boot=0", "-u", "qsupd", "--output=cat")
    assert not host.failed()


@pytest.mark.slow
def test_a_host_without_a_daemon_stops_its_vms_all_the_same(host: Host, daemon: HostsDaemon, write: Write) -> None:
    """Stopped before, or killed in the middle: the order is kept, and the guests are asked."""
    write("db", install="autostart = true")
    write("web", 'requires = ["db"]\nafter = ["db"]', install="autostart = true", service='stop-timeout = "10s"')
    # nobody starts it in a host that goes down
    write("idle", install="autostart = true")
    daemon.do("web", "start")
    host.run("systemctl", "stop", "qsupd")
    host.run("systemctl", "poweroff")
    host.wait_off()
    host.boot()
    daemon.find()
    down = history(host, boot=-1, unit="qsup-guests")
    assert in_order(down, *((name, word) for name in ("web", "db") for word in ("stopping-guest", "dead")))
    assert "idle" not in dict(down)

    daemon.wait("web", "running")
    daemon.type("web", "D")
    host.run("systemctl", "poweroff")
    daemon.wait("web", "stopping-guest")
    host.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "qsupd")
    host.wait_off()
    host.boot()
    daemon.find()
    down = history(host, boot=-1, unit="qsup-guests")
    assert in_order(down, ("web", "stopping-guest"), ("web", "dead"), ("db", "stopping-guest"), ("db", "dead"))
    told = next(each for each in daemon.get("/v1/operations")["operations"] if each["kind"] == "stop-all")
    assert (told["state"], told["result"]["stopped"], told["result"]["killed"]) == (
        "succeeded",
        ["db", "idle", "web"],
        [],
    )


def late_storage(host: Host, rom_guest: Path) -> Path:
    """A file on what only comes a while after a boot, as file systems of other machines do; now it is there."""
    path = Path("/run/storage/rom.bin")
    (host.files / "etc/systemd/system/storage.service").write_text(
        "[Unit]\nBefore=remote-fs.target\n"
        f"[Service]\nType=oneshot\nExecStart=sh -ec 'sleep 0.6; install -D -m 644 {rom_guest} {path}'\n"
        "[Install]\nRequiredBy=remote-fs.target\n"
    )
    host.run("systemctl", "enable", "--now", "storage.service", "remote-fs.target")
    return path


def keep_run_directory(host: Host) -> None:
    """Have the next boot begin with the run directory of this one."""
    (host.files / "etc/systemd/system/keep.service").write_text(
        "[Unit]\nBefore=qsupd.service\n"
        "[Service]\nType=oneshot\nExecStart=cp -a /var/former/instances /run/qsup/\n"
        "[Install]\nRequiredBy=qsupd.service\n"
    )
    host.run("sh", "-ec", "mkdir /var/former; cp -a /run/qsup/instances /var/former/; systemctl enable keep.service")


def history(host: Host, *, boot: int = 0, unit: str = "qsupd") -> list[tuple[str, str]]:
    """VMs and their substates, in the order in which the journal of a boot has them from a unit."""
    command = ("journalctl", f"--boot={boot}", "-u", unit, "--output=json")
    entries: list[dict[str, Any]] = [json.loads(line) for line in host.run(*command).splitlines()]
    return [(entry["QSUP_INSTANCE"], entry["QSUP_STATE"]) for entry in entries if "QSUP_STATE" in entry]


def in_order(seen: list[tuple[str, str]], *wanted: tuple[str, str]) -> bool:
    """Whether these come one after the other, whatever is between."""
    rest = iter(seen)
    found = [each for each in wanted if each in rest]
    assert found == list(wanted), f"{wanted[len(found)]} does not follow {found}: {seen}"
    return True
