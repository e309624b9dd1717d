"""``qsupd`` as a program.

Decides: that no garbage is looked for while modules are loaded, which takes a tenth of the time that they take.
Must not: do anything that `qsup.daemon` does, which is a program as well.
"""

from __future__ import annotations

import gc


def main() -> int:
    """The program; see `qsup.daemon.main`."""
    gc.disable()
    from qsup import daemon  # what it loads is what takes the time

    return daemon.main()
