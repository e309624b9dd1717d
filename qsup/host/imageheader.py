"""What the header of a qcow2 image says. Pure: bytes in, a value or a `HeaderError` out.

Decides: which headers are refused before QEMU ever sees them: corrupt ones, and those that ask for what is not known.
Must not: open anything, or guess a format; a guest can write any header onto its raw disk.

Source: docs/interop/qcow2.txt in QEMU's source.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from attrs import frozen

MAGIC = b"QFI\xfb"
#: Bytes to read before `header_area` can say how much more is needed.
FIXED_SIZE = 112

_V2 = struct.Struct(">4sIQIIQI")  # magic, version, backing offset, backing size, cluster bits, size, encryption
_V3 = struct.Struct(">QQQII")  # incompatible, compatible, autoclear, refcount order, header length; at 72
_EXTENSION = struct.Struct(">II")
_EXTENSION_BACKING_FORMAT = 0xE2792ACA
_EXTENSION_DATA_FILE = 0x44415441
_NAME_LIMIT = 1023  # longest backing file name

_INCOMPATIBLE_CORRUPT = 1 << 1
_INCOMPATIBLE_DATA_FILE = 1 << 2
# dirty, corrupt, external data file, compression type, extended L2 entries
_INCOMPATIBLE_KNOWN = 0b11111


class HeaderError(ValueError):
    """A header that is refused; it reads as what follows "the image", and `rule` names the rule for machines."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(what)
        self.rule = rule


@frozen(kw_only=True)
class Qcow2Header:
    """What matters of a qcow2 header.

    Args:
        virtual_size: the guest's view, in bytes.
        backing: the backing file's name as it stands there, or ``""``.
        backing_format: its format as it stands there, or ``""``.
        external_data: whether guest data lies in another file.
    """

    virtual_size: int
    backing: str
    backing_format: str
    external_data: bool


def header_area(head: bytes) -> int:
    """How many bytes from the start `parse_qcow2` needs: the first cluster.

    Raises:
        HeaderError: it is no qcow2 image, or of no known version.
    """
    if len(head) < _V2.size or head[:4] != MAGIC:
        raise HeaderError("qcow2-magic", "is declared qcow2 but does not begin as one")
    version: int
    cluster_bits: int
    _, version, _, _, cluster_bits, _, _ = _V2.unpack_from(head)
    if version not in (2, 3):
        raise HeaderError("qcow2-version", f"has qcow2 version {version}; 2 and 3 are known")
    if not 9 <= cluster_bits <= 21:
        raise HeaderError("qcow2-corrupt", f"has a corrupt header: a cluster of 2^{cluster_bits} bytes")
    return 1 << cluster_bits


def parse_qcow2(area: bytes) -> Qcow2Header:
    """Parse the first cluster of a qcow2 image.

    Args:
        area: at least its first `header_area` bytes, or fewer if the file ends before.

    Raises:
        HeaderError: the header is corrupt, encrypted, or asks for features that are not known.
    """
    area = area[: header_area(area)]
    _, version, backing_offset, backing_size, _, size, encryption = _V2.unpack_from(area)
    incompatible, length = 0, 72
    if version == 3:
        if len(area) < 72 + _V3.size:
            raise HeaderError("qcow2-corrupt", "has a corrupt header: it is cut off")
        incompatible, _, _, _, length = _V3.unpack_from(area, 72)
    if incompatible & ~_INCOMPATIBLE_KNOWN:
        unknown = incompatible & ~_INCOMPATIBLE_KNOWN
        raise HeaderError("qcow2-features", f"needs qcow2 features that are not known (bits {unknown:#x})")
    if incompatible & _INCOMPATIBLE_CORRUPT:
        raise HeaderError("qcow2-corrupt", "is marked corrupt; `qemu-img check -r all` may repair it")
    if encryption:
        raise HeaderError("qcow2-encrypted", "is encrypted, which is not supported")
    extensions = dict(_extensions(area, length))
    return Qcow2Header(
        virtual_size=size,
        backing=_name(area, backing_offset, backing_size),
        backing_format=extensions.get(_EXTENSION_BACKING_FORMAT, b"").decode(errors="replace"),
        external_data=bool(incompatible & _INCOMPATIBLE_DATA_FILE) or _EXTENSION_DATA_FILE in extensions,
    )


def _extensions(area: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset + _EXTENSION.size <= len(area):
        kind, length = _EXTENSION.unpack_from(area, offset)
        if kind == 0:
            return
        start = offset + _EXTENSION.size
        if start + length > len(area):
            raise HeaderError("qcow2-corrupt", "has a corrupt header: an extension goes beyond it")
        yield kind, area[start : start + length]
        offset = start + (length + 7) // 8 * 8


def _name(area: bytes, offset: int, size: int) -> str:
    if not offset:
        return ""
    if not 0 < size <= _NAME_LIMIT or offset + size > len(area):
        raise HeaderError("qcow2-corrupt", "has a corrupt header: the backing file's name goes beyond it")
    return area[offset : offset + size].decode(errors="surrogateescape")
