"""What a VM is held to, with cgroups that are directories of a test's own: no kernel keeps a limit of theirs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from qsup.errors import ChangeError, StartError
from qsup.host.cgroup import Cgroup
from qsup.host.limits import Effective, Limits
from qsup.instance.limiting import Limiting, asked, check_enough
from qsup.instance.live.limits import LimitKeys
from qsup.unit.compare import compare
from qsup.unit.model import Unit
from qsup.unit.parse import unit_from_values
from tests.host.test_limits import MIB, NONE, V1_FILES, V2_FILES, fake

#: A process that is there.
PID = os.getpid()
V1_HAS_NONE = "the memory controller of the host, of cgroup version 1, has no such limit"


def unit(**limits: Any) -> Unit:
    """A unit that says nothing else."""
    return unit_from_values({"limits": {name.replace("_", "-"): value for name, value in limits.items()}})


def shown(**limits: Any) -> Effective:
    """What the kernel says where these limits are kept."""
    return Effective(**NONE.items() | limits)


async def limiting_of(directory: Path, files: dict[str, str], of: Unit) -> Limiting:
    """The limits of a VM with a cgroup that has these files."""
    limiting = Limiting(Cgroup([fake(directory, files)]))
    await limiting.impose(of)
    return limiting


def test_what_a_unit_asks_for() -> None:
    """Nothing by default, the usual weight among that."""
    assert asked(Unit()) == Limits()
    said = unit(cpu="50%", cpu_weight=200, memory="1G", memory_high="512M", pids=300)
    assert asked(said) == Limits(cpu=500, cpu_weight=200, memory=1 << 30, memory_high=512 * MIB, pids=300)
    disks = unit(swap="0B", io_weight=300, io_read_bps=["/dev/sda 50M"], io_write_iops=["/a b 7"])
    assert asked(disks) == Limits(
        swap=0, io_weight=300, io_read_bps=(("/dev/sda", 50 * MIB),), io_write_iops=(("/a b", 7),)
    )


async def test_what_is_set_is_read_back_fake(tmp_path: Path) -> None:
    """And nothing else is touched."""
    limiting = await limiting_of(tmp_path, V2_FILES | {"pids.max": "4000"}, unit(cpu="1.5", memory="1G"))
    assert limiting.effective == shown(cpu=1500, memory=1 << 30, pids=4000)
    assert limiting.troubles == ()


async def test_what_is_not_enforced_is_named_fake(tmp_path: Path) -> None:
    """One sentence each; where it is required, it is why the VM does not start."""
    said = unit(cpu="50%", memory_high="1G", require=True)
    limiting = await limiting_of(tmp_path, V1_FILES, said)
    assert limiting.troubles == (f"limits.memory-high is not enforced: {V1_HAS_NONE}",)
    limiting.check_kept(unit(cpu="50%", memory_high="1G"))
    with pytest.raises(StartError, match="memory-high is not enforced") as refused:
        limiting.check_kept(said)
    assert "require = false" in refused.value.hint


async def test_a_qemu_outside_its_cgroup_is_held_to_nothing_fake(tmp_path: Path) -> None:
    """Whatever the kernel keeps for it; a VM without limits misses nothing."""
    limiting = await limiting_of(tmp_path, V2_FILES, unit(pids=300))
    limiting.joined("could not be moved into its cgroup: no", PID)
    assert limiting.troubles == ("its limits are not enforced: it could not be moved into its cgroup: no",)
    with pytest.raises(StartError, match="could not be moved"):
        limiting.check_kept(unit(pids=300, require=True))
    free = await limiting_of(tmp_path, V2_FILES, Unit())
    free.joined("could not be moved into its cgroup: no", PID)
    assert free.troubles == ()
    free.check_kept(unit(require=True))


async def test_a_cgroup_that_cannot_be_read_is_a_trouble_fake(tmp_path: Path) -> None:
    """It is no reason to lose a VM."""
    limiting = await limiting_of(tmp_path, V2_FILES, unit(memory="1G"))
    (tmp_path / "memory.high").unlink()
    (tmp_path / "memory.high").mkdir()
    await limiting.impose(unit(memory="1G"))
    (trouble,) = limiting.troubles
    assert trouble.startswith("limits.memory is not enforced: could not read")


# while it runs


def test_what_tcg_needs_besides() -> None:
    """A unit that leaves open by what it runs is judged once that is known."""
    enough = unit_from_values({"memory": {"size": "64M"}, "limits": {"memory": "100M"}})
    check_enough(enough, "kvm")
    with pytest.raises(
        StartError, match=r"limits.memory \(100M\) is less than QEMU needs 193M: .* that TCG translates"
    ):
        check_enough(enough, "tcg")


async def change(limiting: Limiting, before: Unit, after: Unit) -> Any:
    """What `set` does, checks first."""
    hardware = SimpleNamespace(summary=SimpleNamespace(accel="kvm"))
    context: Any = SimpleNamespace(life=SimpleNamespace(limiting=limiting), hardware=hardware)
    keys = LimitKeys()
    changes = compare(before, after)
    assert all(keys.concerns(each.key) for each in changes)
    for each in changes:
        keys.check(each, after, context)
    return await keys.apply(changes, after, context)


async def test_limits_are_changed_fake(tmp_path: Path) -> None:
    """Told is what the kernel says then; one that is no more is taken back."""
    before, after = unit(cpu="50%", pids=300), unit(cpu="2", memory="1G")
    limiting = await limiting_of(tmp_path, V2_FILES, before)
    told = await change(limiting, before, after)
    assert told == {
        "limits.cpu": {"limit": 2000},
        "limits.memory": {"limit": 1 << 30},
        "limits.pids": {"limit": None},
    }
    assert limiting.effective == shown(cpu=2000, memory=1 << 30)


@pytest.mark.parametrize("limits", [{"memory_high": "1G"}, {"require": True}])
async def test_what_cannot_be_enforced_is_refused_fake(tmp_path: Path, limits: dict[str, Any]) -> None:
    """A start would only warn; whoever changes it now is told now."""
    before = Unit() if "memory_high" in limits else unit(memory_high="1G")
    after = unit(**({"memory_high": "1G"} | limits))
    limiting = await limiting_of(tmp_path, V1_FILES, before)
    with pytest.raises(ChangeError, match=r"limits\.memory-high cannot be enforced: .* has no such limit"):
        await change(limiting, before, after)


async def test_what_is_not_enforced_can_be_taken_out_fake(tmp_path: Path) -> None:
    """Then there is nothing to warn of."""
    before = unit(memory_high="1G")
    limiting = await limiting_of(tmp_path, V1_FILES, before)
    assert limiting.troubles
    await change(limiting, before, unit(require=True))
    assert limiting.troubles == ()


async def test_a_limit_that_would_kill_it_is_refused_fake(tmp_path: Path) -> None:
    """The kernel of version 2 would not refuse it."""
    stat = f"anon {2 << 30}\nshmem {MIB}\n"
    limiting = await limiting_of(tmp_path, V2_FILES | {"memory.stat": stat}, Unit())
    with pytest.raises(ChangeError, match="1G is less than the 2049M that it holds now, and it would be killed"):
        await change(limiting, Unit(), unit(memory="1G"))
    assert limiting.effective.memory is None
    await change(limiting, Unit(), unit(memory="3G"))


async def test_all_or_none_fake(tmp_path: Path) -> None:
    """What the kernel refuses takes the others back, too."""
    before = unit(cpu="50%", memory="1G")
    limiting = await limiting_of(tmp_path, V2_FILES, before)
    (tmp_path / "pids.max").unlink()
    (tmp_path / "pids.max").mkdir()
    fake(tmp_path, {"memory.stat": ""})
    after = attrs.evolve(before, limits=attrs.evolve(before.limits, cpu=2000, pids=500))
    with pytest.raises(ChangeError, match=r"its limits stay as they were: limits\.pids cannot be enforced: .*Is a dir"):
        await change(limiting, before, after)
    assert (tmp_path / "cpu.max").read_text() == "50000 100000"


async def test_a_path_without_a_device_is_no_limit_fake(tmp_path: Path) -> None:
    """It is named with the reason, and the other limits count; while the VM runs it is refused, and nothing changes."""
    before = unit(pids=300, io_read_bps=[f"{tmp_path}/absent 5M"])
    limiting = await limiting_of(tmp_path, V2_FILES, before)
    (trouble,) = limiting.troubles
    assert trouble.startswith("limits.io-read-bps is not enforced: could not look at") and "No such file" in trouble
    assert limiting.effective.pids == 300
    with pytest.raises(ChangeError, match=r"limits\.io-write-iops cannot be enforced: .* is on no block device"):
        (tmp_path / "io.max").touch()
        await change(limiting, before, unit(pids=5000, io_write_iops=["/proc/self 5"]))
    assert limiting.effective.pids == 300


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits to be killed."""
    found = subprocess.Popen(["sleep", "60"])
    yield found
    found.kill()
    found.wait()


