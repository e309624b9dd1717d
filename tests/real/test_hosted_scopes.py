"""What a VM may take of a host where systemd keeps cgroups in version 2: its scope, kept by the kernel.

Decides: that what the unit says is what systemd shows and the kernel does, from the start to the end.
Must not: repeat what needs no controller of version 2 (`tests.real.test_booted`).
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from qsup.errors import MonitorClosed
from tests.real.growing import ask
from tests.real.hosted import COMMAND, HostedDaemon, rom_vm
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.slow, pytest.mark.hosted]

MIB = 1 << 20
SCOPE = "/sys/fs/cgroup/qsup.slice/qsup-web.scope"
LIMITS = """cpu = "50%"
cpu-weight = 200
memory = "200M"
memory-high = "190M"
swap = "0B"
pids = 200
io-read-bps = ["/dev/vda 1M"]
io-write-iops = ["/var/lib/qsup 50"]
require = true"""
#: The same as the kernel and as systemd have it.
FILES = {
    "cpu.max": "50000 100000",
    "cpu.weight": "200",
    "memory.max": str(200 * MIB),
    "memory.high": str(190 * MIB),
    "memory.swap.max": "0",
    "pids.max": "200",
}
PROPERTIES = {
    "CPUQuotaPerSecUSec": "500ms",
    "CPUWeight": "200",
    "MemoryMax": str(200 * MIB),
    "MemoryHigh": str(190 * MIB),
    "MemorySwapMax": "0",
    "TasksMax": "200",
}


def files(daemon: HostedDaemon) -> dict[str, str]:
    """What the kernel has, by the file."""
    text = daemon.host.run(f"cd {SCOPE} && head -n 1 {' '.join(FILES)}")
    parts = [part.strip().split(" <==\n") for part in text.split("==> ") if part.strip()]
    return {name: value for name, value in parts}


def properties(daemon: HostedDaemon, unit: str = "qsup-web.scope") -> dict[str, str]:
    """What systemd says of its scope."""
    lines = daemon.host.run("systemctl", "show", f"--property={','.join(PROPERTIES)}", unit).splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_limits_are_the_scopes_and_the_kernels(hosts_daemon: HostedDaemon) -> None:
    """All of them from the start; changed while it runs they are so for both, and nothing systemd does undoes it."""
    daemon = hosts_daemon
    daemon.unit("web", rom_vm(limits=LIMITS))
    view = daemon.do("web", "start")
    assert view["warnings"] == []
    device = daemon.host.run("cat", "/sys/block/vda/dev").strip()
    assert view["limits"] == {
        "cpu": 0.5,
        "vcpu_cpu": None,
        "emulator_cpu": None,
        "cpu_weight": 200,
        "memory": 200 * MIB,
        "memory_high": 190 * MIB,
        "pids": 200,
        "swap": 0,
        "io_weight": view["limits"]["io_weight"],
        "io_read_bps": {device: MIB},
        "io_write_bps": None,
        "io_read_iops": None,
        "io_write_iops": {device: 50},
        "cpuset_cpus": None,
        "cpuset_mems": None,
        "oom_score_adjust": None,
        "nofile": None,
    }
    assert (files(daemon), properties(daemon)) == (FILES, PROPERTIES)
    assert daemon.host.read(f"{SCOPE}/io.max").split() == [device, f"rbps={MIB}", "wbps=max", "riops=max", "wiops=50"]
    assert daemon.host.read(f"{SCOPE}/cgroup.procs").split() == [str(view["pid"])]

    changes: dict[str, Any] = {"cpu": "2", "memory-high": "0B", "pids": 300, "io-read-bps": []}
    assert ask(daemon, {"limits": changes}, wait=COMMAND)["state"] == "succeeded"
    files_now = FILES | {"cpu.max": "200000 100000", "memory.high": "max", "pids.max": "300"}
    properties_now = PROPERTIES | {"CPUQuotaPerSecUSec": "2s", "MemoryHigh": "infinity", "TasksMax": "300"}
    assert (files(daemon), properties(daemon)) == (files_now, properties_now)
    held = daemon.view("web")["limits"]
    assert (held["cpu"], held["memory_high"], held["pids"], held["io_read_bps"]) == (2.0, None, 300, None)
    refused = ask(daemon, {"limits": {"memory": "64M", "pids": 400}}, wait=COMMAND)
    assert refused["state"] == "failed"
    daemon.host.run("systemctl", "daemon-reload")
    assert (files(daemon), properties(daemon)) == (files_now, properties_now)

    daemon.host.run("systemctl", "set-property", "--runtime", "qsup-web.scope", "CPUWeight=300")
    daemon.host.run("systemctl", "restart", "qsupd")
    again = daemon.wait("web", "running")
    assert (again["pid"], again["warnings"]) == (view["pid"], [])
    assert again["limits"] == held | {"cpu_weight": 300}
    assert "CPU 200%, CPU weight 300" in daemon.ctl("status", "web").stdout


def test_a_part_of_a_cpu_is_that_part(hosts_daemon: HostedDaemon) -> None:
    """Within five points over ten seconds, by the host's clock, of a guest that wants a whole one."""
    daemon = hosts_daemon
    daemon.unit("web", rom_vm(limits='cpu = "30%"\nrequire = true'))
    daemon.do("web", "start")
    daemon.type("web", "S", after="")

    def had() -> tuple[float, float]:
        text = daemon.host.run(f"cat /proc/uptime; grep usage_usec {SCOPE}/cpu.stat")
        uptime, _, _, usage = text.split()
        return float(uptime), int(usage) / 1e6

    began = had()
    poll_until(lambda: had()[0] - began[0] >= 2, "it has begun to spin", seconds=COMMAND)
    began = had()
    poll_until(lambda: had()[0] - began[0] >= 10, "ten seconds are over", seconds=COMMAND)
    ended = had()
    assert 0.25 <= (ended[1] - began[1]) / (ended[0] - began[0]) <= 0.35


