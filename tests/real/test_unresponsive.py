"""A real daemon and QEMUs that do not answer: which part stands still, and that nobody else waits for it.

Decides: what is told of a silence, what may still be asked of a silent VM, and that it can always be killed.
Must not: repeat what a silence costs the others (`tests.real.test_faults`, T5).
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qsup.errors import DeniedError, QsupError
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, elapsed, rom_unit, signal_process
from tests.waiting import came_true, poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]

#: Seconds within which a silence is told, a second change is refused and a kill is done.
TOLD, REFUSED, KILLED = 10.0, 5.0, 2.0


@contextmanager
def busy_main_loop(pid: int) -> Iterator[None]:
    """A QEMU whose main thread does not come back from its wait for events; its other threads go on."""
    fault = "inject=ppoll,poll,read,readv,recvmsg:delay_enter=600000000"
    command = ["strace", "-p", str(pid), "-o", "/dev/null", "-e", fault]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            assert any("attached" in line for line in iter(tracer.stderr.readline, ""))
            yield
        finally:
            tracer.kill()
            tracer.communicate()


def started(daemon: Daemon, emulator: Emulator, rom: Path, *names: str) -> dict[str, int]:
    """Running VMs, and their pids."""
    for name in names:
        daemon.unit(name, rom_unit(emulator, rom))
    return {name: daemon.do(name, "start")["pid"] for name in names}


def logged(daemon: Daemon, name: str, event: str) -> list[dict[str, str]]:
    """What the daemon logged of a kind about a VM."""
    lines = [json.loads(line) for line in daemon.log().splitlines()]
    return [line for line in lines if line["event"] == event and line.get("instance") == name]


@pytest.mark.slow
def test_a_busy_main_loop_is_told_from_a_stopped_process(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """In status, event and log; told again when the one becomes the other, and over when QEMU answers."""
    pids = started(daemon, qemu, rom_guest, "busy", "stopped", "fine")
    with daemon.events() as events:
        with busy_main_loop(pids["busy"]):
            signal_process(pids["stopped"], signal.SIGSTOP)
            began = time.monotonic()
            found = {}
            for _ in range(2):
                event = events.next("instance-state", substate="unresponsive")
                found[event["instance"]] = event["data"]["cause"]["text"]
            assert elapsed(began) < TOLD
            assert found == {"busy": "main loop", "stopped": "process"}
            assert "SIGSTOP" in daemon.view("stopped")["cause"]["detail"]
            assert "(unresponsive: main loop)" in daemon.ctl("status", "busy").stdout
            assert daemon.view("fine")["substate"] == "running"
            signal_process(pids["busy"], signal.SIGSTOP)
            event = events.next("instance-state", substate="unresponsive", previous="unresponsive")
            assert (event["instance"], event["data"]["cause"]["kind"]) == ("busy", "process-silent")
        for name in ("busy", "stopped"):
            signal_process(pids[name], signal.SIGCONT)
            assert daemon.wait(name, "running")["pid"] == pids[name]
    told = [line["cause"] for line in logged(daemon, "busy", "state changed") if line["state"] == "unresponsive"]
    assert told == ["main loop", "process"]


@pytest.mark.slow
def test_a_change_that_waits_for_a_silent_qemu_holds_nobody_but_its_vm(
    daemon: Daemon, qemu: Emulator, rom_guest: Path
) -> None:
    """A second change is `busy` and names the first; a kill overtakes it."""
    pids = started(daemon, qemu, rom_guest, "web", "other")
    signal_process(pids["web"], signal.SIGSTOP)
    pause = daemon.post("/v1/instances/web/pause")
    asked = time.monotonic()
    with pytest.raises(QsupError) as refused:
        daemon.post("/v1/instances/web/reset")
    assert elapsed(asked) < REFUSED
    assert (refused.value.code, refused.value.details["operation"]) == ("busy", pause["id"])
    assert f"pause is under way (operation {pause['id']})" in str(refused.value)
    asked = time.monotonic()
    assert daemon.do("other", "pause")["substate"] == "paused"
    assert elapsed(asked) < 1.0
    asked = time.monotonic()
    assert daemon.do("web", "kill")["substate"] == "dead"
    assert elapsed(asked) < KILLED
    ended = daemon.get(f"/v1/operations/{pause['id']}")
    assert (ended["state"], ended["error"]["detail"]) == ("failed", "overtaken by kill")


@pytest.mark.slow
def test_a_silent_qemu_is_no_longer_asked_for_changes_but_can_be_stopped(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """Once it is known to be unresponsive, what needs its monitor is refused; `restart` holds it until it is down."""
    pids = started(daemon, emulator, rom_guest, "web")
    signal_process(pids["web"], signal.SIGSTOP)
    daemon.wait("web", "unresponsive")
    asked = time.monotonic()
    with pytest.raises(DeniedError, match="its monitor does not answer"):
        daemon.post("/v1/instances/web/pause")
    restart = daemon.post("/v1/instances/web/restart")
    with pytest.raises(QsupError) as refused:
        daemon.post("/v1/instances/web/restart")
    assert refused.value.details["operation"] == restart["id"]
    assert elapsed(asked) < REFUSED
    asked = time.monotonic()
    assert daemon.do("web", "kill")["substate"] == "dead"
    assert elapsed(asked) < KILLED


def test_a_qemu_that_stands_still_is_taken_over_and_named(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A starting daemon has never had a word from it: `unreachable`, and why; it can be killed, or come back."""
    pids = started(daemon, qemu, rom_guest, "doomed", "back", "fine")
    for name in ("doomed", "back"):
        signal_process(pids[name], signal.SIGSTOP)
    daemon.restart()
    assert daemon.view("fine")["substate"] == "running"
    for name in ("doomed", "back"):

        def is_named(name: str = name) -> bool:
            cause = daemon.view(name)["cause"]
            return cause is not None and "SIGSTOP" in cause["detail"]

        assert daemon.view(name)["substate"] == "unreachable"
        assert came_true(is_named, seconds=TOLD), daemon.view(name)
    asked = time.monotonic()
    assert daemon.do("doomed", "kill")["substate"] == "dead"
    assert elapsed(asked) < KILLED
    signal_process(pids["back"], signal.SIGCONT)
    view = daemon.wait("back", "running")
    assert (view["pid"], view["cause"]) == (pids["back"], None)


