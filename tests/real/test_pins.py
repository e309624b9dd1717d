"""Threads of a VM that are to run on CPUs of the host: read back from the kernel, on every QEMU."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsup.errors import DeniedError
from qsup.unit.quantity import format_cpu_set
from tests.guests import Emulator, LinuxGuest, emulators
from tests.real.daemons import Daemon, kill_process, linux_unit, rom_unit
from tests.real.growing import ask
from tests.real.hotplug import finished, qmp
from tests.waiting import poll_until

pytestmark = [pytest.mark.real]

#: This is how soon what somebody has moved is back, and as much again where other tests take what time there is.
PROMISED = 5.0
WITHIN = 2 * PROMISED
#: One CPU for each of two vCPUs, and the first for all else.
APART = 'vcpus = 2\npin = ["0", "1"]\nemulator-pin = "0"'


@pytest.fixture(autouse=True)
def two_cpus() -> None:
    """Pins of one CPU of one alone say nothing."""
    assert {0, 1} <= os.sched_getaffinity(0), "these tests need the CPUs 0 and 1"


def allowed(thread: int) -> str:
    """Where the kernel lets a thread run."""
    return format_cpu_set(os.sched_getaffinity(thread))


def vcpus(daemon: Daemon, vm: str = "web") -> list[str]:
    """Of each vCPU, in their order."""
    return [allowed(thread) for thread in daemon.view(vm)["cpus"]["threads"]]


def others(daemon: Daemon, vm: str = "web") -> set[str]:
    """Of all the other threads of QEMU."""
    view = daemon.view(vm)
    threads = {int(name) for name in os.listdir(f"/proc/{view['pid']}/task")} - set(view["cpus"]["threads"])
    return {allowed(thread) for thread in threads}


def start(daemon: Daemon, emulator: Emulator, rom: Path, cpu: str = APART, **sections: str) -> None:
    """A VM of the ROM guest."""
    daemon.unit("web", rom_unit(emulator, rom, cpu=cpu, **sections))
    daemon.do("web", "start")


def test_each_thread_is_where_the_unit_has_it(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Each vCPU, and everything else; a reset changes nothing."""
    start(daemon, qemu, rom_guest)
    assert (vcpus(daemon), others(daemon)) == (["0", "1"], {"0"})
    daemon.do("web", "reset")
    assert (vcpus(daemon), others(daemon)) == (["0", "1"], {"0"})


