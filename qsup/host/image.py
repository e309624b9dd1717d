"""Disk images: opening them inside the declared pools and checking them on the very descriptor that QEMU gets.

Decides: which paths may be images, and which images are refused.
Must not: probe a format, write to an image, or keep a descriptor; who may have an image with whom is
`qsup.host.claims`' to say.

Source: openat2(2), open(2) (``O_EXCL`` on a block device that the host uses).
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import trio
from attrs import frozen

from qsup.errors import ImageError, ImageInUse, from_oserror
from qsup.host import imageheader, process, syscalls
from qsup.host.opening import open_regular
from qsup.unit.imagepath import PROTOCOL_REFUSAL, reads_as_protocol

_FORMATS = ("raw", "qcow2")
_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
# what QEMU's tools would take for an option, or the end of a line
_OPTION = re.compile(r"[,\x00-\x1f\x7f]")


@frozen(kw_only=True)
class OpenImage:
    """An image that was opened and found good. The caller owns the descriptors.

    Args:
        path: as the unit says it.
        location: where that is.
        format: ``raw`` or ``qcow2``.
        fd_ro: open for reading.
        fd_rw: open for reading and writing, ``None`` if not asked for.
        st_dev, st_ino: the file; of a block device its number and 0, so that two nodes of one device are one image.
        size: bytes of the file or device.
        virtual_size: bytes the guest sees.
    """

    path: str
    location: Path
    format: str
    fd_ro: int
    fd_rw: int | None
    st_dev: int
    st_ino: int
    size: int
    virtual_size: int

    @property
    def fds(self) -> tuple[int, ...]:
        """Its descriptors."""
        return (self.fd_ro,) if self.fd_rw is None else (self.fd_ro, self.fd_rw)

    def close(self) -> None:
        """Close the descriptors; once, right after QEMU has inherited them."""
        for fd in self.fds:
            os.close(fd)


def open_image(
    path: str,
    *,
    pools: Sequence[Path],
    format: str,
    read_only: bool,
    backing: tuple[str, str] | None = None,
    allow_block_devices: Sequence[str] = (),
    direct: bool = False,
    own: bool = False,
) -> OpenImage:
    """Open an image afresh and check it. Blocks for the disk (0.1 ms where nothing is slow).

    Args:
        path: relative (to the first pool), or absolute (inside a pool, or a block device).
        pools: directories that images may be in.
        format: ``raw`` or ``qcow2``; never probed.
        read_only: do not open it for writing.
        backing: the declared backing file right below it: path, format. It is compared, not opened.
        allow_block_devices: globs of block devices that may be used, such as ``/dev/vg0/*``.
        direct: past the host's cache (``O_DIRECT``).
        own: it is one of the daemon's own files, absolute, which the pools do not concern.

    Raises:
        ImageError: the path or the image breaks a rule, which ``details["rule"]`` names, or it cannot be opened.
        ImageInUse: it is a block device that the host itself uses.
    """
    try:
        place = _Place(path, pools=pools, devices=allow_block_devices, own=own)
        handle = place.open()
        try:
            image = _open_checked(place, handle, format, read_only, backing)
        finally:
            os.close(handle)
        if direct:
            _make_direct(image)
    except OSError as error:
        words = os.strerror(error.errno or 0)
        hint = (
            f"a relative path begins at {pools[0]}" if error.errno == errno.ENOENT and not os.path.isabs(path) else ""
        )
        raise ImageError(f"could not open disk image {path}: {words}", hint=hint, rule="open", path=path) from error
    return image


def find_directory(path: str, pools: Sequence[Path]) -> Path:
    """A directory inside the pools, by a path without symbolic links. Blocks for the disk.

    Raises:
        ImageError: it breaks the rules for images, or is no directory.
    """
    try:
        handle = _Place(path, pools=pools, devices=(), own=False).open()
        try:
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                raise _refusal(path, "file-type", "is no directory")
            return Path(os.readlink(f"/proc/self/fd/{handle}"))
        finally:
            os.close(handle)
    except ImageError as error:
        error.message = error.message.replace("disk image", "shared directory", 1)
        raise
    except OSError as error:
        words = os.strerror(error.errno or 0)
        raise ImageError(f"could not open shared directory {path}: {words}", rule="open", path=path) from error


def _make_direct(image: OpenImage) -> None:
    """Only now: the header was read without the alignment that ``O_DIRECT`` wants (open(2))."""
    try:
        for fd in image.fds:
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        image.close()
        why = f"is on a file system without direct I/O ({error.strerror})"
        raise _refusal(image.path, "direct", why, 'use cache = "writeback"') from error


def _refusal(path: str, rule: str, why: str, hint: str = "") -> ImageError:
    return ImageError(f"disk image {path!r} {why}", hint=hint, rule=rule, path=path)


class _Place:
    """Where a path of a unit leads: into a pool, to an allowed block device, or to a file of the daemon's own."""

    def __init__(self, path: str, *, pools: Sequence[Path], devices: Sequence[str], own: bool) -> None:
        self.path = path
        self.pools = pools
        self.device = False
        self._pool: Path | None = None
        if not own:
            _check_words(path)
            self.device = ".." not in Path(path).parts and any(fnmatch.fnmatchcase(path, glob) for glob in devices)
        if own or self.device:
            self.location = Path(path)
        else:
            self._pool, self._below = _pool_of(path, pools)
            self.location = self._pool / self._below

    def open(self) -> int:
        """An ``O_PATH`` descriptor, which has no effect on what it leads to."""
        if self._pool is None:
            return os.open(self.path, os.O_PATH | os.O_CLOEXEC)
        directory = os.open(self._pool, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return syscalls.openat2(directory, self._below, os.O_PATH, _BENEATH)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ELOOP):
                raise
            why = f"leaves its pool {self._pool}, by '..' or by a symbolic link"
            raise _refusal(self.path, "outside-pools", why) from error
        finally:
            os.close(directory)

    def means(self, name: str, declared: str) -> bool:
        """Whether a name in this image's header is the file that the unit declares.

        Args:
            name: untrusted, relative to the image's own directory; nothing is looked up under it.
            declared: a path as the unit says it.
        """
        other = _Place(declared, pools=self.pools, devices=(), own=os.path.isabs(declared)).location
        here = self.location.parent
        meant = {os.path.normpath(directory / name) for directory in (here, here.resolve())}
        return not reads_as_protocol(name) and not meant.isdisjoint({os.path.normpath(other), str(other.resolve())})


def _check_words(path: str) -> None:
    if not path:
        raise _refusal(path, "empty", "has no path")
    if reads_as_protocol(path):
        raise _refusal(path, "protocol", PROTOCOL_REFUSAL)
    if _OPTION.search(path):
        raise _refusal(path, "characters", "has a comma or a control character in its path, which QEMU would misread")


def _pool_of(path: str, pools: Sequence[Path]) -> tuple[Path, str]:
    if not os.path.isabs(path):
        return pools[0], path
    # the longest first, so that a pool within a pool is found; a pool may itself be a symbolic link
    for pool in sorted(pools, key=lambda pool: len(pool.parts), reverse=True):
        for top in (pool, pool.resolve()):
            if Path(path).is_relative_to(top):
                return pool, str(Path(path).relative_to(top))
    names = ", ".join(map(str, pools))
    hint = "move it there, or allow its directory or block device in the daemon's configuration"
    raise _refusal(path, "outside-pools", f"is in none of the pools ({names}) and is no allowed block device", hint)


def _open_checked(
    place: _Place, handle: int, format: str, read_only: bool, backing: tuple[str, str] | None
) -> OpenImage:
    status = os.fstat(handle)
    _check_kind(place, handle, status)
    # reopened through the handle: the file that was judged, whatever the path leads to by now
    through = f"/proc/self/fd/{handle}"
    fd_ro = os.open(through, os.O_RDONLY | os.O_CLOEXEC)
    fd_rw = None
    try:
        size = os.lseek(fd_ro, 0, os.SEEK_END)
        virtual_size = _check_content(place, fd_ro, format, size, backing)
        if not read_only:
            fd_rw = os.open(through, os.O_RDWR | os.O_CLOEXEC)
    except BaseException:
        os.close(fd_ro)
        raise
    st_dev, st_ino = (status.st_rdev, 0) if place.device else (status.st_dev, status.st_ino)
    return OpenImage(
        path=place.path,
        location=place.location,
        format=format,
        fd_ro=fd_ro,
        fd_rw=fd_rw,
        st_dev=st_dev,
        st_ino=st_ino,
        size=size,
        virtual_size=virtual_size,
    )


def _check_kind(place: _Place, handle: int, status: os.stat_result) -> None:
    if place.device:
        if not stat.S_ISBLK(status.st_mode):
            raise _refusal(place.path, "file-type", "is no block device")
        try:
            os.close(os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            what = "is mounted or otherwise used by the host"
            raise ImageInUse(f"block device {place.path} {what}", rule="mounted", path=place.path) from error
    elif not stat.S_ISREG(status.st_mode):
        raise _refusal(place.path, "file-type", "is no regular file")


def _check_content(place: _Place, fd: int, format: str, size: int, backing: tuple[str, str] | None) -> int:
    """The virtual size of an image whose content is as declared."""
    if format not in _FORMATS:
        raise _refusal(place.path, "format", f"has the format {format!r}, which is not one of {', '.join(_FORMATS)}")
    if format == "raw":
        return size
    try:
        head = os.pread(fd, imageheader.FIXED_SIZE, 0)
        header = imageheader.parse_qcow2(os.pread(fd, imageheader.header_area(head), 0))
    except imageheader.HeaderError as error:
        raise _refusal(place.path, error.rule, str(error)) from error
    if header.external_data:
        raise _refusal(place.path, "external-data-file", "keeps its data in another file")
    _check_backing(place, header, backing)
    return header.virtual_size


def _check_backing(place: _Place, header: imageheader.Qcow2Header, backing: tuple[str, str] | None) -> None:
    if backing is None:
        if header.backing:
            hint = "declare it with `backing` if it is meant"
            raise _refusal(
                place.path, "undeclared-backing", f"has the undeclared backing file {header.backing!r}", hint
            )
        return
    path, format = backing
    if not header.backing:
        raise _refusal(place.path, "backing-mismatch", f"has no backing file, although {path!r} is declared")
    if not place.means(header.backing, path):
        why = f"has the backing file {header.backing!r}, not the declared {path!r}"
        raise _refusal(place.path, "backing-mismatch", why)
    if header.backing_format not in ("", format):
        why = f"has a backing file of format {header.backing_format!r}, not the declared {format!r}"
        raise _refusal(place.path, "backing-mismatch", why)


async def create_qcow2_copy(
    source: Path, target: Path, *, source_format: str = "raw", seconds: float = 30.0, qemu_img: str = "qemu-img"
) -> None:
    """Make a qcow2 image of a trusted one, whole or not at all: a VM's UEFI variables from the firmware's template.

    Args:
        source: the template, absolute.
        target: the new image, absolute, replaced if it is there; mode 0600.
        source_format: ``raw`` or ``qcow2``.
        seconds: what it may take.

    Raises:
        HostError: qemu-img failed; its words are in the message.
        NoSpaceError, HostError: the copy could not be put in place.
    """
    temporary = target.with_name(f".{target.name}.new")
    convert = (qemu_img, "convert", "-f", source_format, "-O", "qcow2")
    try:
        _create_private(temporary)  # qemu-img keeps the mode of a file that is there
        await process.run_tool((*convert, str(source), str(temporary)), seconds=seconds)
        await trio.to_thread.run_sync(_put_in_place, temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _create_private(path: Path) -> None:
    try:
        os.close(open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    except OSError as error:
        raise from_oserror(error, f"could not create {path}") from error


def _flush(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _put_in_place(temporary: Path, target: Path) -> None:
    try:
        _flush(open_regular(temporary))
        temporary.rename(target)
        _flush(os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise from_oserror(error, f"could not write {target}") from error
