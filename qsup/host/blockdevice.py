"""Which block device a path stands for.

Decides: that a partition stands for its whole disk, and what is no device for the one that its file system is on.
Must not: open any of them.

Source: Documentation/ABI/stable/sysfs-block; cgroup-v2.rst, "io.max", which takes whole disks.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from qsup.errors import HostError, from_oserror

_SYSFS = Path("/sys/dev/block")


def whole_disk(path: str, *, sysfs: Path = _SYSFS) -> str:
    """The numbers of a path's disk, such as ``8:0``. May wait for a file system.

    Raises:
        HostError: there is no such path, or no block device behind it.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise from_oserror(error, f"could not look at {path}") from error
    number = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
    entry = sysfs / f"{os.major(number)}:{os.minor(number)}"
    try:
        disk = entry.resolve().parent if (entry / "partition").exists() else entry
        return (disk / "dev").read_text().strip()
    except OSError as error:
        raise HostError(f"{path} is on no block device of the host", hint="name a device, such as /dev/sda") from error
