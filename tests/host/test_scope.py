"""Tests of `qsup.host.scope` and `qsup.host.systemd`, with a fake systemd: a bus and cgroups of a test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from qsup.errors import HostError
from qsup.host.cgroup import CgroupTree
from qsup.host.hierarchies import Hierarchies
from qsup.host.scope import Place, ScopeManager, escape, lingers, properties_of, root_of
from qsup.host.systemd import Refused, Systemd, find
from qsup.unit.kinds import INSTANCE_PATTERN
from tests.host.fakebus import SYSTEMD, FakeSystemd, unescape

MIB = 1 << 20
WANTED = {"cpu": 500, "cpu_weight": 200, "memory": 64 * MIB, "pids": 300}
EXISTS = (f"{SYSTEMD}.UnitExists", "Unit qsup-web.scope already exists.")
#: A process that is there.
PID = os.getpid()

names = st.from_regex(INSTANCE_PATTERN, fullmatch=True)


@given(names)
@example("web@blue")
@example("a-b")
def test_a_name_comes_back_out_of_its_escape(name: str) -> None:
    """As ``systemd-escape --unescape`` does it, and no separator of ours is left in it."""
    assert unescape(escape(name)) == name
    assert not {"-", "@", "/"} & set(escape(name))


@given(st.text(min_size=1, max_size=20).filter(lambda text: "/" not in text and "\0" not in text))
@example(".hidden")
@example("ü€")
def test_an_escape_has_only_characters_of_unit_names(name: str) -> None:
    """Whatever a name is made of."""
    assert set(escape(name)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.\\")
    assert not escape(name).startswith(".")
    assert unescape(escape(name)) == name


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="systemd-escape is not installed")
def test_escapes_are_those_of_systemd() -> None:
    """Of the names that a VM may have, and of some that it may not."""
    said = ["web", "my-web", "web@blue", "a.b_c:d", ".hidden", "ü", "x\\y"]
    done = subprocess.run(["systemd-escape", *said], capture_output=True, text=True, check=True)
    assert list(map(escape, said)) == done.stdout.split()


@given(names, names, st.sampled_from(["qsup", "qsup-0123abcd"]), st.sampled_from(["qsup", "qsup-0123abcd"]))
@example("0123abcd-web", "web", "qsup", "qsup-0123abcd")
def test_no_two_vms_have_one_scope(one: str, other: str, tag: str, tag_of_other: str) -> None:
    """Of one daemon or of two."""
    where = Systemd(bus="/nowhere", is_system=True)
    units = [
        Place(tag=each, systemd=where, root=Path("/")).unit(name) for name, each in ((one, tag), (other, tag_of_other))
    ]
    assert (units[0] == units[1]) == ((one, tag) == (other, tag_of_other))


def test_limits_in_the_words_of_systemd() -> None:
    """In its units; none is what it calls infinity."""
    told = {each.name: (each.signature, each.value) for each in properties_of(WANTED)}
    assert told == {
        "CPUQuotaPerSecUSec": ("t", 500_000),
        "CPUWeight": ("t", 200),
        "MemoryMax": ("t", 64 * MIB),
        "TasksMax": ("t", 300),
    }
    assert {each.value for each in properties_of(dict.fromkeys(WANTED))} == {(1 << 64) - 1}
    devices = properties_of({"io_read_bps": (("8:0", 5), ("8:16", 6)), "io_write_iops": None, "swap": 0})
    assert [(each.name, each.value) for each in devices] == [
        ("IOReadBandwidthMax", []),
        ("IOReadBandwidthMax", [("/dev/block/8:0", 5), ("/dev/block/8:16", 6)]),
        ("IOWriteIOPSMax", []),
        ("MemorySwapMax", 0),
    ]


def test_where_the_cgroups_of_a_systemd_are(tmp_path: Path) -> None:
    """Above the one that it is in itself; a user's has them below, and what is no systemd has none."""
    (tmp_path / "init.scope").mkdir()
    first = Hierarchies(unified=tmp_path / "init.scope")
    assert root_of(first, 0) == tmp_path
    assert root_of(first, 1000) is None
    own = tmp_path / "user.slice/user-1000.slice/user@1000.service"
    (own / "init.scope").mkdir(parents=True)
    assert root_of(first, 1000) == own
    assert root_of(Hierarchies(unified=tmp_path / "docker"), 0) is None
    assert root_of(Hierarchies(unified=None), 0) is None


