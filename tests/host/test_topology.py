"""Tests of `qsup.host.topology`: hosts of every shape, and files that say nothing or nonsense."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from qsup.errors import HostError
from qsup.host import topology
from qsup.host.topology import TopologyReader
from qsup.plan.topology import Core, Cpu, HostPool, HugePages, Topology
from tests.host.machines import G1, GIB, M2, MACHINES, build, reader, write_tree

CPU, NODE = "sys/devices/system/cpu", "sys/devices/system/node"


def write(top: Path, name: str, text: str | bytes) -> None:
    """Have a file say something else."""
    path = top / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def read(top: Path, allowed: Iterable[int] = range(64)) -> tuple[Topology, list[str]]:
    """What is read of a tree, and the first problems that the log names."""
    with capture_logs() as logs:
        found = reader(top, allowed).read()
    return found, [problem for line in logs for problem in line["first"]]


def test_one_socket_with_two_threads_a_core(tmp_path: Path) -> None:
    """CPUs that share a core are found though their numbers are far apart; caches are there once."""
    host = build(tmp_path, MACHINES["one-socket"]).read()
    assert [core.cpus for core in host.cores] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert host.cpus[5] == Cpu(number=5, core=1)
    assert [cache.cpus for cache in host.caches if cache.level == 3] == [frozenset(range(8))]
    assert len([cache for cache in host.caches if cache.level == 1]) == 2 * 4
    assert [(node.number, node.memory, node.distances) for node in host.nodes] == [(0, 16 * GIB, {0: 10})]


def test_two_sockets(tmp_path: Path) -> None:
    """Each is a node with its own memory and pools, at a distance; what is isolated is no VM's by itself."""
    host = build(tmp_path, MACHINES["two-sockets"]).read()
    first, second = host.nodes
    assert (first.distance(0), first.distance(1), second.distance(0)) == (10, 21, 21)
    assert second.hugepages == (HugePages(size=M2, total=4096, free=1024), HugePages(size=G1, total=4, free=4))
    assert {cpu.number: (cpu.package, cpu.node) for cpu in host.cpus}[24] == (1, 1)
    assert host.online - host.placeable == {6, 7, 22, 23}


