"""Tests of `qsup.host.threadgroups`: groups of threads of a real process, in the hierarchy that has the cpu controller.

Those of version 2 with its controllers are on a host of their own (`tests.real.test_hosted_threads`).
"""

from __future__ import annotations

import errno
import os
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from qsup.host import affinity, threadgroups
from qsup.host.cgroup import Cgroup, CgroupTree
from qsup.host.hierarchies import Hierarchies, detect
from qsup.host.limits import GROUPS, directory_of
from qsup.host.process import Process, spawn
from tests.host.test_limits import V2_FILES, fake
from tests.waiting import wait_until

V1 = "cpu" in detect().v1
pytestmark = [pytest.mark.skipif(not V1, reason="the cpu controller is not version 1's")]

THREADS = 5
PROGRAM = f"""
import threading, time
for _ in range({THREADS} - 1):
    threading.Thread(target=time.sleep, args=(60,)).start()
time.sleep(60)
"""
HALF = {"vcpu_cpu": 500, "emulator_cpu": None}
NONE: dict[str, int | None] = dict.fromkeys(GROUPS)


class Fixture:
    """A process of several threads in a cgroup of its own.

    Args:
        made: the cgroup.
        process: that is in it.
    """

    def __init__(self, made: Cgroup, process: Process) -> None:
        self.made = made
        self.process = process
        self.threads = sorted(affinity.threads(process.pid))
        top = directory_of(made.paths, "cpu")
        assert top is not None
        self.top = top

    def hold(self, wanted: dict[str, int | None], vcpus: set[int]) -> dict[str, str]:
        """Have the groups kept."""
        return dict(threadgroups.hold(self.made.paths, wanted, self.process.pid, vcpus))

    def are_filled(self, vcpus: set[int]) -> bool:
        """Whether all are where they belong."""
        return threadgroups.are_filled(self.made.paths, self.process.pid, vcpus)

    def listed(self, group: str = "") -> list[int]:
        """The threads of a group, or of none."""
        return sorted(map(int, (self.top / group / "tasks").read_text().split()))

    def move(self, thread: int, directory: Path) -> None:
        """What somebody else may do."""
        (directory / "tasks").write_text(str(thread))


@pytest.fixture
async def vm() -> AsyncIterator[Fixture]:
    """One, of which nothing may be left."""
    made = CgroupTree(f"qsup-test-{uuid.uuid4().hex[:8]}").create("web")
    process = await start(PROGRAM, made)
    await wait_until(lambda: affinity.count(process.pid) == THREADS, "its threads are there")
    found = Fixture(made, process)
    yield found
    await made.kill()
    with trio.fail_after(5):
        await process.wait_exit()
    await process.aclose()
    # another daemon's, which knows its directories alone
    await CgroupTree(made.paths[0].parent.name).reopen("web", [str(path) for path in made.paths]).end()
    assert not any(path.exists() for path in made.paths)


async def start(program: str, made: Cgroup) -> Process:
    """A Python in a cgroup."""
    null = os.open(os.devnull, os.O_WRONLY)
    process = await spawn([sys.executable, "-c", program], output_fd=null)
    os.close(null)
    assert await made.join(process.pid) == ""
    return process


@pytest.mark.root
async def test_each_thread_is_in_its_group(vm: Fixture) -> None:
    """One that was moved is back, one that has left them all, too; the cgroup still has the process."""
    vcpus = set(vm.threads[2:4])
    assert not vm.are_filled(vcpus)
    assert vm.hold(HALF, vcpus) == {}
    assert (vm.listed(), vm.listed("vcpu")) == ([], sorted(vcpus))
    assert vm.listed("emulator") == sorted(set(vm.threads) - vcpus)
    assert (vm.top / "vcpu/cpu.cfs_quota_us").read_text() == "50000\n"
    assert vm.made.limits().vcpu_cpu == 500 and vm.made.limits().emulator_cpu is None
    assert vm.are_filled(vcpus)
    assert vm.made.holds(vm.process.pid) and vm.made.members() == {vm.process.pid}
    for thread, elsewhere in (
        (vm.threads[2], vm.top / "emulator"),
        (vm.threads[0], vm.top / "vcpu"),
        (vm.threads[0], vm.top),
        (vm.threads[3], vm.top.parents[1]),
        (vm.threads[4], vm.top.parents[1]),
    ):
        vm.move(thread, elsewhere)
        assert not vm.are_filled(vcpus)
        assert vm.hold(HALF, vcpus) == {}
        assert vm.are_filled(vcpus)
    more = {*vcpus, vm.threads[1]}
    assert vm.hold(HALF, more) == {} and vm.listed("vcpu") == sorted(more)


@pytest.mark.root
async def test_what_is_in_the_cgroup_besides_is_in_the_second_group(vm: Fixture) -> None:
    """A program that serves a device, with what it has started, also one that comes later."""
    vcpus = {vm.threads[1]}
    assert vm.hold(HALF, vcpus) == {}
    helper = await start("import os, time; os.fork(); time.sleep(60)", vm.made)
    try:
        await wait_until(lambda: len(vm.made.members()) == 3, "both are there")
        assert helper.pid in vm.listed() and not vm.are_filled(vcpus)
        assert vm.hold(HALF, vcpus) == {}
        assert helper.pid in vm.listed("emulator") and vm.are_filled(vcpus)
        assert len(vm.listed("emulator")) == THREADS - 1 + 2
        assert vm.made.holds(helper.pid)
        assert vm.hold(NONE, vcpus) == {} and len(vm.made.members()) == 3
    finally:
        await vm.made.kill()
        with trio.fail_after(5):
            await helper.wait_exit()
        await helper.aclose()


