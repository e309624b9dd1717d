"""Tests of `qsup.host.vhostuser`: which program shares a directory, and how it is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

from qsup.host.vhostuser import file_server, find_file_server


def describe(directory: Path, name: str, text: object) -> None:
    """A descriptor file."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text if isinstance(text, str) else json.dumps(text))


def test_the_first_that_is_described_and_can_be_executed_serves(tmp_path: Path) -> None:
    """Of the names in order, an earlier directory's file in place of a later one's; what is no descriptor is passed."""
    mine = tmp_path / "mine"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    etc, usr = tmp_path / "etc", tmp_path / "usr"
    describe(usr, "10-gpu.json", {"type": "gpu", "binary": str(mine)})
    describe(usr, "20-broken.json", "{")
    describe(usr, "30-list.json", [])
    os.mkfifo(usr / "35-fifo.json")
    describe(usr, "40-gone.json", {"type": "fs", "binary": str(tmp_path / "gone")})
    describe(usr, "50-fs.json", {"type": "fs", "binary": "/bin/false"})
    assert find_file_server((etc, usr)) == "/bin/false"
    describe(etc, "50-fs.json", {"type": "fs", "binary": str(mine)})
    assert find_file_server((etc, usr)) == str(mine)


def test_a_directory_is_named_by_itself_and_never_parsed_by_a_shell() -> None:
    """What the shell of a read-only share gets are arguments."""
    assert file_server("/d", "/a b", 7, read_only=False) == [
        *("/d", "--fd=7", "-o", "source=/a b", "-o", "sandbox=namespace", "-o", "cache=auto")
    ]
    command = file_server("/d", "/$(x)", 7, read_only=True)
    script = command[command.index("-c") + 1]
    assert "/$(x)" not in script
    assert command[command.index("-c") + 2 :] == ["sh", "/$(x)", *file_server("/d", "/$(x)", 7, read_only=False)]
