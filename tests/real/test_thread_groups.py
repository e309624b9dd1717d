"""Limits of a VM's vCPUs apart from those of all its other threads: read back from cgroups of version 1."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import MonitorClosed
from qsup.host import hierarchies
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, elapsed, kill_process, linux_unit, rom_unit
from tests.real.growing import ask, differs, run
from tests.real.hotplug import attach, finished, qmp, set_keys
from tests.real.test_pins import WITHIN
from tests.real.test_unfinished import dying_at
from tests.waiting import poll_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.skipif(
        not {"cpu", "memory"} <= hierarchies.detect().v1.keys(), reason="the groups are read in version 1's words"
    ),
]

MIB = 1 << 20
TWO = "vcpus = 2\nmax-vcpus = 3"
LIMITS = 'vcpu-cpu = "50%"'
NO_CPU = "the host offers the daemon no cpu controller"


def start(daemon: Daemon, emulator: Emulator, rom: Path, limits: str = LIMITS, cpu: str = TWO, **sections: str) -> Any:
    """A VM of the ROM guest."""
    daemon.unit("web", rom_unit(emulator, rom, limits=limits, cpu=cpu, **sections))
    return daemon.do("web", "start")


def top(daemon: Daemon, vm: str = "web") -> Path:
    """The directory of a VM's cgroup in the hierarchy that keeps CPU time."""
    record = json.loads((daemon.run / "instances" / vm / "record.json").read_text())
    (found,) = (Path(path) for path in record["cgroups"] if (Path(path) / "cpu.cfs_quota_us").exists())
    return found


def groups(daemon: Daemon, vm: str = "web") -> dict[str, set[int]]:
    """The threads of each group, and of none."""
    directory = top(daemon, vm)
    names = ["", *(path.name for path in directory.iterdir() if path.is_dir())]
    return {name: set(map(int, (directory / name / "tasks").read_text().split())) for name in names}


def apart(daemon: Daemon) -> dict[str, set[int]]:
    """How its threads should be parted."""
    view = daemon.view("web")
    vcpus = set(view["cpus"]["threads"])
    return {"": set(), "vcpu": vcpus, "emulator": set(map(int, os.listdir(f"/proc/{view['pid']}/task"))) - vcpus}


def quotas(daemon: Daemon) -> dict[str, str]:
    """What the kernel lets the whole and each group have."""
    directory = top(daemon)
    return {name: (directory / name / "cpu.cfs_quota_us").read_text().strip() for name in groups(daemon)}


def held(daemon: Daemon) -> tuple[Any, Any, Any]:
    """The same as it is shown."""
    limits = daemon.view("web")["limits"]
    return limits["cpu"], limits["vcpu_cpu"], limits["emulator_cpu"]


def throttled(directory: Path) -> Mapping[str, int]:
    """What the kernel counts of a group that is limited."""
    lines = (line.split() for line in (directory / "cpu.stat").read_text().splitlines())
    return {name: int(value) for name, value in lines}


