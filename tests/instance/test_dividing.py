"""Limits of a VM's groups of threads, changed with those of the whole: version 1 as it is really mounted."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import ChangeError, HostError, StartError
from qsup.host import threadgroups
from qsup.host.cgroup import Cgroup, CgroupTree
from qsup.host.hierarchies import Hierarchies, detect
from qsup.instance.limiting import Limiting
from qsup.unit.model import Unit
from tests.instance.test_limiting import change, unit

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif("cpu" not in detect().v1, reason="the cpu controller is not version 1's"),
]


@pytest.fixture
def child() -> Iterator[int]:
    """A process that waits to be killed."""
    found = subprocess.Popen(["sleep", "60"])
    yield found.pid
    found.kill()
    found.wait()


@pytest.fixture
def top(child: int) -> Iterator[Path]:
    """The directory for CPU time of the cgroup that it is in."""
    home = detect().v1["cpu"]
    made = CgroupTree(f"qsup-test-{uuid.uuid4().hex[:8]}", hierarchies=Hierarchies(unified=None, v1={"cpu": home}))
    (path,) = made.create("web").paths
    (path / "cgroup.procs").write_text(str(child))
    yield path
    (home / "cgroup.procs").write_text(str(child))
    assert threadgroups.remove(path)
    path.rmdir()
    path.parent.rmdir()


async def limiting_of(path: Path, child: int, of: Unit) -> Limiting:
    """The limits of a VM that runs: its one thread runs its vCPU."""
    cgroup = CgroupTree(path.parent.name).reopen("web", [str(path)])
    limiting = Limiting(cgroup, found=child)
    await limiting.impose(of)
    await limiting.divide([child])
    return limiting


def groups(path: Path) -> dict[str, str]:
    """What each may have, of those that there are."""
    files = {directory.name: directory / "cpu.cfs_quota_us" for directory in path.iterdir() if directory.is_dir()}
    return {"": (path / "cpu.cfs_quota_us").read_text().strip()} | {
        name: file.read_text().strip() for name, file in files.items()
    }


async def test_the_whole_and_its_parts_change_together(top: Path, child: int) -> None:
    """In whichever direction: a part is never more than the whole meanwhile, which the kernel would refuse."""
    steps: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"cpu": "80%"}, {"": "80000"}),
        ({"cpu": "80%", "vcpu_cpu": "70%"}, {"": "80000", "vcpu": "70000", "emulator": "-1"}),
        ({"cpu": "50%", "vcpu_cpu": "40%"}, {"": "50000", "vcpu": "40000", "emulator": "-1"}),
        ({"cpu": "2", "vcpu_cpu": "1.5", "emulator_cpu": "2"}, {"": "200000", "vcpu": "150000", "emulator": "200000"}),
        ({"cpu": "1.6", "vcpu_cpu": "1.5"}, {"": "160000", "vcpu": "150000", "emulator": "-1"}),
        ({"cpu": "1.5", "vcpu_cpu": "1.5"}, {"": "150000", "vcpu": "150000", "emulator": "-1"}),
        ({"vcpu_cpu": "1.5"}, {"": "-1", "vcpu": "150000", "emulator": "-1"}),
        ({}, {"": "-1"}),
        ({"emulator_cpu": "10%"}, {"": "-1", "vcpu": "-1", "emulator": "10000"}),
        ({"cpu": "20%"}, {"": "20000"}),
    ]
    before = unit()
    limiting = await limiting_of(top, child, before)
    for limits, kept in steps:
        after = unit(**limits)
        told = await change(limiting, before, after)
        assert groups(top) == kept
        assert limiting.is_as_divided() and limiting.is_divided == (len(kept) > 1)
        section = after.limits
        for key, each in told.items():
            assert each["limit"] == (getattr(section, key.removeprefix("limits.").replace("-", "_")) or None)
        before = after
    again = await limiting_of(top, child, before)
    assert (again.effective.cpu, again.effective.vcpu_cpu, again.troubles) == (200, None, ())


async def test_a_change_that_was_cut_short_is_undone_by_the_next_daemon(top: Path, child: int) -> None:
    """Its record says less than what the kernel was told: first of the groups, or the kernel would refuse the whole."""
    await limiting_of(top, child, unit(cpu="2", vcpu_cpu="1.5"))
    cgroup = CgroupTree(top.parent.name).reopen("web", [str(top)])
    later = Limiting(cgroup, found=child)
    await later.impose(unit(cpu="50%", vcpu_cpu="40%"))
    assert (groups(top), later.troubles) == ({"": "50000", "vcpu": "40000", "emulator": "-1"}, ())
    await limiting_of(top, child, unit(cpu="2", vcpu_cpu="1.5"))
    later = Limiting(cgroup, found=child)
    await later.impose(unit(cpu="50%"))
    assert (groups(top), later.troubles) == ({"": "50000", "vcpu": "-1", "emulator": "-1"}, ())


async def test_groups_keep_their_limits_where_the_whole_cannot_change(
    top: Path, child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were lifted for it, and are held again though the kernel refuses even what there was."""

    async def refuse(_: object, wanted: Mapping[str, Any]) -> Mapping[str, str]:
        return dict.fromkeys(wanted, "no words of the kernel")

    before = unit(cpu="80%", vcpu_cpu="70%")
    limiting = await limiting_of(top, child, before)
    with monkeypatch.context() as patched:
        patched.setattr(Cgroup, "change", refuse)
        with pytest.raises(ChangeError, match=r"limits\.cpu cannot be enforced: no words of the kernel"):
            await change(limiting, before, unit(cpu="90%", vcpu_cpu="40%"))
    assert groups(top) == {"": "80000", "vcpu": "70000", "emulator": "-1"}


