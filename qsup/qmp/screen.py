"""A picture of a VM's screen.

Decides: that it is a PNG made here, whatever QEMU was built with.
Must not: give QEMU a path to write to, or hand on a picture that QEMU encoded.

QEMU writes PPM, which every version can, into an anonymous file of ours through a descriptor. So it needs neither a
directory it may write to nor its own PNG support (7.1, if built with libpng), and no picture of a hostile one's making
leaves the daemon.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator

import trio

from qsup.errors import MonitorProtocolError
from qsup.qmp import commands
from qsup.qmp.connection import Monitor

# 5120 x 2880 at 3 bytes; a screen beyond that is refused rather than held in memory
_MAX_PICTURE = 48 * 1024 * 1024
_PPM_HEADER = re.compile(rb"P6\n(\d{1,6}) (\d{1,6})\n255\n")
_COMPRESSION = 3


async def screendump(monitor: Monitor, *, timeout: float) -> bytes:
    """Take a picture of the primary display (QAPI ``screendump``).

    Args:
        timeout: seconds for each of three commands.

    Returns:
        a PNG, true colour, 8 bits.

    Raises:
        QmpCommandError: there is no display.
        MonitorProtocolError: what QEMU wrote is no picture, or too large a one.
        MonitorError: as `Monitor.execute`.
    """
    picture = os.memfd_create("qsup-screen", os.MFD_CLOEXEC)
    try:
        await _dump(monitor, picture, timeout)
        # not mapped: QEMU, which may be hostile, can still shorten the file
        data = os.pread(picture, min(os.fstat(picture).st_size, _MAX_PICTURE + 1), 0)
    finally:
        os.close(picture)
    try:
        return await trio.to_thread.run_sync(png_from_ppm, data)
    except ValueError as error:
        raise MonitorProtocolError(f"screendump: {error}", instance=monitor.name) from error


async def _dump(monitor: Monitor, picture: int, timeout: float) -> None:
    # QEMU takes from a set only a descriptor of the very access mode it would open a file with
    writable = os.open(f"/proc/self/fd/{picture}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        added = await commands.add_fd(monitor, writable, timeout=timeout, opaque="screendump")
    finally:
        os.close(writable)
    try:
        await monitor.execute("screendump", {"filename": f"/dev/fdset/{added.fdset_id}"}, timeout=timeout)
    finally:
        await commands.remove_fd(monitor, added.fdset_id, timeout=timeout)


def png_from_ppm(data: bytes) -> bytes:
    """Convert a binary PPM of 8 bits (ppm(5)) to PNG (W3C PNG, third edition).

    Raises:
        ValueError: it is something else, truncated, or too large.
    """
    if len(data) > _MAX_PICTURE:
        raise ValueError(f"the picture is larger than {_MAX_PICTURE} bytes")
    header = _PPM_HEADER.match(data)
    if header is None:
        raise ValueError("what was written is no picture")
    width, height = int(header[1]), int(header[2])
    if not width or not height or len(data) - header.end() < width * height * 3:
        raise ValueError("the picture is truncated")
    compressor = zlib.compressobj(_COMPRESSION)
    pixels = b"".join(compressor.compress(row) for row in _rows(data, header.end(), width * 3, height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", head), _chunk(b"IDAT", pixels + compressor.flush()), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _rows(data: bytes, start: int, length: int, count: int) -> Iterator[bytes]:
    for row in range(count):
        # filter type 0
        yield b"\0" + data[start + row * length : start + (row + 1) * length]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
