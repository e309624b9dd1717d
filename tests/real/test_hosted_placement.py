"""Which CPUs VMs get on a host of several NUMA nodes, two threads a core, one CPU of it isolated."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from qsup.unit.quantity import parse_cpu_set
from tests.real.hosted import COMMAND, CPUS, ISOLATED, HostedDaemon, rom_vm
from tests.real.hotplug import finished
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.slow, pytest.mark.hosted]

WITHIN = 15.0


def allowed(daemon: HostedDaemon, vm: str) -> list[frozenset[int]]:
    """Where the kernel lets each thread of QEMU run; the first are the vCPUs, in their order."""
    view = daemon.view(vm)
    rows = daemon.host.run(f"grep Cpus_allowed_list /proc/{view['pid']}/task/*/status").splitlines()
    by_thread = {int(row.split("/")[4]): frozenset(parse_cpu_set(row.split()[1])) for row in rows}
    vcpus = view["cpus"]["threads"]
    return [by_thread[thread] for thread in (*vcpus, *(by_thread.keys() - set(vcpus)))]


def union(sets: Iterable[frozenset[int]]) -> set[int]:
    """All that is in any."""
    return set().union(*sets)


def test_a_vm_is_kept_on_one_node(hosts_daemon: HostedDaemon) -> None:
    """All its threads and its memory; the next goes where fewer are; nothing is put on an isolated CPU."""
    nodes = []
    for name in ("web", "db"):
        hosts_daemon.unit(name, rom_vm(cpu='vcpus = 2\npin = "auto"', memory='nodes = "auto"\nprealloc = true'))
        hosts_daemon.do(name, "start")
        cpus = union(allowed(hosts_daemon, name))
        (node,) = [number for number, of_node in enumerate(CPUS) if cpus <= set(of_node)]
        assert ISOLATED not in cpus
        assert hosts_daemon.view(name)["memory"]["nodes"] == [node]
        maps = hosts_daemon.host.read(f"/proc/{hosts_daemon.view(name)['pid']}/numa_maps").splitlines()
        assert any(f" bind:{node} " in line and f" N{node}=4096 " in line for line in maps), "16 MiB are there"
        assert f"node {node}" in hosts_daemon.ctl("cpus", name, "--explain").stdout.lower()
        nodes.append(node)
    assert nodes[0] != nodes[1]


def test_no_cpu_is_two_vms_own(hosts_daemon: HostedDaemon) -> None:
    """Four that start at once get a whole core each as long as there are three; all others have left these."""
    hosts_daemon.unit("shared", rom_vm(cpu="vcpus = 2"))
    hosts_daemon.do("shared", "start")
    own = ("a", "b", "c", "d")
    for name in own:
        hosts_daemon.unit(name, rom_vm(cpu='vcpus = 2\npin = "auto"\nexclusive = true'))
    begun = [hosts_daemon.post(f"/v1/instances/{name}/start") for name in own]
    ended = {name: finished(hosts_daemon, each, seconds=COMMAND) for name, each in zip(own, begun, strict=True)}
    started = [name for name in own if ended[name]["state"] == "succeeded"]
    (refused,) = set(own) - set(started)
    assert "wants 2 CPUs of its own on whole cores, and 0 can be had" in ended[refused]["error"]["detail"]
    cores = {name: sorted(union(allowed(hosts_daemon, name)[:2])) for name in started}
    assert sorted(cores.values()) == [[0, 1], [2, 3], [4, 5]]
    poll_until(lambda: union(allowed(hosts_daemon, "shared")) == {6}, "the others have left", seconds=WITHIN)
    hosts_daemon.do(started[0], "kill")
    hosts_daemon.do(refused, "start")
    assert union(allowed(hosts_daemon, refused)[:2]) == set(cores[started[0]])
