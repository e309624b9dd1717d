"""Files that QEMU opens by path reach the VM's own user, and nobody else gets more than he had."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from qsup.errors import HostError
from qsup.host.staging import StagedFile, stage_file

STRANGER = 64_123


def made(path: Path, mode: int) -> Path:
    """A file of its own name's content, under directories that only their owner may enter."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(path.name)
    path.chmod(mode)
    return path


def read_as_stranger(staged: StagedFile) -> str:
    """What a user without any right reads, who has inherited the descriptor."""
    fds = () if staged.fd is None else (staged.fd,)
    done = subprocess.run(
        ["cat", staged.path],
        user=STRANGER,
        group=STRANGER,
        extra_groups=[],
        pass_fds=fds,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode()


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_a_file_behind_a_closed_directory_is_read_through_its_descriptor(tmp_path: Path, mode: int) -> None:
    """Neither the directories above it nor, by a copy, its own mode keep the VM's user out."""
    path = made(tmp_path / "closed" / "kernel", mode)
    staged = stage_file(path, uid=STRANGER)
    try:
        assert staged.fd is not None
        assert read_as_stranger(staged) == "kernel"
        assert path.stat().st_mode & 0o777 == mode
    finally:
        staged.close()


def test_the_callers_own_files_are_taken_by_their_path(tmp_path: Path) -> None:
    """Without a user of its own, QEMU reads what the caller reads; the command line stays readable."""
    path = made(tmp_path / "closed" / "kernel", 0o600)
    assert stage_file(path, uid=None) == StagedFile(path=str(path))


def test_a_public_file_is_taken_by_its_path() -> None:
    """What anybody may read is not copied and takes no descriptor."""
    assert stage_file(Path("/etc/os-release"), uid=STRANGER) == StagedFile(path="/etc/os-release")


@pytest.mark.parametrize("what", ["missing", "directory", "fifo"])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, what: str) -> None:
    """A missing file, a directory and a FIFO are errors at once; a FIFO blocks nobody."""
    path = tmp_path / what
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    with pytest.raises(HostError, match=str(path)):
        stage_file(path, uid=STRANGER)
