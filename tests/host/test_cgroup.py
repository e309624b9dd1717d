"""Tests of `qsup.host.cgroup`: a cgroup per VM, on the hierarchies that are really mounted."""

from __future__ import annotations

import errno
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

from qsup.errors import HostError
from qsup.host.cgroup import Cgroup, CgroupTree
from qsup.host.counted import CgroupStats
from qsup.host.hierarchies import Hierarchies, detect, parse_hierarchies
from qsup.host.process import Credentials, Process, spawn
from tests.host.children import is_stopped
from tests.waiting import wait_until

V2_MOUNT = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID_MOUNTS = """\
24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 24 0:27 / /sys/fs/cgroup/memory rw shared:7 - cgroup cgroup rw,memory
33 24 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
34 24 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
35 24 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
HYBRID_MEMBERSHIP = "5:pids:/x\n4:memory:/user.slice\n3:cpu,cpuacct:/\n1:name=systemd:/y\n0::/user.slice/s:1.scope\n"


def test_unified_host() -> None:
    """On a host of version 2 the daemon's own cgroup is the one place."""
    found = parse_hierarchies(V2_MOUNT, "0::/system.slice/qsupd.service\n")
    assert found == Hierarchies(unified=Path("/sys/fs/cgroup/system.slice/qsupd.service"))


def test_hybrid_host() -> None:
    """Beside the unified tree, controllers of version 1 are used where they are mounted, joined ones once."""
    found = parse_hierarchies(HYBRID_MOUNTS, HYBRID_MEMBERSHIP)
    assert found.unified == Path("/sys/fs/cgroup/unified/user.slice/s:1.scope")
    assert found.v1 == {
        "cpu": Path("/sys/fs/cgroup/cpu,cpuacct"),
        "cpuacct": Path("/sys/fs/cgroup/cpu,cpuacct"),
        "memory": Path("/sys/fs/cgroup/memory/user.slice"),
        "pids": Path("/sys/fs/cgroup/pids/x"),
    }


def test_container_sees_part_of_the_tree() -> None:
    """Where only a part of the tree is mounted, paths count from there."""
    found = parse_hierarchies(V2_MOUNT.replace(" / /sys", " /docker/abc /sys"), "0::/docker/abc/inner\n")
    assert found.unified == Path("/sys/fs/cgroup/inner")


def test_host_without_cgroups() -> None:
    """Without any hierarchy a VM has no cgroup, and the reason is told; nothing fails."""
    found = parse_hierarchies("", "0::/\n")
    made = CgroupTree("qsup-test", hierarchies=found).create("web")
    assert made.paths == ()
    assert made.absence == "without a cgroup of its own in: no cgroup hierarchy is mounted"
    assert made.members() == frozenset()
    assert made.stats() == CgroupStats()


async def test_absent_cgroup_does_nothing() -> None:
    """What has no directory is joined, killed and removed without an error."""
    absent = Cgroup(absence="none here")
    assert await absent.join(os.getpid()) == ""
    await absent.kill()
    await absent.remove()


def test_undelegated_tree_is_an_absence(tmp_path: Path) -> None:
    """A tree that may not be used gives an absence that names the place and the reason."""
    own = tmp_path / "absent"
    made = CgroupTree("qsup-test", hierarchies=Hierarchies(unified=own)).create("web")
    assert made.paths == ()
    assert made.absence == f"without a cgroup of its own in: {own}/qsup-test/web: not delegated to this user"


@pytest.fixture
def tree() -> Iterator[CgroupTree]:
    """A tree of our own on the real hierarchies; nothing of it may be left."""
    hierarchies = detect()
    tag = f"qsup-test-{uuid.uuid4().hex[:8]}"
    yield CgroupTree(tag, hierarchies=hierarchies)
    tops = [top for top in (hierarchies.unified, *hierarchies.v1.values()) if top]
    left = [path for top in tops for path in (top / tag).glob("*/")]
    if left:
        trio.run(clear, Cgroup(left))
    assert not left


async def clear(left: Cgroup) -> None:
    """Take away what a failed test left."""
    await left.kill()
    await left.remove()


async def start(made: Cgroup, script: str = "exec sleep 60") -> Process:
    """A process in a cgroup."""
    null = os.open(os.devnull, os.O_WRONLY)
    process = await spawn(
        ["/bin/sh", "-c", script],
        output_fd=null,
        credentials=Credentials(uid=720_124, gid=720_124),
    )
    os.close(null)
    assert await made.join(process.pid) == ""
    return process


@pytest.mark.root
async def test_process_is_in_every_hierarchy(tree: CgroupTree) -> None:
    """A process joins all directories, so whatever it does later happens inside."""
    made = tree.create("web")
    assert made.paths
    assert not made.absence
    process = await start(made)
    assert [members(path) for path in made.paths] == [{process.pid}] * len(made.paths)
    await made.kill()
    with trio.fail_after(5):
        assert (await process.wait_exit()).describe() == "signal KILL"
    await process.aclose()
    await made.remove()