# Frozen cgroups: what they hold is in uninterruptible sleep


@contextmanager
def frozen(cgroup: Path) -> Iterator[Callable[[], None]]:
    """A frozen cgroup of version 1; yields what thaws it."""
    state = cgroup / "freezer.state"

    def thaw() -> None:
        if state.exists():
            state.write_text("THAWED")

    state.write_text("FROZEN")
    try:
        yield thaw
    finally:
        thaw()


def freezer(daemon: Daemon, name: str) -> Path:
    """A VM's cgroup in the freezer hierarchy."""
    record = json.loads((daemon.run / "instances" / name / "record.json").read_text())
    (found,) = (Path(path) for path in record["cgroups"] if (Path(path) / "freezer.state").exists())
    return found


def process_state(pid: int) -> str:
    """The letter that /proc has for a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


@pytest.mark.root
@pytest.mark.slow
def test_a_vm_that_somebody_has_frozen_is_named_and_can_be_killed(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """Frozen by version 1 a process takes no signal: a kill thaws it."""
    pids = started(daemon, emulator, rom_guest, "web")
    with frozen(freezer(daemon, "web")):
        poll_until(lambda: process_state(pids["web"]) == "D", "it is frozen")
        view = daemon.wait("web", "unresponsive")
        assert (view["cause"]["text"], "frozen" in view["cause"]["detail"]) == ("process", True)
        asked = time.monotonic()
        assert daemon.do("web", "kill")["substate"] == "dead"
        assert elapsed(asked) < KILLED


@pytest.mark.root
@pytest.mark.slow
def test_a_process_that_sigkill_does_not_end_is_stuck_and_never_stopped(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """In uninterruptible sleep for as long as the cgroup above is frozen; no second one is started beside it."""
    pids = started(daemon, emulator, rom_guest, "web")
    with frozen(freezer(daemon, "web").parent) as thaw:
        poll_until(lambda: process_state(pids["web"]) == "D", "it sleeps uninterruptibly")
        operation = daemon.power("web", "kill")
        assert operation["state"] == "failed"
        assert f"SIGKILL was sent to process {pids['web']}, but the kernel keeps it" in operation["error"]["detail"]
        view = daemon.view("web")
        assert (view["state"], view["substate"], view["pid"]) == ("deactivating", "stuck", pids["web"])
        for verb in ("start", "restart"):
            with pytest.raises(DeniedError, match="the kernel keeps its process"):
                daemon.post(f"/v1/instances/web/{verb}")
        daemon.restart()
        assert daemon.view("web")["pid"] == pids["web"]
        assert daemon.view("web")["state"] == "deactivating"
        assert not came_true(lambda: daemon.view("web")["state"] != "deactivating", seconds=1.0)
        thaw()
        view = daemon.wait("web", "dead", seconds=DEADLINE)
    assert (view["pid"], view["cause"]["kind"]) == (None, "operator")
    assert daemon.do("web", "start")["substate"] == "running"
