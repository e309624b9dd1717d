"""Threads of QEMU's that do the work of disks: where they run, what they do, and that they are there from the start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, linux_unit, rom_unit
from tests.real.growing import ask, differs
from tests.real.hotplug import attach, change, detach, finished, image, in_guest, qmp, set_keys
from tests.real.test_disk_size import resize
from tests.real.test_pins import APART, WITHIN, allowed, others, vcpus
from tests.waiting import poll_until

pytestmark = [pytest.mark.real]

MIB = 1 << 20
#: One with a CPU of its own, and one that is where everything else is; a disk has the first.
TABLES = """
[[iothread]]
id = "fast"
pin = "1"

[[iothread]]
id = "plain"

[[disk]]
id = "data"
path = "data.img"
iothread = "fast"
"""


@pytest.fixture(autouse=True)
def two_cpus() -> None:
    """Pins of one CPU of one alone say nothing."""
    assert {0, 1} <= os.sched_getaffinity(0), "these tests need the CPUs 0 and 1"


def threads(daemon: Daemon, vm: str = "web") -> dict[str, dict[str, Any]]:
    """What the API shows of each iothread, by its id."""
    shown = daemon.get(f"/v1/instances/{vm}/cpus")["threads"]
    return {thread["iothread"]: thread for thread in shown if thread["iothread"]}


def where(daemon: Daemon, vm: str = "web") -> dict[str, str]:
    """Where the kernel lets each iothread run."""
    return {name: allowed(thread["thread"]) for name, thread in threads(daemon, vm).items()}


def start(daemon: Daemon, emulator: Emulator, rom: Path, cpu: str = APART, tables: str = TABLES) -> None:
    """A VM of the ROM guest."""
    image(daemon, "data.img", 3 * MIB)
    daemon.unit("web", rom_unit(emulator, rom, cpu=cpu, tables=tables))
    daemon.do("web", "start")


def test_each_iothread_is_where_the_unit_has_it(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """As QEMU and the kernel say; a reset changes nothing, nor does another daemon."""
    start(daemon, qemu, rom_guest)
    expected = {"fast": "1", "plain": "0"}
    assert where(daemon) == expected
    said = {each["id"]: each["thread-id"] for each in qmp(daemon, "web", "query-iothreads")}
    assert said == {f"iothread-{name}": thread["thread"] for name, thread in threads(daemon).items()}
    assert {name: thread["pin"] for name, thread in threads(daemon).items()} == expected
    assert (vcpus(daemon), others(daemon)) == (["0", "1"], {"0", "1"})
    assert " fast " in daemon.ctl("cpus", "web").stdout
    assert "iothread fast" in daemon.ctl("status", "web").stdout
    daemon.do("web", "reset")
    assert where(daemon) == expected
    daemon.restart()
    assert where(daemon) == expected


def test_an_iothread_that_somebody_has_moved_is_put_back(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Within five seconds, and an event names it; so does the next daemon."""
    start(daemon, emulator, rom_guest)
    fast = threads(daemon)["fast"]["thread"]
    with daemon.events() as events:
        os.sched_setaffinity(fast, {0})
        told = events.next("pin-drift", seconds=WITHIN)["data"]
    assert (told["iothreads"], told["threads"], told["vcpus"]) == (["fast"], [fast], [])
    assert told["detail"] == "iothread fast was moved to CPUs 0, and is back on 1"
    daemon.restart()
    os.sched_setaffinity(fast, {0})
    poll_until(lambda: where(daemon)["fast"] == "1", "the next daemon puts it back", seconds=WITHIN)


