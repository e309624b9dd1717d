"""Whole files, written so that a reader sees the old one or the new one, and read so that no file can hurt the reader.

Decides: when a write counts as done (file and directory are on disk).
Must not: know what is in the files.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from qsup.errors import NoSpaceError, StateFileError, from_oserror, oserror_words
from qsup.host import syscalls
from qsup.host.opening import open_regular

#: Larger than any record of ours by three orders of magnitude.
RECORD_LIMIT = 1 << 20
#: Bytes by which a file with a reserve may grow and fit into it still; its size is a multiple of these.
_STEP = 4096


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace a file: write a new one beside it, fsync, rename, fsync the directory.

    The new file's name is fixed (``.NAME.new``), so what a killed writer leaves is overwritten by the next.

    Args:
        durable: survive a crash of the machine; blocks for the disk (8 ms were measured). Without it the file survives
            a crash of this process only, for 0.1 ms.

    Raises:
        NoSpaceError: the file system is full; the old file stands as it was.
        HostError: the kernel refused otherwise; likewise.
    """
    temporary = f".{path.name}.new"
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _write_new(directory, temporary, data, mode, durable)
            os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
            if durable:
                os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise from_oserror(error, f"could not write {path}") from error


def write_reserved(path: Path, data: bytes) -> None:
    """Replace a file as `write_atomic` does that is not ``durable``, also where no room is left.

    A reserve beside it, ``.NAME.spare``, takes up as much room once more. Where there is none for a new file, the
    reserve is overwritten in place and changes names with the file, which is the reserve from then on: as often as
    wanted, and whoever reads still sees the old file or the new one.

    Args:
        data: for a reader whom newlines behind it do not disturb: both files are filled up with these.

    Raises:
        NoSpaceError: it does not fit into the reserve, or there was no room for one; in the latter case the file is
            written all the same.
        HostError: the kernel refused otherwise; the old file stands as it was.
    """
    spare = path.with_name(f".{path.name}.spare")
    size = _filled_size(len(data))
    try:
        write_atomic(path, data.ljust(size, b"\n"), durable=False)
    except NoSpaceError:
        if not _write_spare(spare, path, data):
            raise
    else:
        _reserve(spare, size)


def _filled_size(count: int) -> int:
    return (count // _STEP + 2) * _STEP


def _reserve(spare: Path, size: int) -> None:
    """Have the reserve take up that much room at least: real bytes, for a hole needs some when it is filled."""
    try:
        file = open_regular(spare, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            write_all(file, b"\n" * (size - os.fstat(file).st_size))
        finally:
            os.close(file)
    except OSError as error:
        raise from_oserror(error, f"could not reserve room for {spare}") from error


def _write_spare(spare: Path, path: Path, data: bytes) -> bool:
    """Write into the reserve and put it in the file's place; ``False`` where it does not fit, or there is none."""
    try:
        file = open_regular(spare, os.O_WRONLY)
    except OSError:
        return False
    try:
        size = os.fstat(file).st_size
        if len(data) > size:
            return False
        write_all(file, data.ljust(size, b"\n"))
        _put_in_place(spare, path)
    except OSError as error:
        raise from_oserror(error, f"could not write {path}") from error
    finally:
        os.close(file)
    return True


def _put_in_place(spare: Path, path: Path) -> None:
    try:
        syscalls.exchange(str(spare), str(path))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise
        os.rename(spare, path)  # there is nothing to change names with, or no way to: this reserve is used up


def rehearse(path: Path, data: bytes) -> None:
    """See that `write_atomic` of the same would succeed, as far as that can be known: nothing is left of it.

    Raises:
        NoSpaceError, HostError: as for `write_atomic`.
    """
    temporary = f".{path.name}.new"
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _write_new(directory, temporary, data, 0o600, False)
            os.unlink(temporary, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise from_oserror(error, f"could not write {path}") from error


def _write_new(directory: int, name: str, data: bytes, mode: int, durable: bool) -> None:
    file = open_regular(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode, dir_fd=directory)
    try:
        write_all(file, data)
        os.fchmod(file, mode)  # whatever the umask
        if durable:
            os.fsync(file)
    except BaseException:
        os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(file)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it to a file; a short write (a file system that just became full) is tried again and then fails."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_bounded(path: Path, *, limit: int = RECORD_LIMIT) -> bytes:
    """Read a regular file of ours, whoever has tampered with it.

    Raises:
        StateFileError: it is missing (``details["missing"]``), a symbolic link, no regular file, larger than ``limit``
            bytes, or unreadable. It is left as it is.
    """
    try:
        with open(open_regular(path), "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        missing, words = isinstance(error, FileNotFoundError), oserror_words(error)
        raise StateFileError(f"{path} cannot be read: {words}", path=str(path), missing=missing) from error
    if len(data) > limit:
        raise StateFileError(f"{path} is larger than {limit} bytes", path=str(path))
    return data
