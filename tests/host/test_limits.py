"""Tests of `qsup.host.limits`: version 1 as it is really mounted, version 2 in fake trees."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from qsup.errors import HostError
from qsup.host import limits
from qsup.host.cgroup import Cgroup, CgroupTree
from qsup.host.hierarchies import Hierarchies, detect
from qsup.host.limits import NAMES, Limits

MIB = 1 << 20
ALL = Limits(cpu=500, cpu_weight=200, memory=64 * MIB, memory_high=48 * MIB, pids=200)
#: Of a cgroup of version 2 that has all controllers, and no limit.
V2_FILES = {
    "cgroup.controllers": "cpu memory pids\n",
    "cpu.max": "max 100000\n",
    "cpu.weight": "100\n",
    "memory.max": "max\n",
    "memory.high": "max\n",
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
}
NONE = Limits(cpu_weight=100)


def fake(directory: Path, files: dict[str, str]) -> Path:
    """A directory with these files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def wanted(values: Limits) -> dict[str, int | None]:
    """All of them."""
    return attrs.asdict(values)


def test_limits_of_a_fake_v2_cgroup(tmp_path: Path) -> None:
    """Each is written as the kernel reads it, read back, and taken back."""
    made = [fake(tmp_path, V2_FILES)]
    assert limits.read(made) == NONE
    assert limits.impose(made, wanted(ALL)) == {}
    written = {name: (tmp_path / name).read_text() for name in ("cpu.max", "cpu.weight", "memory.max", "pids.max")}
    assert written == {"cpu.max": "50000 100000", "cpu.weight": "200", "memory.max": str(64 * MIB), "pids.max": "200"}
    assert (tmp_path / "memory.high").read_text() == str(48 * MIB)
    assert limits.read(made) == ALL
    assert limits.impose(made, wanted(Limits())) == {}
    assert limits.read(made) == NONE


def test_limits_of_a_fake_v1_cgroup(tmp_path: Path) -> None:
    """In the words of version 1, which has nothing for `memory-high`."""
    made = [fake(tmp_path, V1_FILES)]
    assert limits.read(made) == NONE
    why = "the memory controller of the host, of cgroup version 1, has no such limit"
    assert limits.impose(made, wanted(ALL)) == {"memory_high": why}
    written = {name: (tmp_path / name).read_text() for name in ("cpu.cfs_quota_us", "cpu.shares")}
    assert written == {"cpu.cfs_quota_us": "50000", "cpu.shares": "2048"}
    assert limits.read(made) == attrs.evolve(ALL, memory_high=None)
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


def test_only_what_is_named_is_changed_in_a_fake_tree(tmp_path: Path) -> None:
    """Whatever somebody else has set stays."""
    made = [fake(tmp_path, V2_FILES | {"pids.max": "77\n"})]
    limits.impose(made, {"memory": 64 * MIB})
    assert limits.read(made) == Limits(cpu_weight=100, memory=64 * MIB, pids=77)


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
    assert [path.read_text() for path in given] == ["+cpu +pids", "+cpu +pids"]
    given[1].unlink()
    given[1].mkdir()
    with pytest.raises(HostError, match=r"could not hand controllers down by .*: Is a directory"):
        limits.hand_down(own, own / "tag")
    assert tree.create("db").absence == ""


def test_without_a_cgroup_nothing_is_kept() -> None:
    """Each limit has a reason, and no limit needs none."""
    assert limits.impose([], wanted(Limits())) == {}
    assert limits.impose([], wanted(ALL)) == dict.fromkeys(NAMES, "it has no cgroup of its own")
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
    assert tuple(NAMES.values()) == ("cpu", "cpu-weight", "memory", "memory-high", "pids")


@pytest.fixture
def real() -> Iterator[Cgroup]:
    """A cgroup in the hierarchies of version 1 that this machine has."""
    v1 = detect().v1
    if missing := {"cpu", "memory", "pids"} - v1.keys():
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
    assert limits.impose(real.paths, wanted(attrs.evolve(ALL, memory_high=None))) == {}
    assert limits.read(real.paths) == attrs.evolve(ALL, memory_high=None)
    assert limits.impose(real.paths, wanted(Limits())) == {}
    assert limits.read(real.paths) == NONE


@pytest.mark.root
def test_a_real_kernel_refuses_more_than_is_above(real: Cgroup) -> None:
    """A cgroup cannot have more of the CPU than the one that it is in."""
    assert limits.impose([path.parent for path in real.paths], {"cpu": 500}) == {}
    (why,) = limits.impose(real.paths, {"cpu": 1000}).values()
    assert why.endswith(f"/cpu.cfs_quota_us: {os.strerror(22)}")
    assert limits.read(real.paths) == NONE
