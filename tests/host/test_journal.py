"""Tests of `qsup.host.journal`: durable, shared flushes, and what a killed writer or a bad disk leaves."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import HostError, NoSpaceError
from qsup.host.journal import Journal
from tests.host.full import full_file_system


def open_journal(path: Path, *, keep: int = 100, compact_size: int = 1 << 20) -> Journal:
    """A journal whose records replace each other by ``id``."""
    return Journal(path, key=lambda record: str(record["id"]), keep=keep, compact_size=compact_size)


def record(number: int, state: str = "running", size: int = 0) -> dict[str, Any]:
    """One record."""
    return {"id": f"op{number}", "state": state, "padding": "x" * size}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal is."""
    return tmp_path / "operations.jsonl"


async def test_records_survive(path: Path) -> None:
    """What was appended is there for a later daemon: the last record of each key, in the order of writing."""
    journal = open_journal(path)
    for state in ("running", "succeeded"):
        await journal.append(record(1, state))
        await journal.append(record(2))
    journal.close()
    later = open_journal(path)
    assert later.records() == (record(1, "succeeded"), record(2))
    assert later.damage == ""


async def test_append_after_reopening_keeps_the_rest(path: Path) -> None:
    """A later daemon's records join the earlier ones."""
    for number in (1, 2, 3):
        journal = open_journal(path)
        await journal.append(record(number))
        journal.close()
    assert [each["id"] for each in open_journal(path).records()] == ["op1", "op2", "op3"]


