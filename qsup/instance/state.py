"""The states of a VM, the events that move it, and the one table of transitions. Pure.

Decides: which (state, event) pairs exist, where each leads, which effects the driver must carry out, and whether a
request is allowed now.
Must not: do any of it. `qsup.instance.position` alone looks pairs up here and alone holds a VM's state.

Theory of operation
-------------------
A VM has a `State`. Everything that happens to it (a request, a QMP event, the end of its process, a deadline) becomes
an `Event`. `step` finds the pair in `TRANSITIONS`; a pair that is not there raises `UndefinedTransition` and changes
nothing. The result names the next state and the effects, in order. Effects that take time end by posting a further
event, so the driver never waits inside a transition.

The end of the process arrives as one of five events, chosen beforehand by `qsup.instance.restart.outcome` from the
cause, the policy and the history: `ENDED` (orderly), `FAILED`, `START_FAILED`, `RESTARTING`, `LIMIT_HIT`. Each is
possible wherever a process can be.

Long because it is the whole table, and a table is read as one.

Requests are judged by `judge` before they become events: allowed, needless (already so: succeeds and does nothing), or
denied with the reason.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from attrs import frozen

from qsup.errors import UndefinedTransition


class Level(enum.Enum):
    """The first level, which the API promises; systemd's words."""

    ACTIVE = "active"
    ACTIVATING = "activating"
    DEACTIVATING = "deactivating"
    INACTIVE = "inactive"
    FAILED = "failed"


_MENDED = "a start, or `reset-failed`"


class State(enum.Enum):
    """The second level, which the API documents: ``(substate, level, what it is, what ends it)``."""

    DEAD = ("dead", Level.INACTIVE, "Not running.", "a start")
    WAITING_DEPS = (
        "waiting-deps",
        Level.ACTIVATING,
        "Its start waits for other VMs: those it is `after`, those it conflicts with, or those whose turn it is.",
        "its turn, a VM it requires that is not up by then, or a stop",
    )
    SPAWNING = (
        "spawning",
        Level.ACTIVATING,
        "Images are opened, QEMU is executed and its monitor negotiated; the guest does not run yet.",
        "the guest running, a failure, or the start timeout",
    )
    WAITING_READY = (
        "waiting-ready",
        Level.ACTIVATING,
        "The guest runs; what `ready` names has not been seen yet.",
        "readiness, or the start timeout",
    )
    AUTO_RESTART = (
        "auto-restart",
        Level.ACTIVATING,
        "It ended, and its policy starts it again after a delay.",
        "the delay, a start (at once), or a stop",
    )
    RUNNING = ("running", Level.ACTIVE, "The guest runs and is ready.", "anything below")
    PAUSED = ("paused", Level.ACTIVE, "The vCPUs are stopped; memory and devices are kept.", "a resume")
    IO_ERROR = (
        "io-error",
        Level.ACTIVE,
        "QEMU paused the guest because a disk failed or its file system is full; the cause says which.",
        "room in that file system, all by itself; else a resume, once the disk works",
    )
    GUEST_PANICKED = (
        "guest-panicked",
        Level.ACTIVE,
        "The guest's kernel reported a panic, or its watchdog expired, and it stands still.",
        "a reset or a stop",
    )
    UNRESPONSIVE = (
        "unresponsive",
        Level.ACTIVE,
        "The process lives, but its monitor does not answer within the deadline. The cause says which part of it stands"
        " still. It is never killed for that.",
        "an answer from the monitor",
    )
    UNREACHABLE = (
        "unreachable",
        Level.ACTIVE,
        "The process lives, but its monitor could not be connected, or the connection was given up.",
        "a successful reconnect, which is tried again and again",
    )
    STOPPING_GUEST = (
        "stopping-guest",
        Level.DEACTIVATING,
        "The guest was asked to shut down, by its agent or by the ACPI power button.",
        "the guest's power-off, or the stop timeout",
    )
    STOPPING_QUIT = ("stopping-quit", Level.DEACTIVATING, "QEMU was told to quit.", "its end, or the quit timeout")
    STOPPING_TERM = ("stopping-term", Level.DEACTIVATING, "QEMU was sent SIGTERM.", "its end, or the term timeout")
    STOPPING_KILL = ("stopping-kill", Level.DEACTIVATING, "QEMU was sent SIGKILL.", "its end")
    EXITING = (
        "exiting",
        Level.DEACTIVATING,
        "QEMU has ended, unasked; the kernel is still taking its process down. The cause says how it ended.",
        "its end",
    )
    STUCK = (
        "stuck",
        Level.DEACTIVATING,
        "QEMU has ended or was sent SIGKILL, and is still there: the kernel keeps it (uninterruptible sleep).",
        "its end",
    )
    CRASHED = ("crashed", Level.FAILED, "It ended by a failure, and its policy does not start it again.", _MENDED)
    START_FAILED = ("start-failed", Level.FAILED, "It could not be started; the cause says why.", _MENDED)
    START_LIMIT_HIT = (
        "start-limit-hit",
        Level.FAILED,
        "It was restarted `start-limit-burst` times within `start-limit-interval` and stays down.",
        _MENDED,
    )
    QUARANTINED = (
        "quarantined",
        Level.FAILED,
        "A record that the daemon keeps of it cannot be read, so nothing about it is believed and nothing is touched.",
        "removing or repairing the record, then a reload",
    )

    def __init__(self, substate: str, level: Level, meaning: str, ends_by: str) -> None:
        self.substate = substate
        self.level = level
        self.meaning = meaning
        self.ends_by = ends_by


