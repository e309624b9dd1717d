"""Who has which image: one writer, or readers.

Decides: whether a VM may have an image beside those who have it already, in this daemon or outside.
Must not: open or lock images; QEMU locks them itself, and this says beforehand, and with a name, what it would say.

Source: block/file-posix.c in QEMU's source. QEMU holds a shared lock on byte 100+N for each permission N that it uses
and on 200+N for each that it does not share with others; permission 1 is writing.
"""

from __future__ import annotations

import fcntl
import os
import struct

from attrs import frozen

from qsup.errors import ImageInUse
from qsup.host import proc
from qsup.host.image import OpenImage

_BYTE_WRITES = 101
_BYTE_FORBIDS_WRITING = 201
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid


@frozen(kw_only=True)
class Claim:
    """One VM's right to one image, as its run record keeps it.

    Args:
        path: as the unit says it.
        st_dev, st_ino: the image; see `OpenImage`.
        writable: it may be written.
        shareable: others who also say so may have it at the same time, for writing too.
        entry: of the unit that it is for, such as ``disk.root``.
    """

    path: str
    st_dev: int
    st_ino: int
    writable: bool
    shareable: bool
    entry: str = ""

    @property
    def key(self) -> tuple[int, int]:
        """What two claims on the same image have in common."""
        return (self.st_dev, self.st_ino)

    def conflicts(self, other: Claim) -> bool:
        """Whether both cannot be had at the same time."""
        return self.key == other.key and self.excludes(writable=other.writable, shareable=other.shareable)

    def excludes(self, *, writable: bool, shareable: bool) -> bool:
        """Whether nobody can have the image beside it who has it so."""
        return (self.writable or writable) and not (self.shareable and shareable)


class Claims:
    """All claims of the daemon's VMs."""

    def __init__(self) -> None:
        self._held: dict[str, list[Claim]] = {}

    def acquire(
        self, image: OpenImage, *, holder: str, writable: bool, shareable: bool = False, entry: str = ""
    ) -> Claim:
        """Take an image for a VM, until `release`.

        Args:
            image: open; its descriptors are used for a look at QEMU's own locks.
            holder: the VM's name.
            entry: of its unit that the image is for.

        Raises:
            ImageInUse: another VM, another disk of the same VM, or a foreign process has it; it is named.
        """
        claim = Claim(
            path=image.path,
            st_dev=image.st_dev,
            st_ino=image.st_ino,
            writable=writable,
            shareable=shareable,
            entry=entry,
        )
        self._check(claim, holder)
        known = any(claim.key == other.key for claims in self._held.values() for other in claims)
        if not known and locked_by_qemu(image.fd_ro, writable=writable, shareable=shareable):
            raise _in_use(image.path, _foreign_holder(image.fd_ro))
        self._held.setdefault(holder, []).append(claim)
        return claim

    def restore(self, claim: Claim, *, holder: str) -> None:
        """Take note of what an adopted VM has; it has it already, so nothing is refused."""
        self._held.setdefault(holder, []).append(claim)

    def release(self, holder: str) -> None:
        """Give up all that a VM has; when it has none, nothing happens."""
        self._held.pop(holder, None)

    def release_entry(self, holder: str, entry: str) -> None:
        """Give up what a VM has for one entry of its unit."""
        self._held[holder] = [claim for claim in self._held.get(holder, []) if claim.entry != entry]

    def holders(self, image: OpenImage) -> tuple[str, ...]:
        """The VMs that have an image, by name."""
        key = (image.st_dev, image.st_ino)
        return tuple(holder for holder, claims in self._held.items() if any(claim.key == key for claim in claims))

    def _check(self, wanted: Claim, holder: str) -> None:
        for other, claims in self._held.items():
            for claim in filter(wanted.conflicts, claims):
                what = f"{'written' if claim.writable else 'read'} by"
                who = f"{claim.entry or 'another disk'} of this VM" if other == holder else f"VM {other}"
                raise _in_use(wanted.path, f"{what} {who}", holder=other)


def _in_use(path: str, by: str, *, holder: str = "") -> ImageInUse:
    hint = "set `shareable = true` on both disks if their guests can share it"
    return ImageInUse(f"disk image {path} is {by}", hint=hint if holder else "", path=path, holder=holder)


def locked_by_qemu(fd: int, *, writable: bool, shareable: bool = False) -> bool:
    """Whether another process holds the image so that QEMU would be refused (``F_OFD_GETLK``, fcntl(2))."""
    forbidding = [_BYTE_FORBIDS_WRITING] if writable else []
    writing = [] if shareable else [_BYTE_WRITES]
    return any(_is_locked(fd, byte) for byte in forbidding + writing)


def _is_locked(fd: int, byte: int) -> bool:
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question))
    return bool(answer[0] != fcntl.F_UNLCK)


def _foreign_holder(fd: int) -> str:
    status = os.fstat(fd)
    found = [proc.describe(pid) for pid in proc.holders(status.st_dev, status.st_ino)]
    return f"in use by {', '.join(found) or 'a process outside this daemon'}"
