"""A journal on disk: JSON records, one a line, each there before `Journal.append` returns.

Decides: when a record counts as written, and which are kept when the file has grown too large.
Must not: know what the records mean, beyond a key that says which of them replace each other.

The first line is ``{"journal": 1}``, the format's version. Whoever is killed while writing leaves at worst a torn last
line, which is left out at the next opening. A file with other damage is kept as ``NAME.damaged``, and what can be read
of it goes on in a new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from qsup.errors import StateFileError, from_oserror
from qsup.host import atomic

VERSION = 1
#: Bytes after which the file is rewritten with only what is kept.
COMPACT_SIZE = 1 << 20
_READ_LIMIT = 64 << 20
_HEADER = json.dumps({"journal": VERSION}).encode() + b"\n"

JournalRecord = dict[str, Any]


class _Entry:
    """One record on its way to the disk."""

    __slots__ = ("done", "error", "line", "record")

    def __init__(self, record: JournalRecord) -> None:
        self.record = record
        self.line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        self.done = False
        self.error: Exception | None = None


class Journal:
    """An open journal.

    Args:
        path: the file, made when it is absent; its directory exists.
        key: of two records with the same key only the later one is kept when the file is rewritten.
        keep: how many keys are kept then: those written last.
        compact_size: bytes after which the file is rewritten.

    Raises:
        StateFileError: it is of a newer format, or unreadable; it is left as it is.
        HostError: it cannot be made.
    """

    def __init__(
        self, path: Path, *, key: Callable[[JournalRecord], str], keep: int, compact_size: int = COMPACT_SIZE
    ) -> None:
        self.path = path
        self.damage = ""
        self._key = key
        self._keep = keep
        self._compact_size = compact_size
        self._latest: dict[str, JournalRecord] = {}
        self._pending: list[_Entry] = []
        self._writing = trio.Lock()
        self._fd, self._size, self._limit = -1, 0, 0
        self._load()

    def records(self) -> tuple[JournalRecord, ...]:
        """The last record of each key kept, oldest first."""
        return tuple(self._latest.values())

    async def append(self, record: JournalRecord) -> None:
        """Write one record, and return when it is on disk; callers that come together share one flush.

        Cancelled while it waits for others, it may or may not have been written.

        Raises:
            NoSpaceError: the file system is full; nothing of the record was written, and the next may succeed.
            HostError: the disk failed.
            ValueError: it is no JSON.
        """
        entry = _Entry(record)
        self._pending.append(entry)
        async with self._writing:
            if not entry.done:
                batch, self._pending = self._pending, []
                with trio.CancelScope(shield=True):  # bounded by the disk; a thread cannot be stopped half-way
                    error = await trio.to_thread.run_sync(self._commit, b"".join(entry.line for entry in batch))
                for each in batch:
                    each.done, each.error = True, error
                    if error is None:
                        self._remember(each.record)
        if entry.error:
            raise entry.error

    def _commit(self, data: bytes) -> Exception | None:
        """In a worker thread, one at a time: write and flush a batch, all of it or nothing."""
        try:
            self._write(data)
        except OSError as error:
            return from_oserror(error, f"could not write the journal {self.path}")
        except Exception as error:  # whatever it is, everyone who waits for this batch must hear of it
            return error
        return None

    def _write(self, data: bytes) -> None:
        if self._fd < 0 or self._size + len(data) > self._limit:
            self._rewrite()
        try:
            atomic.write_all(self._fd, data)
            os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def _remember(self, record: JournalRecord) -> None:
        key = self._key(record)
        self._latest.pop(key, None)  # so that it moves to the end
        self._latest[key] = record
        while len(self._latest) > self._keep:
            del self._latest[next(iter(self._latest))]

    def _rewrite(self) -> None:
        """Replace the file by one that holds only what is kept, and open that."""
        lines = (json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in self._latest.values())
        data = _HEADER + b"".join(lines)
        atomic.write_atomic(self.path, data)
        self.close()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._size = len(data)
        # what is kept may fill the file by itself; it is not rewritten for every record then
        self._limit = max(self._compact_size, 2 * self._size)

    def _load(self) -> None:
        try:
            data = atomic.read_bounded(self.path, limit=_READ_LIMIT)
        except StateFileError as error:
            if not error.details.get("missing"):
                raise
            data = _HEADER
        # what follows the last newline was being written when the writer was killed
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        self._check_header(lines)
        broken = [number for number, line in enumerate(lines[1:], 2) if not self._read_line(line)]
        if broken:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            self.damage = f"{self.path} was damaged at line {broken[0]} (of {len(lines)}); it is kept as {aside}"
            self._set_aside(aside)

    def _check_header(self, lines: list[bytes]) -> None:
        """Refuse a newer format; anything else that is no header is damage, to be read as a record and fail."""
        header = _parse(lines[0]) if lines else None
        version = header.get("journal") if header else None
        if isinstance(version, int) and version > VERSION:
            why = f"has format {version}; this qsup reads up to {VERSION}"
            raise StateFileError(f"{self.path} {why}", path=str(self.path))
        if version != VERSION:
            lines.insert(0, b"")

    def _read_line(self, line: bytes) -> bool:
        record = _parse(line)
        if record is None:
            return False
        try:
            self._remember(record)
        except (KeyError, TypeError):  # JSON, but no record of ours
            return False
        return True

    def _set_aside(self, aside: Path) -> None:
        """Give the file a second name that outlives its rewriting."""
        try:
            aside.unlink(missing_ok=True)
            os.link(self.path, aside)
        except OSError as error:
            raise from_oserror(error, f"could not set {self.path} aside") from error

    def close(self) -> None:
        """Close the file; a later `append` would open it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _parse(line: bytes) -> JournalRecord | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
