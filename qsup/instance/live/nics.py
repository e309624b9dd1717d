"""A NIC's link and its port forwards.

Decides: that host ports are looked at before QEMU is asked for them, and that of several forwards all are changed or
none.
Must not: make or remove NICs.

QEMU has no QMP for forwards of user networking; its human monitor answers in words, and with none when all went well.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import structlog
from attrs import evolve

from qsup.errors import ChangeError, QsupError
from qsup.instance.context import Context
from qsup.instance.taps import check_forward
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.unit.compare import Change
from qsup.unit.kinds import Forward
from qsup.unit.model import Unit
from qsup.unit.sections.devices import NicSection

_log = structlog.get_logger()

_Step = Callable[[Monitor, str, Forward], Awaitable[None]]

_KEY = re.compile(r"nic\.(?P<nic>.+)\.(?P<what>link|forward)")
#: Seconds for one command.
_TIMEOUT = 5.0


class NicKeys:
    """``nic.NAME.link`` and ``nic.NAME.forward``."""

    def concerns(self, key: str) -> bool:
        """Whether it is one of these."""
        return _KEY.fullmatch(key) is not None

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """See that the NIC is there, and that new forwards are possible.

        Raises:
            ChangeError: it is on its way out.
            NetworkError: a port of the host cannot be had.
        """
        context.hardware.check_there(change.key.rpartition(".")[0])
        before, after = _of(context.hardware.unit, change.key), _of(unit, change.key)
        going = tuple(_without(before.forward, after.forward))
        for forward in _without(after.forward, before.forward):
            if not any(meet(forward, other) for other in going):
                check_forward(after.id, str(forward))

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Any]:
        """Set links, and add and remove forwards, until QEMU has confirmed each."""
        for change in changes:
            before, after = _of(context.hardware.unit, change.key), _of(unit, change.key)
            if change.key.endswith(".link"):
                up = after.link == "up"
                await commands.set_link(context.monitor, f"nic-{after.id}", up=up, timeout=_TIMEOUT)
            else:
                await _forward(context.monitor, before, after)
                self._note(after, context)
        return {}

    def _note(self, nic: NicSection, context: Context) -> None:
        for known in context.hardware.summary.nics:
            if known.id == nic.id:
                context.hardware.replug(evolve(known, forward=tuple(map(str, nic.forward))))


def _of(unit: Unit, key: str) -> NicSection:
    name = key.removeprefix("nic.").rpartition(".")[0]
    return next(nic for nic in unit.nics if nic.id == name)


def _without(forwards: Sequence[Forward], others: Sequence[Forward]) -> Iterator[Forward]:
    return (forward for forward in forwards if forward not in others)


def meet(one: Forward, other: Forward) -> bool:
    """Whether they need the same port of the host, so that one comes only once the other has gone."""
    addresses = (one.host_address, other.host_address)
    same = one.host_address == other.host_address or "0.0.0.0" in addresses
    return same and (one.protocol, one.host_port) == (other.protocol, other.host_port)


async def _forward(monitor: Monitor, before: NicSection, after: NicSection) -> None:
    """First what comes, then what goes: what is there in both is never interrupted. All of it or nothing."""
    netdev = f"nic-{after.id}"
    coming, going = tuple(_without(after.forward, before.forward)), tuple(_without(before.forward, after.forward))
    first = [forward for forward in going if any(meet(forward, other) for other in coming)]
    steps: list[tuple[_Step, _Step, Forward]] = [
        *((remove_forward, add_forward, forward) for forward in first),
        *((add_forward, remove_forward, forward) for forward in coming),
        *((remove_forward, add_forward, forward) for forward in going if forward not in first),
    ]
    undone: list[tuple[_Step, Forward]] = []
    try:
        for do, undo, forward in steps:
            await do(monitor, netdev, forward)
            undone.append((undo, forward))
    except QsupError:
        for step, forward in reversed(undone):
            try:
                await step(monitor, netdev, forward)
            except QsupError as error:
                _log.error("could not undo a change of a forward", nic=after.id, why=error.message)
        raise


async def add_forward(monitor: Monitor, netdev: str, forward: Forward) -> None:
    """HMP ``hostfwd_add``.

    Raises:
        ChangeError: QEMU's words.
    """
    rule = f"{forward.protocol}:{forward.host_address}:{forward.host_port}-:{forward.guest_port}"
    words = await commands.human_monitor_command(monitor, f"hostfwd_add {netdev} {rule}", timeout=_TIMEOUT)
    if words.strip():
        raise ChangeError(f"QEMU does not forward {forward}: {words.strip()[:300]}")


async def remove_forward(monitor: Monitor, netdev: str, forward: Forward) -> None:
    """HMP ``hostfwd_remove``.

    Raises:
        ChangeError: QEMU's words.
    """
    rule = f"{forward.protocol}:{forward.host_address}:{forward.host_port}"
    words = await commands.human_monitor_command(monitor, f"hostfwd_remove {netdev} {rule}", timeout=_TIMEOUT)
    if "removed" not in words and "not found" not in words:
        raise ChangeError(f"QEMU still forwards {forward}: {words.strip()[:300]}")
