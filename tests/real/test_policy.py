"""The restart policy under a real daemon: what each cause leads to, how it is told, and how a failure is forgotten.

Decides: that each cause is recognised on a real QEMU, also of an adopted VM.
Must not: repeat the arithmetic and the table of policy by cause (`tests.instance.test_restart`).
"""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from qsup.errors import DeniedError, QsupError
from qsup.host import hierarchies
from tests.bare import BareConnection
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, kill_process, rom_unit, signal_process
from tests.waiting import poll_until

pytestmark = pytest.mark.real

SOON = 'restart-delay = "20ms"'


def restarted(daemon: Daemon, name: str, times: int = 1) -> dict[str, object]:
    """The VM once its policy has started it again."""
    poll_until(lambda: daemon.view(name)["restarts"] == times, f"{name} is restarted", seconds=DEADLINE)
    return daemon.wait(name, "running")


def test_on_panic_follows_a_panic_and_nothing_else(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A guest that reports a panic through pvpanic is started anew; one whose QEMU is killed has failed."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service=f'restart = "on-panic"\n{SOON}'))
    first = daemon.do("web", "start")["pid"]
    with daemon.events() as events:
        daemon.type("web", "P")
        told = events.next("instance-state", substate="guest-panicked")["data"]["cause"]
        events.next("instance-state", substate="auto-restart")
    assert told["kind"] == "guest-panic"
    second = restarted(daemon, "web")["pid"]
    assert second != first
    kill_process(int(str(second)))
    assert daemon.wait("web", "crashed")["cause"]["text"] == "signal KILL"


def test_a_guest_that_resets_itself_goes_on(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Whatever the policy, the process is the same; the reset is counted and told, and so is an operator's."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service=f'restart = "always"\n{SOON}'))
    first = daemon.do("web", "start")
    with daemon.events() as events:
        daemon.type("web", "R")
        told = events.next("guest-reset")["data"]
    assert told == {"guest": True, "reason": "guest-reset", "resets": 1}
    view = daemon.view("web")
    assert (view["pid"], view["substate"], view["restarts"], view["resets"]) == (first["pid"], "running", 0, 1)
    assert "Resets: 1, by the guest itself" in daemon.ctl("status", "web").stdout
    assert daemon.do("web", "reset")["resets"] == 1


def watchdog(action: str) -> str:
    """The guest's ISA watchdog, and what QEMU does when it expires."""
    return f'extra-args = ["-device", "ib700", "-action", "watchdog={action}"]'


@pytest.mark.parametrize("action", ["pause", "poweroff", "shutdown", "reset"])
def test_a_watchdog_is_understood_by_its_action(daemon: Daemon, qemu: Emulator, rom_guest: Path, action: str) -> None:
    """The guest stands still, or QEMU ends, or the guest obeys its power button: failures all; or it begins anew."""
    daemon.unit("web", rom_unit(qemu, rom_guest, qemu=watchdog(action)))
    pid = daemon.do("web", "start")["pid"]
    with daemon.events() as events:
        daemon.type("web", "B")
        assert events.next("watchdog")["data"] == {"action": action}
        if action == "reset":
            assert events.next("guest-reset")["data"]["resets"] == 1
            assert (daemon.view("web")["pid"], daemon.view("web")["substate"]) == (pid, "running")
            return
    view = daemon.wait("web", "guest-panicked" if action == "pause" else "crashed")
    assert view["cause"]["kind"] == "watchdog"


NO_REBOOT = 'extra-args = ["-no-reboot"]'


@pytest.mark.parametrize("policy", ["no", "on-failure", "always"])
def test_a_reset_that_ends_qemu_is_no_power_off(daemon: Daemon, qemu: Emulator, rom_guest: Path, policy: str) -> None:
    """Under `-no-reboot` QEMU says so; whoever sets that wants the end, so only `always` starts the VM again."""
    daemon.unit("web", rom_unit(qemu, rom_guest, qemu=NO_REBOOT, service=f'restart = "{policy}"\n{SOON}'))
    pid = daemon.do("web", "start")["pid"]
    with daemon.events() as events:
        daemon.type("web", "R")
        wanted = "auto-restart" if policy == "always" else "dead"
        assert events.next("instance-state", substate=wanted)["data"]["cause"]["kind"] == "guest-reset"
    if policy == "always":
        assert restarted(daemon, "web")["pid"] != pid


def test_a_watchdog_whose_reset_ends_qemu_is_a_failure(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """The guest had hung, and did not reset itself."""
    extra = watchdog("reset").replace('"-action"', '"-no-reboot", "-action"')
    daemon.unit("web", rom_unit(qemu, rom_guest, qemu=extra))
    daemon.do("web", "start")
    daemon.type("web", "B")
    assert daemon.wait("web", "crashed")["cause"]["kind"] == "watchdog"


def test_a_guest_whose_watchdog_paused_it_is_found_so(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """By a daemon that comes later, too; an operator's reset lets it begin anew."""
    daemon.unit("web", rom_unit(qemu, rom_guest, qemu=watchdog("pause")))
    pid = daemon.do("web", "start")["pid"]
    daemon.type("web", "B")
    daemon.wait("web", "guest-panicked")
    daemon.restart()
    view = daemon.wait("web", "guest-panicked")
    assert (view["cause"]["kind"], view["pid"]) == ("watchdog", pid)
    assert daemon.do("web", "reset")["substate"] == "running"


def test_a_watchdog_brings_a_guest_back_by_policy(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """`on-panic` counts it as a panic."""
    service = f'restart = "on-panic"\n{SOON}'
    daemon.unit("web", rom_unit(qemu, rom_guest, qemu=watchdog("pause"), service=service))
    pid = daemon.do("web", "start")["pid"]
    daemon.type("web", "B")
    assert restarted(daemon, "web")["pid"] != pid


#: An object that has QEMU take more memory than its cgroup may have.
EATER: dict[str, object] = {"qom-type": "memory-backend-ram", "id": "eater", "size": 64 << 20, "prealloc": True}


def limit_memory(daemon: Daemon, name: str) -> None:
    """Let a VM's cgroup have little more memory than it has."""
    record = json.loads((daemon.run / "instances" / name / "record.json").read_text())
    (memory,) = [path for path in map(Path, record["cgroups"]) if (path / "memory.limit_in_bytes").exists()]
    used = int((memory / "memory.usage_in_bytes").read_text())
    (memory / "memory.limit_in_bytes").write_text(str(used + (4 << 20)))


def exhaust(daemon: Daemon, name: str) -> None:
    """Have a VM's QEMU killed by the kernel for want of memory."""
    limit_memory(daemon, name)
    with suppress(QsupError):  # QEMU does not come to answer
        daemon.post(f"/v1/instances/{name}/qmp", {"execute": "object-add", "arguments": EATER})


@pytest.mark.root
@pytest.mark.skipif("memory" not in hierarchies.detect().v1, reason="a limit is written in version 1's words")
@pytest.mark.parametrize("adopted", [False, True], ids=["own", "adopted"])
def test_a_real_oom_kill_is_named(daemon: Daemon, qemu: Emulator, rom_guest: Path, adopted: bool) -> None:
    """The kernel's OOM killer, by a real limit of the VM's cgroup: `oom`, and the policy is obeyed."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.do("web", "start")
    if adopted:
        daemon.restart()
        daemon.wait("web", "running")
    exhaust(daemon, "web")
    cause = daemon.wait("web", "crashed")["cause"]
    assert (cause["kind"], cause["text"]) == ("oom", "oom")
    daemon.unit("web", rom_unit(qemu, rom_guest, service=f'restart = "on-failure"\n{SOON}'))
    daemon.do("web", "start")
    exhaust(daemon, "web")
    assert restarted(daemon, "web")["cause"] is None


@pytest.mark.root
@pytest.mark.skipif("memory" not in hierarchies.detect().v1, reason="a limit is written in version 1's words")
def test_a_real_oom_kill_while_no_daemon_runs_is_found_out(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The cgroup has counted it, whether or not the kernel still knows how the process ended."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    limit_memory(daemon, "web")
    daemon.signal(signal.SIGKILL)
    with BareConnection(daemon.run / "instances" / "web" / "qmp") as monitor, suppress(OSError, AssertionError):
        monitor.negotiate()
        monitor.ask("object-add", EATER)
    poll_until(lambda: not Path(f"/proc/{pid}").exists(), "QEMU is gone", seconds=DEADLINE)
    daemon.start()
    cause = daemon.wait("web", "crashed")["cause"]
    words = "the kernel killed it because memory ran out, while no daemon was running"
    assert (cause["kind"], cause["detail"]) == ("oom", words)


def test_the_last_words_stand_by_the_cause(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Of QEMU and of the guest: in the status, in the event, in the log, and kept for the next daemon."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.type("web", "P")
    panic = daemon.wait("web", "guest-panicked")["cause"]
    assert panic["console"] == ["qsup rom guest, boot 1", "ready", "P"]
    assert "Last lines of the console:\nqsup rom guest, boot 1\nready\nP\n" in daemon.ctl("status", "web").stdout
    signal_process(pid, signal.SIGTERM)  # QEMU says by whom
    cause = daemon.wait("web", "crashed")["cause"]
    assert cause["console"] == panic["console"]
    assert "terminating on signal 15" in cause["output"][-1]
    (logged,) = [line for line in map(json.loads, daemon.log().splitlines()) if line.get("state") == "crashed"]
    assert (logged["console"].splitlines(), logged["output"].splitlines()) == (cause["console"], cause["output"])
    daemon.restart()
    assert daemon.view("web")["cause"] == cause
    shown = daemon.ctl("status", "web", check=False).stdout
    assert "Last lines of the console:" in shown
    daemon.ctl("reset-failed", "web")
    assert daemon.view("web")["cause"]["console"] == []


def test_the_last_words_of_a_failed_start(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """QEMU's own, of this start alone, in the event as in the status."""
    daemon.unit("web", rom_unit(emulator, rom_guest, qemu='extra-args = ["-device", "no-such-device"]'))
    for _ in range(2):
        with daemon.events() as events:
            daemon.power("web", "start")
            told = events.next("instance-state", substate="start-failed")["data"]["cause"]
        assert told == daemon.view("web")["cause"]
        (line,) = told["output"]
        assert "'no-such-device' is not a valid device model name" in line


def test_an_adopted_vm_has_what_there_is(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The console's history was the dead daemon's: what was written since is there, and what QEMU printed."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.type("web", "x")
    daemon.restart()
    daemon.type("web", "yz", after="")
    kill_process(pid)
    cause = daemon.wait("web", "crashed")["cause"]
    assert (cause["console"], cause["output"]) == (["yz"], [])


def test_a_hostile_guests_last_words_are_harmless(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A guest that floods its console is bounded, and what it writes steers no terminal."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.type("web", "\x1b[31m\x1b]0;title\x07\x9b31mred\u202e")
    daemon.type("web", "F", after="")
    kill_process(pid)
    cause = daemon.wait("web", "crashed")["cause"]
    assert 0 < len(cause["console"]) <= 10
    assert all(len(line) <= 200 and line.isprintable() for line in cause["console"])


def test_reset_failed_forgets_a_failure_for_good(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """`start-limit-hit` -> `inactive`, no restarts, no history, and that is still so after the daemon's."""
    policy = f'restart = "on-failure"\n{SOON}\nstart-limit-burst = 1'
    install = "autostart = true"
    daemon.unit("web", rom_unit(qemu, rom_guest, service=policy, install=install))
    kill_process(daemon.do("web", "start")["pid"])
    kill_process(int(str(restarted(daemon, "web")["pid"])))
    view = daemon.wait("web", "start-limit-hit")
    assert (view["restarts"], view["state"]) == (1, "failed")
    operation = daemon.power("web", "reset-failed")
    assert (operation["state"], operation["result"]) == ("succeeded", {"changed": True})
    for _ in range(2):
        view = daemon.view("web")
        assert (view["state"], view["substate"], view["restarts"]) == ("inactive", "dead", 0)
        assert view["cause"]["kind"] == "operator"
        daemon.restart()  # and it is not started by that, although the host starts it
    assert daemon.power("web", "reset-failed")["result"] == {"changed": False}
    # the burst begins anew
    kill_process(daemon.do("web", "start")["pid"])
    restarted(daemon, "web")
    assert daemon.power("web", "reset-failed")["result"] == {"changed": False}


def test_a_failed_start_is_forgotten_by_the_command(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """`qsupctl reset-failed` without a name is about all that have failed, and about nothing else."""
    daemon.unit("good", rom_unit(emulator, rom_guest))
    daemon.unit("bad", rom_unit(emulator, rom_guest, qemu='extra-args = ["-device", "no-such-device"]'))
    daemon.do("good", "start")
    assert daemon.power("bad", "start")["state"] == "failed"
    daemon.ctl("reset-failed")
    assert daemon.view("bad")["substate"] == "dead"
    assert daemon.view("good")["substate"] == "running"
    kinds = [operation["kind"] for operation in daemon.get("/v1/operations")["operations"]]
    assert kinds.count("reset-failed") == 1


def test_what_is_quarantined_is_not_forgotten(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Its process may well run."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    daemon.signal(signal.SIGKILL)
    record = daemon.run / "instances" / "web" / "record.json"
    good = record.read_bytes()
    record.write_bytes(b"{")
    daemon.start()
    with pytest.raises(DeniedError, match="a record of it cannot be read"):
        daemon.power("web", "reset-failed")
    record.write_bytes(good)
    daemon.post("/v1/reload")
    daemon.wait("web", "running")
