"""A real daemon and emulators that are its enemies: hostile monitors and agents, floods, deaths at every stage.

Decides: what must hold while one QEMU lies: its state is named, the others do not notice, memory is bounded.
Must not: repeat what `tests/qmp` shows of the transport; here the whole daemon runs, and puppets are its QEMUs.

Long because it is one table of misbehaviour and the few questions that are asked of each.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from qsup.errors import AgentTimeout, MonitorError, MonitorTimeout
from tests.faults.trial import Promise
from tests.guests import Emulator
from tests.qmp import hostile
from tests.qmp.player import GREETING, HANG_UP, Change, Fault, as_recorded, faithful
from tests.qmp.test_agent import HOSTILE, SHORT
from tests.real.beside import BYSTANDER, MEBIBYTE, bystander
from tests.real.daemons import DEADLINE, Daemon, elapsed, rom_unit
from tests.real.puppets import SESSION, Puppet, Stage
from tests.recordings.recording import load
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]


@pytest.fixture
def stage(root_dir: Path, emulator: Emulator, daemon: Daemon) -> Iterator[Stage]:
    """Puppets instead of QEMUs; they go before the daemon looks for what is left."""
    found = Stage(root_dir / "stage", emulator)
    try:
        yield found
    finally:
        found.close()


def cast(daemon: Daemon, stage: Stage, unit: str, parts: dict[str, Fault]) -> dict[str, Puppet]:
    """Start a puppet for each part, by the VM's name, and have all of them play; nobody waits for any start."""
    for name in parts:
        (daemon.units / f"{name}.toml").write_text(unit)
    puppets = {}
    with daemon.client() as client:
        client.post("/v1/reload")
        for name in parts:
            client.post(f"/v1/instances/{name}/start")
    for _ in parts:
        puppet = stage.next()
        puppet.play(parts[puppet.name])
        puppets[puppet.name] = puppet
    return puppets


def numbered(faults: Iterable[Fault]) -> dict[str, Fault]:
    """VMs' names for faults."""
    return {f"vm{number}": fault for number, fault in enumerate(faults)}


# T17: hostile QMP

CPUS = "query-cpus-fast"
AT_THE_START = {
    "garbage for the CPUs": lambda lines: [b"\x15\x16\r\n"],
    "a list for the CPUs": lambda lines: as_recorded([b"[" + lines[-1] + b"]"]),
    "CPUs that are none": lambda lines: as_recorded([re.sub(rb"\[.*\]", b'{"x": 1}', lines[-1])]),
    "CPUs without threads": lambda lines: as_recorded([lines[-1].replace(b'"thread-id"', b'"ghost"', 1)]),
    "an error for the CPUs": lambda lines: as_recorded(
        [re.sub(rb'"return": \[.*\]', b'"error": {"class": "GenericError", "desc": "no CPUs today"}', lines[-1])]
    ),
}


@pytest.mark.user
def test_t17_a_hostile_qemu_fails_to_start_with_the_cause_named(
    daemon: Daemon, stage: Stage, emulator: Emulator, rom_guest: Path
) -> None:
    """Whatever it says before its guest runs, the start fails in one sentence, and no puppet outlives that."""
    changes = [Fault(name=name, recording=SESSION, at=CPUS, change=change) for name, change in AT_THE_START.items()]
    parts = numbered([*hostile.NEVER_READY, *changes])
    with bystander(daemon, emulator, rom_guest):
        unit = rom_unit(stage.emulator, rom_guest, service='start-timeout = "2s"')
        puppets = cast(daemon, stage, unit, parts)
        for name, fault in parts.items():
            view = daemon.wait(name, "start-failed")
            told = view["cause"]["detail"]
            wanted = r"within 2s|QEMU sent|never became ready|closed its monitor|monitor is busy|no CPUs today|answered"
            assert re.search(wanted, told), (fault.name, told)
            assert len(told) < 500
            assert puppets[name].ended.wait(DEADLINE), fault.name


