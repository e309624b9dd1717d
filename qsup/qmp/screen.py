"""A picture of a VM's screen.

Decides: that it is a PNG made here, whatever QEMU was built with.
Must not: give QEMU a path to write to, or hand on a picture that QEMU encoded.

QEMU writes PPM, which every version can, into an anonymous file of ours through a descriptor. So it needs neither a
directory it may write to nor its own PNG support (7.1, if built with libpng), and no picture of a hostile one's making
leaves the daemon.
"""

from __future__ import annotations

import io
import os
import re
import struct
import weakref
import zlib
from collections.abc import Iterator

import trio

from qsup.errors import MonitorClosed, MonitorProtocolError, MonitorTimeout, QmpCommandError
from qsup.qmp import commands
from qsup.qmp.connection import Monitor

# 5120 x 2880 at 3 bytes; a screen beyond that is refused rather than held in memory
_MAX_PICTURE = 48 * 1024 * 1024
_PPM_HEADER = re.compile(rb"P6\n(\d{1,6}) (\d{1,6})\n255\n")
_COMPRESSION = 3


async def screendump(monitor: Monitor, *, timeout: float) -> bytes:
    """Take a picture of the primary display (QAPI ``screendump``); one at a time for each monitor.

    Args:
        timeout: seconds for all of it, the wait for others included.

    Returns:
        a PNG, true colour, 8 bits.

    Raises:
        QmpCommandError: there is no display.
        MonitorProtocolError: what QEMU wrote is no picture, or too large a one.
        MonitorError: as `Monitor.execute`.
    """
    try:
        with trio.fail_after(timeout):
            data = await _draw(monitor, timeout)
            return await trio.to_thread.run_sync(png_from_ppm, data)
    except trio.TooSlowError as error:
        raise MonitorTimeout(f"screendump: no picture within {timeout:g} s", instance=monitor.name) from error
    except ValueError as error:
        raise MonitorProtocolError(f"screendump: {error}", instance=monitor.name) from error


async def _draw(monitor: Monitor, timeout: float) -> bytes:
    while True:
        canvas = _canvases.get(monitor)
        if canvas is None or canvas.closed:
            canvas = _Canvas(monitor)
        async with canvas.lock:
            if canvas.closed:
                continue  # it was given up while we waited for it
            try:
                return await canvas.draw(monitor, timeout)
            except QmpCommandError:
                raise
            except BaseException:
                # QEMU may yet draw on it, which must not be taken for the next picture
                canvas.close()
                raise


class _Canvas:
    """An anonymous file that QEMU draws on, lent once for the life of a connection.

    Lending one for each picture would leak: QEMU 7.2 closes no removed descriptor while the guest stands still.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.lock = trio.Lock()
        # files and not numbers: the end of the connection closes them, and a number may then be another's
        self._file = io.FileIO(os.memfd_create("qsup-screen"), "rb")
        # QEMU takes from a set only a descriptor of the very access mode it would open a file with
        self._writable = io.FileIO(f"/proc/self/fd/{self._file.fileno()}", "wb")
        self._fdset: int | None = None
        _canvases[monitor] = self
        monitor.closing.callback(self.close)

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()
        self._writable.close()

    async def draw(self, monitor: Monitor, timeout: float) -> bytes:
        if self._fdset is None:
            added = await commands.add_fd(monitor, self._writable.fileno(), timeout=timeout, opaque="screendump")
            self._fdset = added.fdset_id
        try:
            # QEMU writes where the descriptor stands, which it shares with ours
            self._writable.seek(0)
            self._writable.truncate()
            await monitor.execute("screendump", {"filename": f"/dev/fdset/{self._fdset}"}, timeout=timeout)
            # not mapped: QEMU, which may be hostile, can still shorten the file
            size = os.fstat(self._file.fileno()).st_size
            return os.pread(self._file.fileno(), min(size, _MAX_PICTURE + 1), 0)
        except ValueError as error:
            raise MonitorClosed("screendump: the connection ended", instance=monitor.name) from error


_canvases: weakref.WeakKeyDictionary[Monitor, _Canvas] = weakref.WeakKeyDictionary()


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
