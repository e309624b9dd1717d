"""Why a monitor is silent: QEMU's main loop is busy, or its process stands still.

Decides: how the two are told apart, and in which words.
Must not: change anything about the VM, or wait longer than one short deadline.

QEMU takes out-of-band commands in a thread of its own: an answer there means that only the main loop is held up (a
long synchronous command, storage that does not answer). No answer means that the process as a whole stands still, and
/proc says how.
"""

from __future__ import annotations

import structlog

from qsup.errors import MonitorError, MonitorTimeout, QmpCommandError, UnsupportedError
from qsup.host import proc
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.life import Life
from qsup.qmp import commands
from qsup.qmp.connection import Monitor

_log = structlog.get_logger()

#: Seconds that a QEMU whose process runs has to answer out of band.
PROBE_TIMEOUT = 1.0


async def explain(life: Life, connection: Monitor, silence: str) -> Cause | None:
    """Ask out of band.

    Args:
        silence: what was waited for in vain, in words.

    Returns:
        The cause, or ``None`` when the connection has ended meanwhile and there is another story to tell.
    """
    try:
        await commands.query_yank(connection, timeout=PROBE_TIMEOUT)
    except MonitorTimeout:
        words = f"{silence}, nor out of band: {stillness(life)}"
        return Cause(kind=CauseKind.PROCESS_SILENT, detail=words)
    except UnsupportedError:
        return Cause(kind=CauseKind.MONITOR_SILENT, detail=silence)
    except QmpCommandError as error:
        _log.debug("an odd answer out of band", instance=life.record.name, why=error.message)
    except MonitorError:
        return None
    words = f"{silence}, but it answers out of band: its main loop is busy"
    if proc.thread_state(life.process.pid) == "D":
        words += f", or waits for storage ({_wait(life)})"
    return Cause(kind=CauseKind.MAIN_LOOP_SILENT, detail=words)


def stillness(life: Life) -> str:
    """How the process stands still."""
    if life.cgroup.frozen():
        return "its cgroup is frozen"
    match proc.thread_state(life.process.pid):
        case "T":
            return "its process is stopped (SIGSTOP)"
        case "t":
            return "its process is stopped by a debugger"
        case "D":
            return f"its process waits in the kernel, uninterruptibly ({_wait(life)})"
        case _:
            return "its process is not held by anybody: it may be starved, or busy"


def _wait(life: Life) -> str:
    return proc.wait_channel(life.process.pid) or "where is not known"