def test_whose_systemd_outlives_a_logout(tmp_path: Path) -> None:
    """Whom logind has a file of; a uid without a name has none."""
    (tmp_path / "nobody").touch()
    assert lingers(65534, directory=tmp_path)
    assert not lingers(0, directory=tmp_path)
    assert not lingers(4_000_000, directory=tmp_path)


def test_which_bus_is_asked(tmp_path: Path) -> None:
    """The usual one, or what the environment names; none where systemd does not run the host."""
    assert find({}, 0, booted=tmp_path / "absent") is None
    assert find({}, 0, booted=tmp_path) == Systemd(bus="/run/dbus/system_bus_socket", is_system=True)
    assert find({}, 1000, booted=tmp_path) == Systemd(bus="/run/user/1000/bus", is_system=False)
    session = {"DBUS_SESSION_BUS_ADDRESS": "tcp:host=a;unix:guid=1,path=/x/bus"}
    assert find(session, 1000, booted=tmp_path) == Systemd(bus="/x/bus", is_system=False)
    assert find({"DBUS_SYSTEM_BUS_ADDRESS": "unix:abstract=x"}, 0, booted=tmp_path) == find({}, 0, booted=tmp_path)


@pytest.fixture
async def fake(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[FakeSystemd]:
    """A systemd that has all controllers to give."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c/cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    found = FakeSystemd(root=tmp_path / "c", path=tmp_path / "bus")
    await nursery.start(found.run)
    yield found


@pytest.fixture
def manager(fake: FakeSystemd, tmp_path: Path) -> ScopeManager:
    """Makes scopes there; what has none is below the directory ``own``."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/cgroup.procs").touch()
    place = Place(tag="qsup", systemd=fake.systemd, root=fake.root)
    return ScopeManager(place, CgroupTree("qsup", hierarchies=Hierarchies(unified=tmp_path / "own")))


async def test_a_fake_systemd_is_told_all_of_a_scope(fake: FakeSystemd, manager: ScopeManager) -> None:
    """Where it is, whose processes are in it, what stops before and after it, and its limits, which are read back."""
    made = manager.create("web", "a shop")
    assert (made.impose(WANTED), made.missed) == ({}, {})
    assert await made.join(PID) == ""
    told = fake.started["qsup-web.scope"]
    assert {name: told[name] for name in ("Description", "Slice", "Delegate", "CollectMode", "PIDs")} == {
        "Description": "QEMU virtual machine web: a shop",
        "Slice": "qsup.slice",
        "Delegate": True,
        "CollectMode": "inactive-or-failed",
        "PIDs": [PID],
    }
    assert (told["Before"], told["After"]) == (["qsup-guests.service"], ["network.target", "remote-fs.target"])
    assert made.paths == (fake.root / "qsup.slice/qsup-web.scope",)
    assert made.holds(PID)
    assert (made.limits().cpu, made.limits().memory, made.missed, made.trouble) == (500, 64 * MIB, {}, "")


async def test_limits_of_a_fake_scope_change_by_asking(fake: FakeSystemd, manager: ScopeManager) -> None:
    """So systemd never writes over them; what it refuses is told in its words."""
    made = manager.create("web")
    await made.join(PID)
    assert await made.change({"cpu": 1500, "pids": None}) == {}
    assert made.limits().cpu == 1500
    assert fake.calls[-2:] == ["SetUnitProperties", "GetUnit"]
    fake.errors["SetUnitProperties"] = [(f"{SYSTEMD}.NoSuchUnit", "Unit qsup-web.scope not loaded.")]
    assert await made.change({"cpu": 1}) == {"cpu": "systemd: Unit qsup-web.scope not loaded."}


