"""What a VM may take of the host, kept by the kernel: cgroups of version 1, which the development machines have."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import MonitorClosed
from qsup.host import hierarchies
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, elapsed, linux_unit, rom_unit
from tests.real.growing import ask, differs, run
from tests.real.hotplug import finished, qmp
from tests.waiting import poll_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.skipif(
        not {"cpu", "memory", "pids", "blkio"} <= hierarchies.detect().v1.keys(),
        reason="the limits are read in version 1's words",
    ),
]

MIB = 1 << 20
#: What is free in the Linux guest, but for some MiB that it cannot do without.
FILL = "dd if=/dev/zero of=/all/of-it bs=1M count=40 2>/dev/null"
LIMITS = 'cpu = "50%"\ncpu-weight = 200\nmemory = "160M"\npids = 200'
#: What no unit here asks for, and what the kernel says of it.
IO = dict.fromkeys(("io_read_bps", "io_write_bps", "io_read_iops", "io_write_iops"))
OTHERS = {"vcpu_cpu": None, "emulator_cpu": None, "memory_high": None, "swap": None, "io_weight": 100} | IO
OTHERS |= {"cpuset_cpus": None, "cpuset_mems": None, "oom_score_adjust": None, "nofile": None}
HELD = {"cpu": 0.5, "cpu_weight": 200, "memory": 160 * MIB, "pids": 200} | OTHERS
#: What no cgroup of version 1 keeps.
V1_HAS_NOT = "the memory controller of the host, of cgroup version 1, has no such limit"


def kept(daemon: Daemon, vm: str = "web") -> dict[str, str]:
    """What the kernel has, by the file."""
    record = json.loads((daemon.run / "instances" / vm / "record.json").read_text())
    names = ("cpu.cfs_quota_us", "cpu.shares", "memory.limit_in_bytes", "pids.max")
    files = (Path(directory) / name for directory in record["cgroups"] for name in names)
    return {file.name: file.read_text().strip() for file in files if file.exists()}


def start(daemon: Daemon, emulator: Emulator, rom: Path, limits: str = LIMITS, vm: str = "web") -> Any:
    """A VM of the ROM guest."""
    daemon.unit(vm, rom_unit(emulator, rom, limits=limits))
    return daemon.do(vm, "start")


def test_the_kernel_keeps_what_the_unit_says(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Of QEMU with all its threads, and shown as the kernel says it; a VM without has none of it."""
    view = start(daemon, qemu, rom_guest)
    assert (view["limits"], view["warnings"]) == (HELD, [])
    assert kept(daemon) == {
        "cpu.cfs_quota_us": "50000",
        "cpu.shares": "2048",
        "memory.limit_in_bytes": str(160 * MIB),
        "pids.max": "200",
    }
    record = json.loads((daemon.run / "instances/web/record.json").read_text())
    assert all(str(view["pid"]) in (Path(path) / "cgroup.procs").read_text().split() for path in record["cgroups"])
    assert "CPU 50%, CPU weight 200, memory 160M, 200 threads" in daemon.ctl("status", "web").stdout
    free = start(daemon, qemu, rom_guest, "", "free")
    assert free["limits"] == dict.fromkeys(HELD)
    daemon.do("web", "kill")
    assert daemon.view("web")["limits"] is None


@pytest.mark.slow
@pytest.mark.alone
def test_half_a_cpu_is_half_a_cpu(daemon: Daemon, emulator: Emulator, linux_guest: LinuxGuest) -> None:
    """Within five points over ten seconds, of a guest that wants all that it can have on two vCPUs."""
    daemon.unit("web", linux_unit(emulator, linux_guest, cpu="vcpus = 2"))
    daemon.do("web", "start")
    for _ in range(2):
        run(daemon, "(while :; do :; done) >/dev/null 2>&1 &")
    assert ask(daemon, {"limits": {"cpu": "50%"}})["state"] == "succeeded"

    def had() -> float:
        seconds: float = daemon.get("/v1/instances/web/stats")["cpu_seconds"]
        return seconds

    before, began = had(), time.monotonic()
    poll_until(lambda: elapsed(began) >= 10, "ten seconds are over", seconds=12)
    part = (had() - before) / elapsed(began)
    assert 0.45 <= part <= 0.55
    assert ask(daemon, {"limits": {"cpu": ""}})["state"] == "succeeded"
    before = had()
    poll_until(lambda: had() - before > 1.2, "it has had more than half a CPU", seconds=2.0)


