"""Tests of cpusets: `qsup.host.cpuset` in fake trees of either version, and version 1 as it is really mounted."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qsup.errors import HostError
from qsup.host import cpuset, limits
from qsup.host.cgroup import Cgroup, CgroupTree
from qsup.host.hierarchies import Hierarchies, detect
from qsup.host.limits import Limits
from tests.host.test_limits import fake

V2 = {"cpuset.cpus": "\n", "cpuset.cpus.effective": "0-3\n", "cpuset.mems": "\n", "cpuset.mems.effective": "0-1\n"}
#: A new one of version 1, and the daemon's own.
NEW = {"cpuset.cpus": "\n", "cpuset.mems": "\n", "cpuset.memory_migrate": "0\n", "cgroup.procs": ""}
OWN = NEW | {"cpuset.cpus": "0-3\n", "cpuset.mems": "0-1\n"}


def said(directory: Path) -> tuple[str, str]:
    """What a cgroup has been told: CPUs and nodes."""
    return (directory / "cpuset.cpus").read_text().strip(), (directory / "cpuset.mems").read_text().strip()


def test_a_fence_of_a_fake_v2_cgroup(tmp_path: Path) -> None:
    """What is read back is what is effective of it; without one there is nothing, whatever is above."""
    made = fake(tmp_path, V2)
    assert limits.read([made]) == Limits()
    fake(tmp_path, {"cpuset.cpus.effective": "1\n"})
    assert limits.impose([made], {"cpuset_cpus": frozenset({1, 2})}) == {}, "CPU 2 is offline"
    assert said(made) == ("1-2", "")
    assert limits.read([made]) == Limits(cpuset_cpus=frozenset({1}))
    assert limits.impose([made], {"cpuset_cpus": None, "cpuset_mems": frozenset({0, 1})}) == {}
    assert said(made) == (Path("/sys/devices/system/cpu/possible").read_text().strip(), "0-1")
    new = fake(tmp_path / "new", V2)
    assert limits.impose([new], {"cpuset_cpus": None}) == {}
    assert said(new) == ("", "")


def test_a_fence_that_fake_cgroups_above_have_nothing_of(tmp_path: Path) -> None:
    """The kernel of version 2 takes it, and goes by what they have: that is no fence."""
    made = fake(tmp_path, V2)
    why = f"{made}/cpuset.cpus: the cgroups above it have none of that"
    assert limits.impose([made], {"cpuset_cpus": frozenset({7})}) == {"cpuset_cpus": why}
    assert not limits.agree("cpuset_cpus", frozenset({7}), frozenset({0}))
    assert not limits.agree("cpuset_cpus", frozenset({7}), None)
    assert limits.agree("cpuset_mems", frozenset({0, 1}), frozenset({1}))


def test_a_new_fake_v1_cgroup_is_filled(tmp_path: Path) -> None:
    """Each below the daemon's own has all that there is, or it could hold no process; what a fence left it has."""
    own = fake(tmp_path, OWN)
    tag, web = fake(own / "tag", NEW), fake(own / "tag/web", NEW)
    cpuset.fill(web, own)
    assert (said(tag), said(web)) == (("0-3", "0-1"), ("0-3", "0-1"))
    assert (web / "cpuset.memory_migrate").read_text() == "1"
    fake(web, {"cpuset.cpus": "2"})
    fake(tag, {"cpuset.cpus": "0-2"})
    cpuset.fill(web, own)
    assert (said(tag)[0], said(web)[0]) == ("0-3", "2")


def test_a_fake_v1_fence_is_what_is_had_of_it(tmp_path: Path) -> None:
    """Its kernel refuses what is offline; no fence is all that is above."""
    own = fake(tmp_path, OWN)
    web = fake(own / "web", OWN)
    assert limits.impose([web], {"cpuset_cpus": frozenset({2, 3, 4})}) == {}
    assert said(web) == ("2-3", "0-1")
    assert limits.impose([web], {"cpuset_cpus": None, "cpuset_mems": frozenset({1})}) == {}
    assert said(web) == ("0-3", "1")
    assert cpuset.spell(web, "cpuset.cpus", frozenset({9})) == ["9"], "the kernel says why not"


