"""VMs that have to do with each other: order, requirements, conflicts, and daemons that die while one waits.

Decides: what is started, stopped and refused with real QEMUs, as units say it.
Must not: repeat what follows from the relations alone (`tests.unit.test_graph`).

A VM that is to be ready at a test's word has `ready` wait for a text that the test types: its guest echoes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import DaemonUnreachable, DependencyError, QsupError
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, Events, kill_process, rom_unit
from tests.real.injected import killed_at
from tests.waiting import poll_until

pytestmark = pytest.mark.real

AT_A_WORD = 'ready = {serial = "go"}'
UP = 'ready = {serial = "ready"}'

Write = Callable[..., None]


@pytest.fixture
def write(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> Write:
    """Write a unit: its ``[unit]`` section, and further sections."""

    def write(name: str, unit: str = "", *, service: str = "", **sections: str) -> None:
        # until it has said so, a guest is deaf to the power button
        ready = service if "ready" in service else f"{service}\n{UP}"
        daemon.unit(name, rom_unit(emulator, rom_guest, unit=unit, service=ready, **sections))

    return write


def substates(daemon: Daemon) -> dict[str, str]:
    """Where each VM is."""
    return {view["name"]: view["substate"] for view in daemon.get("/v1/instances")["instances"]}


def newest(daemon: Daemon, name: str) -> dict[str, Any]:
    """The newest operation on a VM."""
    operations = daemon.get("/v1/operations")["operations"]
    found: dict[str, Any] = next(operation for operation in operations if operation["target"] == name)
    return found


def ended(daemon: Daemon, operation: dict[str, Any]) -> dict[str, Any]:
    """An operation once it has ended."""
    found: dict[str, Any] = daemon.get(f"/v1/operations/{operation['id']}/wait?timeout={DEADLINE:g}")
    assert found["state"] != "running", found
    return found


def waits_for(daemon: Daemon, operation: dict[str, Any], words: str) -> None:
    """Wait until an operation says that it waits for this."""

    def says() -> bool:
        return words in str(daemon.get(f"/v1/operations/{operation['id']}")["progress"])

    poll_until(says, f"the operation waits for {words}", seconds=DEADLINE)


def changes(events: Events, *wanted: tuple[str, str]) -> list[tuple[str, str]]:
    """VMs and their substates, as they come, until all that are wanted have come."""
    seen: list[tuple[str, str]] = []
    while not set(wanted) <= set(seen):
        event = events.next("instance-state")
        seen.append((event["instance"], event["data"]["substate"]))
    return seen


def test_a_start_brings_along_what_is_required_and_waits_until_it_is_ready(daemon: Daemon, write: Write) -> None:
    """`after` waits for readiness, not for a process; the operation says for what; another VM is not delayed."""
    write("storage")
    write("db", 'requires = ["storage"]\nafter = ["storage"]', service=AT_A_WORD)
    write("web", 'requires = ["db"]\nwants = ["cache", "gone"]\nafter = ["db", "gone"]')
    write("cache")
    write("alone")
    operation = daemon.post("/v1/instances/web/start")
    daemon.wait("db", "waiting-ready")
    daemon.wait("cache", "running")
    waits_for(daemon, operation, "db (waiting-ready)")
    view = daemon.view("web")
    assert (view["state"], view["substate"], view["operation"]) == ("activating", "waiting-deps", operation["id"])
    assert daemon.do("alone", "start")["substate"] == "running"
    assert newest(daemon, "db")["state"] == "running"
    daemon.type("db", "go")
    assert ended(daemon, operation)["result"] == {"changed": True}
    assert set(substates(daemon).values()) == {"running"}
    assert daemon.ctl("list-dependencies", "web").stdout.splitlines() == [
        "web  active (running)",
        "├─cache  active (running)",
        "├─db  active (running)",
        "│ └─storage  active (running)",
        "└─gone  not found",
    ]
    began = {name: daemon.view(name)["since"] for name in ("storage", "db", "web")}
    assert sorted(began, key=lambda name: str(began[name])) == ["storage", "db", "web"]
    assert {newest(daemon, name)["state"] for name in began} == {"succeeded"}


def test_a_required_vm_that_cannot_be_started_fails_those_that_require_it(daemon: Daemon, write: Write) -> None:
    """Each with its own operation, which names the VM and why; a wanted one's failure is ignored."""
    disk = '[[disk]]\nid = "root"\npath = "missing.img"\nformat = "raw"\n'
    write("db", tables=disk)
    write("web", 'requires = ["db"]\nafter = ["db"]', service='restart = "always"\nrestart-delay = "10ms"')
    write("shop", 'requires = ["web"]\nafter = ["web"]')
    write("log", 'wants = ["db"]\nafter = ["db"]')
    operation = daemon.power("shop", "start")
    assert (operation["state"], operation["error"]["code"]) == ("failed", "start-failed")
    assert "it requires web, which is failed (start-failed): it requires db" in operation["error"]["detail"]
    assert "missing.img" in newest(daemon, "web")["error"]["detail"]
    for name in ("web", "shop"):
        view = daemon.view(name)
        assert (view["substate"], view["cause"]["kind"], view["restarts"]) == ("start-failed", "dependency", 0)
    assert daemon.view("db")["cause"]["kind"] == "start-failed"
    assert daemon.do("log", "start")["substate"] == "running"
    # and it is so for the next daemon, too
    daemon.restart()
    assert daemon.view("shop")["cause"]["kind"] == "dependency"
    assert daemon.view("log")["substate"] == "running"


