"""Daemons that die in the middle of what they were asked for, or wait for a host that does not answer.

Decides: what was accepted is completed by the next daemon, and no request waits without end.
Must not: repeat T1, the death in the middle of a start (`tests.real.test_faults`).
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import DaemonUnreachable
from tests.guests import Emulator
from tests.real.beside import MEBIBYTE
from tests.real.daemons import DEADLINE, Daemon, kill_process, rom_unit, signal_process
from tests.real.injected import injected, killed_at
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault, pytest.mark.root]

ALWAYS = 'restart = "always"\nrestart-delay = "20ms"'
RENAME = "renameat,renameat2,rename"


@contextmanager
def dying_at(daemon: Daemon, calls: str, *paths: str) -> Iterator[None]:
    """The daemon dies at a call that what is asked meanwhile brings about, and the next one is started."""
    with killed_at(daemon, calls, 1, *paths):
        with suppress(DaemonUnreachable):
            yield
        poll_until(lambda: not daemon.is_alive(), f"the daemon dies at {calls}", seconds=DEADLINE)
    daemon.start()


def ended(daemon: Daemon, kind: str) -> dict[str, Any]:
    """The newest operation of a kind, once it has ended."""

    def newest() -> dict[str, Any]:
        operations = daemon.get("/v1/operations")["operations"]
        return next(operation for operation in operations if operation["kind"] == kind)

    poll_until(lambda: newest()["state"] != "running", f"{kind} ends", seconds=DEADLINE)
    return newest()


def test_a_kill_is_not_undone_by_a_restart_policy(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """QEMU was killed and no record written yet when the daemon died: the VM stays down, and the kill succeeded."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service=ALWAYS))
    daemon.do("web", "start")
    with dying_at(daemon, RENAME), daemon.client() as client:
        client.post("/v1/instances/web/kill")
    assert ended(daemon, "kill")["state"] == "succeeded"
    view = daemon.view("web")
    assert (view["substate"], view["cause"]["kind"], view["restarts"]) == ("dead", "operator", 0)


@pytest.mark.parametrize("verb", ["stop", "kill", "restart"])
def test_what_was_accepted_and_not_begun_is_carried_out(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, verb: str
) -> None:
    """A stop, a kill and a restart whose daemon died as it wrote them down: they happen, gracefully where they are."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    with dying_at(daemon, "fdatasync"), daemon.client() as client:
        client.post(f"/v1/instances/web/{verb}")
    assert ended(daemon, verb)["state"] == "succeeded"
    view = daemon.view("web")
    assert view["substate"] == ("running" if verb == "restart" else "dead")
    assert view["pid"] != pid


@pytest.mark.parametrize("at", ["fdatasync", RENAME], ids=["accepted", "as-it-is-kept"])
def test_a_failure_that_is_being_forgotten_is_forgotten(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, at: str
) -> None:
    """A `reset-failed` whose daemon died as it wrote it down, or what came of it."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    kill_process(daemon.do("web", "start")["pid"])
    daemon.wait("web", "crashed")
    with dying_at(daemon, at), daemon.client() as client:
        client.post("/v1/instances/web/reset-failed")
    assert ended(daemon, "reset-failed")["state"] == "succeeded"
    assert daemon.view("web")["substate"] == "dead"


