"""Ending a VM: one stage at a time, each with its deadline.

Decides: how each stage is carried out and when it has failed.
Must not: choose the next stage; the table does, on `Event.STAGE_TIMEOUT`. A stage that succeeds is seen by the process
watcher (or by QEMU's SHUTDOWN event) and is cancelled by the driver, so it only ever reports its failure.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable

import structlog
import trio

from qsup.errors import AgentError, HostError, MonitorError
from qsup.instance.guest import GuestChannel
from qsup.instance.life import Life
from qsup.instance.messages import Happened, Message
from qsup.instance.state import Effect, Event
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.unit.sections.service import ServiceSection

_log = structlog.get_logger()

Post = Callable[[Message], None]

#: Seconds for QEMU to acknowledge a command that asks for the end.
_COMMAND_TIMEOUT = 5.0
#: Seconds until the power button is pressed again: a guest that has only just begun has not switched it on yet, and the
#: hardware drops what nobody waits for. One that is on its way down takes no notice of another press.
_PRESS_AGAIN = 5.0
#: Seconds after SIGKILL until the kernel is said to keep the process.
KILL_TIMEOUT = 5.0


def _failed(life: Life, post: Post) -> None:
    post(Happened(life=life.number, event=Event.STAGE_TIMEOUT))


def longest(effects: Iterable[Effect], service: ServiceSection, *, given: float | None, agent: bool) -> float | None:
    """Seconds that the stage which one of these effects begins may take, with those by which a later daemon goes on;
    ``None``: none of them begins one.

    Args:
        given: what the guest is given for each way, in place of the unit's ``stop-timeout``.
        agent: somebody in the guest has the agent's port open.
    """
    term = service.term_timeout if "term" in service.stop_methods else 0.0
    for effect in effects:
        match effect:
            case Effect.ASK_GUEST:
                ways = (agent and "agent" in service.stop_methods) + ("acpi" in service.stop_methods)
                return ways * (service.stop_timeout if given is None else given)
            case Effect.QUIT:
                return (service.quit_timeout if "quit" in service.stop_methods else 0.0) + term
            case Effect.TERM:
                return term
            case Effect.KILL:
                return 0.0
    return None


async def ask_guest(
    life: Life,
    service: ServiceSection,
    monitor: Monitor,
    guest: GuestChannel | None,
    seconds: float | None,
    left: float,
    post: Post,
) -> None:
    """Ask the guest to shut down: by its agent where one answers, else (or after that) by the ACPI power button.

    Args:
        service: as the unit's files say it now.
        guest: the way to the agent, ``None`` when nobody in the guest has its port open.
        seconds: what the guest is given for each way, in place of the unit's ``stop-timeout``.
        left: seconds for all of it; less than it takes, where an earlier daemon began it.
    """
    given = service.stop_timeout if seconds is None else seconds
    over = trio.current_time() + left
    button = given if "acpi" in service.stop_methods else 0.0
    if guest is not None and "agent" in service.stop_methods and left > button and await _ask_agent(life, guest):
        await trio.sleep_until(over - button)
    over = min(over, trio.current_time() + button)
    while trio.current_time() < over and await _press_button(life, monitor):  # noqa: ASYNC110  # each turn does it anew
        await trio.sleep_until(min(over, trio.current_time() + _PRESS_AGAIN))
    _failed(life, post)


async def _ask_agent(life: Life, guest: GuestChannel) -> bool:
    try:
        await guest.shutdown(_COMMAND_TIMEOUT)
    except AgentError as error:
        _log.info("guest agent does not take the shutdown", instance=life.record.name, why=error.message)
        return False
    return True


async def _press_button(life: Life, monitor: Monitor) -> bool:
    try:
        await commands.system_powerdown(monitor, timeout=_COMMAND_TIMEOUT)
    except MonitorError as error:
        _log.warning("could not press the power button", instance=life.record.name, why=error.message)
        return False
    return True


async def quit_qemu(life: Life, service: ServiceSection, monitor: Monitor | None, post: Post) -> None:
    """QMP ``quit``. Reply, SHUTDOWN event and the connection's end come in any order; only the process's end counts."""
    if monitor is not None and "quit" in service.stop_methods:
        deadline = trio.current_time() + service.quit_timeout
        try:
            await commands.quit(monitor, timeout=service.quit_timeout)
        except MonitorError as error:
            _log.info("no answer to quit", instance=life.record.name, why=error.message)
        await trio.sleep_until(deadline)
    _failed(life, post)


async def terminate(life: Life, service: ServiceSection, left: float, post: Post) -> None:
    """SIGTERM, to which QEMU answers by an orderly exit, for the seconds that are left."""
    if "term" in service.stop_methods:
        life.process.send_signal(signal.SIGTERM)
        await trio.sleep(left)
    _failed(life, post)


async def kill(life: Life, post: Post) -> None:
    """SIGKILL, always possible, always last, whoever has frozen the VM; to the programs that serve it as well."""
    life.process.send_signal(signal.SIGKILL)  # whatever is wrong with its cgroup
    try:
        await life.cgroup.kill()
    except HostError as error:  # who is left is looked for once more when it has ended
        _log.warning("a VM's cgroup was not killed", instance=life.record.name, why=error.message)
        life.cgroup.thaw()
    await trio.sleep(KILL_TIMEOUT)
    _failed(life, post)
