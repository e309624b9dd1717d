"""Files that QEMU opens by path, made readable for a VM's own user and nobody else.

Decides: how QEMU's user reaches a kernel, an initial RAM disk or a ROM that lies where it may not go.
Must not: change the files, or copy what can be read as it is.

A path under ``/proc/self/fd`` leads to the inode itself (proc(5)): only the file's own permission counts, not that of
the directories above it. What even then could not be read is copied into a memfd, which is anyone's to read who has it.
"""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen

from qsup.errors import from_oserror
from qsup.host.opening import open_regular

_READ_BY_OTHERS = 0o004
_ENTER_BY_OTHERS = 0o001


@frozen(kw_only=True)
class StagedFile:
    """A file as QEMU is to be told of it.

    Args:
        path: what the argument says.
        fd: a descriptor that QEMU must inherit under the same number, or ``None``; `close` once it has it.
    """

    path: str
    fd: int | None = None

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd is not None:
            os.close(self.fd)


def stage_file(path: Path, *, uid: int | None) -> StagedFile:
    """Make a file readable for a user. Blocks for the disk.

    Args:
        path: absolute.
        uid: the VM's own, ``None`` for the caller himself.

    Raises:
        HostError: it cannot be opened, or is no regular file.
    """
    try:
        fd = open_regular(path, follow=True)
        try:
            if uid is None or _is_public(path):
                os.close(fd)
                return StagedFile(path=str(path))
            if not os.fstat(fd).st_mode & _READ_BY_OTHERS:
                fd = _replace_by_copy(fd)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise from_oserror(error, f"could not open {path}") from error
    return StagedFile(path=f"/proc/self/fd/{fd}", fd=fd)


def _is_public(path: Path) -> bool:
    real = path.resolve()
    return bool(real.stat().st_mode & _READ_BY_OTHERS) and all(
        parent.stat().st_mode & _ENTER_BY_OTHERS for parent in real.parents
    )


def _replace_by_copy(fd: int) -> int:
    copy = os.memfd_create("qsup-staged")
    try:
        while os.sendfile(copy, fd, None, 1 << 24):  # None: from the descriptor's own offset
            pass
        os.fchmod(copy, 0o444)
    except BaseException:
        os.close(copy)
        raise
    os.close(fd)
    return copy