def test_qemu_is_there_from_its_first_moment(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Memory is the node's that first touches it, and QEMU may touch it all before it says a word."""
    seen = daemon.root / "seen"
    seen.touch()
    seen.chmod(0o666)
    program = daemon.root / "qemu-system-x86_64"
    program.write_text(f'#!/bin/sh\ntaskset -pc $$ >> {seen}\nexec {emulator.path} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    unit = rom_unit(emulator, rom_guest, cpu='pin = ["1"]').replace(str(emulator.path), str(program))
    daemon.unit("web", unit)
    daemon.do("web", "start")
    assert seen.read_text().splitlines()[-1].endswith("affinity list: 1")
    assert os.sched_getaffinity(daemon.pid) == os.sched_getaffinity(0), "the daemon itself is where it was"


def test_threads_and_what_they_had_are_shown(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """As /proc has them: each vCPU, and the main loop; a VM that does not run has none."""
    start(daemon, emulator, rom_guest)
    view = daemon.view("web")
    cpus = daemon.get("/v1/instances/web/cpus")
    by_vcpu = {vcpu: thread for thread in cpus["threads"] for vcpu in thread["vcpus"]}
    assert [by_vcpu[vcpu]["thread"] for vcpu in (0, 1)] == view["cpus"]["threads"]
    assert [(by_vcpu[vcpu]["pin"], by_vcpu[vcpu]["allowed"]) for vcpu in (0, 1)] == [("0", "0"), ("1", "1")]
    assert by_vcpu[1]["cpu"] == 1 and by_vcpu[1]["name"].startswith("CPU 1")
    main = cpus["threads"][0]
    assert (main["thread"], main["vcpus"], main["pin"]) == (view["pid"], [], "0")
    assert 0 < main["seconds"] < 60 and main["waited"] >= 0
    assert cpus["count"] == len(cpus["threads"]) == len(os.listdir(f"/proc/{view['pid']}/task"))
    assert "CPU 1" in daemon.ctl("cpus", "web").stdout
    daemon.do("web", "kill")
    with pytest.raises(DeniedError, match="it does not run"):
        daemon.get("/v1/instances/web/cpus")


@pytest.mark.alone
def test_what_somebody_has_moved_is_put_back(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A vCPU and the main loop, within five seconds, and an event says which."""
    start(daemon, emulator, rom_guest)
    view = daemon.view("web")
    with daemon.events() as events:
        os.sched_setaffinity(view["cpus"]["threads"][1], {0})
        os.sched_setaffinity(view["pid"], {1})
        poll_until(lambda: (vcpus(daemon), others(daemon)) == (["0", "1"], {"0"}), "back", seconds=PROMISED)
        told = [events.next("pin-drift")["data"]]
        if len(told[0]["threads"]) == 1:  # it was looked between the two
            told.append(events.next("pin-drift")["data"])
    assert {thread for each in told for thread in each["threads"]} == {view["pid"], view["cpus"]["threads"][1]}
    assert [each["vcpus"] for each in told if each["vcpus"]] == [[1]]
    assert daemon.get("/v1/instances/web/cpus")["drifts"] == 2
    with daemon.client() as client:
        assert b'qsup_instance_pin_drifts_total{instance="web"} 2.0' in client.exchange("GET", "/metrics")
    words = "; ".join(each["detail"] for each in told)
    assert "vCPU 1 was moved to CPUs 0, and is back on 1" in words
    assert f"thread {view['pid']} was moved to CPUs 1, and is back on 0" in words


@pytest.fixture
def cpuset() -> Iterator[Path]:
    """A cpuset of version 1 with the first CPU alone, in which a test may put processes."""
    top = Path("/sys/fs/cgroup/cpuset")
    if not os.access(top / "cpuset.cpus", os.W_OK):
        pytest.skip("no cpuset of version 1")
    path = top / f"qsup-test-{os.getpid()}"
    path.mkdir()
    (path / "cpuset.cpus").write_text("0")
    (path / "cpuset.mems").write_text("0")
    yield path
    for pid in (path / "cgroup.procs").read_text().split():
        (top / "cgroup.procs").write_text(pid)
    path.rmdir()


def test_a_cpuset_that_forbids_a_cpu_is_told_of_once(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, cpuset: Path
) -> None:
    """It is no drift, keeps no other thread from its place, and is over when the CPU may be had again."""
    start(daemon, emulator, rom_guest, cpu='vcpus = 2\npin = ["1", "0"]\nemulator-pin = "0-1"')
    pid, (first, second) = daemon.view("web")["pid"], daemon.view("web")["cpus"]["threads"]
    with daemon.events() as events:
        (cpuset / "cgroup.procs").write_text(str(pid))
        told = events.next("pin-drift", seconds=WITHIN)["data"]
        assert "belongs on CPUs 0-1, and the kernel lets it run on 0 alone" in told["detail"]
        assert told["threads"] == []
        assert (allowed(first), allowed(second), allowed(pid)) == ("0", "0", "0")
        (warning,) = daemon.view("web")["warnings"]
        assert warning == told["detail"]
        refused = ask(daemon, {"cpu": {"emulator-pin": "1"}}, query="&persist=0")
        assert "its threads stay where they are: " in refused["error"]["detail"]
        assert "belongs on CPUs 1 and is on 0: could not pin thread" in refused["error"]["detail"]
        (cpuset / "cpuset.cpus").write_text("0-1")
        told = events.next("pin-drift", seconds=WITHIN)["data"]
    assert (told["detail"], told["threads"]) == ("all threads are where they belong", [])
    assert (vcpus(daemon), others(daemon)) == (["1", "0"], {"0-1"})
    assert daemon.get("/v1/instances/web/cpus")["drifts"] == 0
    assert daemon.view("web")["warnings"] == []


def test_threads_are_pinned_where_sysfs_says_nothing(root_dir: Path, emulator: Emulator, rom_guest: Path) -> None:
    """A container may have it masked: the CPUs are then those that the daemon may use."""
    masked = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys && exec "$0" "$@"')
    daemon = Daemon(root_dir, command=(*masked, sys.executable, "-m", "qsup.daemon"))
    daemon.start()
    try:
        start(daemon, emulator, rom_guest)
        assert (vcpus(daemon), others(daemon)) == (["0", "1"], {"0"})
        daemon.unit("auto", rom_unit(emulator, rom_guest, cpu='pin = "auto"'))
        daemon.do("auto", "start")
        assert vcpus(daemon, "auto") == ["0-1"]
    finally:
        daemon.close()


def test_isolated_cpus_can_be_named(root_dir: Path, emulator: Emulator, rom_guest: Path) -> None:
    """With isolcpus= no process has them that was not put there, the daemon neither; nobody is put there unasked."""
    (root_dir / "isolated").write_text("1\n")
    bound = f'mount --bind {root_dir}/isolated /sys/devices/system/cpu/isolated && exec taskset -c 0 "$0" "$@"'
    command = ("unshare", "--mount", "sh", "-c", bound, sys.executable, "-m", "qsup.daemon")
    daemon = Daemon(root_dir, command=command)
    daemon.start()
    try:
        start(daemon, emulator, rom_guest, cpu='pin = ["1"]\nexclusive = true\nemulator-pin = "0"')
        assert (vcpus(daemon), others(daemon)) == (["1"], {"0"})
        os.sched_setaffinity(daemon.view("web")["cpus"]["threads"][0], {0})
        poll_until(lambda: vcpus(daemon) == ["1"], "it is put back", seconds=WITHIN)
        daemon.unit("auto", rom_unit(emulator, rom_guest, cpu='pin = "auto"'))
        daemon.do("auto", "start")
        assert (vcpus(daemon, "auto"), others(daemon, "auto")) == (["0"], {"0"})
        (isolated,) = [cpu for cpu in daemon.get("/v1/topology")["cpus"] if cpu["isolated"]]
        assert (isolated["number"], isolated["allowed"]) == (1, True)
    finally:
        daemon.close()


def test_the_next_daemon_keeps_them_there(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Somebody has moved them while there was none."""
    start(daemon, emulator, rom_guest)
    view = daemon.view("web")
    daemon.signal(signal.SIGKILL)
    os.sched_setaffinity(view["cpus"]["threads"][1], {0})
    daemon.start()
    poll_until(lambda: vcpus(daemon) == ["0", "1"], "back", seconds=WITHIN)
    os.sched_setaffinity(view["cpus"]["threads"][0], {1})
    poll_until(lambda: vcpus(daemon) == ["0", "1"], "back once more", seconds=WITHIN)


def test_a_vcpu_that_comes_is_pinned_when_it_is_there(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """Not some seconds later: its operation ends after that."""
    cpu = 'max-vcpus = 3\npin = ["0", "1", "0-1"]\nemulator-pin = "0"'
    daemon.unit("web", linux_unit(qemu, linux_guest, cpu=cpu))
    daemon.do("web", "start")
    assert vcpus(daemon) == ["0"]
    assert ask(daemon, {"cpu": {"vcpus": 3}})["state"] == "succeeded"
    assert vcpus(daemon) == ["0", "1", "0-1"]
    assert others(daemon) == {"0"}


def test_a_vcpu_keeps_its_cpus_when_one_before_it_goes(daemon: Daemon, linux_guest: LinuxGuest) -> None:
    """It is known by its number, not by its place among those that are left."""
    newest = emulators()[-1]
    if int(newest.version.split(".")[0]) < 10:
        pytest.skip("no QEMU that unplugs a vCPU under TCG")
    cpu = 'vcpus = 3\nmax-vcpus = 3\npin = ["0", "0-1", "1"]\nemulator-pin = "0"'
    daemon.unit("web", linux_unit(newest, linux_guest, cpu=cpu))
    daemon.do("web", "start")
    first, _, last = daemon.view("web")["cpus"]["threads"]
    second = next(cpu for cpu in qmp(daemon, "web", "query-hotpluggable-cpus") if cpu["props"]["core-id"] == 1)
    qmp(daemon, "web", "device_del", id=second["qom-path"])
    # an emulated guest that misses a timer of its own goes on only when its kernel warns of a stall, after 21 s
    poll_until(lambda: daemon.view("web")["cpus"]["threads"] == [first, last], "one has gone", seconds=60)
    assert vcpus(daemon) == ["0", "1"]
    os.sched_setaffinity(last, {0})
    poll_until(lambda: allowed(last) == "1", "back", seconds=WITHIN)
    shown = {thread["thread"]: thread["vcpus"] for thread in daemon.get("/v1/instances/web/cpus")["threads"]}
    assert (shown[first], shown[last]) == ([0], [2])
    assert {"instance": "web", "vcpu": 2} in daemon.get("/v1/topology")["cpus"][1]["pinned"]


def test_pins_change_while_it_runs(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """At once, and without them its threads run anywhere again; the unit says so, and the next start."""
    start(daemon, emulator, rom_guest, cpu="vcpus = 2")
    anywhere = allowed(0)
    assert set(vcpus(daemon)) == {anywhere}
    operation = ask(daemon, {"cpu": {"pin": ["1", "0"]}})
    assert operation["result"]["keys"]["cpu.pin"]["applied"] == "live"
    assert (vcpus(daemon), others(daemon)) == (["1", "0"], {"0-1"})
    assert ask(daemon, {"cpu": {"emulator-pin": "1"}})["state"] == "succeeded"
    assert (vcpus(daemon), others(daemon)) == (["1", "0"], {"1"})
    daemon.do("web", "restart")
    assert (vcpus(daemon), others(daemon)) == (["1", "0"], {"1"})
    os.sched_setaffinity(daemon.view("web")["cpus"]["threads"][0], {0})
    poll_until(lambda: vcpus(daemon) == ["1", "0"], "it is looked after", seconds=WITHIN)
    assert ask(daemon, {"cpu": {"pin": [], "emulator-pin": ""}})["state"] == "succeeded"
    assert {*vcpus(daemon), *others(daemon)} == {anywhere}


def test_vcpus_in_one_thread_are_not_torn_apart(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """TCG with -icount has one thread for all vCPUs, which may run where any of them may."""
    start(daemon, emulator, rom_guest, qemu='extra-args = ["-icount", "shift=auto"]')
    assert len(set(daemon.view("web")["cpus"]["threads"])) == 1
    assert (set(vcpus(daemon)), others(daemon)) == ({"0-1"}, {"0"})


def test_cpus_that_there_are_not(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A start fails before QEMU is there, a change changes nothing, and both name the key and the CPU."""
    daemon.unit("web", rom_unit(emulator, rom_guest, cpu='pin = ["4000"]'))
    failed = finished(daemon, daemon.post("/v1/instances/web/start"))
    assert failed["error"]["code"] == "start-failed"
    assert "there is no CPU 4000 on this host" in failed["error"]["detail"]
    assert daemon.view("web")["pid"] is None
    start(daemon, emulator, rom_guest, cpu="")
    daemon.restart()
    daemon.wait("web", "running")
    for key, value in (("cpu.pin", "4000"), ("cpu.emulator-pin", "4000")):
        said = daemon.ctl("set", "web", "--dry-run", f"{key}={value}", check=False)
        assert said.returncode == 1 and "there is no CPU 4000" in said.stderr, "also of a host nobody has looked at yet"
    for nonsense in (5, True, "auto", ["auto"], None):
        assert ask(daemon, {"cpu": nonsense})["error"]["code"] == "unit-invalid"
    daemon.do("web", "kill")
    start(daemon, emulator, rom_guest)
    refused = ask(daemon, {"cpu": {"emulator-pin": "4000"}}, query="&persist=0")
    assert (refused["state"], refused["error"]["code"]) == ("failed", "placement")
    assert "there is no CPU 4000" in refused["error"]["detail"]
    assert (vcpus(daemon), others(daemon)) == (["0", "1"], {"0"})


def test_cpus_are_chosen(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """On one node, and it is told why; also by the next daemon."""
    start(daemon, emulator, rom_guest, cpu='vcpus = 2\npin = "auto"')
    assert len(set(vcpus(daemon)) | others(daemon)) == 1
    explained = daemon.ctl("cpus", "web", "--explain").stdout
    assert "wants shared CPUs for 2 vCPUs" in explained and "Node 0 has enough" in explained
    daemon.restart()
    assert daemon.ctl("cpus", "web", "--explain").stdout == explained


def test_nobody_else_is_where_a_vm_is_alone(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Those that said nothing of their CPUs leave at once, and come back when it has ended; one that names it is
    refused, as is a second that would leave no CPU to be shared. All that also under the next daemon.
    """
    start(daemon, emulator, rom_guest, cpu="vcpus = 2")
    anywhere = allowed(0)
    assert set(vcpus(daemon)) == {anywhere}
    daemon.unit("db", rom_unit(emulator, rom_guest, cpu='pin = "auto"\nexclusive = true'))
    daemon.do("db", "start")
    (alone,) = vcpus(daemon, "db")
    rest = format_cpu_set(os.sched_getaffinity(0) - {int(alone)})
    assert others(daemon, "db") == {rest}

    def are_apart() -> bool:
        return {*vcpus(daemon), *others(daemon), *others(daemon, "db")} == {rest} and vcpus(daemon, "db") == [alone]

    poll_until(are_apart, "nobody else is there", seconds=WITHIN)
    pinned = {cpu["number"]: cpu["pinned"] for cpu in daemon.get("/v1/topology")["cpus"]}
    assert pinned[int(alone)] == [{"instance": "db", "vcpu": 0}]
    for name, cpu in (("named", f'pin = ["{alone}"]'), ("second", 'pin = "auto"\nexclusive = true')):
        daemon.unit(name, rom_unit(emulator, rom_guest, cpu=cpu))
    named = finished(daemon, daemon.post("/v1/instances/named/start"))
    assert f"CPU {alone} is exclusively db's" in named["error"]["detail"]
    second = finished(daemon, daemon.post("/v1/instances/second/start"))
    assert "none would be left for other VMs" in second["error"]["detail"]
    daemon.restart()
    os.sched_setaffinity(daemon.view("web")["cpus"]["threads"][0], {int(alone)})
    poll_until(are_apart, "the next daemon keeps it so", seconds=WITHIN)
    again = finished(daemon, daemon.post("/v1/instances/named/start"))
    assert f"CPU {alone} is exclusively db's" in again["error"]["detail"]
    daemon.do("db", "kill")
    poll_until(lambda: {*vcpus(daemon), *others(daemon)} == {anywhere}, "they are free again", seconds=WITHIN)
    assert finished(daemon, daemon.post("/v1/instances/named/start"))["state"] == "succeeded"


def test_who_made_room_for_a_vm_that_ended_while_no_daemon_ran(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """Its threads may run anywhere again under the next daemon."""
    start(daemon, emulator, rom_guest, cpu="vcpus = 2")
    anywhere = allowed(0)
    daemon.unit("db", rom_unit(emulator, rom_guest, cpu='pin = "auto"\nexclusive = true'))
    daemon.do("db", "start")
    poll_until(lambda: anywhere not in {*vcpus(daemon), *others(daemon)}, "they have made room", seconds=WITHIN)
    pid = daemon.view("db")["pid"]
    daemon.signal(signal.SIGKILL)
    kill_process(pid)
    daemon.start()
    poll_until(lambda: {*vcpus(daemon), *others(daemon)} == {anywhere}, "they are free", seconds=WITHIN)
    assert daemon.get("/v1/instances/web/cpus")["drifts"] == 0


def test_a_vm_that_is_not_alone_any_more_warns_of_it(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The daemon may use its CPU no more; it has it back when that is over."""
    start(daemon, emulator, rom_guest, cpu='pin = "auto"\nexclusive = true')
    (alone,) = vcpus(daemon)
    assert daemon.view("web")["warnings"] == []
    before = os.sched_getaffinity(daemon.pid)
    with daemon.events() as events:
        os.sched_setaffinity(daemon.pid, before - {int(alone)})
        told = events.next("pin-drift", seconds=WITHIN)["data"]["detail"]
        assert told == f"vCPU 0 is not alone on a CPU now: CPU {alone} is not among those that this daemon may use"
        assert daemon.view("web")["warnings"] == [told]
        assert alone not in vcpus(daemon)
        os.sched_setaffinity(daemon.pid, before)
        assert events.next("pin-drift", seconds=WITHIN)["data"]["detail"] == "all threads are where they belong"
    assert (vcpus(daemon), daemon.view("web")["warnings"]) == ([alone], [])


def test_a_vm_that_runs_gets_cpus_of_its_own(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """And gives them back; what it cannot have changes nothing."""
    start(daemon, emulator, rom_guest, cpu="vcpus = 1")
    assert ask(daemon, {"cpu": {"pin": "auto", "exclusive": True}})["state"] == "succeeded"
    (alone,) = vcpus(daemon)
    assert alone in ("0", "1")
    daemon.unit("other", rom_unit(emulator, rom_guest, cpu=f'pin = ["{alone}"]'))
    assert finished(daemon, daemon.post("/v1/instances/other/start"))["state"] == "failed"
    assert ask(daemon, {"cpu": {"exclusive": False}})["state"] == "succeeded"
    assert finished(daemon, daemon.post("/v1/instances/other/start"))["state"] == "succeeded"
    refused = ask(daemon, {"cpu": {"pin": [alone], "exclusive": True}}, query="&persist=0")
    assert refused["state"] == "failed" and "other names as well" in refused["error"]["detail"]
    assert vcpus(daemon) == [allowed(0)]
