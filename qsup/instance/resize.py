"""Making a disk larger while its guest runs.

Decides: which disks can be, and that what is told is the size which QEMU then has.
Must not: make any smaller: what the guest keeps beyond the new end would be gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from qsup.errors import ChangeError, NoSuchDevice, QmpCommandError
from qsup.host.image import OpenImage, open_image
from qsup.host.storage import open_in_thread
from qsup.instance.context import Context
from qsup.instance.drives import find_drives
from qsup.instance.hardware import leaving
from qsup.plan.blockdev import is_block_device_path
from qsup.plan.spec import DiskPlan
from qsup.qmp import commands
from qsup.qmp.results import BlockInfo
from qsup.unit.quantity import format_size

_TIMEOUT = 10.0
_SECTOR = 512
#: QEMU's sizes are signed.
_LARGEST = (1 << 63) - 1


async def resize(arguments: Mapping[str, Any], context: Context) -> Mapping[str, Any]:
    """Do it.

    Args:
        arguments: the operation's: ``disk``, an id, and ``size`` in bytes.

    Returns:
        ``size``, which QEMU says then, and whether that was changed.

    Raises:
        NoSuchDevice: there is no such disk.
        ChangeError: it cannot have that size.
        MonitorError: QEMU did not answer.
    """
    size, plan = int(arguments["size"]), _plan(str(arguments["disk"]), context)
    drive = await _drive(plan, context)
    if size == drive.virtual_size:
        return {"changed": False, "size": size}
    await _check(plan, drive, size, context)
    try:
        await commands.block_resize(context.monitor, drive.node_name, size, timeout=_TIMEOUT)
    except QmpCommandError as error:
        raise ChangeError(f"QEMU does not resize disk {plan.id}: {error.message}", instance=context.name) from error
    return {"changed": True, "size": (await _drive(plan, context)).virtual_size}


def _plan(name: str, context: Context) -> DiskPlan:
    part = context.hardware.part(f"disk.{name}")
    plan = next((plan for plan in context.hardware.summary.disks if plan.id == name), None)
    if plan is None or part is None or part.state == "coming":
        raise NoSuchDevice(f"it has no disk {name}", instance=context.name, hint="`qsupctl devices` shows what it has")
    if part.state == "leaving":
        raise leaving(part.entry)
    return plan


async def _drive(plan: DiskPlan, context: Context) -> BlockInfo:
    drive = (await find_drives([plan.id], context.hardware.summary, context.monitor)).get(plan.id)
    if drive is None or not drive.node_name:
        raise ChangeError(f"disk {plan.id} has no image now", instance=context.name)
    return drive


async def _check(plan: DiskPlan, drive: BlockInfo, size: int, context: Context) -> None:
    now, wanted = format_size(drive.virtual_size), format_size(size)
    if plan.read_only:
        raise ChangeError(f"disk {plan.id} is read-only", instance=context.name)
    if plan.bus == "nvme":
        # QEMU's NVMe controller does not let go of the size (`blkconf_apply_backend_options`)
        words = f"QEMU resizes no NVMe disk while it is in use, and {plan.id} is one"
        raise ChangeError(words, instance=context.name, hint="detach it first, or resize it while the VM is down")
    if size < drive.virtual_size:
        words = f"disk {plan.id} is {now} large; it is not made smaller ({wanted})"
        raise ChangeError(words, instance=context.name, hint="what the guest keeps beyond that would be gone")
    if size > _LARGEST:
        words = f"{size} bytes are more than QEMU counts"
        raise ChangeError(words, instance=context.name, hint=f"a disk has less than {format_size(_LARGEST + 1)}")
    if size % _SECTOR:
        raise ChangeError(f"{size} bytes are no whole number of sectors of {_SECTOR}", instance=context.name)
    if is_block_device_path(plan.path) and size > (room := await _size_of_device(plan, context)):
        words = f"the block device {plan.path} is {format_size(room)} large, and a disk on it no larger ({wanted})"
        raise ChangeError(words, instance=context.name, hint="make the device larger first")


async def _size_of_device(plan: DiskPlan, context: Context) -> int:
    services = context.services
    look = partial(
        open_image,
        plan.path,
        pools=services.layout.pools,
        format="raw",
        read_only=True,
        allow_block_devices=services.block_devices,
    )
    image = await open_in_thread(look, close=OpenImage.close)
    image.close()
    return image.size
