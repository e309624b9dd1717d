"""The boot order, changed while the VM runs: the firmware reads it at the guest's next reset.

Decides: which devices have another place than before, and that all of them get theirs or none.
Must not: reset the guest.

QEMU writes the order for the firmware anew at each reset (``bootorder`` in hw/nvram/fw_cfg.c), and no place is taken
twice in between (system/bootdevice.c). A NIC that was none to boot from has no boot ROM; the model says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qsup.errors import ChangeError, QmpCommandError
from qsup.instance.context import Context
from qsup.instance.hardware import Hardware
from qsup.plan.disks import boot_order, boot_place
from qsup.qmp import commands
from qsup.unit.compare import Change
from qsup.unit.model import Unit

_KEY = re.compile(r"(?P<entry>(disk|nic)\..+)\.bootindex")
#: Seconds for one command.
_TIMEOUT = 5.0
#: QEMU's for a device that is not tried.
_NONE = boot_place(None)


class BootOrder:
    """``disk.NAME.bootindex`` and ``nic.NAME.bootindex``."""

    def concerns(self, key: str) -> bool:
        """Whether it is one of these."""
        return _KEY.fullmatch(key) is not None

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """See that the device is there."""
        context.hardware.check_there(change.key.rpartition(".")[0])

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Any]:
        """Give every device its place; one that is named may move others, which have one by the order of the unit."""
        await _arrange(unit, context)
        return {}


async def make_room(entries: Sequence[str], unit: Unit, context: Context) -> None:
    """Give all their places once something has come that says its own, where a disk's is another than before.

    Args:
        entries: what has come.
        unit: with it.

    Raises:
        ChangeError: QEMU does not take that order; it has the one before.
        MonitorError: QEMU did not answer.
    """
    order = boot_order(unit)
    placed = [f"disk.{disk.id}" for disk in unit.disks if disk.bootindex >= 0]
    placed += [f"nic.{nic.id}" for nic in unit.nics if nic.bootindex >= 0]
    if set(entries).isdisjoint(placed):
        return
    if any(disk.bootindex != order.get(disk.id, -1) for disk in context.hardware.summary.disks):
        await _arrange(unit, context)


def taken_places(hardware: Hardware) -> frozenset[int]:
    """The places in the boot order that something has, as the unit counts them."""
    found = [*(disk.bootindex for disk in hardware.summary.disks), *(nic.bootindex for nic in hardware.unit.nics)]
    return frozenset(place for place in found if place >= 0)


async def _arrange(unit: Unit, context: Context) -> None:
    wanted = _places(unit, context.hardware)
    places = {device: await _place(device, context) for device in wanted}
    moved = {device: place for device, place in wanted.items() if place != places[device]}
    try:
        await _move(moved, context)
    except QmpCommandError as error:
        await _move({device: places[device] for device in moved}, context)
        raise ChangeError(f"QEMU does not take the boot order: {error.message}", instance=context.name) from error
    context.hardware.order_boot(boot_order(unit))


def _places(unit: Unit, hardware: Hardware) -> dict[str, int]:
    """QEMU's ``bootindex`` by device, of those that are there."""
    order = boot_order(unit)
    disks = {f"disk.{disk.id}": (disk.device, order.get(disk.id)) for disk in hardware.summary.disks}
    nics = {f"nic.{nic.id}": (f"nic-{nic.id}", nic.bootindex if nic.bootindex >= 0 else None) for nic in unit.nics}
    there = {part.entry for part in hardware.in_state("there")}
    found = (said for entry, said in (disks | nics).items() if entry in there)
    return {device: boot_place(index) for device, index in found}


async def _place(device: str, context: Context) -> int:
    return await commands.qom_get_number(context.monitor, _path(device), "bootindex", timeout=_TIMEOUT)


async def _move(places: Mapping[str, int], context: Context) -> None:
    """None keeps its place until each has its own: QEMU takes none twice."""
    for step in (dict.fromkeys(places, _NONE), {device: place for device, place in places.items() if place != _NONE}):
        for device, place in step.items():
            await commands.qom_set(context.monitor, _path(device), "bootindex", place, timeout=_TIMEOUT)


def _path(device: str) -> str:
    return f"/machine/peripheral/{device}"
