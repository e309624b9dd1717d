"""The verbs that show: against the real API over a supervisor in memory, with golden outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve

from qsup.api.protocol import EVENT_TYPES
from qsup.errors import Diagnostic
from qsup.host.limits import Effective
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.state import State
from qsup.plan.topology import HugePages, Node
from qsup.unit.compare import Change
from qsup.unit.keys import Applies
from tests.api.calling import Daemon
from tests.api.fake import PNG_MAGIC, FakeBackend, make_unit, make_view
from tests.ctl.golden_text import check_golden
from tests.ctl.running import Ctl
from tests.ctl.test_render import EVIL

pytestmark = pytest.mark.usefixtures("frozen_clock")


def populate(backend: FakeBackend) -> None:
    """A VM in every kind of state, one of them with a hostile description."""
    killed = Cause(kind=CauseKind.SIGNAL, signal="KILL")
    missing = Cause(kind=CauseKind.START_FAILED, detail="could not open disk image /srv/a.raw: Permission denied")
    busy = Cause(kind=CauseKind.MAIN_LOOP_SILENT, detail="no answer within 3 s, but it answers out of band")
    views = [
        make_view("crash", state=State.CRASHED, cause=killed, pid=None, uid=None, disks=(), nics=(), restarts=0),
        make_view(
            "evil", description=EVIL, warnings=(EVIL,), unit_stale=True, needs_restart=True, machine=f"q35{EVIL}"
        ),
        make_view("off", state=State.DEAD, cause=Cause(kind=CauseKind.GUEST_SHUTDOWN), pid=None, description=""),
        make_view("paused", state=State.PAUSED, memory_actual=256 << 20, console_watchers=2, console_has_writer=True),
        make_view("start", state=State.SPAWNING, operation="0" * 32, agent_connected=False, autostart=False),
        make_view("slow", state=State.UNRESPONSIVE, cause=busy),
        make_view("wrong", state=State.START_FAILED, cause=missing, pid=None, console="none", display="none"),
    ]
    backend.views |= {view.name: view for view in views}


async def test_list(served: Daemon, ctl: Ctl) -> None:
    """Every VM has one line: state, cause where it is down, size, age, description made harmless."""
    populate(served.backend)
    check_golden("list", await ctl.ok("list"))
    check_golden("list", await ctl.ok())


async def test_list_selects(served: Daemon, ctl: Ctl) -> None:
    """Names, globs and states narrow the list; finding none is no failure."""
    populate(served.backend)
    names = (await ctl.ok("list", "w*", "db", "--no-legend")).split("\n")
    assert [line.split()[0] for line in names if line] == ["db", "web", "wrong"]
    assert (await ctl.ok("list", "--state", "failed", "--no-legend")).count("\n") == 2
    assert (await ctl.ok("list", "--state=paused", "--no-legend")).startswith("paused")
    assert await ctl.ok("list", "nothing*") == ""


async def test_a_state_that_there_is_not_is_refused(served: Daemon, ctl: Ctl) -> None:
    """With those that there are and a suggestion; nothing is asked."""
    result = await ctl("list", "--state", "runing")
    assert (result.code, result.out) == (2, "")
    assert "'runing' is none of active, activating" in result.err
    assert "start-limit-hit, quarantined; did you mean running?\n" in result.err
    result = await ctl("events", "--type", "instance-sate,operation")
    assert (result.code, result.out) == (2, "")
    assert f"'instance-sate' is none of {', '.join(EVENT_TYPES)}; did you mean instance-state?\n" in result.err
    assert served.served.requests == []


async def test_list_for_programs(served: Daemon, ctl: Ctl) -> None:
    """JSON is the API's own document; JSON lines hold one VM each; the option may stand on either side of the verb."""
    document = json.loads(await ctl.ok("list", "-o", "json"))
    assert [instance["name"] for instance in document["instances"]] == ["db", "web"]
    lines = (await ctl.ok("-o", "jsonl", "list")).splitlines()
    assert [json.loads(line) for line in lines] == document["instances"]


@pytest.mark.parametrize(
    ("name", "code"),
    [("web", 0), ("paused", 0), ("crash", 3), ("off", 3), ("start", 3), ("wrong", 3), ("evil", 0), ("slow", 0)],
)
async def test_status(served: Daemon, ctl: Ctl, name: str, code: int) -> None:
    """Status shows all that is known of a VM, and its exit code says whether it is active."""
    populate(served.backend)
    result = await ctl("status", name, "-n", "2")
    assert (result.code, result.err) == (code, "")
    check_golden(f"status-{name}", result.out)


