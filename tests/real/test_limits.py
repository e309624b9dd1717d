"""A real daemon that runs out of descriptors or memory: clients go, VMs stay. And one that stands still: it is seen.

Decides: what must still work at a limit, and that all is back afterwards.
Must not: repeat who goes first (`tests.api.test_pressure`).
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from qsup.ctl.websocket import connect
from qsup.errors import DaemonUnreachable, QsupError
from tests.api.serving import request
from tests.guests import Emulator
from tests.real.beside import MEBIBYTE, words
from tests.real.daemons import DEADLINE, Daemon, elapsed, kill_process, rom_unit
from tests.real.injected import injected
from tests.real.test_service import FakeManager, manager
from tests.waiting import came_true, poll_until

__all__ = ["manager"]
pytestmark = [pytest.mark.real, pytest.mark.fault]

LIMIT = 64
#: Descriptors that may be more or fewer than before.
TOLERANCE = 5


@contextmanager
def limited(root: Path, *limits: str) -> Iterator[Daemon]:
    """A daemon with limits of its own (prlimit(1)), ended with all its VMs."""
    daemon = Daemon(root, command=("prlimit", *limits, sys.executable, "-m", "qsup.daemon"))
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


@contextmanager
def limited_next(daemon: Daemon, *limits: str) -> Iterator[None]:
    """Have the next daemons start with limits of their own."""
    command = daemon._command
    daemon._command = ("prlimit", *limits, *command)
    try:
        yield
    finally:
        daemon._command = command


def descriptors(daemon: Daemon) -> int:
    """How many the daemon has open."""
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def soft_and_hard(pid: int) -> tuple[int, int]:
    """A process's limits of descriptors."""
    found = re.search(r"Max open files +(\d+) +(\d+)", Path(f"/proc/{pid}/limits").read_text())
    assert found
    return int(found[1]), int(found[2])


