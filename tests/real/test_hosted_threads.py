"""Limits of a VM's vCPUs apart from those of its other threads, where systemd keeps cgroups in version 2.

Decides: that the groups are threaded cgroups within the VM's scope, which stays what it was for systemd and the kernel.
Must not: repeat what is the same in version 1 (`tests.real.test_thread_groups`).
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
GROUPS = ("vcpu", "emulator")
TWO = "vcpus = 2\nmax-vcpus = 3"
#: What is in the wrong group is put right after five seconds at most; emulated processors get some more.
WITHIN = 15.0


def start(daemon: HostedDaemon, limits: str) -> Any:
    """A VM of the ROM guest."""
    daemon.unit("web", rom_vm(cpu=TWO, limits=limits))
    return daemon.do("web", "start")


def groups(daemon: HostedDaemon) -> dict[str, set[int]]:
    """The threads of each group, and of none."""
    text = daemon.host.run(
        f"cd {SCOPE} && for group in . $(ls -d */ 2>/dev/null); do echo $group $(cat $group/cgroup.threads); done"
    )
    lines = (line.split() for line in text.splitlines())
    return {name.strip("./"): set(map(int, threads)) for name, *threads in lines}


def apart(daemon: HostedDaemon) -> dict[str, set[int]]:
    """How its threads should be parted."""
    view = daemon.view("web")
    vcpus = set(view["cpus"]["threads"])
    threads = set(map(int, daemon.host.run("ls", f"/proc/{view['pid']}/task").split()))
    return {"": set(), "vcpu": vcpus, "emulator": threads - vcpus}


def said(daemon: HostedDaemon, file: str) -> list[str]:
    """What a file says of the scope and of each group."""
    return daemon.host.run(f"cd {SCOPE} && cat {file} {' '.join(f'{group}/{file}' for group in GROUPS)}").splitlines()


def held(daemon: HostedDaemon) -> tuple[Any, Any, Any]:
    """What is shown."""
    limits = daemon.view("web")["limits"]
    return limits["cpu"], limits["vcpu_cpu"], limits["emulator_cpu"]


def gone(daemon: HostedDaemon) -> bool:
    """Whether nothing is left of it."""
    return daemon.host.run(f"ls -d {SCOPE}", check=False) == ""


def test_threads_are_in_groups_of_the_scope(hosts_daemon: HostedDaemon) -> None:
    """From the start to the end; whatever systemd is told or does, and under the next daemon."""
    daemon = hosts_daemon
    view = start(
        daemon, 'cpu = "1"\nvcpu-cpu = "30%"\nemulator-cpu = "50%"\nmemory = "200M"\npids = 200\nrequire = true'
    )
    assert view["warnings"] == []
    assert len(groups(daemon)["vcpu"]) == 2 and groups(daemon) == apart(daemon)
    assert said(daemon, "cgroup.type") == ["domain threaded", "threaded", "threaded"]
    quotas = ["100000 100000", "30000 100000", "50000 100000"]
    assert (said(daemon, "cpu.max"), held(daemon)) == (quotas, (1.0, 0.3, 0.5))
    assert daemon.host.read(f"{SCOPE}/cgroup.procs").split() == [str(view["pid"])]
    assert daemon.host.read(f"{SCOPE}/memory.max").strip() == str(200 * MIB)

    daemon.host.run("systemctl", "set-property", "--runtime", "qsup-web.scope", "CPUWeight=300")
    daemon.host.run("systemctl", "daemon-reload")
    daemon.host.run("systemctl", "restart", "qsupd")
    again = daemon.wait("web", "running")
    assert (again["pid"], again["warnings"], held(daemon)) == (view["pid"], [], (1.0, 0.3, 0.5))
    assert (said(daemon, "cpu.max"), groups(daemon)) == (quotas, apart(daemon))
    assert daemon.host.read(f"{SCOPE}/cpu.weight").strip() == "300"

    assert ask(daemon, {"cpu": {"vcpus": 3}}, wait=COMMAND)["state"] == "succeeded"
    assert len(groups(daemon)["vcpu"]) == 3 and groups(daemon) == apart(daemon)
    daemon.host.write(f"{SCOPE}/vcpu/cgroup.threads", str(view["pid"]))
    daemon.host.write(f"{SCOPE}/emulator/cgroup.threads", str(view["cpus"]["threads"][0]))
    poll_until(lambda: groups(daemon) == apart(daemon), "they are back", seconds=WITHIN)
    daemon.do("web", "kill")
    assert gone(daemon)


def test_groups_come_and_go_while_it_runs(hosts_daemon: HostedDaemon) -> None:
    """The scope is an ordinary one again without them, with all that it keeps; an OOM kill is told as such."""
    daemon = hosts_daemon
    start(daemon, 'memory = "200M"\nswap = "0B"\nrequire = true')
    every = set().union(*apart(daemon).values())
    assert groups(daemon) == {"": every}
    changes: dict[str, Any] = {"cpu": "60%", "vcpu-cpu": "50%"}
    assert ask(daemon, {"limits": changes}, wait=COMMAND)["state"] == "succeeded"
    assert (groups(daemon), held(daemon)) == (apart(daemon), (0.6, 0.5, None))
    assert ask(daemon, {"limits": {"vcpu-cpu": "", "pids": 300}}, wait=COMMAND)["state"] == "succeeded"
    assert (groups(daemon), held(daemon)) == ({"": every}, (0.6, None, None))
    assert daemon.host.run(f"cat {SCOPE}/cgroup.type {SCOPE}/cgroup.subtree_control").split() == ["domain"]
    assert ask(daemon, {"limits": {"emulator-cpu": "50%"}}, wait=COMMAND)["state"] == "succeeded"
    assert groups(daemon) == apart(daemon)
    with daemon.client() as client, pytest.raises(MonitorClosed):
        more = {"qom-type": "memory-backend-ram", "id": "more", "size": 256 * MIB, "prealloc": True}
        body = json.dumps({"execute": "object-add", "arguments": more}).encode()
        client.exchange("POST", "/v1/instances/web/qmp", body=body, timeout=COMMAND)
    ended = daemon.wait("web", "crashed")
    assert ended["cause"]["detail"].endswith("memory ran out; limits.memory is 200M")
    assert gone(daemon)


def test_busy_vcpus_are_held_and_the_main_loop_is_not(hosts_daemon: HostedDaemon) -> None:
    """Within five points over ten seconds, by the host's clock; the main loop is hardly ever kept waiting.

    That may be once or twice all the same: an emulated host takes long for what it does.
    """
    daemon = hosts_daemon
    start(daemon, 'vcpu-cpu = "30%"\nemulator-cpu = "90%"\nrequire = true')
    daemon.type("web", "S", after="")

    def had() -> tuple[float, float, int]:
        text = daemon.host.run(f"cat /proc/uptime; grep -h -e usage_usec -e nr_throttled {SCOPE}/vcpu/cpu.stat")
        uptime, _, _, usage, _, times = text.split()
        return float(uptime), int(usage) / 1e6, int(times)

    began = had()
    poll_until(lambda: had()[0] - began[0] >= 2, "it has begun to spin", seconds=COMMAND)
    began = had()
    before = int(daemon.host.run(f"awk '/nr_throttled/ {{print $2}}' {SCOPE}/emulator/cpu.stat"))
    poll_until(lambda: had()[0] - began[0] >= 10, "ten seconds are over", seconds=COMMAND)
    ended = had()
    assert 0.25 <= (ended[1] - began[1]) / (ended[0] - began[0]) <= 0.35
    assert ended[2] - began[2] > 50
    assert int(daemon.host.run(f"awk '/nr_throttled/ {{print $2}}' {SCOPE}/emulator/cpu.stat")) - before <= 5


def test_a_masked_slice_is_why_it_does_not_start(hosts_daemon: HostedDaemon) -> None:
    """Where that is required; else it is a warning."""
    daemon = hosts_daemon
    daemon.unit("web", rom_vm(cpu=TWO, limits='vcpu-cpu = "50%"\nrequire = true'))
    daemon.host.run("systemctl mask --runtime qsup.slice")
    try:
        failed = daemon.power("web", "start")
        assert (failed["state"], failed["error"]["code"]) == ("failed", "start-failed")
        assert "limits.vcpu-cpu is not enforced: the cpu controller cannot be handed down" in failed["error"]["detail"]
        daemon.unit("web", rom_vm(cpu=TWO, limits='vcpu-cpu = "50%"'))
        view = daemon.do("web", "start")
        assert any("limits.vcpu-cpu is not enforced" in warning for warning in view["warnings"])
        refused = ask(daemon, {"limits": {"emulator-cpu": "50%"}}, wait=COMMAND)
        assert "limits.emulator-cpu cannot be enforced" in refused["error"]["detail"]
    finally:
        daemon.host.run("systemctl unmask --runtime qsup.slice")