async def test_status_says_what_a_vm_waits_for(served: Daemon, ctl: Ctl) -> None:
    """Above its operation, and escaped as all that is shown; nothing where it waits for nothing."""
    changes = {"pid": None, "operation": "0" * 32, "waits_for": "db (waiting-ready), \x1b[2J (dead) and 3 more"}
    served.backend.set_state("db", State.WAITING_DEPS, **changes)
    shown = (await ctl("status", "db")).out
    assert "  Waits for: db (waiting-ready), \N{REPLACEMENT CHARACTER}[2J (dead) and 3 more\n" in shown
    assert "Waits for" not in (await ctl("status", "web")).out


async def test_status_says_what_a_vm_may_take_of_the_host(served: Daemon, ctl: Ctl) -> None:
    """What the kernel keeps, and nothing of a VM that may take all."""
    held = Effective(
        cpu=1500,
        vcpu_cpu=1000,
        emulator_cpu=200,
        cpu_weight=200,
        memory=2 << 30,
        memory_high=1 << 30,
        pids=300,
        oom_score_adjust=300,
        nofile=64,
    )
    served.backend.set_state("web", State.RUNNING, limited=held)
    words = "CPU 150%, vCPUs' CPU 100%, emulator's CPU 20%, CPU weight 200, memory 2G, slowed down from 1G, 300 threads"
    words += ", OOM score +300, 64 open files"
    assert f" Limits: {words}\n" in (await ctl("status", "web")).out
    served.backend.set_state("web", State.RUNNING, limited=Effective(cpu_weight=100))
    assert "Limits" not in (await ctl("status", "web")).out


async def test_status_says_what_a_guest_still_works_on(served: Daemon, ctl: Ctl) -> None:
    """It holds nobody, so nothing else would tell; who waits for it no longer hears how it is ended."""
    served.backend.held.add("web")
    await ctl.ok("set", "web", "memory=1G", "--no-block")
    (operation,) = served.backend.operations()
    served.backend.last(operation.id, "gave back nothing of 1G")
    words = f"  Under way: set memory.size: gave back nothing of 1G (operation {operation.id})\n"
    assert words in (await ctl("status", "web")).out
    assert "Under way" not in (await ctl("status", "db")).out
    served.backend.held.remove("web")
    assert "Under way" not in (await ctl("status", "db")).out


async def test_status_of_several(served: Daemon, ctl: Ctl) -> None:
    """One that does not exist is told apart and decides the exit code; the others are shown."""
    result = await ctl("status", "web", "nope", "d*", "-n0")
    assert result.code == 4
    assert result.err == "qsupctl: nope: there is no instance 'nope'\n"
    assert [line for line in result.out.splitlines() if line.startswith("●")] == [
        "● web - a web server",
        "● db - a web server",
    ]
    found = json.loads((await ctl("status", "web", "db", "-o", "json")).out)
    assert [instance["name"] for instance in found["instances"]] == ["web", "db"]


async def test_status_says_where_the_memory_is(served: Daemon, ctl: Ctl) -> None:
    """In which pages, and on which nodes."""
    views = [
        make_view("one", memory_page=1 << 30, memory_nodes=(1,)),
        make_view("two", memory_nodes=(0, 2), memory_max=512 << 20),
    ]
    served.backend.views |= {view.name: view for view in views}
    assert "Memory: 512M (at most 1G, in huge pages of 1G, on node 1)\n" in await ctl.ok("status", "one")
    assert "Memory: 512M (on nodes 0, 2)\n" in await ctl.ok("status", "two")


async def test_status_without_a_name_shows_the_daemon(served: Daemon, ctl: Ctl) -> None:
    """The daemon's own state, as ``health`` shows it; a problem makes the command fail."""
    out = await ctl.ok("status")
    assert out == await ctl.ok("health")
    assert "State: ok" in out
    assert "2 active" in out
    assert "Descriptors: 23 of 1024\n" in out
    assert "Memory: 31M\n" in out
    served.backend.problems.append("the state directory is full")
    result = await ctl("health")
    assert (result.code, "Problem: the state directory is full" in result.out) == (1, True)


async def test_a_glob_that_matches_nothing_is_an_error(ctl: Ctl) -> None:
    """A glob that no VM matches is told as no such VM."""
    result = await ctl("status", "x*")
    assert (result.code, result.err) == (
        4,
        "qsupctl: no VM matches 'x*'\n  hint: qsupctl list shows the names\n",
    )


async def test_show_and_cat(served: Daemon, ctl: Ctl) -> None:
    """``show`` prints every effective key on its line, ``cat`` the files as they are but for what steers a terminal."""
    values = {
        "unit": {"description": "web"},
        "service": {"restart": "no", "stop-methods": ["acpi", "quit"]},
        "cpu": {"vcpus": 2},
        "disk": [{"id": "root", "path": "a b.qcow2", "read-only": False}, {"id": "data", "path": EVIL}],
        "nic": [],
    }
    text = '[unit]\ndescription = "\033[31mred"\n'
    served.backend.units_by_name["web"] = make_unit("web", text, values=values)
    check_golden("show", await ctl.ok("show", "web"))
    check_golden("cat", await ctl.ok("cat", "web", "db"))


