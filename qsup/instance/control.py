"""The requests that one QMP command carries out, each until QEMU has confirmed it.

Decides: what counts as done for pause, resume, reset, powerdown and nmi.
Must not: change the VM's state; the events these cause do, through the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from qsup.errors import MonitorTimeout, QsupError
from qsup.instance.state import Request, State
from qsup.qmp import commands
from qsup.qmp.connection import Monitor

#: Seconds for a command and for the event that confirms it.
CONFIRM_TIMEOUT = 10.0

WaitState = Callable[[Callable[[State], bool]], Awaitable[None]]


async def carry_out(request: Request, monitor: Monitor, state: State, wait_state: WaitState) -> Mapping[str, Any]:
    """Do it and wait until QEMU says that it is so.

    Args:
        state: the VM's when the request was judged.
        wait_state: waits until the driver's state satisfies a predicate.

    Returns:
        The operation's result.

    Raises:
        MonitorTimeout: QEMU took the command but did not confirm it in time.
        QmpCommandError, MonitorClosed: as QEMU's monitor says.
    """
    try:
        with trio.fail_after(CONFIRM_TIMEOUT):
            return await _ACTIONS[request](monitor, state, wait_state)
    except trio.TooSlowError:
        raise MonitorTimeout(
            f"{request.value} was sent, but QEMU did not confirm it within {CONFIRM_TIMEOUT:g} s",
            hint="look at its status; the command may still take effect",
        ) from None


async def _pause(monitor: Monitor, state: State, wait_state: WaitState) -> Mapping[str, Any]:
    await commands.stop(monitor, timeout=CONFIRM_TIMEOUT)
    await wait_state(lambda now: now is not State.RUNNING)
    return {}


async def _resume(monitor: Monitor, state: State, wait_state: WaitState) -> Mapping[str, Any]:
    failure: QsupError | None = None
    async with trio.open_nursery() as nursery:
        # watched from before it is sent: a disk that fails again stops the guest before QEMU's answer is here
        nursery.start_soon(wait_state, lambda now: now in (State.RUNNING, State.WAITING_READY))
        try:
            await commands.cont(monitor, timeout=CONFIRM_TIMEOUT)
        except QsupError as error:  # kept, so that the nursery does not wrap it in a group
            failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return {}


async def _reset(monitor: Monitor, state: State, wait_state: WaitState) -> Mapping[str, Any]:
    await commands.system_reset(monitor, timeout=CONFIRM_TIMEOUT)
    if state is State.GUEST_PANICKED:
        await commands.cont(monitor, timeout=CONFIRM_TIMEOUT)
        await wait_state(lambda now: now is not State.GUEST_PANICKED)
    return {}


async def _powerdown(monitor: Monitor, state: State, wait_state: WaitState) -> Mapping[str, Any]:
    await commands.system_powerdown(monitor, timeout=CONFIRM_TIMEOUT)
    return {}


async def _nmi(monitor: Monitor, state: State, wait_state: WaitState) -> Mapping[str, Any]:
    await commands.inject_nmi(monitor, timeout=CONFIRM_TIMEOUT)
    return {}


_ACTIONS: Mapping[Request, Callable[[Monitor, State, WaitState], Awaitable[Mapping[str, Any]]]] = {
    Request.PAUSE: _pause,
    Request.RESUME: _resume,
    Request.RESET: _reset,
    Request.POWERDOWN: _powerdown,
    Request.NMI: _nmi,
}