def members(path: Path) -> set[int]:
    """The processes of one directory."""
    return {int(pid) for pid in (path / "cgroup.procs").read_text().split()}


@pytest.mark.root
@pytest.mark.parametrize("versions", ["all", "v1", "v2"])
async def test_kill_takes_the_whole_tree(tree: CgroupTree, versions: str) -> None:
    """Children and what they started die too, by version 2's own means or through the freezer of version 1."""
    hierarchies = detect()
    limited = {
        "all": hierarchies,
        "v1": attrs.evolve(hierarchies, unified=None),
        "v2": attrs.evolve(hierarchies, v1={}),
    }[versions]
    made = CgroupTree(tree.tag, hierarchies=limited).create("web")
    if not made.paths:
        pytest.fail(f"this host mounts no cgroup {versions}")
    process = await start(made, "kill -STOP $$; (sleep 60 & sleep 60) & exec sleep 60")
    await wait_until(lambda: is_stopped(process.pid), "the process waits")
    process.send_signal(signal.SIGCONT)
    await wait_until(lambda: len(made.members()) == 3, "all have started")
    await made.kill()
    with trio.fail_after(5):
        await process.wait_exit()
        await wait_until(lambda: not made.members(), "all are gone")
    await process.aclose()
    await made.remove()


@pytest.mark.root
@pytest.mark.parametrize("versions", ["v1", "v2"])
async def test_what_somebody_has_frozen_can_be_killed(tree: CgroupTree, versions: str) -> None:
    """It is seen to be frozen; SIGKILL ends it once it is thawed, where it needs to be, and so does `kill`."""
    found = detect()
    made = CgroupTree(tree.tag, hierarchies=attrs.evolve(found, v1={"freezer": found.v1["freezer"]})).create("web")
    (freezer,) = (path for path in made.paths if (path / "freezer.state").exists())
    file, frozen = (freezer / "freezer.state", "FROZEN") if versions == "v1" else (made.paths[0] / "cgroup.freeze", "1")
    for kill in (False, True):
        process = await start(made)
        assert not made.frozen()
        file.write_text(frozen)
        await wait_until(made.frozen, "it is frozen")
        if kill:
            await made.kill()
        else:
            process.send_signal(signal.SIGKILL)
            made.thaw()
        with trio.fail_after(5):
            assert (await process.wait_exit()).describe() == "signal KILL"
        await process.aclose()
        file.write_text("THAWED" if versions == "v1" else "0")
    await made.remove()


