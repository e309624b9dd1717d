"""Memory that comes and goes while a VM runs, on every QEMU: what the API says is what QEMU and the guest have.

Long because there are three ways, each with guests that obey, refuse and are silent.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import attrs
import pytest

from qsup.errors import ChangeError, GuestRefused, OperationCancelled, UnitError
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, kill_process, linux_unit, rom_unit
from tests.real.growing import ask, cancel, differs, run
from tests.real.hotplug import agree, finished, peripherals, qmp, set_keys, told
from tests.waiting import came_true

pytestmark = [pytest.mark.real]

MIB = 1 << 20
GROWS = 'max = "512M"'
MODULES = 'max = "1G"\nslots = 2\nresize = "dimm"'
POLLING = "guest-stats-polling-interval"


def start(daemon: Daemon, qemu: Emulator, guest: LinuxGuest, memory: str, *, online: str = "online_movable") -> None:
    """A Linux VM with 256 MiB.

    Args:
        online: what its kernel does with memory that comes.
    """
    guest = attrs.evolve(guest, append=f"{guest.append} memhp_default_state={online}")
    text = linux_unit(qemu, guest, memory=memory).replace('size = "128M"', 'size = "256M"')
    daemon.unit("web", text)
    daemon.do("web", "start")


def start_rom(daemon: Daemon, qemu: Emulator, rom: Path, memory: str) -> None:
    """A VM of 16 MiB whose guest knows nothing of memory that changes."""
    daemon.unit("web", rom_unit(qemu, rom, memory=memory).replace("balloon = false\n" * ("balloon" in memory), ""))
    daemon.do("web", "start")


def size(daemon: Daemon, text: str, *, wait: float = 30) -> dict[str, Any]:
    """Ask for so much memory: the operation."""
    return ask(daemon, {"memory": {"size": text}}, wait=wait)


def machine(daemon: Daemon) -> int:
    """MiB that QEMU has."""
    summary = qmp(daemon, "web", "query-memory-size-summary")
    return int(summary["base-memory"] + summary["plugged-memory"]) // MIB


def shown(daemon: Daemon) -> int:
    """MiB that the API shows."""
    return int(daemon.view("web")["memory"]["size"]) // MIB


def has(daemon: Daemon, mib: int) -> bool:
    """Whether QEMU has so many MiB and the API says so, soon."""
    return came_true(lambda: (machine(daemon), shown(daemon)) == (mib, mib), seconds=5)


def total(daemon: Daemon) -> int:
    """MiB that the guest counts."""
    return int(run(daemon, "sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) // 1024


def fill(daemon: Daemon, seconds: int) -> None:
    """Have the guest use its memory for a file, which it removes by itself: short of memory, its agent may be mute."""
    run(daemon, "mkdir -p /tmp/full; mount -t tmpfs -o size=1G full /tmp/full")
    run(daemon, "dd if=/dev/zero of=/tmp/full/x bs=1M count=300")
    run(daemon, f"(sleep {seconds}; rm /tmp/full/x) >/dev/null 2>&1 &")


def test_memory_grows_and_shrinks(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """By virtio-mem, where the unit has a `max`; a later daemon knows how much there is."""
    start(daemon, qemu, linux_guest, GROWS)
    before = total(daemon)
    operation = size(daemon, "512M")
    assert (operation["kind"], operation["state"]) == ("set", "succeeded")
    assert (operation["result"]["changed"], told(operation, "memory.size")) == (True, {"size": 512 * MIB})
    assert has(daemon, 512)
    assert came_true(lambda: total(daemon) > before + 200, seconds=5)
    daemon.restart()
    daemon.wait("web", "running")
    assert has(daemon, 512)
    assert size(daemon, "384M")["state"] == "succeeded"
    assert has(daemon, 384)
    assert size(daemon, "384M")["result"]["changed"] is False
    assert size(daemon, "256M")["state"] == "succeeded"
    assert has(daemon, 256)
    assert agree(daemon, "web")


def test_what_virtio_mem_gave_can_be_given_back_after_a_restart(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest
) -> None:
    """The next start has the machine as small as it was, and its guest takes the rest as it boots."""
    start(daemon, qemu, linux_guest, GROWS)
    assert size(daemon, "512M")["state"] == "succeeded"
    dropin = daemon.units / "web.toml.d" / "90-changes.toml"
    assert dropin.read_text().partition("\n\n")[2] == '[memory]\nsize = "512M"\nmin = "256M"\n'
    assert not daemon.view("web")["unit"]["needs_restart"]
    daemon.do("web", "restart")
    assert came_true(lambda: has(daemon, 512), seconds=10)
    assert daemon.get("/v1/instances/web/diff")["changes"] == []
    assert size(daemon, "384M")["state"] == "succeeded"
    assert has(daemon, 384)
    assert "it was started with 256M" in size(daemon, "128M")["error"]["detail"]
    assert size(daemon, "256M")["state"] == "succeeded"
    assert not dropin.exists()
    assert daemon.get("/v1/instances/web/diff")["changes"] == []


def test_what_a_guest_has_yet_to_take_is_not_shown(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """One without a driver has what the machine began with, under a later daemon, too."""
    start_rom(daemon, emulator, rom_guest, 'max = "64M"\nmin = "8M"')
    assert (shown(daemon), machine(daemon)) == (8, 8)
    daemon.restart()
    daemon.wait("web", "running")
    assert (shown(daemon), machine(daemon)) == (8, 8)


def test_a_guest_that_needs_its_memory_gives_back_what_it_can(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest
) -> None:
    """That is told, holds nobody, outlives the daemon, and goes on when the guest can give more."""
    start(daemon, qemu, linux_guest, GROWS)
    assert size(daemon, "512M")["state"] == "succeeded"
    fill(daemon, 8)
    operation = size(daemon, "256M", wait=2)
    assert (operation["state"], operation["cancellable"]) == ("running", True)
    left = shown(daemon)
    assert left > 256
    gave = f"{512 - left}M" if left < 512 else "nothing"
    assert operation["progress"] == f"gave back {gave} of 256M: it has {left}M and is to have 256M"
    assert daemon.view("web")["operation"] is None
    # the unit has what came true: the guest may yet be left alone
    dropin = daemon.units / "web.toml.d" / "90-changes.toml"
    assert 'size = "512M"' in dropin.read_text()
    daemon.restart()
    daemon.wait("web", "running")
    assert finished(daemon, operation, seconds=60)["state"] == "succeeded"
    assert has(daemon, 256)
    assert not dropin.exists()


@pytest.mark.parametrize("restarted", [False, True])
def test_what_the_next_start_is_to_have_outlasts_a_shrinking(
    daemon: Daemon, emulator: Emulator, linux_guest: LinuxGuest, restarted: bool
) -> None:
    """What was asked for later stays in the unit, under a later daemon, too; the guest gives back all the same."""
    start(daemon, emulator, linux_guest, GROWS)
    assert size(daemon, "512M")["state"] == "succeeded"
    fill(daemon, 8)
    operation = size(daemon, "256M", wait=1)
    assert operation["state"] == "running"
    later = ask(daemon, {"memory": {"size": "384M"}}, query="&next-start=1")
    assert later["result"]["keys"]["memory.size"]["applied"] == "start"
    if restarted:
        daemon.restart()
        daemon.wait("web", "running")
    ended = finished(daemon, operation, seconds=60)
    assert (ended["state"], has(daemon, 256)) == ("succeeded", True)
    assert "a later change" in told(ended, "memory.size")["why"]
    assert 'size = "384M"' in (daemon.units / "web.toml.d" / "90-changes.toml").read_text()


def test_a_shrinking_can_be_cancelled(daemon: Daemon, emulator: Emulator, linux_guest: LinuxGuest) -> None:
    """The guest keeps what it has, QEMU wants no more of it, and another change begins from there."""
    start(daemon, emulator, linux_guest, GROWS)
    assert size(daemon, "512M")["state"] == "succeeded"
    fill(daemon, 8)
    operation = size(daemon, "256M", wait=2)
    ended = cancel(daemon, operation)
    assert (ended["state"], ended["error"]["code"]) == ("cancelled", OperationCancelled.code)
    (device,) = [each["data"] for each in qmp(daemon, "web", "query-memory-devices")]
    assert device["requested-size"] == device["size"] > 0
    assert size(daemon, "256M")["state"] == "succeeded"
    with daemon.client() as client, pytest.raises(Exception, match="has ended"):
        client.delete(f"/v1/operations/{operation['id']}")


def test_modules_come_and_go(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """One for each change, as many as there are slots; what has no whole module is refused."""
    start(daemon, qemu, linux_guest, MODULES)
    assert told(size(daemon, "384M"), "memory.size") == {"size": 384 * MIB}
    assert size(daemon, "768M")["state"] == "succeeded"
    assert has(daemon, 768)
    assert peripherals(daemon, "web") >= {"memory-0", "memory-1"}
    assert agree(daemon, "web")
    assert "all 2 slots for memory modules are taken" in size(daemon, "896M")["error"]["detail"]
    assert "it can have 384M" in size(daemon, "640M")["error"]["detail"]
    assert "a multiple of 128M, not 100M" in size(daemon, "868M")["error"]["detail"]
    assert came_true(lambda: total(daemon) > 600, seconds=5)
    assert size(daemon, "256M")["state"] == "succeeded"
    assert has(daemon, 256)
    assert agree(daemon, "web")
    assert "memory-0" not in json.dumps(qmp(daemon, "web", "qom-list", path="/objects"))
    assert size(daemon, "512M")["state"] == "succeeded"


def test_a_guest_that_was_reset_is_asked_for_its_modules_again(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest
) -> None:
    """The new one has never heard that they are to go."""
    start(daemon, qemu, linux_guest, MODULES)
    assert size(daemon, "384M")["state"] == "succeeded"
    daemon.do("web", "pause")
    operation = size(daemon, "256M", wait=0.5)
    assert operation["state"] == "running"
    daemon.do("web", "reset")
    daemon.do("web", "resume")
    assert finished(daemon, operation, seconds=40)["state"] == "succeeded"
    assert has(daemon, 256)
    assert agree(daemon, "web")


def test_a_module_that_goes_late_counts(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """What was cancelled the guest may do all the same: then the VM has that much, by all that is said of it."""
    start(daemon, qemu, linux_guest, MODULES)
    assert size(daemon, "384M")["state"] == "succeeded"
    daemon.do("web", "pause")
    assert cancel(daemon, size(daemon, "256M", wait=0.5))["state"] == "cancelled"
    assert (differs(daemon), has(daemon, 384)) == ({}, True)
    daemon.do("web", "resume")
    assert came_true(lambda: has(daemon, 256), seconds=10)
    assert came_true(lambda: differs(daemon) == {"memory.size": ("256M", "384M")}, seconds=5)
    assert "memory-0" not in json.dumps(qmp(daemon, "web", "qom-list", path="/objects"))
    assert agree(daemon, "web")


def test_a_module_that_the_kernel_uses_stays(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """The guest's refusal is told, and the module is as it was."""
    start(daemon, qemu, linux_guest, MODULES, online="online_kernel")
    assert size(daemon, "384M")["state"] == "succeeded"
    # what a kernel allocates for itself cannot be moved out of the way
    run(daemon, "mkdir -p /tmp/dirs; mount -t tmpfs d /tmp/dirs; cd /tmp/dirs; seq 1 40000 | xargs -n 500 mkdir")
    operation = size(daemon, "256M", wait=15)
    assert (operation["state"], (operation["error"] or {}).get("code")) == ("failed", GuestRefused.code), operation
    assert has(daemon, 384)
    assert size(daemon, "384M")["result"]["changed"] is False


