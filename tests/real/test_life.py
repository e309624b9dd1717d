"""The life of a VM under a real daemon: every power verb, every kind of end, and what is left afterwards: nothing."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path

import pytest

from qsup.errors import QsupError
from tests.bare import accelerator
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, free_port, kill_process, linux_unit, rom_unit

pytestmark = pytest.mark.real


def test_a_vm_goes_through_every_power_verb(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """start, pause, resume, reset, restart, kill: each ends when it is so, and the same request again is needless."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    first = daemon.do("web", "start")
    assert (first["state"], first["substate"], first["cause"]) == ("active", "running", None)
    assert daemon.power("web", "start")["result"] == {"changed": False}
    assert daemon.do("web", "pause")["substate"] == "paused"
    assert daemon.do("web", "resume")["substate"] == "running"
    assert daemon.do("web", "reset")["pid"] == first["pid"]
    second = daemon.do("web", "restart")
    assert second["pid"] != first["pid"]
    assert second["uuid"] == first["uuid"]
    ended = daemon.do("web", "kill")
    assert (ended["state"], ended["pid"], ended["cause"]["kind"]) == ("inactive", None, "operator")
    assert not os.path.exists(f"/proc/{second['pid']}")
    assert not list((daemon.root / "run" / "instances").iterdir())


