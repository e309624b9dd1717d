"""Tests of `qsup.host.atomic`: whole files, old or new."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import HostError, NoSpaceError, StateFileError
from qsup.host import syscalls
from qsup.host.atomic import read_bounded, write_atomic, write_reserved
from tests.host.full import full_file_system


@pytest.mark.parametrize("durable", [True, False])
def test_replaces_a_file_whole(tmp_path: Path, durable: bool) -> None:
    """The new content stands under the name, with the mode asked for, and nothing else is left in the directory."""
    target = tmp_path / "record.json"
    write_atomic(target, b"old", mode=0o644, durable=durable)
    write_atomic(target, b"new", durable=durable)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["record.json"]


def test_overwrites_what_a_killed_writer_left(tmp_path: Path) -> None:
    """A half-written file of an earlier writer does not stand in the way and does not stay."""
    (tmp_path / ".record.json.new").write_bytes(b"torn" * 1000)
    write_atomic(tmp_path / "record.json", b"whole")
    assert (tmp_path / "record.json").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["record.json"]


def test_names_a_missing_directory(tmp_path: Path) -> None:
    """A directory that is not there gives an error with the file's name and the kernel's words."""
    with pytest.raises(HostError, match=r"could not write .*absent/record: No such file or directory"):
        write_atomic(tmp_path / "absent" / "record", b"")


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """When the write fails half-way, the old file stands and the new one is gone."""
    target = tmp_path / "record.json"
    write_atomic(target, b"old")
    with _file_size_limit(4096), pytest.raises(HostError, match="File too large"):
        write_atomic(target, b"x" * 10000)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["record.json"]


@pytest.mark.root
def test_full_file_system_is_named_and_passes(tmp_path: Path) -> None:
    """A full file system gives `NoSpaceError`, leaves the old file, and the same write succeeds once there is room."""
    with full_file_system(tmp_path) as full:
        target = full.path / "record.json"
        write_atomic(target, b"old")
        full.fill()
        with pytest.raises(NoSpaceError) as caught:
            write_atomic(target, b"x" * 10000)
        assert caught.value.details["errno"] == "ENOSPC"
        assert target.read_bytes() == b"old"
        full.make_room()
        write_atomic(target, b"x" * 10000)
        assert target.stat().st_size == 10000


def test_reads_up_to_the_limit(tmp_path: Path) -> None:
    """A file of exactly the limit is read; one byte more is refused."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert read_bounded(path, limit=10) == b"x" * 10
    with pytest.raises(StateFileError, match="larger than 9 bytes"):
        read_bounded(path, limit=9)


def test_refuses_what_is_no_regular_file(tmp_path: Path) -> None:
    """A symbolic link, a directory and a FIFO without a writer are refused at once, by name."""
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "directory", "fifo"):
        with pytest.raises(StateFileError, match=name):
            read_bounded(tmp_path / name)


def test_says_that_a_file_is_missing(tmp_path: Path) -> None:
    """A missing file can be told from a bad one."""
    with pytest.raises(StateFileError) as caught:
        read_bounded(tmp_path / "absent")
    assert caught.value.details["missing"] is True


@given(st.binary(max_size=5000))
def test_reads_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Any bytes come back as they were."""
    target = tmp_path_factory.getbasetemp() / "roundtrip"
    write_atomic(target, data, durable=False)
    assert read_bounded(target) == data


@pytest.mark.root
def test_a_file_with_a_reserve_is_written_without_room(tmp_path: Path) -> None:
    """Again and again, and whole; more than the reserve holds leaves the old file; with room it may grow."""
    with full_file_system(tmp_path) as full:
        target = full.path / "record.json"
        write_reserved(target, b"first")
        assert target.read_bytes().rstrip(b"\n") == b"first"
        full.fill()
        data = b""
        for number in range(5):
            data = b"%d" % number * 4000
            write_reserved(target, data)
            assert target.read_bytes().rstrip(b"\n") == data
        with pytest.raises(NoSpaceError):
            write_reserved(target, b"x" * 20_000)
        assert target.read_bytes().rstrip(b"\n") == data
        full.make_room()
        write_reserved(target, b"x" * 20_000)
        full.fill()
        write_reserved(target, b"y" * 20_000)
        assert target.read_bytes().rstrip(b"\n") == b"y" * 20_000
        assert sorted(os.listdir(full.path)) == [".record.json.spare", "ballast", "record.json"]


@pytest.mark.root
def test_a_reserve_is_used_once_where_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without that, and for a file that somebody has removed."""

    def refuse(one: str, other: str) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    with full_file_system(tmp_path) as full:
        target = full.path / "record.json"
        write_reserved(target, b"first")
        full.fill()
        target.unlink()
        full.fill()
        write_reserved(target, b"second")
        assert target.read_bytes().rstrip(b"\n") == b"second"
        with pytest.raises(NoSpaceError):
            write_reserved(target, b"third")
        full.make_room()
        write_reserved(target, b"fourth")
        full.fill()
        monkeypatch.setattr(syscalls, "exchange", refuse)
        write_reserved(target, b"fifth")
        assert target.read_bytes().rstrip(b"\n") == b"fifth"


@pytest.mark.root
def test_there_is_no_start_without_room_for_a_reserve(tmp_path: Path) -> None:
    """Who writes a file for the first time hears that there is none for its reserve."""
    with full_file_system(tmp_path) as full:
        full.fill()
        os.truncate(full.path / "ballast", os.path.getsize(full.path / "ballast") - 8192)
        with pytest.raises(NoSpaceError, match="could not reserve room"):
            write_reserved(full.path / "record.json", b"first")
