"""Taking something from a VM that runs: asked for, and what is left to do once it has gone.

Decides: what may be detached, and when nothing is left of an entry.
Must not: wait for a guest, or end an operation; the driver does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from qsup.errors import ChangeError, NoSuchDevice, QmpCommandError
from qsup.instance import hotplug as wiring
from qsup.instance import outside
from qsup.instance.context import Context
from qsup.instance.filing import Filing, absent
from qsup.instance.hardware import Hardware
from qsup.instance.hotplug import STEP_TIMEOUT
from qsup.instance.taps import release_bridges
from qsup.qmp import commands


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


async def detach(arguments: Mapping[str, Any], context: Context, filing: Filing) -> Waiting:
    """Ask for an entry to be unplugged.

    Args:
        arguments: ``entry``, ``force`` and ``force_after``, as `qsup.instance.change.carry_out` has them.

    Raises:
        QsupError: why it was not; it is there as before, unless QEMU did not answer.
    """
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
            await forget(entry, context)
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


def leaving(entry: str) -> ChangeError:
    """Why nothing can be done with an entry that is on its way out."""
    return ChangeError(f"{entry} is still being detached", hint="wait until the guest has let it go, or reset it")


async def forget(entry: str, context: Context) -> None:
    """Nothing of it is left in QEMU: give up what it had of the host."""
    nics = [nic for nic in context.hardware.summary.nics if entry == f"nic.{nic.id}"]
    context.hardware.remove(entry)
    context.services.claims.release_entry(context.name, entry)
    release_bridges(nics)
    await outside.release(entry, context.life.directory, context.services, context.life.helpers)
