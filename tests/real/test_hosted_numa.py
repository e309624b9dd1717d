"""Guests with NUMA nodes of their own on a host that has several: read back from its kernel.

Decides: that each node's memory and vCPUs are where its unit, or the placement, has them.
Must not: leave anything on the host, which is that of all tests of a session.
"""

from __future__ import annotations

import re

import pytest

from qsup.unit.quantity import parse_cpu_set
from tests.real.hosted import CPUS, HostedDaemon, rom_vm

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.slow, pytest.mark.hosted]

MIB = 1 << 20


def nodes(*hosts: str) -> str:
    """Tables of a guest with a node of one vCPU, and an equal part of the memory, for each of these."""
    return "".join(f'[[numa]]\nid = "n{n}"\nvcpus = "{n}"\nnodes = "{on}"\n' for n, on in enumerate(hosts))


def memory(daemon: HostedDaemon) -> dict[tuple[str, int], int]:
    """MiB of QEMU's bound memory that are there, by policy and by the node that has them (numa(7))."""
    found: dict[tuple[str, int], int] = {}
    for line in daemon.host.read(f"/proc/{daemon.view('web')['pid']}/numa_maps").splitlines():
        policy, facts = line.split()[1], dict(word.split("=", 1) for word in line.split() if "=" in word)
        if policy.startswith("bind"):
            kib = int(facts.get("kernelpagesize_kB", "4"))
            for name, pages in facts.items():
                if match := re.fullmatch(r"N(\d+)", name):
                    where = policy, int(match[1])
                    found[where] = found.get(where, 0) + int(pages) * kib
    return {where: kib >> 10 for where, kib in found.items()}


def vcpus(daemon: HostedDaemon) -> list[set[int]]:
    """Where the kernel lets each vCPU run."""
    threads = daemon.view("web")["cpus"]["threads"]
    line = "; ".join(f"grep Cpus_allowed_list /proc/{thread}/status" for thread in threads)
    return [set(parse_cpu_set(word.split()[1])) for word in daemon.host.run(line).splitlines()]


def free(daemon: HostedDaemon, node: int) -> int:
    """Free pages of 2M in a node's pool."""
    return int(daemon.host.read(f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/free_hugepages"))


def test_each_node_of_a_guest_is_on_the_node_that_it_names(hosts_daemon: HostedDaemon) -> None:
    """All of its memory, as it is taken at once; in huge pages from the pool of that node, which has them back."""
    text = rom_vm(size="32M", cpu="vcpus = 2", memory="prealloc = true", tables=nodes("1", "3"))
    hosts_daemon.unit("web", text)
    hosts_daemon.do("web", "start")
    assert memory(hosts_daemon) == {("bind:1", 1): 16, ("bind:3", 3): 16}
    assert hosts_daemon.view("web")["memory"]["nodes"] == [1, 3]
    hosts_daemon.do("web", "kill")
    before = [free(hosts_daemon, node) for node in (0, 1)]
    text = rom_vm(size="16M", cpu="vcpus = 2", memory='hugepages = "2M"', tables=nodes("0", "1"))
    hosts_daemon.unit("web", text)
    hosts_daemon.do("web", "start")
    assert memory(hosts_daemon) == {("bind:0", 0): 8, ("bind:1", 1): 8}
    assert [free(hosts_daemon, node) for node in (0, 1)] == [before[0] - 4, before[1] - 4]
    hosts_daemon.do("web", "kill")
    assert [free(hosts_daemon, node) for node in (0, 1)] == before


def test_nodes_of_a_guest_are_apart_and_near(hosts_daemon: HostedDaemon) -> None:
    """Where they are chosen: each is on one node of the host, with its vCPU and its memory, and none shares it."""
    cpu = 'vcpus = 2\npin = "auto"'
    hosts_daemon.unit("web", rom_vm(size="32M", cpu=cpu, memory="prealloc = true", tables=nodes("auto", "auto")))
    hosts_daemon.do("web", "start")
    homes = [node["nodes"][0] for node in hosts_daemon.view("web")["memory"]["guest_nodes"]]
    assert sorted(homes) == [0, 1]  # the nearest to each other
    assert memory(hosts_daemon) == {(f"bind:{home}", home): 16 for home in homes}
    for home, allowed in zip(homes, vcpus(hosts_daemon), strict=True):
        assert allowed
        assert allowed <= set(CPUS[home])
    hosts_daemon.do("web", "kill")
