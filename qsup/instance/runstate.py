"""What QEMU's word for its run state means for a VM (QAPI ``RunState``). Pure.

Decides: which run states a driver tells apart, the cause and the event of the table that each stands for, and which one
a VM's state implies.
Must not: look at a VM.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from qsup.instance.cause import Cause, CauseKind
from qsup.instance.state import Event, State


class Guest(enum.Enum):
    """How the guest is."""

    RUNNING = "running"
    PAUSED = "paused"
    PANICKED = "guest-panicked"
    IO_ERROR = "io-error"
    SHUTDOWN = "shutdown"


#: Why a guest that let its watchdog expire stands still, or ends.
WATCHDOG = Cause(kind=CauseKind.WATCHDOG, detail="the guest let its watchdog expire")
_CAUSES = {
    "guest-panicked": Cause(kind=CauseKind.GUEST_PANIC, detail="the guest reported a panic"),
    "watchdog": WATCHDOG,
    "io-error": Cause(kind=CauseKind.IO_ERROR, detail="QEMU paused it for an I/O error"),
    "shutdown": Cause(kind=CauseKind.GUEST_SHUTDOWN),
}
#: Run states that are to a VM what another one is: what a guest needs whose watchdog has expired, too.
_LIKE = {"watchdog": Guest.PANICKED}


#: What each is to the table, seen in a guest whose monitor has answered all the time.
SEEN: Mapping[Guest, Event] = {
    Guest.RUNNING: Event.GUEST_RESUMED,
    Guest.PAUSED: Event.GUEST_STOPPED,
    Guest.PANICKED: Event.GUEST_PANICKED,
    Guest.IO_ERROR: Event.IO_ERROR_SEEN,
    Guest.SHUTDOWN: Event.GUEST_SHUTDOWN,
}
#: The same as the first answer after a silence.
ANSWERED = {**SEEN, Guest.RUNNING: Event.ANSWERED_RUNNING, Guest.PAUSED: Event.ANSWERED_PAUSED}
#: What QEMU should say in each state in which the guest is there and the monitor answers.
IMPLIED: Mapping[State, Guest] = {
    State.WAITING_READY: Guest.RUNNING,
    State.RUNNING: Guest.RUNNING,
    State.PAUSED: Guest.PAUSED,
    State.IO_ERROR: Guest.IO_ERROR,
    State.GUEST_PANICKED: Guest.PANICKED,
}


def judge_status(status: str) -> tuple[Guest, Cause | None]:
    """How a guest is by QAPI's ``StatusInfo.status``; in every state that is not named here it stands still."""
    try:
        guest = _LIKE.get(status) or Guest(status)
    except ValueError:  # prelaunch, suspended, internal-error...
        guest = Guest.PAUSED
    return guest, _CAUSES.get(status)
