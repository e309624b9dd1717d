"""Tests of `qsup.host.limits`: version 1 as it is really mounted, version 2 in fake trees."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from qsup.errors import HostError
from qsup.host import limits
from qsup.host.cgroup import Cgroup, CgroupTree
from qsup.host.hierarchies import Hierarchies, detect
from qsup.host.limits import GROUPS, NAMES, Limits

MIB = 1 << 20
ALL = Limits(
    cpu=500,
    cpu_weight=200,
    memory=64 * MIB,
    memory_high=48 * MIB,
    pids=200,
    swap=0,
    io_weight=500,
    io_read_bps=(("7:0", MIB), ("8:16", 5)),
    io_write_bps=(("8:16", 6),),
    io_read_iops=(("8:16", 7),),
    io_write_iops=(("7:0", 8),),
)
#: Of a cgroup of version 2 that has all controllers, and no limit.
V2_FILES = {
    "cgroup.controllers": "cpu io memory pids\n",
    "io.weight": "default 100\n8:0 50\n",
    "cpu.max": "max 100000\n",
    "cpu.weight": "100\n",
    "memory.max": "max\n",
    "memory.high": "max\n",
    "memory.swap.max": "max\n",
    "memory.stat": "anon 4096\nfile 8192\nshmem 1024\n",
    "pids.max": "max\n",
}
#: The same of version 1, all controllers in one directory, which only a fake has.
V1_FILES = {
    "cpu.cfs_quota_us": "-1\n",
    "cpu.cfs_period_us": "100000\n",
    "cpu.shares": "1024\n",
    "memory.limit_in_bytes": "9223372036854771712\n",
    "memory.stat": "cache 8192\nrss 1\nshmem 512\ntotal_rss 4096\n",
    "pids.max": "max\n",
    "blkio.bfq.weight": "100\n",
}
NONE = Limits(cpu_weight=100, io_weight=100)
#: Those that version 1 has no file for.
NOT_IN_V1 = {"memory_high": None, "swap": None}
#: Those of single devices, which a fake keeps no lines of.
OF_DEVICES: dict[str, Any] = dict.fromkeys(name for name in NAMES if name.startswith("io_") and name != "io_weight")


def fake(directory: Path, files: dict[str, str]) -> Path:
    """A directory with these files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def wanted(values: Limits) -> dict[str, Any]:
    """All of them."""
    return values.items()


def test_limits_of_a_fake_v2_cgroup(tmp_path: Path) -> None:
    """Each is written as the kernel reads it, read back, and taken back."""
    made = [fake(tmp_path, V2_FILES)]
    assert limits.read(made) == NONE
    plain = attrs.evolve(ALL, **OF_DEVICES)
    assert limits.impose(made, wanted(plain)) == {}
    written = {name: (tmp_path / name).read_text() for name in ("cpu.max", "cpu.weight", "memory.max", "pids.max")}
    assert written == {"cpu.max": "50000 100000", "cpu.weight": "200", "memory.max": str(64 * MIB), "pids.max": "200"}
    assert (tmp_path / "memory.high").read_text() == str(48 * MIB)
    assert ((tmp_path / "memory.swap.max").read_text(), (tmp_path / "io.weight").read_text()) == ("0", "500")
    assert limits.read(made) == plain
    assert limits.impose(made, wanted(Limits())) == {}
    assert limits.read(made) == NONE


def test_limits_of_a_fake_v1_cgroup(tmp_path: Path) -> None:
    """In the words of version 1, which has nothing for `memory-high`."""
    made = [fake(tmp_path, V1_FILES)]
    assert limits.read(made) == NONE
    why = "the memory controller of the host, of cgroup version 1, has no such limit"
    assert limits.impose(made, wanted(attrs.evolve(ALL, **OF_DEVICES))) == {"memory_high": why, "swap": why}
    written = {name: (tmp_path / name).read_text() for name in ("cpu.cfs_quota_us", "cpu.shares")}
    assert written == {"cpu.cfs_quota_us": "50000", "cpu.shares": "2048"}
    assert limits.read(made) == attrs.evolve(ALL, **NOT_IN_V1, **OF_DEVICES)
    assert limits.impose(made, wanted(Limits())) == {}
    assert (tmp_path / "memory.limit_in_bytes").read_text() == "-1"
    fake(tmp_path, {"memory.limit_in_bytes": V1_FILES["memory.limit_in_bytes"]})  # what the kernel makes of that
    assert limits.read(made) == NONE


