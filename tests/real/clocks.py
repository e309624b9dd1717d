"""A daemon whose wall clock a test sets, as an administrator or a time server sets the host's.

Decides: how far the daemon's clock is from the host's; that of QEMU, and of all others, is the host's own.
Must not: touch a clock that nobody sets: the monotonic ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.real.daemons import Daemon

_SHIFTED = """
import sys, time
real, path = time.time, sys.argv.pop(1)
def shifted():
    with open(path) as file:
        return real() + float(file.read())
time.time = shifted
from qsup.entry import main
main()
"""


class ShiftedDaemon(Daemon):
    """A daemon with a clock of its own, until a test says otherwise that of the host."""

    def __init__(self, root: Path) -> None:
        self._offset = root / "clock-offset"
        self.set_clock(0)
        super().__init__(root, command=(sys.executable, "-c", _SHIFTED, str(self._offset)))

    def set_clock(self, seconds: float) -> None:
        """From now on its clock is that far from the host's."""
        new = self._offset.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._offset)