class Event(enum.Enum):
    """What can happen to a VM."""

    # requests; the others only make QEMU say something, and that is the event
    START = "start"
    STOP = "stop"
    KILL = "kill"
    RESET_FAILED = "reset-failed"
    # a start that has to wait for other VMs
    QUEUED = "queued"
    TURN = "turn"  # nothing keeps it any more
    # the launch and its deadline
    LAUNCHED = "launched"  # QEMU runs the guest
    READY = "ready"
    START_TIMEOUT = "start-timeout"
    # adoption by a restarted daemon, and what a monitor answers that was out of reach
    FOUND = "found"
    ADOPTED_RUNNING = "adopted-running"
    ADOPTED_WAITING = "adopted-waiting"
    ADOPTED_PAUSED = "adopted-paused"
    ADOPTED_IO_ERROR = "adopted-io-error"
    ADOPTED_PANICKED = "adopted-panicked"
    ADOPTED_SHUTDOWN = "adopted-shutdown"
    ADOPTED_STOPPING = "adopted-stopping"  # the guest had been asked to shut down
    FOUND_STOPPING = "found-stopping"  # QEMU itself had been told to end
    RECORD_UNREADABLE = "record-unreadable"
    RECORD_REPAIRED = "record-repaired"
    # from the guest and QEMU
    GUEST_STOPPED = "guest-stopped"  # QAPI event STOP
    GUEST_RESUMED = "guest-resumed"  # QAPI event RESUME
    WAITING_AGAIN = "waiting-again"  # the guest runs again, and has never been ready
    GUEST_RESET = "guest-reset"
    GUEST_SHUTDOWN = "guest-shutdown"
    GUEST_PANICKED = "guest-panicked"
    GUEST_IO_ERROR = "guest-io-error"
    IO_ERROR_SEEN = "io-error-seen"  # by its run state, the event was missed
    HELD = "held"  # an operator wants a guest paused that stands still for an I/O error
    ROOM_AGAIN = "room-again"  # what it stands still for may be over
    RESTART_WANTED = "restart-wanted"  # the policy wants a guest that stands still ended and started again
    # the monitor
    SILENT = "silent"
    ANSWERED_RUNNING = "answered-running"
    ANSWERED_PAUSED = "answered-paused"
    MONITOR_LOST = "monitor-lost"
    DYING = "dying"  # the connection ended, and the kernel is taking the process down
    # deadlines of a stop
    STAGE_TIMEOUT = "stage-timeout"
    # the end of the process, already judged
    ENDED = "ended"
    FAILED = "failed"
    START_FAILED = "start-failed"
    RESTARTING = "restarting"
    LIMIT_HIT = "limit-hit"
    RESTART_DUE = "restart-due"


