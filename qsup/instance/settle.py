"""When an operation on a VM is done, and how it went; how far one had come whose daemon died. Pure.

Decides: from the state alone, whether what was asked for has come true, has failed, or is still under way; and from
what is found of a VM, which half of an unfinished operation is still to be done.
Must not: end an operation or move a state; the driver does both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, field, frozen

from qsup.errors import CapacityError, ChangeError, OperationCancelled, QsupError, StartError, StopError
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.state import CHANGES, Level, Request, State


@frozen(kw_only=True)
class Unfinished:
    """An operation that an earlier daemon left unfinished.

    Args:
        asked: CLOCK_BOOTTIME seconds when that was.
        timeout: seconds in place of the unit's ``stop-timeout``.
        sent: its command may have reached QEMU.
        waits: another VM is to stop before this one, and has not; so nothing of a stop has been done.
    """

    operation: str
    request: Request
    asked: float
    timeout: float | None = None
    sent: bool = False
    waits: bool = False


@frozen(kw_only=True)
class Holder:
    """The operation that holds the VM.

    Args:
        begun: what was asked for is being done; before that no state says anything of it.
        start_next: a restart whose stop half is under way.
        timeout: seconds in place of the unit's ``stop-timeout``.
        left: it is one command to QEMU and was left unfinished by an earlier daemon; how far it came QEMU has to tell.
    """

    operation: str
    request: Request
    begun: bool = False
    start_next: bool = False
    timeout: float | None = None
    left: Unfinished | None = None


@frozen(kw_only=True)
class Standing:
    """Where the VM stands.

    Args:
        was_ready: it has been ready since its process was started.
        stopping: it is to be stopped, whatever its state says yet.
        failure: of the last launch.
        pid: of the process, ``None`` without one.
    """

    name: str
    state: State
    cause: Cause | None
    was_ready: bool
    stopping: bool
    failure: QsupError | None
    pid: int | None


@frozen(kw_only=True)
class Settled:
    """What follows: the operation ends with `result` or `error`, or goes on.

    Args:
        start: the second half of a restart begins.
        ask: what an earlier daemon left unfinished is carried out.
    """

    result: Mapping[str, Any] = field(factory=dict)
    error: QsupError | None = None
    start: bool = False
    ask: bool = False


_CHANGED = Settled(result={"changed": True})
_START = Settled(start=True)
#: Levels of a VM that does not run.
DOWN = (Level.INACTIVE, Level.FAILED)


def settle(holder: Holder, standing: Standing) -> Settled | None:
    """What the VM's standing means for the operation that holds it; ``None``: still under way."""
    state = standing.state
    if holder.left is not None:
        return _settle_left(holder.left, standing)
    if not holder.begun:
        return None
    if holder.start_next:
        return _settle_first_half(standing)
    match holder.request:
        case Request.START | Request.RESTART:
            return _settle_start(standing)
        case Request.STOP | Request.KILL | Request.RESET_FAILED:
            return _settle_stop(standing)
        case _:
            # pause, reset and their like end by QEMU's answer, unless the VM ends first
            if not _is_over(state):
                return None
            if holder.request is Request.POWERDOWN:
                return Settled()  # the guest obeyed before QEMU had answered
            return _overtaken(holder.request, standing)


def _is_over(state: State) -> bool:
    """Whether the life is, that something was asked of."""
    return state.level not in (Level.ACTIVE, Level.ACTIVATING) or state in (State.SPAWNING, State.AUTO_RESTART)


def _overtaken(request: Request, standing: Standing) -> Settled:
    words = f"{request.value} was overtaken: the VM is now {standing.state.level.value} ({standing.state.substate})"
    kind = ChangeError if request in CHANGES else OperationCancelled
    return Settled(error=kind(words, instance=standing.name, hint="its status has the cause"))


#: QEMU has not been heard of in these.
_UNHEARD = (State.UNREACHABLE, State.UNRESPONSIVE)
#: Where a guest is that was paused or resumed.
_HAS_COME_TRUE = {Request.PAUSE: (State.PAUSED,), Request.RESUME: (State.RUNNING, State.WAITING_READY)}


def _settle_left(left: Unfinished, standing: Standing) -> Settled | None:
    """What became of one command whose daemon died, now that QEMU says how it is.

    QEMU drops what it has not read yet when a connection ends (seen on 7.2 and 10.0): that a command was sent says
    nothing. So what can be repeated without harm is, and of the rest the truth is told.
    """
    state, request = standing.state, left.request
    if state in _UNHEARD:
        return None
    if request is Request.SET and state.level in DOWN:
        return Settled(ask=True)  # what is to be changed is its unit then
    if _is_over(state):
        obeyed = standing.cause is not None and standing.cause.kind is CauseKind.GUEST_SHUTDOWN
        if request is Request.POWERDOWN and left.sent and obeyed:
            return Settled()
        return _overtaken(request, standing)
    if state in _HAS_COME_TRUE.get(request, ()):
        return Settled()
    # a change finds what its predecessor has done of it
    again = (
        request in _HAS_COME_TRUE or request in CHANGES or (request is Request.RESET and state is State.GUEST_PANICKED)
    )
    return Settled(ask=True) if again or not left.sent else Settled(error=unknown(request.value, standing.name))


def unknown(kind: str, name: str) -> QsupError:
    """What is said of an operation that nothing tells the end of."""
    return QsupError(
        f"the daemon ended as {kind} was sent to QEMU; whether it was carried out is not known",
        instance=name,
        hint="look at its status, and repeat the request if it is not as wanted",
    )