async def test_callers_that_come_together_share_a_flush(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred concurrent appends take a handful of flushes, and each returns after its own is on disk."""
    flushes = counted(monkeypatch, "fdatasync")
    journal = open_journal(path)
    await journal.append(record(0))
    flushes.clear()

    async def append(number: int) -> None:
        await journal.append(record(number))
        assert f'"op{number}"' in text(path)

    async with trio.open_nursery() as nursery:
        for number in range(1, 101):
            nursery.start_soon(append, number)
    journal.close()
    assert len(open_journal(path, keep=200).records()) == 101
    assert len(flushes) <= 5


def text(path: Path) -> str:
    """The file as it is now."""
    return path.read_text()


def write(path: Path, data: bytes) -> None:
    """What somebody else left in the file."""
    path.write_bytes(data)


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[None]:
    """Count the calls of a function of `os` from now on."""
    calls: list[None] = []
    real: Callable[[int], None] = getattr(os, name)

    def call(fd: int) -> None:
        calls.append(None)
        real(fd)

    monkeypatch.setattr(os, name, call)
    return calls


@given(cut=st.integers(min_value=0))
def test_torn_last_line_is_left_out(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Wherever the writer was killed, all whole lines are there, and appending goes on."""
    path = tmp_path_factory.getbasetemp() / "torn.jsonl"
    lines = [b'{"journal": 1}\n', *(json.dumps(record(number)).encode() + b"\n" for number in range(3))]
    whole = b"".join(lines)
    kept = whole[: cut % (len(whole) + 1)]
    path.write_bytes(kept)
    journal = open_journal(path)
    assert len(journal.records()) == max(0, kept.count(b"\n") - 1)
    assert journal.damage == ""

    async def go_on() -> None:
        await journal.append(record(9))
        journal.close()

    trio.run(go_on)
    assert open_journal(path).records()[-1] == record(9)


@given(cut=st.integers(min_value=0))
def test_records_that_belong_together_are_all_there_or_none(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Wherever the writer was killed, also in the middle of one of them; rewriting the file keeps each by its key."""
    path = tmp_path_factory.getbasetemp() / "together.jsonl"
    path.unlink(missing_ok=True)

    async def write() -> None:
        journal = open_journal(path)
        await journal.append(record(0))
        await journal.append(record(1), record(2, "running", 100), record(3))
        journal.close()

    trio.run(write)
    whole = path.read_bytes()
    first = whole.index(b"[")
    path.write_bytes(whole[: first + cut % (len(whole) - first + 1)])
    torn = path.stat().st_size < len(whole)
    journal = open_journal(path)
    assert [each["id"] for each in journal.records()] == (["op0"] if torn else ["op0", "op1", "op2", "op3"])
    assert journal.damage == ""

    async def go_on() -> None:
        await journal.append(record(0, "succeeded"), record(9))
        journal.close()

    trio.run(go_on)
    assert open_journal(path).records()[-2:] == (record(0, "succeeded"), record(9))


@pytest.mark.parametrize(
    "middle",
    [
        b"{",
        b"\xff\xfe",
        b"[1]",
        b"[]",
        b'[{"id": "op8"}, {}]',
        b'[{"id": "op8"}, 1]',
        b'{"no": "id"}',
        b"[" * 10_000,
        b"\0" * 4096,
    ],
    ids=lambda value: repr(value[:4]),
)
async def test_damage_is_kept_aside(path: Path, middle: bytes) -> None:
    """A bad line costs only itself: the rest is read, the damaged file is kept, and the damage is named."""
    first, last = (json.dumps(record(number)).encode() for number in (1, 2))
    damaged = b"\n".join([b'{"journal": 1}', first, middle, last, b""])
    write(path, damaged)
    journal = open_journal(path)
    assert journal.records() == (record(1), record(2))
    assert "was damaged at line 3" in journal.damage
    await journal.append(record(3))
    journal.close()
    assert path.with_name("operations.jsonl.damaged").read_bytes() == damaged
    assert open_journal(path).damage == ""


async def test_random_bytes_are_survived(path: Path) -> None:
    """A file of random bytes gives an empty journal, kept aside, and a new one."""
    write(path, random.Random(0).randbytes(5000))
    journal = open_journal(path)
    assert journal.records() == ()
    assert journal.damage
    await journal.append(record(1))
    journal.close()
    assert open_journal(path).records() == (record(1),)


async def test_newer_format_is_kept_aside(path: Path) -> None:
    """A journal of a newer qsup is not understood, stays as it is under another name, and keeps nobody from writing."""
    newer = b'{"journal": 2}\n{"id": "x"}\n'
    write(path, newer)
    journal = open_journal(path)
    assert journal.records() == ()
    assert "was written by a newer qsupd: its format is 2; it is kept as" in journal.damage
    await journal.append(record(1))
    journal.close()
    assert path.with_name("operations.jsonl.newer").read_bytes() == newer
    assert open_journal(path).records() == (record(1),)


TARGET = b"somebody else's\n"


def obstruct(path: Path, kind: str) -> None:
    """Put something where the journal should be."""
    match kind:
        case "directory":
            path.mkdir()
        case "link":
            target = path.with_name("somebody-elses")
            target.write_bytes(TARGET)
            path.symlink_to(target)
        case _:
            path.touch()
            os.truncate(path, 100_000_000)


@pytest.mark.parametrize("kind", ["directory", "link", "large"])
async def test_what_is_no_journal_is_moved_aside(path: Path, kind: str) -> None:
    """A directory, a link and a file too large to be read are kept, and the journal begins anew; twice over."""
    for _ in range(2):
        obstruct(path, kind)
        journal = open_journal(path)
        assert "it is kept as" in journal.damage
        await journal.append(record(1))
        journal.close()
        assert open_journal(path).records() == (record(1),)
        os.unlink(path)
    kept = sorted(path.parent.glob("operations.jsonl.damaged*"))
    assert [entry.name for entry in kept] == ["operations.jsonl.damaged", "operations.jsonl.damaged.2"]
    assert all(entry.is_dir() if kind == "directory" else entry.is_symlink() or entry.stat().st_size for entry in kept)
    assert kind != "link" or (path.parent / "somebody-elses").read_bytes() == TARGET


async def test_what_was_kept_is_not_replaced(path: Path) -> None:
    """A directory after a damaged file, and two damaged files: each has a name; the same one at each start has one."""
    for wreck in (b"first", b"second"):
        write(path, wreck + b" wreck\n")
        for _ in range(2):
            open_journal(path).close()
        os.unlink(path)
    os.mkdir(path)
    journal = open_journal(path)
    assert journal.damage.endswith(f"it is kept as {path}.damaged.3")
    await journal.append(record(1))
    journal.close()
    kept = sorted(path.parent.glob("operations.jsonl.damaged*"))
    assert [entry.is_dir() or entry.read_bytes() for entry in kept] == [b"first wreck\n", b"second wreck\n", True]


async def test_without_a_flush_a_record_is_in_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It outlives this process at once, and the next flush takes it along."""
    journal = open_journal(path)
    await journal.append(record(0))
    flushes = counted(monkeypatch, "fdatasync")
    await journal.append(record(1), flush=False)
    assert (len(flushes), open_journal(path).records()) == (0, (record(0), record(1)))
    await journal.append(record(2))
    assert len(flushes) == 1
    journal.close()


async def test_what_is_spared_outlives_any_number_of_others(path: Path) -> None:
    """An unfinished operation is still known after many others, also by the next daemon."""

    def spare(record: dict[str, Any]) -> bool:
        return bool(record["state"] == "running")

    journal = Journal(path, key=lambda record: str(record["id"]), keep=3, spare=spare, compact_size=1000)
    await journal.append(record(0))
    for number in range(1, 20):
        await journal.append(record(number, "succeeded", size=100))
    journal.close()
    later = Journal(path, key=lambda record: str(record["id"]), keep=3, spare=spare)
    assert [each["id"] for each in later.records()] == ["op0", "op18", "op19"]


async def test_size_is_bounded(path: Path) -> None:
    """However many records come, the file stays near its bound, and the newest keys are there."""
    journal = open_journal(path, keep=10, compact_size=8192)
    for number in range(300):
        await journal.append(record(number, size=200))
        assert len(text(path)) <= 8192
    journal.close()
    assert [each["id"] for each in open_journal(path, keep=10).records()] == [f"op{n}" for n in range(290, 300)]


async def test_what_is_kept_may_exceed_the_bound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When what is kept is larger than the bound, the file is not rewritten for every record."""
    journal = open_journal(path, keep=50, compact_size=4096)
    for number in range(50):
        await journal.append(record(number, size=400))
    rewrites = counted(monkeypatch, "fsync")
    for number in range(50):
        await journal.append(record(number, state="succeeded", size=400))
    journal.close()
    assert len(rewrites) <= 4  # two for each: the file and its directory


@pytest.mark.root
async def test_full_disk_tears_nothing(tmp_path: Path) -> None:
    """On a full file system an append fails by name, what was written stays whole, and room lets it go on."""
    with full_file_system(tmp_path) as full:
        journal = open_journal(full.path / "journal")
        await journal.append(record(1))
        full.fill()
        for _ in range(2):
            with pytest.raises(NoSpaceError, match="could not write the journal"):
                await journal.append(record(2, size=20_000))
        assert journal.records() == (record(1),)
        assert text(full.path / "journal").endswith("\n")
        full.make_room()
        await journal.append(record(3))
        journal.close()
        assert open_journal(full.path / "journal").records() == (record(1), record(3))


async def test_failing_disk_fails_all_who_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a flush fails, everyone whose record was in it hears so, and the next append succeeds."""
    journal = open_journal(path)
    await journal.append(record(0))
    failures = 0

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    async def append(number: int) -> None:
        nonlocal failures
        with pytest.raises(HostError, match="Input/output error"):
            await journal.append(record(number))
        failures += 1

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        async with trio.open_nursery() as nursery:
            for number in range(1, 6):
                nursery.start_soon(append, number)
    assert failures == 5
    await journal.append(record(9))
    journal.close()
    assert [each["id"] for each in open_journal(path).records()] == ["op0", "op9"]


async def test_cancelled_callers_leave_the_journal_usable(path: Path) -> None:
    """Callers that give up half-way neither tear the file nor keep others from writing."""
    journal = open_journal(path)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(journal.append, record(number))
        nursery.cancel_scope.cancel()
    await journal.append(record(99))
    journal.close()
    later = open_journal(path)
    assert later.damage == ""
    assert later.records()[-1] == record(99)


async def test_only_json_is_taken(path: Path) -> None:
    """What is no JSON is refused before anything is written."""
    journal = open_journal(path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        await journal.append({"id": "x", "value": float("nan")})
    assert journal.records() == ()
