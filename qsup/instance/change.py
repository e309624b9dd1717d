"""Changing a VM that runs: checked as a whole, then carried out, then true; or undone, with the reason.

Decides: what a change needs of the host (images, claims), what is written down before QEMU hears of it, and what the
VM consists of afterwards.
Must not: judge whether a change is allowed in the VM's state, wait for a guest, or end an operation; the driver does.

A change is what a drop-in would say: sections and keys, of arrays of tables the entries that change or come. What came
is planned exactly as at a start (`qsup.plan`), only its place is another. Its claims and its part are on record, as
``coming``, before QEMU gets the first descriptor: whoever comes after a daemon that was killed takes the operation up,
finds what QEMU has of it, and completes it or begins anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import structlog
import trio
from attrs import evolve, frozen

from qsup.errors import ChangeError, MonitorError, NoSuchDevice, QmpCommandError, QsupError
from qsup.host import descriptors
from qsup.host.process import let_lock
from qsup.instance import hotplug as wiring
from qsup.instance import outside
from qsup.instance.context import Context, Goal, LiveKeys
from qsup.instance.filing import Filing, absent, file_only
from qsup.instance.hardware import Attached, Hardware, entry_of
from qsup.instance.hotplug import STEP_TIMEOUT as STEP_TIMEOUT
from qsup.instance.hotplug import Piece
from qsup.instance.images import open_images
from qsup.instance.live import throttle
from qsup.instance.live.caching import Caching
from qsup.instance.live.medium import Medium, check_drive
from qsup.instance.live.memory import SIZE, Memory, memory_goal
from qsup.instance.live.nics import NicKeys
from qsup.instance.live.vcpus import VCPUS, Vcpus, fewer_vcpus
from qsup.instance.live.watchdog import WatchdogKeys
from qsup.instance.resize import resize
from qsup.instance.setting import Means, amended, coming_of, needs, set_keys, with_only
from qsup.instance.state import Request
from qsup.instance.taps import check_forwards, make_tap, release_bridges, unplug_links
from qsup.plan import attach, hotplug, inventory
from qsup.plan.attach import Attachment, Vm
from qsup.plan.spec import ImageFd, PartPlan, PlanSummary, TapFd
from qsup.qmp import commands
from qsup.unit.compare import Change, compare
from qsup.unit.compose import amend
from qsup.unit.model import Applies, Unit
from qsup.unit.write import difference, values_of

_log = structlog.get_logger()

#: Seconds for what came in part only to go again, and between two looks.
_GONE, _GONE_PAUSE = 5.0, 0.05
#: What can be changed while a VM runs, besides that entries come and go; each key that the model calls live has one.
LIVE: tuple[LiveKeys, ...] = (
    *(throttle.Throttle(), Medium(), Caching()),
    *(NicKeys(), WatchdogKeys(), Vcpus(), Memory()),
)
#: The keys that the guest has to make true, and how their goal is made from the unit as it is to be.
GOALS: Mapping[str, Callable[[Unit, Hardware], Goal]] = {VCPUS: fewer_vcpus, SIZE: memory_goal}


@frozen(kw_only=True)
class Waiting:
    """QEMU has taken a request that the guest must fulfil.

    Args:
        entry: that is on its way out.
        force_after: seconds from the request until the guest is reset, which ends it; ``None`` for never.
        persist: its unit is not to have it any more, either.
    """

    entry: str
    force_after: float | None
    persist: bool


@frozen(kw_only=True)
class Lasting:
    """QEMU has taken all of a change, and the guest works on it.

    Args:
        goals: what is to come true.
        result: of what is true already.
    """

    goals: tuple[Goal, ...]
    result: Mapping[str, Any]


async def carry_out(
    request: Request, arguments: Mapping[str, Any], context: Context, filing: Filing
) -> Mapping[str, Any] | Waiting | Lasting:
    """Do it.

    Args:
        arguments: the operation's: ``changes`` of ``attach`` and ``set``, as a drop-in would say them; those of ``set``
            may be ``None`` for what its unit says now, and it has ``dry_run`` and ``next_start``; ``entry``, ``force``
            and ``force_after`` of ``detach``; ``disk`` and ``size`` of ``resize``; ``drive``, a CD drive that a
            ``set`` is about, and ``force`` against its guest's will.

    Returns:
        The operation's result; or, of what the guest has to do, that it waits.

    Raises:
        QsupError: why it was not done; the VM is as it was, unless the words say otherwise.
    """
    context = evolve(context, force=bool(arguments.get("force")))
    if drive := arguments.get("drive"):
        check_drive(str(drive), context)
    match request:
        case Request.DETACH:
            return await _detach(arguments, context, filing)
        case Request.RESIZE:
            return await resize(arguments, context)
        case _ if request is Request.SET and arguments.get("next_start"):
            return await file_only(arguments, filing, running=True)
    try:
        if request is Request.ATTACH:
            return await _attach_alone(arguments["changes"], context, filing)
        return await _set(arguments, context, filing)
    finally:
        # before anybody hears how it ended: a daemon that comes later shows what the VM is then
        _keep(context)


async def _set(arguments: Mapping[str, Any], context: Context, filing: Filing) -> Mapping[str, Any] | Lasting:
    changes = arguments["changes"]
    if changes is None:
        changes = difference(context.hardware.unit, (await context.services.load(context.name)).unit)
    result = await set_keys(changes, context, filing, _means(), dry_run=bool(arguments.get("dry_run")))
    return Lasting(goals=tuple(context.goals), result=result) if context.goals else result


def _keep(context: Context) -> None:
    try:
        context.keep()
    except QsupError as error:
        # what was done is done; it is written again whenever something changes
        _log.error("could not write down what the VM consists of", instance=context.name, why=error.message)


def _means() -> Means:
    return Means(live=LIVE, plan=_check_plan, attach=_attach, again=_again, sections=_PLANNERS)


def compared(running: Unit, unit: Unit, context: Context | None = None) -> tuple[Change, ...]:
    """What differs between a VM that runs and its unit, with what each key needs to count.

    Args:
        unit: as the files say it.
        context: ``None`` where it cannot be had: what is usual is said then.
    """
    return needs(compare(running, unit), unit, _means(), context)


async def _attach_alone(changes: Mapping[str, Any], context: Context, filing: Filing) -> Mapping[str, Any]:
    hardware = context.hardware
    unit = amended(changes, context)
    found = compare(hardware.unit, unit)
    coming = coming_of(found, unit)
    named = [f"{section}.{entry['id']}" for section, entries in changes.items() for entry in entries]
    # whoever takes it up may find that it was done, and not told
    if (known := [entry for entry in named if entry not in coming]) and not (context.again and not found):
        raise ChangeError(f"it has {known[0]} already", hint="choose another id, or detach that first")
    await filing.rehearse(changes, named)
    if coming:
        before = hardware.unit
        await _attach(coming, unit, context)
        # what went meanwhile does not come back
        hardware.set_unit(unit if hardware.unit is before else with_only(hardware.unit, changes, coming, context))
    await filing.write(changes, named, done=f"{', '.join(named)} is there")
    return {"changed": True}


def _again(changes: Mapping[str, Any], found: Sequence[Change], unit: Unit) -> list[Change]:
    """Keys that are named and are so by the unit, but may not be by QEMU: what they ask of the guest may be left."""
    known = {change.key for change in found}
    values = values_of(unit)
    named = [key for key in GOALS if key not in known and _value(changes, key) is not None]
    return [Change(key=key, old=_value(values, key), new=_value(values, key), needs=Applies.LIVE) for key in named]


def _value(values: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    found = values.get(section)
    return found.get(name) if isinstance(found, Mapping) else None


def goals(changes: Mapping[str, Any], hardware: Hardware, name: str) -> tuple[Goal, ...]:
    """What a change that an earlier daemon began asks of the guest.

    Args:
        changes: as for `carry_out`.
        hardware: what the VM consists of.
    """
    unit = amend(hardware.unit, changes, name).unit or hardware.unit
    return tuple(make(unit, hardware) for key, make in GOALS.items() if _value(changes, key) is not None)


# coming

_Planner = Callable[[Unit, Any, PlanSummary, Vm], list[Attachment]]
#: How what comes is planned, by its section.
_PLANNERS: Mapping[str, _Planner] = {
    "disk": attach.attach_disk,
    "nic": attach.attach_nic,
    "device": attach.attach_device,
}


async def _attach(entries: Sequence[str], unit: Unit, context: Context) -> None:
    """Attach entries of the new unit, all or none."""
    # controllers among them, which no entry of the unit stands for
    for part in context.hardware.in_state("coming"):
        await _take_up(part.entry, context)
    left = [entry for entry in entries if not await _take_up(entry, context)]
    if left:
        await _attach_new(left, unit, context)
    await _limit(entries, unit, context)


async def _limit(entries: Sequence[str], unit: Unit, context: Context) -> None:
    """Impose the limits of disks that came; none stays without them."""
    disks = [disk for disk in throttle.limited(unit) if f"disk.{disk.id}" in entries]
    try:
        await throttle.impose(disks, context.hardware.summary, context.monitor)
    except MonitorError:
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
        raise _leaving(entry)
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
    await _forget(entry, context)
    return False


async def _await_gone(part: PartPlan, context: Context) -> None:
    """Wait until QEMU has none of a part's devices; those that came without all of it go at once, mostly."""
    names, deadline = {device.id for device in hotplug.unplugged(part)}, trio.current_time() + _GONE
    while names.intersection(await commands.qom_list_peripherals(context.monitor, timeout=STEP_TIMEOUT)):
        if trio.current_time() >= deadline:
            context.hardware.mark(part.entry, "leaving")
            raise _leaving(part.entry)
        await trio.sleep(_GONE_PAUSE)