def test_too_much_memory_ends_that_vm_alone(hosts_daemon: HostedDaemon) -> None:
    """The cause says so, however soon systemd has removed its scope; the VM beside it goes on. So it does again."""
    daemon = hosts_daemon
    for vm in ("web", "db"):
        daemon.unit(vm, rom_vm(limits='memory = "200M"\nswap = "0B"\nrequire = true'))
        daemon.do(vm, "start")
    before = daemon.view("db")
    for _ in range(3):
        with daemon.client() as client, pytest.raises(MonitorClosed):
            more = {"qom-type": "memory-backend-ram", "id": "more", "size": 256 * MIB, "prealloc": True}
            body = json.dumps({"execute": "object-add", "arguments": more}).encode()
            client.exchange("POST", "/v1/instances/web/qmp", body=body, timeout=COMMAND)
        ended = daemon.wait("web", "crashed")
        assert ended["cause"]["kind"] == "oom"
        assert ended["cause"]["detail"].endswith("memory ran out; limits.memory is 200M")
        daemon.do("web", "start")
    daemon.host.run("systemctl", "kill", "--signal=KILL", "qsup-web.scope")
    assert daemon.wait("web", "crashed")["cause"]["kind"] == "signal"
    assert (daemon.view("db")["pid"], daemon.view("db")["substate"]) == (before["pid"], "running")


def fence(daemon: HostedDaemon) -> tuple[str, str]:
    """The CPUs and nodes that the kernel keeps a VM to."""
    text = daemon.host.run(f"cd {SCOPE} && cat cpuset.cpus.effective cpuset.mems.effective")
    cpus, mems = text.split()
    return cpus, mems


def test_nothing_leads_out_of_the_fence(hosts_daemon: HostedDaemon) -> None:
    """Of the scope: not a taskset, no change of it moves a pinned thread for good, and systemd does not undo it."""
    daemon = hosts_daemon
    limits = 'cpuset-cpus = "2-5"\ncpuset-mems = "1-2"\nrequire = true'
    pins = 'vcpus = 2\npin = ["2", "4"]\nemulator-pin = "3"'
    daemon.unit("web", rom_vm(cpu=pins, limits=limits, memory="prealloc = true"))
    view = daemon.do("web", "start")
    assert (view["warnings"], view["limits"]["cpuset_cpus"], view["limits"]["cpuset_mems"]) == ([], "2-5", "1-2")
    assert (fence(daemon), _threads(daemon)) == (("2-5", "1-2"), ["2", "4", "3"])
    maps = daemon.host.read(f"/proc/{view['pid']}/numa_maps")
    assert " N1=" in maps and "anon=" in maps and " N0=" not in _anonymous(maps) and " N3=" not in maps
    daemon.host.run(f"taskset -pc 0-7 {view['cpus']['threads'][0]}")
    poll_until(lambda: _threads(daemon) == ["2", "4", "3"], "it is back", seconds=COMMAND)
    assert daemon.host.call(f"taskset -pc 0 {view['cpus']['threads'][0]}").returncode != 0
    drifts = daemon.get("/v1/instances/web/cpus")["drifts"]

    refused = ask(daemon, {"limits": {"cpuset-cpus": "4-5"}}, wait=COMMAND)
    assert "outside of limits.cpuset-cpus (4-5)" in json.dumps(refused["error"])
    changes = {"limits": {"cpuset-cpus": "4-5", "cpuset-mems": "2"}, "cpu": {"pin": ["4", "5"], "emulator-pin": "4"}}
    changed = ask(daemon, changes, wait=COMMAND)
    assert changed["state"] == "succeeded", changed["error"]
    assert (fence(daemon), _threads(daemon)) == (("4-5", "2"), ["4", "5", "4"])
    assert " N1=" not in _anonymous(daemon.host.read(f"/proc/{view['pid']}/numa_maps")), "its memory has followed"
    daemon.host.run("systemctl daemon-reload")
    assert (fence(daemon), daemon.host.property("qsup-web.scope", "AllowedCPUs")) == (("4-5", "2"), "4-5")
    daemon.host.run("systemctl", "restart", "qsupd")
    again = daemon.wait("web", "running")
    assert (again["pid"], again["limits"]["cpuset_cpus"], again["warnings"]) == (view["pid"], "4-5", [])
    assert _threads(daemon) == ["4", "5", "4"]
    freed = ask(daemon, {"limits": {"cpuset-cpus": "", "cpuset-mems": ""}}, wait=COMMAND)
    assert freed["state"] == "succeeded", freed["error"]
    daemon.host.run("systemctl daemon-reload")
    assert (fence(daemon), _threads(daemon)) == (("0-7", "0-3"), ["4", "5", "4"])
    assert daemon.host.property("qsup-web.scope", "AllowedCPUs") == ""
    assert ask(daemon, {"cpu": {"pin": ["0", "1"]}}, wait=COMMAND)["state"] == "succeeded"
    assert _threads(daemon) == ["0", "1", "4"]
    assert daemon.get("/v1/instances/web/cpus")["drifts"] <= drifts, "nobody has moved anything since"


