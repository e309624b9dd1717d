"""Why a VM is in the state it is in. Pure.

Decides: the kinds of cause, which of them count as failures, and how each reads.
Must not: decide what follows from a cause (that is `qsup.instance.restart`).
"""

from __future__ import annotations

import enum
from typing import Any

from attrs import frozen


class CauseKind(enum.Enum):
    """The stable names; the API promises them."""

    OPERATOR = "operator"
    GUEST_SHUTDOWN = "guest-shutdown"
    GUEST_RESET = "guest-reset"
    GUEST_PANIC = "guest-panic"
    WATCHDOG = "watchdog"
    EXIT_CODE = "exit-code"
    SIGNAL = "signal"
    OOM = "oom"
    EXIT_UNKNOWN = "exit-unknown"
    START_FAILED = "start-failed"
    START_TIMEOUT = "start-timeout"
    DEPENDENCY = "dependency"
    READY_ASSUMED = "ready-assumed"
    IO_ERROR = "io-error"
    MAIN_LOOP_SILENT = "main-loop-silent"
    PROCESS_SILENT = "process-silent"
    MONITOR_SILENT = "monitor-silent"  # which of both is not known: a QEMU that takes no out-of-band commands
    MONITOR_LOST = "monitor-lost"
    RESTART_LIMIT = "restart-limit"
    RECORD_UNREADABLE = "record-unreadable"
    HOST_REBOOT = "host-reboot"


#: Causes that leave a VM failed; ``restart = "on-failure"`` starts it again after all of them but `DEPENDENCY`.
FAILURES = frozenset(
    {
        CauseKind.GUEST_PANIC,
        CauseKind.WATCHDOG,
        CauseKind.EXIT_CODE,
        CauseKind.SIGNAL,
        CauseKind.OOM,
        CauseKind.EXIT_UNKNOWN,
        CauseKind.START_FAILED,
        CauseKind.START_TIMEOUT,
        CauseKind.DEPENDENCY,
        CauseKind.MONITOR_LOST,
    }
)
#: Those of them by which the guest itself says that it has failed: after these ``restart = "on-panic"`` does, too.
PANICS = frozenset({CauseKind.GUEST_PANIC, CauseKind.WATCHDOG})


@frozen(kw_only=True)
class Cause:
    """One cause.

    Args:
        kind: its stable name.
        detail: what QEMU, the guest or the kernel said, one sentence, or ``""``.
        exit_code: QEMU's exit code where that ended it.
        signal: the signal's name without ``SIG`` where that ended it.
        disk: the disk of an I/O error, where it is known.
        nospace: that error is want of room.
        output: the last lines of what QEMU printed before, as `qsup.instance.evidence` bounds them.
        console: the last lines of what the guest wrote to its console before.
    """

    kind: CauseKind
    detail: str = ""
    exit_code: int | None = None
    signal: str = ""
    disk: str = ""
    nospace: bool = False
    output: tuple[str, ...] = ()
    console: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """What is told of it, JSON values: `qsup.api.wire.CauseWire`."""
        return {
            "kind": self.kind.value,
            "text": self.text,
            "detail": self.detail,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "disk": self.disk,
            "nospace": self.nospace,
            "output": list(self.output),
            "console": list(self.console),
        }

    @property
    def is_failure(self) -> bool:
        """Whether it counts as a failure for the restart policy and for the ``failed`` states."""
        return self.kind in FAILURES

    @property
    def text(self) -> str:
        """What stands behind the state: ``signal KILL``, ``exit code 1``, ``main loop``, ``guest-shutdown``."""
        match self.kind:
            case CauseKind.SIGNAL:
                return f"signal {self.signal}"
            case CauseKind.EXIT_CODE:
                return f"exit code {self.exit_code}"
            case CauseKind.MAIN_LOOP_SILENT:
                return "main loop"
            case CauseKind.PROCESS_SILENT:
                return "process"
            case _:
                return str(self.kind.value)
