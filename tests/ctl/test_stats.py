"""``qsupctl stats``: what two readings say together."""

from __future__ import annotations

import json
import signal
from functools import partial
from typing import Any

import pytest
from attrs import evolve

from qsup.ctl.verbs.stats import Reading, row
from qsup.instance.state import State
from tests.api.calling import Daemon
from tests.api.fake import make_view
from tests.ctl.running import PATIENCE, Ctl, in_thread
from tests.ctl.test_streams import process, read_line


def reading(pid: int = 1, at: float = 100.0, cpu: float = 10.0, **changes: Any) -> Reading:
    """Of a VM that has one vCPU."""
    waited = changes.pop("waited", 1.0)
    vcpus = changes.pop("vcpus", [[0]])
    stats: Any = {
        "read_at": at,
        "cpu_seconds": cpu,
        "times": [{"vcpus": each, "iothread": "", "seconds": 0.0, "waited": waited} for each in vcpus],
        "memory_rss": 100 << 20,
        "memory_huge": 0,
        "memory_swapped": 0,
        "memory_limit": None,
        "node_memory": None,
        "threads": 3,
        "disks": {},
        "nics": {},
        "balloon": {},
        "drifts": 0,
        **changes,
    }
    return Reading("web", pid, 200 << 20, stats)


async def test_each_vm_that_runs_is_a_line(served: Daemon, ctl: Ctl) -> None:
    """What it used between two readings, what it has, and what went through it."""
    served.backend.views["down"] = make_view("down", state=State.DEAD, pid=None)
    shown = (await ctl.ok("stats", "--interval", "0s")).splitlines()
    assert shown[0].split() == "NAME CPU STEAL MEMORY OF SWAP READ WRITTEN RECEIVED SENT NODES".split()
    names = [line.split()[0] for line in shown[1:]]
    assert "web" in names and "down" not in names
    (web,) = [line.split() for line in shown[1:] if line.startswith("web ")]
    assert web[3:] == ["48M", "96M", "50%", "1M", "4K", "512B", "100B", "200B", "0:41M", "2:7M"]


async def test_json_is_one_reading(served: Daemon, ctl: Ctl) -> None:
    """The counters themselves."""
    found = json.loads(await ctl.ok("stats", "web", "-o", "json"))["stats"]
    assert [each["instance"] for each in found] == ["web"]
    assert found[0]["times"][1]["vcpus"] == [1]
    assert found[0]["node_memory"]["nodes"][1] == {"node": 2, "anonymous": 7 << 20, "huge": 0, "file": 0}


async def test_it_goes_on_until_interrupted(served: Daemon) -> None:
    """A line for each VM and reading, and not a word at the end."""
    with process(served, "stats", "web", "--watch", "--interval", "0s", "-o", "jsonl") as running:
        seen = [json.loads(await read_line(running)) for _ in range(3)]
        running.send_signal(signal.SIGINT)
        _, err = await in_thread(partial(running.communicate, timeout=PATIENCE))
    assert (running.returncode, err) == (130, b"")
    assert [each["instance"] for each in seen] == ["web"] * 3
    assert seen[0]["read_at"] < seen[1]["read_at"] < seen[2]["read_at"]


async def test_a_vm_that_is_named_and_does_not_run_is_an_error(served: Daemon, ctl: Ctl) -> None:
    """Among all others it is left out."""
    served.backend.views["web"] = evolve(served.backend.views["web"], state=State.DEAD, pid=None)
    result = await ctl("stats", "web")
    assert (result.code, result.out) == (1, "")


@pytest.mark.parametrize(
    ("before", "cells"),
    [
        (reading(at=98.0, cpu=7.0, waited=0.5), ("150.0%", "25.0%")),
        (reading(at=98.0, cpu=7.0, waited=-9.0), ("150.0%", "100.0%")),
        (reading(at=98.0, cpu=7.0, waited=None), ("150.0%", "-")),
        (reading(at=98.0, cpu=7.0, vcpus=[[1]]), ("150.0%", "-")),
        (reading(at=100.0, cpu=7.0), ("-", "-")),
        (reading(at=98.0, cpu=70.0), ("-", "-")),
        (reading(pid=2, at=98.0, cpu=7.0), ("-", "-")),
        (None, ("-", "-")),
    ],
)
def test_shares_are_of_one_cpu_and_of_one_life(before: Reading | None, cells: tuple[str, str]) -> None:
    """What another QEMU of that name had counts for nothing, and neither do counters that went back."""
    assert row(before, reading())[1:3] == cells


def test_memory_is_of_the_limit_or_of_what_the_guest_may_have() -> None:
    """Where neither is known it is of nothing."""
    assert row(None, reading())[3:6] == ("100M", "200M", "50%")
    assert row(None, reading(memory_huge=20 << 20, memory_limit=160 << 20))[3:6] == ("120M", "160M", "75%")
    unknown = reading()
    unknown.memory = 0
    assert row(None, unknown)[3:6] == ("100M", "", "")


async def test_what_is_watched_may_end_and_come_back(served: Daemon) -> None:
    """It is left out while it does not run; only one that does not at first is an error."""
    up = served.backend.views["web"]
    with process(served, "stats", "web", "--watch", "--interval", "0s") as running:

        async def until(word: str) -> None:
            while not (line := await read_line(running)).startswith(word):
                assert line, f"it ended before {word!r}"

        await until("web")
        served.backend.views["web"] = make_view("web", state=State.DEAD, pid=None)
        await until("No VM runs")
        served.backend.views["web"] = up
        await until("web")
        running.send_signal(signal.SIGINT)
        _, err = await in_thread(partial(running.communicate, timeout=PATIENCE))
    assert (running.returncode, err) == (130, b"")
    served.backend.views["web"] = make_view("web", state=State.DEAD, pid=None)
    with process(served, "stats", "web", "--watch") as running:
        _, err = await in_thread(partial(running.communicate, timeout=PATIENCE))
    assert (running.returncode, b"it is not running" in err) == (1, True)