def test_where_an_iothread_runs_changes_while_it_runs(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """At once, and in its unit; without a word it is where everything else is, and moves with that."""
    start(daemon, emulator, rom_guest)
    operation = set_keys(daemon, "web", iothread__plain__pin="0-1", iothread__fast__pin="")
    assert {key: said["applied"] for key, said in operation["result"]["keys"].items()} == {
        "iothread.plain.pin": "live",
        "iothread.fast.pin": "live",
    }
    assert where(daemon) == {"fast": "0", "plain": "0-1"}
    assert ask(daemon, {"cpu": {"emulator-pin": "1"}})["state"] == "succeeded"
    assert where(daemon) == {"fast": "1", "plain": "0-1"}
    assert differs(daemon) == {}
    daemon.restart()
    assert where(daemon) == {"fast": "1", "plain": "0-1"}
    daemon.do("web", "restart")
    assert where(daemon) == {"fast": "1", "plain": "0-1"}
    refused = set_keys(daemon, "web", iothread__plain__pin="4000")
    assert (refused["state"], refused["error"]["code"]) == ("failed", "placement")
    assert "there is no CPU 4000 on this host" in refused["error"]["detail"]
    assert where(daemon) == {"fast": "1", "plain": "0-1"}


def test_an_iothread_on_a_cpu_that_there_is_not(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The start fails before QEMU is there."""
    image(daemon, "data.img", 3 * MIB)
    daemon.unit("web", rom_unit(emulator, rom_guest, tables=TABLES.replace('"1"', '"4000"')))
    failed = finished(daemon, daemon.post("/v1/instances/web/start"))
    assert failed["error"]["code"] == "start-failed"
    assert "there is no CPU 4000 on this host" in failed["error"]["detail"]
    assert daemon.view("web")["pid"] is None


def test_a_microvm_has_iothreads_or_says_what_to_do(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Without KVM the transports of its disks have none in QEMU 7.2."""
    image(daemon, "data.img", 3 * MIB)
    daemon.unit("web", rom_unit(qemu, rom_guest, tables=TABLES).replace('"q35"', '"microvm"'))
    started = finished(daemon, daemon.post("/v1/instances/web/start"))
    if started["state"] == "succeeded":
        assert where(daemon)["fast"] == "1"
    else:
        assert started["error"]["hint"].startswith("leave `iothread` out of its disks")


def test_iothreads_keep_off_where_a_vm_is_alone(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """One without a word follows the rest of its VM; where one is named, no VM can be alone."""
    start(daemon, emulator, rom_guest, cpu='pin = "auto"', tables=TABLES.replace('pin = "1"', ""))
    anywhere = allowed(0)
    assert where(daemon) == {"fast": anywhere, "plain": anywhere}
    daemon.unit("db", rom_unit(emulator, rom_guest, cpu='pin = ["1"]\nexclusive = true'))
    daemon.do("db", "start")
    poll_until(lambda: "1" not in "".join(where(daemon).values()), "they have left", seconds=WITHIN)
    refused = set_keys(daemon, "web", iothread__fast__pin="1")
    assert "CPU 1 is exclusively db's" in refused["error"]["detail"]
    daemon.do("db", "kill")
    assert set_keys(daemon, "web", iothread__fast__pin="1")["state"] == "succeeded"
    refused = finished(daemon, daemon.post("/v1/instances/db/start"))
    assert "CPU 1, which it wants for itself, web names as well" in refused["error"]["detail"]


def test_iothreads_neither_come_nor_go_while_it_runs(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """What a unit says of them otherwise counts at the next start, and so does what needs one that is new."""
    start(daemon, emulator, rom_guest)
    refused = set_keys(daemon, "web", "&persist=0", iothread__new__present="true")
    assert refused["error"]["detail"] == "iothread.new cannot come while it runs"
    refused = set_keys(daemon, "web", "&persist=0", iothread__plain__present="false")
    assert refused["error"]["detail"] == "iothread.plain cannot be taken away while it runs"
    refused = set_keys(daemon, "web", iothread__fats__pin="0")
    assert refused["error"]["detail"] == "it has no iothread 'fats'; did you mean 'fast'?"
    image(daemon, "more.img", 3 * MIB)
    tables = TABLES.replace('"plain"', '"new"').replace('iothread = "fast"', 'iothread = "new"')
    tables += '[[disk]]\nid = "more"\npath = "more.img"\niothread = "new"\n'
    daemon.unit("web", rom_unit(emulator, rom_guest, cpu=APART, tables=tables))
    daemon.post("/v1/reload")
    changes = daemon.get("/v1/instances/web/diff")["changes"]
    assert {change["key"]: change["needs"] for change in changes} == dict.fromkeys(
        ("disk.data.iothread", "disk.more", "iothread.plain", "iothread.new"), "restart"
    )
    keys = daemon.post("/v1/instances/web/apply?wait=30")["result"]["keys"]
    assert {key: (said["applied"], said["why"]) for key, said in keys.items()} == {
        "disk.data.iothread": ("start", "disk.data.iothread cannot be changed while it runs"),
        "disk.more": ("start", "disk 'more': iothread 'new' is not there before the VM's next start"),
        "iothread.plain": ("start", "iothread.plain cannot be taken away while it runs"),
        "iothread.new": ("start", "iothread.new cannot come while it runs"),
    }
    assert where(daemon).keys() == {"fast", "plain"}
    assert daemon.get("/v1/instances/web/devices")["absent"] == ["disk.more"]
    daemon.do("web", "restart")
    assert where(daemon).keys() == {"fast", "new"}
    assert [disk["iothread"] for disk in daemon.view("web")["disks"]] == ["new", "new"]


def test_an_iothread_does_the_work_of_its_disks(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """Also of one that comes while the VM runs; all that can be done with a disk can be done with such."""
    data = image(daemon, "data.img", 8 * MIB)
    daemon.unit("web", linux_unit(qemu, linux_guest, tables=TABLES))
    daemon.do("web", "start")
    before = threads(daemon)

    def write(disk: str, text: str) -> None:
        """One block, past the guest's own cache, into the image."""
        script = f"yes {text} | dd of=/dev/{disk} bs=64k count=16 iflag=fullblock oflag=direct 2>/dev/null"
        in_guest(daemon, "web", script)

    write("vda", "first")
    after = threads(daemon)
    assert after["fast"]["seconds"] > before["fast"]["seconds"]
    assert after["plain"]["seconds"] == before["plain"]["seconds"]
    assert data.read_bytes().startswith(b"first\n")
    for cache in ("none", "unsafe", "writeback"):
        operation = change(daemon, "web", disk=[{"id": "data", "cache": cache, "throttle": {"iops": 900}}])
        assert operation["state"] == "succeeded", operation
        write("vda", cache)
        assert data.read_bytes().startswith(cache.encode())
    assert resize(daemon, "data", "12M")["state"] == "succeeded"
    more = image(daemon, "more.img", 4 * MIB)
    operation = attach(daemon, "web", "disks", id="more", path="more.img", iothread="plain")
    assert operation["state"] == "succeeded", operation
    poll_until(lambda: "vdb" in in_guest(daemon, "web", "ls /sys/block"), "the guest sees it", seconds=15)
    before = threads(daemon)
    write("vdb", "second")
    assert threads(daemon)["plain"]["seconds"] > before["plain"]["seconds"]
    assert more.read_bytes().startswith(b"second\n")
    assert daemon.get("/v1/instances/web/disks/more")["iothread"] == "plain"
    for disk in ("more", "data"):
        operation = detach(daemon, "web", f"disks/{disk}", query="&force=1")
        assert operation["state"] == "succeeded", operation
    assert threads(daemon).keys() == {"fast", "plain"}
    refused = attach(daemon, "web", "disks", id="more", path="more.img", iothread="other")
    assert "there is no iothread 'other'; there is fast and plain" in refused["error"]["detail"]
