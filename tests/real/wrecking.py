"""Wrecking a daemon's own files, and looking at what became of them.

Decides: what may stand in place of a file.
Must not: assert anything; tests do.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit


def start(daemon: Daemon, emulator: Emulator, rom: Path, names: tuple[str, ...]) -> dict[str, int]:
    """Start VMs side by side; their pids."""
    for name in names:
        (daemon.units / f"{name}.toml").write_text(rom_unit(emulator, rom))
    with daemon.client() as client:
        client.post("/v1/reload")
        for name in names:
            client.post(f"/v1/instances/{name}/start")
    return {name: daemon.wait(name, "running")["pid"] for name in names}


def record(daemon: Daemon, name: str) -> Path:
    """A VM's run record."""
    return daemon.run / "instances" / name / "record.json"


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


#: What links in place of the daemon's files lead to: it is read by nobody and stays as it is.
TARGET = b'{"schema": 1, "somebody": "else\'s"}\n'


def target_of(path: Path) -> Path:
    """Where `put_link` leads to: beside the daemon's directories, and nobody's."""
    root = next(parent for parent in path.parents if (parent / "qsupd.log").exists())
    return root / "somebody-elses"


def put_link(path: Path) -> None:
    """Put a symbolic link in place of a file."""
    path.unlink()
    target_of(path).write_bytes(TARGET)
    path.symlink_to(target_of(path))


def found(path: Path) -> tuple[object, ...]:
    """What is under a path: its kind and all that it holds; nothing is followed."""
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return ()
    held: Mapping[int, Callable[[], object]] = {
        stat.S_IFREG: path.read_bytes,
        stat.S_IFLNK: path.readlink,
        stat.S_IFDIR: lambda: sorted(path.iterdir()),
    }
    return kind, held.get(kind, lambda: None)()


def put_fifo(path: Path) -> None:
    """Put a FIFO in place of a file."""
    path.unlink()
    os.mkfifo(path)


def put_directory(path: Path) -> None:
    """Put a directory in place of a file."""
    path.unlink()
    path.mkdir()


def remove(path: Path) -> None:
    """Remove whatever stands there."""
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