def test_the_balloon_takes_and_gives(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """Where the unit says nothing else; the machine stays as large as it is."""
    start(daemon, qemu, linux_guest, "")
    operation = size(daemon, "200M")
    assert (operation["result"]["changed"], told(operation, "memory.size")) == (True, {"actual": 200 * MIB})
    sizes = {"size": 256 * MIB, "max": 256 * MIB, "actual": 200 * MIB}
    assert daemon.view("web")["memory"] == {**sizes, "page": 0, "nodes": [], "guest_nodes": []}
    daemon.restart()
    daemon.wait("web", "running")
    assert came_true(lambda: daemon.view("web")["memory"]["actual"] == 200 * MIB, seconds=5)
    assert daemon.view("web")["memory"]["size"] == 256 * MIB
    assert size(daemon, "256M")["state"] == "succeeded"
    assert daemon.view("web")["memory"]["actual"] == 256 * MIB
    assert not (daemon.units / "web.toml.d").exists()
    assert "a balloon gives it no more" in size(daemon, "512M")["error"]["detail"]


@pytest.mark.parametrize("memory", [GROWS, MODULES])
def test_a_balloon_that_takes_nothing_leaves_all(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest, memory: str
) -> None:
    """Also of memory that came, which QEMU's balloon does not count or says nothing of."""
    start(daemon, qemu, linux_guest, memory)
    daemon.restart()
    daemon.wait("web", "running")

    most = (512 if memory == GROWS else 1024) * MIB

    def left(mib: int) -> bool:
        wanted = {"size": mib * MIB, "max": most, "actual": mib * MIB, "page": 0, "nodes": [], "guest_nodes": []}
        return came_true(lambda: daemon.view("web")["memory"] == wanted, seconds=5)

    assert left(256)
    for mib in (384, 256):
        assert size(daemon, f"{mib}M")["state"] == "succeeded"
        assert left(mib)
    size(daemon, "384M")
    qmp(daemon, "web", "balloon", value=(200 if memory == GROWS else 328) * MIB)
    assert came_true(lambda: daemon.view("web")["memory"]["actual"] == 328 * MIB, seconds=10)


def test_what_a_balloon_took_can_be_given_back_after_a_restart(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest
) -> None:
    """The next start has the machine as it was, its guest with what it was left; nothing of that needs another."""
    start(daemon, qemu, linux_guest, "")
    assert size(daemon, "200M")["state"] == "succeeded"
    dropin = daemon.units / "web.toml.d" / "90-changes.toml"
    assert dropin.read_text().partition("\n\n")[2] == '[memory]\nsize = "200M"\nmax = "256M"\nresize = "balloon"\n'
    assert not daemon.view("web")["unit"]["needs_restart"]
    daemon.do("web", "restart")
    assert came_true(lambda: daemon.view("web")["memory"]["actual"] == 200 * MIB, seconds=10)
    assert (machine(daemon), daemon.get("/v1/instances/web/diff")["changes"]) == (256, [])
    assert size(daemon, "240M")["state"] == "succeeded"
    assert daemon.view("web")["memory"]["actual"] == 240 * MIB
    # while it is still at it, too: a guest that has answered once can be asked for more again
    daemon.do("web", "pause")
    operation = size(daemon, "200M", wait=0.5)
    assert operation["state"] == "running", operation
    daemon.do("web", "kill")
    assert finished(daemon, operation)["state"] == "succeeded"
    assert 'size = "200M"\nmax = "256M"' in dropin.read_text()
    assert set_keys(daemon, "web", memory="256M")["state"] == "succeeded"
    assert not dropin.exists()


@pytest.mark.parametrize(("memory", "before", "after"), [("", 256, 200), (MODULES, 384, 256), (GROWS, 384, 300)])
def test_a_later_daemon_sees_to_it_that_a_guest_gives_back(
    daemon: Daemon, emulator: Emulator, linux_guest: LinuxGuest, memory: str, before: int, after: int
) -> None:
    """Whichever way: what an earlier one asked for comes true, and is in the unit then."""
    start(daemon, emulator, linux_guest, memory)
    assert size(daemon, f"{before}M")["state"] == "succeeded"
    daemon.do("web", "pause")
    operation = size(daemon, f"{after}M", wait=0.5)
    assert operation["state"] == "running"
    daemon.restart()
    daemon.wait("web", "paused")
    daemon.do("web", "resume")
    assert finished(daemon, operation, seconds=30)["state"] == "succeeded"
    assert came_true(lambda: daemon.view("web")["memory"]["actual"] == after * MIB, seconds=5)
    assert differs(daemon) == {}
    daemon.do("web", "restart")
    assert came_true(lambda: has(daemon, after if memory else 256), seconds=10)


@pytest.mark.parametrize("ends", [False, True])
def test_an_edit_of_the_unit_outlasts_a_shrinking(
    daemon: Daemon, emulator: Emulator, linux_guest: LinuxGuest, ends: bool
) -> None:
    """Whether the guest gives back or its VM ends before: whoever edited the file came later."""
    start(daemon, emulator, linux_guest, "")
    assert size(daemon, "200M")["state"] == "succeeded"
    daemon.do("web", "pause")
    operation = size(daemon, "160M", wait=0.5)
    assert operation["state"] == "running"
    dropin = daemon.units / "web.toml.d" / "90-changes.toml"
    edited = dropin.read_text().replace("200M", "224M")
    dropin.write_text(edited)
    daemon.do("web", "kill" if ends else "resume")
    ended = finished(daemon, operation)
    assert dropin.read_text() == edited
    if ends:
        assert ended["error"]["code"] == ChangeError.code
    else:
        assert "a later change" in told(ended, "memory.size")["why"]
        assert daemon.view("web")["memory"]["actual"] == 160 * MIB


@pytest.mark.parametrize(
    ("memory", "wanted", "words"),
    [
        ('max = "64M"', "32M", "took nothing of 16M: it has 16M and is to have 32M"),
        ("balloon = true", "8M", "gave back nothing of 8M: it has 16M and is to have 8M"),
    ],
)
def test_a_guest_that_does_not_answer_keeps_nobody(
    daemon: Daemon, qemu: Emulator, rom_guest: Path, memory: str, wanted: str, words: str
) -> None:
    """The operation waits until it is cancelled, or the VM ends."""
    start_rom(daemon, qemu, rom_guest, memory)
    operation = size(daemon, wanted, wait=1)
    assert (operation["state"], operation["progress"]) == ("running", words)
    assert daemon.view("web")["operation"] is None
    assert cancel(daemon, operation)["state"] == "cancelled"
    assert has(daemon, 16)
    # its next start is not with what it never had
    dropin = daemon.units / "web.toml.d" / "90-changes.toml"
    assert not dropin.exists()
    again = ask(daemon, {"memory": {"size": wanted}}, wait=0.5, query="&persist=0")
    daemon.do("web", "kill")
    assert (finished(daemon, again)["error"]["code"], dropin.exists()) == (ChangeError.code, False)


@pytest.mark.parametrize(("memory", "wanted"), [('max = "64M"', 32), ("balloon = true", 8)])
@pytest.mark.parametrize("how", ["kill", "restart", "alone"])
def test_what_the_guest_was_still_at_the_next_start_has(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, memory: str, wanted: int, how: str
) -> None:
    """However the VM ends, be it while no daemon runs: it was asked for, and a new guest need give nothing back."""
    start_rom(daemon, emulator, rom_guest, memory)
    operation = size(daemon, f"{wanted}M", wait=1)
    assert operation["state"] == "running"
    if how == "alone":
        pid = daemon.view("web")["pid"]
        daemon.signal(signal.SIGKILL)
        kill_process(pid)
        daemon.start()
    else:
        daemon.do("web", how)
    done = finished(daemon, operation)
    assert done["state"] == "succeeded", done
    if how != "alone":
        assert done["result"]["keys"]["memory.size"]["applied"] == "start"
    if how != "restart":
        daemon.do("web", "start")
    assert has(daemon, wanted)
    assert not daemon.view("web")["unit"]["needs_restart"]


@pytest.mark.parametrize("number", range(4))
def test_a_daemon_that_dies_plugging_is_succeeded(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, number: int
) -> None:
    """At whichever command: there is one module in the end, whole."""
    start_rom(daemon, emulator, rom_guest, 'max = "1G"\nslots = 2\nresize = "dimm"')
    operation = size(daemon, "144M", wait=0)
    came_true(lambda: number == 0 or len(qmp(daemon, "web", "qom-list", path="/objects")) > number, seconds=0.3)
    daemon.restart(signal.SIGKILL)
    daemon.wait("web", "running")
    assert finished(daemon, operation)["state"] == "succeeded"
    assert has(daemon, 144)
    assert agree(daemon, "web")


@pytest.mark.parametrize(
    ("memory", "wanted", "code", "words"),
    [
        ('max = "64M"', "128M", UnitError.code, "max (64M) is less than size (128M)"),
        ('max = "64M"', "17M", UnitError.code, "size (17M) is not a multiple of 2M"),
        ('max = "64M"', "8M", ChangeError.code, "it was started with 16M, which it keeps while it runs"),
        ('max = "64M"', "much", UnitError.code, "'much' is not a size"),
        ('max = "64M"', "0B", UnitError.code, "must be from 1M"),
        ("", "8M", ChangeError.code, "it has neither a balloon nor room for more memory"),
        (MODULES, "18M", ChangeError.code, "a memory module has a multiple of 128M, not 2M"),
    ],
    ids=str,
)
def test_wrong_sizes_are_refused(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, memory: str, wanted: str, code: str, words: str
) -> None:
    """Before QEMU is asked for anything."""
    start_rom(daemon, emulator, rom_guest, memory)
    operation = size(daemon, wanted)
    assert (operation["state"], operation["error"]["code"]) == ("failed", code), operation
    assert words in json.dumps(operation["error"])
    assert has(daemon, 16)


def test_a_module_that_qemu_refuses_leaves_nothing(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Its memory was there already, and is given back."""
    start_rom(daemon, qemu, rom_guest, MODULES)
    before = qmp(daemon, "web", "qom-list", path="/objects")
    for number in range(2):
        name = f"mine-{number}"
        qmp(daemon, "web", "object-add", **{"qom-type": "memory-backend-ram", "id": name, "size": 128 * MIB})
        qmp(daemon, "web", "device_add", driver="pc-dimm", id=name, memdev=name)
    operation = size(daemon, "400M")
    assert operation["state"] == "failed"
    assert "memory module 0" in operation["error"]["detail"]
    objects = qmp(daemon, "web", "qom-list", path="/objects")
    assert len(objects) == len(before) + 2
    assert agree(daemon, "web")


def test_what_a_guest_says_of_its_memory(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """It is there a while after somebody has asked, for a later daemon too, and in /metrics."""
    start(daemon, qemu, linux_guest, "")

    def known() -> bool:
        figures = daemon.get("/v1/instances/web/stats")["balloon"]
        return bool(0 < figures.get("free_memory", 0) < figures.get("total_memory", 0) < 256 * MIB)

    assert came_true(known, seconds=20)
    assert max(daemon.get("/v1/instances/web/stats")["balloon"].values()) < 1 << 40  # QEMU's -1 is no figure
    daemon.restart()
    daemon.wait("web", "running")
    assert came_true(known, seconds=20)


def test_a_balloon_without_a_driver_says_nothing(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """And the disks' counters come all the same."""
    start_rom(daemon, emulator, rom_guest, "balloon = true")
    assert daemon.get("/v1/instances/web/stats")["balloon"] == {}
    # the heartbeat that follows sets QEMU to ask the guest
    assert came_true(
        lambda: qmp(daemon, "web", "qom-get", path="/machine/peripheral/balloon", property=POLLING) == 5, seconds=15
    )
    assert daemon.get("/v1/instances/web/stats")["balloon"] == {}


@pytest.mark.parametrize("number", range(4))
def test_a_daemon_that_dies_asking_is_succeeded(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, number: int
) -> None:
    """Whether QEMU had heard of it or not: the next one asks, waits on, and can be told to stop."""
    start_rom(daemon, emulator, rom_guest, 'max = "64M"')

    def requested() -> int:
        (device,) = [each["data"] for each in qmp(daemon, "web", "query-memory-devices")]
        return int(device["requested-size"]) // MIB

    operation = size(daemon, "32M", wait=0)
    came_true(lambda: number == 0 or requested() == 16, seconds=0.02 * number)
    daemon.restart(signal.SIGKILL)
    daemon.wait("web", "running")
    assert came_true(lambda: requested() == 16, seconds=10)
    assert came_true(lambda: daemon.get(f"/v1/operations/{operation['id']}")["cancellable"], seconds=10)
    assert cancel(daemon, operation)["state"] == "cancelled"
    assert (requested(), has(daemon, 16)) == (0, True)