def test_threads_are_in_their_groups(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Those of vCPUs and all others, from before the guest runs to the end; a VM that asks for none has no groups."""
    limits = 'cpu = "1"\nvcpu-cpu = "50%"\nemulator-cpu = "80%"\nrequire = true'
    view = start(daemon, qemu, rom_guest, limits, tables='[[iothread]]\nid = "fast"\n')
    assert view["warnings"] == []
    assert len(groups(daemon)["vcpu"]) == 2 and groups(daemon) == apart(daemon)
    assert quotas(daemon) == {"": "100000", "vcpu": "50000", "emulator": "80000"}
    assert held(daemon) == (1.0, 0.5, 0.8)
    assert "CPU 100%, vCPUs' CPU 50%, emulator's CPU 80%" in daemon.ctl("status", "web").stdout
    directory = top(daemon)
    daemon.unit("free", rom_unit(qemu, rom_guest))
    daemon.do("free", "start")
    assert set(groups(daemon, "free")) == {""}
    daemon.do("web", "kill")
    assert not directory.exists()


def test_one_thread_for_all_vcpus_is_the_group(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """TCG with a counter of instructions has no more."""
    view = start(daemon, qemu, rom_guest, cpu="vcpus = 2", qemu='extra-args = ["-icount", "shift=0"]')
    assert len(view["cpus"]["threads"]) == 2 and len(set(view["cpus"]["threads"])) == 1
    assert groups(daemon)["vcpu"] == set(view["cpus"]["threads"])
    assert groups(daemon) == apart(daemon)


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm cannot be opened")
def test_what_kvm_starts_is_with_the_others(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A worker of the kernel's begins with a vCPU, once the guest runs (Linux 6.4 and later)."""
    start(daemon, emulator, rom_guest, accel="kvm")
    poll_until(lambda: groups(daemon) == apart(daemon), "it is there", seconds=WITHIN)
    assert len(groups(daemon)["vcpu"]) == 2


def test_a_fence_that_comes_leaves_the_groups_alone(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Its processes are moved into a cpuset then, and into nothing else."""
    start(daemon, emulator, rom_guest)
    assert ask(daemon, {"limits": {"cpuset-cpus": "0"}})["state"] == "succeeded"
    assert groups(daemon) == apart(daemon)
    view = daemon.view("web")
    assert (view["limits"]["vcpu_cpu"], view["limits"]["cpuset_cpus"]) == (0.5, "0")
    assert {os.sched_getaffinity(thread) == {0} for thread in apart(daemon)["vcpu"]} == {True}


def test_what_is_in_the_wrong_group_is_put_right(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Whoever has moved it, and wherever to; within five seconds."""
    view = start(daemon, emulator, rom_guest)
    vcpu, directory = view["cpus"]["threads"][0], top(daemon)
    for thread, elsewhere in (
        (vcpu, directory / "emulator"),
        (view["pid"], directory / "vcpu"),
        (view["pid"], directory),
        (vcpu, directory.parents[1]),
    ):
        (elsewhere / "tasks").write_text(str(thread))
        poll_until(lambda: groups(daemon) == apart(daemon), "it is back", seconds=WITHIN)


def test_a_vcpu_that_comes_is_in_its_group(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Before the operation ends, though QEMU's main loop has started it."""
    start(daemon, qemu, rom_guest)
    assert ask(daemon, {"cpu": {"vcpus": 3}})["state"] == "succeeded"
    assert len(groups(daemon)["vcpu"]) == 3 and groups(daemon) == apart(daemon)


def test_programs_that_serve_devices_are_with_the_others(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """From the start, or soon after they have come."""
    data = daemon.images / "data"
    data.mkdir()
    start(daemon, emulator, rom_guest, memory="shared = true")
    done = attach(daemon, "web", "devices", id="docs", type="share", path=str(data), tag="d")
    assert done["state"] == "succeeded", done

    def served() -> set[int]:
        record = json.loads((daemon.run / "instances/web/record.json").read_text())
        return {helper["pid"] for helper in record["state"]["helpers"]}

    poll_until(lambda: served() and served() <= groups(daemon)["emulator"], "it is there", seconds=WITHIN)
    assert groups(daemon)[""] == set() and groups(daemon)["vcpu"] == apart(daemon)["vcpu"]


def test_the_next_daemon_keeps_them_and_ends_them(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Also of a VM that has ended while there was none; nothing is left of either."""
    start(daemon, emulator, rom_guest)
    directory = top(daemon)
    daemon.signal(9)
    (directory / "vcpu/tasks").write_text((directory / "emulator/tasks").read_text().split()[0])
    daemon.start()
    again = daemon.wait("web", "running")
    assert (again["warnings"], held(daemon)) == ([], (None, 0.5, None))
    assert groups(daemon) == apart(daemon)
    daemon.do("web", "kill")
    assert not directory.exists()
    pid = daemon.do("web", "start")["pid"]
    daemon.signal(9)
    kill_process(pid)
    daemon.start()
    daemon.wait("web", "crashed")
    assert not directory.exists()


def test_the_rest_is_done_by_the_adopter(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Of a launch whose daemon died as it moved the first thread: the guest does not run before all are in place."""
    start(daemon, emulator, rom_guest)
    directory = top(daemon)
    daemon.do("web", "kill")
    with dying_at(daemon, "openat", f"{directory}/vcpu/tasks"), daemon.client() as client:
        client.post("/v1/instances/web/start")
    assert daemon.wait("web", "running")["warnings"] == []
    assert groups(daemon) == apart(daemon) and held(daemon) == (None, 0.5, None)
    daemon.do("web", "kill")
    assert not directory.exists()


def test_groups_come_and_go_while_it_runs(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """With the whole or without it, in either direction; without a limit of a group there is none."""
    start(daemon, emulator, rom_guest, "")
    for changes, kept in (
        ({"vcpu-cpu": "50%"}, {"": "-1", "vcpu": "50000", "emulator": "-1"}),
        ({"cpu": "40%", "vcpu-cpu": "30%"}, {"": "40000", "vcpu": "30000", "emulator": "-1"}),
        ({"cpu": "2", "vcpu-cpu": "1.5", "emulator-cpu": "1"}, {"": "200000", "vcpu": "150000", "emulator": "100000"}),
        ({"vcpu-cpu": "", "emulator-cpu": ""}, {"": "200000"}),
        ({"emulator-cpu": "10%"}, {"": "200000", "vcpu": "-1", "emulator": "10000"}),
    ):
        done = ask(daemon, {"limits": changes})
        assert {each["applied"] for each in done["result"]["keys"].values()} == {"live"}
        assert quotas(daemon) == kept
        assert groups(daemon) == (apart(daemon) if "vcpu" in kept else {"": set().union(*apart(daemon).values())})
        assert differs(daemon) == {}
    daemon.restart()
    assert (daemon.wait("web", "running")["warnings"], held(daemon)) == ([], (2.0, None, 0.1))
    assert groups(daemon) == apart(daemon)
    refused = set_keys(daemon, "web", **{"limits__emulator-cpu": "3"})
    assert "emulator-cpu (3) is more than cpu (2), the whole" in json.dumps(refused["error"])
    assert held(daemon) == (2.0, None, 0.1)


def test_what_ends_a_vm_ends_it(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """An OOM kill is told as such; its groups go with it."""
    start(daemon, emulator, rom_guest, f'memory = "160M"\n{LIMITS}')
    directory = top(daemon)
    with daemon.client() as client, pytest.raises(MonitorClosed):
        more = {"qom-type": "memory-backend-ram", "id": "more", "size": 256 * MIB, "prealloc": True}
        body = json.dumps({"execute": "object-add", "arguments": more}).encode()
        client.exchange("POST", "/v1/instances/web/qmp", body=body)
    assert daemon.wait("web", "crashed")["cause"]["kind"] == "oom"
    assert not directory.exists()


def test_a_host_without_the_controller(root_dir: Path, emulator: Emulator, rom_guest: Path) -> None:
    """A warning, or refused where it is required, before QEMU is executed, or where it is changed."""
    masked = ("unshare", "--mount", "sh", "-c", 'umount /sys/fs/cgroup/cpu && exec "$0" "$@"')
    daemon = Daemon(root_dir, command=(*masked, sys.executable, "-m", "qsup.daemon"))
    daemon.start()
    try:
        view = start(daemon, emulator, rom_guest)
        assert view["warnings"] == [f"limits.vcpu-cpu is not enforced: {NO_CPU}"]
        assert ask(daemon, {"limits": {"vcpu-cpu": ""}})["state"] == "succeeded"
        assert daemon.view("web")["warnings"] == []
        refused = ask(daemon, {"limits": {"emulator-cpu": "50%"}})
        assert f"limits.emulator-cpu cannot be enforced: {NO_CPU}" in refused["error"]["detail"]
        daemon.unit("strict", rom_unit(emulator, rom_guest, limits=f"{LIMITS}\nrequire = true"))
        failed = finished(daemon, daemon.post("/v1/instances/strict/start"))
        assert f"limits.vcpu-cpu is not enforced: {NO_CPU}" in failed["error"]["detail"]
        assert daemon.remains() == ["web"]
    finally:
        daemon.close()


@pytest.mark.slow
@pytest.mark.alone
def test_busy_vcpus_are_held_and_the_main_loop_is_not(
    daemon: Daemon, emulator: Emulator, linux_guest: LinuxGuest
) -> None:
    """Within five points over ten seconds, of a guest that wants all; QEMU answers, and is not once kept from it."""
    daemon.unit("web", linux_unit(emulator, linux_guest, cpu="vcpus = 2"))
    daemon.do("web", "start")
    for _ in range(2):
        run(daemon, "(while :; do :; done) >/dev/null 2>&1 &")
    assert ask(daemon, {"limits": {"vcpu-cpu": "50%", "emulator-cpu": "50%"}})["state"] == "succeeded"
    directory, vcpus = top(daemon), set(daemon.view("web")["cpus"]["threads"])

    def had() -> float:
        threads = daemon.get("/v1/instances/web/cpus")["threads"]
        return float(sum(each["seconds"] for each in threads if each["thread"] in vcpus))

    def look() -> bool:
        qmp(daemon, "web", "query-status")
        return elapsed(began) >= 10

    stood, busy = throttled(directory / "vcpu")["nr_throttled"], throttled(directory / "emulator")["nr_periods"]
    before, began = had(), elapsed(0)
    poll_until(look, "ten seconds are over", seconds=15)
    part = (had() - before) / elapsed(began)
    assert 0.45 <= part <= 0.55
    assert throttled(directory / "vcpu")["nr_throttled"] - stood > 50
    assert throttled(directory / "emulator")["nr_throttled"] == 0
    assert throttled(directory / "emulator")["nr_periods"] > busy
