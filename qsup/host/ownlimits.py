"""What the kernel holds one process to by itself, without a cgroup: its OOM score and how many files it may have open.

Decides: how that is said to the kernel and read back, and how a refusal reads.
Must not: know which process is worth what.

Source: proc(5), ``/proc/PID/oom_score_adj`` and ``/proc/PID/limits``.
"""

from __future__ import annotations

import re
from pathlib import Path

from qsup.errors import from_oserror

_OPEN_FILES = re.compile(r"^Max open files +(\d+) ", re.MULTILINE)


def adjust(pid: int, score: int) -> None:
    """Set a process's score.

    Args:
        score: -1000 (never) to 1000 (before all others). What it forks later inherits it.

    Raises:
        HostError: the kernel refused it, as it does to whoever lowers one without CAP_SYS_RESOURCE.
    """
    path = Path(f"/proc/{pid}/oom_score_adj")
    try:
        path.write_text(str(score))
    except OSError as error:
        raise from_oserror(error, f"could not write {score} to {path}") from error


def score(pid: int) -> int | None:
    """A process's score, ``None`` of one that has ended."""
    try:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def nofile(pid: int) -> int | None:
    """How many files a process may have open now (RLIMIT_NOFILE, the soft limit), ``None`` of one that has ended."""
    try:
        found = _OPEN_FILES.search(Path(f"/proc/{pid}/limits").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if found is None else int(found[1])
