"""The CPUs and nodes that nothing of a VM leaves, kept by cpusets of version 1, which the development machines have."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import QsupError
from qsup.host import hierarchies
from qsup.unit.quantity import format_cpu_set
from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit
from tests.real.growing import ask, differs
from tests.real.hotplug import finished
from tests.real.injected import killed_at
from tests.waiting import came_true, poll_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.skipif("cpuset" not in hierarchies.detect().v1, reason="no cpuset of version 1"),
]

#: Seconds in which what is amiss with a fence or a pin is put right.
WITHIN = 6.0
FENCE = 'cpuset-cpus = "1"\ncpuset-mems = "0"\nrequire = true'


@pytest.fixture(autouse=True)
def two_cpus() -> None:
    """A fence of one CPU of one alone says nothing."""
    assert {0, 1} <= os.sched_getaffinity(0), "these tests need the CPUs 0 and 1"


def cpuset(daemon: Daemon, vm: str = "web") -> Path | None:
    """The cgroup that keeps its fence, by the VM's record."""
    record = json.loads((daemon.run / "instances" / vm / "record.json").read_text())
    return next((Path(each) for each in record["cgroups"] if (Path(each) / "cpuset.memory_migrate").exists()), None)


def kept(daemon: Daemon) -> tuple[str, str]:
    """What the kernel says of it: CPUs and nodes."""
    path = cpuset(daemon)
    assert path is not None
    return (path / "cpuset.effective_cpus").read_text().strip(), (path / "cpuset.effective_mems").read_text().strip()


def allowed(daemon: Daemon, vm: str = "web") -> list[str]:
    """Where the kernel lets each thread of QEMU run: the vCPUs in their order, and then all others, each once."""
    view = daemon.view(vm)
    rows: dict[int, str] = {}
    for task in Path(f"/proc/{view['pid']}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        rows[int(task.name)] = next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list"))
    vcpus = view["cpus"]["threads"]
    return [rows[thread] for thread in vcpus] + sorted({rows[thread] for thread in rows.keys() - set(vcpus)})


def start(daemon: Daemon, emulator: Emulator, rom: Path, limits: str, cpu: str = "vcpus = 2", vm: str = "web") -> Any:
    """A VM of the ROM guest."""
    daemon.unit(vm, rom_unit(emulator, rom, cpu=cpu, limits=limits))
    return daemon.do(vm, "start")


