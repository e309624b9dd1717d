"""A real daemon and misfortunes: stopped processes, deaths in the middle, guests that act while nobody watches.

Decides: what must be so afterwards: each VM's state is named, none is lost, nobody else waited, nothing is left.
Must not: cause what only a hostile QEMU does (`tests.real.test_hostile`) or a wrecked file (`tests.real.test_wrecks`).
"""

from __future__ import annotations

import signal
import socket
import time
from collections import deque
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import DaemonUnreachable, DeniedError, MonitorTimeout
from qsup.host.network import _unfinished
from tests.bare import BareConnection
from tests.faults.trial import Promise, Tries
from tests.guests import Emulator
from tests.qmp.player import GREETING, HANG_UP, Fault
from tests.real.daemons import DEADLINE, Daemon, elapsed, rom_unit, signal_process
from tests.real.injected import killed_at
from tests.real.puppets import SESSION, Stage
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]


@pytest.mark.slow
def test_t5_a_stopped_qemu_is_unresponsive_and_slows_nobody(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, promise: Promise
) -> None:
    """Within 10 s; meanwhile all else answers at once; a kill takes 2 s at most, and SIGCONT brings the others back."""
    names = ("doomed", "running", "paused", "fourth", "fifth")
    for name in names:
        daemon.unit(name, rom_unit(emulator, rom_guest))
    pids = {name: daemon.do(name, "start")["pid"] for name in names}
    daemon.do("paused", "pause")
    stopped = ("doomed", "running", "paused")
    with daemon.events() as events, daemon.client() as client:
        began = time.monotonic()
        for name in stopped:
            signal_process(pids[name], signal.SIGSTOP)
        for request in ("/v1/instances", "/v1/instances/doomed", "/v1/instances/doomed/stats", "/metrics"):
            asked = time.monotonic()
            client.exchange("GET", request)
            promise.kept("an answer", elapsed(asked), within=1.0)
        with pytest.raises(MonitorTimeout):
            client.post("/v1/instances/doomed/qmp", {"execute": "query-status", "timeout": 0.2})
        asked = time.monotonic()
        assert daemon.do("fourth", "pause")["substate"] == "paused"
        promise.kept("another VM paused", elapsed(asked), within=1.0)
        found = {events.next("instance-state", substate="unresponsive")["instance"] for _ in stopped}
        promise.kept("all named", elapsed(began), within=10.0)
    assert found == set(stopped)
    assert daemon.view("doomed")["cause"]["kind"] == "process-silent"
    with pytest.raises(DeniedError, match="its monitor does not answer"):
        daemon.power("doomed", "pause")
    asked = time.monotonic()
    assert daemon.do("doomed", "kill")["substate"] == "dead"
    promise.kept("force stop", elapsed(asked), within=2.0)
    for name in ("running", "paused"):
        signal_process(pids[name], signal.SIGCONT)
        assert daemon.wait(name, name)["pid"] == pids[name]
    assert daemon.view("running")["cause"] is None


def typed(daemon: Daemon, name: str, key: bytes, status: str) -> None:
    """Type on a VM's console while no daemon has it, until QEMU says what came of it."""
    directory = daemon.run / "instances" / name
    with socket.socket(socket.AF_UNIX) as console, BareConnection(directory / "qmp") as monitor:
        monitor.negotiate()
        console.settimeout(DEADLINE)
        console.connect(str(directory / "console"))
        console.sendall(key)
        what = f"{name} is {status}"
        poll_until(lambda: monitor.ask("query-status")["status"] == status, what, seconds=DEADLINE)
        said = b""
        while key == b"R" and b"boot 2" not in said:
            said += console.recv(4096)


