"""Bringing entries into a VM that runs: all of them or none.

Decides: what an entry needs of the host (images, taps, programs beside it), what is written down before QEMU hears of
it, and what becomes of one that an earlier daemon, or a failure, left halfway.
Must not: judge what is asked for (`qsup.instance.change`), or say how QEMU gets it (`qsup.instance.hotplug`).

What comes is planned exactly as at a start (`qsup.plan`), only its place is another. Its claims and its part are on
record, as ``coming``, before QEMU gets the first descriptor: whoever comes after a daemon that was killed takes the
operation up, finds what QEMU has of it, and completes it or begins anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import trio

from qsup.errors import ChangeError, MonitorError, QmpCommandError
from qsup.host import descriptors
from qsup.host.process import let_lock
from qsup.instance import hotplug as wiring
from qsup.instance import outside
from qsup.instance.context import Context
from qsup.instance.going import forget, remind
from qsup.instance.hardware import Attached, entry_of, leaving
from qsup.instance.hotplug import STEP_TIMEOUT, Piece
from qsup.instance.images import open_images
from qsup.instance.live import bootorder, throttle
from qsup.instance.live.nics import meet
from qsup.instance.taps import check_forwards, make_tap, release_bridges, unplug_links
from qsup.plan import inventory
from qsup.plan.attach import Attachment, Vm, attach_device, attach_disk, attach_nic
from qsup.plan.hotplug import unplugged
from qsup.plan.spec import ImageFd, PartPlan, PlanSummary, ShareFd, TapFd
from qsup.qmp import commands
from qsup.unit.model import Unit
from qsup.unit.sections.devices import NicSection

#: Seconds for what came in part only to go again, and between two looks.
_GONE, _GONE_PAUSE = 5.0, 0.05

_Planner = Callable[[Unit, Any, PlanSummary, Vm], list[Attachment]]
#: How what comes is planned, by its section.
PLANNERS: Mapping[str, _Planner] = {
    "disk": attach_disk,
    "nic": attach_nic,
    "device": attach_device,
}


async def attach(entries: Sequence[str], unit: Unit, context: Context) -> None:
    """Attach entries of the new unit, all or none."""
    # controllers among them, which no entry of the unit stands for
    for part in context.hardware.in_state("coming"):
        await _take_up(part.entry, context)
    left = [entry for entry in entries if not await _take_up(entry, context)]
    if left:
        await _attach_new(left, unit, context)
    await _finish(entries, unit, context)


async def _finish(entries: Sequence[str], unit: Unit, context: Context) -> None:
    """Impose limits on what came, take links down, and give places in the boot order; nothing stays without."""
    nics = [entry_of(unit, entry) for entry in entries if entry.startswith("nic.")]
    disks = [disk for disk in throttle.limited(unit) if f"disk.{disk.id}" in entries]
    try:
        await throttle.impose(disks, context.hardware.summary, context.monitor)
        await unplug_links(nics, context.monitor)
        await bootorder.make_room(entries, unit, context)
    except (MonitorError, ChangeError):
        for entry in entries:
            context.hardware.mark(entry, "leaving")
        await remind(context)
        raise


async def _take_up(entry: str, context: Context) -> bool:
    """What an earlier daemon left of an entry: whether it is there; if not, nothing is left of it."""
    part = context.hardware.part(entry)
    if part is None:
        return False
    if part.state == "leaving":
        raise leaving(entry)
    there = await commands.qom_list_peripherals(context.monitor, timeout=STEP_TIMEOUT)
    if all(device.id in there for device in part.devices):
        context.hardware.mark(entry, "there")
        return True
    if any(device.id in there for device in part.devices):
        await wiring.ask_to_go(part, context.monitor)
        await _await_gone(part, context)
    if not await wiring.give_up(part, context.monitor):
        context.hardware.mark(entry, "leaving")
        raise ChangeError(f"what an earlier attach of {entry} left is still in use", hint="a job may use its nodes")
    await forget(entry, context)
    return False


async def _await_gone(part: PartPlan, context: Context) -> None:
    """Wait until QEMU has none of a part's devices; those that came without all of it go at once, mostly."""
    names, deadline = {device.id for device in unplugged(part)}, trio.current_time() + _GONE
    while names.intersection(await commands.qom_list_peripherals(context.monitor, timeout=STEP_TIMEOUT)):
        if trio.current_time() >= deadline:
            context.hardware.mark(part.entry, "leaving")
            raise leaving(part.entry)
        await trio.sleep(_GONE_PAUSE)


async def _attach_new(entries: Sequence[str], unit: Unit, context: Context) -> None:
    planned = _plan(entries, unit, context.hardware.summary, _vm(context))
    for attachment in planned:
        if attachment.nic is not None:
            check_forwards(attachment.nic)
    try:
        await _give(planned, context)
    except BaseException:
        for attachment in planned:
            # what QEMU took and cannot give back at once is on its way out, and still has what it had of the host
            if (part := context.hardware.part(attachment.part.entry)) is None or part.state == "coming":
                await forget(attachment.part.entry, context)
                release_bridges(filter(None, [attachment.nic]))
        raise