def test_a_start_that_was_accepted_and_not_begun_is_carried_out(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """Also of a VM of which nothing is known yet."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    with dying_at(daemon, "fdatasync"), daemon.client() as client:
        client.post("/v1/instances/web/start")
    assert ended(daemon, "start")["state"] == "succeeded"
    assert daemon.view("web")["substate"] == "running"


def test_a_restart_whose_first_half_ended_meanwhile_goes_on(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """The guest obeyed, or its QEMU was ended, while no daemon ran: the second half follows."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.type("web", "D")
    daemon.post("/v1/instances/web/restart")
    daemon.wait("web", "stopping-guest")
    daemon.signal(signal.SIGKILL)
    kill_process(pid)
    daemon.start()
    assert ended(daemon, "restart")["state"] == "succeeded"
    assert daemon.wait("web", "running")["pid"] != pid


def test_an_automatic_restart_is_not_lost_as_it_begins(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The daemon died before the new run record was there: the VM is what it was, waiting to be restarted."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service='restart = "always"\nrestart-delay = "1s"'))
    kill_process(daemon.do("web", "start")["pid"])
    daemon.wait("web", "auto-restart")
    with dying_at(daemon, "mkdir,mkdirat", str(daemon.run / "instances" / "web")):
        pass
    poll_until(lambda: daemon.view("web")["substate"] == "running", "it is restarted", seconds=DEADLINE)
    assert daemon.view("web")["restarts"] >= 1


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_a_vm_that_waits_for_its_restart_and_was_to_be_stopped_stays_down(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, verb: str
) -> None:
    """The daemon died as it wrote that down: its successor does it, and does not start the VM."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service='restart = "always"\nrestart-delay = "1s"'))
    kill_process(daemon.do("web", "start")["pid"])
    daemon.wait("web", "auto-restart")
    with dying_at(daemon, "fdatasync"), daemon.client() as client:
        client.post(f"/v1/instances/web/{verb}")
    assert ended(daemon, verb)["state"] == "succeeded"
    assert daemon.view("web")["substate"] == "dead"


def test_a_paused_guest_stays_paused_after_a_reset(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Reset while paused, QEMU says `prelaunch` as before the first `cont`; no adopter lets it run for that."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.do("web", "pause")
    daemon.do("web", "reset")
    assert daemon.post("/v1/instances/web/qmp", {"execute": "query-status"})["result"]["status"] == "prelaunch"
    daemon.restart()
    assert daemon.wait("web", "paused")["pid"] == pid
    daemon.do("web", "resume")


def test_the_rest_of_a_launch_is_done_by_the_adopter(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """QEMU is moved into its cgroup before its guest runs, whichever daemon does the last steps."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    lists = [f"{path}/web/cgroup.procs" for path in _cgroups(daemon.view("web")["pid"])]
    assert lists
    daemon.do("web", "kill")
    with dying_at(daemon, "openat", *lists), daemon.client() as client:
        client.post("/v1/instances/web/start")
    view = daemon.wait("web", "running")
    assert ended(daemon, "start")["state"] == "succeeded"
    assert {f"{path}/web/cgroup.procs" for path in _cgroups(view["pid"])} == set(lists)


def _cgroups(pid: int) -> list[str]:
    """The directories above a VM's own cgroups."""
    hierarchies = [line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    mounts = {name: name.removeprefix("name=") or "unified" for name, path in hierarchies if path.endswith("/web")}
    return [f"/sys/fs/cgroup/{mounts[name]}{path.removesuffix('/web')}" for name, path in hierarchies if name in mounts]


def test_a_panic_is_still_one_after_a_silence(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A guest that had panicked before its QEMU fell silent is no paused one, which could be resumed."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.type("web", "P")
    daemon.wait("web", "guest-panicked")
    signal_process(pid, signal.SIGSTOP)
    daemon.wait("web", "unresponsive")
    signal_process(pid, signal.SIGCONT)
    assert daemon.wait("web", "guest-panicked")["cause"]["kind"] == "guest-panic"


def test_a_panic_during_a_graceful_stop_is_not_waited_for(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """A guest that stands still will not shut itself down: `quit` follows at once."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service='stop-timeout = "300s"'))
    daemon.do("web", "start")
    daemon.type("web", "D")
    operation = daemon.post("/v1/instances/web/stop")
    daemon.wait("web", "stopping-guest")
    daemon.type("web", "P", after="")
    assert daemon.wait("web", "dead")["cause"]["kind"] == "operator"
    assert daemon.get(f"/v1/operations/{operation['id']}")["state"] == "succeeded"


@pytest.mark.parametrize("kind", ["disk", "firmware"])
def test_storage_that_does_not_answer_holds_neither_a_kill_nor_the_daemon(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, kind: str
) -> None:
    """A file whose opening hangs: the start is given up by `kill`, other VMs start, and SIGTERM ends the daemon."""
    file = daemon.root / "hanging.img"
    if kind == "disk":
        file.write_bytes(bytes(MEBIBYTE))
        disk = '[[disk]]\nid = "root"\npath = "hanging.img"\nformat = "raw"\n'
        daemon.unit("hanging", rom_unit(emulator, rom_guest, tables=disk))
        call, paths = "openat2", list[str]()
    else:
        shutil.copy(rom_guest, file)
        daemon.unit("hanging", rom_unit(emulator, file))
        call, paths = "openat", [str(file)]
    daemon.unit("web", rom_unit(emulator, rom_guest))
    with injected(daemon, call, "delay_enter=60000000:when=1", *paths):
        daemon.post("/v1/instances/hanging/start")
        daemon.wait("hanging", "spawning")
        assert daemon.do("web", "start")["substate"] == "running"
        assert daemon.do("hanging", "kill")["substate"] == "dead"
        daemon.do("web", "kill")
        signal_process(daemon.pid, signal.SIGTERM)
        # all that is left of it then is the thread that strace holds
        poll_until(lambda: "ended; VMs run on" in daemon.log(), "the daemon has ended its work", seconds=DEADLINE)
    poll_until(lambda: not daemon.is_alive(), "the daemon has ended", seconds=DEADLINE)
    daemon.start()
    assert daemon.do("hanging", "start")["substate"] == "running"


def test_no_room_for_the_uefi_variables_is_no_bug(daemon: Daemon, emulator: Emulator) -> None:
    """A directory that cannot be made fails the start in the kernel's words, and the next start succeeds."""
    text = f'[machine]\nemulator = "{emulator.path}"\naccel = "tcg"\nfirmware = "uefi"\n[agent]\nenabled = false\n'
    daemon.unit("web", text)
    directory = daemon.root / "state" / "vms"
    with injected(daemon, "mkdir,mkdirat", "error=ENOSPC", str(directory), str(directory / "web")):
        operation = daemon.power("web", "start")
    assert operation["state"] == "failed"
    assert "No space left on device" in operation["error"]["detail"]
    assert daemon.view("web")["substate"] == "start-failed"
    assert daemon.do("web", "start")["substate"] == "running"