def cpu_seconds(pid: int) -> float:
    """What a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def started_until_refused(daemon: Daemon, emulator: Emulator, rom: Path) -> tuple[dict[str, int], str]:
    """VMs, one after the other, until no more can be started: their pids, and why not."""
    pids: dict[str, int] = {}
    while len(pids) < LIMIT:
        name = f"vm{len(pids)}"
        daemon.unit(name, rom_unit(emulator, rom))
        operation = daemon.power(name, "start")
        if operation["state"] == "failed":
            return pids, words(operation["error"])
        pids[name] = daemon.view(name)["pid"]
    raise AssertionError("no limit was met")


def test_t18_without_descriptors_no_further_vm_is_started_and_those_there_obey(
    root_dir: Path, qemu: Emulator, rom_guest: Path
) -> None:
    """The refusal names the limit; ends are noticed, restarts of the daemon survived, and all comes back."""
    with limited(root_dir, f"--nofile={LIMIT}:{LIMIT}") as daemon:
        with daemon.client() as client:
            client.get("/v1/instances")
        before = descriptors(daemon)
        pids, why = started_until_refused(daemon, qemu, rom_guest)
        assert len(pids) >= 3
        assert f"the daemon's {LIMIT} (RLIMIT_NOFILE)" in why
        assert "LimitNOFILE" in why
        last = f"vm{len(pids)}"
        assert (daemon.view(last)["substate"], sorted(daemon.remains())) == ("start-failed", sorted(pids))
        assert daemon.do("vm0", "pause")["substate"] == "paused"
        assert daemon.do("vm0", "resume")["substate"] == "running"
        daemon.restart()
        for name, pid in pids.items():
            assert daemon.wait(name, "running")["pid"] == pid
        with daemon.events() as events:
            kill_process(pids["vm1"])
            events.next("instance-state", substate="crashed", seconds=2.0)
        # what one has given back another may have
        assert daemon.do(last, "start")["substate"] == "running"
        for name in (*pids, last):
            daemon.do(name, "kill")
        assert daemon.remains() == []
        poll_until(lambda: abs(descriptors(daemon) - before) <= TOLERANCE, "all are given back", seconds=DEADLINE)


def test_t18_starts_at_the_same_time_fail_cleanly(root_dir: Path, emulator: Emulator, rom_guest: Path) -> None:
    """Whoever loses is told in one sentence, whichever step it was; nothing of it is left."""
    with limited(root_dir, f"--nofile={LIMIT}:{LIMIT}") as daemon:
        names = [f"vm{number}" for number in range(12)]
        for name in names:
            (daemon.units / f"{name}.toml").write_text(rom_unit(emulator, rom_guest))
        daemon.post("/v1/reload")
        begun = [daemon.post(f"/v1/instances/{name}/start")["id"] for name in names]
        ended = [daemon.get(f"/v1/operations/{each}/wait?timeout=30") for each in begun]
        assert {operation["state"] for operation in ended} == {"succeeded", "failed"}
        for operation in ended:
            if operation["state"] == "failed":
                told = words(operation["error"])
                assert "file descriptors" in told or "Too many open files" in told, told
        running = [operation["target"] for operation in ended if operation["state"] == "succeeded"]
        assert sorted(daemon.remains()) == sorted(running)
        for name in running:
            assert daemon.do(name, "pause")["substate"] == "paused"
            daemon.do(name, "kill")
        assert "driver failed" not in daemon.log()


def test_t18_clients_take_no_descriptor_that_a_vm_needs(root_dir: Path, emulator: Emulator, rom_guest: Path) -> None:
    """Idle ones and followers beyond measure: they go, the daemon neither spins nor dies, and VMs are served."""
    with limited(root_dir, f"--nofile={LIMIT}:{LIMIT}") as daemon, ExitStack() as clients:
        for name in ("web", "other"):
            daemon.unit(name, rom_unit(emulator, rom_guest))
        pids = {name: daemon.do(name, "start")["pid"] for name in ("web", "other")}
        before = descriptors(daemon)
        assert daemon.get("/v1/health")["status"] == "ok"
        for number in range(2 * LIMIT):
            guest = clients.enter_context(socket.socket(socket.AF_UNIX))
            guest.settimeout(DEADLINE)
            guest.connect(daemon.address.path)
            if number % 2:
                with suppress(BrokenPipeError, ConnectionResetError):
                    guest.sendall(request("GET /v1/events"))
                    guest.recv(64)  # the beginning of the answer, or the end of the connection
        with daemon.client() as client:
            for verb in ("pause", "resume"):
                assert client.post(f"/v1/instances/web/{verb}?wait=10")["state"] == "succeeded"
        health = daemon.get("/v1/health")
        assert (health["status"], health["descriptors"]["limit"]) == ("degraded", LIMIT)
        assert before < health["descriptors"]["used"] <= LIMIT
        (problem,) = health["problems"]
        assert re.match(rf"short of file descriptors: \d+ of {LIMIT} are in use .* API clients turned out", problem)
        assert "LimitNOFILE" in problem
        shown = daemon.ctl("health", check=False)
        assert (shown.returncode, f" of {LIMIT}\n" in shown.stdout, problem in shown.stdout) == (1, True, True)
        assert descriptors(daemon) <= LIMIT
        began, used = time.monotonic(), cpu_seconds(daemon.pid)
        assert not came_true(lambda: not daemon.is_alive(), seconds=2.0)
        assert cpu_seconds(daemon.pid) - used < elapsed(began) / 2, "it spins"
        kill_process(pids["other"])
        daemon.wait("other", "crashed", seconds=2.0)
        assert "API clients were turned out" in daemon.log()
        assert daemon.do("web", "kill")["substate"] == "dead"
        assert daemon.remains() == []
        clients.close()
        poll_until(lambda: descriptors(daemon) <= before + TOLERANCE, "all are given back", seconds=DEADLINE)
        assert daemon.do("web", "start")["substate"] == "running"
        assert "driver failed" not in daemon.log()


@pytest.mark.slow
def test_t18_a_daemon_with_a_lower_limit_takes_over_what_it_can(
    root_dir: Path, emulator: Emulator, rom_guest: Path
) -> None:
    """The others run on, quarantined, with the limit named; they are taken over when there is room; none is lost."""
    names = [f"vm{number:02}" for number in range(14)]
    with limited(root_dir) as daemon:
        for name in names:
            (daemon.units / f"{name}.toml").write_text(rom_unit(emulator, rom_guest))
        daemon.post("/v1/reload")
        pids = {name: daemon.do(name, "start")["pid"] for name in names}
        daemon.signal(signal.SIGKILL)
        with limited_next(daemon, f"--nofile={LIMIT}:{LIMIT}"):
            daemon.start()
            views = {view["name"]: view for view in daemon.get("/v1/instances")["instances"]}
            states = {name: view["substate"] for name, view in views.items()}
            assert set(states.values()) <= {"running", "unreachable", "quarantined"}, states
            left = [name for name, state in states.items() if state == "quarantined"]
            assert 0 < len(left) < len(names) - 3
            for name in left:
                assert "could not take it over: fewer than" in views[name]["cause"]["detail"]
            taken = [name for name in names if name not in left]
            for name in taken:
                assert daemon.wait(name, "running")["pid"] == pids[name]
            assert daemon.do(taken[0], "kill")["substate"] == "dead"
            daemon.post("/v1/reload")
            poll_until(lambda: _running(daemon, left), "another is taken over in its place", seconds=DEADLINE)
            assert all(daemon.view(name)["pid"] == pids[name] for name in _running(daemon, left))
            assert "driver failed" not in daemon.log()
            daemon.signal(signal.SIGKILL)
        daemon.start()
        for name in set(names) - {taken[0]}:
            assert daemon.wait(name, "running")["pid"] == pids[name]


def _running(daemon: Daemon, names: list[str]) -> list[str]:
    return [name for name in names if daemon.view(name)["substate"] == "running"]


def test_t18_accept_may_fail(root_dir: Path, emulator: Emulator, rom_guest: Path) -> None:
    """EMFILE whenever somebody comes: the daemon waits a moment each time, and serves all when it is over."""
    with limited(root_dir) as daemon:
        daemon.unit("web", rom_unit(emulator, rom_guest))
        pid = daemon.do("web", "start")["pid"]
        with injected(daemon, "accept,accept4", "error=EMFILE"), ExitStack() as clients:
            used = cpu_seconds(daemon.pid)
            for _ in range(10):
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(daemon.address.path)
            assert not came_true(lambda: not daemon.is_alive(), seconds=1.0)
            assert cpu_seconds(daemon.pid) - used < 0.7, "it spins"
            kill_process(pid)
            poll_until(lambda: '"crashed"' in daemon.log(), "an end is noticed meanwhile", seconds=2.0)
        assert daemon.view("web")["substate"] == "crashed"


def test_the_daemon_and_its_vms_may_have_what_the_host_allows(root_dir: Path, qemu: Emulator, rom_guest: Path) -> None:
    """The daemon raises its soft limit to the hard one, as newer QEMUs do with theirs; nobody's hard limit changes."""
    with limited(root_dir, "--nofile=512:4096") as daemon:
        daemon.unit("web", rom_unit(qemu, rom_guest))
        pid = daemon.do("web", "start")["pid"]
        assert soft_and_hard(daemon.pid) == soft_and_hard(pid) == (4096, 4096)