def score(child: subprocess.Popen[bytes]) -> int:
    """How readily the kernel kills it."""
    return int(Path(f"/proc/{child.pid}/oom_score_adj").read_text())


async def test_how_readily_it_is_killed_is_said_to_the_kernel(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    """Once QEMU is there; what the kernel refuses is told, and nothing else is changed then."""
    limiting = await limiting_of(tmp_path, V2_FILES, unit(oom_score_adjust=300))
    limiting.joined("", child.pid)
    assert (score(child), limiting.troubles) == (300, ())
    told = await change(limiting, unit(oom_score_adjust=300), unit(oom_score_adjust=400, pids=300))
    assert told == {"limits.oom-score-adjust": {"limit": 400}, "limits.pids": {"limit": 300}}
    assert score(child) == 400
    child.kill()
    child.wait()
    with pytest.raises(ChangeError, match=r"limits\.oom-score-adjust cannot be enforced: could not write 5 to"):
        await change(limiting, unit(pids=300), unit(oom_score_adjust=5, pids=400))
    assert limiting.effective.pids == 300
    gone = await limiting_of(tmp_path, V2_FILES, said := unit(oom_score_adjust=300, require=True))
    gone.joined("", child.pid)
    with pytest.raises(StartError, match=r"limits\.oom-score-adjust is not enforced"):
        gone.check_kept(said)