async def test_a_fence_of_a_fake_scope_is_a_mask(fake: FakeSystemd, manager: ScopeManager) -> None:
    """A bit for each CPU and node, the lowest byte first; none at all where there is no fence any more."""
    made = manager.create("web")
    made.impose({"cpuset_cpus": frozenset({0, 9}), "cpuset_mems": frozenset({1})})
    await made.join(PID)
    told = fake.started["qsup-web.scope"]
    assert (bytes(told["AllowedCPUs"]), bytes(told["AllowedMemoryNodes"])) == (b"\x01\x02", b"\x02")
    assert (made.limits().cpuset_cpus, made.limits().cpuset_mems, made.missed) == (
        frozenset({0, 9}),
        frozenset({1}),
        {},
    )
    assert await made.change({"cpuset_cpus": None, "cpuset_mems": frozenset({0, 1})}) == {}
    assert made.limits().cpuset_mems == frozenset({0, 1})
    assert (made.limits().cpuset_cpus or frozenset()) >= os.sched_getaffinity(0), "what systemd does not lift"
    told = {each.name: (each.signature, each.value) for each in properties_of({"cpuset_cpus": None})}
    assert told == {"AllowedCPUs": ("ay", b"")}


async def test_what_a_fake_kernel_did_not_take_is_not_kept(fake: FakeSystemd, manager: ScopeManager) -> None:
    """Systemd says yes all the same; a limit of a page's part is none of that."""
    fake.ignored = {"MemoryMax"}
    made = manager.create("web")
    made.impose({"memory": 64 * MIB, "memory_high": 32 * MIB})
    await made.join(PID)
    assert made.missed == {"memory": "systemd took it, and the kernel did not"}
    assert set(await made.change({"memory": 32 * MIB})) == {"memory"}


async def test_a_fake_systemd_without_a_controller(fake: FakeSystemd, manager: ScopeManager) -> None:
    """It is known before there is a scope, and systemd is not told of such a limit."""
    (fake.root / "cgroup.controllers").write_text("memory pids\n")
    made = manager.create("web")
    why = {"cpu": "systemd has no cpu controller to give", "cpu_weight": "systemd has no cpu controller to give"}
    assert made.impose(WANTED) == why
    await made.join(PID)
    assert "CPUWeight" not in fake.started["qsup-web.scope"]
    assert made.missed == why
    assert await made.change({"cpu": 1}) == {"cpu": why["cpu"]}


async def test_a_fake_scope_that_is_over_makes_room(fake: FakeSystemd, manager: ScopeManager) -> None:
    """One of the same name that has failed is forgotten."""
    fake.errors["StartTransientUnit"] = [EXISTS, EXISTS]
    made = manager.create("web")
    await made.join(PID)
    assert (made.trouble, fake.calls.count("ResetFailedUnit")) == ("", 2)


async def test_a_fake_scope_of_somebody_else_is_left_alone(fake: FakeSystemd, manager: ScopeManager) -> None:
    """It has processes, and they are named; the VM gets a cgroup of the daemon's own, and its limits there."""
    theirs = fake.root / "qsup.slice/qsup-web.scope"
    theirs.mkdir(parents=True)
    (theirs / "cgroup.procs").write_text("1\n")
    fake.errors["StartTransientUnit"] = [EXISTS]
    made = manager.create("web")
    made.impose({"pids": 300})
    await made.join()
    assert made.trouble == "it has no scope of systemd's: qsup-web.scope is there already, with processes 1"
    assert [path.name for path in made.paths] == ["web"]
    assert made.missed == {"pids": "the host offers the daemon no pids controller"}
    assert (made.why_not("pids"), await made.change({"pids": 5})) == (made.missed["pids"], made.missed)


