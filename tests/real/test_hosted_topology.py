"""A host of several NUMA nodes as qsup sees it, and CPUs of it that go: real sysfs, real hotplug of the kernel.

Decides: that what `tests.real.hosted` ordered is what is shown, and what becomes of a VM whose CPU goes.
Must not: leave a CPU offline: the host is that of all tests of a session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.real.hosted import CPUS, DISTANCES, ISOLATED, MEMORY, PAGES, HostedDaemon, rom_vm
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.slow, pytest.mark.hosted]

MIB, GIB = 1 << 20, 1 << 30
#: The reconciler looks every four seconds, and so puts back within five; emulated processors get some more.
WITHIN = 15.0


def test_nodes_are_as_they_were_ordered(hosts_daemon: HostedDaemon) -> None:
    """Their CPUs, distances, memory and pools of both sizes; one has no CPU, and is a node like any other."""
    host = hosts_daemon.get("/v1/topology")
    assert [node["number"] for node in host["nodes"]] == [0, 1, 2, 3]
    for node, ordered in zip(host["nodes"], MEMORY, strict=True):
        assert 0.9 * ordered * GIB < node["memory"] <= ordered * GIB
        assert 0 < node["free"] < node["memory"]
        row = DISTANCES[node["number"]]
        assert node["distances"] == {str(other): distance for other, distance in enumerate(row)}
        pools = {pool["size"]: (pool["total"], pool["free"]) for pool in node["hugepages"]}
        two, one = (PAGES[size][node["number"]] for size in ("2M", "1G"))
        assert pools == {2 * MIB: (two, two), GIB: (one, one)}
    for number, cpus in enumerate(CPUS):
        assert tuple(cpu["number"] for cpu in host["cpus"] if cpu["node"] == number) == cpus


def test_cores_packages_and_caches_are_as_they_were_ordered(hosts_daemon: HostedDaemon) -> None:
    """Two threads a core, two cores a package; what they share; the CPU that Linux was told to leave alone."""
    host = hosts_daemon.get("/v1/topology")
    cores: dict[tuple[int, int], list[int]] = {}
    for cpu in host["cpus"]:
        cores.setdefault((cpu["package"], cpu["core"]), []).append(cpu["number"])
        assert (cpu["online"], cpu["allowed"], cpu["isolated"]) == (True, True, cpu["number"] == ISOLATED)
    assert sorted(cores.values()) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert Counter(package for package, _ in cores) == {0: 2, 1: 2}
    shared = {level: sorted(cache["cpus"] for cache in host["caches"] if cache["level"] == level) for level in (2, 3)}
    assert shared == {2: sorted(cores.values()), 3: [[0, 1, 2, 3], [4, 5, 6, 7]]}
    drawn = hosts_daemon.ctl("topology").stdout
    assert "4 nodes, 2 packages, 4 cores, 8 CPUs (1 isolated)" in drawn
    assert "no CPUs" in drawn.partition("node 3")[2]


@contextmanager
def offline(daemon: HostedDaemon, cpu: int) -> Iterator[None]:
    """A CPU that the kernel has put out of use."""
    file = f"/sys/devices/system/cpu/cpu{cpu}/online"
    daemon.host.write(file, "0")
    try:
        yield
    finally:
        daemon.host.write(file, "1")


def vcpus(daemon: HostedDaemon, vm: str = "web") -> list[str]:
    """Where the kernel lets each vCPU run, in their order."""
    threads = daemon.view(vm)["cpus"]["threads"]
    line = "; ".join(f"grep Cpus_allowed_list /proc/{thread}/status" for thread in threads)
    return [word.split()[1] for word in daemon.host.run(line).splitlines()]


def test_a_cpu_that_goes_under_a_vm_and_comes_back(hosts_daemon: HostedDaemon) -> None:
    """Linux lets all threads run anywhere then: each is put where its CPUs are, and that one when its CPU is back."""
    hosts_daemon.unit("web", rom_vm(cpu='vcpus = 2\npin = ["4", "5"]\nemulator-pin = "4"'))
    hosts_daemon.do("web", "start")
    assert vcpus(hosts_daemon) == ["4", "5"]
    with hosts_daemon.events() as events:
        with offline(hosts_daemon, 5):
            gone = events.next("pin-drift", seconds=WITHIN)["data"]
            assert "none of the CPUs 5 that it is pinned to is online" in gone["detail"]
            # the kernel may let threads run anywhere once more after it has told that the CPU goes
            poll_until(lambda: vcpus(hosts_daemon) == ["4", "0-4,6-7"], "the other is where it was", seconds=WITHIN)
            assert hosts_daemon.view("web")["substate"] == "running"
            shown = {cpu["number"]: cpu for cpu in hosts_daemon.get("/v1/topology")["cpus"]}
            assert [(shown[cpu]["online"], shown[cpu]["node"]) for cpu in (4, 5)] == [(True, 2), (False, 2)]
        poll_until(lambda: vcpus(hosts_daemon) == ["4", "5"], "back", seconds=WITHIN)
        back = events.next("pin-drift", seconds=WITHIN)["data"]
        assert "all threads are where they belong" in back["detail"]
    drifts = hosts_daemon.get("/v1/instances/web/cpus")["drifts"]
    assert drifts >= len(gone["threads"]) + len(back["threads"])
    with hosts_daemon.client() as client:
        metric = f'qsup_instance_pin_drifts_total{{instance="web"}} {drifts:.1f}'
        assert metric.encode() in client.exchange("GET", "/metrics")


def test_nothing_is_started_on_a_cpu_that_is_offline(hosts_daemon: HostedDaemon) -> None:
    """A start that names it fails before QEMU is there, and says so; with the CPU it succeeds."""
    hosts_daemon.unit("web", rom_vm(cpu='pin = ["3"]'))
    with offline(hosts_daemon, 3):
        failed = hosts_daemon.power("web", "start")
        assert (failed["state"], failed["error"]["code"]) == ("failed", "start-failed")
        assert "CPU 3 is offline" in failed["error"]["detail"]
        assert hosts_daemon.view("web")["pid"] is None
    hosts_daemon.do("web", "start")
    assert vcpus(hosts_daemon) == ["3"]
