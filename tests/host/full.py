"""A small file system that a test can fill up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 512 << 10


class FullFileSystem:
    """A tmpfs of 512 KiB."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Write until nothing more fits."""
        with open(self.path / "ballast", "ab", buffering=0) as ballast:
            try:
                while ballast.write(bytes(4096)):
                    pass  # until the error
            except OSError:
                return

    def make_room(self) -> None:
        """Undo `fill`."""
        os.unlink(self.path / "ballast")


@contextmanager
def full_file_system(tmp_path: Path) -> Iterator[FullFileSystem]:
    """Mount one for the time of the block; needs root."""
    mountpoint = tmp_path / "full"
    mountpoint.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", mountpoint], check=True, timeout=10)
    try:
        yield FullFileSystem(mountpoint)
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=True, timeout=10)