async def test_what_was_offline_comes_back_fake(tmp_path: Path) -> None:
    """Version 1 took it from all but the root, and moved the processes out of what had nothing left."""
    own = fake(tmp_path / "c", OWN)
    tag, web = fake(own / "tag", OWN), fake(own / "tag/web", OWN | {"cpuset.cpus": "2-3"})
    other = fake(tmp_path / "f", {"cgroup.procs": "7\n8\n"})
    fences = {"cpuset_cpus": frozenset({2, 3}), "cpuset_mems": None}
    found = Cgroup([other, web])
    assert not found.has_lost(fences) and await found.mend(fences) is False
    fake(tag, {"cpuset.cpus": "0-1"})
    fake(web, {"cpuset.cpus": "\n", "cpuset.mems": "0"})
    assert found.has_lost(fences) and await found.mend(fences) is True
    assert (said(tag), said(web)) == (("0-3", "0-1"), ("2-3", "0-1"))
    assert (web / "cgroup.procs").read_text() in ("7", "8")
    fake(own, {"cpuset.cpus": "0-2"})  # 3 is offline
    fake(web, {"cpuset.cpus": "2"})
    assert not found.has_lost(fences) and await found.mend(fences) is False
    (web / "cpuset.cpus").unlink()
    assert found.has_lost(fences)
    with pytest.raises(HostError, match="could not give it CPUs and nodes again that were offline"):
        await found.mend(fences)


@pytest.fixture
def tree() -> Iterator[CgroupTree]:
    """Cgroups in the hierarchies of version 1 that this machine has."""
    v1 = detect().v1
    if missing := {"cpuset", "freezer"} - v1.keys():
        pytest.skip(f"this machine has no cgroup version 1 for {', '.join(sorted(missing))}")
    here = {name: v1[name] for name in ("cpuset", "freezer")}
    yield CgroupTree(f"qsup-test-{uuid.uuid4().hex[:8]}", hierarchies=Hierarchies(unified=None, v1=here))


@pytest.fixture
async def real(tree: CgroupTree) -> AsyncIterator[Cgroup]:
    """One of them."""
    made = tree.create("web")
    try:
        yield made
    finally:
        await made.end()


@contextmanager
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits to be killed."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def cpuset_of(pid: int) -> str:
    """The cpuset that a process is in."""
    return Path(f"/proc/{pid}/cpuset").read_text().strip()


@pytest.mark.root
def test_what_a_launch_left_half_done_is_found(tree: CgroupTree) -> None:
    """Its record names no cgroup yet: whoever makes them again has the cpuset, too, without the fence it had."""
    made = tree.create("web")
    assert made.impose({"cpuset_cpus": frozenset({0})}) == {}
    again = tree.create("web")
    try:
        assert again.paths == made.paths
        assert again.limits().cpuset_cpus == frozenset(os.sched_getaffinity(0))
    finally:
        for path in made.paths:
            path.rmdir()
            path.parent.rmdir()


@pytest.mark.root
async def test_a_real_v1_cpuset_is_made_once_it_is_needed(real: Cgroup, tree: CgroupTree) -> None:
    """By who asks for one, and processes that run already are moved into it; the next daemon finds it unrecorded."""
    (freezer,) = real.paths
    assert (real.why_not("cpuset_cpus"), real.limits()) == ("", Limits())
    with sleeping() as child:
        assert await real.join(child.pid) == ""
        assert real.impose({"cpuset_cpus": None}) == {} and real.paths == (freezer,)
        assert await real.change({"cpuset_cpus": frozenset({0})}) == {}
        assert (len(real.paths), real.holds(child.pid), any(map(cpuset.is_v1, real.paths))) == (2, True, True)
        assert cpuset_of(child.pid).endswith(f"/{tree.tag}/web")
        assert real.limits().cpuset_cpus == frozenset({0})
        assert os.sched_getaffinity(child.pid) == {0}
        os.sched_setaffinity(child.pid, {0, 1})
        assert os.sched_getaffinity(child.pid) == {0}, "nothing leads out"
        found = tree.reopen("web", [str(freezer)])
        assert found.paths == real.paths
        (why,) = (await found.change({"cpuset_mems": frozenset({5})})).values()
        assert why.endswith("/cpuset.mems: Permission denied") or why.endswith("/cpuset.mems: Invalid argument")
        assert await found.change({"cpuset_cpus": None}) == {}
        assert os.sched_getaffinity(child.pid) == os.sched_getaffinity(0)
