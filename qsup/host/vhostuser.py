"""Finding the programs that serve vhost-user devices, as QEMU's descriptor files name them.

Decides: which program serves a kind of device, and how a file server is told what to share.
Must not: start any.

Source: docs/interop/vhost-user.json in QEMU's source. File names are looked at in order; one in an earlier directory
hides those of its name in later ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from qsup.errors import UnsupportedError
from qsup.host.opening import open_regular

#: Where descriptors are, the first first.
DIRECTORIES = (Path("/etc/qemu/vhost-user"), Path("/usr/share/qemu/vhost-user"))
#: Where file servers are that came without a descriptor.
_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd")
# with these the shell becomes the server, in a mount namespace of its own in which the directory cannot be written to
_READ_ONLY = 'mount -n --bind -o ro -- "$1" "$1" && shift && exec "$@"'


def find_file_server(directories: Sequence[Path] = DIRECTORIES) -> str:
    """The program that serves virtiofs.

    Raises:
        UnsupportedError: there is none.
    """
    found: dict[str, Path] = {}
    for directory in directories:
        for path in directory.glob("*.json"):
            found.setdefault(path.name, path)
    named = [_binary(found[name]) for name in sorted(found)]
    for program in (*named, *_PLACES):
        if program and os.access(program, os.X_OK):
            return program
    raise UnsupportedError(
        "sharing a directory needs virtiofsd, and there is none",
        hint="Debian has it in qemu-system-common or virtiofsd",
    )


def _binary(path: Path) -> str:
    """What a descriptor names, ``""`` when it serves something else or cannot be read."""
    try:
        with open(open_regular(path, follow=True), "rb") as file:
            values = json.load(file)
    except (OSError, ValueError):
        return ""
    if not isinstance(values, dict) or values.get("type") != "fs":
        return ""
    return str(values.get("binary", ""))


def file_server(program: str, path: str, fd: int, *, read_only: bool) -> list[str]:
    """The command line of a file server, as QEMU's own and the one in Rust both take it.

    Args:
        path: the directory, absolute and without symbolic links.
        fd: a listening socket.
    """
    options = (f"--fd={fd}", "-o", f"source={path}", "-o", "sandbox=namespace", "-o", "cache=auto")
    if not read_only:
        return [program, *options]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", _READ_ONLY, "sh", path, program, *options]
