"""Guests with NUMA nodes of their own, as a Linux in them sees it, on every QEMU.

What hangs on several nodes of the host is seen where there are several.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, linux_unit, rom_unit
from tests.real.growing import ask, differs, run
from tests.real.hotplug import agree, finished, qmp, told
from tests.waiting import came_true

pytestmark = [pytest.mark.real]

MIB = 1 << 20
NODES = """
[[numa]]
id = "left"
vcpus = "0,3"
size = "160M"
distances = [10, 21, 17]

[[numa]]
id = "right"
vcpus = "1-2"
distances = [22, 10, 28]

[[numa]]
id = "far"
size = "64M"
distances = [17, 28, 10]
"""


def start(daemon: Daemon, qemu: Emulator, guest: LinuxGuest, memory: str = "", tables: str = NODES) -> None:
    """A Linux VM with 320 MiB in three nodes, two vCPUs and room for two more."""
    guest = attrs.evolve(guest, append=f"{guest.append} memhp_default_state=online_movable")
    text = linux_unit(qemu, guest, memory=memory, tables=tables, cpu="vcpus = 2\nmax-vcpus = 4")
    daemon.unit("web", text.replace('size = "128M"', 'size = "320M"'))
    daemon.do("web", "start")


def seen(daemon: Daemon) -> list[tuple[str, str, int]]:
    """Of each node that the guest has: its CPUs, the distances from it, and its MiB."""
    said = run(daemon, "cd /sys/devices/system/node; for n in node?; do cat $n/cpulist $n/distance $n/meminfo; done")
    found = re.findall(r"(?m)^([\d,-]*)\n([\d ]+)\nNode \d+ MemTotal: +(\d+) kB", said)
    return [(cpus, distances, int(kib) // 1024) for cpus, distances, kib in found]


def shown(daemon: Daemon) -> list[dict[str, Any]]:
    """What the API shows of them."""
    nodes: list[dict[str, Any]] = daemon.view("web")["memory"]["guest_nodes"]
    return nodes


def test_a_guest_sees_its_nodes(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """Which vCPUs and how much memory each has, and how far they are apart; one that comes is in its node, too."""
    start(daemon, qemu, linux_guest)
    left, right, far = seen(daemon)
    assert [left[:2], right[:2], far[:2]] == [("0", "10 21 17"), ("1", "22 10 28"), ("", "17 28 10")]
    assert all(size - 40 < got <= size for got, size in zip((left[2], right[2], far[2]), (160, 96, 64), strict=True))
    assert told(ask(daemon, {"cpu": {"vcpus": 4}}), "cpu.vcpus") == {"vcpus": 4, "online": 4}
    assert [cpus for cpus, *_ in seen(daemon)] == ["0,3", "1-2", ""]
    assert agree(daemon, "web")
    for _ in range(2):
        assert [(node["id"], node["vcpus"], node["size"] // MIB) for node in shown(daemon)] == [
            ("left", "0,3", 160),
            ("right", "1-2", 96),
            ("far", "", 64),
        ]
        assert "1 (right): 96M, vCPUs 1-2\n" in daemon.ctl("status", "web").stdout
        assert differs(daemon) == {}
        daemon.restart()
        daemon.wait("web", "running")


@pytest.mark.parametrize("way", ["", 'slots = 2\nresize = "dimm"\n'], ids=["virtio-mem", "dimm"])
def test_memory_comes_to_a_node(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest, way: str) -> None:
    """To the one that the unit names, and goes from there, under a later daemon, too."""
    start(daemon, qemu, linux_guest, f'max = "1G"\ngrowth-node = "right"\n{way}')
    before = [size for *_, size in seen(daemon)]
    assert ask(daemon, {"memory": {"size": "448M"}})["state"] == "succeeded"

    def more() -> list[int]:
        return [size - had for had, (*_, size) in zip(before, seen(daemon), strict=True)]

    assert came_true(lambda: more() == [0, 128, 0], seconds=10)
    daemon.restart()
    daemon.wait("web", "running")
    assert ask(daemon, {"memory": {"size": "320M"}})["state"] == "succeeded"
    assert came_true(lambda: more() == [0, 0, 0], seconds=10)
    assert agree(daemon, "web")


def test_equal_nodes_are_sockets(daemon: Daemon, emulator: Emulator, linux_guest: LinuxGuest) -> None:
    """A Linux whose nodes are divided as its sockets finds nothing strange, and neither does one with a balloon."""
    tables = '[[numa]]\nid = "a"\nvcpus = "0-1"\n[[numa]]\nid = "b"\nvcpus = "2-3"\n'
    start(daemon, emulator, linux_guest, tables=tables)
    assert ask(daemon, {"cpu": {"vcpus": 4}})["state"] == "succeeded"
    assert [cpus for cpus, *_ in seen(daemon)] == ["0-1", "2-3"]
    packages = run(daemon, "cat /sys/devices/system/cpu/cpu?/topology/physical_package_id").split()
    assert packages == ["0", "0", "1", "1"]
    assert "not on the same node" not in run(daemon, "dmesg")
    assert ask(daemon, {"memory": {"size": "300M"}})["state"] == "succeeded"
    daemon.do("web", "restart")
    assert sum(node["size"] for node in shown(daemon)) == 320 * MIB


def test_nodes_are_bound_to_those_of_the_host(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Each by its own word, else by that of all memory; with the CPUs, where these are chosen."""
    tables = '[[numa]]\nid = "a"\nvcpus = "0"\npolicy = "preferred"\n[[numa]]\nid = "b"\nvcpus = "1"\nsize = "12M"\n'
    unit = rom_unit(qemu, rom_guest, cpu="vcpus = 2", memory='nodes = "0"\nprealloc = true', tables=tables)
    daemon.unit("web", unit)
    daemon.do("web", "start")

    def memdevs() -> dict[str, tuple[int, list[int], str]]:
        found = {str(each["id"]): each for each in qmp(daemon, "web", "query-memdev")}
        return {name: (each["size"] // MIB, each["host-nodes"], each["policy"]) for name, each in found.items()}

    assert memdevs() == {"ram-0": (4, [0], "preferred"), "ram-1": (12, [0], "bind")}
    assert daemon.view("web")["memory"]["nodes"] == [0]
    auto = unit.replace('nodes = "0"', 'nodes = "auto"').replace("vcpus = 2", 'vcpus = 2\npin = "auto"')
    daemon.unit("web", auto)
    daemon.do("web", "restart")
    assert memdevs() == {"ram-0": (4, [0], "preferred"), "ram-1": (12, [0], "bind")}
    assert (
        "Node 1 of its guest, vCPU 1 and 12 MiB of memory, is on node" in daemon.ctl("cpus", "web", "--explain").stdout
    )
    daemon.restart()
    assert [node["nodes"] for node in shown(daemon)] == [[0], [0]]


def test_a_node_that_the_host_has_not(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Is told before QEMU is there; what cannot be on any host is refused with its line."""
    tables = '[[numa]]\nid = "a"\nvcpus = "0"\nnodes = "0,77"\n'
    daemon.unit("web", rom_unit(emulator, rom_guest, tables=tables))
    operation = finished(daemon, daemon.post("/v1/instances/web/start"))
    assert (operation["state"], daemon.view("web")["pid"]) == ("failed", None)
    assert "its memory is to be on node 77, which is not there" in operation["error"]["detail"]
    daemon.unit("web", rom_unit(emulator, rom_guest, tables=tables.replace('"0"', '"0-1"', 1)))
    done = daemon.ctl("verify", str(daemon.units / "web.toml"), check=False)
    assert "numa.a.vcpus: there is no vCPU 1: it has 1 (max-vcpus, else vcpus), counted from 0" in done.stderr
