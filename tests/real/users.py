"""An ordinary user's own daemon, ``qsupd --user``, in his XDG directories, without any right.

Decides: who that is. Root becomes a throw-away user, who sees the checkout at a place that is open to all; anyone else
is such a user already.
Must not: assert anything; tests do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.real.daemons import Daemon

CHECKOUT = Path(__file__).parents[2]
#: Nobody's: below what root's daemon gives to VMs, above what people have.
STRANGER = 719_999
BECOME = 'mount --bind "$1" "$2"; cd "$2"; shift 2; exec "$@"'


class UsersDaemon(Daemon):
    """``qsupd --user`` of whoever runs this, or of a throw-away user when that is root.

    Args:
        root: a test's directory; everything of the user's is below it.
    """

    def __init__(self, root: Path) -> None:
        self.uid = os.geteuid() or STRANGER
        home = root / "home"
        self.runtime = runtime = root / "runtime"
        self._prefix = (*self._become(root), "env", "-i", f"HOME={home}", f"XDG_RUNTIME_DIR={runtime}", "LANG=C.UTF-8")
        for directory in (home, runtime):
            directory.mkdir(mode=0o700)
            os.chown(directory, self.uid, -1)
        super().__init__(root, command=(*self._prefix, self._python(root), "-m", "qsup.daemon"), place=("--user",))
        self.units = home / ".config/qsup/units"
        self.images = home / ".local/share/qsup/images"
        self.state = home / ".local/state/qsup"
        self.run = self.state / "run"
        self.logs = self.state / "log"

    def _become(self, root: Path) -> tuple[str, ...]:
        if self.uid == os.geteuid():
            return ()
        (root / "checkout").mkdir()
        isolate = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", BECOME, "sh")
        rights = ("--clear-groups", "--inh-caps=-all", "--bounding-set=-all")
        user = ("setpriv", "--reuid", str(self.uid), "--regid", str(self.uid), *rights)
        return (*isolate, str(CHECKOUT), str(root / "checkout"), *user)

    def _python(self, root: Path) -> str:
        python = Path(sys.executable)
        if self.uid == os.geteuid() or not python.is_relative_to(CHECKOUT):
            return str(python)
        return str(root / "checkout" / python.relative_to(CHECKOUT))

    def ctl(self, *arguments: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the user's ``qsupctl``."""
        command = [*self._prefix, self._python(self.root), "-m", "qsup.ctl.main", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, input=stdin, check=check)

    def without_session(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of ours as the user where there is no login session: cron, su."""
        prefix = [each for each in self._prefix if not each.startswith("XDG_RUNTIME_DIR=")]
        command = [*prefix, self._python(self.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
