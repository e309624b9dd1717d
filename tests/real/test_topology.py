"""The topology of the machine that the tests run on, read from its own sysfs and asked of a daemon.

Decides: that what is read of a real kernel is what others read of it.
Must not: expect a shape of the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import aclosing
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from qsup.host.topology import TopologyReader
from qsup.host.uevents import cpu_changes
from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit
from tests.waiting import wait_until

pytestmark = pytest.mark.real

#: What is written here the kernel says as if it were so (Documentation/ABI/testing/sysfs-uevent).
SAY = Path("/sys/devices/system/cpu/cpu0/uevent")


def lscpu(what: str) -> list[list[str]]:
    """What util-linux prints of each CPU that is online, by columns."""
    done = subprocess.run(["lscpu", "--online", f"--parse={what}"], capture_output=True, text=True, check=True)
    return [line.split(",") for line in done.stdout.splitlines() if not line.startswith("#")]


def test_this_machine_as_lscpu_sees_it() -> None:
    """The same CPUs in the same cores, packages and nodes; nothing that the kernel says is left out."""
    with capture_logs() as logs:
        host = TopologyReader().read()
    assert logs == []
    rows = lscpu("CPU,CORE,SOCKET,NODE")
    assert {int(cpu) for cpu, *_ in rows} == host.online
    cores: dict[tuple[str, ...], set[int]] = {}
    for cpu, *core in rows:
        cores.setdefault(tuple(core), set()).add(int(cpu))
    assert sorted(map(sorted, cores.values())) == [list(core.cpus) for core in host.cores]
    assert len({package for *_, package, _ in rows}) == len({core.package for core in host.cores})
    for cpu, *_, node in rows:
        assert host.by_number[int(cpu)].node == int(node or 0)


def test_this_machines_memory_and_who_may_use_it() -> None:
    """The nodes have no more than the kernel counts for the host, some of it free; our affinity says which CPUs."""
    host = TopologyReader().read()
    amounts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(amounts[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    # where memory comes and goes under a running kernel, nodes have been seen to lag behind the host's own count
    assert 0 < sum(node.memory for node in host.nodes) <= total * 1.01
    assert 0 < sum(node.free for node in host.nodes) <= available * 1.2
    assert {cpu.number for cpu in host.cpus if cpu.allowed} == os.sched_getaffinity(os.getpid())


def test_what_vms_have_of_it_is_drawn(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A vCPU with a CPU of its own, and those of a VM that may run anywhere, where they are and in the node's bar."""
    daemon.unit("web", rom_unit(emulator, rom_guest, cpu='pin = ["0"]'))
    daemon.unit("free", rom_unit(emulator, rom_guest, cpu="vcpus = 3"))
    for name in ("web", "free"):
        daemon.do(name, "start")
    host = daemon.get("/v1/topology")
    assert sum(node["promised"]["vcpus"] for node in host["nodes"]) == pytest.approx(4)
    assert sum(node["promised"]["own_cpus"] for node in host["nodes"]) == 0
    drawn = daemon.ctl("topology").stdout
    assert "web: vCPU 0 on 0" in drawn
    brief = daemon.ctl("topology", "--brief").stdout
    assert "vCPUs share" in brief and "web" not in brief
    daemon.do("web", "stop")
    daemon.unit("web", rom_unit(emulator, rom_guest, cpu='pin = ["0"]\nexclusive = true'))
    daemon.do("web", "start")
    assert [cpu["number"] for cpu in daemon.get("/v1/topology")["cpus"] if cpu["owner"] == "web"] == [0]
    assert "1 exclusive" in daemon.ctl("topology", "--brief").stdout


def test_a_daemon_confined_to_a_cpu_says_so(daemon: Daemon, root_dir: Path) -> None:
    """The API, the drawing and the picture tell of the same host; a daemon's affinity is read each time."""
    with daemon.client() as client:
        host = client.get("/v1/topology")
        assert host == json.loads(daemon.ctl("topology", "-o", "json").stdout) | {"nodes": host["nodes"]}
        online = sorted(cpu["number"] for cpu in host["cpus"] if cpu["online"])
        assert online == sorted(int(cpu) for (cpu,) in lscpu("CPU"))
        os.sched_setaffinity(daemon.pid, online[:1])
        allowed = [cpu["number"] for cpu in client.get("/v1/topology")["cpus"] if cpu["allowed"]]
    assert allowed == online[:1]
    drawn = daemon.ctl("topology").stdout
    assert "not for this daemon" in drawn or len(online) == 1
    picture = root_dir / "host.svg"
    daemon.ctl("topology", "--svg", str(picture))
    titles = ElementTree.parse(picture).getroot().iter("{http://www.w3.org/2000/svg}title")
    assert len(list(titles)) == len(host["cpus"])


@pytest.mark.root
@pytest.mark.alone
async def test_the_kernel_is_heard() -> None:
    """Each time that a CPU goes on- or offline, which every daemon here takes for true; and of nothing else."""
    heard: list[None] = []

    async def listen() -> None:
        async with aclosing(cpu_changes()) as changes:
            async for _ in changes:
                heard.append(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        for number, word in enumerate(("change", "online", "change", "offline"), 1):
            await trio.to_thread.run_sync(SAY.write_text, word)
            await wait_until(partial(_has, heard, number // 2), f"the kernel is heard after {word}")
        assert len(heard) == 2
        nursery.cancel_scope.cancel()


def _has(heard: list[None], count: int) -> bool:
    return len(heard) >= count
