"""What may be promised of a host that is made small by configuration: who gets in, who is refused, and for how long."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, linux_unit, rom_unit, signal_process
from tests.real.growing import ask
from tests.real.hotplug import finished
from tests.waiting import came_true

pytestmark = [pytest.mark.real]

MIB = 1 << 20
#: What a VM of the ROM guest is promised by TCG: 16 MiB for its guest, and 129 for QEMU.
ROM = 145
MODULES = 'max = "1G"\nslots = 2\nresize = "dimm"'


def bound(daemon: Daemon, text: str) -> None:
    """Have the next daemon, which replaces this one at once, promise no more than that."""
    (daemon.root / "qsupd.toml").write_text(f"[capacity]\n{text}\n")
    daemon.restart()


def memory(daemon: Daemon, mib: int) -> None:
    """Have it promise so much memory."""
    bound(daemon, f'memory = "{mib}M"\nmemory-overcommit = 1')


def units(daemon: Daemon, emulator: Emulator, rom: Path, *names: str, **sections: str) -> None:
    """VMs of the ROM guest."""
    for name in names:
        daemon.unit(name, rom_unit(emulator, rom, **sections))


def account(daemon: Daemon) -> tuple[int | None, dict[str, int]]:
    """The MiB that are left to promise, and those of each VM's guest."""
    told = daemon.get("/v1/capacity")
    left = told["memory"]["left"]
    vms = {each["name"]: each["memory"] // MIB for each in told["instances"]}
    return None if left is None else left // MIB, vms


def refused(operation: dict[str, Any]) -> str:
    """Why a start or a change is refused."""
    assert (operation["state"], operation["error"]["code"]) == ("failed", "capacity")
    assert "qsupctl start --force" in operation["error"]["hint"]
    return str(operation["error"]["detail"])


def test_a_start_that_does_not_fit(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """It is refused in words before anything is made, and there is room once another VM is down."""
    memory(daemon, ROM + 100)
    units(daemon, emulator, rom_guest, "web", "db")
    daemon.do("web", "start")
    words = (
        "wants 145M of memory (16M for its guest, 129M for QEMU itself), and 100M are left to promise: 45M are missing "
        "([capacity] memory is 245M; 145M are promised: 145M to web)"
    )
    assert refused(daemon.power("db", "start")) == words
    assert (daemon.view("db")["substate"], daemon.view("db")["cause"]["detail"]) == ("start-failed", words)
    assert daemon.remains() == ["web"]
    told = daemon.ctl("start", "db", check=False)
    assert (told.returncode, words in told.stderr) == (1, True)
    shown = daemon.ctl("capacity", "--vms").stdout
    assert [line.split() for line in shown.splitlines() if line.startswith(("memory", "web"))] == [
        *[["memory", "245M", "245M", "145M", "100M", *shown.splitlines()[1].split()[-2:]]],
        *[["web", "16M", "129M", "1", "shared"]],
    ]
    daemon.do("web", "kill")
    assert account(daemon) == (245, {})
    daemon.do("db", "start")
    assert account(daemon) == (100, {"db": 16})


def test_two_that_start_at_once(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """One of them gets the last of it, whichever, and the other is told so."""
    memory(daemon, 2 * ROM - 1)
    units(daemon, emulator, rom_guest, "web", "db")
    for _ in range(3):
        begun = daemon.post("/v1/start", {"names": ["web", "db"]})["operations"]
        lost, won = sorted((finished(daemon, each) for each in begun), key=lambda each: str(each["state"]))
        assert won["state"] == "succeeded"
        assert f"1M are missing ([capacity] memory is 289M; 145M are promised: 145M to {won['target']})" in refused(
            lost
        )
        daemon.do(won["target"], "kill")


def test_a_start_by_force(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """An administrator starts one too many; who did is told, nobody else gets in, and it is so until it is down."""
    memory(daemon, ROM)
    units(daemon, emulator, rom_guest, "web", "db", "mail")
    daemon.do("web", "start")
    with daemon.events() as events:
        assert daemon.ctl("start", "--force", "db").returncode == 0
        told = events.next("start-forced")
    assert (told["instance"], told["data"]["uid"]) == ("db", os.geteuid())
    assert "145M are missing" in told["data"]["detail"]
    assert daemon.get(f"/v1/operations/{told['data']['operation']}")["target"] == "db"
    assert "started by force" in daemon.log()
    assert account(daemon) == (-ROM, {"db": 16, "web": 16})
    assert "0B are left to promise: 145M are missing" in refused(daemon.power("mail", "start"))
    daemon.do("db", "restart")
    daemon.do("db", "kill")
    refused(daemon.power("db", "start"))


def test_a_later_daemon_keeps_promises(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """VMs have what they had, however little may be promised now, over a restart, too."""
    memory(daemon, 2 * ROM)
    units(daemon, emulator, rom_guest, "web", "db", service='restart = "always"\nrestart-delay = "100ms"')
    units(daemon, emulator, rom_guest, "mail")
    for name in ("web", "db"):
        daemon.do(name, "start")
    memory(daemon, ROM)
    for name in ("web", "db"):
        daemon.wait(name, "running")
    assert account(daemon) == (-ROM, {"db": 16, "web": 16})
    refused(daemon.power("mail", "start"))
    daemon.do("web", "restart")
    before = daemon.view("db")["pid"]
    signal_process(before, signal.SIGKILL)
    assert came_true(lambda: daemon.view("db")["pid"] not in (None, before), seconds=10)
    daemon.wait("db", "running")
    assert account(daemon) == (-ROM, {"db": 16, "web": 16})


def test_who_is_to_come_back_keeps_its_place(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A VM that waits for its restart is promised what it had, by the next daemon, too; once that is given up another
    one gets it.
    """
    memory(daemon, ROM)
    units(
        daemon, emulator, rom_guest, "web", service='restart = "always"\nrestart-delay = "1h"\nrestart-max-delay = "1h"'
    )
    units(daemon, emulator, rom_guest, "db")
    signal_process(daemon.do("web", "start")["pid"], signal.SIGKILL)
    daemon.wait("web", "auto-restart")
    assert "145M to web" in refused(daemon.power("db", "start"))
    daemon.restart()
    assert "145M to web" in refused(daemon.power("db", "start"))
    daemon.do("web", "stop")
    daemon.do("db", "start")


def test_who_is_to_come_back_keeps_its_cpus(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Nobody else gets those of a VM that waits for its restart, nor by the next daemon; once that is given up another
    one does.
    """
    patience = 'restart = "always"\nrestart-delay = "1h"\nrestart-max-delay = "1h"'
    units(daemon, emulator, rom_guest, "web", cpu='pin = "auto"\nexclusive = true', service=patience)
    (thread,) = daemon.do("web", "start")["cpus"]["threads"]
    (alone,) = os.sched_getaffinity(thread)
    units(daemon, emulator, rom_guest, "db", cpu=f'pin = ["{alone}"]')
    signal_process(daemon.view("web")["pid"], signal.SIGKILL)
    daemon.wait("web", "auto-restart")
    assert f"CPU {alone} is exclusively web's" in daemon.power("db", "start")["error"]["detail"]
    daemon.restart()
    assert f"CPU {alone} is exclusively web's" in daemon.power("db", "start")["error"]["detail"]
    daemon.do("web", "stop")
    daemon.do("db", "start")


@pytest.mark.parametrize(("section", "text"), [("cpu", 'pin = ["4000"]'), ("memory", 'nodes = "200"')])
def test_a_restart_to_what_there_is_not_stops_nothing(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, section: str, text: str
) -> None:
    """It is refused while the VM runs on."""
    units(daemon, emulator, rom_guest, "web")
    before = daemon.do("web", "start")["pid"]
    units(daemon, emulator, rom_guest, "web", **{section: text})
    assert daemon.power("web", "restart")["error"]["code"] == "placement"
    assert (daemon.view("web")["pid"], daemon.view("web")["substate"]) == (before, "running")


def test_a_restart_that_does_not_fit_stops_nothing(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The VM runs on as it did; with a unit that fits it is restarted."""
    memory(daemon, ROM + 16)
    units(daemon, emulator, rom_guest, "web")
    before = daemon.do("web", "start")["pid"]
    daemon.unit("web", rom_unit(emulator, rom_guest).replace('"16M"', '"64M"'))
    assert "32M are missing" in refused(daemon.power("web", "restart"))
    assert (daemon.view("web")["pid"], daemon.view("web")["substate"]) == (before, "running")
    daemon.unit("web", rom_unit(emulator, rom_guest).replace('"16M"', '"32M"'))
    assert daemon.do("web", "restart")["pid"] != before
    assert account(daemon) == (0, {"web": 32})


def test_restarts_at_once_that_do_not_all_fit(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """One of two VMs that are to come back larger does, and the other one runs on as it did."""
    memory(daemon, 2 * ROM + 16)
    units(daemon, emulator, rom_guest, "web", "db")
    before = {name: daemon.do(name, "start")["pid"] for name in ("web", "db")}
    for name in before:
        daemon.unit(name, rom_unit(emulator, rom_guest).replace('"16M"', '"32M"'))
    begun = daemon.post("/v1/restart", {"names": ["web", "db"]})["operations"]
    lost, won = sorted((finished(daemon, each) for each in begun), key=lambda each: str(each["state"]))
    assert "16M are missing" in refused(lost)
    assert (won["state"], daemon.view(lost["target"])["pid"]) == ("succeeded", before[lost["target"]])
    assert account(daemon) == (0, {lost["target"]: 16, won["target"]: 32})


def test_restarts_at_once_that_want_one_cpu(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """One of two VMs has it then, and the other one runs on as it did."""
    units(daemon, emulator, rom_guest, "web", "db")
    before = {name: daemon.do(name, "start")["pid"] for name in ("web", "db")}
    units(daemon, emulator, rom_guest, "web", "db", cpu='pin = ["0"]\nexclusive = true')
    begun = daemon.post("/v1/restart", {"names": ["web", "db"]})["operations"]
    lost, won = sorted((finished(daemon, each) for each in begun), key=lambda each: str(each["state"]))
    assert f"CPU 0 is exclusively {won['target']}'s" in lost["error"]["detail"]
    assert (won["state"], daemon.view(lost["target"])["pid"]) == ("succeeded", before[lost["target"]])


def test_starts_that_nobody_asked_for_are_asked_the_same(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Those with the host, of which one gets in, and those that another VM needs."""
    memory(daemon, ROM)
    units(daemon, emulator, rom_guest, "web", "db", install="autostart = true")
    units(daemon, emulator, rom_guest, "app", unit='requires = ["mail"]\nafter = ["mail"]')
    units(daemon, emulator, rom_guest, "mail")
    daemon.forget_autostart()
    daemon.restart()

    def substates() -> list[str]:
        return sorted(daemon.view(name)["substate"] for name in ("web", "db"))

    assert came_true(lambda: substates() == ["running", "start-failed"], seconds=10)
    (why,) = (view["cause"]["detail"] for view in map(daemon.view, ("web", "db")) if view["cause"])
    assert "145M are missing" in why
    operation = daemon.power("app", "start", force=True)
    assert operation["state"] == "failed"
    assert "mail" in operation["error"]["detail"]
    assert daemon.view("mail")["substate"] == "start-failed"


def test_memory_modules_are_promised(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """One that would be too much does not come, and the VM has what it had; one that fits is known to later daemons."""
    memory(daemon, ROM + 128)
    units(daemon, emulator, rom_guest, "web", memory=MODULES)
    daemon.do("web", "start")
    words = refused(ask(daemon, {"memory": {"size": "272M"}}))
    assert "wants 401M of memory (272M for its guest, 129M for QEMU itself), and 273M are left to promise" in words
    assert (account(daemon), daemon.view("web")["memory"]["size"]) == ((128, {"web": 16}), 16 * MIB)
    assert ask(daemon, {"memory": {"size": "144M"}})["state"] == "succeeded"
    assert account(daemon) == (0, {"web": 144})
    daemon.restart()
    daemon.wait("web", "running")
    assert account(daemon) == (0, {"web": 144})


def test_vcpus_are_promised(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """As many as there are CPUs, times so many: at a start, and of a VM that runs."""
    usable = len(os.sched_getaffinity(0))
    bound(daemon, "cpu-overcommit = 1")
    units(daemon, emulator, rom_guest, "web", cpu=f"vcpus = {usable}\nmax-vcpus = {usable + 1}")
    units(daemon, emulator, rom_guest, "db")
    daemon.do("web", "start")
    assert "wants 1 vCPU, and 0 are left to promise: 1 are missing" in refused(daemon.power("db", "start"))
    words = refused(ask(daemon, {"cpu": {"vcpus": usable + 1}}))
    assert f"wants {usable + 1} vCPUs, and {usable} are left to promise: 1 are missing" in words
    assert daemon.view("web")["cpus"]["vcpus"] == usable
    cpus = daemon.get("/v1/capacity")["cpus"]
    assert (cpus["limit"], cpus["promised"], cpus["left"]) == (usable, usable, 0)


@pytest.mark.slow
def test_what_a_guest_has_yet_to_give_back_is_promised(
    daemon: Daemon, emulator: Emulator, linux_guest: LinuxGuest
) -> None:
    """Until it has, under the next daemon, too."""
    text = linux_unit(emulator, linux_guest, memory='balloon = false\nmax = "1G"')
    daemon.unit("web", text.replace('size = "128M"', 'size = "256M"'))
    daemon.do("web", "start")
    assert ask(daemon, {"memory": {"size": "512M"}})["state"] == "succeeded"
    assert account(daemon)[1] == {"web": 512}
    daemon.do("web", "pause")
    operation = ask(daemon, {"memory": {"size": "256M"}}, wait=0.5)
    assert (operation["state"], account(daemon)[1]) == ("running", {"web": 512})
    daemon.restart()
    daemon.wait("web", "paused")
    assert came_true(lambda: account(daemon)[1] == {"web": 512}, seconds=10)
    daemon.do("web", "resume")
    assert finished(daemon, operation, seconds=30)["state"] == "succeeded"
    assert account(daemon)[1] == {"web": 256}
