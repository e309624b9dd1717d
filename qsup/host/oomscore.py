"""How readily the kernel kills a process when the host's memory runs out.

Decides: how that is said to the kernel, and how its refusal reads.
Must not: know which process is worth what.

Source: proc(5), ``/proc/PID/oom_score_adj``.
"""

from __future__ import annotations

from pathlib import Path

from qsup.errors import from_oserror


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