class Effect(enum.Enum):
    """What the driver must do on an edge, in the order given."""

    AWAIT_TURN = "await-turn"  # posts TURN, or the end
    CANCEL_TURN = "cancel-turn"
    LAUNCH = "launch"  # make, spawn, negotiate, cont; posts LAUNCHED, or the end
    CANCEL_LAUNCH = "cancel-launch"  # end the launch, and its process with it; posts the end
    AWAIT_READY = "await-ready"  # posts READY
    CANCEL_READY = "cancel-ready"
    ASK_GUEST = "ask-guest"  # agent, then ACPI; posts STAGE_TIMEOUT
    QUIT = "quit"  # QMP quit with its deadline; posts STAGE_TIMEOUT
    TERM = "term"  # SIGTERM with its deadline; posts STAGE_TIMEOUT
    KILL = "kill"  # SIGKILL with its deadline; posts STAGE_TIMEOUT
    ARM_RESTART = "arm-restart"  # posts RESTART_DUE after the delay
    DISARM_RESTART = "disarm-restart"
    RECONNECT = "reconnect"  # keep trying to reach the monitor; posts ADOPTED_* when it answers
    REFRESH = "refresh"  # query again what a reset may have changed
    AWAIT_ROOM = "await-room"  # posts ROOM_AGAIN, if want of room is all that is wrong
    LET_GO_ON = "let-go-on"  # QMP cont; QEMU's event says that it has
    FORGET_GUEST = "forget-guest"  # the guest's agent knows nothing of what was asked before


@frozen(kw_only=True)
class Transition:
    """Where an edge leads and what it asks for."""

    target: State
    effects: tuple[Effect, ...] = ()


def _to(target: State, *effects: Effect) -> Transition:
    return Transition(target=target, effects=effects)


#: States in which QEMU's process may exist.
WITH_PROCESS = frozenset(
    {
        State.SPAWNING,
        State.WAITING_READY,
        State.RUNNING,
        State.PAUSED,
        State.IO_ERROR,
        State.GUEST_PANICKED,
        State.UNRESPONSIVE,
        State.UNREACHABLE,
        State.STOPPING_GUEST,
        State.STOPPING_QUIT,
        State.STOPPING_TERM,
        State.STOPPING_KILL,
        State.EXITING,
        State.STUCK,
    }
)
#: States in which a guest is there and the monitor is believed to answer.
_REACHED = (State.WAITING_READY, State.RUNNING, State.PAUSED, State.IO_ERROR, State.GUEST_PANICKED)
#: Failures that can be forgotten.
_FORGETTABLE = (State.CRASHED, State.START_FAILED, State.START_LIMIT_HIT)
_DOWN = (State.DEAD, *_FORGETTABLE)

#: States in which a start is under way. Where no operation holds the VM, its policy began that, and a start joins it.
BEING_STARTED = frozenset({State.WAITING_DEPS, State.SPAWNING, State.WAITING_READY})

_Table = dict[tuple[State, Event], Transition]


def _starting() -> _Table:
    table: _Table = {(state, Event.START): _to(State.SPAWNING, Effect.LAUNCH) for state in _DOWN}
    table |= {(state, Event.QUEUED): _to(State.WAITING_DEPS, Effect.AWAIT_TURN) for state in _DOWN}
    table |= {(state, Event.START): _to(state) for state in BEING_STARTED}
    table |= {
        (State.AUTO_RESTART, Event.QUEUED): _to(State.WAITING_DEPS, Effect.DISARM_RESTART, Effect.AWAIT_TURN),
        (State.WAITING_DEPS, Event.TURN): _to(State.SPAWNING, Effect.LAUNCH),
        (State.WAITING_DEPS, Event.START_FAILED): _to(State.START_FAILED),
        (State.WAITING_DEPS, Event.STOP): _to(State.DEAD, Effect.CANCEL_TURN),
        (State.WAITING_DEPS, Event.KILL): _to(State.DEAD, Effect.CANCEL_TURN),
        (State.AUTO_RESTART, Event.START): _to(State.SPAWNING, Effect.DISARM_RESTART, Effect.LAUNCH),
        (State.AUTO_RESTART, Event.RESTART_DUE): _to(State.SPAWNING, Effect.LAUNCH),
        **{(state, Event.RESET_FAILED): _to(State.DEAD) for state in _FORGETTABLE},
        (State.AUTO_RESTART, Event.STOP): _to(State.DEAD, Effect.DISARM_RESTART),
        (State.AUTO_RESTART, Event.KILL): _to(State.DEAD, Effect.DISARM_RESTART),
        (State.SPAWNING, Event.LAUNCHED): _to(State.WAITING_READY, Effect.AWAIT_READY),
        (State.SPAWNING, Event.STOP): _to(State.STOPPING_KILL, Effect.CANCEL_LAUNCH),
        (State.SPAWNING, Event.KILL): _to(State.STOPPING_KILL, Effect.CANCEL_LAUNCH),
        (State.SPAWNING, Event.START_TIMEOUT): _to(State.STOPPING_KILL, Effect.CANCEL_LAUNCH),
        (State.WAITING_READY, Event.READY): _to(State.RUNNING),
        (State.WAITING_READY, Event.START_TIMEOUT): _to(State.STOPPING_QUIT, Effect.CANCEL_READY, Effect.QUIT),
    }
    return table


