"""Changing the medium of a CD drive while its guest runs.

Decides: in which order that is done, and what is said of a tray that the guest keeps closed.
Must not: take a medium from a guest that has locked the tray, unless that is forced.

The new medium's nodes are there, and found good, before the old one is touched; until then nothing has changed for
the guest. ``blockdev-open-tray`` answers ``{}`` for a locked tray as well: QEMU then only asks the guest. So the tray
is open when QEMU says that it is, and not before (QAPI ``query-block``, DEVICE_TRAY_MOVED).

What comes is on record, as `ComingMedium`, before QEMU hears of it, and stays there when QEMU does not answer: it may
carry out later what it was asked for. So once it answers it is asked which medium it has, and that is what counts.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import trio
from attrs import evolve, frozen

from qsup.errors import ChangeError, MonitorError, QmpCommandError
from qsup.host import descriptors
from qsup.host.claims import Claim
from qsup.instance import hotplug as wiring
from qsup.instance.context import Context
from qsup.instance.drives import find_drives
from qsup.instance.hardware import Attached, entry_of
from qsup.instance.images import open_images
from qsup.instance.live import throttle
from qsup.plan.attach import plan_medium
from qsup.plan.spec import BackendPlan, ComingMedium, DiskPlan, ImageFd, PartPlan
from qsup.qmp import commands
from qsup.qmp.results import BlockInfo
from qsup.unit.compare import Change
from qsup.unit.compose import amend
from qsup.unit.model import Unit
from qsup.unit.sections.disks import DiskSection

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


async def settle_media(context: Context) -> None:
    """Find out what became of media whose change QEMU did not answer, and have the VM be what it is then.

    Raises:
        MonitorError: QEMU does not answer yet.
    """
    for name in [plan.id for plan in context.hardware.summary.disks if plan.coming is not None]:
        disk = entry_of(context.hardware.unit, f"disk.{name}")
        if disk is not None:
            async with context.drives:
                await _Drive(disk, context).settle()


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
        self._step = "it was looked at"

    async def change(self) -> str:
        """Do it, or leave everything as it is; where the tray is then.

        Raises:
            QsupError: why it was not done.
            MonitorError: QEMU did not answer, and may do it yet; `settle_media` finds out.
        """
        async with self._context.drives:
            try:
                return await self._change()
            except QmpCommandError:
                raise
            except MonitorError as error:
                error.message = f"{self._entry}: {error.message}, while {self._step}"
                error.hint = "once QEMU answers, `qsupctl status` shows which medium it has; then say it again"
                raise

    async def _change(self) -> str:
        drive = await self.settle()
        wanted = self._disk.path, self._disk.format
        if drive.node_name == self._plan.node and self._disk.path and (self._plan.path, self._plan.format) == wanted:
            # an earlier attempt has come to its end after all
            self._step = "its tray was closed"
            await commands.blockdev_close_tray(self._context.monitor, drive.qdev, timeout=_TIMEOUT)
            return (await self._look()).tray
        before = Attached(part=self._part, disk=self._plan, claims=self._claims)
        try:
            new = await self._bring(drive)
        except BaseException as error:
            if self._plan.coming is None or not _is_open(error):
                self._hardware.replace(before)
                self._release(before.claims)
            raise
        try:
            await self._open_tray(drive)
            await self._swap(drive, new)
        except (QmpCommandError, ChangeError):
            # mostly nothing has changed for the guest, and what came for it goes
            await self.settle()
            raise
        await self.settle()
        return (await self._look()).tray

    async def settle(self) -> BlockInfo:
        """Have the VM be what QEMU has in the drive, and give up the other medium: what QEMU says of the drive.

        Raises:
            ChangeError: there is no such drive any more.
            MonitorError: QEMU did not answer; nothing has changed.
        """
        drive, plan, part = await self._look(), self._plan, self._part
        coming, claims = plan.coming, self._claims
        now = evolve(plan, coming=None)
        if coming is not None:
            older, newer = claims[: len(claims) - coming.claims], claims[len(claims) - coming.claims :]
            if coming.node and drive.node_name == coming.node:
                now, claims = evolve(now, path=coming.path, format=coming.format, node=coming.node), newer
            elif not drive.node_name:
                now, claims = evolve(now, path="", node=""), ()
            else:
                claims = older
        found = media(part, drive.node_name)
        if coming is None and not found.others:
            return drive
        # what is in use all the same is tried again at the next change
        is_gone = await wiring.give_up(evolve(part, backends=found.others), self._context.monitor)
        backends = found.present if is_gone else part.backends
        self._hardware.replace(Attached(part=evolve(part, backends=backends), disk=now, claims=claims))
        self._release(claims)
        self._take(now)
        self._context.keep()
        if now.node:
            disk = entry_of(self._hardware.unit, self._entry)
            await throttle.impose([disk], self._hardware.summary, self._context.monitor)
        return drive

    def _take(self, plan: DiskPlan) -> None:
        """The VM runs with this medium, whatever was asked for."""
        disk = entry_of(self._hardware.unit, self._entry)
        if (disk.path, disk.format) != (plan.path, plan.format):
            changes = {"disk": [{"id": disk.id, "path": plan.path, "format": plan.format}]}
            composed = amend(self._hardware.unit, changes, self._context.name)
            self._hardware.set_unit(composed.unit or self._hardware.unit)

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

    async def _bring(self, drive: BlockInfo) -> str:
        """Give QEMU the new medium, beside the one that is in the drive: its node, ``""`` for none."""
        part, plan = self._part, self._plan
        coming = plan_medium(self._disk, self._hardware.summary, beside=drive.node_name)
        requests = [fd for fd in coming.fds if isinstance(fd, ImageFd)]
        numbers: dict[str, int] = {}
        with ExitStack() as stack:
            stack.enter_context(descriptors.reserved(2 * len(requests), "insert it", beside=descriptors.KEPT))
            stack.callback(_close, numbers)
            claims = await open_images(requests, self._context.services, self._context.name, numbers)
            backends = coming.plan().backends
            node = backends[-1].name if backends else ""
            medium = ComingMedium(path=self._disk.path, format=self._disk.format, node=node, claims=len(claims))
            whole = evolve(part, backends=(*part.backends, *backends))
            disk = evolve(plan, coming=medium)
            self._step = "its new medium was opened"
            self._hardware.replace(Attached(part=whole, disk=disk, claims=(*self._claims, *claims)))
            self._context.keep()
            await wiring.bring_backends(coming, self._context.monitor, numbers)
        return node

    async def _open_tray(self, drive: BlockInfo) -> None:
        context = self._context
        self._step = "its tray was opened"
        await commands.blockdev_open_tray(context.monitor, drive.qdev, force=context.force, timeout=_TIMEOUT)
        with trio.move_on_after(_PATIENCE):
            while (await self._look()).tray != "open":
                context.progress("the guest has locked the tray and was asked to open it")
                await trio.sleep(_LOOK)
            return
        words = f"the guest has locked the tray of {self._disk.id}; it was asked to open it, and has not"
        hint = "have the guest let it go (umount, eject), or say --force"
        raise ChangeError(words, instance=context.name, hint=hint)

    async def _swap(self, drive: BlockInfo, node: str) -> None:
        """Take the old medium out and put the new one in; where that fails the old one is put back."""
        monitor = self._context.monitor
        self._step = "its medium was taken out"
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
        self._step = "its new medium was put in"
        insert = partial(commands.blockdev_insert_medium, monitor, drive.qdev, node, timeout=_TIMEOUT)
        await self._while_open(drive, insert)
        self._step = "its tray was closed"
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


def _is_open(error: BaseException) -> bool:
    """Whether QEMU may have done, or may do yet, what came to this end."""
    unanswered = isinstance(error, MonitorError) and not isinstance(error, QmpCommandError)
    return unanswered or isinstance(error, trio.Cancelled)


def _close(numbers: Mapping[str, int]) -> None:
    for fd in numbers.values():
        os.close(fd)