@pytest.mark.root
async def test_without_a_limit_there_are_no_groups(vm: Fixture) -> None:
    """All threads are in the cgroup itself then, whatever there was before."""
    assert vm.hold(HALF, set(vm.threads[1:2])) == {}
    for _ in range(2):
        assert vm.hold(NONE, set()) == {}
        assert vm.listed() == vm.threads
        assert not [path for path in vm.top.iterdir() if path.is_dir()]
    assert vm.made.members() == {vm.process.pid}


@pytest.mark.root
async def test_those_in_groups_alone_are_found_and_killed() -> None:
    """Where no other hierarchy lists them: version 1 says of the cgroup itself that nobody is in it."""
    home = detect().v1["cpu"]
    tree = CgroupTree(f"qsup-test-{uuid.uuid4().hex[:8]}", hierarchies=Hierarchies(unified=None, v1={"cpu": home}))
    made = tree.create("web")
    (path,) = made.paths
    process = await start(PROGRAM, made)
    await wait_until(lambda: affinity.count(process.pid) == THREADS, "its threads are there")
    assert threadgroups.hold(made.paths, HALF, process.pid, {affinity.threads(process.pid)[1]}) == {}
    assert (path / "cgroup.procs").read_text() == ""
    assert made.members() == {process.pid} and made.holds(process.pid)
    assert await made.join(process.pid) == "" and (path / "tasks").read_text() == ""
    await tree.reopen("web", [str(path)]).end()
    with trio.fail_after(5):
        assert (await process.wait_exit()).describe() == "signal KILL"
    await process.aclose()
    assert not path.exists()


@pytest.mark.root
async def test_more_than_the_whole_is_refused_by_the_kernel(vm: Fixture) -> None:
    """In its words: version 1 knows of no part that is more."""
    vm.made.impose({"cpu": 400})
    refused = vm.hold(HALF, set(vm.threads[1:2]))
    assert refused == {"vcpu_cpu": f"{vm.top}/vcpu/cpu.cfs_quota_us: Invalid argument"}


@pytest.mark.root
async def test_what_the_kernel_keeps_where_it_is(vm: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of its own stays in whichever group, and is no reason to miss a limit; a vCPU is."""
    vcpu, worker = vm.threads[1], vm.threads[2]
    write = Path.write_text

    def refuse(path: Path, text: str) -> int:
        if path.name == "tasks" and text == str(kept):
            raise OSError(errno.EINVAL, "no words of the kernel")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", refuse)
    kept = worker
    assert vm.hold(HALF, {vcpu}) == {}
    assert (vm.listed(), vm.listed("vcpu")) == ([worker], [vcpu])
    kept = vcpu
    assert vm.hold(HALF, {worker}) == {} and vm.listed("vcpu") == [vcpu, worker]
    assert vm.hold(NONE, set()) == {}
    refused = vm.hold(HALF, {vcpu})
    assert refused == {"vcpu_cpu": f"could not move {vcpu} by {vm.top}/vcpu/tasks: Invalid argument"}


def test_why_threads_cannot_be_in_groups_of_a_fake(tmp_path: Path) -> None:
    """Nobody keeps CPU time, or somebody forbids to move a thread; no limit is missed by who wants none."""
    why = "it has no cgroup of its own"
    assert threadgroups.hold([], HALF, os.getpid(), set()) == {"vcpu_cpu": why}
    assert threadgroups.hold([], NONE, os.getpid(), set()) == {}
    assert threadgroups.are_filled([], os.getpid(), set())
    fake(tmp_path, V2_FILES | {"cgroup.threads": "", "cgroup.subtree_control": ""})
    for group in GROUPS.values():
        fake(tmp_path / group, {"cgroup.controllers": "cpu\n", "cgroup.threads": "", "cpu.max": "max 100000\n"})
    own = threadgroups.hold([tmp_path], HALF, os.getpid(), set())
    assert own == {}
    assert (tmp_path / "vcpu/cgroup.type").read_text() == "threaded"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"
    assert (tmp_path / "vcpu/cpu.max").read_text() == "50000 100000"
    (tmp_path / "emulator/cgroup.threads").unlink()
    (tmp_path / "emulator/cgroup.threads").mkdir()
    refused = threadgroups.hold([tmp_path], HALF, os.getpid(), set())
    assert refused == {"vcpu_cpu": f"could not read {tmp_path}/emulator/cgroup.threads: Is a directory"}
    assert not threadgroups.are_filled([tmp_path], os.getpid(), set())
    (tmp_path / "cgroup.subtree_control").unlink()
    (tmp_path / "cgroup.subtree_control").mkdir()
    (words,) = threadgroups.hold([tmp_path], HALF, os.getpid(), set()).values()
    assert words.startswith("could not write '+cpu' to ")
