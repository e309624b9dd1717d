"""Giving devices to a QEMU that runs, and taking away what they stood on once they are gone.

Decides: what QEMU is sent without waiting for answers in between, and that an attach which fails leaves nothing behind,
or says what it leaves.
Must not: decide what is attached and where (`qsup.plan.attach`), or believe that a device is gone before QEMU says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import structlog
import trio
from attrs import frozen

from qsup.errors import HostError, MonitorError, QmpCommandError, QsupError
from qsup.instance.hardware import Attached, Hardware
from qsup.plan import hotplug
from qsup.plan.hotplug import Command
from qsup.plan.part import Part
from qsup.plan.spec import BackendPlan, DevicePlan, PartPlan
from qsup.qmp import commands
from qsup.qmp.connection import Monitor, Request

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


#: What QEMU was given so far, by piece, in order.
_Made = list[tuple[Piece, BackendPlan | DevicePlan]]


async def attach(pieces: Sequence[Piece], hardware: Hardware, monitor: Monitor, numbers: Mapping[str, int]) -> None:
    """Give QEMU all of it, or nothing: what devices stand on first, and once all of that is there, the devices.

    Args:
        pieces: controllers before what hangs on them.
        hardware: has them, as coming; those that QEMU took and cannot give back at once are leaving after a failure,
            and the others gone.
        numbers: descriptors by name.

    Raises:
        QmpCommandError: QEMU refused something; everything before it was undone.
        MonitorError: QEMU did not answer in time; what it may still do is found out once it answers.
        HostError: the kernel did not take a command; everything before it was undone.
    """
    made: _Made = []
    # a device upon somebody else's thing of the same name would come although ours has failed: it waits for ours
    for steps in (hotplug.backend_steps, hotplug.device_steps):
        asked = [(piece, command) for piece in pieces for command in steps(piece.part)]
        errors = await _send([command for _, command in asked], monitor, numbers)
        for (piece, command), error in zip(asked, errors, strict=True):
            # the descriptors of a set come one by one, in a row
            if error is None and command.makes is not None and made[-1:] != [(piece, command.makes)]:
                made.append((piece, command.makes))
        if failures := list(filter(None, errors)):
            telling = _telling(failures)
            subject = asked[errors.index(telling)][0].part.subject
            telling.message = f"{subject}: {telling.message}"
            sure = all(map(_has_not_come, failures))
            if not sure and not telling.hint:
                telling.hint = "once QEMU answers, what came of it goes again; `qsupctl devices` shows that"
            await _undo(pieces, made, hardware, monitor, sure=sure)
            raise telling
    for piece in pieces:
        hardware.mark(piece.attached.part.entry, "there")


async def bring_backends(part: Part, monitor: Monitor, numbers: Mapping[str, int]) -> None:
    """Give QEMU what is to stand below a device that it has, all of it or nothing.

    Raises:
        QmpCommandError: QEMU refused something; everything before it was undone.
        MonitorError: QEMU did not answer in time.
        HostError: the kernel did not take a command; everything before it was undone.
    """
    steps = hotplug.backend_steps(part)
    errors = await _send(steps, monitor, numbers)
    if failures := list(filter(None, errors)):
        error = _telling(failures)
        error.message = f"{part.subject}: {error.message}"
        if all(map(_has_not_come, failures)):
            made = [step.makes for step, failure in zip(steps, errors, strict=True) if failure is None]
            backends = tuple(dict.fromkeys(each for each in made if isinstance(each, BackendPlan)))
            await give_up(PartPlan(entry=part.entry, devices=(), backends=backends), monitor)
        raise error


def _has_not_come(error: QsupError) -> bool:
    """Whether it is certain that QEMU has not done what was asked for, and will not."""
    return isinstance(error, QmpCommandError | HostError) or error.details.get("sent") is False


def _telling(failures: Sequence[QsupError]) -> QsupError:
    """The failure that says why: what QEMU said is worth more than that it said nothing, and first comes the cause."""
    return next((error for error in failures if isinstance(error, QmpCommandError)), failures[0])


async def _send(steps: Sequence[Command], monitor: Monitor, numbers: Mapping[str, int]) -> list[QsupError | None]:
    """Have QEMU carry out commands, in order; why each was not, ``None`` if it was."""
    asked = [_requests(step, numbers) for step in steps]
    outcomes = iter(await monitor.execute_all(list(itertools.chain(*asked)), timeout=STEP_TIMEOUT))
    errors = []
    for step, requests in zip(steps, asked, strict=True):
        *before, last = itertools.islice(outcomes, len(requests))
        error = next((outcome.error for outcome in before if outcome.error is not None), last.error)
        if before and error is last.error and isinstance(error, QmpCommandError):
            # what QEMU did not use it keeps until somebody takes it back, and a tap with it
            try:
                await commands.closefd(monitor, step.fd, timeout=STEP_TIMEOUT)
            except MonitorError as kept:
                error = kept
        errors.append(error)
    return errors


def _requests(step: Command, numbers: Mapping[str, int]) -> list[Request]:
    fds = (numbers[step.fd],) if step.fd else ()
    if fds and step.command != "add-fd":
        return [Request("getfd", {"fdname": step.fd}, fds=fds), Request(step.command, step.arguments)]
    return [Request(step.command, step.arguments, fds=fds)]


async def _undo(pieces: Sequence[Piece], made: _Made, hardware: Hardware, monitor: Monitor, *, sure: bool) -> None:
    """Take back what was given; a device that the guest may hold already is on its way out until QEMU says otherwise.

    Args:
        sure: nothing more will come; otherwise all is written down as on its way out: QEMU may carry it out later.
    """
    held = {id(piece) for piece, thing in made if isinstance(thing, DevicePlan)}
    answers = True
    for piece, thing in reversed(made):
        if isinstance(thing, BackendPlan) and id(piece) in held:
            continue  # its device must go first
        try:
            left: Sequence[QsupError] = await _remove([thing], monitor)
        except (MonitorError, HostError) as error:
            left, answers = [error], False
        for each in left:
            _log.error("could not undo a part of an attach", part=piece.part.subject, why=each.message)
        if not answers:
            break
    for piece in pieces:
        name = piece.attached.part.entry
        if sure and answers and id(piece) not in held:
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
    for is_open in (False, True):
        # a descriptor goes last: a node that is still in use may have to open it once more
        asked = [each for each in reversed(part.backends) if (each.kind == "fdset") is is_open]
        if left := [error for error in await _remove(asked, monitor) if not _is_gone(error)]:
            _log.info("what a device stood on is in use", part=part.entry, why=left[0].message)
            return False
    return True


def _is_gone(error: QmpCommandError) -> bool:
    """Whether a removal failed because there is nothing (left) to remove; some commands say so in words alone."""
    words = ("not found", "Failed to find node", "Cannot find", "does not exist")
    return error.error_class == "DeviceNotFound" or any(each in error.message for each in words)


async def _remove(things: Sequence[BackendPlan | DevicePlan], monitor: Monitor) -> list[QmpCommandError]:
    """Remove things in order, each once QEMU is rid of the device that had it.

    What a device stands on is its device's until QEMU has freed that, some milliseconds after it is gone: a bus gives
    up its children after a grace period of RCU (bus_remove_child in QEMU's hw/core/qdev.c), and each frees its own.

    Returns:
        Why QEMU does not remove some of them.

    Raises:
        MonitorError, HostError: QEMU did not hear of one, or did not answer.
    """
    deadline = trio.current_time() + _FREED_WITHIN
    refused: list[QmpCommandError] = []
    while True:
        held, in_use = [], []
        for thing, error in zip(things, await _send(list(map(hotplug.removal, things)), monitor, {}), strict=True):
            if isinstance(error, QmpCommandError):
                if error.message.endswith("is busy") or "in use" in error.message:
                    held.append(thing)
                    in_use.append(error)
                else:
                    refused.append(error)
            elif error is not None:
                raise error
        if not held or trio.current_time() > deadline:
            return refused + in_use
        things = held
        await trio.sleep(_FREED_PAUSE)