def once(fault: Fault) -> Fault:
    """The same fault, once; after that the peer keeps to its recording."""
    return Fault(name=fault.name, recording=fault.recording, at=fault.at, change=fault.change, times=1)


def test_t17_a_running_qemu_that_turns_hostile_is_out_of_reach_and_taken_back(
    daemon: Daemon, stage: Stage, emulator: Emulator, rom_guest: Path, promise: Promise
) -> None:
    """Its VM is `unreachable` with the cause named, and in a state of its own again once QEMU is sane."""
    parts = numbered(map(once, (*hostile.NOT_QMP, *hostile.ENDED)))
    beside = bystander(daemon, emulator, rom_guest, growth=96 * MEBIBYTE, promise=promise)
    with beside, daemon.events() as events:
        puppets = cast(daemon, stage, rom_unit(stage.emulator, rom_guest), parts)
        with daemon.client() as client:
            for name, fault in parts.items():
                daemon.wait(name, "running")
                # an event may come after its command's answer
                with suppress(MonitorError):
                    client.post(f"/v1/instances/{name}/qmp", {"execute": fault.at, "timeout": 20})
            lost: dict[str, str] = {}
            while parts.keys() - lost.keys():
                event = events.next("instance-state", substate="unreachable")
                lost[event["instance"]] = event["data"]["cause"]["detail"]
            for name, fault in parts.items():
                assert re.search("QEMU sent|closed its monitor", lost[name]), (fault.name, lost[name])
                # each further answer of its recording is taken at its word, and may say otherwise
                state = "guest-panicked" if fault.recording.name == "panic" else "running"
                poll_until(partial(has_returned, daemon, name, state), f"{name} is {state} again", seconds=DEADLINE)
                assert daemon.view(name)["pid"] == puppets[name].pid
                assert client.post(f"/v1/instances/{name}/kill?wait=20")["state"] == "succeeded"


def has_returned(daemon: Daemon, name: str, state: str) -> bool:
    """Whether a VM has been in a state since it was in reach again."""
    lines = [json.loads(line) for line in daemon.log().splitlines()]
    moves = [line for line in lines if line.get("instance") == name and "before" in line]
    since = [line["state"] for line in itertools.dropwhile(lambda line: line["before"] != "unreachable", moves)]
    return state in since


@pytest.mark.slow
def test_t17_a_running_qemu_that_answers_what_was_not_asked_is_unresponsive(
    daemon: Daemon, stage: Stage, emulator: Emulator, rom_guest: Path, promise: Promise
) -> None:
    """Mute, or with another's id: named within 10 s, and killed at once; a second answer and 12 MB change nothing."""
    silent = numbered(fault for fault in hostile.TOLERATED if fault.at == hostile.STATUS)
    odd = {f"odd{number}": once(fault) for number, fault in enumerate(hostile.ANSWERED)}
    beside = bystander(daemon, emulator, rom_guest, growth=96 * MEBIBYTE, promise=promise)
    with beside, daemon.client() as client, daemon.events() as events:
        cast(daemon, stage, rom_unit(stage.emulator, rom_guest), silent | odd)
        for name in (*silent, *odd):
            daemon.wait(name, "running")
        began = time.monotonic()
        for name, fault in silent.items():
            with pytest.raises(MonitorTimeout):
                client.post(f"/v1/instances/{name}/qmp", {"execute": fault.at, "timeout": SHORT})
        for name, fault in odd.items():
            request = {"execute": fault.at, "arguments": {"command-line": "info"}, "timeout": 20}
            assert client.post(f"/v1/instances/{name}/qmp", request)["result"]
            answer = client.post(f"/v1/instances/{name}/qmp", {"execute": hostile.STATUS, "timeout": 20})
            assert answer["result"]["running"] is not None
            assert daemon.view(name)["substate"] == "running"
        found = {events.next("instance-state", substate="unresponsive")["instance"] for _ in silent}
        promise.kept("all named", elapsed(began), within=10.0)
        assert found == set(silent)
        for name in silent:
            assert daemon.view(name)["cause"]["kind"] == "main-loop-silent"
        for name in (*silent, *odd):
            asked = time.monotonic()
            assert daemon.do(name, "kill")["substate"] == "dead"
            promise.kept("force stop", elapsed(asked), within=2.0)


