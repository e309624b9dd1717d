"""Probing: what a binary can do is asked once, kept, and asked again when it may have changed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import evolve

from qsup.errors import QsupError, StartError
from qsup.instance.probe import Prober, find_emulator, probe_binary
from qsup.plan.spec import Capabilities
from tests.plan import goldens

QUICK = 0.5


class Asked:
    """Stands for running a binary: answers when told to, and counts."""

    def __init__(self) -> None:
        self.times = 0
        self.go = trio.Event()
        self.error: QsupError | None = None

    async def __call__(self, path: str) -> Capabilities:
        """Wait for `go`, then answer."""
        self.times += 1
        await self.go.wait()
        if self.error:
            raise self.error
        return evolve(goldens.capabilities(), emulator=path)


@pytest.fixture
def asked() -> Asked:
    """One that answers at once."""
    asked = Asked()
    asked.go.set()
    return asked


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every uid can reach, as a binary's is."""
    path = Path(tempfile.mkdtemp(prefix="qsup-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def executable(path: Path, text: str = "") -> str:
    """A script that stands where a QEMU should be."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


# Finding


def test_name_is_looked_up(tmp_path: Path) -> None:
    """A bare name is looked up in PATH; the result is known by its path, time and size."""
    path = executable(tmp_path / "qemu-system-x86_64")
    found = find_emulator("qemu-system-x86_64", path=str(tmp_path))
    assert (found.path, found.size, found.mtime_ns) == (path, os.stat(path).st_size, os.stat(path).st_mtime_ns)
    assert find_emulator(path) == found


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("qemu-system-aarch64", "qemu-system-arm"),
        ("qemu-system-riscv64", "qemu-system-misc"),
        ("/nonexistent/qemu-system-ppc64", "qemu-system-ppc"),
        ("qemu-system-x86_46", ""),
        ("qemu-system-", ""),
        ("/nonexistent/kvm", ""),
    ],
)
def test_missing_binary_names_its_package(name: str, package: str, tmp_path: Path) -> None:
    """A missing QEMU is reported with the Debian package that has it, any other name with none."""
    with pytest.raises(StartError) as caught:
        find_emulator(name, path=str(tmp_path))
    assert caught.value.message.startswith(f"emulator {name!r}")
    other = "[machine] emulator takes a QEMU system emulator, such as qemu-system-x86_64"
    assert caught.value.hint == (f"Debian has it in the package {package}" if package else other)


def test_relative_path_is_refused() -> None:
    """A relative path means nothing to a daemon."""
    with pytest.raises(StartError, match="neither a name to look up in PATH nor an absolute path"):
        find_emulator("bin/qemu-system-x86_64")


# Keeping


async def test_asked_once(tmp_path: Path, asked: Asked) -> None:
    """The second question is answered from memory."""
    binary, prober = executable(tmp_path / "qemu"), Prober(tmp_path / "cache", ask=asked)
    assert await prober.probe(binary) == await prober.probe(binary)
    assert asked.times == 1


async def test_kept_on_disk(tmp_path: Path, asked: Asked) -> None:
    """The next daemon is answered from disk, with the same answer."""
    binary = executable(tmp_path / "qemu")
    first = await Prober(tmp_path / "cache", ask=asked).probe(binary)
    assert await Prober(tmp_path / "cache", ask=asked).probe(binary) == first
    assert asked.times == 1


async def test_changed_binary_is_asked_again(tmp_path: Path, asked: Asked) -> None:
    """A binary of another time or size is another binary, for the same daemon too."""
    binary, prober = executable(tmp_path / "qemu"), Prober(tmp_path / "cache", ask=asked)
    await prober.probe(binary)
    os.utime(binary, ns=(0, 0))
    await prober.probe(binary)
    executable(tmp_path / "qemu", "exit 1")
    os.utime(binary, ns=(0, 0))
    await prober.probe(binary)
    assert asked.times == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', "[" * 10_000, "\0" * 100, "x" * (2 << 20)])
async def test_unreadable_record_costs_a_question(tmp_path: Path, asked: Asked, text: str) -> None:
    """A record that is none is asked for again and replaced."""
    binary = executable(tmp_path / "qemu")
    await Prober(tmp_path / "cache", ask=asked).probe(binary)
    (record,) = (tmp_path / "cache").iterdir()
    record.write_text(text)
    await Prober(tmp_path / "cache", ask=asked).probe(binary)
    await Prober(tmp_path / "cache", ask=asked).probe(binary)
    assert asked.times == 2


async def test_record_of_another_revision_is_not_believed(tmp_path: Path, asked: Asked) -> None:
    """Answers to other questions than today's are asked for again."""
    binary = executable(tmp_path / "qemu")
    await Prober(tmp_path / "cache", ask=asked).probe(binary)
    (record,) = (tmp_path / "cache").iterdir()
    record.write_text(json.dumps(json.loads(record.read_text()) | {"revision": 0}))
    await Prober(tmp_path / "cache", ask=asked).probe(binary)
    assert asked.times == 2


async def test_unwritable_cache_hides_no_answer(tmp_path: Path, asked: Asked) -> None:
    """Where nothing can be kept, the answer still comes."""
    (tmp_path / "cache").write_text("a file where the directory should be")
    assert (await Prober(tmp_path / "cache", ask=asked).probe(executable(tmp_path / "qemu"))).emulator
    assert asked.times == 1


# Sharing


async def test_concurrent_questions_share_one_run(tmp_path: Path) -> None:
    """Those who ask for a binary while it is being asked wait for the same answer."""
    asked, binary = Asked(), executable(tmp_path / "qemu")
    prober = Prober(tmp_path / "cache", ask=asked)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(prober.probe, binary)
        await trio.testing.wait_all_tasks_blocked()
        asked.go.set()
    assert asked.times == 1


async def test_concurrent_questions_share_a_failure(tmp_path: Path) -> None:
    """When the one run fails, all who waited for it are told; the next to ask tries again."""
    asked, binary = Asked(), executable(tmp_path / "qemu")
    asked.error = StartError("it is broken", hint="mend it")
    prober = Prober(tmp_path / "cache", ask=asked)
    told: list[str] = []

    async def ask() -> None:
        with pytest.raises(StartError) as caught:
            await prober.probe(binary)
        told.append(caught.value.message)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        asked.go.set()
    assert told == ["it is broken"] * 3
    assert asked.times == 1
    await ask()
    assert asked.times == 2


async def test_cancelled_run_is_taken_over(tmp_path: Path) -> None:
    """When whoever runs the binary is cancelled, one of those who wait runs it instead."""
    asked, binary = Asked(), executable(tmp_path / "qemu")
    prober = Prober(tmp_path / "cache", ask=asked)
    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def ask_first() -> None:
            with first:
                await prober.probe(binary)

        nursery.start_soon(ask_first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(prober.probe, binary)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        asked.go.set()
    assert asked.times == 2


# Binaries that are no QEMU


async def probe_failure(path: str, *, timeout: float = 10.0) -> str:
    """What is said of a binary."""
    with pytest.raises(StartError, match="could not learn what") as caught:
        await probe_binary(path, timeout=timeout)
    return caught.value.message.partition("can do: ")[2]


async def test_binary_that_ends(place: Path) -> None:
    """A binary that ends at once is described by its own last line, or by its exit."""
    assert (
        await probe_failure(executable(place / "a", "echo nonsense; echo cannot start >&2; exit 3")) == "cannot start"
    )
    assert await probe_failure(executable(place / "b", "exit 3")) == "exit code 3"


async def test_binary_that_ends_well(place: Path) -> None:
    """A binary that ends without an error, as no QEMU does that is asked, is said to be none, whatever it printed."""
    for name, text in (("quiet", "exit 0"), ("loud", "echo done")):
        with pytest.raises(StartError, match=f"{name} is no QEMU system emulator$") as caught:
            await probe_binary(executable(place / name, text))
        assert "such as qemu-system-x86_64" in caught.value.hint


async def test_binary_of_another_name(place: Path) -> None:
    """What fails and is not named as a QEMU gets the hint what is expected; a QEMU that fails does not."""
    for name, hint in (("other", "such as qemu-system-x86_64"), ("qemu-system-x86_64", "")):
        with pytest.raises(StartError) as caught:
            await probe_binary(executable(place / name, "exit 1"))
        assert caught.value.hint.endswith(hint)
        assert bool(caught.value.hint) is bool(hint)


async def test_binary_that_is_mute(place: Path) -> None:
    """A binary that says nothing is given up after the time, and ended."""
    path = executable(place / "mute", f"echo $$ >{place}/pid; exec sleep 1000")
    (place / "pid").touch()
    (place / "pid").chmod(0o666)
    assert "0.5 s" in await probe_failure(path, timeout=QUICK)
    with pytest.raises(ProcessLookupError):
        os.pidfd_open(int((place / "pid").read_text()))


async def test_binary_that_floods(place: Path) -> None:
    """A binary that prints without end and dies is described, and costs no memory for what it printed."""
    path = executable(place / "flood", "yes 0123456789 | head -c 50000000; echo; kill -9 $$")
    assert "0123456789".startswith(await probe_failure(path))


async def test_binary_whose_last_line_is_long(place: Path) -> None:
    """Of a last line of any length a message holds 500 characters."""
    path = executable(place / "long", "head -c 60000 /dev/zero | tr '\\0' x; kill -9 $$")
    assert await probe_failure(path) == "x" * 500


@pytest.mark.root
async def test_binary_runs_without_rights(place: Path) -> None:
    """Root's daemon runs a binary as nobody, without groups, capabilities or the way to any."""
    path = executable(
        place / "who", 'echo "$(id -u) $(id -G) $(grep -E "CapBnd|NoNewPrivs" /proc/self/status)" | xargs >&2; exit 1'
    )
    assert await probe_failure(path) == "65534 65534 CapBnd: 0000000000000000 NoNewPrivs: 1"