async def test_all_or_none(top: Path, child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a thread cannot be moved, the whole is held to what it was, and a VM without groups has none again."""

    def refuse(*_: Any) -> None:
        raise HostError("no words of the kernel")

    before = unit(cpu="80%")
    limiting = await limiting_of(top, child, before)
    with monkeypatch.context() as patched:
        patched.setattr(threadgroups, "_fill", refuse)
        with pytest.raises(ChangeError, match=r"limits\.vcpu-cpu cannot be enforced: no words of the kernel"):
            await change(limiting, before, unit(cpu="50%", vcpu_cpu="40%"))
    assert (groups(top), limiting.troubles, limiting.is_divided) == ({"": "80000"}, (), False)
    divided = unit(cpu="80%", vcpu_cpu="70%")
    await change(limiting, before, divided)
    fill, calls = threadgroups._fill, []

    def refuse_once(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            refuse()
        fill(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(threadgroups, "_fill", refuse_once)
        with pytest.raises(ChangeError, match="no words of the kernel"):
            await change(limiting, divided, unit(cpu="50%", vcpu_cpu="40%", emulator_cpu="5%"))
    assert groups(top) == {"": "80000", "vcpu": "70000", "emulator": "-1"}
    assert limiting.effective.emulator_cpu is None and limiting.effective.vcpu_cpu == 700


async def test_what_cannot_be_put_right_is_a_trouble(top: Path, child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as it cannot; where it is required, it is why the VM does not start."""

    def refuse(*_: Any) -> None:
        raise HostError("no words of the kernel")

    said = unit(vcpu_cpu="70%", require=True)
    with monkeypatch.context() as patched:
        patched.setattr(threadgroups, "_fill", refuse)
        limiting = await limiting_of(top, child, said)
    with pytest.raises(StartError, match=r"limits\.vcpu-cpu is not enforced: no words of the kernel"):
        limiting.check_kept(said)
    await limiting.put_right()
    limiting.check_kept(said)
    assert limiting.troubles == ()


async def test_a_thread_that_was_moved_is_seen_and_put_back(top: Path, child: int) -> None:
    """One that is outside the VM's cgroup altogether from the beginning is not looked for, nor moved."""
    limiting = await limiting_of(top, child, unit(vcpu_cpu="70%"))
    assert limiting.is_as_divided()
    (top / "emulator/tasks").write_text(str(child))
    assert not limiting.is_as_divided()
    await limiting.put_right()
    assert limiting.is_as_divided()
    assert str(child) in (top / "vcpu/tasks").read_text().split()
    (top.parents[1] / "cgroup.procs").write_text(str(child))
    outside = await limiting_of(top, child, unit(vcpu_cpu="70%"))
    assert outside.is_as_divided()
    assert outside.troubles == ("its limits are not enforced: it is not in its cgroup",)


async def test_a_host_that_keeps_no_cpu_time(tmp_path: Path) -> None:
    """It is named before QEMU is executed; where it is required, that is why it is not."""
    cgroup = CgroupTree("tag", hierarchies=Hierarchies(unified=None, v1={"memory": detect().v1["memory"]})).create("x")
    limiting = Limiting(cgroup)
    said = unit(vcpu_cpu="70%", require=True)
    await limiting.impose(said)
    why = "limits.vcpu-cpu is not enforced: the host offers the daemon no cpu controller"
    assert limiting.troubles == (why,)
    with pytest.raises(StartError, match="no cpu controller"):
        limiting.check_kept(said)
    limiting.joined("", os.getpid())
    await limiting.divide([os.getpid()])
    assert limiting.troubles == (why,)
    with pytest.raises(ChangeError, match=r"limits\.emulator-cpu cannot be enforced: .* no cpu controller"):
        await change(limiting, unit(), unit(emulator_cpu="70%"))
    await cgroup.remove()