# Floods


def failing(_lines: list[bytes]) -> Iterator[bytes]:
    """A disk fails, for ever."""
    lines = load("io-error").answers("cont")[0]
    return itertools.repeat(next(line for line in lines if b"BLOCK_IO_ERROR" in line) + b"\r\n")


def alternating(_lines: list[bytes]) -> Iterator[bytes]:
    """The guest stops and goes on, for ever."""
    stop, go = (SESSION.answers(command)[0][0] + b"\r\n" for command in ("stop", "cont"))
    return itertools.repeat((stop + go) * 100)


def _flood(name: str, change: Change) -> Fault:
    return Fault(name=name, recording=SESSION, at="system_reset", change=change)


def test_t17_endless_events_cost_no_memory_and_nobody_elses_time(
    daemon: Daemon, stage: Stage, emulator: Emulator, rom_guest: Path, promise: Promise
) -> None:
    """While three QEMUs flood it, the daemon answers, its memory stands, other VMs obey, and each can be killed."""
    parts = {
        "resets": next(fault for fault in hostile.TOLERATED if fault.name == "endless events"),
        "runs": _flood("running and stopped", alternating),
        "disk": _flood("a disk that fails", failing),
    }
    with bystander(daemon, emulator, rom_guest, growth=24 * MEBIBYTE, promise=promise):
        cast(daemon, stage, rom_unit(stage.emulator, rom_guest), parts)
        with daemon.client() as client:
            for name in parts:
                daemon.wait(name, "running")
                client.post(f"/v1/instances/{name}/reset")
            slowest = 0.0
            for _ in range(100):
                began = time.monotonic()
                client.get("/v1/instances")
                slowest = max(slowest, elapsed(began))
                client.post(f"/v1/instances/{BYSTANDER}/qmp", {"execute": "query-status"})
            promise.kept("an answer in the flood", slowest, within=1.0)
            for name in parts:
                began = time.monotonic()
                ended = client.post(f"/v1/instances/{name}/kill?wait=20")
                assert ended["state"] == "succeeded", ended["error"]
                promise.kept("killed in the flood", elapsed(began), within=5.0)


def test_a_qemu_that_ends_every_connection_is_not_connected_to_without_end(
    daemon: Daemon, stage: Stage, emulator: Emulator, rom_guest: Path
) -> None:
    """It negotiates, answers and hangs up, again and again: a few attempts a second, and it can be killed."""
    asked = itertools.count()

    def later(lines: list[bytes]) -> Iterable[bytes]:
        return as_recorded(lines) if next(asked) == 0 else [*as_recorded(lines), b"\x15\r\n"]

    with bystander(daemon, emulator, rom_guest):
        fault = Fault(name="later", recording=SESSION, at=CPUS, change=later)
        cast(daemon, stage, rom_unit(stage.emulator, rom_guest), {"web": fault})
        daemon.wait("web", "running")
        with daemon.events() as events, daemon.client() as client:
            client.post("/v1/instances/web/qmp", {"execute": CPUS})
            began = time.monotonic()
            for _ in range(4):
                events.next("instance-state", substate="unreachable")
            assert elapsed(began) > 0.9
        assert daemon.do("web", "kill")["substate"] == "dead"


# T15: hostile agents


