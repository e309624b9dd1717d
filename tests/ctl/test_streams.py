"""Verbs that go on until interrupted: ``events``, ``logs --follow``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from qsup.ctl.verbs.events import describe
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.state import State
from tests.api.calling import Daemon
from tests.ctl.golden_text import check_golden
from tests.ctl.running import COMMAND, PATIENCE, Ctl, in_thread
from tests.ctl.test_render import EVIL
from tests.waiting import wait_until


@contextmanager
def process(served: Daemon, *arguments: str, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    """Qsupctl as a process whose output can be read while it runs."""
    command = [*COMMAND, "--socket", served.served.path, *arguments]
    with subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


async def read_line(running: subprocess.Popen[bytes]) -> str:
    """The next line of its output."""
    assert running.stdout is not None
    line: bytes = await in_thread(running.stdout.readline)
    return line.decode()


async def followed(served: Daemon) -> None:
    """Wait until somebody follows the events."""
    await wait_until(lambda: served.backend.ring._wakeup.statistics().tasks_waiting, "a listener")


def publish_story(served: Daemon) -> None:
    """A VM starts, changes, and crashes; a hostile text is in it."""
    crash = Cause(kind=CauseKind.SIGNAL, signal="KILL", detail=EVIL)
    ring = served.backend.ring
    state = {"state": "active", "substate": "running", "previous": "waiting-ready", "cause": None, "pid": 7}
    ring.publish("instance-state", "web", state)
    ring.publish("instance-changed", "web", {"agent_connected": True, "text": EVIL, "list": [1, "two words"]})
    cause = {"kind": crash.kind.value, "text": crash.text, "detail": crash.detail}
    ring.publish(
        "instance-state", "web", {"state": "failed", "substate": "crashed", "previous": "running", "cause": cause}
    )
    ring.publish("units-reloaded", None, {"added": ["db"], "changed": [], "removed": []})


@pytest.mark.usefixtures("frozen_clock")
async def test_events_read_as_sentences(served: Daemon, ctl: Ctl) -> None:
    """Each event is one line: time, number, VM, type, what changed; nothing in it steers a terminal."""
    publish_story(served)
    check_golden("events", await ctl.ok("events", "--since", "0", "-n", "4"))


async def test_events_are_selected(served: Daemon, ctl: Ctl) -> None:
    """VMs and types narrow the stream, as JSON lines too."""
    publish_story(served)
    served.backend.set_state("db", State.PAUSED)
    select = ["events", "--since=0", "-o", "jsonl", "--timeout", "200ms"]
    assert len((await ctl.ok(*select)).splitlines()) == 5
    assert len((await ctl.ok(*select, "db", "w*")).splitlines()) == 4
    changed = json.loads(await ctl.ok(*select, "--type", "instance-ch*"))
    assert changed["data"]["agent_connected"] is True
    assert len((await ctl.ok(*select, "--type", "units-reloaded", "--type", "instance-changed")).splitlines()) == 2


async def test_events_that_are_gone_are_told(served: Daemon, ctl: Ctl) -> None:
    """A number from another life of the daemon is an error with what to do instead."""
    result = await ctl("events", "--since", "99")
    assert (result.code, result.out) == (1, "")
    assert "events after 99 are not kept" in result.err


async def test_events_come_as_they_happen_until_interrupted(served: Daemon) -> None:
    """Each event is printed when it happens; Ctrl-C ends the command with 130 and without a word."""
    with process(served, "events", "-o", "jsonl") as running:
        await followed(served)
        for number in (1, 2):
            served.backend.ring.publish("tick", "web", {"n": number})
            assert json.loads(await read_line(running))["data"] == {"n": number}
        running.send_signal(signal.SIGINT)
        out, err = await in_thread(partial(running.communicate, timeout=PATIENCE))
        assert (running.returncode, out, err) == (130, b"", b"")


async def test_the_end_of_the_daemon_is_told(served: Daemon) -> None:
    """A stream that the daemon ends is no success."""
    with process(served, "events") as running:
        await followed(served)
        served.served.scope.cancel()
        _, err = await in_thread(partial(running.communicate, timeout=PATIENCE))
        assert (running.returncode, err) == (5, b"qsupctl: the daemon ended the stream of events\n")


async def test_logs_are_followed(served: Daemon) -> None:
    """``logs -f`` shows the last lines, then each further one as QEMU writes it."""
    with process(served, "logs", "web", "-f", "-n", "1") as running:
        assert await read_line(running) == "line 5\n"
        served.backend.print_line(f"new {EVIL}")
        line = await read_line(running)
        assert line.startswith("new ")
        assert "\033" not in line


async def test_a_reader_that_leaves_ends_it_quietly(served: Daemon) -> None:
    """A closed pipe ends the command as SIGPIPE would, without a word."""
    served.backend.log_lines = ["x" * 100] * 5000
    read_end, write_end = os.pipe()
    with process(served, "logs", "web", "-n", "5000", stdout=write_end) as running:
        os.close(write_end)
        os.close(read_end)
        _, err = await in_thread(partial(running.communicate, timeout=PATIENCE))
    assert (running.returncode, err) == (141, b"")


async def test_nothing_is_written_to_a_full_disk_silently(served: Daemon) -> None:
    """Output that cannot be written is a failure."""
    full = os.open("/dev/full", os.O_WRONLY)
    with process(served, "list", stdout=full) as running:
        os.close(full)
        _, err = await in_thread(partial(running.communicate, timeout=PATIENCE))
    assert running.returncode == 1
    assert b"No space left on device" in err
    assert b"Traceback" not in err


def test_no_time_of_an_event_is_rounded_up() -> None:
    """What came later is not shown as earlier."""
    event: Any = {"seq": 1, "time": "2026-01-01T00:00:09.999615Z", "type": "x", "instance": None, "data": {}}
    assert ":09.999 " in describe(event)
