"""VMs that come back by their policy while the daemon goes: an upgrade at the wrong moment costs none of them.

Decides: that what a VM was when its daemon ended, however that ended, it is to the next one.
Must not: hope for a moment; an emulator that waits for a file makes it.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, kill_process, rom_unit
from tests.real.injected import injected
from tests.real.together import AT_A_WORD, changes, ended
from tests.waiting import poll_until

pytestmark = pytest.mark.real

SOON = 'restart-delay = "20ms"'


@attrs.frozen
class Held:
    """An emulator that does not begin for as long as a file is there."""

    emulator: Emulator
    gate: Path

    def close(self) -> None:
        """From now on it waits."""
        self.gate.touch()

    def open(self) -> None:
        """It goes on."""
        self.gate.unlink()


@pytest.fixture
def held(root_dir: Path, emulator: Emulator) -> Held:
    """It begins at once until told otherwise."""
    gate, script = root_dir / "gate", root_dir / "qemu-system-x86_64"
    script.write_text(f'#!/bin/sh\nwhile [ -e {gate} ]; do sleep 0.02; done\nexec {emulator.path} "$@"\n')
    script.chmod(0o755)
    return Held(attrs.evolve(emulator, path=script), gate)


def restarted(daemon: Daemon, name: str) -> None:
    """Wait until a VM runs again that its policy has started anew."""
    poll_until(lambda: daemon.view(name)["substate"] == "running", f"{name} is back", seconds=DEADLINE)
    assert daemon.view(name)["restarts"] >= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_automatic_restart_that_the_daemons_end_cuts_short_is_made_again(
    daemon: Daemon, held: Held, rom_guest: Path, number: int
) -> None:
    """An upgrade while QEMU is being started by the policy: the next daemon starts it."""
    daemon.unit("web", rom_unit(held.emulator, rom_guest, service=f'restart = "always"\n{SOON}'))
    pid = daemon.do("web", "start")["pid"]
    held.close()
    kill_process(pid)
    daemon.wait("web", "spawning")
    daemon.signal(number)
    held.open()
    daemon.start()
    restarted(daemon, "web")


COMING = 'restart = "on-failure"\nrestart-delay = "1s"'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_instance_of_a_template_that_is_down_is_not_forgotten(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, number: int
) -> None:
    """No file is named after it: it is known by its end, comes back by its policy, or stays failed with its cause."""
    daemon.unit("again@", rom_unit(emulator, rom_guest, service=COMING))
    daemon.unit("once@", rom_unit(emulator, rom_guest))
    daemon.unit("web", rom_unit(emulator, rom_guest, unit='requires = ["again@1"]\nafter = ["again@1"]'))
    pids = {name: daemon.do(name, "start")["pid"] for name in ("web", "again@1", "once@1", "once@2")}
    daemon.do("once@2", "kill")
    for name, substate in (("once@1", "crashed"), ("again@1", "auto-restart")):
        kill_process(pids[name])
        daemon.wait(name, substate)
    daemon.restart(number)
    assert daemon.view("once@1")["cause"]["text"] == "signal KILL"
    assert daemon.view("once@2")["substate"] == "dead"
    restarted(daemon, "again@1")
    assert daemon.view("web")["pid"] == pids["web"]
    assert daemon.ctl("status", "once@1", check=False).returncode == 3


def test_a_vm_whose_unit_is_broken_comes_back_as_it_ran(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The daemon that starts then has never seen the unit whole; what is down for good is still shown, and why."""
    texts = {
        name: rom_unit(emulator, rom_guest, service=service, unit='description = "as it ran"')
        for name, service in {"back": COMING, "down": "", "stopped": ""}.items()
    }
    for name, text in texts.items():
        daemon.unit(name, text)
        pid = daemon.do(name, "start")["pid"]
        if name == "stopped":
            daemon.do(name, "kill")
        else:
            kill_process(pid)
    daemon.wait("down", "crashed")
    daemon.wait("back", "auto-restart")
    for name in texts:
        (daemon.units / f"{name}.toml").write_text("[service]\nrestrat = 1\n")
    daemon.restart()
    restarted(daemon, "back")
    assert daemon.view("back")["unit"]["description"] == "as it ran"
    assert daemon.view("down")["cause"]["text"] == "signal KILL"
    assert daemon.view("stopped")["cause"]["kind"] == "operator"
    daemon.unit("down", texts["down"])
    daemon.do("down", "start")


