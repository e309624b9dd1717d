"""A journal on disk: JSON records, one a line, each there before `Journal.append` returns.

Decides: when a record counts as written, that several which belong together are all there or none is, and which are
kept when the file has grown too large.
Must not: know what the records mean, beyond a key that says which of them replace each other.

The first line is ``{"journal": 1}``, the format's version; the records have versions of their own. Records that were
written together are an array, on one line. Whoever is killed
while writing leaves at worst a torn last line, which is left out at the next opening. A file with other damage is kept
as ``NAME.damaged``, and what can be read of it goes on in a new one. One of a newer format is kept as ``NAME.newer``.
Where that name is taken, it is ``NAME.damaged.2`` and so on: nothing that was kept is replaced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from itertools import chain, count
from pathlib import Path
from typing import Any

import trio

from qsup.errors import StateFileError, from_oserror
from qsup.host import atomic
from qsup.host.opening import open_regular

VERSION = 1
#: Bytes after which the file is rewritten with only what is kept.
COMPACT_SIZE = 1 << 20
_READ_LIMIT = 64 << 20
_HEADER = json.dumps({"journal": VERSION}).encode() + b"\n"

JournalRecord = dict[str, Any]


class _Entry:
    """One record, or several that belong together, on the way to the disk."""

    __slots__ = ("done", "error", "flush", "line", "records")

    def __init__(self, records: tuple[JournalRecord, ...], *, flush: bool) -> None:
        self.records = records
        self.flush = flush
        line = records if len(records) > 1 else records[0]
        self.line = json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        self.done = False
        self.error: Exception | None = None


class Journal:
    """An open journal.

    Args:
        path: the file, made when it is absent; its directory exists.
        key: of two records with the same key only the later one is kept when the file is rewritten.
        keep: how many keys are kept then: those written last.
        spare: whether a record is kept beyond that number; few are.
        compact_size: bytes after which the file is rewritten.

    Raises:
        HostError: it cannot be made, or one that cannot be used cannot be set aside.
    """

    def __init__(
        self,
        path: Path,
        *,
        key: Callable[[JournalRecord], str],
        keep: int,
        spare: Callable[[JournalRecord], bool] = lambda record: False,
        compact_size: int = COMPACT_SIZE,
    ) -> None:
        self.path = path
        self.damage = ""
        self._key = key
        self._keep = keep
        self._spare = spare
        self._compact_size = compact_size
        self._latest: dict[str, JournalRecord] = {}
        self._pending: list[_Entry] = []
        self._writing = trio.Lock()
        self._fd, self._size, self._limit = -1, 0, 0
        self._load()

    def records(self) -> tuple[JournalRecord, ...]:
        """The last record of each key kept, oldest first."""
        return tuple(self._latest.values())

    async def append(self, *records: JournalRecord, flush: bool = True) -> None:
        """Write one record, and return when it is on disk; callers that come together share one flush.

        Args:
            records: of several a later daemon finds all or none, whenever this one is killed.
            flush: without it they survive the daemon, and need not survive the machine.

        Cancelled while it waits for others, it may or may not have been written.

        Raises:
            NoSpaceError: the file system is full; nothing of the record was written, and the next may succeed.
            HostError: the disk failed.
            ValueError: it is no JSON.
        """
        entry = _Entry(records, flush=flush)
        self._pending.append(entry)
        async with self._writing:
            if not entry.done:
                batch, self._pending = self._pending, []
                with trio.CancelScope(shield=True):  # bounded by the disk; a thread cannot be stopped half-way
                    data, flush = b"".join(each.line for each in batch), any(each.flush for each in batch)
                    error = await trio.to_thread.run_sync(self._commit, data, flush)
                for each in batch:
                    each.done, each.error = True, error
                    if error is None:
                        self._remember(each.records)
        if entry.error:
            raise entry.error

    def _commit(self, data: bytes, flush: bool) -> Exception | None:
        """In a worker thread, one at a time: write and flush a batch, all of it or nothing."""
        try:
            self._write(data, flush)
        except OSError as error:
            return from_oserror(error, f"could not write the journal {self.path}")
        except Exception as error:  # whatever it is, everyone who waits for this batch must hear of it
            return error
        return None

    def _write(self, data: bytes, flush: bool) -> None:
        if self._fd < 0 or self._size + len(data) > self._limit:
            self._rewrite()
        try:
            atomic.write_all(self._fd, data)
            if flush:
                os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def _remember(self, records: Iterable[JournalRecord]) -> None:
        for key, record in [(self._key(record), record) for record in records]:
            self._latest.pop(key, None)  # so that it moves to the end
            self._latest[key] = record
        while len(self._latest) > self._keep:
            oldest = next((name for name, kept in self._latest.items() if not self._spare(kept)), None)
            if oldest is None:
                return
            del self._latest[oldest]

    def _rewrite(self) -> None:
        """Replace the file by one that holds only what is kept, and open that."""
        lines = (json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in self._latest.values())
        data = _HEADER + b"".join(lines)
        atomic.write_atomic(self.path, data)
        self.close()
        self._fd = open_regular(self.path, os.O_WRONLY | os.O_APPEND)
        self._size = len(data)
        # what is kept may fill the file by itself; it is not rewritten for every record then
        self._limit = max(self._compact_size, 2 * self._size)

    def _load(self) -> None:
        try:
            data = atomic.read_bounded(self.path, limit=_READ_LIMIT)
        except StateFileError as error:
            if not error.details.get("missing"):
                self._set_aside("damaged", error.message, move=True)
            data = _HEADER
        # what follows the last newline was being written when the writer was killed
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        if (version := self._version(lines)) > VERSION:
            self._set_aside("newer", f"{self.path} was written by a newer qsupd: its format is {version}")
            return
        broken = [number for number, line in enumerate(lines[1:], 2) if not self._read_line(line)]
        if broken:
            self._set_aside("damaged", f"{self.path} was damaged at line {broken[0]} (of {len(lines)})")

    def _version(self, lines: list[bytes]) -> int:
        """The format's; what is no header is damage, to be read as a record and fail."""
        header = _parse(lines[0]) if lines else None
        version = header[0].get("journal") if header else None
        if type(version) is int and version >= VERSION:
            return version
        lines.insert(0, b"")
        return VERSION

    def _read_line(self, line: bytes) -> bool:
        records = _parse(line)
        if records is None:
            return False
        try:
            self._remember(records)
        except (KeyError, TypeError):  # JSON, but no record of ours
            return False
        return True

    def _set_aside(self, why: str, words: str, *, move: bool = False) -> None:
        """Give the file a second name that outlives its rewriting, which the first `append` brings.

        Args:
            move: take its first name away, too: it is nothing that could be read again.
        """
        first = f"{self.path.name}.{why}"
        names = chain([first], (f"{first}.{number}" for number in count(2)))
        try:
            aside = next(filter(self._is_free, map(self.path.with_name, names)))
            if move:
                os.rename(self.path, aside)
            elif not os.path.lexists(aside):
                os.link(self.path, aside)
        except OSError as error:
            raise from_oserror(error, f"could not set {self.path} aside") from error
        self.damage = f"{words}; it is kept as {aside}"

    def _is_free(self, aside: Path) -> bool:
        """Whether a name can be the file's second one: it is nobody's, or it is so since an earlier start."""
        try:
            return os.path.samestat(os.lstat(aside), os.lstat(self.path))
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Close the file; a later `append` would open it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _parse(line: bytes) -> list[JournalRecord] | None:
    """The records on a line; ``None`` for what is no line of a journal."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    records = value if isinstance(value, list) and value else [value]
    return records if all(isinstance(record, dict) for record in records) else None
