"""What a restarted daemon goes on with: stops, starts and restarts that were under way, and VMs that were down."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from qsup.ctl.websocket import connect
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, elapsed, free_port, kill_process, rom_unit
from tests.waiting import came_true

pytestmark = pytest.mark.real

NEVER = 'ready = { serial = "no such text" }'


def again(daemon: Daemon) -> None:
    """Kill the daemon and start the next."""
    daemon.signal(signal.SIGKILL)
    daemon.start()


def test_a_pending_restart_is_still_pending(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A VM that waited for its automatic restart is restarted by the next daemon, with its counter."""
    policy = 'restart = "always"\nrestart-delay = "2s"'
    daemon.unit("web", rom_unit(qemu, rom_guest, service=policy))
    kill_process(daemon.do("web", "start")["pid"])
    daemon.wait("web", "auto-restart")
    again(daemon)
    assert daemon.wait("web", "running")["restarts"] == 1


def test_every_counter_goes_on(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Resets by the guest, restarts, and those that count for the limit: whichever daemon saw them."""
    policy = 'restart = "always"\nrestart-delay = "20ms"\nstart-limit-burst = 2'
    daemon.unit("web", rom_unit(qemu, rom_guest, service=policy))
    daemon.do("web", "start")
    for resets, number in ((1, signal.SIGKILL), (2, signal.SIGTERM), (3, signal.SIGTERM)):
        with daemon.events() as events:
            daemon.type("web", "R", after="")
            assert events.next("guest-reset")["data"]["resets"] == resets
        daemon.restart(number)
        assert daemon.wait("web", "running")["resets"] == resets
    for restarts in (1, 2):
        with daemon.events() as events:
            kill_process(daemon.view("web")["pid"])
            events.next("instance-state", substate="running")
        again(daemon)
        view = daemon.wait("web", "running")
        assert (view["restarts"], view["resets"]) == (restarts, 0)
    kill_process(daemon.view("web")["pid"])
    daemon.wait("web", "start-limit-hit")
    again(daemon)
    view = daemon.view("web")
    assert (view["substate"], view["restarts"]) == ("start-limit-hit", 2)


def test_a_guest_that_resets_itself_without_end_costs_a_write_a_second(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """And the daemon's orderly end writes down the last count."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    record = daemon.run / "instances" / "web" / "record.json"
    written, began = set(), time.monotonic()
    with daemon.client() as client:
        console = connect(client, "/v1/instances/web/console?mode=write")

        def has_reset_often() -> bool:
            console.send(b"R")
            console.flush()
            console.receive()
            written.add(record.stat().st_mtime_ns)
            return bool(daemon.view("web")["resets"] >= 30)

        try:
            assert came_true(has_reset_often, seconds=DEADLINE)
        finally:
            console.close()
    assert len(written) <= 2 + elapsed(began)
    resets = daemon.view("web")["resets"]
    daemon.restart(signal.SIGTERM)
    assert daemon.wait("web", "running")["resets"] >= resets


@pytest.mark.parametrize("says_so", [True, False], ids=["said after all", "never said"])
def test_a_text_that_was_not_seen_is_waited_for(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, says_so: bool
) -> None:
    """It may have gone by while no daemon ran: then, and no earlier, the VM counts as ready, and its cause says so."""
    limit = "1h" if says_so else "2s"
    service = f'ready = {{ serial = "boot 2" }}\nstart-timeout = "{limit}"'
    daemon.unit("web", rom_unit(emulator, rom_guest, service=service))
    operation = daemon.post("/v1/instances/web/start")
    pid = daemon.wait("web", "waiting-ready")["pid"]
    again(daemon)
    assert daemon.view("web")["substate"] == "waiting-ready"
    if says_so:
        daemon.type("web", "R", after="")
    view = daemon.wait("web", "running")
    assert view["pid"] == pid
    assert (view["cause"] and view["cause"]["kind"]) == (None if says_so else "ready-assumed")
    assert daemon.get(f"/v1/operations/{operation['id']}")["state"] == "succeeded"


def test_how_a_vm_ended_stays_known(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """`failed (signal KILL)` is still that after the daemon's restart; so is an operator's kill, and it stays down."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.unit("auto", rom_unit(qemu, rom_guest, install="autostart = true"))
    kill_process(daemon.do("web", "start")["pid"])
    before = daemon.wait("web", "crashed")
    daemon.do("auto", "start")
    stopped = daemon.do("auto", "kill")
    again(daemon)
    after = daemon.view("web")
    assert (after["substate"], after["cause"], after["since"]) == ("crashed", before["cause"], before["since"])
    daemon.do("web", "start")
    found = daemon.view("auto")
    assert (found["substate"], found["cause"]) == ("dead", stopped["cause"])


def test_a_guest_that_was_asked_to_shut_down_keeps_its_time(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A graceful stop goes on gracefully, its operation is the same, and it ends when the guest has powered off."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service='stop-timeout = "30s"'))
    pid = daemon.do("web", "start")["pid"]
    daemon.type("web", "D")
    operation = daemon.post("/v1/instances/web/stop")
    daemon.wait("web", "stopping-guest")
    again(daemon)
    assert daemon.wait("web", "stopping-guest")["pid"] == pid
    assert daemon.get(f"/v1/operations/{operation['id']}")["state"] == "running"
    daemon.type("web", "O", after="")
    assert daemon.wait("web", "dead")["cause"]["kind"] == "operator"
    assert daemon.get(f"/v1/operations/{operation['id']}")["state"] == "succeeded"


def test_a_stop_has_its_time_once_however_often_daemons_come(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """A deaf guest, and daemons that live less long than it is given: it is stopped when its time is over."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service='stop-timeout = "4s"'))
    daemon.do("web", "start")
    daemon.type("web", "D")
    operation = daemon.post("/v1/instances/web/stop")
    deadline = time.monotonic() + DEADLINE
    seen = [daemon.wait("web", "stopping-guest")["substate"]]
    while seen[-1] != "dead" and time.monotonic() < deadline:
        again(daemon)
        seen.append(daemon.view("web")["substate"])
    assert seen[:2] == ["stopping-guest", "stopping-guest"]
    assert seen[-1] == "dead", seen
    assert daemon.get(f"/v1/operations/{operation['id']}")["state"] == "succeeded"


@pytest.mark.parametrize("ready", ["port", "text"])
def test_a_start_has_its_time_once_however_often_daemons_come(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, ready: str
) -> None:
    """It is over, or a text that may have been missed is taken as said, however short each daemon lives."""
    wanted = "{ port = 22 }" if ready == "port" else '{ serial = "no such text" }'
    forward = f'[[nic]]\nid = "n"\nforward = ["{free_port()}:22"]'
    service = f'ready = {wanted}\nstart-timeout = "4s"'
    daemon.unit("web", rom_unit(emulator, rom_guest, service=service, tables=forward))
    operation = daemon.post("/v1/instances/web/start")
    deadline = time.monotonic() + DEADLINE
    seen = [daemon.wait("web", "waiting-ready")["substate"]]
    while seen[-1] in ("waiting-ready", "unreachable") and time.monotonic() < deadline:
        again(daemon)
        seen.append(daemon.view("web")["substate"])
    assert seen[:2] == ["waiting-ready", "waiting-ready"]
    assert seen[-1] not in ("waiting-ready", "unreachable"), seen
    expected = "failed" if ready == "port" else "succeeded"
    ended = daemon.get(f"/v1/operations/{operation['id']}/wait?timeout=10")
    assert ended["state"] == expected, seen


def test_a_qemu_that_does_not_end_is_killed_however_often_daemons_come(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """It stands still, and each daemon lives less long than `term-timeout`: SIGKILL follows when that is over."""
    service = 'stop-methods = ["quit", "term", "kill"]\nquit-timeout = "500ms"\nterm-timeout = "4s"'
    daemon.unit("web", rom_unit(emulator, rom_guest, service=service))
    os.kill(daemon.do("web", "start")["pid"], signal.SIGSTOP)
    daemon.post("/v1/instances/web/stop")
    deadline = time.monotonic() + DEADLINE
    seen = [daemon.wait("web", "stopping-term")["substate"]]
    while seen[-1] != "dead" and time.monotonic() < deadline:
        again(daemon)
        seen.append(daemon.view("web")["substate"])
    assert seen[-1] == "dead", seen


def test_a_stop_of_a_hung_qemu_goes_on_escalating(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """SIGSTOPped QEMU, `quit` sent, daemon restarted: SIGTERM and SIGKILL follow although no monitor answers."""
    service = 'stop-methods = ["quit", "term", "kill"]\nquit-timeout = "30s"\nterm-timeout = "200ms"'
    daemon.unit("web", rom_unit(qemu, rom_guest, service=service))
    pid = daemon.do("web", "start")["pid"]
    os.kill(pid, signal.SIGSTOP)
    daemon.post("/v1/instances/web/stop")
    daemon.wait("web", "stopping-quit")
    again(daemon)
    assert daemon.wait("web", "dead")["cause"]["kind"] == "operator"
    assert came_true(lambda: not os.path.exists(f"/proc/{pid}"), seconds=5)  # reaped by whoever inherited it


def test_a_start_that_was_under_way_is_completed(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """The start's operation is held again by the adopted VM, and fails by the start timeout as it would have."""
    daemon.unit(
        "web",
        rom_unit(
            qemu,
            rom_guest,
            service='ready = { port = 22 }\nstart-timeout = "3s"',
            tables=f'[[nic]]\nid = "n"\nforward = ["{free_port()}:22"]',
        ),
    )
    operation = daemon.post("/v1/instances/web/start")
    daemon.wait("web", "waiting-ready")
    again(daemon)
    assert daemon.get(f"/v1/operations/{operation['id']}")["state"] == "running"
    assert daemon.wait("web", "start-failed")["cause"]["kind"] == "start-timeout"
    assert daemon.get(f"/v1/operations/{operation['id']}")["state"] == "failed"


def test_an_operators_word_is_never_undone(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """`kill` while the start timeout stops the VM: it stays down whatever its policy, and both operations end."""
    service = f'{NEVER}\nstart-timeout = "1s"\nrestart = "on-failure"\nrestart-delay = "10ms"\nquit-timeout = "30s"'
    daemon.unit("web", rom_unit(qemu, rom_guest, service=service))
    daemon.post("/v1/instances/web/start")
    os.kill(daemon.wait("web", "waiting-ready")["pid"], signal.SIGSTOP)
    daemon.wait("web", "stopping-quit")
    view = daemon.do("web", "kill")
    assert (view["substate"], view["cause"]["kind"], view["operation"]) == ("dead", "operator", None)


def test_a_stop_overtakes_the_stop_half_of_a_restart(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """`restart` of a deaf guest, then `stop`: the VM stays down; `stop` after `kill` joins the kill."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service='stop-timeout = "700ms"'))
    daemon.do("web", "start")
    daemon.type("web", "D")
    restart = daemon.post("/v1/instances/web/restart")
    daemon.wait("web", "stopping-guest")
    assert daemon.do("web", "stop")["substate"] == "dead"
    assert daemon.get(f"/v1/operations/{restart['id']}")["state"] == "failed"
    daemon.do("web", "start")
    killed = daemon.post("/v1/instances/web/kill")
    joined = daemon.post("/v1/instances/web/stop?wait=30")
    assert joined["state"] == "succeeded"
    assert daemon.get(f"/v1/operations/{killed['id']}")["state"] == "succeeded"
    assert daemon.view("web")["substate"] == "dead"


def test_a_vm_that_was_never_ready_is_not_started(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A panic, or a QEMU that stands still, before readiness is no success; woken up, it still has to become ready."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service=NEVER))
    operation = daemon.post("/v1/instances/web/start")
    daemon.wait("web", "waiting-ready")
    daemon.type("web", "P")
    daemon.wait("web", "guest-panicked")

    def has_failed() -> bool:
        return bool(daemon.get(f"/v1/operations/{operation['id']}")["state"] == "failed")

    assert came_true(has_failed, seconds=5)
    assert daemon.do("web", "reset")["substate"] == "waiting-ready"
    daemon.do("web", "kill")
