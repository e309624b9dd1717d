"""The order of VMs when daemons die, and when all VMs are stopped.

Decides: what the next daemon goes on with, and what is killed at the end of the time.
Must not: repeat the rules of the order itself (`tests.real.test_dependencies`).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from qsup.errors import DaemonUnreachable, DeniedError, QsupError
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, kill_process, signal_process
from tests.real.injected import killed_at
from tests.real.together import AT_A_WORD, Write, changes, ended, substates, waits_for, writer
from tests.waiting import poll_until

pytestmark = pytest.mark.real


@pytest.fixture
def write(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> Write:
    """Writes units of the daemon."""
    return writer(daemon, emulator, rom_guest)


def test_the_next_daemon_goes_on_waiting(daemon: Daemon, write: Write) -> None:
    """Killed while a start waits: both operations are taken up, and the order is kept."""
    write("db", service=AT_A_WORD)
    write("web", 'requires = ["db"]\nafter = ["db"]')
    operation = daemon.post("/v1/instances/web/start")
    daemon.wait("web", "waiting-deps")
    pid = daemon.wait("db", "waiting-ready")["pid"]
    daemon.restart()
    daemon.wait("db", "waiting-ready")
    daemon.type("db", "go", after="")
    assert daemon.wait("web", "running")["operation"] is None
    assert daemon.view("db")["pid"] == pid
    assert ended(daemon, operation)["result"] == {"changed": True}


def test_the_next_daemon_starts_nothing_before_its_turn(daemon: Daemon, write: Write) -> None:
    """Killed while a start waits for another VM to go down: it waits on, for as long as that takes."""
    write("blue", service='stop-timeout = "60s"')
    write("green", 'conflicts = ["blue"]')
    daemon.do("blue", "start")
    daemon.type("blue", "D")
    operation = daemon.post("/v1/instances/green/start")
    daemon.wait("blue", "stopping-guest")
    daemon.restart()
    daemon.wait("green", "waiting-deps")
    daemon.wait("blue", "stopping-guest")
    waits_for(daemon, operation, "blue (stopping-guest)")
    daemon.do("blue", "kill")
    assert ended(daemon, operation)["result"] == {"changed": True}
    assert substates(daemon) == {"blue": "dead", "green": "running"}


@pytest.mark.root
@pytest.mark.fault
@pytest.mark.parametrize("step", [1, 2])
def test_a_daemon_that_dies_as_it_writes_ahead_leaves_no_half(daemon: Daemon, write: Write, step: int) -> None:
    """Of a start on two VMs: what was accepted is carried out, on both; what was not, on neither."""
    write("db")
    write("web", 'requires = ["db"]\nafter = ["db"]')
    with killed_at(daemon, "fdatasync", step):
        with suppress(DaemonUnreachable), daemon.client() as client:
            client.post("/v1/instances/web/start")
        poll_until(lambda: not daemon.is_alive(), "the daemon dies", seconds=DEADLINE)
    daemon.start()
    begun = {each["target"]: ended(daemon, each)["state"] for each in daemon.get("/v1/operations")["operations"]}
    assert begun in ({}, {"db": "succeeded", "web": "succeeded"})
    assert substates(daemon) == {name: "running" if name in begun else "dead" for name in ("db", "web")}


def test_the_next_daemon_stops_in_order_what_was_to_be_stopped(daemon: Daemon, write: Write) -> None:
    """Killed while a stop waits for another: the second VM is not touched until the first has gone."""
    write("db")
    write("web", 'requires = ["db"]\nafter = ["db"]', service='stop-timeout = "60s"')
    daemon.do("web", "start")
    pid = daemon.view("db")["pid"]
    daemon.type("web", "D")
    operation = daemon.post("/v1/instances/db/stop")
    daemon.wait("web", "stopping-guest")
    waits_for(daemon, operation, "web (stopping-guest)")
    daemon.restart()
    daemon.wait("web", "stopping-guest")
    waits_for(daemon, operation, "web (stopping-guest)")
    view = daemon.view("db")
    assert (view["substate"], view["pid"]) == ("running", pid)
    daemon.do("web", "kill")
    assert ended(daemon, operation)["state"] == "succeeded"
    assert substates(daemon) == {"db": "dead", "web": "dead"}


def chain(write: Write) -> None:
    """Three VMs, each behind the next: shop, web, db; and one by itself."""
    write("db")
    write("web", 'requires = ["db"]\nafter = ["db"]', service='stop-timeout = "60s"\nquit-timeout = "60s"')
    write("shop", 'requires = ["web"]\nafter = ["web"]')
    write("alone")


def test_all_are_stopped_in_reverse_order(daemon: Daemon, write: Write) -> None:
    """Each gracefully, what nothing orders at the same time; one that is down, or waits to be restarted, too."""
    chain(write)
    write("ill", service='restart = "always"\nrestart-delay = "60s"')
    write("late", 'after = ["db"]')
    daemon.do("shop", "start")
    daemon.do("alone", "start")
    daemon.do("ill", "start")
    kill_process(daemon.view("ill")["pid"])
    daemon.wait("ill", "auto-restart")
    with daemon.events() as events:
        told = daemon.ctl("stop", "--all", "-o", "json")
        seen = changes(events, ("db", "dead"), ("alone", "dead"), ("ill", "dead"))
    expected = [(name, substate) for name in ("shop", "web", "db") for substate in ("stopping-guest", "dead")]
    assert [change for change in seen if change in expected] == expected
    assert seen.index(("alone", "stopping-guest")) < seen.index(("shop", "dead"))
    assert set(substates(daemon).values()) == {"dead"}
    (operation,) = json.loads(told.stdout)["operations"]
    assert operation["result"] == {
        "changed": True,
        "stopped": ["alone", "db", "ill", "shop", "web"],
        "killed": [],
        "quarantined": [],
    }
    assert daemon.post("/v1/stop-all?wait=10")["result"] == {
        "changed": False,
        "stopped": [],
        "killed": [],
        "quarantined": [],
    }
    # nor does the next daemon start again what waited for its restart
    daemon.restart()
    assert daemon.view("ill")["substate"] == "dead"


def test_a_guest_that_ignores_the_power_button_is_killed_at_the_end_of_the_time(daemon: Daemon, write: Write) -> None:
    """And named; what waited for it is asked before the time is over, and obeys, as what waits for nobody does."""
    chain(write)
    daemon.do("shop", "start")
    daemon.do("alone", "start")
    daemon.type("web", "D")
    with daemon.events() as events:
        done = daemon.ctl("stop", "--all", "--timeout", "4s", check=False)
        seen = changes(events, ("db", "dead"), ("alone", "dead"))
    assert (done.returncode, done.stderr) == (1, "qsupctl: web: killed: it was not down in time\n")
    # QEMU was told to quit, which it does, and db's guest was asked and did the rest
    assert [substate for name, substate in seen if name == "web"] == ["stopping-guest", "stopping-quit", "dead"]
    assert [substate for name, substate in seen if name == "db"] == ["stopping-guest", "stopping-quit", "dead"]
    operations = daemon.get("/v1/operations")["operations"]
    (told,) = (each for each in operations if each["kind"] == "stop-all")
    stopped = ["alone", "db", "shop"]
    assert told["result"] == {"changed": True, "stopped": stopped, "killed": ["web"], "quarantined": []}
    assert set(substates(daemon).values()) == {"dead"}


def test_a_qemu_that_stands_still_keeps_nobody_from_being_asked(daemon: Daemon, write: Write) -> None:
    """It does not quit either, and is killed while there is time for who waits for it."""
    chain(write)
    daemon.do("shop", "start")
    signal_process(daemon.view("web")["pid"], signal.SIGSTOP)
    with daemon.events() as events:
        done = daemon.ctl("stop", "--all", "--timeout", "6s", check=False)
        seen = changes(events, ("db", "dead"))
    assert (done.returncode, done.stderr) == (1, "qsupctl: web: killed: it was not down in time\n")
    assert [substate for name, substate in seen if name == "db"] == ["stopping-guest", "stopping-quit", "dead"]
    assert ("web", "stopping-kill") in seen
    assert set(substates(daemon).values()) == {"dead"}


def test_the_shorter_of_two_times_counts(daemon: Daemon, write: Write) -> None:
    """Who asks again with less time gets it, and the next daemon keeps it; with more, nothing changes."""
    write("web", service='stop-timeout = "300s"')
    daemon.do("web", "start")
    daemon.type("web", "D")
    operation = daemon.post("/v1/stop-all", {"timeout": 300.0})
    daemon.wait("web", "stopping-guest")
    for seconds in (3.0, 300.0):
        assert daemon.post("/v1/stop-all", {"timeout": seconds})["id"] == operation["id"]
    daemon.restart()
    told = ended(daemon, operation)
    assert (told["state"], told["result"]["killed"]) == ("succeeded", ["web"])


def test_stopping_all_goes_on_without_its_client_and_in_the_next_daemon(daemon: Daemon, write: Write) -> None:
    """Killed in the middle: the order is kept, the time is the same, and the operation's id still answers."""
    chain(write)
    daemon.do("shop", "start")
    pid = daemon.view("db")["pid"]
    daemon.type("web", "D")
    operation = daemon.post("/v1/stop-all", {"timeout": 8.0})
    assert daemon.post("/v1/stop-all", {"timeout": 30.0})["id"] == operation["id"]
    with pytest.raises(DeniedError, match="all VMs are being stopped"):
        daemon.post("/v1/instances/shop/start")
    daemon.wait("web", "stopping-guest")
    waits_for(daemon, operation, "1 of 3 stopped, waiting for db (running), web (")
    daemon.restart()
    daemon.wait("web", "stopping-guest")
    assert daemon.view("db")["pid"] == pid
    told = ended(daemon, operation)
    assert told["result"] == {"changed": True, "stopped": ["db", "shop"], "killed": ["web"], "quarantined": []}
    assert set(substates(daemon).values()) == {"dead"}