async def test_what_there_is_in_place_of_a_fake_scope_is_all_known(fake: FakeSystemd, tmp_path: Path) -> None:
    """Also a cpuset of version 1, which is made as its limits are: else nobody would be in it, or remove it."""
    for name in ("own", "cpuset"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    here = Hierarchies(unified=tmp_path / "own", v1={"cpuset": tmp_path / "cpuset"})
    place = Place(tag="qsup", systemd=fake.systemd, root=fake.root)
    fake.errors["StartTransientUnit"] = [(f"{SYSTEMD}.NoSuchUnit", "no")]
    made = ScopeManager(place, CgroupTree("qsup", hierarchies=here)).create("web")
    made.impose({"cpuset_cpus": frozenset({0})})
    await made.join()
    assert made.paths == (tmp_path / "own/qsup/web", tmp_path / "cpuset/qsup/web")


@pytest.mark.parametrize("silent", ["Hello", "AddMatch", "StartTransientUnit"])
async def test_a_fake_systemd_that_does_not_answer_is_not_waited_for(fake: FakeSystemd, silent: str) -> None:
    """Longer than an errand may take."""
    fake.silent = {silent}
    with pytest.raises(HostError, match=r"systemd did not answer within 0\.05 s"):
        async with fake.systemd.connected(seconds=0.05) as connection:
            await connection.start_transient("qsup-x.scope", [])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NoSuchUnit", "Unit qsup.slice is masked."),
        ("TransactionIsDestructive", "Transaction for qsup-web.scope/start is destructive."),
    ],
)
async def test_what_a_fake_systemd_refuses_is_told(
    fake: FakeSystemd, manager: ScopeManager, name: str, words: str
) -> None:
    """In its words, as a trouble of the VM."""
    fake.errors["StartTransientUnit"] = [(f"{SYSTEMD}.{name}", words)]
    made = manager.create("web")
    await made.join()
    assert made.trouble == f"it has no scope of systemd's: systemd: {words}"


async def test_a_job_that_fails_on_a_fake_bus(fake: FakeSystemd, manager: ScopeManager) -> None:
    """As it does when the process has gone meanwhile."""
    fake.result = "failed"
    made = manager.create("web")
    await made.join()
    assert made.trouble == "it has no scope of systemd's: systemd did not start qsup-web.scope: failed"


async def test_no_bus_at_all(tmp_path: Path) -> None:
    """Is told with the socket; so is one where nobody listens, or somebody else."""
    with pytest.raises(HostError, match=r"no D-Bus connection to systemd by .*/bus: No such file or directory"):
        async with Systemd(bus=str(tmp_path / "bus"), is_system=True).connected():
            raise AssertionError


