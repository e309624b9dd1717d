"""Memory on a host of several NUMA nodes: where the kernel says it is, and whose huge pages it has.

Decides: that `[memory]` means there what it says; one node of the host has memory and no CPU.
Must not: repeat what one node is enough for (`tests.real.test_memory_placement`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.real.hosted import COMMAND, PAGES, HostedDaemon, rom_vm
from tests.real.hotplug import finished

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.slow, pytest.mark.hosted]

MIB, GIB = 1 << 20, 1 << 30


def start(daemon: HostedDaemon, **units: str) -> None:
    """Start VMs, all at once: most of a start is QEMU's own, and there are many processors."""
    for name, text in units.items():
        daemon.unit(name, text)
    for operation in [daemon.post(f"/v1/instances/{name}/start") for name in units]:
        ended = finished(daemon, operation, seconds=COMMAND)
        assert ended["state"] == "succeeded", ended


def where(daemon: HostedDaemon, vm: str, policy: str) -> dict[int, int]:
    """QEMU's memory with a policy (numa(7)): how many bytes of it are on each node."""
    found: dict[int, int] = {}
    for line in daemon.host.read(f"/proc/{daemon.view(vm)['pid']}/numa_maps").splitlines():
        if line.split()[1] == policy:
            page = re.search(r" kernelpagesize_kB=(\d+)", line)
            for node, pages in re.findall(r" N(\d+)=(\d+)", line):
                assert page is not None
                found[int(node)] = found.get(int(node), 0) + int(pages) * (int(page[1]) << 10)
    return found


def free(daemon: HostedDaemon, size: int) -> tuple[int, ...]:
    """How many huge pages of a size each node has to give."""
    nodes = daemon.get("/v1/topology")["nodes"]
    return tuple(pool["free"] for node in nodes for pool in node["hugepages"] if pool["size"] == size)


def refusal(daemon: HostedDaemon, vm: str) -> str:
    """Why a start fails, and what to do; there is no QEMU then."""
    ended = daemon.power(vm, "start")
    assert (ended["state"], daemon.view(vm)["pid"]) == ("failed", None)
    return f"{ended['error']['detail']}; {ended['error']['hint']}"


def test_memory_is_on_the_nodes_of_the_unit(hosts_daemon: HostedDaemon) -> None:
    """Bound to one, without a CPU as well; by turns on two; where it is preferred as long as there is room."""
    start(
        hosts_daemon,
        bound=rom_vm(memory='prealloc = true\nnodes = "1"', cpu='pin = ["0"]'),
        far=rom_vm(memory='prealloc = true\nnodes = "3"'),
        turns=rom_vm(memory='prealloc = true\nnodes = "0-1"\npolicy = "interleave"'),
        liked=rom_vm(memory='prealloc = true\nnodes = "2"\npolicy = "preferred"', cpu='pin = ["0"]'),
    )
    assert where(hosts_daemon, "bound", "bind:1") == {1: 16 * MIB}
    assert where(hosts_daemon, "far", "bind:3") == {3: 16 * MIB}
    assert where(hosts_daemon, "turns", "interleave:0-1") == {0: 8 * MIB, 1: 8 * MIB}
    assert where(hosts_daemon, "liked", "prefer:2") == {2: 16 * MIB}
    assert hosts_daemon.view("turns")["memory"]["nodes"] == [0, 1]


def test_huge_pages_are_of_the_nodes_pool(hosts_daemon: HostedDaemon) -> None:
    """Of both sizes, from the node of the unit alone; one for which that has too few is refused; all are given back."""
    start(
        hosts_daemon,
        two=rom_vm(memory='hugepages = "2M"\nnodes = "3"'),
        one=rom_vm(memory='hugepages = "1G"\nnodes = "2"', size="1G"),
    )
    assert free(hosts_daemon, 2 * MIB) == (32, 64, 32, 8)
    assert free(hosts_daemon, GIB) == (0, 1, 0, 0)
    assert where(hosts_daemon, "two", "bind:3") == {3: 16 * MIB}
    assert where(hosts_daemon, "one", "bind:2") == {2: GIB}
    hosts_daemon.unit("more", rom_vm(memory='hugepages = "2M"\nnodes = "3"', size="18M"))
    words = "wants 9 huge pages of 2M on node 3 for 18M of memory, and 8 are free: 1 are missing; reserve more"
    assert refusal(hosts_daemon, "more").startswith(words)
    for node in (0, 2):
        hosts_daemon.unit("other", rom_vm(memory=f'hugepages = "1G"\nnodes = "{node}"', size="1G"))
        words = f"wants 1 huge pages of 1G on node {node} for 1G of memory, and 0 are free: 1 are missing; "
        assert refusal(hosts_daemon, "other").startswith(words)
    for name in ("one", "two"):
        hosts_daemon.do(name, "kill")
    assert {size: free(hosts_daemon, size) for size in (2 * MIB, GIB)} == {2 * MIB: PAGES["2M"], GIB: PAGES["1G"]}
    hosts_daemon.do("more", "start")
    assert free(hosts_daemon, 2 * MIB) == (32, 64, 32, 7)


def status(daemon: HostedDaemon, vm: str, key: str) -> int:
    """A figure of a VM's process in bytes, such as ``VmLck``."""
    return int(daemon.host.run(f"awk '/^{key}:/ {{print $2}}' /proc/{daemon.view(vm)['pid']}/status")) << 10


@contextmanager
def service_with(daemon: HostedDaemon, *settings: str) -> Iterator[None]:
    """The daemon's service with further settings, and as it was afterwards."""
    dropin = "/run/systemd/system/qsupd.service.d/test.conf"
    daemon.host.write(dropin, "\n".join(("[Service]", *settings, "")))
    try:
        daemon.host.run("systemctl daemon-reload && systemctl restart qsupd", seconds=2 * COMMAND)
        yield
    finally:
        daemon.host.run(f"rm {dropin} && systemctl daemon-reload && systemctl restart qsupd", seconds=2 * COMMAND)


def test_memory_is_locked_where_the_service_may(hosts_daemon: HostedDaemon) -> None:
    """All of QEMU's; a service without CAP_SYS_RESOURCE whose own limit is low refuses, and says what to raise."""
    unit = rom_vm(memory="lock = true")
    start(hosts_daemon, web=unit)
    assert status(hosts_daemon, "web", "VmLck") > 16 * MIB
    hosts_daemon.do("web", "kill")
    with service_with(hosts_daemon, "LimitMEMLOCK=8M", "CapabilityBoundingSet=~CAP_SYS_RESOURCE"):
        words = "could not let it lock all of its memory; raise LimitMEMLOCK of the daemon"
        assert refusal(hosts_daemon, "web") == words
    start(hosts_daemon, web=unit)
    assert status(hosts_daemon, "web", "VmLck") > 16 * MIB
