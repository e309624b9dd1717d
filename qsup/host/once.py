"""What is done once in each boot of the host.

Decides: how that is remembered: by an empty file whose name has the boot's id, so that nothing in it can be wrong.
Must not: know what is done.
"""

from __future__ import annotations

from pathlib import Path

from qsup.errors import from_oserror
from qsup.host import proc


class OncePerBoot:
    """Remembers whether something was done in this boot.

    Args:
        directory: an existing one, the daemon's own.
        what: its name, which no other file there begins with.
    """

    def __init__(self, directory: Path, what: str) -> None:
        self._directory = directory
        self._what = what

    @property
    def _path(self) -> Path:
        return self._directory / f"{self._what}.{proc.boot_id()}"

    @property
    def is_done(self) -> bool:
        """Whether it was."""
        return self._path.exists()

    def note(self) -> None:
        """It is done now.

        Raises:
            NoSpaceError, HostError: that could not be written.
        """
        try:
            self._path.touch(mode=0o600)
            for path in self._directory.glob(f"{self._what}.*"):
                if path != self._path:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise from_oserror(error, f"could not write {self._path}") from error
