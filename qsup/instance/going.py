"""Taking something from a VM that runs: asked for, and what is left to do once it has gone.

Decides: what may be detached, and when nothing is left of an entry.
Must not: wait for a guest, or end an operation; the driver does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import trio
from attrs import frozen

from qsup.errors import ChangeError, DeniedError, GuestRefused, MonitorError, NoSuchDevice, QmpCommandError
from qsup.instance import hotplug as wiring
from qsup.instance import outside
from qsup.instance.context import NOTHING, Changes, Context, Goal
from qsup.instance.filing import Filing, absent
from qsup.instance.hardware import Hardware, entry_of, staying
from qsup.instance.hotplug import STEP_TIMEOUT
from qsup.instance.operation import NOT_TAKEN_BACK
from qsup.instance.taps import release_bridges
from qsup.plan import hotplug, inventory
from qsup.plan.spec import DevicePlan, PartPlan
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.unit.entries import MOVABLE
from qsup.unit.model import Unit


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


async def detach(arguments: Mapping[str, Any], context: Context, filing: Filing) -> Waiting | Mapping[str, Any]:
    """Ask for an entry to be unplugged.

    Args:
        arguments: ``entry``, ``force`` and ``force_after``, as `qsup.instance.change.carry_out` has them.

    Returns:
        That it waits; the operation's result where QEMU has it no more, and only its unit had.

    Raises:
        QsupError: why it was not; it is there as before, unless QEMU did not answer.
    """
    entry, hardware = str(arguments["entry"]), context.hardware
    part = hardware.part(entry)
    if part is None:
        return await _forget_absent(entry, context, filing)
    if part.state == "coming":
        raise _unknown(entry, context)
    if not arguments["force"] and entry == boot_disk(hardware):
        raise ChangeError(f"{entry} is what the VM boots from", hint="say --force to detach it all the same")
    await filing.rehearse(absent(entry))
    await _ask(part, context)
    return Waiting(entry=entry, force_after=arguments["force_after"], persist=filing.wanted)


async def _ask(part: PartPlan, context: Context) -> None:
    """Ask for it; while QEMU has not refused, it is on its way out."""
    context.hardware.mark(part.entry, "leaving")
    try:
        context.keep()
        await wiring.ask_to_go(part, context.monitor)
    except QmpCommandError as error:
        context.hardware.mark(part.entry, "there")
        raise ChangeError(f"QEMU does not detach {part.entry}: {error.message}", instance=context.name) from error
    except MonitorError as error:
        error.message = f"{part.entry}: {error.message}"
        error.hint = error.hint or "QEMU may have heard: `qsupctl devices` shows it as leaving until that is known"
        raise


# what a unit does not have any more


def check_can_go(entry: str, hardware: Hardware) -> None:
    """See that an entry can be asked to go because its unit has it no more.

    Raises:
        QsupError: why it stays until the VM's next start.
    """
    if entry.partition(".")[0] not in MOVABLE:
        raise staying(entry)
    part = hardware.part(entry)
    if part is None or part.state == "coming":
        raise ChangeError(f"{entry} is still being attached", hint="try again")
    if entry == boot_disk(hardware):
        words = f"{entry} is what the VM boots from, and goes only when that is asked for"
        raise ChangeError(words, hint=f"detach {entry} --force")
    hotplug.check_removable(part, hardware.summary.family)


async def depart(entries: Sequence[str], context: Context) -> list[Goal]:
    """Ask for entries to be unplugged that the VM's unit has no more: that each has gone is to come true.

    Raises:
        QsupError: QEMU refused one, or did not answer; those before it are on their way out.
    """
    patience = Patience(context.force_after)
    goals = [Gone(entry, patience) for entry in entries]
    for goal in goals:
        await goal.step(context)
    return list(goals)


def leaving_for(unit: Unit, hardware: Hardware, force_after: float | None) -> list[Goal]:
    """The same of those that an earlier daemon has asked for: they are on their way out, and a unit has them not."""
    patience = Patience(force_after)
    going = (part.entry for part in hardware.in_state("leaving") if entry_of(hardware.unit, part.entry) is not None)
    return [Gone(entry, patience) for entry in going if entry_of(unit, entry) is None]


class Patience:
    """How long the guest of one request has to let go of all that it asked for: then it is reset, which ends that.

    Args:
        seconds: from now on; ``None`` for as long as it likes.
    """

    def __init__(self, seconds: float | None) -> None:
        self._until = math.inf if seconds is None else trio.current_time() + seconds

    async def spend(self, context: Context) -> None:
        """Reset the guest if it has had its time; `MonitorError` when QEMU did not answer, and it is tried again."""
        if trio.current_time() >= self._until:
            await commands.system_reset(context.monitor, timeout=STEP_TIMEOUT)
            self._until = math.inf


class Gone:
    """That QEMU has nothing of an entry any more, however that comes about.

    Args:
        patience: what all of one request share.
    """

    besides: Changes = NOTHING

    def __init__(self, entry: str, patience: Patience) -> None:
        self.key = entry
        self._patience = patience
        self._asked = False

    async def step(self, context: Context) -> str:
        """Ask for it once. That it is gone, or that the guest keeps it, comes as an event, and is on the part then."""
        part = context.hardware.part(self.key)
        if part is None:
            return ""
        if not self._asked:
            await _ask(part, context)
            self._asked = True
        elif part.state != "leaving":
            raise kept(self.key)
        else:
            await self._patience.spend(context)
        return f"{self.key} is there until the guest lets it go or is reset"

    async def result(self, context: Context) -> Mapping[str, Any]:
        """There is nothing to be known of it."""
        return {}

    async def stop(self, context: Context) -> None:
        """QEMU has no command for that."""
        raise DeniedError(NOT_TAKEN_BACK, hint=f"a reset of the guest has {self.key} go")


def kept(entries: str) -> GuestRefused:
    """That the guest does not let something go."""
    return GuestRefused(f"the guest does not let {entries} go", hint="its console may say why: it may be in use")


async def _forget_absent(entry: str, context: Context, filing: Filing) -> Mapping[str, Any]:
    """Have the unit have an entry no more that somebody else, or the guest, has removed from QEMU."""
    if entry_of((await context.services.load(context.name)).unit, entry) is None:
        # whoever takes it up may find that it was done, and not told
        if context.again:
            return {"changed": True}
        raise _unknown(entry, context)
    if not filing.wanted:
        words = f"QEMU has no {entry}; only its unit has"
        raise NoSuchDevice(words, instance=context.name, hint="say --persist to take it out of the unit")
    await filing.rehearse(absent(entry))
    await filing.write(absent(entry))
    return {"changed": True}


def _unknown(entry: str, context: Context) -> NoSuchDevice:
    return NoSuchDevice(f"it has no {entry}", instance=context.name, hint="`qsupctl devices` shows what it has")


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
    # what comes while QEMU answers is not in its answer
    before = {part.entry for part in hardware.summary.parts if part.state != "coming"}
    there = {
        **await commands.qom_list_peripherals(context.monitor, timeout=STEP_TIMEOUT),
        **await commands.qom_list_anonymous(context.monitor, timeout=STEP_TIMEOUT),
    }
    strangers = [await _stranger(id_, there[id_], context.monitor) for id_ in hardware.unknown(there)]
    gone, in_use = [], False
    for entry in hardware.match(there, before, strangers):
        if (part := hardware.part(entry)) is None:
            continue
        context.life.helpers.dismiss(entry)
        if await wiring.give_up(part, context.monitor):
            await forget(entry, context)
            gone.append(entry)
        else:
            hardware.mark(entry, "leaving")
            in_use = True
    if gone:
        context.keep()
    return tuple(gone), in_use


async def _stranger(id_: str, driver: str, monitor: Monitor) -> DevicePlan:
    """A device that somebody else gave QEMU, which takes a place all the same."""
    path = id_ if id_.startswith("/") else f"{commands.PERIPHERAL}/{id_}"
    bus, address = await commands.qom_place(monitor, path, timeout=STEP_TIMEOUT)
    return DevicePlan(id=id_, driver=driver, bus=bus, address=address)


async def release_controllers(context: Context) -> bool:
    """Ask for controllers to go that came for something and have nothing on them any more; each keeps a slot.

    Nobody waits for that. A guest that does not let one go is not asked again.

    Returns:
        Whether any was asked for.

    Raises:
        MonitorError: QEMU did not answer, or refused.
    """
    hardware = context.hardware
    idle = [entry for entry in inventory.idle_controllers(hardware.summary) if entry not in hardware.kept]
    for entry in idle:
        hardware.mark(entry, "leaving")
    if idle:
        context.keep()
    for part in map(hardware.part, idle):
        if part is None:
            continue  # gone meanwhile
        try:
            await wiring.ask_to_go(part, context.monitor)
        except QmpCommandError:
            hardware.kept.add(part.entry)
            hardware.mark(part.entry, "there")
            raise
    return bool(idle)


async def remind(context: Context) -> None:
    """Ask once more for what is to leave: whoever asked before may have ended before QEMU heard of it.

    Raises:
        MonitorError: QEMU did not answer, or refused.
    """
    for part in context.hardware.in_state("leaving"):
        await wiring.ask_to_go(part, context.monitor)


async def forget(entry: str, context: Context) -> None:
    """Nothing of it is left in QEMU: give up what it had of the host."""
    nics = [nic for nic in context.hardware.summary.nics if entry == f"nic.{nic.id}"]
    context.hardware.remove(entry)
    context.services.claims.release_entry(context.name, entry)
    release_bridges(nics)
    await outside.release(entry, context.life.directory, context.services, context.life.helpers)