def _adoption() -> _Table:
    # the process is found first, its monitor reached after that, as after any loss of the connection
    arrivals = {
        Event.ADOPTED_RUNNING: _to(State.RUNNING),
        Event.ADOPTED_WAITING: _to(State.WAITING_READY, Effect.AWAIT_READY),
        Event.ADOPTED_PAUSED: _to(State.PAUSED),
        Event.ADOPTED_IO_ERROR: _to(State.IO_ERROR, Effect.AWAIT_ROOM),
        Event.ADOPTED_PANICKED: _to(State.GUEST_PANICKED),
        Event.ADOPTED_SHUTDOWN: _to(State.STOPPING_QUIT, Effect.QUIT),
        Event.ADOPTED_STOPPING: _to(State.STOPPING_GUEST, Effect.ASK_GUEST),
    }
    table: _Table = {(State.UNREACHABLE, event): arrival for event, arrival in arrivals.items()}
    # what a restarted daemon finds already over is judged by the policy like any other end
    return table | {
        (State.DEAD, Event.FOUND): _to(State.UNREACHABLE, Effect.RECONNECT),
        # a stop that had come so far goes on without the monitor
        (State.DEAD, Event.FOUND_STOPPING): _to(State.STOPPING_TERM, Effect.TERM),
        (State.UNREACHABLE, Event.STAGE_TIMEOUT): _to(State.STOPPING_TERM, Effect.TERM),
        # it is being tried again; this says what came of it until now
        (State.UNREACHABLE, Event.MONITOR_LOST): _to(State.UNREACHABLE),
        (State.DEAD, Event.RECORD_UNREADABLE): _to(State.QUARANTINED),
        (State.QUARANTINED, Event.RECORD_UNREADABLE): _to(State.QUARANTINED),
        (State.QUARANTINED, Event.RECORD_REPAIRED): _to(State.DEAD),
        (State.DEAD, Event.ENDED): _to(State.DEAD),
        (State.DEAD, Event.FAILED): _to(State.CRASHED),
        (State.DEAD, Event.START_FAILED): _to(State.START_FAILED),
        (State.DEAD, Event.RESTARTING): _to(State.AUTO_RESTART, Effect.ARM_RESTART),
        (State.DEAD, Event.LIMIT_HIT): _to(State.START_LIMIT_HIT),
    }


