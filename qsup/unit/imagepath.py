"""What the path of a disk image cannot be, and when two paths are one.

Decides: what is no path to an image on any host.
Must not: know the pools, or look at files; `qsup.host.image` does.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

#: What is said of a path for which `reads_as_protocol` is true.
PROTOCOL_REFUSAL = "reads as a protocol of QEMU's; only files and block devices are images"
_PROTOCOL = re.compile(r"[^/]*:")


def reads_as_protocol(path: str) -> bool:
    """Whether QEMU's tools would take it for a protocol, such as ``nbd:...`` or ``json:...``; ``./a:b`` is a file."""
    return _PROTOCOL.match(path) is not None


def begins_outside(path: str) -> bool:
    """Whether it begins with ``..``, above its pool. One further on may follow a symbolic link, and stay within."""
    return PurePosixPath(path).parts[:1] == ("..",)


def same_file(path: str) -> PurePosixPath:
    """What is equal for paths that are spelled differently and are one on every host: ``a``, ``./a`` and ``.//a``."""
    return PurePosixPath(path)
