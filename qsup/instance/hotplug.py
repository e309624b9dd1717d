"""Giving devices to a QEMU that runs, and taking away what they stood on once they are gone.

Decides: what is done side by side, and that an attach which fails leaves nothing behind, or says what it leaves.
Must not: decide what is attached and where (`qsup.plan.attach`), or believe that a device is gone before QEMU says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import structlog
import trio
from attrs import field, frozen

from qsup.errors import MonitorError, QmpCommandError
from qsup.instance.hardware import Attached, Hardware
from qsup.plan import hotplug
from qsup.plan.hotplug import Command
from qsup.plan.part import Part
from qsup.plan.spec import BackendPlan, DevicePlan, PartPlan
from qsup.qmp import commands
from qsup.qmp.connection import Monitor

_log = structlog.get_logger()

#: Seconds for one command; storage that does not answer holds QEMU's main loop in `blockdev-add`.
STEP_TIMEOUT = 10.0
#: Seconds for QEMU to free a device that is gone, and between two attempts to remove what it stood on.
_FREED_WITHIN, _FREED_PAUSE = 2.0, 0.005


@frozen(kw_only=True)
class Piece:
    """One part on its way into QEMU.

    Args:
        part: what it is.
        attached: what the VM has once it is there.
    """

    part: Part
    attached: Attached


@frozen(kw_only=True, eq=False)
class _Made:
    """What QEMU was given so far, by piece, in order."""

    things: list[tuple[Piece, BackendPlan | DevicePlan]] = field(factory=list)


async def attach(pieces: Sequence[Piece], hardware: Hardware, monitor: Monitor, numbers: Mapping[str, int]) -> None:
    """Give QEMU all of it, or nothing: descriptors first, then what devices stand on, then the devices.

    Args:
        pieces: controllers before what hangs on them.
        hardware: has them, as coming; those that QEMU took and cannot give back at once are leaving after a failure,
            and the others gone.
        numbers: descriptors by name.

    Raises:
        QmpCommandError: QEMU refused something; everything before it was undone.
        MonitorError: QEMU did not answer in time; what it may still do is found out once it answers.
    """
    made = _Made()
    try:
        for wave in _waves(pieces):
            await _carry_out(wave, monitor, numbers, made)
    except MonitorError as error:
        await _undo(pieces, made, hardware, monitor, error)
        raise
    for piece in pieces:
        hardware.mark(piece.attached.part.entry, "there")


async def bring_backends(part: Part, monitor: Monitor, numbers: Mapping[str, int]) -> None:
    """Give QEMU what is to stand below a device that it has, all of it or nothing.

    Raises:
        QmpCommandError: QEMU refused something; everything before it was undone.
        MonitorError: QEMU did not answer in time.
    """
    made: list[BackendPlan] = []
    try:
        for command in itertools.chain(*hotplug.backend_steps(part)):
            await _send(command, monitor, numbers)
            if isinstance(command.makes, BackendPlan):
                made.append(command.makes)
    except QmpCommandError as error:
        error.message = f"{part.subject}: {error.message}"
        await give_up(PartPlan(entry=part.entry, devices=(), backends=tuple(dict.fromkeys(made))), monitor)
        raise


def _waves(pieces: Sequence[Piece]) -> list[list[tuple[Piece, Command]]]:
    """What is done side by side: the first step of all, then the second..., devices last."""
    waves: list[list[tuple[Piece, Command]]] = []
    for steps in (hotplug.backend_steps, hotplug.device_steps):
        of_all = [[[(piece, command) for command in group] for group in steps(piece.part)] for piece in pieces]
        # a controller has no back ends, and is there before any of what hangs on it
        ready = [groups for groups, piece in zip(of_all, pieces, strict=True) if not piece.part.backends]
        waves += [group for groups in ready for group in groups]
        others = [groups for groups, piece in zip(of_all, pieces, strict=True) if piece.part.backends]
        waves += [list(itertools.chain(*groups)) for groups in itertools.zip_longest(*others, fillvalue=[])]
    return waves


async def _carry_out(
    wave: Sequence[tuple[Piece, Command]], monitor: Monitor, numbers: Mapping[str, int], made: _Made
) -> None:
    failures: list[MonitorError] = []

    async def one(piece: Piece, command: Command) -> None:
        try:
            await _send(command, monitor, numbers)
        except MonitorError as error:
            error.message = f"{piece.part.subject}: {error.message}"
            failures.append(error)
        else:
            if command.makes is not None:
                made.things.append((piece, command.makes))

    if len(wave) == 1:
        await one(*wave[0])
    else:
        async with trio.open_nursery() as nursery:
            for piece, command in wave:
                nursery.start_soon(one, piece, command)
    if failures:
        # what QEMU said is worth more than that it said nothing
        raise next((error for error in failures if isinstance(error, QmpCommandError)), failures[0])


async def _send(command: Command, monitor: Monitor, numbers: Mapping[str, int]) -> None:
    fds = (numbers[command.fd],) if command.fd else ()
    if not fds or command.command == "add-fd":
        await monitor.execute(command.command, command.arguments, timeout=STEP_TIMEOUT, fds=fds)
        return
    await commands.getfd(monitor, fds[0], command.fd, timeout=STEP_TIMEOUT)
    try:
        await monitor.execute(command.command, command.arguments, timeout=STEP_TIMEOUT)
    except QmpCommandError:
        # what QEMU did not use it keeps until somebody takes it back, and a tap with it
        await commands.closefd(monitor, command.fd, timeout=STEP_TIMEOUT)
        raise


async def _undo(
    pieces: Sequence[Piece], made: _Made, hardware: Hardware, monitor: Monitor, failure: MonitorError
) -> None:
    """Take back what was given; a device that the guest may hold already is on its way out until QEMU says otherwise.

    What a timeout leaves open is written down as on its way out, too: QEMU may carry it out later.
    """
    sure = isinstance(failure, QmpCommandError)
    held = {id(piece) for piece, thing in made.things if isinstance(thing, DevicePlan)}
    for piece, thing in reversed(made.things):
        if isinstance(thing, BackendPlan) and id(piece) in held:
            continue  # its device must go first
        try:
            await _remove(thing, monitor)
        except QmpCommandError as error:
            _log.error("could not undo a part of an attach", part=piece.part.subject, why=error.message)
        except MonitorError as error:
            _log.error("could not undo a part of an attach", part=piece.part.subject, why=error.message)
            sure = False
            break
    for piece in pieces:
        name = piece.attached.part.entry
        if sure and id(piece) not in held:
            hardware.remove(name)
        else:
            hardware.mark(name, "leaving")


# going


async def ask_to_go(part: PartPlan, monitor: Monitor) -> None:
    """Ask for all devices of a part to be unplugged; when each has gone, an event says so.

    Raises:
        QmpCommandError: QEMU refused.
        MonitorError: it did not answer; whether it has heard is not known.
    """
    for device in hotplug.unplugged(part):
        command = hotplug.removal(device)
        try:
            await monitor.execute(command.command, command.arguments, timeout=STEP_TIMEOUT)
        except QmpCommandError as error:
            if error.error_class != "DeviceNotFound" and not _is_leaving_already(error):
                raise


def _is_leaving_already(error: QmpCommandError) -> bool:
    """Asked a second time, QEMU says so in words alone (hw/acpi, hw/pci: "already in the process of unplug")."""
    return "in the process of unplug" in error.message


async def give_up(part: PartPlan, monitor: Monitor) -> bool:
    """Take away what the devices of a part stood on, which are gone.

    QEMU finalizes a device later than it takes it out of its tree, and until then its back end is in use.

    Returns:
        Whether all of it is gone; if not, somebody still uses the rest.

    Raises:
        MonitorError: QEMU did not answer; what is left is done the next time.
    """
    for backend in reversed(part.backends):
        try:
            await _remove(backend, monitor)
        except QmpCommandError as error:
            if not _is_gone(error):
                _log.info("what a device stood on is in use", part=part.entry, name=backend.name, why=error.message)
                return False
    return True


def _is_gone(error: QmpCommandError) -> bool:
    """Whether a removal failed because there is nothing (left) to remove; some commands say so in words alone."""
    words = ("not found", "Failed to find node", "Cannot find", "does not exist")
    return error.error_class == "DeviceNotFound" or any(each in error.message for each in words)


async def _remove(thing: BackendPlan | DevicePlan, monitor: Monitor) -> None:
    """Remove one thing, once QEMU is rid of the device that had it.

    What a device stands on is its device's until QEMU has freed that, some milliseconds after it is gone: a bus gives
    up its children after a grace period of RCU (bus_remove_child in QEMU's hw/core/qdev.c), and each frees its own.
    """
    command = hotplug.removal(thing)
    deadline = trio.current_time() + _FREED_WITHIN
    while True:
        try:
            await monitor.execute(command.command, command.arguments, timeout=STEP_TIMEOUT)
            return
        except QmpCommandError as error:
            is_held = error.message.endswith("is busy") or "in use" in error.message
            if not is_held or trio.current_time() > deadline:
                raise
        await trio.sleep(_FREED_PAUSE)