def _guest() -> _Table:
    table: _Table = {}
    for state in _REACHED:
        leaving = (Effect.CANCEL_READY,) if state is State.WAITING_READY else ()
        table |= {
            (state, Event.GUEST_SHUTDOWN): _to(State.STOPPING_QUIT, *leaving, Effect.QUIT),
            (state, Event.GUEST_PANICKED): _to(State.GUEST_PANICKED, *leaving),
            (state, Event.IO_ERROR_SEEN): _to(State.IO_ERROR, *leaving, Effect.AWAIT_ROOM),
            (state, Event.GUEST_RESET): _to(state, Effect.FORGET_GUEST, Effect.REFRESH),
            (state, Event.SILENT): _to(State.UNRESPONSIVE, *leaving),
            (state, Event.MONITOR_LOST): _to(State.UNREACHABLE, *leaving, Effect.RECONNECT),
        }
    for state in (State.RUNNING, State.WAITING_READY, State.IO_ERROR, State.UNRESPONSIVE):
        leaving = (Effect.CANCEL_READY,) if state is State.WAITING_READY else ()
        table[state, Event.GUEST_IO_ERROR] = _to(State.IO_ERROR, *leaving, Effect.AWAIT_ROOM)
    table |= {
        # what was still under way when it was stopped fails: it stands still for what it stood still for
        (State.PAUSED, Event.GUEST_IO_ERROR): _to(State.PAUSED),
        (State.GUEST_PANICKED, Event.GUEST_IO_ERROR): _to(State.GUEST_PANICKED),
        (State.UNRESPONSIVE, Event.IO_ERROR_SEEN): _to(State.IO_ERROR, Effect.AWAIT_ROOM),
        (State.IO_ERROR, Event.HELD): _to(State.PAUSED),
        (State.IO_ERROR, Event.ROOM_AGAIN): _to(State.IO_ERROR, Effect.LET_GO_ON),
        (State.RUNNING, Event.GUEST_STOPPED): _to(State.PAUSED),
        (State.RUNNING, Event.GUEST_RESUMED): _to(State.RUNNING),
        (State.WAITING_READY, Event.GUEST_STOPPED): _to(State.PAUSED, Effect.CANCEL_READY),
        (State.WAITING_READY, Event.GUEST_RESUMED): _to(State.WAITING_READY),
        (State.PAUSED, Event.GUEST_STOPPED): _to(State.PAUSED),
        (State.PAUSED, Event.GUEST_RESUMED): _to(State.RUNNING),
        (State.IO_ERROR, Event.GUEST_STOPPED): _to(State.IO_ERROR),
        (State.IO_ERROR, Event.GUEST_RESUMED): _to(State.RUNNING),
        (State.GUEST_PANICKED, Event.GUEST_STOPPED): _to(State.GUEST_PANICKED),
        (State.GUEST_PANICKED, Event.GUEST_RESUMED): _to(State.RUNNING),
        (State.GUEST_PANICKED, Event.RESTART_WANTED): _to(State.STOPPING_QUIT, Effect.QUIT),
        (State.UNRESPONSIVE, Event.ANSWERED_RUNNING): _to(State.RUNNING, Effect.REFRESH),
        (State.UNRESPONSIVE, Event.ANSWERED_PAUSED): _to(State.PAUSED, Effect.REFRESH),
        (State.UNRESPONSIVE, Event.MONITOR_LOST): _to(State.UNREACHABLE, Effect.RECONNECT),
        (State.UNRESPONSIVE, Event.SILENT): _to(State.UNRESPONSIVE),
    }
    # until it has been ready once, the start's deadline stands, whatever else happens to the guest
    for state in (State.PAUSED, State.IO_ERROR, State.GUEST_PANICKED, State.UNRESPONSIVE):
        table[state, Event.WAITING_AGAIN] = _to(State.WAITING_READY, Effect.AWAIT_READY)
        table[state, Event.START_TIMEOUT] = _to(State.STOPPING_QUIT, Effect.QUIT)
    table[State.UNREACHABLE, Event.START_TIMEOUT] = _to(State.STOPPING_TERM, Effect.TERM)
    # events that QEMU buffered while it was silent say by themselves that it answers again
    for event, target in {
        Event.GUEST_SHUTDOWN: _to(State.STOPPING_QUIT, Effect.QUIT),
        Event.GUEST_PANICKED: _to(State.GUEST_PANICKED),
        Event.GUEST_RESET: _to(State.UNRESPONSIVE, Effect.FORGET_GUEST, Effect.REFRESH),
        Event.GUEST_STOPPED: _to(State.PAUSED),
        Event.GUEST_RESUMED: _to(State.RUNNING),
    }.items():
        table[State.UNRESPONSIVE, event] = target
    return table


