"""Watching a life: what the heartbeat survives, and what events without end cost."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from qsup.errors import MonitorError
from qsup.host import proc
from qsup.host.cgroup import Cgroup
from qsup.host.pidfd import ExitStatus
from qsup.instance import silence, watch
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.exit import cause_of_exit
from qsup.instance.life import Life
from qsup.instance.limiting import Limiting
from qsup.instance.messages import Happened, Message, ProcessEnded, Seen, Told, Unplugged
from qsup.instance.pinning import Pinning
from qsup.instance.runstate import Guest
from qsup.instance.state import Event
from qsup.plan.pinning import Pins
from qsup.qmp.events import MAX_EVENTS
from tests.qmp.support import Peer, by_hand
from tests.recordings.recording import load


def life(dying: ExitStatus | None = None) -> Life:
    """As much of a life as watching one needs; its process lives, or is dying."""
    parts = {
        "process": SimpleNamespace(pid=os.getpid(), dying=lambda: dying),
        "record": SimpleNamespace(name="web"),
        "summary": SimpleNamespace(disks=()),
        "pinning": Pinning(os.getpid(), Pins),
        "cgroup": Cgroup(),
        "limiting": Limiting(Cgroup()),
    }
    found = SimpleNamespace(number=1, last_words=lambda: "oh", was_oom_killed=lambda: False, **parts)
    return cast(Life, found)


LIFE = life()
RUNNING = {"status": "running", "running": True, "singlestep": False}
ERROR = {"class": "GenericError", "desc": "?"}


def greeting(*capabilities: str) -> bytes:
    """What a QEMU says first."""
    version = {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""}
    return json.dumps({"QMP": {"version": version, "capabilities": capabilities}}).encode()


async def never() -> None:
    """Wait for nothing."""


def ignore() -> None:
    """Look at nothing again."""


async def serve(peer: Peer, script: Mapping[str, list[dict[str, Any] | None]]) -> None:
    """Answer each command by the next members of its script (``None``: not at all), then by the last for ever."""
    while True:
        try:
            request = await peer.command()
        except (trio.ClosedResourceError, AssertionError):
            return  # the test is over, or the monitor has ended the connection
        answers = script[str(request.get("execute") or request["exec-oob"])]
        members = answers.pop(0) if len(answers) > 1 else answers[0]
        if members is not None:
            await peer.say(json.dumps({"id": request["id"], **members}).encode())


async def test_the_heartbeat_outlives_every_answer(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """An error, an answer of another type, silence, disks that cannot be read: it goes on until the connection ends."""
    posted: list[Message] = []
    wrong: list[dict[str, Any] | None] = [{"error": ERROR}, {"return": []}, {"return": {}}, None, {"return": RUNNING}]
    sampler = watch.DiskSampler()
    sampler.look()
    async with by_hand(nursery) as (monitor, peer):
        await peer.say(greeting())
        nursery.start_soon(partial(serve, peer, {"query-status": wrong, "query-blockstats": [{"error": ERROR}]}))
        async with trio.open_nursery() as hearts:
            hearts.start_soon(watch.heartbeat, LIFE, monitor, sampler, posted.append)
            await trio.sleep(8 * watch.HEARTBEAT_INTERVAL)  # virtual time
            told = [message.event for message in posted if isinstance(message, Happened)]
            assert told == [Event.SILENT, Event.ANSWERED_RUNNING]
            # each later answer says how the guest is, for whoever missed an event
            seen = [message.guest for message in posted if isinstance(message, Seen)]
            assert set(seen) == {Guest.RUNNING}
            assert monitor.statistics().commands > len(wrong)
            hearts.cancel_scope.cancel()


#: By what a silent QEMU answers out of band: the causes that are told.
OUT_OF_BAND: dict[str, tuple[tuple[str, ...], dict[str, Any] | None, list[CauseKind]]] = {
    "an answer": (("oob",), {"return": []}, [CauseKind.MAIN_LOOP_SILENT]),
    "an error": (("oob",), {"error": ERROR}, [CauseKind.MAIN_LOOP_SILENT]),
    "nothing": (("oob",), None, [CauseKind.PROCESS_SILENT]),
    "it cannot": ((), None, [CauseKind.MONITOR_SILENT]),
}


@pytest.mark.parametrize("answer", OUT_OF_BAND)
async def test_a_silent_monitor_is_asked_out_of_band(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, answer: str
) -> None:
    """Within ten seconds it is told which part of QEMU stands still."""
    capabilities, members, kinds = OUT_OF_BAND[answer]
    posted: list[Message] = []
    async with by_hand(nursery) as (monitor, peer):
        await peer.say(greeting(*capabilities))
        nursery.start_soon(partial(serve, peer, {"query-status": [None], "query-yank": [members]}))
        with trio.move_on_after(9.9):  # virtual time
            await watch.heartbeat(LIFE, monitor, watch.DiskSampler(), posted.append)
    told = [message for message in posted if isinstance(message, Happened)]
    assert {message.event for message in told} <= {Event.SILENT}
    assert [message.cause.kind for message in told if message.cause] == kinds


async def test_a_connection_that_ends_is_no_silence(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """QEMU hangs up instead of answering out of band: the reader of events says why, and nobody else."""
    posted: list[Message] = []
    async with by_hand(nursery) as (monitor, peer):
        await peer.say(greeting("oob"))
        async with trio.open_nursery() as hearts:
            hearts.start_soon(watch.heartbeat, LIFE, monitor, watch.DiskSampler(), posted.append)
            assert (await peer.command())["execute"] == "query-status"
            assert (await peer.command())["exec-oob"] == "query-yank"
            await peer.stream.aclose()
    assert posted == []


@pytest.mark.parametrize(
    ("state", "words"),
    [("T", "SIGSTOP"), ("t", "debugger"), ("D", "in the kernel"), ("S", "not held"), ("", "not held")],
)
def test_how_a_process_stands_still_is_named(monkeypatch: pytest.MonkeyPatch, state: str, words: str) -> None:
    """By the letter that /proc has for it."""
    monkeypatch.setattr(proc, "thread_state", lambda _pid: state)
    assert words in silence.stillness(LIFE)


async def test_events_without_end_are_taken_at_a_pace(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """A guest that is reset without end moves its VM a bounded number of times a second; one reset is told at once."""
    posted: list[Message] = []
    reset = load("session").answers("system_reset")[0][0]
    seconds = 20

    def moved() -> int:
        return sum(isinstance(message, Happened) for message in posted)

    async with by_hand(nursery) as (monitor, peer):
        nursery.start_soon(watch.monitor, LIFE, monitor, posted.append, never, ignore, trio.Event())
        nursery.start_soon(partial(serve, peer, {"query-cpus-fast": [{"error": ERROR}]}))
        began = trio.current_time()
        await peer.say(reset)
        await trio.testing.wait_all_tasks_blocked()
        assert (moved(), trio.current_time()) == (1, began)
        with trio.move_on_after(seconds):
            while True:
                await peer.say(*[reset] * 20)
                await trio.sleep(0.01)  # virtual time
        # two bursts: what is free after a rest, and what waits for its turn
        assert 1000 < moved() <= 100 * seconds + 2 * MAX_EVENTS
        await trio.sleep(60)  # virtual time
        told, began = moved(), trio.current_time()
        await peer.say(reset)
        await trio.testing.wait_all_tasks_blocked()
        assert (moved(), trio.current_time()) == (told + 1, began)


async def test_the_end_of_a_monitor_is_told(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    """The heartbeat ends with the connection, and the reader of events says why."""
    posted: list[Message] = []
    async with by_hand(nursery) as (monitor, peer):
        async with trio.open_nursery() as watchers:
            watchers.start_soon(watch.heartbeat, LIFE, monitor, watch.DiskSampler(), posted.append)
            watchers.start_soon(watch.monitor, LIFE, monitor, posted.append, never, ignore, trio.Event())
            await peer.stream.aclose()
    assert isinstance(monitor.close_reason, MonitorError)
    assert [message.event for message in posted if isinstance(message, Happened)] == [Event.MONITOR_LOST]


async def test_a_process_that_dies_with_its_monitor_is_told_at_once(nursery: trio.Nursery) -> None:
    """The kernel takes its time to take a process down; that it does, and why, is told before it has."""
    posted: list[Message] = []
    dying = life(ExitStatus(kind="signal", value=9))
    async with by_hand(nursery) as (monitor, peer):
        async with trio.open_nursery() as watchers:
            watchers.start_soon(watch.monitor, dying, monitor, posted.append, never, ignore, trio.Event())
            await peer.stream.aclose()
            await trio.testing.wait_all_tasks_blocked()
            watchers.cancel_scope.cancel()
    cause = Cause(kind=CauseKind.SIGNAL, signal="KILL", detail="oh")
    assert posted[0] == Happened(life=1, event=Event.DYING, cause=cause)


def event(name: str, **data: object) -> bytes:
    """An event as QEMU says it."""
    stamp = {"seconds": 1, "microseconds": 2}
    return json.dumps({"event": name, "data": data, "timestamp": stamp}).encode()


SHUTDOWN = event("SHUTDOWN", guest=True, reason="guest-shutdown")
RESET = event("RESET", guest=True, reason="guest-reset")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([event("WATCHDOG", action="pause")], [(Event.GUEST_PANICKED, CauseKind.WATCHDOG)]),
        ([event("WATCHDOG", action="poweroff")], [(Event.GUEST_SHUTDOWN, CauseKind.WATCHDOG)]),
        ([event("WATCHDOG", action="shutdown"), SHUTDOWN], [(Event.GUEST_SHUTDOWN, CauseKind.WATCHDOG)]),
        (
            [event("WATCHDOG", action="shutdown"), RESET, SHUTDOWN],
            [(Event.GUEST_RESET, None), (Event.GUEST_SHUTDOWN, CauseKind.GUEST_SHUTDOWN)],
        ),
        ([event("WATCHDOG", action="reset"), RESET], [(Event.GUEST_RESET, None)]),
        ([event("WATCHDOG", action="inject-nmi"), SHUTDOWN], [(Event.GUEST_SHUTDOWN, CauseKind.GUEST_SHUTDOWN)]),
        ([event("SHUTDOWN", guest=True, reason="guest-reset")], [(Event.GUEST_SHUTDOWN, CauseKind.GUEST_RESET)]),
        (
            [event("WATCHDOG", action="reset"), event("SHUTDOWN", guest=True, reason="guest-reset")],
            [(Event.GUEST_SHUTDOWN, CauseKind.WATCHDOG)],
        ),
        ([event("SHUTDOWN", guest=True, reason="guest-panic")], [(Event.GUEST_SHUTDOWN, CauseKind.GUEST_PANIC)]),
    ],
)
async def test_what_a_watchdog_does_is_understood(
    nursery: trio.Nursery, lines: list[bytes], told: list[tuple[Event, CauseKind | None]]
) -> None:
    """It pauses, ends or resets the guest: the first two as its failure; and each expiry is an event of its own."""
    posted: list[Message] = []
    async with by_hand(nursery) as (monitor, peer):
        nursery.start_soon(watch.monitor, LIFE, monitor, posted.append, never, ignore, trio.Event())
        await peer.say(*lines)
        await trio.testing.wait_all_tasks_blocked()
    happened = [message for message in posted if isinstance(message, Happened)]
    assert [(m.event, m.cause.kind if m.cause else None) for m in happened] == told
    kinds = [message.type for message in posted if isinstance(message, Told)]
    assert kinds == [{"WATCHDOG": "watchdog", "RESET": "guest-reset"}[n] for n in names(lines) if n != "SHUTDOWN"]


def names(lines: list[bytes]) -> list[str]:
    """Of the events."""
    return [json.loads(line)["event"] for line in lines]


@pytest.mark.parametrize(
    ("status", "oom_killed", "kind"),
    [
        (ExitStatus(kind="signal", value=9), False, CauseKind.SIGNAL),
        (ExitStatus(kind="signal", value=9), True, CauseKind.OOM),
        (ExitStatus(kind="signal", value=11), True, CauseKind.SIGNAL),
        (ExitStatus(kind="unknown"), True, CauseKind.OOM),
        (ExitStatus(kind="unknown"), False, CauseKind.EXIT_UNKNOWN),
        (ExitStatus(kind="code", value=1), True, CauseKind.EXIT_CODE),
    ],
)
def test_an_oom_kill_is_told_from_another_signal(status: ExitStatus, oom_killed: bool, kind: CauseKind) -> None:
    """By what the cgroup has counted: a SIGKILL, or an end that nobody can know more of."""
    assert cause_of_exit(status, "", oom_killed=oom_killed).kind is kind


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("terminating on signal 15 from pid 1 (/usr/lib/systemd/systemd)", CauseKind.OPERATOR),
        ("terminating on signal 15 from pid 812 (/lib/systemd/systemd)", CauseKind.OPERATOR),
        ("terminating on signal 15 from pid 1 (/sbin/init)", CauseKind.OPERATOR),
        ("terminating on signal 15 from pid 812 (/sbin/init)", CauseKind.EXIT_CODE),
        ("terminating on signal 15 from pid 812 (bash)", CauseKind.EXIT_CODE),
        ("terminating on signal 2 from pid 1 (/usr/lib/systemd/systemd)", CauseKind.EXIT_CODE),
        ("", CauseKind.EXIT_CODE),
    ],
)
def test_an_end_that_systemd_wanted_is_an_operators(words: str, kind: CauseKind) -> None:
    """Whoever stops its scope wants it stopped: no policy starts it again."""
    assert cause_of_exit(ExitStatus(kind="code", value=0), words).kind is kind
    assert cause_of_exit(ExitStatus(kind="code", value=1), words).kind is CauseKind.EXIT_CODE


@pytest.mark.parametrize("status", [ExitStatus(kind="code", value=1), ExitStatus(kind="signal", value=11)])
def test_another_end_takes_no_oom_kill_from_the_vm_that_it_is_of(status: ExitStatus) -> None:
    """Where one count stands for all VMs, each kill is told of one."""
    life = SimpleNamespace(last_words=lambda: "", was_oom_killed=lambda: pytest.fail("asked"))
    assert watch._cause_of_end(status, cast(Life, life)).kind is not CauseKind.OOM


async def test_an_end_is_told_after_what_led_to_it(nursery: trio.Nursery) -> None:
    """The process may be gone before the last words of its monitor are read; they come first all the same."""
    posted: list[Message] = []
    heard = trio.Event()
    gone = SimpleNamespace(wait_exit=never_fails, dying=lambda: ExitStatus(kind="code", value=0))
    ended = cast(Life, SimpleNamespace(**{**vars(life()), "process": gone}))
    async with by_hand(nursery) as (monitor, peer), trio.open_nursery() as watchers:
        watchers.start_soon(watch.process, ended, posted.append, heard.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not posted
        watchers.start_soon(watch.monitor, ended, monitor, posted.append, never, ignore, heard)
        await peer.say(event("WATCHDOG", action="poweroff"), event("SHUTDOWN", guest=True, reason="guest-shutdown"))
        await peer.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        watchers.cancel_scope.cancel()
    kinds = [message.event if isinstance(message, Happened) else type(message) for message in posted]
    assert kinds.index(Event.GUEST_SHUTDOWN) < kinds.index(ProcessEnded)


async def never_fails() -> ExitStatus:
    """A process that has ended already."""
    return ExitStatus(kind="code", value=0)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        # what Linux says while it is at it, of one that it lets go, and of one that it keeps (ACPI 6.5, table 6.10)
        ("ACPI_DEVICE_OST", {"info": {"device": "cpu-1", "source": 3, "status": 132}}, None),
        ("ACPI_DEVICE_OST", {"info": {"source": 3, "status": 0}}, "look"),
        ("ACPI_DEVICE_OST", {"info": {"device": "cpu-1", "source": 3, "status": 129}}, "cpu-1"),
        ("ACPI_DEVICE_OST", {"info": {"device": "cpu-1", "source": 1, "status": 0}}, None),
        ("ACPI_DEVICE_OST", {"info": {"device": ["cpu-1"], "source": 3, "status": "no"}}, None),
        ("MEM_UNPLUG_ERROR", {"device": "memory-0", "msg": "no"}, "memory-0"),
    ],
)
async def test_what_a_guest_does_not_let_go_is_told(
    nursery: trio.Nursery, name: str, data: dict[str, Any], expected: str | None
) -> None:
    """By each of the ways that QEMU has for it; what went has QEMU asked anew."""
    posted: list[Message] = []
    looked: list[bool] = []
    event = {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}}
    async with by_hand(nursery) as (monitor, peer):
        look = partial(looked.append, True)
        nursery.start_soon(watch.monitor, LIFE, monitor, posted.append, never, look, trio.Event())
        await peer.say(json.dumps(event).encode() + b"\r\n")
        with trio.fail_after(5):
            await trio.testing.wait_all_tasks_blocked(0.05)
        told = [message for message in posted if isinstance(message, Unplugged)]
    assert bool(looked) == (expected == "look")
    wanted = expected if expected not in (None, "look") else None
    assert [(each.device, each.refused) for each in told] == ([(wanted, True)] if wanted else [])