async def _give(planned: Sequence[Attachment], context: Context) -> None:
    """Open what it needs of the host, write down that it comes, and give it to QEMU."""
    wanted = [fd for attachment in planned for fd in attachment.part.fds]
    requests, others = (
        [fd for fd in wanted if isinstance(fd, ImageFd)],
        [fd for fd in wanted if not isinstance(fd, ImageFd)],
    )
    numbers: dict[str, int] = {}
    with ExitStack() as stack:
        needed = 2 * len(requests) + len(others)
        stack.enter_context(descriptors.reserved(needed, "attach it", beside=descriptors.KEPT))
        stack.callback(_close, numbers)
        life = context.life
        uid = None if context.services.uids is None else life.record.uid
        outside.reserve_pci(others, context.name, context.services)
        claims = await open_images(requests, context.services, context.name, numbers)
        pieces = []
        for attachment in planned:
            entry = attachment.part.entry
            mine = tuple(claim for claim in claims if claim.entry == entry)
            attached = Attached(part=attachment.part.plan(), disk=attachment.disk, nic=attachment.nic, claims=mine)
            pieces.append(Piece(part=attachment.part, attached=attached))
            context.hardware.add(attached)
            context.hardware.mark(entry, "coming")
        # a bridge that is made stays when we go, and whoever comes next must know whose it is
        context.keep()
        _make_taps(planned, context, numbers)
        await outside.open_outside(others, life.directory, context.services, life.helpers, numbers, uid)
        if lockable := outside.lockable_memory(others, context.hardware.unit):
            let_lock(life.process.pid, lockable)
        context.keep()  # with the programs that were started
        try:
            await wiring.attach(pieces, context.hardware, context.monitor, numbers)
            if any(isinstance(request, ShareFd) for request in others):
                life.pinning.put()  # its program is looked after from now on
        except QmpCommandError as error:
            for attachment in planned:
                if words := await life.helpers.failure(attachment.part.entry):
                    error.message = f"{error.message} ({words})"
            raise


def _make_taps(planned: Sequence[Attachment], context: Context, numbers: dict[str, int]) -> None:
    for attachment in planned:
        for request in attachment.part.fds:
            if isinstance(request, TapFd) and attachment.nic is not None:
                make_tap(request, context.name, context.life.record.uuid, attachment.nic.mac, numbers)


def _close(numbers: Mapping[str, int]) -> None:
    """Close our copies: an image's open file description must be QEMU's alone, or its lock would outlive it."""
    for fd in numbers.values():
        os.close(fd)


def _vm(context: Context) -> Vm:
    return Vm(
        uuid=context.life.record.uuid,
        capabilities=context.capabilities,
        boot_places=bootorder.taken_places(context.hardware),
    )


def check_plan(entries: Sequence[str], unit: Unit, context: Context) -> None:
    """See that entries can come, all together.

    Raises:
        UnsupportedError: what `_plan` raises.
        ChangeError: what one needs of the host is another's that has yet to go: it was given another name.
    """
    pool = context.services.layout.pools[0]
    # however a path is spelled; what is one file by a link is seen when it is opened
    held = {os.path.normpath(pool / claim.path): claim for claim in context.hardware.claims}
    for attachment in _plan(entries, unit, context.hardware.summary, _vm(context)):
        entry, found = attachment.part.entry, ""
        for image in (fd for fd in attachment.part.fds if isinstance(fd, ImageFd)):
            claim = held.get(os.path.normpath(pool / image.path))
            if claim is not None and claim.excludes(writable=image.claim_write, shareable=image.shareable):
                found = f"the disk image {image.path}, which is {claim.entry}'s"
        if attachment.nic is not None:
            found = _forwarded(entry_of(unit, entry), context.hardware.unit)
        if found:
            raise ChangeError(f"{entry} needs {found} until that has gone", hint="apply the unit once more then")


def _forwarded(nic: NicSection, running: Unit) -> str:
    """Which port of the host a NIC needs that another has, and which; the unit has no such two at a time."""
    for other in running.nics:
        for forward in nic.forward:
            if any(meet(forward, theirs) for theirs in other.forward):
                return f"port {forward.host_port} of the host, which is nic.{other.id}'s"
    return ""


def _plan(entries: Sequence[str], unit: Unit, summary: PlanSummary, vm: Vm) -> list[Attachment]:
    """Plan all of them, each with the places of those before it taken.

    Raises:
        UnsupportedError: one has no room, or cannot come while the VM runs.
    """
    planned: list[Attachment] = []
    for entry in entries:
        section = entry.partition(".")[0]
        if section not in PLANNERS:
            words = f"{entry} cannot come while it runs"
            raise ChangeError(words, hint="change the unit (--persist), and restart the VM")
        for attachment in PLANNERS[section](unit, entry_of(unit, entry), summary, vm):
            part = attachment.part.plan()
            inventory.check_entry(attachment.part.subject, summary, [device.id for device in part.devices])
            summary = inventory.with_part(summary, part)
            planned.append(attachment)
    return planned
