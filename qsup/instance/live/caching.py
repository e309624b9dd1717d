"""How the host caches, discards and makes zeroes of a disk, changed while it is in use.

Decides: how the nodes of a disk become others.
Must not: change what the guest sees of the disk; what does that, the model says needs a restart.

QEMU reopens the nodes (QAPI ``blockdev-reopen``, all of them or none). Whether it goes past the host's cache is a flag
of the descriptor: QEMU 7.2 sets it on the one that it has, and 10.0 looks for one in the set that has it. So there is
one, and the former ones leave the set afterwards: an open file description that stays holds its locks on the image.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from qsup.errors import ChangeError, QmpCommandError
from qsup.host import descriptors
from qsup.instance.context import Context
from qsup.instance.hardware import entry_of
from qsup.instance.images import reopen_images
from qsup.plan.attach import Reopening, plan_reopen
from qsup.qmp import commands
from qsup.unit.compare import Change
from qsup.unit.model import Unit

_TIMEOUT = 10.0
_KEYS = ("cache", "discard", "detect-zeroes")


class Caching:
    """Changes of ``disk.ID.cache``, ``discard`` and ``detect-zeroes``."""

    def concerns(self, key: str) -> bool:
        """Whether it is one of these."""
        return key.startswith("disk.") and key.count(".") > 1 and key.rpartition(".")[2] in _KEYS

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """See that the disk is there."""
        context.hardware.check_there(_entry(change))

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Any]:
        """Have QEMU reopen the nodes of each disk once."""
        entries = dict.fromkeys(map(_entry, changes))
        for entry in entries:
            await _reopen(entry, unit, context)
        return {}


def _entry(change: Change) -> str:
    return change.key.rpartition(".")[0]


async def _reopen(entry: str, unit: Unit, context: Context) -> None:
    before, after = entry_of(context.hardware.unit, entry), entry_of(unit, entry)
    part = context.hardware.part(entry)
    plan = next(plan for plan in context.hardware.summary.disks if plan.id == after.id)
    if part is None or not plan.node:
        return  # an empty drive; its next medium is as the unit says
    wanted, present = (plan_reopen(disk, part, plan) for disk in (after, before))
    if [image.direct for image in wanted.images] == [image.direct for image in present.images]:
        await _send(wanted, entry, context)
        return
    former = await commands.query_fdsets(context.monitor, timeout=_TIMEOUT)
    sets = {int(str(command.arguments["fdset-id"])) for command in wanted.members}
    try:
        await _bring(wanted, context)
        await _send(wanted, entry, context)
    except (QmpCommandError, ChangeError):
        await _keep_only(former, sets, context)
        raise
    now = await commands.query_fdsets(context.monitor, timeout=_TIMEOUT)
    new = {number: tuple(fd for fd in now.get(number, ()) if fd not in former.get(number, ())) for number in sets}
    await _keep_only(new, sets, context)


async def _bring(wanted: Reopening, context: Context) -> None:
    """Give QEMU the images' new descriptors, into the sets that there are."""
    numbers: dict[str, int] = {}
    with ExitStack() as stack:
        count = len(wanted.members)
        stack.enter_context(descriptors.reserved(count, "open its images anew", beside=descriptors.KEPT))
        stack.callback(_close, numbers)
        await reopen_images(wanted.images, context.services, context.hardware.claims, numbers)
        for command in wanted.members:
            fds = (numbers[command.fd],)
            await context.monitor.execute(command.command, command.arguments, timeout=_TIMEOUT, fds=fds)


async def _send(wanted: Reopening, entry: str, context: Context) -> None:
    try:
        await commands.blockdev_reopen(context.monitor, wanted.nodes, timeout=_TIMEOUT)
    except QmpCommandError as error:
        raise ChangeError(f"QEMU does not change {entry}: {error.message}", instance=context.name) from error


async def _keep_only(kept: Mapping[int, Sequence[int]], sets: set[int], context: Context) -> None:
    """Take all other members out of sets."""
    found = await commands.query_fdsets(context.monitor, timeout=_TIMEOUT)
    for number in sets:
        for fd in found.get(number, ()):
            if fd not in kept.get(number, ()):
                await commands.remove_fd(context.monitor, number, timeout=_TIMEOUT, fd=fd)


def _close(numbers: Mapping[str, int]) -> None:
    for fd in numbers.values():
        os.close(fd)