def test_what_a_guest_does_while_no_daemon_runs_is_found_out(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Power-off, power-off with `always`, panic, and a reset: each as if it had been watched."""
    policies = {"off": "no", "again": "always", "panic": "no", "anew": "on-failure", "reset": "no"}
    for name, policy in policies.items():
        service = f'restart = "{policy}"\nrestart-delay = "20ms"'
        daemon.unit(name, rom_unit(qemu, rom_guest, service=service))
    pids = {name: daemon.do(name, "start")["pid"] for name in policies}
    daemon.signal(signal.SIGKILL)
    typed(daemon, "off", b"O", "shutdown")
    typed(daemon, "again", b"O", "shutdown")
    typed(daemon, "panic", b"P", "guest-panicked")
    typed(daemon, "anew", b"P", "guest-panicked")
    typed(daemon, "reset", b"R", "running")
    daemon.start()
    assert daemon.wait("off", "dead")["cause"]["text"] == "guest-shutdown"
    for name in ("again", "anew"):
        poll_until(partial(_restarted, daemon, name), "the policy is obeyed", seconds=DEADLINE)
        assert daemon.wait(name, "running")["pid"] != pids[name]
    assert daemon.wait("panic", "guest-panicked")["pid"] == pids["panic"]
    assert daemon.wait("reset", "running")["pid"] == pids["reset"]
    assert daemon.remains() == ["again", "anew", "panic", "reset"]


def _restarted(daemon: Daemon, name: str) -> bool:
    return bool(daemon.view(name)["restarts"] == 1)


def test_a_monitor_that_somebody_else_occupies_is_waited_for(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """Its VM is `unreachable`, can be stopped all the same, and is taken over once the other one leaves."""
    names = ("stopped", "freed", "free")
    for name in names:
        daemon.unit(name, rom_unit(emulator, rom_guest))
    pids = {name: daemon.do(name, "start")["pid"] for name in names}
    daemon.signal(signal.SIGKILL)
    directory = daemon.run / "instances"
    with BareConnection(directory / "stopped" / "qmp") as one, BareConnection(directory / "freed" / "qmp") as other:
        one.negotiate()
        other.negotiate()
        daemon.start()
        views = {name: daemon.view(name) for name in names}
        assert [views[name]["substate"] for name in names] == ["unreachable", "unreachable", "running"]
        assert {name: view["pid"] for name, view in views.items()} == pids
        with pytest.raises(DeniedError, match="its monitor cannot be reached"):
            daemon.power("freed", "reset")
        assert daemon.do("stopped", "stop")["substate"] == "dead"
        assert daemon.view("freed")["substate"] == "unreachable"
    assert daemon.wait("freed", "running")["pid"] == pids["freed"]
    assert daemon.do("freed", "pause")["substate"] == "paused"


# T1: death in the middle of a start


@pytest.mark.user
@pytest.mark.parametrize("at", [GREETING, "qmp_capabilities", "query-cpus-fast", "cont"])
def test_t1_a_daemon_killed_while_qemu_starts_is_followed_by_one_that_ends_the_start(
    daemon: Daemon, root_dir: Path, emulator: Emulator, rom_guest: Path, at: str
) -> None:
    """From its first word on, QEMU is on record: the next daemon has the same process, running and controllable."""
    stage = Stage(root_dir / "stage", emulator)

    def kill(_lines: list[bytes]) -> Iterable[bytes]:
        daemon.signal(signal.SIGKILL)
        return [HANG_UP]

    try:
        daemon.unit("web", rom_unit(stage.emulator, rom_guest))
        with daemon.client() as client:
            client.post("/v1/instances/web/start")
        puppet = stage.next()
        puppet.play(Fault(name=at, recording=SESSION, at=at, change=kill, times=1))
        poll_until(lambda: not daemon.is_alive(), "the daemon is killed", seconds=DEADLINE)
        daemon.start()
        assert daemon.wait("web", "running")["pid"] == puppet.pid
        assert daemon.do("web", "pause")["substate"] == "paused"
        assert daemon.do("web", "kill")["substate"] == "dead"
    finally:
        stage.close()


BRIDGE = "qs-t1"
#: Where a starting VM's daemon is killed: at which call of a kind (in any one thread), and of which path if not of any.
POINTS = (
    ("mkdir", 1, ""),
    ("renameat,rename", 1, ""),  # the operation
    ("renameat,rename", 2, ""),  # the identity
    ("openat", 1, f"/sys/class/net/{_unfinished(BRIDGE)}/ifalias"),
    ("openat", 1, "/dev/net/tun"),
    ("bind", 1, ""),
    ("mknodat,mknod", 1, ""),
    ("clone,clone3,vfork", 1, ""),
    ("pidfd_open", 1, ""),  # of QEMU, which no record names yet
    ("renameat,rename", 3, ""),  # the record of a VM that is ready
)


@pytest.mark.root
@pytest.mark.slow
def test_t1_a_daemon_killed_anywhere_in_a_start_leaves_no_orphan_and_no_ghost(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, promise: Promise
) -> None:
    """After a restart the VM runs and obeys, or nothing of it is there: no process, tap, bridge or directory."""
    nic = f'[[nic]]\nid = "lan"\ntype = "bridge"\nbridge = "{BRIDGE}"\n'
    unit = rom_unit(emulator, rom_guest, tables=nic)
    daemon.unit("warm", unit)
    daemon.do("warm", "start")
    daemon.do("warm", "kill")
    outcomes = []
    for number, (calls, count, path) in enumerate(POINTS):
        name = f"vm{number}"
        daemon.unit(name, unit)
        with killed_at(daemon, calls, count, *filter(None, [path])):
            operation = begun(daemon, name)
            poll_until(lambda: not daemon.is_alive(), f"the daemon dies at {calls} {count} {path}", seconds=DEADLINE)
        outcomes.append((calls, count, path, aftermath(daemon, name, operation, promise)))
        assert not any(Path("/sys/class/net", name).exists() for name in (BRIDGE, _unfinished(BRIDGE)))
    assert {substate for *_, substate in outcomes} == {"start-failed", "running"}, outcomes


def aftermath(daemon: Daemon, name: str, operation: str | None, promise: Promise) -> str:
    """Start the next daemon, and see that the VM runs and obeys or is down with nothing left; which of the two."""
    began = time.monotonic()
    daemon.start()
    view = settled(daemon, name)
    promise.kept("settled", elapsed(began), within=5.0)
    assert view["pid"] is None or view["substate"] == "running"
    assert operation is None or daemon.get(f"/v1/operations/{operation}")["state"] != "running"
    if view["substate"] == "running":
        assert daemon.do(name, "pause")["substate"] == "paused"
        assert daemon.do(name, "kill")["substate"] == "dead"
    assert daemon.remains() == []
    return str(view["substate"])


#: What a start asks of the kernel that leaves something behind or makes it wait.
CALLS = (
    "openat",
    "write,pwrite64,writev",
    "fsync,fdatasync",
    "renameat,renameat2,rename",
    "clone,clone3,vfork",
    "connect",
    "mkdir,mkdirat",
    "unlink,unlinkat",
    "pidfd_open",
    "sendto,sendmsg",
)


@pytest.mark.slow
def test_t1_a_daemon_killed_at_each_call_of_a_start_leaves_no_orphan_and_no_ghost(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, tries: Tries, promise: Promise
) -> None:
    """The first, second, third... of each kind, until a start has no more of them; the tries take turns."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    daemon.do("web", "kill")
    points = deque((calls, 1) for calls in CALLS)
    for _ in tries:
        calls, count = points.popleft()
        with killed_at(daemon, calls, count):
            operation = begun(daemon, "web")
            done = partial(is_over, daemon, operation)
            poll_until(done, f"the daemon dies at {calls} {count}, or does not come to it", seconds=DEADLINE)
        if daemon.is_alive():
            daemon.do("web", "kill")
        else:
            aftermath(daemon, "web", operation, promise)
            points.append((calls, count + 1))
        if not points:
            break


def is_over(daemon: Daemon, operation: str | None) -> bool:
    """Whether the daemon is dead, or done with an operation."""
    if operation is None:
        return not daemon.is_alive()
    try:
        return bool(daemon.get(f"/v1/operations/{operation}")["state"] != "running")
    except DaemonUnreachable:
        return not daemon.is_alive()


def settled(daemon: Daemon, name: str) -> dict[str, Any]:
    """The VM once it runs or is down."""
    known = {"running", "dead", "start-failed", "crashed"}
    poll_until(lambda: daemon.view(name)["substate"] in known, f"{name} settles", seconds=5.0)
    return daemon.view(name)


def begun(daemon: Daemon, name: str) -> str | None:
    """Ask for a start; the operation's id, or nothing when the daemon died before it answered."""
    try:
        with daemon.client() as client:
            return str(client.post(f"/v1/instances/{name}/start")["id"])
    except DaemonUnreachable:
        return None