def test_all_are_stopped_where_no_daemon_runs(daemon: Daemon, write: Write) -> None:
    """``qsupd --stop-all`` goes on with what a dead daemon began, in order, starts nothing, and serves nobody."""
    write("db")
    write("web", 'requires = ["db"]\nafter = ["db"]', service='stop-timeout = "1s"')
    write("idle", install="autostart = true")
    daemon.do("web", "start")
    daemon.type("web", "D")
    command = [sys.executable, "-m", "qsup.daemon", "--root", str(daemon.root), "--stop-all"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (refused.returncode, f"another qsupd (pid {daemon.pid})" in refused.stderr) == (1, True)
    operation = daemon.post("/v1/stop-all")
    daemon.wait("web", "stopping-guest")
    daemon.signal(signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    seen = [(line["instance"], line["state"]) for line in lines if line["event"] == "state changed"]
    assert [name for name, substate in seen if substate == "dead"] == ["web", "db"]
    assert "idle" not in dict(seen)
    assert not daemon.remains()
    daemon.start()
    told = daemon.get(f"/v1/operations/{operation['id']}")["result"]
    assert told == {"changed": True, "stopped": ["db", "web"], "killed": [], "quarantined": []}


def test_a_restart_of_a_broken_unit_restarts_nobody(daemon: Daemon, write: Write) -> None:
    """Those that require it would have been restarted along; nothing is touched."""
    write("db")
    write("web", 'requires = ["db"]\nafter = ["db"]')
    daemon.do("web", "start")
    pids = [daemon.view(name)["pid"] for name in ("db", "web")]
    daemon.unit("db", "x = 1\n")
    with pytest.raises(QsupError, match="unknown key"):
        daemon.post("/v1/instances/db/restart")
    assert [daemon.view(name)["pid"] for name in ("db", "web")] == pids


def test_a_crash_before_a_stop_had_its_turn_is_no_start(daemon: Daemon, write: Write) -> None:
    """Its policy would start it again; but it was to stop, and stays down."""
    write("db", service='restart = "always"\nrestart-delay = "20ms"')
    write("web", 'after = ["db"]', service='stop-timeout = "60s"')
    for name in ("db", "web"):
        daemon.do(name, "start")
    daemon.type("web", "D")
    key = "a-key-of-its-own"
    operation = daemon.post("/v1/stop-all")
    with daemon.client() as client:
        assert client.post("/v1/stop-all", key=key)["id"] == operation["id"]
    daemon.wait("web", "stopping-guest")
    kill_process(daemon.view("db")["pid"])
    assert daemon.wait("db", "crashed")["restarts"] == 0
    daemon.do("web", "kill")
    assert ended(daemon, operation)["result"]["killed"] == []
    with daemon.client() as client:
        assert client.post("/v1/stop-all", key=key)["id"] == operation["id"]


def test_what_is_quarantined_is_not_said_to_be_stopped(daemon: Daemon, write: Write) -> None:
    """Its QEMU may run on, so it is named."""
    write("db")
    pid = daemon.do("db", "start")["pid"]
    daemon.signal(signal.SIGKILL)
    record = daemon.run / "instances" / "db" / "record.json"
    good = record.read_bytes()
    record.write_bytes(b"{")
    daemon.start()
    done = daemon.ctl("stop", "--all", check=False)
    assert (done.returncode, "db: left as it is: a record of it cannot be read" in done.stderr) == (1, True)
    record.write_bytes(good)
    daemon.post("/v1/reload")
    assert daemon.wait("db", "running")["pid"] == pid
