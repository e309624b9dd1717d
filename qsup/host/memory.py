"""The daemon's own memory: how much there is of it, and giving back what is no longer used.

Decides: when it is too much, and that what can be given back is, before anybody suffers for it.
Must not: choose who has to go.

Source: proc_pid_statm(5), malloc_trim(3).
"""

from __future__ import annotations

import gc
import os

from qsup.host import syscalls

_PAGE = os.sysconf("SC_PAGE_SIZE")


class OwnMemory:
    """The resident memory of this process against a ceiling.

    The file is kept open, so that looking needs no descriptor when there is none left.

    Args:
        ceiling: bytes, 0 for none.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self._fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def resident(self) -> int:
        """Bytes that are resident now."""
        return int(os.pread(self._fd, 128, 0).split()[1]) * _PAGE

    def is_short(self) -> bool:
        """Whether there is more than the ceiling although what was free has been given back."""
        if not self.ceiling or self.resident() <= self.ceiling:
            return False
        gc.collect()
        syscalls.give_back_memory()
        return self.resident() > self.ceiling

    def close(self) -> None:
        """Look no more."""
        os.close(self._fd)