def test_what_is_required_and_missing_or_in_a_cycle_is_refused_in_words(daemon: Daemon, write: Write) -> None:
    """Nothing is begun; health names the cycle."""
    write("web", 'requires = ["gone"]')
    write("a", 'requires = ["b"]\nafter = ["b"]')
    write("b", 'after = ["a"]')
    for name, words in (("web", "it requires gone: no unit 'gone'"), ("a", "a -> b -> a")):
        with pytest.raises(QsupError, match=words) as caught:
            daemon.post(f"/v1/instances/{name}/start")
        assert (caught.value.code, caught.value.instance) == (DependencyError.code, name)
    assert daemon.get("/v1/operations")["operations"] == []
    health = daemon.get("/v1/health")
    assert health["status"] == "degraded"
    assert "there is a cycle in the order: a -> b -> a" in health["problems"][0]
    # what is started without the other is not concerned, and both can be stopped
    assert daemon.do("b", "start")["substate"] == "running"
    assert daemon.do("b", "stop")["substate"] == "dead"


def test_instances_of_templates_are_found(daemon: Daemon, write: Write) -> None:
    """`web@a` requires `db@a`, neither of which has a file of its own."""
    write("web@", 'requires = ["db@%i"]\nafter = ["db@%i"]')
    write("db@", service=AT_A_WORD)
    write("top", 'wants = ["web@b"]')
    tree = ["top  inactive (dead)", "└─web@b  inactive (dead)", "  └─db@b  inactive (dead)"]
    assert daemon.ctl("list-dependencies").stdout.splitlines() == tree
    daemon.post("/v1/instances/web@a/start")
    daemon.wait("db@a", "waiting-ready")
    daemon.wait("web@a", "waiting-deps")
    daemon.type("db@a", "go")
    daemon.wait("web@a", "running")


def test_a_start_stops_what_it_conflicts_with(daemon: Daemon, write: Write) -> None:
    """Gracefully, whichever of the two says so, with whoever requires the other; the start waits for that."""
    write("blue")
    write("green", 'conflicts = ["blue"]')
    write("user", 'requires = ["blue"]\nafter = ["blue"]')
    daemon.do("user", "start")
    with daemon.events() as events:
        assert daemon.do("green", "start")["substate"] == "running"
        seen = changes(events, ("green", "running"))
    order = [("user", "dead"), ("blue", "stopping-guest"), ("blue", "dead"), ("green", "spawning")]
    assert [change for change in seen if change in order] == order
    assert ("green", "waiting-deps") in seen
    daemon.do("blue", "start")
    assert substates(daemon) == {"blue": "running", "green": "dead", "user": "dead"}
    assert daemon.view("green")["cause"]["kind"] == "operator"