def test_too_much_memory_ends_that_vm_alone(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The cause says so and names the limit; the VM beside it, with the same limit, goes on."""
    for vm in ("web", "db"):
        start(daemon, emulator, rom_guest, 'memory = "160M"', vm)
    before = daemon.view("db")
    with daemon.client() as client, pytest.raises(MonitorClosed):
        more = {"qom-type": "memory-backend-ram", "id": "more", "size": 256 * MIB, "prealloc": True}
        body = json.dumps({"execute": "object-add", "arguments": more}).encode()
        client.exchange("POST", "/v1/instances/web/qmp", body=body)
    ended = daemon.wait("web", "crashed")
    assert ended["cause"]["kind"] == "oom"
    assert ended["cause"]["detail"].endswith("memory ran out; limits.memory is 160M")
    assert (daemon.view("db")["pid"], daemon.view("db")["substate"]) == (before["pid"], "running")
    assert qmp(daemon, "db", "query-status")["status"] == "running"


def test_a_guest_has_its_memory_within_the_least_limit(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """What is refused is too little in truth; what is not is no trap at once."""
    daemon.unit("web", linux_unit(qemu, linux_guest, limits='memory = "257M"'))
    assert daemon.do("web", "start")["limits"]["memory"] == 257 * MIB
    assert run(daemon, f"mkdir /all; mount -t tmpfs all /all; {FILL}; wc -c </all/of-it") == str(40 * MIB)


def test_what_cannot_be_kept_is_a_warning(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Or why it does not start, where that is required: QEMU is not executed."""
    view = start(daemon, emulator, rom_guest, 'memory-high = "64M"\npids = 200')
    assert view["warnings"] == [f"limits.memory-high is not enforced: {V1_HAS_NOT}"]
    assert view["limits"]["pids"] == 200
    daemon.restart()
    assert daemon.wait("web", "running")["warnings"] == view["warnings"]
    daemon.do("web", "kill")
    daemon.unit("web", rom_unit(emulator, rom_guest, limits='memory-high = "64M"\nrequire = true'))
    failed = finished(daemon, daemon.post("/v1/instances/web/start"))
    assert failed["error"]["code"] == "start-failed"
    assert f"limits.memory-high is not enforced: {V1_HAS_NOT}" in failed["error"]["detail"]
    assert (daemon.view("web")["substate"], daemon.view("web")["pid"]) == ("start-failed", None)
    assert daemon.remains() == []


def test_limits_change_while_it_runs(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """At once and in the unit, under the next daemon, and at the next start."""
    start(daemon, emulator, rom_guest)
    changed = ask(daemon, {"limits": {"cpu": "2", "memory": "256M", "pids": 0}})
    assert {key: (each["applied"], each["limit"]) for key, each in changed["result"]["keys"].items()} == {
        "limits.cpu": ("live", 2000),
        "limits.memory": ("live", 256 * MIB),
        "limits.pids": ("live", None),
    }
    now = {
        "cpu.cfs_quota_us": "200000",
        "cpu.shares": "2048",
        "memory.limit_in_bytes": str(256 * MIB),
        "pids.max": "max",
    }
    held = {"cpu": 2.0, "cpu_weight": 200, "memory": 256 * MIB, "pids": None} | OTHERS
    assert (kept(daemon), daemon.view("web")["limits"], differs(daemon)) == (now, held, {})
    daemon.restart()
    assert daemon.wait("web", "running")["limits"] == held
    assert kept(daemon) == now
    daemon.do("web", "restart")
    assert (kept(daemon), daemon.view("web")["limits"]) == (now, held)
    daemon.unit("web", rom_unit(emulator, rom_guest, limits='cpu = "25%"'))
    (daemon.units / "web.toml.d/90-changes.toml").unlink()
    daemon.post("/v1/reload")
    assert differs(daemon)["limits.cpu"] == ("2", "25%")
    said = daemon.ctl("apply", "web").stdout
    assert "limits.cpu" in said and daemon.view("web")["limits"]["cpu"] == 0.25
    assert differs(daemon) == {}


def test_files_of_qemu_are_limited(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """From its beginning; the least that may be said is enough for a small VM, and more is refused."""
    view = start(daemon, qemu, rom_guest, "nofile = 64")
    (line,) = [
        line for line in Path(f"/proc/{view['pid']}/limits").read_text().splitlines() if line.startswith("Max open")
    ]
    assert line.split()[3:5] == ["64", "64"] and view["limits"]["nofile"] == 64
    assert "64 open files" in daemon.ctl("status", "web").stdout
    assert len(list(Path(f"/proc/{view['pid']}/fd").iterdir())) < 64
    assert ask(daemon, {"limits": {"nofile": 100}})["result"]["keys"]["limits.nofile"]["applied"] == "start"
    daemon.unit("many", rom_unit(qemu, rom_guest, limits=f"nofile = {1 << 30}"))
    failed = finished(daemon, daemon.post("/v1/instances/many/start"))
    assert "prlimit: failed to set the NOFILE resource limit" in failed["error"]["detail"]


@pytest.mark.skipif(not Path("/dev/loop0").exists(), reason="this machine has no loop devices")
def test_devices_and_the_oom_score_are_limited(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """From the start and while it runs; a path without a device is a warning, and refused later."""
    limits = 'io-read-bps = ["/dev/loop0 1M"]\nio-write-iops = ["/proc/self 5"]\noom-score-adjust = 300'
    view = start(daemon, emulator, rom_guest, limits)
    assert view["limits"]["io_read_bps"] == {"7:0": MIB}
    assert view["warnings"] == ["limits.io-write-iops is not enforced: /proc/self is on no block device of the host"]
    score = Path(f"/proc/{view['pid']}/oom_score_adj")
    assert score.read_text() == "300\n" and view["limits"]["oom_score_adjust"] == 300
    assert "reads 1M/s of 7:0" in daemon.ctl("status", "web").stdout
    changes = {"io-read-bps": [], "io-write-iops": ["/dev/loop1 50"], "oom-score-adjust": 500}
    assert ask(daemon, {"limits": changes})["result"]["keys"]["limits.io-write-iops"]["limit"] == {"7:1": 50}
    held = daemon.view("web")["limits"]
    assert held["oom_score_adjust"] == 500
    assert (held["io_read_bps"], held["io_write_iops"], score.read_text()) == (None, {"7:1": 50}, "500\n")
    assert daemon.view("web")["warnings"] == []
    refused = ask(daemon, {"limits": {"io-read-iops": ["/absent 5"], "oom-score-adjust": 600}})
    assert "limits.io-read-iops cannot be enforced: could not look at /absent" in refused["error"]["detail"]
    assert (daemon.view("web")["limits"], score.read_text()) == (held, "500\n")
    daemon.restart()
    assert daemon.wait("web", "running")["limits"] == held


def test_limits_that_cannot_be_are_refused(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Too little for QEMU by its unit, too little for what it holds, and what the host does not keep; all or none."""
    start(daemon, emulator, rom_guest)
    for changes, words in (
        (
            {"limits": {"memory": "48M"}},
            "memory (48M) is less than QEMU needs 145M: 16M for the guest, 33M for QEMU itself and 96M",
        ),
        ({"memory": {"size": "1G"}}, "memory (160M) is less than QEMU needs 1153M: 1G for the guest"),
        ({"limits": {"pids": 10}}, "pids (10) is less than the 81 threads that QEMU may start"),
        ({"limits": {"cpu": "1", "memory-high": "64M"}}, f"limits.memory-high cannot be enforced: {V1_HAS_NOT}"),
    ):
        refused = ask(daemon, changes)
        assert refused["state"] == "failed"
        assert words in json.dumps(refused["error"])
    assert ask(daemon, {"limits": {"memory": "512M"}})["state"] == "succeeded"
    more = {"qom-type": "memory-backend-ram", "id": "more", "size": 160 * MIB, "prealloc": True}
    qmp(daemon, "web", "object-add", **more)
    refused = ask(daemon, {"limits": {"memory": "160M"}})
    assert "that it holds now, and it would be killed" in refused["error"]["detail"]
    assert daemon.view("web")["limits"] == {**HELD, "memory": 512 * MIB}
    assert differs(daemon) == {}


def test_what_tcg_needs_is_known_at_the_start(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The unit leaves open by what it runs, so 64M may be enough; here it is not, and QEMU is not executed."""
    daemon.unit("web", rom_unit(emulator, rom_guest, accel="auto"))
    view = daemon.do("web", "start")
    if view["machine"]["accel"] != "tcg":
        pytest.skip("this machine runs it by KVM")
    refused = ask(daemon, {"limits": {"memory": "64M"}})
    words = "limits.memory (64M) is less than QEMU needs 145M: 16M for the guest, 33M for QEMU itself and 96M for"
    assert words in refused["error"]["detail"]
    daemon.do("web", "kill")
    daemon.unit("web", rom_unit(emulator, rom_guest, accel="auto", limits='memory = "64M"'))
    failed = finished(daemon, daemon.post("/v1/instances/web/start"))
    assert (failed["error"]["code"], words in failed["error"]["detail"]) == ("start-failed", True)
    assert daemon.remains() == []
