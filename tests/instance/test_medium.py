"""Changing the medium of a CD drive: what is so when QEMU refuses a step, without one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from qsup.errors import QmpCommandError
from qsup.host.claims import Claims
from qsup.instance.context import Context
from qsup.instance.hardware import Hardware
from qsup.instance.images import open_images
from qsup.instance.live.medium import Medium
from qsup.plan.spec import ImageFd
from qsup.qmp.connection import Outcome, Request
from qsup.unit.compare import compare
from qsup.unit.model import Unit
from qsup.unit.sections.disks import DiskSection
from qsup.unit.write import values_of
from tests.plan.building import build

SIZE = 1 << 20


class Qemu:
    """A QEMU with one drive that does not take a certain node."""

    def __init__(self, refused: str) -> None:
        self.refused = refused
        self.inside = "disk-cd"
        self.nodes = {"file-cd", "disk-cd"}
        self.is_open = False

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, **_: object) -> object:
        """What a drive is asked and told."""
        await trio.lowlevel.checkpoint()
        said = arguments or {}
        match command:
            case "query-block":
                inserted = {"inserted": {"node-name": self.inside}} if self.inside else {}
                return [{"qdev": "disk-cd", "tray_open": self.is_open, "locked": False, **inserted}]
            case "blockdev-open-tray" | "blockdev-close-tray":
                self.is_open = command == "blockdev-open-tray"
            case "blockdev-remove-medium":
                self.inside = ""
            case "blockdev-insert-medium" if said["node-name"] == self.refused:
                raise QmpCommandError(command, "GenericError", "no such medium here")
            case "blockdev-insert-medium":
                self.inside = said["node-name"]
        return {}

    async def execute_all(self, requests: Sequence[Request], *, timeout: float) -> list[Outcome]:
        """Nodes come and go."""
        await trio.lowlevel.checkpoint()
        for request in requests:
            said = cast("Mapping[str, str]", request.arguments)
            if request.command == "blockdev-add":
                self.nodes.add(said["node-name"])
            elif request.command == "blockdev-del":
                self.nodes.remove(said["node-name"])
        return [Outcome(result={}) for _ in requests]


async def test_the_old_medium_is_put_back_where_the_new_one_does_not_go_in(tmp_path: Path) -> None:
    """Nothing is left of the new one; the drive is closed."""
    for name in ("one.iso", "two.iso"):
        (tmp_path / name).write_bytes(bytes(SIZE))
    before, after = (Unit(disks=(DiskSection(id="cd", type="cdrom", path=name),)) for name in ("one.iso", "two.iso"))
    plan = build(before)
    services = SimpleNamespace(layout=SimpleNamespace(pools=(tmp_path,)), block_devices=(), claims=Claims())
    numbers: dict[str, int] = {}
    images = [fd for fd in plan.fds if isinstance(fd, ImageFd) and fd.entry == "disk.cd"]
    claims = await open_images(images, cast("Any", services), "web", numbers)
    for fd in numbers.values():
        os.close(fd)
    hardware = Hardware(before, values_of(before), plan.summary(), claims)
    qemu = Qemu("disk.spare-cd")
    context = SimpleNamespace(hardware=hardware, monitor=qemu, name="web", services=services, force=False)
    context.keep, context.progress, context.drives = (lambda: None), (lambda _: None), trio.Lock()
    (change,) = compare(before, after)
    with pytest.raises(QmpCommandError, match="no such medium here"):
        await Medium().apply([change], after, cast("Context", context))
    assert (qemu.inside, qemu.is_open, qemu.nodes) == ("disk-cd", False, {"file-cd", "disk-cd"})
    assert [claim.path for claim in hardware.claims] == ["one.iso"]
    (disk,) = hardware.summary.disks
    assert (disk.path, disk.node, disk.coming) == ("one.iso", "disk-cd", None)