def test_a_stop_stops_first_what_requires_the_vm(daemon: Daemon, write: Write) -> None:
    """In the reverse order, gracefully; who only wants it goes on. A crash and a kill concern nobody else."""
    write("db")
    write("web", 'requires = ["db"]\nafter = ["db"]')
    write("shop", 'requires = ["web"]\nafter = ["web"]')
    write("log", 'wants = ["db"]')
    daemon.do("shop", "start")
    daemon.do("log", "start")
    with daemon.events() as events:
        daemon.do("db", "stop")
        seen = changes(events, ("db", "dead"))
    expected = [(name, substate) for name in ("shop", "web", "db") for substate in ("stopping-guest", "dead")]
    assert [change for change in seen if change in expected] == expected
    assert substates(daemon) == {"db": "dead", "log": "running", "shop": "dead", "web": "dead"}
    daemon.do("web", "start")
    daemon.do("db", "kill")
    assert daemon.view("web")["substate"] == "running"


def test_a_restart_restarts_what_requires_the_vm(daemon: Daemon, write: Write) -> None:
    """Those are down before it goes down, and start when it is ready again."""
    write("db")
    write("web", 'requires = ["db"]\nafter = ["db"]')
    write("down", 'requires = ["db"]')
    pids = {name: daemon.do(name, "start")["pid"] for name in ("web", "db")}
    with daemon.events() as events:
        daemon.do("db", "restart")
        seen = changes(events, ("web", "running"))
    order = [("web", "dead"), ("db", "stopping-guest"), ("db", "dead"), ("db", "running"), ("web", "running")]
    assert [change for change in seen if change in order] == order
    assert substates(daemon)["down"] == "dead"
    assert all(daemon.view(name)["pid"] != pid for name, pid in pids.items())
    assert ended(daemon, newest(daemon, "web"))["state"] == "succeeded"


def test_a_start_that_waits_is_given_up_by_a_stop(daemon: Daemon, write: Write) -> None:
    """At once, and the VM it waited for goes on; a stop of that one gives both up."""
    write("db", service=AT_A_WORD)
    write("web", 'requires = ["db"]\nafter = ["db"]')
    operation = daemon.post("/v1/instances/web/start")
    daemon.wait("web", "waiting-deps")
    assert daemon.do("web", "stop")["cause"]["kind"] == "operator"
    assert "overtaken by stop" in ended(daemon, operation)["error"]["detail"]
    daemon.wait("db", "waiting-ready")
    operation = daemon.post("/v1/instances/web/start")
    daemon.wait("web", "waiting-deps")
    daemon.do("db", "kill")
    failed = ended(daemon, operation)
    assert "it requires db, which is inactive (dead)" in failed["error"]["detail"]
    operation = daemon.post("/v1/instances/web/start")
    daemon.wait("web", "waiting-deps")
    daemon.do("db", "stop")
    assert "overtaken by stop" in ended(daemon, operation)["error"]["detail"]
    assert substates(daemon) == {"db": "dead", "web": "dead"}


def test_so_many_start_at_a_time_and_those_that_start_by_themselves_keep_the_order(
    root_dir: Path, emulator: Emulator, rom_guest: Path
) -> None:
    """`autostart` with `start-concurrency = 1`: one after another, in order, and a VM asked for by itself at once."""
    (root_dir / "qsupd.toml").write_text("start-concurrency = 1\n")
    daemon = Daemon(root_dir)
    auto = "autostart = true"
    units = {
        "a": {"unit": 'after = ["b"]', "install": auto, "service": AT_A_WORD},
        "b": {"install": auto, "service": AT_A_WORD},
        "c": {"unit": 'requires = ["gone"]', "install": auto},
        "d": {"unit": 'wants = ["e"]', "install": auto, "service": AT_A_WORD},
        "e": {"unit": 'after = ["d"]'},
        "f": {},
    }
    for name, sections in units.items():
        (daemon.units / f"{name}.toml").write_text(rom_unit(emulator, rom_guest, **sections))
    daemon.start()
    try:

        def starting() -> list[str]:
            return [name for name, substate in substates(daemon).items() if substate == "waiting-ready"]

        poll_until(starting, "one has started", seconds=DEADLINE)
        first, then = "bd" if starting() == ["b"] else "db"
        waiting = dict.fromkeys("abde", "waiting-deps") | dict.fromkeys("cf", "dead")
        assert substates(daemon) == {**waiting, first: "waiting-ready"}
        waits_for(daemon, newest(daemon, then), "its turn, 1 at a time")
        waits_for(daemon, newest(daemon, "a"), "waiting for b (")
        waits_for(daemon, newest(daemon, "e"), "waiting for d (")
        assert daemon.do("f", "start")["substate"] == "running"
        for _ in "abd":
            poll_until(starting, "the next one has started", seconds=DEADLINE)
            (name,) = starting()
            daemon.type(name, "go")
            daemon.wait(name, "running")
        daemon.wait("e", "running")
        assert substates(daemon) == dict.fromkeys("abdef", "running") | {"c": "dead"}
        assert "it requires gone" in daemon.log()
    finally:
        daemon.close()