def unheard(left: Unfinished, name: str) -> QsupError:
    """What is said of one whose VM does not answer."""
    unsure = left.sent or left.request in CHANGES
    done = "whether it was carried out is not known" if unsure else "it was not carried out"
    return QsupError(
        f"the daemon ended during {left.request.value}, and QEMU has not answered the next one; {done}",
        instance=name,
        hint="look at its status, and repeat the request once its monitor answers",
    )


def _settle_first_half(standing: Standing) -> Settled | None:
    """Of a restart; the second half begins when the VM is down."""
    if standing.state is State.STUCK:
        return _stuck(standing)
    return _START if standing.state.level in DOWN or standing.state is State.AUTO_RESTART else None


def _settle_start(standing: Standing) -> Settled | None:
    state, cause = standing.state, standing.cause
    if state.level is Level.ACTIVE:
        return _settle_active(standing)
    if state.level is Level.ACTIVATING and state is not State.AUTO_RESTART:
        return None
    if state.level is Level.DEACTIVATING:
        return None  # it will be down in a moment, and only then nothing is left of the attempt
    words = (cause.detail or cause.text) if cause else "it was not started"
    failure = standing.failure
    hint = "it will be tried again" if state is State.AUTO_RESTART else failure.hint if failure else ""
    told = CapacityError if isinstance(failure, CapacityError) else StartError
    return Settled(error=told(words, instance=standing.name, hint=hint, cause=cause.kind.value if cause else ""))


def _settle_active(standing: Standing) -> Settled | None:
    """A guest that runs, or stands still, is started when it has been ready; until then its deadline stands."""
    if standing.was_ready:
        return _CHANGED
    if standing.state is not State.GUEST_PANICKED:
        return None
    words = "the guest panicked before it was ready"
    return Settled(error=StartError(words, instance=standing.name, hint="look at its console, then reset or kill it"))


def _settle_stop(standing: Standing) -> Settled | None:
    state = standing.state
    if state.level in DOWN:
        return _CHANGED
    if state.level is Level.ACTIVE and standing.stopping:
        return None  # a restarted daemon has yet to reach the monitor
    if state.level is not Level.DEACTIVATING:
        words = f"it is {state.level.value} ({state.substate}), and not stopped"
        return Settled(error=StopError(words, instance=standing.name))
    return _stuck(standing) if state is State.STUCK else None


def _stuck(standing: Standing) -> Settled:
    what = "given up is the start, which waits for an image or a device"
    if standing.pid:
        what = f"SIGKILL was sent to process {standing.pid}"
    error = StopError(
        f"{what}, but the kernel keeps it",
        instance=standing.name,
        hint="it waits for something that cannot be interrupted, mostly storage; it is cleaned up when it ends",
        pid=standing.pid,
    )
    return Settled(error=error)


@frozen(kw_only=True)
class Remains:
    """What is left of its VM.

    Args:
        started: CLOCK_BOOTTIME seconds when the process that there is, or last was, was started; ``None``: nothing ran.
        ended: the same of when the VM went down, ``None`` while it is not known to be down.
        ordered: it went down, or goes down, because an operator wanted it.
        again: it is down, and its policy is about to start it again.
    """

    started: float | None
    ended: float | None
    ordered: bool
    again: bool = False


@frozen(kw_only=True)
class TakenUp:
    """How an unfinished operation goes on.

    Args:
        holder: with what of it has been done.
        stopping: whatever becomes of the process, an operator wants it to end.
        ask: nothing of it has been done: carry it out.
    """

    holder: Holder
    stopping: bool = False
    ask: bool = False


def take_up(unfinished: Unfinished, found: Remains) -> TakenUp:
    """How far an operation had come that was written down, and whose daemon died before its end.

    It is completed: whoever asked for it was told that it would be.
    """
    holder = Holder(operation=unfinished.operation, request=unfinished.request, begun=True, timeout=unfinished.timeout)
    untouched = found.started is not None and found.started < unfinished.asked
    down_before = found.ended is not None and found.ended < unfinished.asked
    match unfinished.request:
        case Request.STOP | Request.RESTART if unfinished.waits and untouched:
            return TakenUp(holder=evolve(holder, begun=False), ask=True)
        case Request.STOP | Request.KILL if found.again:
            # nothing of it has been done, or it had ended a launch that its policy had begun
            return TakenUp(holder=evolve(holder, begun=False), ask=True)
        case Request.STOP if found.ended is None:
            return TakenUp(holder=holder, stopping=True)
        case Request.KILL if found.ended is None:
            # what ended meanwhile is judged with `stopping`, what lives is killed
            return TakenUp(holder=evolve(holder, begun=False), stopping=True, ask=True)
        case Request.RESTART if found.ended is None:
            return TakenUp(holder=evolve(holder, start_next=untouched), stopping=untouched)
        case Request.RESTART if found.ordered or down_before:
            return TakenUp(holder=evolve(holder, start_next=True))
        case Request.RESET_FAILED:
            # whatever has been done of it: asked again it is needless, or it is done
            return TakenUp(holder=evolve(holder, begun=False), ask=True)
        case Request.START if down_before:
            return TakenUp(holder=evolve(holder, begun=False), ask=True)
        case Request.PAUSE | Request.RESUME | Request.RESET | Request.POWERDOWN | Request.NMI:
            return TakenUp(holder=evolve(holder, left=unfinished))
        case Request.ATTACH | Request.DETACH | Request.SET | Request.RESIZE:
            return TakenUp(holder=evolve(holder, left=unfinished))
        case _:
            return TakenUp(holder=holder)