async def test_show_selects_keys(served: Daemon, ctl: Ctl) -> None:
    """A key names itself and all below it; an unknown one is an error."""
    values = {"cpu": {"vcpus": 2, "model": "host"}, "unit": {"description": "x"}}
    served.backend.units_by_name["web"] = make_unit("web", values=values)
    assert await ctl.ok("show", "web", "-p", "cpu.vcpus,unit") == "cpu.vcpus=2\nunit.description=x\n"
    assert await ctl.ok("show", "web", "-p", "cpu", "--value") == "2\nhost\n"
    result = await ctl("show", "web", "-p", "cpus")
    assert (result.code, result.out) == (2, "")
    assert "a unit has no key 'cpus'" in result.err


async def test_cpus(served: Daemon, ctl: Ctl) -> None:
    """Each thread, where it is to run and does, what it has had; and what was put back."""
    shown = (await ctl.ok("cpus", "web")).splitlines()
    assert [line.split() for line in shown[:4]] == [
        ["THREAD", "NAME", "VCPU", "IOTHREAD", "PIN", "ALLOWED", "ON", "SECONDS", "WAITED", "MIGRATED", "MOVED"],
        ["41", "qemu-system-x86", "0-3", "0", "0.50", "0.25", "7"],
        ["42", "CPU", "0/KVM", "0", "2", "2", "2", "12.00", "3,", "on", "1"],
        ["43", "IO", "iothread-fas", "fast", "2", "2", "2", "1.00", "0.00", "0"],
    ]
    assert shown[4] == "Threads that were moved by somebody, and put back: 3"
    assert [line.split() for line in shown[5:]] == [
        [],
        ["NODE", "MEMORY", "HUGE", "SHARED"],
        ["0", "32M", "8M", "1M"],
        ["2", "7M"],
    ]
    assert json.loads(await ctl.ok("cpus", "web", "-o", "json"))["threads"][1]["pin"] == "2"
    assert await ctl.ok("cpus", "web", "--explain") == "It wants 1 vCPU.\nNode 0 has it.\n"


async def test_cmdline(served: Daemon, ctl: Ctl) -> None:
    """The command line is quoted for a shell, an option and its value on one line."""
    assert await ctl.ok("cmdline", "web") == "/usr/bin/qemu-system-x86_64 \\\n  -nodefaults\n"
    assert await ctl.ok("cmdline", "web", "--one-line") == "/usr/bin/qemu-system-x86_64 -nodefaults\n"
    assert json.loads(await ctl.ok("cmdline", "web", "-o", "json"))["argv"][1] == "-nodefaults"


async def test_logs(served: Daemon, ctl: Ctl) -> None:
    """The last lines, oldest first, harmless; as JSON lines too."""
    served.backend.log_lines.append(f"qemu: {EVIL}")
    out = await ctl.ok("logs", "web", "-n", "2")
    assert out.startswith("line 5\nqemu: ")
    assert "\033" not in out
    assert json.loads(await ctl.ok("logs", "web", "-n1", "-o", "jsonl")) == {"line": f"qemu: {EVIL}"}


