"""Changing a VM that runs: checked as a whole, then carried out, then true; or undone, with the reason.

Decides: who carries out which request and which key, what is asked of the guest, and what the VM consists of
afterwards.
Must not: judge whether a change is allowed in the VM's state, wait for a guest, or end an operation; the driver does.
Nor bring or take an entry itself (`qsup.instance.coming`, `qsup.instance.going`).

A change is what a drop-in would say: sections and keys, of arrays of tables the entries that change or come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from attrs import evolve, frozen

from qsup.errors import ChangeError, QsupError
from qsup.instance.coming import PLANNERS, attach, check_plan
from qsup.instance.context import Context, Goal, LiveKeys
from qsup.instance.drives import check_drive
from qsup.instance.filing import Filing, file_only
from qsup.instance.going import Waiting, check_can_go, depart, detach, leaving_for
from qsup.instance.hardware import Hardware, leaving
from qsup.instance.live import throttle
from qsup.instance.live.bootorder import BootOrder
from qsup.instance.live.caching import Caching
from qsup.instance.live.limits import LimitKeys
from qsup.instance.live.medium import Medium
from qsup.instance.live.memory import SIZE, Memory, count_modules, memory_goal
from qsup.instance.live.nics import NicKeys
from qsup.instance.live.pins import PinKeys, are_about_places
from qsup.instance.live.vcpus import VCPUS, Vcpus, count_vcpus, fewer_vcpus
from qsup.instance.live.watchdog import WatchdogKeys
from qsup.instance.resize import resize
from qsup.instance.setting import Means, amended, coming_of, if_not_done, judge_all, needs, set_keys, with_only
from qsup.instance.state import Request
from qsup.instance.verdict import AT_ONCE, AT_START, Said, keys_said
from qsup.unit.compare import Change, compare
from qsup.unit.compose import amend
from qsup.unit.keys import Applies
from qsup.unit.model import Unit
from qsup.unit.write import difference, values_of

_log = structlog.get_logger()

#: What can be changed while a VM runs, besides that entries come and go; each key has one that the model calls live, or
#: says to need no more than a reset of the guest.
LIVE: tuple[LiveKeys, ...] = (
    LimitKeys(),  # the first: what comes may need the room
    *(throttle.Throttle(), Medium(), Caching(), BootOrder()),
    *(NicKeys(), WatchdogKeys(), Vcpus(), Memory(), PinKeys()),
)
#: The keys that the guest has to make true, and how their goal is made from the unit as it is to be.
GOALS: Mapping[str, Callable[[Unit, Hardware], Goal]] = {VCPUS: fewer_vcpus, SIZE: memory_goal}


#: What of a VM there is a number of, by how its entries begin: the key, and how it is counted.
_COUNTED = {"cpu.": (VCPUS, count_vcpus), "memory.": (SIZE, count_modules)}


@frozen(kw_only=True)
class Lasting:
    """QEMU has taken all of a change, and the guest works on it.

    Args:
        goals: what is to come true.
        result: of what is true already.
        otherwise: when a key counts that does not come true.
    """

    goals: tuple[Goal, ...]
    result: Mapping[str, Any]
    otherwise: str


async def carry_out(
    request: Request, arguments: Mapping[str, Any], context: Context, filing: Filing
) -> Mapping[str, Any] | Waiting | Lasting:
    """Do it.

    Args:
        arguments: the operation's: ``changes`` of ``attach`` and ``set``, as a drop-in would say them; those of ``set``
            may be ``None`` for what its unit says now, and it has ``dry_run`` and ``next_start``; ``entry`` and
            ``force`` of ``detach``; ``force_after`` of either that detaches; ``disk`` and ``size`` of ``resize``;
            ``drive``, a CD drive that a ``set`` is about, and ``force`` against its guest's will.

    Returns:
        The operation's result; or, of what the guest has to do, that it waits.

    Raises:
        QsupError: why it was not done; the VM is as it was, unless the words say otherwise.
    """
    context = evolve(context, force=bool(arguments.get("force")), force_after=arguments.get("force_after"))
    if drive := arguments.get("drive"):
        check_drive(str(drive), context.hardware.unit, context.name)
    match request:
        case Request.DETACH:
            return await detach(arguments, context, filing)
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
    changes, dry_run = arguments["changes"], bool(arguments.get("dry_run"))
    if written := changes is None:
        changes = difference(context.hardware.unit, (await context.services.load(context.name)).unit)
    if are_about_places(changes):
        await context.services.placements.refresh()  # whether the host has the CPUs is judged without waiting for it
    result = await set_keys(changes, context, filing, _means(), dry_run=dry_run, written=written)
    otherwise = if_not_done(written)
    return Lasting(goals=tuple(context.goals), result=result, otherwise=otherwise) if context.goals else result


def _keep(context: Context) -> None:
    try:
        context.keep()
    except QsupError as error:
        # what was done is done; it is written again whenever something changes
        _log.error("could not write down what the VM consists of", instance=context.name, why=error.message)


def _means() -> Means:
    return Means(
        live=LIVE,
        plan=check_plan,
        attach=attach,
        check_can_go=check_can_go,
        depart=depart,
        again=_again,
        sections=PLANNERS,
    )


def compared(hardware: Hardware, unit: Unit, context: Context | None = None) -> tuple[Change, ...]:
    """What differs between a VM that runs and its unit, with what each key needs to count.

    Args:
        hardware: the VM's.
        unit: as the files say it.
        context: ``None`` where it cannot be had: what is usual is said then.
    """
    return needs(compare(hardware.unit, unit), unit, _means(), hardware, context)


def previewed(running: Unit, unit: Unit, context: Context | None) -> list[Said]:
    """What would become of each key that differs if a VM that runs were to be as another unit says.

    Args:
        running: as it runs.
        unit: as its files would say it; they would be written before anything is done.
        context: ``None`` while it cannot be asked.
    """
    changes = difference(running, unit)
    if context is not None:
        return judge_all(changes, context, _means(), lasts=True, written=True).said
    unasked = "QEMU cannot be asked now"
    return [
        Said.of(change, AT_ONCE) if change.needs is Applies.SUPERVISOR else Said.of(change, AT_START, unasked)
        for change in keys_said(compare(running, unit), changes)
    ]


async def _attach_alone(changes: Mapping[str, Any], context: Context, filing: Filing) -> Mapping[str, Any]:
    hardware = context.hardware
    if any(entry.get("present") is False for entries in changes.values() for entry in entries):
        raise ChangeError("what is attached is present", hint="detach takes an entry away")
    unit = amended(changes, context)
    found = compare(hardware.unit, unit)
    coming = coming_of(found, unit)
    named = [f"{section}.{entry['id']}" for section, entries in changes.items() for entry in entries]
    # whoever takes it up may find that it was done, and not told
    if (known := [entry for entry in named if entry not in coming]) and not (context.again and not found):
        if (part := hardware.part(known[0])) is not None and part.state == "leaving":
            raise leaving(known[0])
        raise ChangeError(f"it has {known[0]} already", hint="choose another id, or detach that first")
    await filing.rehearse(changes, named)
    if coming:
        before = hardware.unit
        await attach(coming, unit, context)
        # what went meanwhile does not come back
        hardware.set_unit(unit if hardware.unit is before else with_only(hardware.unit, changes, coming, context))
    await filing.write(changes, named, done=f"{', '.join(named)} is there")
    return {"changed": True}


def _again(changes: Mapping[str, Any], found: Sequence[Change], unit: Unit) -> list[Change]:
    """Keys that are named and are so by the unit, but may not be by QEMU: what they ask of the guest may be left."""
    known = {change.key for change in found}
    values = values_of(unit)
    named = [key for key in goal_keys(changes) if key not in known]
    return [Change(key=key, old=_value(values, key), new=_value(values, key), needs=Applies.LIVE) for key in named]


def _value(values: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    found = values.get(section)
    return found.get(name) if isinstance(found, Mapping) else None


async def count_left(gone: Sequence[str], context: Context, is_awaited: Callable[[str], bool]) -> None:
    """Take in what a guest let go after nobody had waited for it any more.

    Args:
        gone: entries that QEMU has no more.
        is_awaited: whether something is under way that makes a key true, and then says so itself.

    Raises:
        MonitorError: QEMU did not answer.
    """
    for kind, (key, count) in _COUNTED.items():
        if any(entry.startswith(kind) for entry in gone) and not is_awaited(key):
            await count(context)


def goals(
    changes: Mapping[str, Any], hardware: Hardware, name: str, force_after: float | None = None
) -> tuple[Goal, ...]:
    """What a change that an earlier daemon began asks of the guest.

    Args:
        changes: as for `carry_out`.
        hardware: what the VM consists of.
        force_after: seconds from now until the guest is reset for what it has to let go.
    """
    unit = amend(hardware.unit, changes, name).unit or hardware.unit
    return (*leaving_for(unit, hardware, force_after), *(GOALS[key](unit, hardware) for key in goal_keys(changes)))


def goal_keys(changes: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a change that the guest may have to make true."""
    return tuple(key for key in GOALS if _value(changes, key) is not None)