def _stopping() -> _Table:
    table: _Table = {}
    for state in (State.RUNNING, State.WAITING_READY):
        leaving = (Effect.CANCEL_READY,) if state is State.WAITING_READY else ()
        table[state, Event.STOP] = _to(State.STOPPING_GUEST, *leaving, Effect.ASK_GUEST)
    # a guest that stands still cannot shut itself down
    for state in (State.PAUSED, State.IO_ERROR, State.GUEST_PANICKED, State.UNRESPONSIVE):
        table[state, Event.STOP] = _to(State.STOPPING_QUIT, Effect.QUIT)
    table[State.UNREACHABLE, Event.STOP] = _to(State.STOPPING_TERM, Effect.TERM)
    for state in (*_REACHED, State.UNRESPONSIVE, State.UNREACHABLE):
        leaving = (Effect.CANCEL_READY,) if state is State.WAITING_READY else ()
        table[state, Event.KILL] = _to(State.STOPPING_KILL, *leaving, Effect.KILL)
        # its main thread is gone: SIGKILL ends what threads may be left, and its deadline is this state's
        table[state, Event.DYING] = _to(State.EXITING, *leaving, Effect.KILL)
    for state in (State.STOPPING_GUEST, State.STOPPING_QUIT, State.STOPPING_TERM, State.EXITING, State.STUCK):
        table[state, Event.KILL] = _to(State.STOPPING_KILL, Effect.KILL)
    table |= {
        (State.STOPPING_KILL, Event.KILL): _to(State.STOPPING_KILL, Effect.KILL),
        (State.STOPPING_GUEST, Event.GUEST_SHUTDOWN): _to(State.STOPPING_QUIT, Effect.QUIT),
        # a guest that stands still will not shut itself down any more
        (State.STOPPING_GUEST, Event.GUEST_PANICKED): _to(State.STOPPING_QUIT, Effect.QUIT),
        (State.STOPPING_GUEST, Event.GUEST_IO_ERROR): _to(State.STOPPING_QUIT, Effect.QUIT),
        (State.STOPPING_GUEST, Event.STAGE_TIMEOUT): _to(State.STOPPING_QUIT, Effect.QUIT),
        (State.STOPPING_GUEST, Event.MONITOR_LOST): _to(State.STOPPING_TERM, Effect.TERM),
        (State.STOPPING_QUIT, Event.STAGE_TIMEOUT): _to(State.STOPPING_TERM, Effect.TERM),
        (State.STOPPING_TERM, Event.STAGE_TIMEOUT): _to(State.STOPPING_KILL, Effect.KILL),
        (State.STOPPING_KILL, Event.STAGE_TIMEOUT): _to(State.STUCK),
        (State.EXITING, Event.STAGE_TIMEOUT): _to(State.STUCK),
    }
    # while it is being stopped, a further stop joins in, and what the guest still does changes nothing
    stages = [state for state in State if state.level is Level.DEACTIVATING]
    noise = (
        Event.STOP,
        Event.START_TIMEOUT,
        Event.GUEST_STOPPED,
        Event.GUEST_RESUMED,
        Event.GUEST_RESET,
        Event.GUEST_SHUTDOWN,
        Event.GUEST_PANICKED,
        Event.GUEST_IO_ERROR,
        Event.IO_ERROR_SEEN,
        Event.MONITOR_LOST,
        Event.SILENT,
        Event.DYING,
    )
    for state in stages:
        for event in noise:
            table.setdefault((state, event), _to(state))
    return table


def _endings() -> _Table:
    table: _Table = {}
    for state in WITH_PROCESS:
        leaving = (Effect.CANCEL_READY,) if state is State.WAITING_READY else ()
        table |= {
            (state, Event.ENDED): _to(State.DEAD, *leaving),
            (state, Event.FAILED): _to(State.CRASHED, *leaving),
            (state, Event.START_FAILED): _to(State.START_FAILED, *leaving),
            (state, Event.RESTARTING): _to(State.AUTO_RESTART, *leaving, Effect.ARM_RESTART),
            (state, Event.LIMIT_HIT): _to(State.START_LIMIT_HIT, *leaving),
        }
    return table


TRANSITIONS: Mapping[tuple[State, Event], Transition] = _starting() | _adoption() | _guest() | _stopping() | _endings()


def step(state: State, event: Event) -> Transition:
    """The edge for this pair.

    Raises:
        UndefinedTransition: the table has none; nothing is to be changed.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise UndefinedTransition(f"no transition from {state.substate} by {event.value}") from None


class Request(enum.Enum):
    """What may be asked of a VM: the power verbs of the API, and changes of its hardware."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    KILL = "kill"
    PAUSE = "pause"
    RESUME = "resume"
    RESET = "reset"
    POWERDOWN = "powerdown"
    NMI = "nmi"
    RESET_FAILED = "reset-failed"
    ATTACH = "attach"
    DETACH = "detach"
    SET = "set"
    RESIZE = "resize"


#: Requests that change the hardware of a VM that runs.
CHANGES = (Request.ATTACH, Request.DETACH, Request.SET, Request.RESIZE)


class Verdict(enum.Enum):
    """What `judge` finds."""

    ALLOWED = "allowed"
    NEEDLESS = "needless"  # it is so already: the request succeeds and does nothing
    DENIED = "denied"


@frozen(kw_only=True)
class Judgement:
    """A verdict with its reason (empty unless denied) and what the user can do instead."""

    verdict: Verdict
    reason: str = ""
    hint: str = ""


_ALLOWED = Judgement(verdict=Verdict.ALLOWED)
_NEEDLESS = Judgement(verdict=Verdict.NEEDLESS)