def test_nodes_without_cpus_and_without_memory(tmp_path: Path) -> None:
    """Both are nodes."""
    host = build(tmp_path, MACHINES["memory-node"]).read()
    assert [(node.number, node.memory // GIB) for node in host.nodes] == [(0, 32), (1, 32), (2, 0), (3, 128)]
    assert {cpu.node for cpu in host.cpus} == {0, 1, 2}


def test_cores_of_two_kinds(tmp_path: Path) -> None:
    """By Intel's cpu_core and cpu_atom, to which the newest add a third."""
    host = build(tmp_path, MACHINES["hybrid"]).read()
    assert host.cores[0] == Core(node=0, package=0, die=0, kind="performance", cpus=(0, 1))
    assert [core.cpus for core in host.cores if core.kind == "efficiency"] == [(cpu,) for cpu in range(12, 20)]
    write(tmp_path, "sys/devices/cpu_atom/cpus", "12-17\n")
    host = reader(tmp_path, range(20)).read()
    assert [cpu.kind for cpu in host.cpus[10:]] == ["performance"] * 2 + ["efficiency"] * 8


@pytest.mark.parametrize(
    ("capacities", "kinds"),
    [
        ((446, 446, 1024, 1024), ("efficiency", "efficiency", "performance", "performance")),
        ((324, 870, 870, 1024), ("efficiency", "performance", "performance", "performance")),
        ((1024, 1024, 1000, 990), ("", "", "", "")),
        ((0, 0, 0, 0), ("", "", "", "")),
    ],
)
def test_cores_of_two_kinds_by_capacity(tmp_path: Path, capacities: tuple[int, ...], kinds: tuple[str, ...]) -> None:
    """Where each CPU has a capacity and some have much less; clocks that differ make no kinds."""
    write_tree(tmp_path, MACHINES["one-socket"])
    for cpu, capacity in enumerate((*capacities, *capacities)):
        write(tmp_path, f"{CPU}/cpu{cpu}/cpu_capacity", f"{capacity}\n")
    assert tuple(cpu.kind for cpu in read(tmp_path)[0].cpus) == kinds * 2


def test_what_is_offline(tmp_path: Path) -> None:
    """Nothing is known of it but its node; what is only possible is not there."""
    host = build(tmp_path, MACHINES["offline"]).read()
    assert len(host.cpus) == 16
    assert host.by_number[13] == Cpu(number=13, node=1, online=False)
    assert [core.cpus for core in host.cores if core.node == 0] == [(0, 8), (1, 9), (2, 10)]
    assert [cache.cpus for cache in host.caches if cache.level == 3] == [{0, 1, 2, 8, 9, 10}, {4, 5, 6, 7}]


def test_the_largest(tmp_path: Path) -> None:
    """512 CPUs, 16 nodes, an L3 for each eight cores; nothing is amiss."""
    build(tmp_path, MACHINES["large"])
    host, problems = read(tmp_path, range(512))
    assert (len(host.cpus), len(host.cores), len(host.nodes), problems) == (512, 256, 16, [])
    assert len([cache for cache in host.caches if cache.level == 3]) == 32
    assert {(core.package, core.die) for core in host.cores} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert host.nodes[0].distances == dict.fromkeys(range(1, 8), 12) | dict.fromkeys(range(8, 16), 32) | {0: 10}


def test_only_what_the_daemon_may_use_is_allowed(tmp_path: Path) -> None:
    """A daemon that was confined afterwards knows it at the next look."""
    write_tree(tmp_path, MACHINES["one-socket"])
    allowed = set(range(8))
    found = reader(tmp_path, allowed)
    assert found.read().placeable == set(range(8))
    allowed -= {0, 4}
    assert found.read().placeable == {1, 2, 3, 5, 6, 7}


def test_cores_of_one_number_that_are_several(tmp_path: Path) -> None:
    """Whose threads they are the kernel says by its lists of siblings; what these lack changes nothing."""
    write_tree(tmp_path, MACHINES["one-socket"])
    whole = [core.cpus for core in read(tmp_path)[0].cores]
    assert whole == [(0, 4), (1, 5), (2, 6), (3, 7)]
    for cpu in range(8):
        write(tmp_path, f"{CPU}/cpu{cpu}/topology/core_id", f"{cpu % 2}\n")
    assert [core.cpus for core in read(tmp_path)[0].cores] == [(0, 2, 4, 6), (1, 3, 5, 7)], "nobody says otherwise"
    for cpu in range(8):
        write(tmp_path, f"{CPU}/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    assert [core.cpus for core in read(tmp_path)[0].cores] == whole
    for nonsense in ("", "x", "9-12"):
        write(tmp_path, f"{CPU}/cpu0/topology/thread_siblings_list", nonsense)
        assert [core.cpus for core in read(tmp_path)[0].cores] == whole


def test_isolated_cpus_are_ours_if_the_kernel_lets_us_be_put_there(tmp_path: Path) -> None:
    """A daemon has none of them by itself; nobody stays there for the question."""
    before = os.sched_getaffinity(0)
    write_tree(tmp_path, MACHINES["large"])
    write(tmp_path, f"{CPU}/isolated", "0-511\n")
    host, _ = read(tmp_path, ())
    assert {cpu.number for cpu in host.cpus if cpu.allowed} >= before, "this kernel's, of those of the tree"
    assert sum(cpu.allowed for cpu in host.cpus) <= (os.cpu_count() or 0)
    assert host.placeable == frozenset()
    assert os.sched_getaffinity(0) == before
    write(tmp_path, f"{CPU}/isolated", "\n")
    assert not any(cpu.allowed for cpu in read(tmp_path, ())[0].cpus), "what is merely not ours is not asked for"


def test_free_memory_is_the_kernels_count_shared_out(tmp_path: Path) -> None:
    """Each node has its share of what is available at all, by what is free or read from files there."""
    host = build(tmp_path, MACHINES["memory-node"]).read()
    free = [node.free for node in host.nodes]
    assert sum(free) == pytest.approx((160 + (192 - 160) // 4) * GIB, abs=len(free))
    assert 2 * GIB < free[1] < 32 * GIB - free[1] // 2
    assert free[2] == 0
    write(tmp_path, "proc/meminfo", "MemTotal: 100 kB\n")  # Linux before 3.14
    assert [node.free // GIB for node in read(tmp_path)[0].nodes] == [30, 2, 0, 128]


def test_memory_and_pools_are_read_each_time(tmp_path: Path) -> None:
    """And nothing else while the same CPUs and nodes are online."""
    found = build(tmp_path, MACHINES["two-sockets"])
    before = found.read()
    write(tmp_path, f"{NODE}/node1/hugepages/hugepages-2048kB/free_hugepages", "7\n")
    write(tmp_path, f"{NODE}/node1/meminfo", "Node 1 MemTotal: 1024 kB\nNode 1 MemFree: 512 kB\n")
    write(tmp_path, f"{CPU}/cpu1/topology/core_id", "0\n")
    after = found.read()
    assert (after.nodes[1].hugepages[0].free, after.nodes[1].memory) == (7, 1 << 20)
    assert (after.cpus, after.caches) == (before.cpus, before.caches)


def test_pages_that_somebody_has_a_claim_to_are_not_to_be_had(tmp_path: Path) -> None:
    """The kernel counts them for the host as a whole, with those that it may make besides the pool's."""
    found = build(tmp_path, MACHINES["two-sockets"])
    assert found.read().pools == (HostPool(size=M2), HostPool(size=G1))
    assert found.read().free_pages(M2) == sum(node.hugepages[0].free for node in found.read().nodes)
    for name, number in (("resv", 1000), ("nr_overcommit", 24), ("surplus", 4)):
        write(tmp_path, f"sys/kernel/mm/hugepages/hugepages-2048kB/{name}_hugepages", f"{number}\n")
    host = found.read()
    first, second = (node.hugepages[0].free for node in host.nodes)
    assert host.pools == (HostPool(size=M2, reserved=1000, spare=20), HostPool(size=G1))
    assert host.free_pages(M2) == first + second - 1000 + 20
    assert host.free_pages(M2, (1,)) == min(second, first + second - 1000) + 20
    assert host.free_pages(4 << 10) == 0


def test_a_cpu_that_goes_offline_is_seen(tmp_path: Path) -> None:
    """Also between two files of one look, which is begun anew."""
    found = build(tmp_path, MACHINES["one-socket"])
    found.read()
    shutil.rmtree(tmp_path / CPU / "cpu7/topology")
    write(tmp_path, f"{CPU}/online", "0-6\n")
    assert found.read().online == set(range(7))

    def goes_offline() -> set[int]:
        if asked:
            write(tmp_path, f"{CPU}/online", "0-5\n")
        asked.append("once")
        return set(range(8))

    asked: list[str] = []
    racing = TopologyReader(tmp_path / "sys", proc=tmp_path / "proc", affinity=goes_offline)
    assert racing.read().online == set(range(6))


def test_that_nothing_has_come_or_gone_is_seen_without_a_whole_look(tmp_path: Path) -> None:
    """Memory that is free or not is nothing to look again for; a topology of somebody else's look is."""
    host = build(tmp_path, MACHINES["one-socket"])
    first = host.read()
    assert host.is_still(first)
    write(tmp_path, f"{NODE}/node0/meminfo", "Node 0 MemTotal: 4 kB\n")
    assert host.is_still(first)
    write(tmp_path, f"{CPU}/online", "0-6")
    assert not host.is_still(first)
    second = host.read()
    assert host.is_still(second) and not host.is_still(first)


def test_that_a_pool_has_changed_is_seen_without_a_whole_look(tmp_path: Path) -> None:
    """Of the host as a whole: whichever node it is on."""
    host = build(tmp_path, MACHINES["two-sockets"])
    first = host.read()
    assert host.is_still(first)
    (pool,) = (pool for pool in first.pools if pool.size == M2)
    total = sum(each.total for node in first.nodes for each in node.hugepages if each.size == M2)
    write(tmp_path, f"sys/kernel/mm/hugepages/hugepages-{pool.size >> 10}kB/nr_hugepages", f"{total + 1}\n")
    assert not host.is_still(first)


def test_a_host_without_nodes_is_one(tmp_path: Path) -> None:
    """With all CPUs, the memory of /proc/meminfo and the host's own pools; that is nothing to complain of."""
    write_tree(tmp_path, MACHINES["two-sockets"])
    shutil.rmtree(tmp_path / NODE)
    write(tmp_path, "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "16\n")
    write(tmp_path, "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "4\n")
    write(tmp_path, "proc/meminfo", "MemTotal: 2048 kB\nMemFree: 512 kB\nActive(file): 900 kB\nMemAvailable: 1024 kB\n")
    host, problems = read(tmp_path)
    (node,) = host.nodes
    assert (node.number, node.memory, node.free, node.distances) == (0, 2 << 20, 1 << 20, {0: 10})
    assert node.hugepages == (HugePages(size=M2, total=16, free=4),)
    assert {cpu.node for cpu in host.cpus} == {0}
    assert problems == []


def test_a_host_that_says_nothing(tmp_path: Path) -> None:
    """It has the CPUs that the daemon may use, each a core of its own, and no memory; the log says what is missing."""
    found = reader(tmp_path, {0, 2})
    with capture_logs() as logs:
        host = found.read()
        found.read()
    assert [(core.cpus, core.package) for core in host.cores] == [((0,), 0), ((2,), 0)]
    assert [(node.number, node.memory, node.free) for node in host.nodes] == [(0, 0, 0)]
    (line,) = logs  # once, although it was looked at twice
    assert line["first"][:2] == (
        "devices/system/cpu/online: No such file or directory",
        "devices/system/cpu/present: No such file or directory",
    )


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (f"{CPU}/present", "0-99999999999", "devices/system/cpu/present: '0-99999999999'"),
        (f"{CPU}/present", b"\xff\xfe" * 9, "devices/system/cpu/present: "),
        (f"{CPU}/online", "0-7," * 9000, "devices/system/cpu/online: longer than 32768 bytes"),
        (f"{CPU}/isolated", "3-1", "devices/system/cpu/isolated: '3-1'"),
        (f"{CPU}/cpu1/topology/core_id", "9" * 4000, f"devices/system/cpu/cpu1/topology/core_id: '{'9' * 40}'"),
        (f"{CPU}/cpu1/topology/physical_package_id", "one", "devices/system/cpu/cpu1/topology/physical_package_id: "),
        (f"{CPU}/cpu1/cache/index2/size", "many", "devices/system/cpu/cpu1/cache/index2: neither level, type nor size"),
        (f"{NODE}/node0/distance", "10", "devices/system/node/node0/distance: '10' for 2 nodes"),
        (f"{NODE}/node0/distance", "10 -3", "devices/system/node/node0/distance: '10 -3' for 2 nodes"),
        (f"{NODE}/node0/meminfo", "free beer", "devices/system/node/node0/meminfo: 'free beer'"),
        (f"{NODE}/node0/cpulist", "all", "devices/system/node/node0/cpulist: 'all'"),
        (f"{NODE}/online", "0-2", "devices/system/node/node2: not there"),
        (f"{NODE}/online", "none", "devices/system/node/online: 'none'"),
        (f"{NODE}/node0/hugepages/hugepages-2048kB/nr_hugepages", "-4", "hugepages-2048kB/nr_hugepages: '-4'"),
    ],
)
def test_nonsense_is_left_out_and_said(tmp_path: Path, name: str, text: str | bytes, words: str) -> None:
    """The rest is read; who asks is not troubled."""
    write_tree(tmp_path, MACHINES["two-sockets"])
    write(tmp_path, name, text)
    host, problems = read(tmp_path)
    assert any(words in problem for problem in problems), problems
    assert {cpu.number for cpu in host.cpus} >= set(range(32)) - {1}
    assert len(host.cores) >= 16
    assert host.nodes


@pytest.mark.parametrize("name", [f"{CPU}/online", f"{NODE}/node0/meminfo", f"{CPU}/cpu1/topology/core_id"])
def test_no_file_holds_the_daemon_up(tmp_path: Path, name: str) -> None:
    """A FIFO is empty, a directory and what may not be read are said."""
    write_tree(tmp_path, MACHINES["one-socket"])
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert len(read(tmp_path)[0].online) >= 8
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert any("Is a directory" in problem for problem in read(tmp_path)[1])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), text=st.binary(max_size=40))
def test_any_damage_is_survived(tmp_path_factory: pytest.TempPathFactory, seed: int, text: bytes) -> None:
    """Files that are gone or say anything: there is a topology, each CPU in one of its nodes, and it is whole."""
    top = tmp_path_factory.mktemp("damaged")
    write_tree(top, MACHINES["memory-node"])
    chance = random.Random(seed)
    files = sorted(path for path in top.rglob("*") if path.is_file())
    for path in chance.sample(files, chance.randrange(1, 40)):
        if chance.random() < 0.5:
            path.unlink()
        else:
            path.write_bytes(text)
    host, _ = read(top, range(12))
    shutil.rmtree(top)
    assert host.cores
    assert {cpu.node for cpu in host.cpus} <= {node.number for node in host.nodes}
    assert all(0 <= node.free <= node.memory for node in host.nodes)
    assert all(cache.cpus <= host.online for cache in host.caches)
    assert len(host.by_number) == len(host.cpus)


async def test_a_kernel_that_hangs_costs_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks is told in time, and no further thread waits for the kernel."""
    monkeypatch.setattr(topology, "DEADLINE", 0.05)
    asked: list[str] = []
    answer, ended = trio.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def hang() -> set[int]:
        asked.append("once")
        trio.from_thread.run(answer.wait, trio_token=token)
        trio.from_thread.run_sync(ended.set, trio_token=token)
        return {0}

    write_tree(tmp_path, MACHINES["one-socket"])
    hanging = TopologyReader(tmp_path / "sys", proc=tmp_path / "proc", affinity=hang)
    for _ in range(3):
        with pytest.raises(HostError, match=r"the kernel did not say within 0.05 s"):
            await hanging.look()
    assert len(asked) == 1
    answer.set()
    await ended.wait()
    monkeypatch.setattr(topology, "DEADLINE", 10.0)
    assert len((await hanging.look()).cpus) == 8
