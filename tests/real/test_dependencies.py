"""VMs that have to do with each other: order, requirements, conflicts.

Decides: what is started, stopped and refused with real QEMUs, as units say it.
Must not: repeat what follows from the relations alone (`tests.unit.test_graph`), or end a daemon
(`tests.real.test_orderly`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from qsup.errors import DependencyError, QsupError
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, rom_unit
from tests.real.together import AT_A_WORD, Write, changes, ended, newest, substates, waits_for, writer
from tests.waiting import poll_until

pytestmark = pytest.mark.real


@pytest.fixture
def write(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> Write:
    """Writes units of the daemon."""
    return writer(daemon, emulator, rom_guest)


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
        waiting = dict.fromkeys("abde", "waiting-deps") | {"f": "dead"}
        assert substates(daemon) == {**waiting, first: "waiting-ready", "c": "start-failed"}
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
        assert substates(daemon) == dict.fromkeys("abdef", "running") | {"c": "start-failed"}
        # what cannot be started says so, to whoever looks at it or at the whole, and also under the next daemon
        cause = daemon.view("c")["cause"]
        assert (cause["kind"], "it requires gone" in cause["detail"]) == ("dependency", True)
        (problem,) = daemon.get("/v1/health")["problems"]
        assert problem == f"c: it was to start by itself: {cause['detail']}"
        daemon.restart()
        assert (daemon.view("c")["substate"], daemon.view("c")["cause"]) == ("start-failed", cause)
    finally:
        daemon.close()
