"""VMs that are named in one command: one transaction, whatever becomes of the daemon.

Decides: that a plain `after` or `before` counts among them, what is refused of them, and that a daemon which dies has
accepted all of it or nothing.
Must not: repeat the rules of the order itself (`tests.real.test_dependencies`).
"""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import DaemonUnreachable, DependencyError
from tests.guests import Emulator
from tests.real.daemons import Daemon
from tests.real.injected import killed_at
from tests.real.together import AT_A_WORD, Write, changes, ended, substates, waits_for, writer
from tests.waiting import poll_until

pytestmark = pytest.mark.real

KEY = "one-key-for-all"


@pytest.fixture
def write(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> Write:
    """Writes units of the daemon."""
    return writer(daemon, emulator, rom_guest)


def ordered(write: Write) -> None:
    """Three VMs that nothing but their order joins: db, then web, then shop; and one by itself.

    What a guest says while no daemon runs is lost, and taken as said once its time to start is over.
    """
    soon = 'start-timeout = "6s"'
    write("db", service=soon)
    write("web", 'after = ["db"]\nbefore = ["shop"]', service=soon)
    write("shop", service=soon)
    write("alone", service=soon)


def ask(daemon: Daemon, verb: str, *names: str) -> dict[str, Any]:
    """Ask for it, always with the same key."""
    with daemon.client() as client:
        begun: dict[str, Any] = client.post(f"/v1/{verb}", {"names": names}, key=KEY)
    return begun


def all_ended(daemon: Daemon, begun: dict[str, Any]) -> list[tuple[str, str]]:
    """The VMs of a request and how its operations ended."""
    return [(each["target"], ended(daemon, each)["state"]) for each in begun["operations"]]


def test_those_of_one_command_start_and_stop_in_their_order(daemon: Daemon, write: Write) -> None:
    """However they are named, by globs, too; what nothing orders starts and stops at the same time."""
    ordered(write)
    names = ["shop", "db", "alone", "web"]
    with daemon.events() as events:
        assert daemon.ctl("start", "sho*", *names).stdout == ""
        seen = changes(events, *((name, "running") for name in names))
        order = [(name, substate) for name in ("db", "web", "shop") for substate in ("spawning", "running")]
        assert [change for change in seen if change in order] == order
        assert seen.index(("alone", "spawning")) < seen.index(("db", "running"))

        told = json.loads(daemon.ctl("stop", *names, "-o", "json").stdout)
        assert [(each["kind"], each["target"], each["state"]) for each in told["operations"]] == [
            ("stop", name, "succeeded") for name in names
        ]
        seen = changes(events, *((name, "dead") for name in names))
        order = [(name, substate) for name in ("shop", "web", "db") for substate in ("stopping-guest", "dead")]
        assert [change for change in seen if change in order] == order
        assert seen.index(("alone", "stopping-guest")) < seen.index(("shop", "dead"))


def test_those_of_one_restart_are_down_before_any_comes_up(daemon: Daemon, write: Write) -> None:
    """In the reverse order down, and in the order up."""
    ordered(write)
    names = ["db", "shop", "web"]
    daemon.ctl("start", *names)
    with daemon.events() as events:
        daemon.ctl("restart", *names)
        seen = changes(events, ("shop", "running"))
    down = [(name, substate) for name in ("shop", "web", "db") for substate in ("stopping-guest", "dead")]
    up = [(name, substate) for name in ("db", "web", "shop") for substate in ("spawning", "running")]
    assert [change for change in seen if change in down + up] == down + up


def test_one_that_cannot_be_started_keeps_no_other_from_it(daemon: Daemon, write: Write) -> None:
    """A name that does not exist and a requirement that is missing are refused, a broken disk fails, the rest runs."""
    disk = '[[disk]]\nid = "root"\npath = "missing.img"\nformat = "raw"\n'
    write("bad", tables=disk)
    write("lame", 'requires = ["none"]')
    write("web", 'after = ["bad", "lame"]')
    done = daemon.ctl("start", "web", "gone", "lame", "bad", "--wait", check=False)
    assert done.returncode == 4
    assert [line.split(": ")[1] for line in done.stderr.splitlines() if line.startswith("qsupctl")] == [
        "gone",
        "lame",
        "bad",
    ]
    assert substates(daemon) == {"bad": "start-failed", "lame": "dead", "web": "running"}


def test_what_excludes_each_other_is_refused_before_anything_is_begun(daemon: Daemon, write: Write) -> None:
    """Two that are down, and one that runs and would be stopped for the other."""
    write("blue")
    write("green", 'conflicts = ["blue"]')
    write("web")
    for _ in range(2):
        done = daemon.ctl("start", "web", "green", "blue", check=False)
        assert (done.returncode, "conflicts with" in done.stderr) == (1, True)
        assert substates(daemon)["web"] == substates(daemon)["green"] == "dead"
        daemon.do("blue", "start")
    assert substates(daemon) == {"blue": "running", "green": "dead", "web": "dead"}


def test_a_start_that_waits_says_for_what_and_goes_on_in_the_next_daemon(daemon: Daemon, write: Write) -> None:
    """Killed while one waits for another of the same request: the order is kept, and the key gets the same answer."""
    write("db", service=AT_A_WORD)
    write("web", 'after = ["db"]')
    begun = ask(daemon, "start", "web", "gone", "db")
    assert [each["target"] for each in begun["operations"]] == ["web", "db"]
    daemon.wait("web", "waiting-deps")
    pid = daemon.wait("db", "waiting-ready")["pid"]
    for _ in range(2):
        waits_for(daemon, begun["operations"][0], "db (waiting-ready)")
        assert daemon.view("web")["waits_for"] == "db (waiting-ready)"
        shown = daemon.ctl("status", "web", check=False).stdout
        assert "  Waits for: db (waiting-ready)\n" in shown
        assert daemon.ctl("list", "--state", "waiting-deps", "--no-legend").stdout.split()[0] == "web"
        daemon.restart()
        daemon.wait("web", "waiting-deps")
        daemon.wait("db", "waiting-ready")
    again = ask(daemon, "start", "web", "gone", "db")
    assert [each["id"] for each in again["operations"]] == [each["id"] for each in begun["operations"]]
    assert again["refused"]["gone"]["code"] == begun["refused"]["gone"]["code"] == "no-such-instance"
    daemon.type("db", "go", after="")
    assert all_ended(daemon, begun) == [("web", "succeeded"), ("db", "succeeded")]
    assert [daemon.view(name)["waits_for"] for name in ("db", "web")] == ["", ""]
    assert daemon.view("db")["pid"] == pid
    assert daemon.view("db")["since"] < daemon.view("web")["since"]


def test_the_next_daemon_stops_and_restarts_them_in_order(daemon: Daemon, write: Write) -> None:
    """Killed while the first of them does not go down: nothing is done to the others until it has."""
    write("db")
    write("web", 'after = ["db"]', service='stop-timeout = "60s"')
    for verb in ("restart", "stop"):
        daemon.ctl("start", "db", "web")
        pid = daemon.view("db")["pid"]
        daemon.type("web", "D")
        with daemon.client() as client:
            begun = client.post(f"/v1/{verb}", {"names": ["db", "web"]})
        daemon.wait("web", "stopping-guest")
        waits_for(daemon, begun["operations"][0], "web (stopping-guest)")
        daemon.restart()
        daemon.wait("web", "stopping-guest")
        waits_for(daemon, begun["operations"][0], "web (stopping-guest)")
        assert (daemon.view("db")["substate"], daemon.view("db")["pid"]) == ("running", pid)
        assert daemon.view("db")["waits_for"] == "web (stopping-guest)"
        with daemon.events() as events:
            daemon.type("web", "O", after="")
            last = "running" if verb == "restart" else "dead"
            seen = changes(events, ("db", "dead"), *(((name, last)) for name in ("db", "web")))
        assert seen.index(("web", "dead")) < seen.index(("db", "stopping-guest"))
        if verb == "restart":
            assert seen.index(("db", "running")) < seen.index(("web", "spawning"))
        assert all_ended(daemon, begun) == [("db", "succeeded"), ("web", "succeeded")]


@pytest.mark.root
@pytest.mark.fault
@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
@pytest.mark.parametrize(
    ("calls", "step"), [("fdatasync", 1), ("fdatasync", 2), ("renameat,renameat2,rename", 1), ("pidfd_open", 1)]
)
def test_a_daemon_that_dies_at_it_has_accepted_all_of_it_or_nothing(
    daemon: Daemon, write: Write, verb: str, calls: str, step: int
) -> None:
    """Asked again with the same key, the next one has done it once, in the order; what it rolled back says so."""
    ordered(write)
    names = ["shop", "alone", "db", "web"]
    if verb != "start":
        daemon.ctl("start", *names)
    known = {each["id"] for each in daemon.get("/v1/operations")["operations"]}
    with killed_at(daemon, calls, step):
        with suppress(DaemonUnreachable):
            ask(daemon, verb, *names)
        with suppress(AssertionError):  # not every one of them comes by each of these calls
            poll_until(lambda: not daemon.is_alive(), "the daemon dies", seconds=2.0)
    if daemon.is_alive():
        daemon.signal(signal.SIGKILL)
    daemon.start()
    accepted = {each["id"] for each in daemon.get("/v1/operations")["operations"]} - known
    assert len(accepted) in (0, len(names))
    begun = ask(daemon, verb, *names)
    if accepted:
        assert {each["id"] for each in begun["operations"]} == accepted
    assert [each["target"] for each in begun["operations"]] == names
    failed = [each for each in (ended(daemon, each) for each in begun["operations"]) if each["state"] != "succeeded"]
    if failed:
        # a launch under way is undone by the next daemon, as always; the others are not kept by that
        assert {each["error"]["detail"] for each in failed} == {"the daemon ended while it was starting it"}
        assert (calls, step) in (("pidfd_open", 1), ("fdatasync", 2)), "nothing is launched before all is accepted"
        assert all(substates(daemon)[name] == "running" for name in set(names) - {each["target"] for each in failed})
        return
    assert set(substates(daemon).values()) == {"dead" if verb == "stop" else "running"}
    since = {name: daemon.view(name)["since"] for name in names}
    order = ["db", "web", "shop"] if verb != "stop" else ["shop", "web", "db"]
    assert sorted(order, key=lambda name: str(since[name])) == order


def test_vms_that_exclude_each_other_are_told_apart_by_the_api(daemon: Daemon, write: Write) -> None:
    """A problem for the whole request, with no VM of its own."""
    write("blue", 'conflicts = ["green"]')
    write("green")
    with pytest.raises(DependencyError, match="conflicts with") as refused:
        ask(daemon, "start", "blue", "green")
    assert refused.value.instance == ""
    assert daemon.get("/v1/operations")["operations"] == []