def test_the_next_daemon_goes_on_waiting(daemon: Daemon, write: Write) -> None:
    """Killed while a start waits: both operations are taken up, and the order is kept."""
    write("db", service=AT_A_WORD)
    write("web", 'requires = ["db"]\nafter = ["db"]')
    operation = daemon.post("/v1/instances/web/start")
    daemon.wait("web", "waiting-deps")
    pid = daemon.wait("db", "waiting-ready")["pid"]
    daemon.restart()
    # an adopter takes a text that may have gone by for seen
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
    """Of a start on two VMs: what was accepted is carried out, on both; what was not, on neither or the first."""
    write("db")
    write("web", 'requires = ["db"]\nafter = ["db"]')
    with killed_at(daemon, "fdatasync", step):
        with suppress(DaemonUnreachable), daemon.client() as client:
            client.post("/v1/instances/web/start")
        poll_until(lambda: not daemon.is_alive(), "the daemon dies", seconds=DEADLINE)
    daemon.start()
    begun = {each["target"]: ended(daemon, each)["state"] for each in daemon.get("/v1/operations")["operations"]}
    assert begun in ({}, {"db": "succeeded"}, {"db": "succeeded", "web": "succeeded"})
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
    assert operation["result"] == {"changed": True, "stopped": ["alone", "db", "ill", "shop", "web"], "killed": []}
    assert daemon.post("/v1/stop-all?wait=10")["result"] == {"changed": False, "stopped": [], "killed": []}
    # nor does the next daemon start again what waited for its restart
    daemon.restart()
    assert daemon.view("ill")["substate"] == "dead"


def test_a_guest_that_ignores_the_power_button_is_killed_at_the_end_of_the_time(daemon: Daemon, write: Write) -> None:
    """And named; what waited for it is killed with it, what did not was stopped gracefully."""
    chain(write)
    daemon.do("shop", "start")
    daemon.do("alone", "start")
    daemon.type("web", "D")
    done = daemon.ctl("stop", "--all", "--timeout", "2s")
    late = [f"qsupctl: {name}: killed: it was not down in time" for name in ("db", "web")]
    assert done.stderr.splitlines() == late
    operations = daemon.get("/v1/operations")["operations"]
    (told,) = (each for each in operations if each["kind"] == "stop-all")
    assert told["result"] == {"changed": True, "stopped": ["alone", "shop"], "killed": ["db", "web"]}
    assert set(substates(daemon).values()) == {"dead"}


def test_stopping_all_goes_on_without_its_client_and_in_the_next_daemon(daemon: Daemon, write: Write) -> None:
    """Killed in the middle: the order is kept, the time is the same, and the operation's id still answers."""
    chain(write)
    daemon.do("shop", "start")
    pid = daemon.view("db")["pid"]
    daemon.type("web", "D")
    operation = daemon.post("/v1/stop-all", {"timeout": 8.0})
    assert daemon.post("/v1/stop-all", {"timeout": 30.0})["id"] == operation["id"]
    daemon.wait("web", "stopping-guest")
    waits_for(daemon, operation, "1 of 3 stopped, waiting for db (running), web (stopping-guest)")
    daemon.restart()
    daemon.wait("web", "stopping-guest")
    assert daemon.view("db")["pid"] == pid
    told = ended(daemon, operation)
    assert told["result"] == {"changed": True, "stopped": [], "killed": ["db", "web"]}
    assert set(substates(daemon).values()) == {"dead"}