@pytest.mark.root
async def test_member_that_cannot_be_reached_is_named(tree: CgroupTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a member cannot be killed for want of a descriptor, the error says so in the kernel's words."""

    def refuse(_pid: int) -> int:
        raise OSError(errno.EMFILE, "no words of the kernel")

    made = CgroupTree(tree.tag, hierarchies=attrs.evolve(detect(), unified=None)).create("web")
    process = await start(made)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pidfd_open", refuse)
        with pytest.raises(HostError, match=f"could not kill process {process.pid} of a cgroup: Too many open files"):
            await made.kill()
    await made.kill()
    with trio.fail_after(5):
        assert (await process.wait_exit()).describe() == "signal KILL"
    await process.aclose()
    await made.remove()


@pytest.mark.root
async def test_what_cannot_join(tree: CgroupTree, tmp_path: Path) -> None:
    """A process that has ended is no matter; a directory that takes no process is told with the reason."""
    made = tree.create("web")
    process = await start(made)
    reason = await Cgroup([tmp_path / "absent"]).join(process.pid)
    assert reason == f"could not be moved into its cgroup: {tmp_path}/absent: No such file or directory"
    await made.kill()
    with trio.fail_after(5):
        await process.wait_exit()
    assert await made.join(process.pid) == ""
    await process.aclose()
    await made.remove()


@pytest.mark.root
async def test_busy_cgroup_is_named(tree: CgroupTree) -> None:
    """A cgroup that does not empty is an error that names its processes, after the time given and not before."""
    made = tree.create("web")
    process = await start(made)
    with pytest.raises(HostError, match=rf"did not empty within 0\.05 s \(processes: {process.pid}\)"):
        await made.remove(seconds=0.05)
    process.send_signal(signal.SIGKILL)
    with trio.fail_after(5):
        await process.wait_exit()
    await process.aclose()
    await made.remove()
    await made.remove()


@pytest.mark.root
async def test_found_again_by_its_paths(tree: CgroupTree) -> None:
    """A later daemon finds the cgroup by the recorded paths; once it is gone, that is an absence."""
    made = tree.create("web")
    process = await start(made)
    again = tree.reopen("web", [str(path) for path in made.paths])
    assert again.members() == {process.pid}
    await again.kill()
    with trio.fail_after(5):
        await process.wait_exit()
    await process.aclose()
    await again.remove()
    assert tree.reopen("web", [str(path) for path in made.paths]).absence == "its cgroup is gone"


@pytest.mark.root
async def test_a_record_cannot_name_a_strangers_cgroup(tree: CgroupTree) -> None:
    """Whoever is in a VM's cgroup is killed at its end, so only those below this daemon's own are taken."""
    other = CgroupTree(f"{tree.tag}-other")
    made = other.create("web")
    assert tree.reopen("web", [str(path) for path in made.paths]).paths == ()
    assert tree.reopen("web", ["/", "/sys/fs/cgroup", str(made.paths[0].parent)]).paths == ()
    await made.remove()


@pytest.mark.root
async def test_what_a_vm_leaves_is_ended(tree: CgroupTree) -> None:
    """At the end of a VM whoever is left in its cgroup is killed, and the cgroup is gone."""
    made = tree.create("web")
    process = await start(made)
    await made.end()
    with trio.fail_after(5):
        assert (await process.wait_exit()).describe() == "signal KILL"
    await process.aclose()
    assert not any(path.exists() for path in made.paths)
    await made.end()


@pytest.mark.root
async def test_two_vms_have_two_cgroups(tree: CgroupTree) -> None:
    """Removing one VM's cgroup leaves the other's, and the common parent goes with the last."""
    web, mail = tree.create("web"), tree.create("mail@blue")
    await web.remove()
    process = await start(mail)
    await mail.kill()
    with trio.fail_after(5):
        await process.wait_exit()
    await process.aclose()
    await mail.remove()


@pytest.mark.root
async def test_counts_what_was_used(tree: CgroupTree) -> None:
    """CPU time that a process takes from then on is counted, and memory where a controller counts it."""
    made = tree.create("web")
    process = await start(made, 'while :; do x="$x$0$0$0$0$0$0$0$0"; done')
    await wait_until(lambda: (made.stats().cpu_seconds or 0) > 0.02, "CPU time has been counted")
    if "memory" in detect().v1:
        await wait_until(lambda: made.stats().memory_bytes, "memory has been counted")
    await made.kill()
    with trio.fail_after(5):
        await process.wait_exit()
    await process.aclose()
    await made.remove()


@pytest.mark.parametrize(
    ("file", "text", "kills"),
    [
        ("memory.events", "low 0\nhigh 2\nmax 7\noom 1\noom_kill 3\noom_group_kill 0\n", 3),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", 0),
        ("memory.events", "", 0),
        ("cgroup.procs", "", 0),
    ],
    ids=["v2", "v1", "v1-before-4.13", "empty", "no-controller"],
)
def test_reads_the_oom_kills_of_a_fake_cgroup_tree(tmp_path: Path, file: str, text: str, kills: int) -> None:
    """Whichever version counts them; 0 where none does."""
    (tmp_path / file).write_text(text)
    assert Cgroup([tmp_path, tmp_path / "gone"]).oom_kills() == kills


def test_an_oom_kill_counted_for_all_vms_of_a_fake_tree_is_told_once(tmp_path: Path) -> None:
    """Version 2 without the memory controller below the daemon's cgroup: that one counts for all below."""

    def count(kills: int) -> None:
        (tmp_path / "memory.events").write_text(f"oom 1\noom_kill {kills}\n")

    (tmp_path / "cgroup.procs").touch()
    count(3)
    fake = CgroupTree("tag", hierarchies=Hierarchies(unified=tmp_path))
    web, db = fake.create("web"), fake.reopen("db", [str(fake.create("db").paths[0])])
    assert not web.was_oom_killed(web.oom_kills())
    count(4)
    assert [web.was_oom_killed(0), db.was_oom_killed(0)] == [True, False]
    count(6)
    assert [db.was_oom_killed(0), web.was_oom_killed(0), web.was_oom_killed(0)] == [True, True, False]


def test_a_cgroup_that_counts_by_itself_needs_nobody_else_in_a_fake_tree(tmp_path: Path) -> None:
    """What was killed elsewhere below the daemon is not this VM's."""
    (tmp_path / "cgroup.procs").touch()
    (tmp_path / "memory.events").write_text("oom_kill 0\n")
    web = CgroupTree("tag", hierarchies=Hierarchies(unified=tmp_path)).create("web")
    (web.paths[0] / "memory.events").write_text("oom_kill 1\n")
    (tmp_path / "memory.events").write_text("oom_kill 5\n")
    assert [web.was_oom_killed(0), web.was_oom_killed(1)] == [True, False]


@pytest.mark.root
@pytest.mark.skipif("memory" not in detect().v1, reason="a limit is written in version 1's words")
async def test_counts_a_real_oom_kill(tree: CgroupTree) -> None:
    """A process that grows beyond its cgroup's memory is killed by the kernel, and counted."""
    made = tree.create("web")
    (memory,) = [path for path in made.paths if (path / "memory.limit_in_bytes").exists()]
    (memory / "memory.limit_in_bytes").write_text(str(8 << 20))
    assert made.oom_kills() == 0
    process = await start(made, 'x=0123456789abcdef; while :; do x="$x$x"; done')
    with trio.fail_after(10):
        assert (await process.wait_exit()).describe() == "signal KILL"
    await process.aclose()
    assert made.oom_kills() == 1
    await made.remove()