def test_t15_a_hostile_agent_costs_its_call_and_nothing_else(
    daemon: Daemon, stage: Stage, emulator: Emulator, rom_guest: Path, promise: Promise
) -> None:
    """The call through the API fails in time with its cause, the next one works, and memory is bounded."""
    parts = {f"vm{number}": fault for number, (fault, _) in enumerate(HOSTILE)}
    unit = rom_unit(stage.emulator, rom_guest).replace("[agent]\nenabled = false", "[agent]\nenabled = true")
    with bystander(daemon, emulator, rom_guest, growth=32 * MEBIBYTE, promise=promise):
        puppets = cast(daemon, stage, unit, dict.fromkeys(parts, faithful(SESSION)))
        with daemon.client() as client:
            for (name, fault), (_, wanted) in zip(parts.items(), HOSTILE, strict=True):
                puppets[name].play(fault, channel="agent")
                daemon.wait(name, "running")
                path = f"/v1/instances/{name}/agent"
                began = time.monotonic()
                with pytest.raises(wanted) as caught:
                    client.post(path, {"command": "info", "timeout": SHORT if wanted is AgentTimeout else 20})
                promise.kept("the call failed", elapsed(began), within=5.0)
                assert len(caught.value.message) < 500
                assert client.post(path, {"command": "info", "timeout": 20})["result"]["version"] == "7.2.22"
                assert client.post(f"/v1/instances/{name}/kill?wait=20")["state"] == "succeeded"


# What it prints

# as QEMU's own output, what the FIFO does not take is lost; only the end waits until it fits
PRINT = r"""
def push(data, *, wait):
    while data:
        try:
            data = data[os.write(2, data):]
        except BlockingIOError:
            if not wait:
                return

for _ in range(850):
    push((b'x' * 99 + b'\n') * 600, wait=False)
push(b'\n' + END, wait=True)
os._exit(1)
"""


@pytest.mark.parametrize(
    ("end", "line"), [(b"the last word\n", "the last word"), (b"y" * 50_000, "y" * 300)], ids=["lines", "no newline"]
)
def test_a_qemu_that_prints_50_mb_and_dies_leaves_bounded_logs(
    daemon: Daemon, stage: Stage, emulator: Emulator, rom_guest: Path, end: bytes, line: str
) -> None:
    """The start fails with its last line, cut to 300 characters; the log keeps the last 64 KiB and not much more."""
    with bystander(daemon, emulator, rom_guest):
        daemon.unit("web", rom_unit(stage.emulator, rom_guest))
        with daemon.client() as client:
            client.post("/v1/instances/web/start")
        stage.next().tell(PRINT.replace("END", repr(end)), wait=False)
        view = daemon.wait("web", "start-failed")
        assert view["cause"]["detail"] == line
        logs = sorted((daemon.logs).glob("web.log*"))
        assert 64 << 10 <= sum(path.stat().st_size for path in logs) <= 128 << 10
        assert daemon.ctl("logs", "web", "-n", "1").stdout.strip() in (line, "y" * 4096)


# Death at every stage


def _dies(puppets: list[Puppet], how: str) -> Change:
    def change(_lines: list[bytes]) -> Iterable[bytes]:
        puppets[0].tell(how, wait=False)
        assert puppets[0].ended.wait(DEADLINE)
        return [HANG_UP]

    return change


@pytest.mark.user
@pytest.mark.parametrize("how", ["os._exit(3)", "os.kill(os.getpid(), 9)"], ids=["exit", "kill"])
def test_a_qemu_that_dies_at_any_stage_of_its_start_fails_it_at_once(
    daemon: Daemon, stage: Stage, emulator: Emulator, rom_guest: Path, how: str
) -> None:
    """Before the greeting, in the negotiation, at the queries, at `cont`: the start fails and says how QEMU ended."""
    wanted = "exit code 3" if "exit" in how else "signal KILL"
    with bystander(daemon, emulator, rom_guest):
        for at in (GREETING, "qmp_capabilities", CPUS, "cont"):
            puppets: list[Puppet] = []
            daemon.unit("web", rom_unit(stage.emulator, rom_guest))
            with daemon.client() as client:
                operation = client.post("/v1/instances/web/start")
                puppets.append(stage.next())
                puppets[0].play(Fault(name=at, recording=SESSION, at=at, change=_dies(puppets, how)))
                ended = client.get(f"/v1/operations/{operation['id']}/wait?timeout=20")
            assert ended["state"] == "failed", at
            assert wanted in ended["error"]["detail"], at
            assert daemon.remains() == [BYSTANDER]