@pytest.mark.parametrize("weight", [1, 2, 33, 99, 100, 101, 9999, 10_000])
def test_a_weight_survives_the_shares_of_a_fake_v1_cgroup(tmp_path: Path, weight: int) -> None:
    """What is read back is what was asked for."""
    made = [fake(tmp_path, V1_FILES)]
    assert limits.impose(made, {"cpu_weight": weight}) == {}
    assert limits.read(made).cpu_weight == weight


def test_devices_of_a_fake_v2_cgroup(tmp_path: Path) -> None:
    """One file has all limits of I/O: each is read from its word, and one that is no more is taken back by device."""
    lines = ("8:16 rbps=max wbps=1024 riops=max wiops=50", "7:0 rbps=5 wbps=max riops=max wiops=max", "")
    (tmp_path / "io.max").write_text("\n".join(lines))
    found = limits.read([tmp_path])
    assert (found.io_read_bps, found.io_write_bps) == ((("7:0", 5),), (("8:16", 1024),))
    assert (found.io_read_iops, found.io_write_iops) == (None, (("8:16", 50),))
    limits.impose([tmp_path], {"io_write_bps": None})
    assert (tmp_path / "io.max").read_text() == "8:16 wbps=max"


@pytest.mark.parametrize(
    ("name", "limit", "found", "agrees"),
    [
        ("memory", 8191, 4096, True),
        ("memory", 8192, 4096, False),
        ("memory", 4096, 8192, False),
        ("memory", None, None, True),
        ("swap", 0, None, False),
        ("cpu_weight", None, 100, True),
        ("io_weight", 200, 100, False),
        ("io_read_bps", (("8:0", 5),), (("8:0", 5),), True),
        ("io_read_bps", (("8:0", 5),), None, False),
    ],
)
def test_what_the_kernel_says_agrees_but_for_a_page(name: str, limit: Any, found: Any, agrees: bool) -> None:
    """It rounds bytes down to pages, and has a weight where nobody gave one."""
    assert limits.agree(name, limit, found) is agrees


def test_only_what_is_named_is_changed_in_a_fake_tree(tmp_path: Path) -> None:
    """Whatever somebody else has set stays."""
    made = [fake(tmp_path, V2_FILES | {"pids.max": "77\n"})]
    limits.impose(made, {"memory": 64 * MIB})
    assert limits.read(made) == attrs.evolve(NONE, memory=64 * MIB, pids=77)


def test_what_version_1_has_is_taken_beside_a_fake_v2_cgroup(tmp_path: Path) -> None:
    """A hybrid host: each controller is in one hierarchy."""
    unified = fake(tmp_path / "u", {"cgroup.controllers": "\n"})
    cpu = fake(tmp_path / "c", {name: text for name, text in V1_FILES.items() if name.startswith("cpu")})
    assert limits.impose([unified, cpu], {"cpu": 1500, "cpu_weight": None}) == {}
    assert (cpu / "cpu.cfs_quota_us").read_text() == "150000"
    why = "the host offers the daemon no memory controller"
    assert limits.impose([unified, cpu], {"memory": MIB, "pids": None}) == {"memory": why}


def test_what_a_fake_v2_daemon_cannot_hand_down(tmp_path: Path) -> None:
    """Its own cgroup has the controllers, and it is in there: no VM's below can have them, and none is tried."""
    files = {"cgroup.controllers": "cpu memory\n", "cgroup.procs": "", "cgroup.type": "domain\n"}
    own = fake(tmp_path, files | {"cgroup.subtree_control": ""})
    made = CgroupTree("tag", hierarchies=Hierarchies(unified=own)).create("web")
    why = f"the memory controller cannot be handed down from {own}, which the daemon itself is in"
    assert limits.why_not(made.paths, "memory") == why
    assert limits.why_not(made.paths, "pids") == "the host offers the daemon no pids controller"
    assert limits.read(made.paths) == Limits()
    assert (own / "cgroup.subtree_control").read_text() == ""


def test_what_a_fake_v2_root_can_hand_down_is(tmp_path: Path) -> None:
    """The root of all cgroups gives its children what it has; a refusal costs a VM its limits, and no more."""
    own = fake(tmp_path, {"cgroup.controllers": "cpu io pids\n", "cgroup.procs": ""})
    fake(own / "tag", {"cgroup.controllers": "cpu io pids\n"})
    tree = CgroupTree("tag", hierarchies=Hierarchies(unified=own))
    tree.create("web")
    given = [path / "cgroup.subtree_control" for path in (own, own / "tag")]
    assert [path.read_text() for path in given] == ["+cpu +pids +io", "+cpu +pids +io"]
    given[1].unlink()
    given[1].mkdir()
    with pytest.raises(HostError, match=r"could not hand controllers down by .*: Is a directory"):
        limits.hand_down(own, own / "tag")
    assert tree.create("db").absence == ""