def test_a_guest_that_powers_itself_off_ends_inactive(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """`inactive (guest-shutdown)`, and QEMU is gone although it was started with -no-shutdown."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.do("web", "start")
    daemon.type("web", "O")
    view = daemon.wait("web", "dead")
    assert view["cause"]["text"] == "guest-shutdown"


def test_a_nic_keeps_its_address_and_shows_it_while_its_vm_is_down(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """Derived from the stored UUID: not known before the first start, then the same for good."""
    daemon.unit("web", rom_unit(emulator, rom_guest, tables='[[nic]]\nid = "lan"\n'))
    assert daemon.view("web")["nics"][0]["mac"] == ""
    address = daemon.do("web", "start")["nics"][0]["mac"]
    assert address.startswith("52:")
    assert daemon.do("web", "kill")["nics"][0]["mac"] == address
    assert f"virtio, {address}" in daemon.ctl("status", "web", check=False).stdout
    daemon.restart()
    assert daemon.view("web")["nics"][0]["mac"] == address


def test_powerdown_is_done_when_the_button_was_pressed(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A guest that obeys at once is no failure, and one that is deaf is none either: the button was pressed."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service='ready = { serial = "ready" }'))
    daemon.do("web", "start")
    assert daemon.power("web", "powerdown")["state"] == "succeeded"
    assert daemon.wait("web", "dead")["cause"]["text"] == "guest-shutdown"
    daemon.do("web", "start")
    daemon.type("web", "D")
    assert daemon.do("web", "powerdown")["substate"] == "running"


def test_a_killed_qemu_ends_failed_with_its_signal(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """`failed (signal KILL)`, told to whoever listens."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    with daemon.events() as events:
        kill_process(pid)
        event = events.next("instance-state", state="failed")
    assert event["data"]["cause"]["text"] == "signal KILL"
    assert daemon.view("web")["substate"] == "crashed"


@pytest.mark.skipif(accelerator() != "kvm", reason="without /dev/kvm a process is gone as soon as its monitor is")
def test_a_killed_qemu_is_told_before_the_kernel_has_taken_it_down(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """With KVM a killed process stays a while: `exiting` names the cause at once, `failed` comes when it is gone."""
    daemon.unit("web", rom_unit(emulator, rom_guest, accel="kvm"))
    pid = daemon.do("web", "start")["pid"]
    with daemon.events() as events:
        kill_process(pid)
        told = events.next("instance-state", substate="exiting")
        ended = events.next("instance-state", substate="crashed")
    assert [event["data"]["cause"]["text"] for event in (told, ended)] == ["signal KILL"] * 2
    assert (told["data"]["state"], told["data"]["pid"]) == ("deactivating", pid)


def test_a_crash_is_followed_by_a_restart_until_the_limit(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """`restart = "on-failure"`: a new QEMU after the delay, counted, and no more after the burst."""
    policy = 'restart = "on-failure"\nrestart-delay = "20ms"\nstart-limit-burst = 2'
    daemon.unit("web", rom_unit(qemu, rom_guest, service=policy))
    pids = [daemon.do("web", "start")["pid"]]
    for count in (1, 2):
        with daemon.events() as events:
            kill_process(pids[-1])
            events.next("instance-state", substate="auto-restart")
            events.next("instance-state", substate="running")
        view = daemon.view("web")
        assert view["restarts"] == count
        pids.append(view["pid"])
    kill_process(pids[-1])
    view = daemon.wait("web", "start-limit-hit")
    assert "restarted 2 times" in view["cause"]["detail"]
    assert len(set(pids)) == 3
    assert daemon.do("web", "start")["restarts"] == 0


def test_restart_always_follows_a_guests_power_off_but_not_a_stop(
    daemon: Daemon, qemu: Emulator, rom_guest: Path
) -> None:
    """`always` brings back a guest that powered itself off; an operator's stop is never undone."""
    policy = 'restart = "always"\nrestart-delay = "20ms"'
    daemon.unit("web", rom_unit(qemu, rom_guest, service=policy))
    first = daemon.do("web", "start")["pid"]
    with daemon.events() as events:
        daemon.type("web", "O")
        events.next("instance-state", substate="auto-restart")
        events.next("instance-state", substate="running")
    assert daemon.view("web")["pid"] != first
    assert daemon.do("web", "stop")["substate"] == "dead"


def test_a_panicked_guest_stands_still_to_be_looked_at(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """pvpanic: `guest-panicked`, the process lives, and a reset makes it run again."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.type("web", "P")
    view = daemon.wait("web", "guest-panicked")
    assert (view["state"], view["cause"]["kind"], view["pid"]) == ("active", "guest-panic", pid)
    assert daemon.do("web", "reset")["substate"] == "running"


def test_a_panic_is_restarted_by_policy(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """With `restart = "on-failure"` a panic ends this QEMU and starts another."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service='restart = "on-failure"\nrestart-delay = "20ms"'))
    first = daemon.do("web", "start")["pid"]
    with daemon.events() as events:
        daemon.type("web", "P")
        events.next("instance-state", substate="auto-restart")
        events.next("instance-state", substate="running")
    assert daemon.view("web")["pid"] != first


def test_a_failed_start_says_why_in_qemus_words(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """One sentence, the cause in the status, nothing left behind, and other VMs untouched."""
    daemon.unit("other", rom_unit(qemu, rom_guest))
    other = daemon.do("other", "start")["pid"]
    daemon.unit("web", rom_unit(qemu, rom_guest, qemu='extra-args = ["-device", "no-such-device"]'))
    operation = daemon.power("web", "start")
    assert operation["state"] == "failed"
    assert "'no-such-device' is not a valid device model name" in operation["error"]["detail"]
    view = daemon.view("web")
    assert (view["state"], view["substate"]) == ("failed", "start-failed")
    assert daemon.view("other")["pid"] == other
    assert [path.name for path in (daemon.root / "run" / "instances").iterdir()] == ["other"]


def test_a_restarted_daemon_finds_its_vms(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """SIGKILL and SIGTERM alike leave VMs running; the next daemon has the same pids, states and times, and control."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.unit("db", rom_unit(qemu, rom_guest))
    before = {name: daemon.do(name, "start") for name in ("web", "db")}
    before["db"] = daemon.do("db", "pause")
    for number in (signal.SIGKILL, signal.SIGTERM):
        daemon.signal(number)
        daemon.start()
        for name, view in before.items():
            after = daemon.view(name)
            assert {key: after[key] for key in view} == view
    assert daemon.do("db", "resume")["substate"] == "running"
    assert daemon.do("web", "stop")["substate"] == "dead"


def test_an_adopted_vm_is_watched_like_any_other(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A non-child's end is seen, with its signal, and its policy is obeyed."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.signal(signal.SIGKILL)
    daemon.start()
    daemon.wait("web", "running")
    kill_process(pid)
    view = daemon.wait("web", "crashed")
    assert view["cause"]["text"] in ("signal KILL", "exit-unknown")


def test_a_guest_that_ended_while_no_daemon_ran_is_judged_by_its_policy(
    daemon: Daemon, qemu: Emulator, rom_guest: Path
) -> None:
    """A QEMU killed in between has failed: `exit-unknown`, or its signal where the kernel still knows it."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.signal(signal.SIGKILL)
    kill_process(pid)
    daemon.start()
    view = daemon.wait("web", "crashed")
    assert view["cause"]["text"] in ("exit-unknown", "signal KILL")
    assert not list((daemon.root / "run" / "instances").iterdir())


def test_a_linux_guest_is_ready_when_its_agent_answers_and_shuts_down_by_it(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest
) -> None:
    """Start ends with an agent that answers; it runs programs; stop ends by the guest's own power-off."""
    daemon.unit("web", linux_unit(qemu, linux_guest))
    assert daemon.do("web", "start")["agent"] == {"enabled": True, "connected": True}
    done = daemon.post("/v1/instances/web/agent", {"command": "exec", "path": "uname", "arguments": ["-s"]})
    assert done["result"]["stdout"] == "Linux\n"
    with daemon.events() as events:
        assert daemon.do("web", "stop")["substate"] == "dead"
        events.next("instance-state", substate="stopping-guest")
        events.next("instance-state", substate="stopping-quit")


def test_readiness_can_be_a_text_on_the_console(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """`ready = { serial = "TEXT" }`: the start ends when the guest has written it, and fails when it never does."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service='ready = { serial = "ready" }'))
    assert daemon.do("web", "start")["substate"] == "running"
    daemon.unit("never", rom_unit(qemu, rom_guest, service='ready = { serial = "no such" }\nstart-timeout = "1s"'))
    operation = daemon.power("never", "start")
    assert operation["state"] == "failed"
    assert operation["error"]["detail"] == "it was not ready within 1s"
    assert daemon.view("never")["cause"]["kind"] == "start-timeout"


def test_readiness_can_be_a_port_of_the_guest(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """`ready = { port = 80 }`: the guest itself has accepted; a connection to the forward alone proves nothing."""
    port = free_port()
    tables = f'[[nic]]\nid = "net"\nforward = ["{port}:80"]'
    unit = linux_unit(qemu, linux_guest, tables=tables).replace('ready = "agent"', "ready = { port = 80 }")
    daemon.unit("web", unit)
    daemon.do("web", "start")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as reply:
        assert b"hello from the guest" in reply.read()
    daemon.do("web", "stop")


def test_a_stop_of_a_deaf_guest_escalates_to_quit(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A guest that ignores the power button is ended by QMP `quit` after its time."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service='stop-timeout = "300ms"'))
    daemon.do("web", "start")
    daemon.type("web", "D")
    with daemon.events() as events:
        assert daemon.do("web", "stop")["substate"] == "dead"
        events.next("instance-state", substate="stopping-guest")
        events.next("instance-state", substate="stopping-quit")
        assert events.next("instance-state")["data"]["substate"] == "dead"


def test_a_stop_right_behind_a_start_is_heard(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """The guest has not switched its power button on yet, and the hardware drops what nobody waits for."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service='stop-timeout = "1min"\nstop-methods = ["acpi"]'))
    for _ in range(3):
        daemon.do("web", "start")
        daemon.do("web", "stop")
        assert daemon.view("web")["cause"]["kind"] == "operator"


def test_a_long_stop_says_where_it_is(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Its progress is the VM's substate; it cannot be cancelled, and the hint says what ends it."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service='stop-timeout = "1h"'))
    daemon.do("web", "start")
    daemon.type("web", "D")
    stop = daemon.post("/v1/instances/web/stop")["id"]
    daemon.wait("web", "stopping-guest")
    assert daemon.get(f"/v1/operations/{stop}")["progress"] == "stopping-guest"
    with daemon.client() as client, pytest.raises(QsupError, match="cannot be cancelled") as refused:
        client.delete(f"/v1/operations/{stop}")
    assert refused.value.hint == "kill the VM to end it at once"
    daemon.do("web", "kill")


def test_a_stop_overtakes_a_start_and_a_second_change_is_busy(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """One change at a time, named to the other; `kill` ends a start that waits, and its operation says so."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service='ready = { serial = "no such" }'))
    started = daemon.post("/v1/instances/web/start")
    daemon.wait("web", "waiting-ready")
    with pytest.raises(QsupError) as refused:
        daemon.post("/v1/instances/web/restart")
    assert (refused.value.code, refused.value.details["operation"]) == ("busy", started["id"])
    assert daemon.do("web", "kill")["substate"] == "dead"
    ended = daemon.get(f"/v1/operations/{started['id']}")
    assert (ended["state"], ended["error"]["detail"]) == ("failed", "overtaken by kill")


def test_an_idempotency_key_makes_a_retry_safe(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """The same key is the same operation; for another request it is refused."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    with daemon.client() as client:
        first = client.post("/v1/instances/web/restart?wait=30", key="one")
        again = client.post("/v1/instances/web/restart?wait=30", key="one")
        assert again["id"] == first["id"]
        with pytest.raises(QsupError, match="Idempotency-Key"):
            client.post("/v1/instances/web/kill", key="one")
