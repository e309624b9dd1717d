"""Tests of `qsup.instance.helpers`, with real processes: how programs that serve a VM end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from qsup.errors import HostError
from qsup.host import affinity, proc
from qsup.host.rundir import InstanceDirectory
from qsup.instance.helpers import Helpers
from qsup.plan.pinning import Pins
from tests.waiting import wait_until

STUBBORN = ("/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")


def is_there(pid: int) -> bool:
    """Whether a process is."""
    return Path(f"/proc/{pid}").exists()


@pytest.fixture
def helpers(tmp_path: Path) -> Helpers:
    """Of a VM without any."""
    return Helpers(InstanceDirectory.open(tmp_path, "web"))


async def test_what_is_not_wanted_any_more_ends_whatever_it_does(
    helpers: Helpers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By SIGTERM, else by SIGKILL; nothing is told of it, and its FIFO goes."""
    monkeypatch.setattr("qsup.instance.helpers._END_TIMEOUT", 0.1)
    told: list[str] = []
    async with trio.open_nursery() as nursery:
        helpers.watch(nursery, lambda entry, words: told.append(entry))
        await helpers.start("device.a", STUBBORN, ())
        await helpers.start("device.b", ("/bin/sleep", "60"), ())
        pids = [record.pid for record in helpers.records()]
        with trio.fail_after(10):
            await helpers.aclose()
    assert told == []
    assert not any(map(is_there, pids))
    assert helpers.records() == ()
    assert list((tmp_path / "web").iterdir()) == []


async def test_an_unexpected_end_is_told_with_its_last_words(helpers: Helpers) -> None:
    """Once, and the next start of the same takes the warning back."""
    told: list[tuple[str, str]] = []
    heard = trio.Event()

    def tell(entry: str, words: str) -> None:
        told.append((entry, words))
        heard.set()

    async with trio.open_nursery() as nursery:
        helpers.watch(nursery, tell)
        await helpers.start("device.a", ("/bin/sh", "-c", "echo first; echo '\x1b[31mlast words'; exit 3"), ())
        with trio.fail_after(10):
            await heard.wait()
    ((entry, words),) = told
    assert entry == "device.a"
    assert "has ended (exit code 3: last words)" in words
    assert helpers.troubles == {"device.a": words}
    await helpers.end("device.a")
    assert helpers.troubles == {}


async def test_a_failure_is_known_before_it_is_watched(helpers: Helpers) -> None:
    """What QEMU sees as the end of a connection has a reason; a good end is none."""
    await helpers.start("device.a", ("/bin/sh", "-c", "exit 0"), ())
    await helpers.start("device.b", ("/bin/sh", "-c", "echo no such thing; exit 1"), ())
    assert await helpers.failure("device.a") == ""
    assert await helpers.failure() == "device.b: no such thing"
    await helpers.start("device.c", ("/no/such/program",), ())
    assert "could not start the program" in await helpers.failure("device.c")
    await helpers.aclose()


async def test_a_later_daemon_watches_on(helpers: Helpers, tmp_path: Path) -> None:
    """Over the one that is on record, with what it prints; of one that is gone it says so."""
    await helpers.start("device.a", ("/bin/sh", "-c", "echo before; sleep 60"), ())
    await helpers.start("device.b", ("/bin/true",), ())
    records = helpers.records()
    await helpers.end("device.b")
    later = Helpers(InstanceDirectory.open(tmp_path, "web"))
    later.adopt(records, proc.boot_id())
    assert [record.entry for record in later.records()] == ["device.a"]
    assert "while no daemon was running" in later.troubles["device.b"]
    await later.aclose()
    await helpers.aclose()
    assert not is_there(records[0].pid)


async def test_what_it_printed_may_be_lost(helpers: Helpers, tmp_path: Path) -> None:
    """A link in place of its FIFO is not followed: a later daemon watches it all the same, a start fails."""
    await helpers.start("device.a", ("/bin/sleep", "60"), ())
    fifo, target = tmp_path / "web" / "device.a.out", tmp_path / "target"
    fifo.unlink()
    target.write_text("untouched")
    fifo.symlink_to(target)
    later = Helpers(InstanceDirectory.open(tmp_path, "web"))
    later.adopt(helpers.records(), proc.boot_id())
    assert [record.entry for record in later.records()] == ["device.a"]
    with pytest.raises(HostError, match="is a symbolic link and not a FIFO"):
        await later.start("device.a", ("/bin/echo", "written"), ())
    await later.aclose()
    await helpers.aclose()
    assert target.read_text() == "untouched"


async def test_one_begins_on_its_cpus_with_all_that_it_starts(tmp_path: Path) -> None:
    """Where they are at that moment."""
    cpu = min(os.sched_getaffinity(0))
    helpers = Helpers(InstanceDirectory.open(tmp_path, "web"), lambda: Pins((), frozenset({cpu})))
    await helpers.start("device.a", ("/bin/sh", "-c", "sleep 60 & wait"), ())
    pid = helpers.serving["device.a"]
    with trio.fail_after(10):
        await wait_until(lambda: len(affinity.family(pid)) == 2, "it has started another")
    assert [affinity.get(each) for each in affinity.family(pid)] == [{cpu}, {cpu}]
    (child,) = set(affinity.family(pid)) - {pid}
    await helpers.aclose()
    os.kill(child, signal.SIGKILL)
    assert (helpers.serving, affinity.family(pid)) == ({}, (pid,))