def _leaving(entry: str) -> ChangeError:
    return ChangeError(f"{entry} is still being detached", hint="wait until the guest has let it go, or reset it")


async def _forget(entry: str, context: Context) -> None:
    """Nothing of it is left in QEMU: give up what it had of the host."""
    nics = [nic for nic in context.hardware.summary.nics if entry == f"nic.{nic.id}"]
    context.hardware.remove(entry)
    context.services.claims.release_entry(context.name, entry)
    release_bridges(nics)
    await outside.release(entry, context.life.directory, context.services, context.life.helpers)


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
                await _forget(attachment.part.entry, context)
                release_bridges(filter(None, [attachment.nic]))
        raise
    await unplug_links([entry_of(unit, entry) for entry in entries if entry.startswith("nic.")], context.monitor)


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
    return Vm(uuid=context.life.record.uuid, capabilities=context.capabilities)


def _check_plan(entries: Sequence[str], unit: Unit, context: Context) -> None:
    """See that entries can come, all together; what `_plan` raises."""
    _plan(entries, unit, context.hardware.summary, _vm(context))


def _plan(entries: Sequence[str], unit: Unit, summary: PlanSummary, vm: Vm) -> list[Attachment]:
    """Plan all of them, each with the places of those before it taken.

    Raises:
        UnsupportedError: one has no room, or cannot come while the VM runs.
    """
    planned: list[Attachment] = []
    for entry in entries:
        section = entry.partition(".")[0]
        if section not in _PLANNERS:
            raise ChangeError(f"{entry} cannot be attached while it runs", hint="restart the VM")
        for attachment in _PLANNERS[section](unit, entry_of(unit, entry), summary, vm):
            part = attachment.part.plan()
            inventory.check_entry(attachment.part.subject, summary, [device.id for device in part.devices])
            summary = inventory.with_part(summary, part)
            planned.append(attachment)
    return planned


