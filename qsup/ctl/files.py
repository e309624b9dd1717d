"""Files that qsupctl writes for its user.

Decides: that a reader sees the old file or the whole new one.
Must not: choose a file's name.
"""

from __future__ import annotations

import os

from qsup.errors import from_oserror


def write_file(path: str, data: bytes) -> None:
    """Replace a file, or what a link leads to. A device or a pipe, such as ``/dev/stdout``, is written to.

    Raises:
        NoSpaceError, HostError: the kernel refused; an old file is as it was.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "wb") as file:
                file.write(data)
        else:
            _replace(os.path.realpath(path), data)
    except OSError as error:
        raise from_oserror(error, f"could not write {path}") from error


def _replace(path: str, data: bytes) -> None:
    directory, name = os.path.split(path)
    new = os.path.join(directory, f".{name}.{os.getpid()}.new")
    try:
        with open(new, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        try:
            os.unlink(new)
        except FileNotFoundError:
            pass  # it was not even made, or is in its place
        raise