@pytest.mark.parametrize("said", [b"", b"REJECTED EXTERNAL\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"OK 0123\r\n"])
async def test_whatever_answers_in_place_of_a_fake_bus_fails_nobody(
    tmp_path: Path, nursery: trio.Nursery, said: bytes
) -> None:
    """It is an error in words."""
    with trio.socket.socket(trio.socket.AF_UNIX) as listening:
        await listening.bind(str(tmp_path / "bus"))
        listening.listen()

        async def answer() -> None:
            connection, _ = await listening.accept()
            with connection:
                await connection.send(said)
                connection.shutdown(trio.socket.SHUT_WR)
                while await connection.recv(4096):
                    pass

        nursery.start_soon(answer)
        with pytest.raises(HostError, match="systemd"):
            async with Systemd(bus=str(tmp_path / "bus"), is_system=True).connected(seconds=1.0):
                raise AssertionError


async def test_a_refusal_has_its_name_on_a_fake_bus(fake: FakeSystemd) -> None:
    """Whoever asked can tell one from another."""
    fake.errors["ResetFailedUnit"] = [(f"{SYSTEMD}.NoSuchUnit", "no such")]
    with pytest.raises(Refused) as refused:
        async with fake.systemd.connected() as connection:
            await connection.call("ResetFailedUnit", "s", "x.scope")
    assert (refused.value.name, refused.value.message) == (f"{SYSTEMD}.NoSuchUnit", "systemd: no such")


async def test_a_fake_scope_is_found_again(fake: FakeSystemd, manager: ScopeManager) -> None:
    """By the directories of a record, and no other's; what joins it then does so without systemd."""
    made = manager.create("web")
    await made.join(PID)
    recorded = list(map(str, made.paths))
    fake.calls.clear()
    again = manager.reopen("web", recorded)
    assert (again.paths, again.holds(PID), again.trouble) == (made.paths, True, "")
    assert (await again.join(PID), fake.calls) == ("", [])
    assert await again.change({"pids": 7}) == {}
    assert again.limits().pids == 7
    shutil.rmtree(made.paths[0])
    fake.started.clear()
    late = manager.reopen("web", recorded)
    assert (late.holds(PID), await late.join(PID), late.holds(PID)) == (False, "", True)
    assert list(fake.started) == ["qsup-web.scope"]
    assert manager.reopen("web", ["/", "/sys/fs/cgroup"]).paths == ()


async def test_a_cgroup_of_before_is_found_again_beside_a_fake_systemd(manager: ScopeManager, tmp_path: Path) -> None:
    """One that the daemon made itself stays what it is, and that is told."""
    own = tmp_path / "own/qsup/web"
    own.mkdir(parents=True)
    found = manager.reopen("web", [str(own)])
    assert found.paths == (own,)
    assert "no scope of systemd's" in found.trouble


async def test_systemd_removes_a_fake_scope_and_we_do_not(
    fake: FakeSystemd, manager: ScopeManager, nursery: trio.Nursery
) -> None:
    """Its end is waited for, for a bounded time, and the slice stays."""
    made = manager.create("web")
    await made.join(PID)
    directory = made.paths[0]
    (directory / "cgroup.procs").write_text("")
    with pytest.raises(HostError, match="did not empty within"):
        await made.remove(seconds=0.05)
    shutil.rmtree(directory)
    await made.remove()
    assert directory.parent.is_dir()


async def test_an_oom_kill_is_told_though_a_fake_scope_is_gone(fake: FakeSystemd, manager: ScopeManager) -> None:
    """By the slice, which counts for all in it; each is told once."""
    made = manager.create("web")
    await made.join(PID)
    (made.paths[0] / "memory.events").write_text("oom_kill 0\n")
    (made.paths[0].parent / "memory.events").write_text("oom_kill 1\n")
    assert not made.was_oom_killed(0)
    shutil.rmtree(made.paths[0])
    assert made.was_oom_killed(0)
    assert not made.was_oom_killed(0)


async def test_a_kill_in_a_scope_of_another_fake_daemon_is_not_ours(fake: FakeSystemd, manager: ScopeManager) -> None:
    """All are in one slice: what it had counted when a VM's scope was made is nobody's."""
    slice_ = fake.root / "qsup.slice"
    slice_.mkdir()
    (slice_ / "memory.events").write_text("oom_kill 3\n")
    made = manager.create("web")
    await made.join(PID)
    shutil.rmtree(made.paths[0])
    assert not made.was_oom_killed(0)


async def test_a_kill_that_a_fake_scope_has_told_itself_is_told_once(fake: FakeSystemd, manager: ScopeManager) -> None:
    """It is the slice's, too, and no other VM's."""
    web, db = manager.create("web"), manager.create("db")
    for made in (web, db):
        await made.join(PID)
        (made.paths[0] / "memory.events").write_text("oom_kill 0\n")
    (web.paths[0] / "memory.events").write_text("oom_kill 1\n")
    (web.paths[0].parent / "memory.events").write_text("oom_kill 1\n")
    assert web.was_oom_killed(0)
    shutil.rmtree(db.paths[0])
    assert not db.was_oom_killed(0)