def _denied(reason: str, hint: str = "") -> Judgement:
    return Judgement(verdict=Verdict.DENIED, reason=reason, hint=hint)


_START_FIRST = "start it first"
_WHY_NOT: Mapping[State, tuple[str, str]] = {
    State.DEAD: ("it is not running", _START_FIRST),
    State.CRASHED: ("it has crashed and is not running", _START_FIRST),
    State.START_FAILED: ("its last start failed and it is not running", _START_FIRST),
    State.START_LIMIT_HIT: ("it was restarted too often and stays down", _START_FIRST),
    State.QUARANTINED: (
        "a record of it cannot be read",
        "see its status for the file, repair or remove it, then reload",
    ),
    State.AUTO_RESTART: ("it is down and waits to be restarted", "start it now, or stop it"),
    State.WAITING_DEPS: ("its start waits for other VMs", "wait, or stop it"),
    State.SPAWNING: ("it is still starting", "wait until it runs"),
    State.WAITING_READY: ("it runs but is not ready yet", "wait until it is ready"),
    State.PAUSED: ("it is paused", "resume it first"),
    State.IO_ERROR: ("it is paused by an I/O error", "make room or mend the disk, then resume it"),
    State.GUEST_PANICKED: ("its guest has panicked", "reset or restart it"),
    State.UNRESPONSIVE: ("its monitor does not answer", "wait, or kill it"),
    State.UNREACHABLE: ("its monitor cannot be reached", "wait, or kill it"),
    State.STOPPING_GUEST: ("it is shutting down", "wait, or kill it"),
    State.STOPPING_QUIT: ("it is being stopped", "wait, or kill it"),
    State.STOPPING_TERM: ("it is being stopped", "wait, or kill it"),
    State.STOPPING_KILL: ("it is being killed", "wait"),
    State.EXITING: ("its process is just ending", "wait a moment"),
    State.STUCK: (
        "it has ended but the kernel keeps its process",
        "wait; look at its wait channel and the host's storage",
    ),
    State.RUNNING: ("it is running", ""),
}

_NEEDLESS_IN: Mapping[Request, frozenset[State]] = {
    Request.START: frozenset(s for s in State if s.level is Level.ACTIVE),
    Request.STOP: frozenset(
        s for s in State if s.level in (Level.INACTIVE, Level.FAILED) and s is not State.QUARANTINED
    ),
    Request.KILL: frozenset(
        s for s in State if s.level in (Level.INACTIVE, Level.FAILED) and s is not State.QUARANTINED
    ),
    Request.PAUSE: frozenset({State.PAUSED}),
    Request.RESUME: frozenset({State.RUNNING}),
    Request.RESET_FAILED: frozenset(s for s in State if s.level is not Level.FAILED),
}
_RESTARTABLE = frozenset(State) - {State.STUCK, State.QUARANTINED}
_ALLOWED_IN: Mapping[Request, frozenset[State]] = {
    Request.START: frozenset({*_DOWN, State.AUTO_RESTART, *BEING_STARTED}),
    Request.STOP: frozenset(s for s in State if (s, Event.STOP) in TRANSITIONS),
    Request.KILL: frozenset(s for s in State if (s, Event.KILL) in TRANSITIONS),
    Request.RESTART: _RESTARTABLE,
    Request.PAUSE: frozenset({State.RUNNING, State.IO_ERROR}),
    Request.RESUME: frozenset({State.PAUSED, State.IO_ERROR}),
    Request.RESET: frozenset(_REACHED),
    Request.POWERDOWN: frozenset({State.RUNNING, State.WAITING_READY}),
    Request.NMI: frozenset({State.RUNNING, State.WAITING_READY}),
    Request.RESET_FAILED: frozenset(_FORGETTABLE),
    **dict.fromkeys(CHANGES, frozenset(_REACHED)),
    # what does not run is changed by its unit
    Request.SET: frozenset({*_REACHED, *_DOWN}),
}


def judge(state: State, request: Request) -> Judgement:
    """Whether ``request`` may be carried out in ``state``, and if not, why."""
    if state in _NEEDLESS_IN.get(request, frozenset()):
        return _NEEDLESS
    if state in _ALLOWED_IN[request]:
        return _ALLOWED
    reason, hint = _WHY_NOT[state]
    if state in _DOWN and request in (Request.ATTACH, Request.DETACH):
        hint = f"{hint}, or change its unit by qsupctl set"
    return _denied(reason, hint)