async def test_screenshot(ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture goes into a file named after the VM, or where it is told to."""
    monkeypatch.chdir(tmp_path)
    assert await ctl.ok("screenshot", "web") == "web.png\n"
    assert (tmp_path / "web.png").read_bytes() == PNG_MAGIC
    assert json.loads(await ctl.ok("screenshot", "web", "-o", "json")) == {"file": "web.png"}
    result = await ctl("screenshot", "web", "-f", "no/such/place.png")
    assert (result.code, result.err) == (1, "qsupctl: could not write no/such/place.png: No such file or directory\n")


async def test_whoami_and_version(ctl: Ctl) -> None:
    """The caller's role, and both sides' versions."""
    assert "Role: admin" in await ctl.ok("whoami")
    assert json.loads(await ctl.ok("whoami", "-o", "json"))["role"] == "admin"
    assert "qsupd   0.0.1" in await ctl.ok("version")
    assert await ctl.ok("--version") == await ctl.ok("version")


async def test_reload(served: Daemon, ctl: Ctl) -> None:
    """What changed is printed; broken unit files are told as a compiler would and make the command fail."""
    assert await ctl.ok("reload") == "added: new\nremoved: old\n"
    served.backend.changes["web"] = CHANGES[:1]
    assert await ctl.ok("reload") == f"added: new\nremoved: old\n{COUNTS}"
    assert json.loads(await ctl.ok("reload", "-o", "json"))["running"][0]["changes"][0]["needs"] == "at once"
    served.backend.changes.clear()
    served.backend.diagnostics = (Diagnostic("/etc/qsup/units/x.toml", 3, "cpu.vcpu", "unknown key"),)
    result = await ctl("reload")
    assert (result.code, result.err) == (1, "qsupctl: /etc/qsup/units/x.toml:3: cpu.vcpu: unknown key\n")


CHANGES = (
    Change(key="unit.description", old="", new="a web\x1b server", needs=Applies.SUPERVISOR),
    Change(key="cpu.vcpus", old=1, new=2, needs=Applies.RESTART),
    Change(
        key="disk.data", old=None, new={"id": "data", "path": "data.img", "read-only": False}, needs=Applies.RESTART
    ),
)
COUNTS = (
    "web was started with another unit; what differs counts without a restart\n"
    "KEY               RUNNING  UNIT                  NEEDS\n"
    'unit.description  ""       "a web\\u001b server"  at once\n'
)


async def test_diff(served: Daemon, ctl: Ctl) -> None:
    """A line for each key, and diff(1)'s exit code; what does not run has nothing to be compared with."""
    assert await ctl.ok("diff", "web") == "web runs as its unit says\n"
    served.backend.changes["web"] = CHANGES
    result = await ctl("diff", "web")
    check_golden("diff", result.out)
    assert (result.code, result.err) == (1, "")
    served.backend.changes["web"] = CHANGES[:1]
    assert (await ctl("diff", "web")).out == COUNTS
    served.backend.set_state("db", State.DEAD, pid=None)
    assert "nothing to compare" in await ctl.ok("diff", "db")
    both = await ctl("diff", "--all", "-o", "json")
    assert [diff["running"] for diff in json.loads(both.out)["diffs"]] == [False, True]
    assert json.loads((await ctl("diff", "web", "-o", "jsonl")).out)["changes"][0]["needs"] == "at once"
    assert (await ctl("diff", "nope")).code == 4


async def test_enable_and_disable(served: Daemon, ctl: Ctl) -> None:
    """The flag is set; ``--now`` also starts or stops, and waits."""
    await ctl.ok("enable", "web", "db")
    assert all(unit.autostart for unit in served.backend.units_by_name.values())
    await ctl.ok("disable", "web", "--now")
    assert not served.backend.units_by_name["web"].autostart
    assert served.backend.views["web"].state is State.DEAD


async def test_operations(served: Daemon, ctl: Ctl) -> None:
    """Operations are listed newest first; who would cancel one is told what to do instead."""
    served.backend.held.add("web")
    await ctl.ok("stop", "web", "--no-block")
    await ctl.ok("pause", "db")
    lines = (await ctl.ok("operations")).splitlines()
    assert [line.split()[1:4] for line in lines[1:]] == [["db", "pause", "succeeded"], ["web", "stop", "running"]]
    running = lines[2].split()[0]
    result = await ctl("operations", running, "--cancel")
    assert (result.code, result.err) == (1, "qsupctl: web: it cannot be cancelled\n  hint: kill the VM\n")
    assert (await ctl("operations", "--cancel")).code == 2


async def test_hostile_names_reach_no_path(ctl: Ctl) -> None:
    """Whatever is given as a name is quoted, and answered as no VM of that name."""
    for name in ("../units/web", "a/b", "a\nb", "ü", "web%2Fx", ".", ".."):
        result = await ctl("status", name)
        assert result.code == 4, name
        assert "\n" not in result.err.rstrip("\n").replace("\n  hint:", ""), result.err


async def test_agent_and_evolving_states(served: Daemon, ctl: Ctl) -> None:
    """An agent nobody listens on is told with the daemon's words."""
    served.backend.views["web"] = evolve(served.backend.views["web"], agent_connected=False)
    result = await ctl("agent", "web", "ping")
    assert (result.code, result.err) == (1, "qsupctl: web: nobody in the guest listens\n")


async def test_capacity(served: Daemon, ctl: Ctl) -> None:
    """What may be promised and what is, of each node where there are some, and of each VM on demand."""
    pool = HugePages(size=2 << 20, total=512, free=128)
    nodes = tuple(Node(number=n, memory=8 << 30, free=5 << 30, hugepages=(pool,)) for n in (0, 1))
    one = await ctl.ok("capacity")
    served.backend.host = evolve(served.backend.host, nodes=nodes)
    vms = await ctl.ok("capacity", "--vms")
    served.backend.views.clear()
    check_golden("capacity", f"{one}\n{vms}\n{await ctl.ok('capacity', '--vms')}")
    assert json.loads(await ctl.ok("capacity", "-o", "json"))["instances"] == []