def test_an_automatic_place_is_within_the_fence(hosts_daemon: HostedDaemon) -> None:
    """CPUs and nodes; it follows when that changes, and when a CPU of it goes offline and comes back."""
    daemon = hosts_daemon
    cpu, memory = 'vcpus = 2\npin = "auto"\nexclusive = true', 'nodes = "auto"'
    daemon.unit("web", rom_vm(cpu=cpu, memory=memory, limits='cpuset-cpus = "2-6"\ncpuset-mems = "2"'))
    view = daemon.do("web", "start")
    assert (view["memory"]["nodes"], _threads(daemon)[:2]) == ([2], ["4", "5"])
    assert "cpuset-mems keeps its memory to node 2" in daemon.ctl("cpus", "web", "--explain").stdout
    daemon.unit("free", rom_vm(cpu="vcpus = 2", limits='cpuset-cpus = "2-3"'))
    daemon.do("free", "start")
    assert set(_threads(daemon, "free")) == {"2-3"}
    daemon.host.run("echo 0 >/sys/devices/system/cpu/cpu3/online")
    try:
        poll_until(lambda: set(_threads(daemon, "free")) == {"2"}, "one CPU is left of it", seconds=COMMAND)
        poll_until(lambda: _threads(daemon)[:2] == ["4", "5"], "the others are where they belong", seconds=COMMAND)
    finally:
        daemon.host.run("echo 1 >/sys/devices/system/cpu/cpu3/online")
    poll_until(lambda: set(_threads(daemon, "free")) == {"2-3"}, "it is whole again", seconds=COMMAND)
    poll_until(lambda: _threads(daemon)[:2] == ["4", "5"], "the others are where they belong", seconds=COMMAND)
    assert daemon.get("/v1/instances/web/cpus")["drifts"] == 0
    refused = ask(daemon, {"limits": {"cpuset-mems": "1"}}, wait=COMMAND)
    assert "lacks node 2, which its memory is bound to" in json.dumps(refused["error"])


def _threads(daemon: HostedDaemon, vm: str = "web") -> list[str]:
    """Where the kernel lets each vCPU run, in their order, and all other threads, each set once."""
    view = daemon.view(vm)
    rows = daemon.host.run(f"grep Cpus_allowed_list /proc/{view['pid']}/task/*/status").splitlines()
    found = {int(row.split("/")[4]): row.split()[1] for row in rows}
    vcpus = view["cpus"]["threads"]
    return [found[thread] for thread in vcpus] + sorted({found[thread] for thread in found.keys() - set(vcpus)})


def _anonymous(maps: str) -> str:
    """The lines of its own memory: pages of files are where somebody read them first."""
    return "\n".join(line for line in maps.splitlines() if "anon=" in line and "file=" not in line)


def test_a_masked_slice_is_why_a_vm_with_limits_does_not_start(hosts_daemon: HostedDaemon) -> None:
    """Where they are required: its guest never runs, and nothing of it is left; without that it is a warning."""
    daemon = hosts_daemon
    daemon.unit("web", rom_vm(limits='cpu = "50%"\nrequire = true'))
    daemon.host.run("systemctl mask --runtime qsup.slice")
    try:
        failed = daemon.power("web", "start")
        assert (failed["state"], failed["error"]["code"]) == ("failed", "start-failed")
        assert "it has no scope of systemd's: systemd: Unit qsup.slice is masked." in failed["error"]["detail"]
        assert "limits.cpu is not enforced" in failed["error"]["detail"]
        assert daemon.view("web")["pid"] is None
        assert daemon.host.run("pgrep -c qemu-system", check=False).strip() == "0"
    finally:
        daemon.host.run("systemctl unmask --runtime qsup.slice")
    assert daemon.do("web", "start")["limits"]["cpu"] == 0.5
