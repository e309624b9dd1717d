"""Why a process ended that nobody here had told to. Pure.

Decides: what its status, its last words and its cgroup's count of OOM kills mean.
Must not: find any of them out (`qsup.instance.watch` does).
"""

from __future__ import annotations

import re
import signal

from qsup.host.pidfd import ExitStatus
from qsup.instance.cause import Cause, CauseKind

#: Why the kernel killed a process whose cgroup says so.
OUT_OF_MEMORY = "the kernel killed it because memory ran out"
#: Why it ended when its last words are these: somebody stops its scope, or the host shuts down.
STOPPED_BY_SYSTEMD = "systemd stopped it, as `systemctl stop` of its scope or a shutdown of the host has it do"
_BY_SYSTEMD = re.compile(r"terminating on signal 15 from pid (\d+ \((\S*/)?systemd|1 \(\S*)\)$")


def cause_of_exit(status: ExitStatus, last_words: str, *, oom_killed: bool = False) -> Cause:
    """Why a process ended that nobody had told to.

    Args:
        last_words: the last line QEMU wrote, or ``""``.
        oom_killed: its cgroup has counted an OOM kill in this life.
    """
    match status.kind:
        case "signal" | "unknown" if oom_killed and may_be_sigkill(status):
            return Cause(kind=CauseKind.OOM, signal="KILL", detail=OUT_OF_MEMORY)
        case "signal":
            return Cause(kind=CauseKind.SIGNAL, signal=status.describe().removeprefix("signal "), detail=last_words)
        case "code" if status.success and _BY_SYSTEMD.search(last_words):
            return Cause(kind=CauseKind.OPERATOR, detail=STOPPED_BY_SYSTEMD)
        case "code":
            return Cause(kind=CauseKind.EXIT_CODE, exit_code=status.value, detail=last_words)
        case _:
            return Cause(kind=CauseKind.EXIT_UNKNOWN, detail=last_words)


def may_be_sigkill(status: ExitStatus) -> bool:
    """Whether it can have been."""
    return status.kind == "unknown" or (status.kind == "signal" and status.value == signal.SIGKILL)
