"""What the attributes of sysfs and procfs say: numbers, lists of CPUs, amounts of memory.

Decides: how each is spelled, and that none can hold a reader up, whatever stands in its place.
Must not: know what any of them is about, or fail: what is wrong with one is noted.

Sources: sysfs(5), proc_meminfo(5); cpuset(7) for lists.
"""

from __future__ import annotations

import os
import re

from qsup.errors import oserror_words
from qsup.unit.quantity import parse_cpu_set

NUMBER = re.compile(r"-?[0-9]{1,18}")
#: Bytes of one file; the longest is the list of every other one of 8192 CPUs.
_LIMIT = 32 << 10
_AMOUNT = re.compile(r"(\w+(?:\(\w+\))?):\s+([0-9]{1,15}) kB")


class Attributes:
    """Attributes below a directory, and what was wrong with them.

    A method that is told that one is ``optional`` notes nothing where it is missing: that says something, too.

    Args:
        top: the directory.

    Attributes:
        problems: which could not be read, or made no sense, in order, and why.
    """

    def __init__(self, top: str) -> None:
        self.problems: list[str] = []
        self.top = top

    def text(self, name: str, *, optional: bool = False) -> str:
        """What it says, ``""`` where it cannot be read. An absolute name is taken as it is."""
        try:
            # a FIFO in its place would be an empty file, and nothing to wait for
            fd = os.open(name if name[0] == "/" else f"{self.top}/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                data = b""
                while len(data) <= _LIMIT and (more := os.read(fd, _LIMIT)):
                    data += more
            finally:
                os.close(fd)
        except OSError as error:
            if not (optional and isinstance(error, FileNotFoundError)):
                self.problems.append(f"{name}: {oserror_words(error)}")
            return ""
        if len(data) > _LIMIT:
            self.problems.append(f"{name}: longer than {_LIMIT} bytes")
            return ""
        return data.decode("ascii", "replace").strip()

    def number(self, name: str, *, optional: bool = False) -> int | None:
        """The number that it says."""
        text = self.text(name, optional=optional)
        if NUMBER.fullmatch(text):
            return int(text)
        if text:
            self._wrong(name, text)
        return None

    def count(self, name: str) -> int | None:
        """The number that it says, which is none below 0."""
        number = self.number(name)
        if number is not None and number < 0:
            self._wrong(name, str(number))
            return None
        return number

    def numbers(self, name: str, *, optional: bool = False) -> tuple[int, ...]:
        """The list of CPUs or nodes that it says."""
        text = self.text(name, optional=optional)
        try:
            return parse_cpu_set(text) if text else ()
        except ValueError:
            self._wrong(name, text)
            return ()

    def amounts(self, name: str) -> dict[str, int]:
        """Of a meminfo: bytes by name."""
        text = self.text(name)
        found = {word: int(amount) << 10 for word, amount in _AMOUNT.findall(text)}
        if text and "MemTotal" not in found:
            self._wrong(name, text)
        return found

    def names(self, directory: str, *, optional: bool = False) -> list[str]:
        """What a directory holds, in order."""
        try:
            return sorted(os.listdir(f"{self.top}/{directory}"))
        except OSError as error:
            if not (optional and isinstance(error, FileNotFoundError)):
                self.problems.append(f"{directory}: {oserror_words(error)}")
            return []

    def _wrong(self, name: str, text: str) -> None:
        self.problems.append(f"{name}: {text[:40]!r}")