def test_nothing_leads_out_of_the_fence(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Not a taskset of any thread; it is shown as the kernel has it. A VM without one has no cpuset at all."""
    view = start(daemon, qemu, rom_guest, FENCE)
    assert (view["limits"]["cpuset_cpus"], view["limits"]["cpuset_mems"], view["warnings"]) == ("1", "0", [])
    assert (kept(daemon), allowed(daemon)) == (("1", "0"), ["1", "1", "1"])
    assert "on CPUs 1 alone, memory of nodes 0 alone" in daemon.ctl("status", "web").stdout
    for thread in map(int, os.listdir(f"/proc/{view['pid']}/task")):
        os.sched_setaffinity(thread, {0, 1})
        with pytest.raises(OSError, match="Invalid argument"):
            os.sched_setaffinity(thread, {0})
    assert allowed(daemon) == ["1", "1", "1"]
    free = start(daemon, qemu, rom_guest, "", vm="free")
    assert (free["limits"]["cpuset_cpus"], cpuset(daemon, "free")) == (None, None)
    assert allowed(daemon, "free") == [format_cpu_set(os.sched_getaffinity(0))] * 3
    directory = cpuset(daemon)
    daemon.do("web", "kill")
    assert directory is not None and not directory.exists()


def test_pins_are_right_before_the_guest_runs(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Joining a cpuset lets threads run on all of it; they are back where they belong, and nobody has moved them."""
    cpu = 'vcpus = 2\npin = ["0", "1"]\nemulator-pin = "0"'
    daemon.unit("web", rom_unit(emulator, rom_guest, cpu=cpu, limits='cpuset-cpus = "0-1"', memory="prealloc = true"))
    daemon.do("web", "start")
    assert allowed(daemon) == ["0", "1", "0"]
    assert not came_true(lambda: daemon.get("/v1/instances/web/cpus")["drifts"], seconds=WITHIN)
    os.sched_setaffinity(daemon.view("web")["cpus"]["threads"][0], {0, 1})
    poll_until(lambda: allowed(daemon) == ["0", "1", "0"], "it is back", seconds=WITHIN)
    assert daemon.get("/v1/instances/web/cpus")["drifts"] == 1


def test_a_fence_changes_while_it_runs(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Of a VM that had none, with its pins, under the next daemon, and away again."""
    view = start(daemon, emulator, rom_guest, "", 'vcpus = 2\npin = ["0", "0"]')
    assert cpuset(daemon) is None
    refused = ask(daemon, {"limits": {"cpuset-cpus": "1"}})
    assert "pin names CPU 0, outside of limits.cpuset-cpus (1)" in json.dumps(refused["error"])
    changed = ask(daemon, {"limits": {"cpuset-cpus": "1"}, "cpu": {"pin": ["1", "1"]}})
    assert changed["state"] == "succeeded", changed["error"]
    said = changed["result"]["keys"]["limits.cpuset-cpus"]
    assert (said["applied"], said["limit"]) == ("live", "1")
    assert (kept(daemon)[0], allowed(daemon), differs(daemon)) == ("1", ["1", "1", "1"], {})
    assert ask(daemon, {"limits": {"cpuset-cpus": "0"}, "cpu": {"pin": ["0", "0"]}})["state"] == "succeeded"
    assert (kept(daemon)[0], allowed(daemon)) == ("0", ["0", "0", "0"])
    assert ask(daemon, {"limits": {"cpuset-cpus": "0"}, "cpu": {"pin": []}})["state"] == "succeeded"
    assert ask(daemon, {"limits": {"cpuset-cpus": "0-1"}})["state"] == "succeeded"
    assert allowed(daemon) == ["0-1"] * 3, "what was free in a small fence is so in a large one"
    assert ask(daemon, {"limits": {"cpuset-cpus": "0"}, "cpu": {"pin": ["0", "0"]}})["state"] == "succeeded"
    daemon.restart()
    again = daemon.wait("web", "running")
    assert (again["pid"], again["limits"]["cpuset_cpus"], again["warnings"]) == (view["pid"], "0", [])
    assert ask(daemon, {"limits": {"cpuset-cpus": ""}, "cpu": {"pin": []}})["state"] == "succeeded"
    assert allowed(daemon) == [format_cpu_set(os.sched_getaffinity(0))] * 3
    assert daemon.get("/v1/instances/web/cpus")["drifts"] == 0
    daemon.do("web", "kill")
    assert daemon.remains() == []


def test_an_automatic_place_follows_the_fence(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """At the start and while it runs; the explanation names the fence."""
    start(daemon, emulator, rom_guest, 'cpuset-cpus = "1"', 'vcpus = 2\npin = "auto"')
    assert allowed(daemon) == ["1", "1", "1"]
    assert "limits.cpuset-cpus keeps it to CPU 1" in daemon.ctl("cpus", "web", "--explain").stdout
    assert ask(daemon, {"limits": {"cpuset-cpus": "0"}})["state"] == "succeeded"
    assert (allowed(daemon), kept(daemon)[0]) == (["0", "0", "0"], "0")
    assert daemon.get("/v1/instances/web/cpus")["drifts"] == 0


def test_what_the_host_lacks_is_refused(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Before QEMU is executed, by `verify --host`, and while it runs; the key and the CPU are named."""
    daemon.unit("web", rom_unit(emulator, rom_guest, limits='cpuset-cpus = "0,4000"'))
    failed = finished(daemon, daemon.post("/v1/instances/web/start"))
    assert "limits.cpuset-cpus is 0,4000, and there is no CPU 4000 on this host" in failed["error"]["detail"]
    assert (daemon.view("web")["pid"], daemon.remains()) == (None, [])
    said = daemon.ctl("verify", "--host", str(daemon.units / "web.toml"), check=False)
    assert "limits.cpuset-cpus" in said.stdout + said.stderr and "there is no CPU 4000" in said.stdout + said.stderr
    daemon.unit("web", rom_unit(emulator, rom_guest, limits='cpuset-mems = "9"'))
    failed = finished(daemon, daemon.post("/v1/instances/web/start"))
    assert "node 9 by limits.cpuset-mems, which is not there" in failed["error"]["detail"]
    start(daemon, emulator, rom_guest, 'cpuset-cpus = "0"')
    for changes, words in (
        ({"cpuset-cpus": "1,4000"}, "there is no CPU 4000"),
        ({"cpuset-mems": "9"}, "node 9 by limits.cpuset-mems, which is not there"),
        ({"cpuset-cpus": "all"}, "is not a CPU set"),
    ):
        refused = ask(daemon, {"limits": changes})
        assert refused["state"] == "failed" and words in json.dumps(refused["error"])
    assert (kept(daemon)[0], allowed(daemon)[0], differs(daemon)) == ("0", "0", {})


def test_what_a_fence_has_lost_it_gets_back(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """As after a CPU was offline: version 1 never gives it back, and nothing tells of it."""
    start(daemon, emulator, rom_guest, 'cpuset-cpus = "0-1"', 'vcpus = 2\npin = ["0", "1"]')
    directory = cpuset(daemon)
    assert directory is not None
    (directory / "cpuset.cpus").write_text("0")
    assert allowed(daemon)[1] == "0"
    poll_until(lambda: (kept(daemon)[0], allowed(daemon)) == ("0-1", ["0", "1", "0-1"]), "whole again", seconds=WITHIN)


def test_a_launch_that_was_cut_short_goes_on(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """QEMU stands still until it is in its cpuset; whoever comes after a daemon that was killed then has it go on."""
    cpu, limits = 'vcpus = 2\npin = ["1", "0"]', 'cpuset-cpus = "0-1"'
    start(daemon, emulator, rom_guest, "", vm="warm")  # what QEMU can do is known then
    daemon.do("warm", "kill")
    daemon.unit("web", rom_unit(emulator, rom_guest, cpu=cpu, limits=limits))
    with killed_at(daemon, "pidfd_send_signal", 2):  # it is stopped by the first, and goes on by the second
        with suppress(QsupError):
            daemon.post("/v1/instances/web/start")
        poll_until(lambda: not daemon.is_alive(), "the daemon dies", seconds=WITHIN)
    record = json.loads((daemon.run / "instances/web/record.json").read_text())
    status = Path(f"/proc/{record['pid']}/status")  # as strace lets go of it, too, it runs for a moment
    poll_until(lambda: "State:\tT" in status.read_text(), "QEMU stands still", seconds=WITHIN)
    daemon.start()
    assert daemon.wait("web", "running")["pid"] == record["pid"]
    assert (kept(daemon)[0], allowed(daemon)[:2]) == ("0-1", ["1", "0"])
    daemon.do("web", "kill")
    assert daemon.remains() == []
