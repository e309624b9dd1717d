"""Memory that a unit wants in huge pages, on a node, taken at once or locked: read back from the kernel, on every QEMU.

What hangs on several nodes is seen in tests of the plan alone. Huge pages are the host's: what a test needs is reserved
for it, and given back.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from qsup.instance.probe import probe_binary
from tests.guests import Emulator, LinuxGuest
from tests.plan import goldens
from tests.real.daemons import Daemon, linux_unit, rom_unit
from tests.real.growing import ask, differs
from tests.real.hotplug import finished, guest, qmp, told
from tests.real.planned import obstacle, paused
from tests.waiting import came_true, poll_until

pytestmark = [pytest.mark.real]

MIB = 1 << 20
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
#: Pages of 2M of the ROM guest's 16M, and of the Linux guest's 256M.
ROM, LINUX = 8, 128
HUGE = 'hugepages = "2M"'


def pages(name: str = "free") -> int:
    """Of the host's pool: ``free`` or ``nr``."""
    return int((POOL / f"{name}_hugepages").read_text())


@contextmanager
def pool(free: int) -> Iterator[None]:
    """The host's pool with so many free pages and no others."""
    before = pages("nr")
    wanted = before - pages() + free
    (POOL / "nr_hugepages").write_text(str(wanted))
    try:
        assert (pages("nr"), pages()) == (wanted, free), "the host has no room for so many huge pages"
        yield
        poll_until(lambda: pages() == free, "all pages are free again")
    finally:
        (POOL / "nr_hugepages").write_text(str(before))


def start(daemon: Daemon, emulator: Emulator, rom: Path, memory: str = "", **sections: str) -> None:
    """A VM of the ROM guest with 16 MiB."""
    daemon.unit("web", rom_unit(emulator, rom, memory=memory, **sections))
    daemon.do("web", "start")


def start_linux(daemon: Daemon, qemu: Emulator, linux: LinuxGuest, memory: str, **sections: str) -> None:
    """A VM of the Linux guest with 256 MiB."""
    linux = attrs.evolve(linux, append=f"{linux.append} memhp_default_state=online_movable")
    text = linux_unit(qemu, linux, memory=f"balloon = false\n{memory}", **sections)
    daemon.unit("web", text.replace('size = "128M"', 'size = "256M"'))
    daemon.do("web", "start")


def failed(daemon: Daemon, vm: str = "web") -> str:
    """Why a start fails, and what to do; there is no QEMU then."""
    operation = finished(daemon, daemon.post(f"/v1/instances/{vm}/start"))
    assert (operation["state"], daemon.view(vm)["pid"]) == ("failed", None)
    return f"{operation['error']['detail']}; {operation['error']['hint']}"


def status(pid: int, key: str) -> int:
    """A figure of a process in bytes, such as ``VmLck``."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def mappings(daemon: Daemon, policy: str) -> dict[int, int]:
    """QEMU's memory with a policy (numa(7)): by the size of its pages, how many bytes of it are there."""
    found: dict[int, int] = {}
    for line in Path(f"/proc/{daemon.view('web')['pid']}/numa_maps").read_text().splitlines():
        if line.split()[1] == policy:
            facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
            page = int(facts["kernelpagesize_kB"]) << 10 if "kernelpagesize_kB" in facts else 0
            found[page] = found.get(page, 0) + int(facts.get("N0", "0")) * page
    return found


