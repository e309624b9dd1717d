"""Waiting until a VM is ready, in the way its unit names.

Decides: what counts as ready.
Must not: give up; the driver's start timeout does. One that an earlier daemon started may have written the awaited text
while nobody listened: after a start timeout of its own it is taken as ready, with a cause that says so.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from qsup.errors import AgentError, MonitorError
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.console import ConsoleHub
from qsup.instance.guest import GuestChannel
from qsup.instance.life import Life
from qsup.instance.messages import Happened, Message
from qsup.instance.state import Event
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.unit.kinds import Forward

_log = structlog.get_logger()

#: Seconds between two looks at something that cannot be waited for.
_INTERVAL = 0.25
_TRY_TIMEOUT = 5.0


async def wait_ready(
    life: Life,
    monitor: Monitor,
    console: ConsoleHub,
    guest: GuestChannel,
    longest: float,
    post: Callable[[Message], None],
) -> None:
    """Post `Event.READY` once what the unit's ``ready`` names has been seen.

    Args:
        longest: seconds after which a text that may have been missed is taken as seen.
    """
    wanted = life.unit.service.ready
    cause = None
    match wanted.on:
        case "agent":
            await _agent_answers(guest)
        case "serial":
            with trio.move_on_after(longest) as scope:
                if not await console.wait_text(wanted.text.encode(), start=life.console_start):
                    return  # QEMU has closed the console: that is no readiness
            if scope.cancelled_caught:
                words = "the text that `ready` awaits may have gone by while no daemon ran"
                cause = Cause(kind=CauseKind.READY_ASSUMED, detail=words)
        case "port":
            await _port_accepts(life, monitor, wanted.port)
    post(Happened(life=life.number, event=Event.READY, cause=cause))


def may_have_been_missed(life: Life) -> bool:
    """Whether the guest may have said that it is ready while nobody listened, so that no silence is a failure."""
    return life.monitor is None and life.unit.service.ready.on == "serial"


async def _agent_answers(guest: GuestChannel) -> None:
    while True:
        try:
            await guest.ping(_TRY_TIMEOUT)
        except AgentError:
            await trio.sleep(_INTERVAL)  # nobody listens yet
        else:
            return


async def _port_accepts(life: Life, monitor: Monitor, port: int) -> None:
    forward = next(f for nic in life.unit.nics for f in nic.forward if (f.guest_port, f.protocol) == (port, "tcp"))
    while not await _is_established(forward, monitor):  # noqa: ASYNC110  # nobody tells when the guest begins to listen
        await trio.sleep(_INTERVAL)


async def _is_established(forward: Forward, monitor: Monitor) -> bool:
    """Connect through the forward and ask QEMU whether the guest has accepted.

    QEMU's user network accepts on the host before it asks the guest, so a connection alone proves nothing.
    """
    with trio.move_on_after(_TRY_TIMEOUT):
        try:
            async with await trio.open_tcp_stream(forward.host_address, forward.host_port) as stream:
                local = stream.socket.getsockname()[1]
                while not await _has_ended(stream):
                    if await _guest_accepted(monitor, forward, local):
                        return True
                    await trio.sleep(_INTERVAL)
        except OSError:
            return False  # refused or reset: the guest does not listen yet
        except MonitorError as error:
            _log.info("could not ask QEMU for its connections", why=error.message)
    return False


async def _has_ended(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(0.01):
        try:
            return await stream.receive_some(1) == b""
        except trio.BrokenResourceError:
            return True
    return False


async def _guest_accepted(monitor: Monitor, forward: Forward, local: int) -> bool:
    text = await commands.human_monitor_command(monitor, "info usernet", timeout=_TRY_TIMEOUT)
    rows = (line.split() for line in text.splitlines())
    ends = {str(forward.host_port), str(forward.guest_port), str(local)}
    return any(row and row[0] == "TCP[ESTABLISHED]" and len(ends & set(row)) >= 2 for row in rows)