def test_without_a_cgroup_nothing_is_kept() -> None:
    """Each limit has a reason, and no limit needs none."""
    assert limits.impose([], wanted(Limits())) == {}
    fenced = attrs.evolve(ALL, cpuset_cpus=frozenset({0}), cpuset_mems=frozenset({0}))
    kept = NAMES.keys() - GROUPS.keys()
    assert limits.impose([], wanted(fenced)) == dict.fromkeys(kept, "it has no cgroup of its own")
    assert limits.read([]) == Limits()
    assert limits.memory_held([]) == 0


def test_what_a_fake_kernel_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    """With the file that was to be written."""
    made = fake(tmp_path, {"cgroup.controllers": "pids\n"})
    (made / "pids.max").mkdir()
    assert limits.impose([made], {"pids": 5}) == {"pids": f"{made / 'pids.max'}: Is a directory"}
    with pytest.raises(HostError, match=r"could not read .*/pids\.max: Is a directory"):
        limits.read([made])
    (made / "memory.stat").mkdir()
    with pytest.raises(HostError, match=r"could not read .*/memory\.stat"):
        limits.memory_held([made])


@pytest.mark.parametrize(("files", "held"), [(V2_FILES, 5120), (V1_FILES, 4608), ({}, 0)], ids=["v2", "v1", "none"])
def test_memory_that_cannot_be_dropped_in_a_fake_tree(tmp_path: Path, files: dict[str, str], held: int) -> None:
    """Anonymous and shared memory, in either version's words; caches of files are none of it."""
    assert limits.memory_held([fake(tmp_path, files)]) == held


def test_every_limit_has_a_file() -> None:
    """The names of the fields are those of the unit's keys."""
    assert {name: bool(limits.why_not([], name)) for name in NAMES} == dict.fromkeys(NAMES, True)
    assert tuple(NAMES.values())[:9] == (
        "cpu",
        "vcpu-cpu",
        "emulator-cpu",
        "cpu-weight",
        "memory",
        "memory-high",
        "pids",
        "swap",
        "io-weight",
    )
    assert tuple(NAMES.values())[9:13] == ("io-read-bps", "io-write-bps", "io-read-iops", "io-write-iops")
    assert tuple(NAMES.values())[13:] == ("cpuset-cpus", "cpuset-mems")


#: Loop devices are wherever there is the driver, whether they are in use or not.
DEVICES: dict[str, Any] = {
    "io_read_bps": (("7:0", MIB), ("7:1", 5)),
    "io_write_bps": (("7:0", 6),),
    "io_write_iops": (("7:1", 8),),
}


@pytest.fixture
def real() -> Iterator[Cgroup]:
    """A cgroup in the hierarchies of version 1 that this machine has."""
    v1 = detect().v1
    if missing := {"cpu", "memory", "pids", "blkio"} - v1.keys():
        pytest.skip(f"this machine has no cgroup version 1 for {', '.join(sorted(missing))}")
    tree = CgroupTree(f"qsup-test-{uuid.uuid4().hex[:8]}", hierarchies=Hierarchies(unified=None, v1=v1))
    made = tree.create("web")
    yield made
    for path in made.paths:
        path.rmdir()
        path.parent.rmdir()


@pytest.mark.root
def test_a_real_v1_cgroup_keeps_them(real: Cgroup) -> None:
    """The kernel says what it was told, and that it is told no more."""
    assert limits.read(real.paths) == NONE
    these = attrs.evolve(ALL, **NOT_IN_V1, **(OF_DEVICES | DEVICES))
    assert limits.impose(real.paths, wanted(these)) == {}
    assert limits.read(real.paths) == these
    other: dict[str, Any] = {"io_read_bps": (("7:1", 4096),), "io_write_iops": None}
    assert limits.impose(real.paths, other) == {}
    assert limits.read(real.paths) == attrs.evolve(these, **other)
    assert limits.impose(real.paths, wanted(Limits())) == {}
    assert limits.read(real.paths) == NONE


@pytest.mark.root
def test_a_real_kernel_refuses_more_than_is_above(real: Cgroup) -> None:
    """A cgroup cannot have more of the CPU than the one that it is in."""
    assert limits.impose([path.parent for path in real.paths], {"cpu": 500}) == {}
    (why,) = limits.impose(real.paths, {"cpu": 1000}).values()
    assert why.endswith(f"/cpu.cfs_quota_us: {os.strerror(22)}")
    assert limits.read(real.paths) == NONE
