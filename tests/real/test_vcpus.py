"""vCPUs that come and go while a VM runs, on every QEMU: what the API says is what QEMU and the guest have."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import ChangeError, OperationCancelled, UnitError, UnsupportedError
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, linux_unit, rom_unit
from tests.real.growing import ask, cancel, differs, run
from tests.real.hotplug import agree, finished, qmp, shown, told
from tests.waiting import came_true

pytestmark = [pytest.mark.real]


def start(daemon: Daemon, qemu: Emulator, guest: LinuxGuest, *, cpu: str = "max-vcpus = 4", **sections: str) -> None:
    """A Linux VM with one vCPU and room for more."""
    daemon.unit("web", linux_unit(qemu, guest, cpu=cpu, **sections))
    daemon.do("web", "start")


def start_rom(daemon: Daemon, qemu: Emulator, rom: Path, *, cpu: str = "max-vcpus = 4", **sections: str) -> None:
    """A VM whose guest obeys no unplug and has no agent."""
    daemon.unit("web", rom_unit(qemu, rom, cpu=cpu, **sections))
    daemon.do("web", "start")


def vcpus(daemon: Daemon, number: int, *, wait: float = 30) -> dict[str, Any]:
    """Ask for so many vCPUs: the operation."""
    return ask(daemon, {"cpu": {"vcpus": number}}, wait=wait)


def present(daemon: Daemon) -> int:
    """How many QEMU has."""
    return sum("qom-path" in each for each in qmp(daemon, "web", "query-hotpluggable-cpus"))


def agrees(daemon: Daemon, number: int) -> bool:
    """Whether QEMU has so many and the API says so, with a thread for each."""
    cpus = daemon.view("web")["cpus"]
    fast = {cpu["thread-id"] for cpu in qmp(daemon, "web", "query-cpus-fast")}
    return (present(daemon), cpus["vcpus"]) == (number, number) and set(cpus["threads"]) == fast


def online(daemon: Daemon) -> str:
    """Which the guest uses."""
    return run(daemon, "cat /sys/devices/system/cpu/online")


def unplugs(qemu: Emulator) -> bool:
    """Whether vCPUs can be removed under TCG."""
    return int(qemu.version.split(".")[0]) >= 10


def test_vcpus_come_and_the_guest_uses_them(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """Each at its place of the topology, with a thread in the VM's cgroup, and online."""
    start(daemon, qemu, linux_guest, cpu="max-vcpus = 4\ntopology = { sockets = 2, cores = 2 }")
    operation = vcpus(daemon, 3)
    assert (operation["kind"], operation["state"]) == ("set", "succeeded")
    assert (operation["result"]["changed"], told(operation, "cpu.vcpus")) == (True, {"vcpus": 3, "online": 3})
    assert agrees(daemon, 3)
    assert online(daemon) == "0-2"
    assert agree(daemon, "web")
    assert {"cpu-1", "cpu-2"} <= shown(daemon, "web")
    plugged = {each["qom-path"]: each for each in qmp(daemon, "web", "query-cpus-fast")}
    props = plugged["/machine/peripheral/cpu-2"]["props"]
    assert (props["socket-id"], props["core-id"]) == (1, 0)
    view = daemon.view("web")
    groups = {Path(f"/proc/{view['pid']}/task/{tid}/cgroup").read_text() for tid in view["cpus"]["threads"]}
    assert groups == {Path(f"/proc/{view['pid']}/cgroup").read_text()}
    again = vcpus(daemon, 3)
    assert (again["state"], again["result"]["changed"]) == ("succeeded", False)