@pytest.mark.root
@pytest.mark.alone
def test_memory_is_in_huge_pages(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """All of it before the guest runs, on its node, under the next daemon too; they are free when it has ended."""
    with pool(ROM + 2):
        start(daemon, qemu, rom_guest, f'{HUGE}\nnodes = "0"')
        assert pages() == 2
        assert mappings(daemon, "bind:0") == {2 * MIB: 16 * MIB}
        for _ in range(2):
            memory = daemon.view("web")["memory"]
            assert (memory["page"], memory["nodes"], memory["size"]) == (2 * MIB, [0], 16 * MIB)
            assert "Memory: 16M (in huge pages of 2M, on node 0)" in daemon.ctl("status", "web").stdout
            assert differs(daemon) == {}
            daemon.restart()
            daemon.wait("web", "running")
        daemon.do("web", "restart")
        assert pages() == 2
        daemon.do("web", "kill")
        assert pages() == ROM + 2


@pytest.mark.root
@pytest.mark.alone
def test_too_few_huge_pages(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """That is told before QEMU is there, with the arithmetic; with enough of them it starts."""
    daemon.unit("web", rom_unit(emulator, rom_guest, memory=HUGE))
    with pool(ROM - 1):
        assert "wants 8 huge pages of 2M for 16M of memory, and 7 are free: 1 are missing" in failed(daemon)
        assert pages() == ROM - 1
    with pool(ROM):
        daemon.do("web", "start")
        daemon.do("web", "kill")


@pytest.mark.root
@pytest.mark.alone
def test_two_that_start_at_once(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """With pages for one, one of them starts, and the other is told that there are none; with pages for two, both."""
    for name in ("web", "db"):
        daemon.unit(name, rom_unit(emulator, rom_guest, memory=HUGE))

    def ends() -> list[dict[str, Any]]:
        begun = [daemon.post(f"/v1/instances/{name}/start") for name in ("web", "db")]
        return sorted((finished(daemon, each) for each in begun), key=lambda each: str(each["state"]))

    with pool(ROM + 1):
        refused, started = ends()
        assert (refused["state"], started["state"]) == ("failed", "succeeded")
        assert "wants 8 huge pages of 2M for 16M of memory, and 1 are free" in refused["error"]["detail"]
        daemon.do(started["target"], "kill")
    with pool(2 * ROM):
        assert [each["state"] for each in ends()] == ["succeeded", "succeeded"]
        for name in ("web", "db"):
            daemon.do(name, "kill")


@pytest.mark.root
@pytest.mark.alone
def test_memory_in_huge_pages_grows(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """By virtio-mem, page by page, and back; not beyond what the host has."""
    with pool(LINUX + 32):
        start_linux(daemon, qemu, linux_guest, f'{HUGE}\nmax = "512M"')
        assert pages() == 32
        assert told(ask(daemon, {"memory": {"size": "288M"}}), "memory.size") == {"size": 288 * MIB}
        assert pages() == 16
        refused = ask(daemon, {"memory": {"size": "384M"}})
        assert (refused["state"], refused["error"]["code"]) == ("failed", "placement")
        assert "wants 48 huge pages of 2M for 96M of memory, and 16 are free" in refused["error"]["detail"]
        assert daemon.view("web")["memory"]["size"] == 288 * MIB
        assert ask(daemon, {"memory": {"size": "256M"}})["state"] == "succeeded"
        assert came_true(lambda: pages() == 32, seconds=5)
        daemon.do("web", "kill")


@pytest.mark.root
@pytest.mark.alone
def test_memory_modules_in_huge_pages(daemon: Daemon, emulator: Emulator, linux_guest: LinuxGuest) -> None:
    """A module is in such pages, too, and on the node; one for which there are none does not come."""
    with pool(LINUX + 64 + 1):
        memory = f'{HUGE}\nnodes = "0"\nmax = "1G"\nslots = 2\nresize = "dimm"'
        start_linux(daemon, emulator, linux_guest, memory)
        assert ask(daemon, {"memory": {"size": "384M"}})["state"] == "succeeded"
        assert (pages(), mappings(daemon, "bind:0")) == (1, {2 * MIB: 384 * MIB})
        refused = ask(daemon, {"memory": {"size": "512M"}})
        assert "wants 64 huge pages of 2M on node 0 for 128M of memory, and 1 are free" in refused["error"]["detail"]
        assert daemon.view("web")["memory"]["size"] == 384 * MIB
        daemon.do("web", "kill")


@pytest.mark.root
@pytest.mark.alone
def test_memory_in_huge_pages_is_shared(daemon: Daemon, emulator: Emulator, linux_guest: LinuxGuest) -> None:
    """A file server reads and writes it as any other."""
    (daemon.images / "data").mkdir()
    (daemon.images / "data" / "greeting").write_text("hello\n")
    with pool(LINUX):
        tables = '[[device]]\nid = "data"\ntype = "share"\npath = "data"\n'
        start_linux(daemon, emulator, linux_guest, HUGE, tables=tables)
        assert guest(daemon, "web", "mkdir /d && mount -t virtiofs data /d && cat /d/greeting") == "hello"
        daemon.do("web", "kill")


def test_memory_is_taken_before_the_guest_runs(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Only if the unit says so: one of 512 MiB that touches little has little; a change waits for the next start."""
    size = 'size = "512M"'
    daemon.unit("web", rom_unit(qemu, rom_guest).replace('size = "16M"', size))
    daemon.do("web", "start")
    assert status(daemon.view("web")["pid"], "VmRSS") < 300 * MIB
    operation = ask(daemon, {"memory": {"prealloc": True}})
    assert operation["result"]["keys"]["memory.prealloc"]["applied"] == "start"
    assert differs(daemon) == {"memory.prealloc": (False, True)}
    daemon.do("web", "restart")
    assert status(daemon.view("web")["pid"], "VmRSS") > 512 * MIB
    assert differs(daemon) == {}


@pytest.mark.skipif(bool(obstacle("locked-memory")), reason=obstacle("locked-memory"))
def test_qemu_locks_its_memory(root_dir: Path, qemu: Emulator) -> None:
    """All of it, once it may."""
    plan = goldens.load("memory-locked").plan(trio.run(probe_binary, str(qemu.path)))
    with paused(plan, root_dir, qemu) as started:
        assert status(started.process.pid, "VmLck") > plan.memory_base


#: Whether a daemon of ours can allow that to a QEMU of another user.
ALLOWED = subprocess.run(["prlimit", "--memlock=unlimited", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not ALLOWED, reason="the limit of locked memory cannot be raised here (CAP_SYS_RESOURCE)")
def test_memory_is_locked(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """All that QEMU has, and what it maps later: a module that comes is locked as well."""
    start(daemon, qemu, rom_guest, 'lock = true\nmax = "1G"\nslots = 1\nresize = "dimm"')
    pid = daemon.view("web")["pid"]
    locked = status(pid, "VmLck")
    assert locked > 16 * MIB
    assert ask(daemon, {"memory": {"size": "144M"}})["state"] == "succeeded"
    assert status(pid, "VmLck") >= locked + 128 * MIB


@pytest.mark.skipif(ALLOWED, reason="here the limit of locked memory can be raised")
def test_memory_that_may_not_be_locked(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A daemon that cannot allow it to QEMU does not start it."""
    daemon.unit("web", rom_unit(emulator, rom_guest, memory="lock = true"))
    assert failed(daemon) == "could not let it lock all of its memory; raise LimitMEMLOCK of the daemon"


def test_memory_is_on_the_node_that_was_chosen(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """With the CPUs; it is shown, and said why. Without the key no policy is set."""
    start(daemon, emulator, rom_guest, 'nodes = "auto"\npolicy = "interleave"', cpu='pin = "auto"')
    assert mappings(daemon, "interleave:0")  # nothing of it need be there yet
    assert daemon.view("web")["memory"]["nodes"] == [0]
    assert "16 MiB of memory" in daemon.ctl("cpus", "web", "--explain").stdout
    daemon.restart()
    assert daemon.view("web")["memory"]["nodes"] == [0]
    daemon.do("web", "kill")
    start(daemon, emulator, rom_guest, cpu='pin = "auto"')
    assert (mappings(daemon, "interleave:0"), daemon.view("web")["memory"]["nodes"]) == ({}, [])


def test_memory_that_the_host_has_not(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A node that is not there, and more than there is at once: told before QEMU is there, and what to do."""
    daemon.unit("web", rom_unit(emulator, rom_guest, memory='nodes = "0,77"'))
    why = failed(daemon)
    assert "its memory is to be on node 77, which is not there: this host has memory on node 0; name other" in why
    daemon.unit("web", rom_unit(emulator, rom_guest, memory="prealloc = true").replace('"16M"', '"40T"'))
    assert "wants 40T of memory at once, and" in failed(daemon)


def huge(pid: int) -> int:
    """Bytes of a process that the host has put into huge pages as it went."""
    return sum(int(kib) << 10 for kib in re.findall(r"AnonHugePages: +(\d+)", Path(f"/proc/{pid}/smaps").read_text()))


def test_what_the_host_does_with_pages(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Who is to be in no huge page, and merged with nobody, is not; what is asked for in vain is a warning."""

    def unit(word: str) -> str:
        memory = f"prealloc = true\nmerge = {word}\ntransparent-hugepages = {word}"
        return rom_unit(qemu, rom_guest, memory=memory).replace('"16M"', '"64M"')

    daemon.unit("web", unit("false"))
    daemon.do("web", "start")

    def merges() -> bool:
        (found,) = qmp(daemon, "web", "query-memdev")
        return bool(found["merge"])

    pid = daemon.view("web")["pid"]
    assert (huge(pid), merges()) == (0, False)
    assert "THP_enabled:\t0" in Path(f"/proc/{pid}/status").read_text()
    daemon.unit("web", unit("true"))
    daemon.do("web", "restart")
    pid, warnings = daemon.view("web")["pid"], "".join(daemon.view("web")["warnings"])
    assert merges()
    assert "THP_enabled:\t1" in Path(f"/proc/{pid}/status").read_text()
    never = "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    assert (huge(pid) == 0, "transparent-hugepages: this host gives none" in warnings) == (never, never)
    runs = Path("/sys/kernel/mm/ksm/run").read_text().strip() == "1"
    assert ("merge: this host merges no pages" in warnings) is not runs


def test_a_start_waits_for_its_memory(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """And says so, while QEMU is silent."""
    gate = daemon.root / "gate"
    program = daemon.root / "qemu-system-x86_64"
    program.write_text(f'#!/bin/sh\nwhile [ ! -e {gate} ]; do sleep 0.05; done\nexec {emulator.path} "$@"\n')
    program.chmod(0o755)
    unit = rom_unit(emulator, rom_guest, memory="prealloc = true")
    daemon.unit("web", unit.replace(str(emulator.path), str(program)))
    gate.touch()
    daemon.do("web", "start")
    daemon.do("web", "kill")
    gate.unlink()
    operation = daemon.post("/v1/instances/web/start")

    def progress() -> str:
        return str(daemon.get(f"/v1/operations/{operation['id']}")["progress"])

    poll_until(lambda: progress() == "QEMU takes 16M of the host's memory", "it says what it waits for")
    gate.touch()
    assert finished(daemon, operation)["state"] == "succeeded"


@pytest.mark.root
@pytest.mark.alone
def test_nodes_of_a_guest_in_huge_pages_are_shared(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """A file server reads and writes what is in either node; each is taken by threads on the CPUs of its vCPUs."""
    (daemon.images / "data").mkdir()
    tables = '[[device]]\nid = "data"\ntype = "share"\npath = "data"\n'
    tables += '[[numa]]\nid = "a"\nvcpus = "0"\nsize = "160M"\n[[numa]]\nid = "b"\nvcpus = "1"\nnodes = "0"\n'
    with pool(LINUX):
        start_linux(daemon, qemu, linux_guest, HUGE, tables=tables, cpu='vcpus = 2\npin = ["0", "1"]')
        assert pages() == 0
        memdevs = {each["id"]: each for each in qmp(daemon, "web", "query-memdev")}
        assert {name: (each["size"] // MIB, each["share"]) for name, each in memdevs.items()} == {
            "ram-0": (160, True),
            "ram-1": (96, True),
        }
        context = qmp(daemon, "web", "qom-get", path="/objects/ram-1", property="prealloc-context")
        assert context == "/objects/prealloc-1"
        write = "taskset $((n+1)) dd if=/dev/urandom of=$n bs=1M count=32"
        steps = f"for n in 0 1; do {write} 2>/dev/null; done; sha1sum 0 1"
        said = guest(daemon, "web", f"mkdir /d && mount -t virtiofs data /d && cd /d && {steps}").split()
        data = daemon.images / "data"
        sums = {name: hashlib.sha1((data / name).read_bytes()).hexdigest() for name in ("0", "1")}
        assert said == [sums["0"], "0", sums["1"], "1"]
        assert (data / "1").stat().st_size == 32 * MIB
        daemon.do("web", "kill")
