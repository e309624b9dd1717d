"""Changing the medium of a CD drive while its guest runs.

Decides: in which order that is done, and what is said of a tray that the guest keeps closed.
Must not: take a medium from a guest that has locked the tray, unless that is forced.

The new medium's nodes are there, and found good, before the old one is touched; until then nothing has changed for
the guest. ``blockdev-open-tray`` answers ``{}`` for a locked tray as well: QEMU then only asks the guest. So the tray
is open when QEMU says that it is, and not before (QAPI ``query-block``, DEVICE_TRAY_MOVED).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import trio
from attrs import evolve, frozen

from qsup.errors import ChangeError, NoSuchDevice, QmpCommandError, QsupError
from qsup.host import descriptors
from qsup.host.claims import Claim
from qsup.instance import hotplug as wiring
from qsup.instance.context import Context
from qsup.instance.drives import find_drives
from qsup.instance.hardware import Attached, entry_of
from qsup.instance.images import open_images
from qsup.instance.live import throttle
from qsup.plan.attach import plan_medium
from qsup.plan.spec import BackendPlan, DiskPlan, ImageFd, PartPlan
from qsup.qmp import commands
from qsup.qmp.results import BlockInfo
from qsup.unit.compare import Change
from qsup.unit.model import DiskSection, Unit

_TIMEOUT = 10.0
#: Seconds that a guest has to open a tray that it has locked, and between two looks at that.
_PATIENCE, _LOOK = 5.0, 0.1
#: How often a tray is opened that a guest closes again.
_TRIES = 3


class Medium:
    """Changes of ``disk.ID.path`` and ``disk.ID.format`` of CD drives."""

    def concerns(self, key: str) -> bool:
        """Whether it is one of these; of a disk the model says that it needs a restart."""
        return key.startswith("disk.") and key.count(".") > 1 and key.rpartition(".")[2] in ("path", "format")

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """See that the drive is there."""
        context.hardware.check_there(_entry(change))

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Any]:
        """Change the media, one drive after the other; told is where the tray is then."""
        told: dict[str, Any] = {}
        for entry in dict.fromkeys(map(_entry, changes)):
            disk: DiskSection = entry_of(unit, entry)
            tray = await _Drive(disk, context).change()
            told |= {change.key: {"tray": tray} for change in changes if _entry(change) == entry}
        return told


def check_drive(name: str, context: Context) -> None:
    """See that there is such a drive.

    Raises:
        NoSuchDevice: there is no disk of that name.
        ChangeError: it is no drive.
    """
    disk: DiskSection | None = entry_of(context.hardware.unit, f"disk.{name}")
    if disk is None:
        words = f"it has no disk {name}"
        raise NoSuchDevice(words, instance=context.name, hint="`qsupctl devices` shows what it has")
    if disk.type != "cdrom":
        raise ChangeError(f"disk {name} is no CD drive", instance=context.name, hint="attach another disk instead")


def _entry(change: Change) -> str:
    return change.key.rpartition(".")[0]


@frozen(kw_only=True)
class _Media:
    """What is below a drive.

    Args:
        present: what its medium stands on.
        others: what an earlier attempt left.
    """

    present: tuple[BackendPlan, ...]
    others: tuple[BackendPlan, ...]


def media(part: PartPlan, node: str) -> _Media:
    """Tell the back ends of the medium that is in a drive from others. Pure.

    Args:
        node: that the drive reads, ``""`` for none.
    """
    # of each medium the descriptors come first, and its own node last
    groups: list[list[BackendPlan]] = []
    for backend in part.backends:
        if not groups or (backend.kind == "fdset" and groups[-1][-1].kind != "fdset"):
            groups.append([])
        groups[-1].append(backend)
    present = next((group for group in groups if node and group[-1].name == node), [])
    others = [backend for group in groups if group is not present for backend in group]
    return _Media(present=tuple(present), others=tuple(others))


class _Drive:
    """One drive whose medium is changed.

    Args:
        disk: with the new medium, or without one.
    """

    def __init__(self, disk: DiskSection, context: Context) -> None:
        self._disk = disk
        self._entry = f"disk.{disk.id}"
        self._context = context
        self._hardware = context.hardware

    async def change(self) -> str:
        """Do it, or leave everything as it is; where the tray is then."""
        drive = await self._look()
        await self._tidy(drive)
        before = Attached(part=self._part, disk=self._plan, claims=self._claims)
        try:
            new = await self._bring(drive)
        except BaseException:
            self._hardware.replace(before)
            self._release(before.claims)
            raise
        try:
            await self._open_tray(drive)
            await self._swap(drive, new)
        except QsupError as error:
            if isinstance(error, QmpCommandError | ChangeError):
                # nothing has changed for the guest, and what came for it goes
                await wiring.give_up(evolve(new.part, backends=new.backends), self._context.monitor)
                self._hardware.replace(before)
                self._release(before.claims)
                self._context.keep()
            raise
        old = evolve(before.part, backends=media(before.part, drive.node_name).present)
        await wiring.give_up(old, self._context.monitor)
        self._hardware.replace(
            Attached(part=evolve(before.part, backends=new.backends), disk=new.disk, claims=new.claims)
        )
        self._release(new.claims)
        if self._disk.path:
            await throttle.impose([self._disk], self._hardware.summary, self._context.monitor)
        return (await self._look()).tray

    @property
    def _part(self) -> PartPlan:
        part = self._hardware.part(self._entry)
        assert part is not None, "it was there when the change was checked"
        return part

    @property
    def _plan(self) -> DiskPlan:
        return next(plan for plan in self._hardware.summary.disks if plan.id == self._disk.id)

    @property
    def _claims(self) -> tuple[Claim, ...]:
        return tuple(claim for claim in self._hardware.claims if claim.entry == self._entry)

    def _release(self, kept: Sequence[Claim]) -> None:
        """Have just these claims for the drive."""
        claims, name = self._context.services.claims, self._context.name
        claims.release_entry(name, self._entry)
        for claim in kept:
            claims.restore(claim, holder=name)

    async def _look(self) -> BlockInfo:
        drives = await find_drives([self._disk.id], self._hardware.summary, self._context.monitor)
        if self._disk.id not in drives:
            raise ChangeError(f"QEMU has no drive for {self._entry} any more", instance=self._context.name)
        return drives[self._disk.id]

    async def _tidy(self, drive: BlockInfo) -> None:
        """Take away what an earlier daemon brought and did not come to insert."""
        part = self._part
        found = media(part, drive.node_name)
        if found.others:
            await wiring.give_up(evolve(part, backends=found.others), self._context.monitor)
            self._hardware.replace(
                Attached(part=evolve(part, backends=found.present), disk=self._plan, claims=self._claims)
            )

    async def _bring(self, drive: BlockInfo) -> _New:
        """Give QEMU the new medium, beside the one that is in the drive."""
        part, plan = self._part, self._plan
        coming = plan_medium(self._disk, self._hardware.summary, beside=drive.node_name)
        requests = [fd for fd in coming.fds if isinstance(fd, ImageFd)]
        numbers: dict[str, int] = {}
        with ExitStack() as stack:
            stack.enter_context(descriptors.reserved(2 * len(requests), "insert it", beside=descriptors.KEPT))
            stack.callback(_close, numbers)
            claims = await open_images(requests, self._context.services, self._context.name, numbers)
            backends = coming.plan().backends
            whole = evolve(part, backends=(*part.backends, *backends))
            self._hardware.replace(Attached(part=whole, disk=plan, claims=(*self._claims, *claims)))
            self._context.keep()
            await wiring.bring_backends(coming, self._context.monitor, numbers)
        node = backends[-1].name if backends else ""
        disk = evolve(plan, path=self._disk.path, format=self._disk.format, node=node)
        return _New(part=part, backends=backends, disk=disk, claims=claims)

    async def _open_tray(self, drive: BlockInfo) -> None:
        context = self._context
        await commands.blockdev_open_tray(context.monitor, drive.qdev, force=context.force, timeout=_TIMEOUT)
        with trio.move_on_after(_PATIENCE):
            while (await self._look()).tray != "open":
                context.progress("the guest has locked the tray and was asked to open it")
                await trio.sleep(_LOOK)
            return
        words = f"the guest has locked the tray of {self._disk.id}; it was asked to open it, and has not"
        hint = "have the guest let it go (umount, eject), or say --force"
        raise ChangeError(words, instance=context.name, hint=hint)

    async def _swap(self, drive: BlockInfo, new: _New) -> None:
        """Take the old medium out and put the new one in; where that fails the old one is put back."""
        monitor, node = self._context.monitor, new.disk.node
        if drive.node_name:
            remove = partial(commands.blockdev_remove_medium, monitor, drive.qdev, timeout=_TIMEOUT)
            await self._while_open(drive, remove)
        if not node:
            return
        try:
            await self._insert(drive, node)
        except QmpCommandError:
            if drive.node_name:
                await self._insert(drive, drive.node_name)
            raise

    async def _insert(self, drive: BlockInfo, node: str) -> None:
        monitor = self._context.monitor
        insert = partial(commands.blockdev_insert_medium, monitor, drive.qdev, node, timeout=_TIMEOUT)
        await self._while_open(drive, insert)
        await commands.blockdev_close_tray(monitor, drive.qdev, timeout=_TIMEOUT)

    async def _while_open(self, drive: BlockInfo, step: Callable[[], Awaitable[None]]) -> None:
        """Do what needs an open tray, which the guest may close at any time."""
        for left in reversed(range(_TRIES)):
            try:
                await step()
            except QmpCommandError as error:
                if not left or "is not open" not in error.message:
                    raise
                await self._open_tray(drive)
            else:
                return


@frozen(kw_only=True)
class _New:
    """A medium that QEMU has, and that is in no drive yet.

    Args:
        part: the drive's.
        backends: what the medium stands on, none where the drive is to be empty.
        disk: what is known of the drive with it.
        claims: on its images.
    """

    part: PartPlan
    backends: tuple[BackendPlan, ...]
    disk: DiskPlan
    claims: tuple[Claim, ...]


def _close(numbers: Mapping[str, int]) -> None:
    for fd in numbers.values():
        os.close(fd)