def test_vcpus_go_when_the_guest_lets_them(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """Also those that were there at the start; where QEMU would be damaged it is not asked."""
    start(daemon, qemu, linux_guest, cpu="vcpus = 2\nmax-vcpus = 3")
    assert vcpus(daemon, 3)["state"] == "succeeded"
    operation = vcpus(daemon, 1)
    if not unplugs(qemu):
        assert (operation["state"], operation["error"]["code"]) == ("failed", UnsupportedError.code)
        assert "cannot be trusted to remove a vCPU under TCG" in operation["error"]["detail"]
        assert agrees(daemon, 3)
        return
    assert (operation["state"], operation["progress"]) == ("succeeded", "done"), operation
    assert (operation["result"]["changed"], told(operation, "cpu.vcpus")) == (True, {"vcpus": 1, "online": 1})
    assert agrees(daemon, 1)
    assert online(daemon) == "0"
    assert agree(daemon, "web")
    # one more thread would be QEMU's end
    refused = vcpus(daemon, 2)
    assert refused["error"]["code"] == UnsupportedError.code
    assert "0 more can come, not 1" in refused["error"]["detail"]
    assert agrees(daemon, 1)


def test_a_vcpu_that_went_can_come_again(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """As often as QEMU has threads for, which a later daemon knows, too."""
    if not unplugs(qemu):
        pytest.skip("this QEMU removes no vCPU under TCG")
    start(daemon, qemu, linux_guest, cpu="max-vcpus = 3")
    for number, code in ((2, ""), (1, ""), (2, ""), (1, ""), (2, UnsupportedError.code)):
        operation = vcpus(daemon, number)
        assert (operation["error"] or {"code": ""})["code"] == code, (number, operation)
        daemon.restart()
        daemon.wait("web", "running")
    assert present(daemon) == 1


def test_vcpus_that_went_can_come_again_after_a_restart(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest
) -> None:
    """The unit that has fewer from now on still has room for as many as the machine was started with."""
    if not unplugs(qemu):
        pytest.skip("this QEMU removes no vCPU under TCG")
    start(daemon, qemu, linux_guest, cpu="vcpus = 2")
    assert ask(daemon, {"cpu": {"vcpus": 1}}, wait=30, query="")["state"] == "succeeded"
    daemon.do("web", "restart")
    assert present(daemon) == 1
    assert vcpus(daemon, 2)["state"] == "succeeded"
    assert agrees(daemon, 2)


def test_a_guest_that_does_not_answer_keeps_nobody(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """The operation waits, holds nobody, outlives the daemon, and ends when somebody cancels it.

    What the guest was asked for it may still do when it wakes up, and then that is shown.
    """
    if not unplugs(qemu):
        pytest.skip("this QEMU removes no vCPU under TCG")
    start(daemon, qemu, linux_guest)
    assert told(vcpus(daemon, 2), "cpu.vcpus") == {"vcpus": 2, "online": 2}
    daemon.do("web", "pause")
    operation = vcpus(daemon, 1, wait=8)
    assert (operation["state"], operation["cancellable"]) == ("running", True)
    assert operation["progress"] == "it has 2 vCPUs and is to have 1: the guest must let them go"
    assert daemon.view("web")["operation"] is None
    assert daemon.view("web")["cpus"]["vcpus"] == 2
    daemon.restart()
    daemon.wait("web", "paused")
    assert daemon.get(f"/v1/operations/{operation['id']}")["cancellable"]
    ended = cancel(daemon, operation)
    assert (ended["state"], ended["error"]["code"]) == ("cancelled", OperationCancelled.code)
    assert agrees(daemon, 2)
    assert vcpus(daemon, 2)["result"]["changed"] is False
    daemon.do("web", "resume")
    assert came_true(lambda: agrees(daemon, 1), seconds=10)
    assert came_true(lambda: differs(daemon) == {"cpu.vcpus": (1, 2)}, seconds=5)


def test_a_later_change_takes_the_place_of_one_that_waits(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest
) -> None:
    """And if the VM ends before, its next start has it."""
    if not unplugs(qemu):
        pytest.skip("this QEMU removes no vCPU under TCG")
    start(daemon, qemu, linux_guest)
    vcpus(daemon, 3)
    daemon.do("web", "pause")
    first = vcpus(daemon, 1, wait=8)
    second = vcpus(daemon, 2, wait=8)
    assert finished(daemon, first)["error"]["code"] == OperationCancelled.code
    assert second["state"] == "running"
    daemon.do("web", "kill")
    late = finished(daemon, second)["result"]["keys"]["cpu.vcpus"]
    assert (late["applied"], late["new"]) == ("start", 2)


def test_a_guest_that_was_reset_is_asked_for_its_vcpus_again(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest
) -> None:
    """The new one has never heard that they are to go."""
    if not unplugs(qemu):
        pytest.skip("this QEMU removes no vCPU under TCG")
    start(daemon, qemu, linux_guest)
    vcpus(daemon, 3)
    daemon.do("web", "pause")
    operation = vcpus(daemon, 1, wait=8)
    daemon.do("web", "reset")
    daemon.do("web", "resume")
    assert finished(daemon, operation, seconds=40)["state"] == "succeeded"
    assert agrees(daemon, 1)


def test_a_guest_without_acpi_keeps_its_vcpus(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """QEMU cannot even ask it, which is said in words that help; the VM is as it was."""
    if not unplugs(qemu):
        pytest.skip("this QEMU removes no vCPU under TCG")
    start_rom(daemon, qemu, rom_guest)
    assert told(vcpus(daemon, 2), "cpu.vcpus") == {"vcpus": 2, "online": None}
    refused = vcpus(daemon, 1)
    assert (refused["state"], refused["error"]["code"]) == ("failed", ChangeError.code)
    assert refused["error"]["detail"] == ("its guest does not do what takes a vCPU away (ACPI), so vCPU 1 stays")
    assert agrees(daemon, 2)
    assert vcpus(daemon, 2)["result"]["changed"] is False
    assert {each["state"] for each in daemon.get("/v1/instances/web/devices")["devices"]} == {"there"}


@pytest.mark.parametrize("when", [1, 2, 3, 4])
def test_a_daemon_that_dies_plugging_is_succeeded(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, when: int
) -> None:
    """At whichever command: the next one completes it, and counts each thread once."""
    start_rom(daemon, emulator, rom_guest)
    operation = vcpus(daemon, 4, wait=0)
    came_true(lambda: present(daemon) >= when, seconds=2)
    daemon.restart(signal.SIGKILL)
    daemon.wait("web", "running")
    assert finished(daemon, operation)["state"] == "succeeded"
    assert agrees(daemon, 4)
    record = json.loads((daemon.run / "instances" / "web" / "record.json").read_text())
    assert record["state"]["plan"]["vcpus_made"] == 4


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"cpu": {"vcpus": 5}}, UnitError.code, "max-vcpus (4) is less than vcpus (5)"),
        ({"cpu": {"vcpus": 0}}, UnitError.code, "must be from 1 to 4096"),
        ({"cpu": {"vcpus": "2"}}, UnitError.code, "expected an integer"),
        ({"cpu": {"vcpus": 2, "max-vcpus": 8}}, ChangeError.code, "cpu.max-vcpus cannot be changed while it runs"),
        ({"cpu": {"vcpus": 2, "model": "max"}}, ChangeError.code, "cpu.model cannot be changed while it runs"),
    ],
    ids=str,
)
def test_wrong_numbers_are_refused(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, changes: dict[str, Any], code: str, words: str
) -> None:
    """Before QEMU is asked for anything."""
    start_rom(daemon, emulator, rom_guest)
    # what can only be at the next start would be written to the unit
    operation = ask(daemon, changes, query="&persist=0")
    assert (operation["state"], operation["error"]["code"]) == ("failed", code), operation
    assert words in json.dumps(operation["error"])
    assert agrees(daemon, 1)


def test_a_vm_without_room_says_so(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Where the unit names no `max-vcpus` there are as many as it was started with."""
    start_rom(daemon, emulator, rom_guest, cpu="")
    operation = vcpus(daemon, 2)
    assert operation["error"]["code"] == ChangeError.code
    assert operation["error"]["detail"].endswith("it was started for at most 1 vCPUs, not 2")


def test_what_others_plug_is_shown(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A vCPU that came by a raw command counts."""
    start_rom(daemon, emulator, rom_guest)
    (free, *_) = [each for each in qmp(daemon, "web", "query-hotpluggable-cpus") if "qom-path" not in each]
    qmp(daemon, "web", "device_add", driver=free["type"], id="mine", **free["props"])
    assert came_true(lambda: agrees(daemon, 2), seconds=5)
    assert vcpus(daemon, 2)["state"] == "succeeded"
    assert agrees(daemon, 2)