@pytest.mark.slow
def test_beyond_its_ceiling_of_memory_clients_go_and_vms_stay(
    root_dir: Path, emulator: Emulator, rom_guest: Path
) -> None:
    """With a ceiling that is always passed, whoever follows is turned out, and requests are served all the same."""
    (root_dir / "qsupd.toml").write_text("memory-ceiling = 1\n")
    with limited(root_dir) as daemon:
        daemon.unit("web", rom_unit(emulator, rom_guest))
        pid = daemon.do("web", "start")["pid"]
        assert daemon.memory() > MEBIBYTE
        with daemon.events() as events, pytest.raises((AssertionError, QsupError), match=r"ended|closed"):
            events.next("no-such-event", seconds=DEADLINE)
        with daemon.client() as client, closing(connect(client, "/v1/instances/web/console")) as console:

            def has_ended() -> bool:
                console.receive()
                return console.closed

            assert came_true(has_ended, seconds=DEADLINE)
        for verb in ("pause", "resume"):
            assert daemon.power("web", verb)["state"] == "succeeded"
        assert daemon.view("web")["pid"] == pid
        assert daemon.wait("web", "running")["pid"] == pid
        assert '"short_of": "memory"' in daemon.log()
        health = daemon.get("/v1/health")
        assert (health["status"], health["memory"]["limit"]) == ("degraded", MEBIBYTE)
        assert health["memory"]["used"] > MEBIBYTE
        (problem,) = health["problems"]
        assert re.match(
            r"short of memory: \d+ of 1 MiB are in use, \d API clients turned out for that; .*ceiling", problem
        )


@pytest.mark.slow
def test_a_daemon_that_stands_still_no_longer_feeds_its_watchdog(
    root_dir: Path, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system call that does not come back, on the thread of the event loop: its manager hears nothing meanwhile."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    ping = "WATCHDOG=1"
    daemon = Daemon(root_dir)
    daemon.start()
    try:
        assert came_true(lambda: manager.heard(ping, times=3), seconds=DEADLINE)
        with injected(daemon, "epoll_wait,epoll_pwait", "delay_enter=60000000"):
            manager.heard(ping)
            heard = manager.said.count(ping)
            assert not came_true(lambda: manager.heard(ping, times=heard + 2), seconds=2.0)
            with pytest.raises(DaemonUnreachable), daemon.client() as client:
                client.get("/v1/health", timeout=0.5)
        assert came_true(lambda: manager.heard(ping, times=heard + 3), seconds=DEADLINE)
        assert daemon.get("/v1/health")["status"] == "ok"
        os.kill(daemon.pid, signal.SIGSTOP)
        manager.heard(ping)
        heard = manager.said.count(ping)
        assert not came_true(lambda: manager.heard(ping, times=heard + 1), seconds=1.5)
        os.kill(daemon.pid, signal.SIGCONT)
        assert came_true(lambda: manager.heard(ping, times=heard + 1), seconds=DEADLINE)
    finally:
        daemon.close()
