"""What a host cannot do for units, found out without starting them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from qsup.errors import StartError
from qsup.instance.capacity import Capacity
from qsup.instance.hostcheck import check_host
from qsup.instance.placements import Placements
from qsup.plan.topology import Cpu, HostPool, HugePages, Node, Topology
from qsup.unit.parse import unit_from_values
from tests.plan import goldens

MIB, GIB = 1 << 20, 1 << 30
#: Two nodes, all of whose memory is used just now, and the second of which has huge pages; the last CPU is offline.
HOST = Topology(
    cpus=tuple(Cpu(number=number, node=number // 2, core=number, online=number < 3) for number in range(4)),
    nodes=(
        Node(number=0, memory=4 * GIB),
        Node(number=1, memory=4 * GIB, hugepages=(HugePages(size=2 * MIB, total=512, free=0),)),
        Node(number=2, memory=0),
    ),
    pools=(HostPool(size=2 * MIB, reserved=0),),
)


class Reader:
    """Reads that host."""

    async def look(self) -> Topology:
        """As it is."""
        await trio.lowlevel.checkpoint()
        return HOST


async def found(tmp_path: Path, *, known: dict[str, Any] | None = None, **units: Any) -> list[tuple[str, str, str]]:
    """Of units by their values: whose each finding is, the key to blame, and what it says."""

    async def capabilities(emulator: str) -> object:
        await trio.lowlevel.checkpoint()
        if emulator == "none":
            raise StartError("emulator 'none' was not found in PATH")
        return goldens.capabilities()

    placements = Placements(cast("Any", Reader()))
    services = SimpleNamespace(
        placements=placements,
        capacity=Capacity(placements),
        capabilities=capabilities,
        identities=SimpleNamespace(load=lambda _: None),
        facts=lambda: goldens.HOSTS[""],
        state_dir=lambda name: tmp_path / name,
        layout=SimpleNamespace(pools=(tmp_path,)),
        block_devices=(),
    )
    sound = {name: unit_from_values(values) for name, values in units.items()}
    others = {name: unit_from_values(values) for name, values in (known or {}).items()}
    findings = await check_host(sound, others, cast("Any", services))
    return [(each.unit, ".".join(each.keys[0]), each.message) for each in findings]


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"cpu": {"pin": ["3"]}}, "cpu.pin", "names CPU 3, and CPU 3 is offline"),
        ({"cpu": {"emulator-pin": "9"}}, "cpu.emulator-pin", "there is no CPU 9 on this host, which has 4 CPUs"),
        ({"cpu": {"helper-pin": "9"}}, "cpu.helper-pin", "there is no CPU 9 on this host, which has 4 CPUs"),
        ({"iothread": [{"id": "a", "pin": "9"}]}, "iothread.a.pin", "there is no CPU 9"),
        ({"limits": {"cpuset-cpus": "0,3"}}, "limits.cpuset-cpus", "limits.cpuset-cpus is 0,3, and CPU 3 is offline"),
        ({"limits": {"cpuset-mems": "2"}}, "limits.cpuset-mems", "on node 2 by limits.cpuset-mems, which has no"),
        ({"limits": {"cpuset-mems": "0"}, "memory": {"size": "5G"}}, "memory.size", "wants 5G of memory on node 0"),
        ({"cpu": {"pin": "auto", "exclusive": True, "vcpus": 4}}, "cpu.exclusive", "4 CPUs of its own"),
        ({"memory": {"nodes": "2"}}, "memory.nodes", "to be on node 2, which has no memory"),
        (
            {"memory": {"size": "1G", "hugepages": "1G"}},
            "memory.hugepages",
            "wants huge pages of 1G, and this host has",
        ),
        ({"memory": {"size": "2G", "hugepages": "2M"}}, "memory.hugepages", "wants 1024 huge pages of 2M for 2G"),
        (
            {"memory": {"size": "5G", "nodes": "0"}},
            "memory.size",
            "wants 5G of memory on node 0, and there are 4G in all",
        ),
        (
            {"memory": {"size": "16G"}},
            "memory.size",
            "(the host has 7G, 2 times that may be promised; 0B are promised)",
        ),
        (
            {"cpu": {"pin": "auto"}, "memory": {"size": "2G", "hugepages": "2M", "nodes": "auto"}},
            "memory.hugepages",
            "wants 1024 huge pages of 2M for 2G",
        ),
        (
            {"cpu": {"pin": "auto"}, "memory": {"size": "8G", "nodes": "auto"}},
            "memory.nodes",
            "wants 8.0 GiB of memory, and 7.0 GiB are not promised",
        ),
        ({"numa": [{"id": "n", "nodes": "7"}]}, "numa.n.nodes", "to be on node 7, which is not there"),
        ({"machine": {"emulator": "none"}}, "machine.emulator", "emulator 'none' was not found in PATH"),
        ({"machine": {"accel": "kvm"}}, "machine", "KVM"),
        ({"machine": {"kernel": "vmlinuz"}}, "machine.kernel", "could not open"),
        ({"limits": {"memory": "64M"}}, "limits.memory", "is less than QEMU needs"),
        (
            {"disk": [{"id": "root", "path": "gone", "format": "raw"}]},
            "disk.root.path",
            "could not open disk image gone: No such file or directory; a relative path begins at",
        ),
    ],
)
async def test_what_the_host_cannot_do(tmp_path: Path, values: dict[str, Any], key: str, words: str) -> None:
    """Each is found once, with the key that is to blame."""
    ((unit, blamed, message),) = await found(tmp_path, web=values)
    assert (unit, blamed, words in message) == ("web", key, True), message


@pytest.mark.parametrize(
    "values",
    [
        {"memory": {"size": "3G", "prealloc": True, "nodes": "0"}},
        {"memory": {"size": "1G", "hugepages": "2M", "nodes": "1"}},
        {"cpu": {"pin": "auto", "exclusive": True, "vcpus": 2}, "memory": {"nodes": "auto"}},
        {"cpu": {"pin": ["0-1"], "emulator-pin": "2"}},
    ],
)
async def test_what_others_use_now_does_not_count(tmp_path: Path, values: dict[str, Any]) -> None:
    """A unit that could start on the host if nobody else did has nothing wrong."""
    assert await found(tmp_path, web=values) == []


async def test_all_is_found_at_once(tmp_path: Path) -> None:
    """Of every unit."""
    cpu = {"pin": ["9"], "emulator-pin": "3", "helper-pin": "8"}
    bad = {"cpu": cpu, "memory": {"nodes": "7"}, "machine": {"emulator": "none"}}
    told = await found(tmp_path, web=bad, db=bad)
    keys = ["cpu.pin", "cpu.emulator-pin", "cpu.helper-pin", "memory.nodes", "machine.emulator"]
    assert [(unit, key) for unit, key, _ in told] == [(unit, key) for unit in ("web", "db") for key in keys]


async def test_cpus_that_two_units_name(tmp_path: Path) -> None:
    """Where one wants them alone, whether both are checked or one is only known, unless they exclude each other."""
    alone, shared = {"cpu": {"pin": ["0"], "exclusive": True}}, {"cpu": {"pin": ["0-1"]}}
    assert [unit for unit, *_ in await found(tmp_path, rt=alone, web=shared)] == ["rt", "web"]
    ((unit, _, message),) = await found(tmp_path, known={"web": shared}, rt=alone)
    assert (unit, "CPU 0, which it wants for itself, web names as well" in message) == ("rt", True)
    assert (
        await found(tmp_path, known={"web": shared, "rt": shared}, rt={**alone, "unit": {"conflicts": ["web"]}}) == []
    )
    assert await found(tmp_path, known={"web": {**shared, "unit": {"conflicts": ["rt"]}}}, rt=alone) == []
    assert await found(tmp_path, known={"web": shared}, db=shared) == []