# going


async def _detach(arguments: Mapping[str, Any], context: Context, filing: Filing) -> Waiting:
    entry, hardware = str(arguments["entry"]), context.hardware
    part = hardware.part(entry)
    if part is None or part.state == "coming":
        raise NoSuchDevice(f"it has no {entry}", instance=context.name, hint="`qsupctl devices` shows what it has")
    if not arguments["force"] and entry == boot_disk(hardware):
        raise ChangeError(f"{entry} is what the VM boots from", hint="say --force to detach it all the same")
    await filing.rehearse(absent(entry))
    hardware.mark(entry, "leaving")
    try:
        context.keep()
        await wiring.ask_to_go(part, context.monitor)
    except QmpCommandError as error:
        hardware.mark(entry, "there")
        raise ChangeError(f"QEMU does not detach {entry}: {error.message}", instance=context.name) from error
    return Waiting(entry=entry, force_after=arguments["force_after"], persist=filing.wanted)


def boot_disk(hardware: Hardware) -> str:
    """The entry of the disk that is tried first, ``""`` when it boots from none."""
    bootable = [disk for disk in hardware.summary.disks if disk.bootindex >= 0]
    first = min(bootable, key=lambda disk: disk.bootindex, default=None)
    return f"disk.{first.id}" if first is not None and not hardware.unit.machine.kernel else ""


async def settle(context: Context) -> tuple[tuple[str, ...], bool]:
    """Find out what QEMU has, and take away what stood under devices that are gone.

    Returns:
        The entries that are gone, and whether of others something is left that is still in use.

    Raises:
        MonitorError: QEMU did not answer; what is left is done the next time.
    """
    hardware = context.hardware
    there = await commands.qom_list_peripherals(context.monitor, timeout=STEP_TIMEOUT)
    gone, in_use = [], False
    for entry in hardware.match(there):
        if (part := hardware.part(entry)) is None:
            continue
        context.life.helpers.dismiss(entry)
        if await wiring.give_up(part, context.monitor):
            await _forget(entry, context)
            gone.append(entry)
        else:
            hardware.mark(entry, "leaving")
            in_use = True
    if gone:
        context.keep()
    return tuple(gone), in_use


async def remind(context: Context) -> None:
    """Ask once more for what is to leave: whoever asked before may have ended before QEMU heard of it.

    Raises:
        MonitorError: QEMU did not answer, or refused.
    """
    for part in context.hardware.in_state("leaving"):
        await wiring.ask_to_go(part, context.monitor)