@pytest.mark.parametrize("told", [True, False], ids=["reloaded", "not reloaded"])
@pytest.mark.parametrize("later", [True, False], ids=["by the next daemon", "by the same"])
def test_a_vm_whose_unit_is_gone_comes_back_as_it_was_started(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, told: bool, later: bool
) -> None:
    """And not with what its files said before they went; once it is down for good it is no VM any more."""
    text = rom_unit(emulator, rom_guest, service=COMING, unit='description = "as it was started"')
    daemon.unit("web", text)
    pid = daemon.do("web", "start")["pid"]
    daemon.unit("web", text.replace("as it was started", "never started"))
    (daemon.units / "web.toml").unlink()
    if told:
        daemon.post("/v1/reload")
    kill_process(pid)
    daemon.wait("web", "auto-restart")
    if later:
        daemon.restart()
    restarted(daemon, "web")
    assert daemon.view("web")["unit"]["description"] == "as it was started"
    assert daemon.view("web")["unit"]["files"] == []
    daemon.do("web", "kill")
    daemon.restart()
    assert daemon.get("/v1/instances")["instances"] == []


def test_automatic_restarts_keep_the_order(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A VM that is `after` another one which crashed with it waits until that is back and ready."""
    daemon.unit("db", rom_unit(emulator, rom_guest, service='restart = "always"\nrestart-delay = "1s"'))
    after = 'requires = ["db"]\nafter = ["db"]'
    daemon.unit("web", rom_unit(emulator, rom_guest, unit=after, service=f'restart = "always"\n{SOON}'))
    daemon.do("web", "start")
    with daemon.events() as events:
        for name in ("db", "web"):
            kill_process(daemon.view(name)["pid"])
            daemon.wait(name, "auto-restart" if name == "db" else "waiting-deps")
        seen = changes(events, ("web", "running"))
    assert seen.index(("db", "running")) < seen.index(("web", "spawning"))
    assert daemon.view("web")["restarts"] == 1


def test_an_automatic_restart_fails_with_what_it_requires(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """That stays down by its own policy: the cause says so, and it is not tried again and again."""
    daemon.unit("db", rom_unit(emulator, rom_guest))
    after = 'requires = ["db"]\nafter = ["db"]'
    daemon.unit("web", rom_unit(emulator, rom_guest, unit=after, service=f'restart = "always"\n{SOON}'))
    pid = daemon.do("web", "start")["pid"]
    kill_process(daemon.view("db")["pid"])
    daemon.wait("db", "crashed")
    kill_process(pid)
    cause = daemon.wait("web", "start-failed")["cause"]
    assert (cause["kind"], "it requires db, which is failed (crashed)" in cause["detail"]) == ("dependency", True)
    daemon.do("web", "start")
    assert daemon.view("db")["substate"] == "running"


def test_a_start_joins_the_one_that_the_policy_has_begun(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """It succeeds when the VM is ready, and not before; or fails with that attempt, or is overtaken by a stop."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service=f'restart = "on-failure"\n{SOON}\n{AT_A_WORD}'))
    daemon.post("/v1/instances/web/start")
    kill_process(daemon.wait("web", "waiting-ready")["pid"])

    def join() -> dict[str, Any]:
        poll_until(lambda: not daemon.view("web")["operation"], "no operation holds it", seconds=DEADLINE)
        daemon.wait("web", "waiting-ready")
        operation: dict[str, Any] = daemon.post("/v1/instances/web/start?wait=0.2")
        assert operation["state"] == "running", operation
        assert daemon.view("web")["operation"] == operation["id"]
        return operation

    first = join()
    kill_process(daemon.view("web")["pid"])
    assert "signal KILL" in ended(daemon, first)["error"]["detail"]
    second = join()
    daemon.type("web", "go")
    assert ended(daemon, second)["result"] == {"changed": True}
    kill_process(daemon.wait("web", "running")["pid"])
    third = join()
    daemon.do("web", "kill")
    assert "overtaken by kill" in ended(daemon, third)["error"]["detail"]


def test_a_start_that_an_automatic_restart_overtakes_waits_for_it(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """While it is written ahead, on a slow disk, the restart comes due: it is that start which it waits for."""
    policy = f'restart = "on-failure"\nrestart-delay = "1s"\n{AT_A_WORD}'
    daemon.unit("web", rom_unit(emulator, rom_guest, service=policy))
    daemon.post("/v1/instances/web/start")
    kill_process(daemon.wait("web", "waiting-ready")["pid"])
    daemon.wait("web", "auto-restart")
    with injected(daemon, "fdatasync", "delay_enter=2s"):
        operation = daemon.post("/v1/instances/web/start")
        assert daemon.wait("web", "waiting-ready")["restarts"] == 1
        operation = daemon.get(f"/v1/operations/{operation['id']}/wait?timeout=0.2")
    assert operation["state"] == "running"
    daemon.type("web", "go")
    assert ended(daemon, operation)["result"] == {"changed": True}