def test_a_qemu_that_does_not_want_to_end_is_ended(
    daemon: Daemon, stage: Stage, emulator: Emulator, rom_guest: Path
) -> None:
    """Mute at `quit`, or willing but still there; deaf to SIGTERM: a stop goes from stage to stage and succeeds."""
    stages = 'stop-timeout = "100ms"\nquit-timeout = "100ms"\nterm-timeout = "100ms"'
    unit = rom_unit(stage.emulator, rom_guest, service=stages)
    parts = {"mute": Fault(name="mute", recording=SESSION, at="quit", change=_nothing), "willing": faithful(SESSION)}
    with bystander(daemon, emulator, rom_guest):
        puppets = cast(daemon, stage, unit, parts)
        for name, puppet in puppets.items():
            daemon.wait(name, "running")
            puppet.tell("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
            with daemon.events() as events:
                view = daemon.do(name, "stop")
                for stage_of_stop in ("stopping-guest", "stopping-quit", "stopping-term", "stopping-kill", "dead"):
                    events.next("instance-state", substate=stage_of_stop)
            assert view["cause"]["kind"] == "operator"
            assert puppet.ended.wait(DEADLINE)


def _nothing(_lines: list[bytes]) -> Iterable[bytes]:
    return []


def test_a_qemu_that_closes_its_console_at_the_start_fails_it(
    daemon: Daemon, stage: Stage, emulator: Emulator, rom_guest: Path
) -> None:
    """It negotiates, but nobody listens on its console any more: a start that failed, and no bug."""

    def close(lines: list[bytes]) -> Iterable[bytes]:
        puppet.shut("console")
        return as_recorded(lines)

    with bystander(daemon, emulator, rom_guest):
        daemon.unit("web", rom_unit(stage.emulator, rom_guest))
        with daemon.client() as client:
            operation = client.post("/v1/instances/web/start")
            puppet = stage.next()
            puppet.play(Fault(name="close", recording=SESSION, at=CPUS, change=close))
            ended = client.get(f"/v1/operations/{operation['id']}/wait?timeout=20")
        assert ended["state"] == "failed"
        assert "console" in ended["error"]["detail"]
        assert "driver failed" not in daemon.log()


@pytest.mark.root
def test_kvm_that_qemu_does_not_confirm_fails_the_start(
    daemon: Daemon, stage: Stage, emulator: Emulator, rom_guest: Path
) -> None:
    """A QEMU that runs without the KVM it was told to use is ended, whatever the host's /dev/kvm says."""
    with bystander(daemon, emulator, rom_guest):
        daemon.unit("web", rom_unit(stage.emulator, rom_guest).replace('"tcg"', '"kvm"'))
        with daemon.client() as client:
            operation = client.post("/v1/instances/web/start")
            if Path("/dev/kvm").exists():
                stage.next().play(faithful(SESSION))
            ended = client.get(f"/v1/operations/{operation['id']}/wait?timeout=20")
        assert re.search("QEMU runs without it|there is no /dev/kvm", ended["error"]["detail"])
        assert "driver failed" not in daemon.log()


@pytest.mark.root
def test_what_a_qemu_leaves_running_behind_goes_with_it(
    daemon: Daemon, stage: Stage, emulator: Emulator, rom_guest: Path
) -> None:
    """A child that outlives its QEMU is killed by the VM's cgroup, at a stop and at a crash alike."""
    with bystander(daemon, emulator, rom_guest):
        for how in ("os._exit(3)", ""):
            (puppet,) = cast(daemon, stage, rom_unit(stage.emulator, rom_guest), {"web": faithful(SESSION)}).values()
            daemon.wait("web", "running")
            puppet.tell("child = os.fork()\nif not child: stage.close(); __import__('time').sleep(600)")
            puppet.tell(how, wait=False) if how else daemon.do("web", "kill")
            view = daemon.wait("web", "crashed" if how else "dead")
            assert view["pid"] is None
            poll_until(lambda: daemon.remains() == [BYSTANDER], "the VM is tidied up")
