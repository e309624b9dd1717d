"""Waiting until a VM is ready, in the way its unit names.

Decides: what counts as ready.
Must not: give up; the driver's start timeout does.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from qsup.errors import AgentError, MonitorError
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
    life: Life, monitor: Monitor, console: ConsoleHub, guest: GuestChannel, post: Callable[[Message], None]
) -> None:
    """Post `Event.READY` once what the unit's ``ready`` names has been seen."""
    wanted = life.unit.service.ready
    match wanted.on:
        case "agent":
            await _agent_answers(guest)
        case "serial" if life.monitor is None:
            # an earlier daemon started it, and what the guest wrote while nobody listened is lost
            _log.warning("the awaited text may have gone by unseen; taken as ready", instance=life.record.name)
        case "serial":
            if not await console.wait_text(wanted.text.encode(), start=life.console_start):
                return  # QEMU has closed the console: that is no readiness
        case "port":
            await _port_accepts(life, monitor, wanted.port)
    post(Happened(life=life.number, event=Event.READY))


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
