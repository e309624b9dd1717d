"""What an attach sends, and takes back when QEMU refuses a part of it: a socket played by hand in QEMU's place."""

from __future__ import annotations

import json

import pytest
import trio
from attrs import evolve

from qsup.errors import QmpCommandError
from qsup.instance import hotplug as wiring
from qsup.instance.hardware import Attached, Hardware
from qsup.instance.hotplug import Piece
from qsup.plan import hotplug
from qsup.plan.attach import Vm, attach_disk
from qsup.plan.inventory import with_part
from qsup.qmp.connection import Monitor
from qsup.unit.model import Unit
from qsup.unit.sections.disks import DiskSection
from tests.plan import goldens
from tests.plan.building import build
from tests.qmp.support import TIMEOUT, Peer, by_hand

VM = Vm(uuid=goldens.UUID, capabilities=goldens.capabilities())


def coming(*names: str, bus: str = "virtio") -> tuple[list[Piece], Hardware]:
    """Disks that are to come to a VM without any, and what that has."""
    unit, pieces = Unit(), []
    summary = build(unit).summary()
    hardware = Hardware(unit, {}, summary, ())
    for name in names:
        disk = DiskSection(id=name, path=f"/srv/{name}.img", format="raw", bus=bus)
        unit = evolve(unit, disks=(*unit.disks, disk))
        for attachment in attach_disk(unit, disk, hardware.summary, VM):
            attached = Attached(part=attachment.part.plan(), disk=attachment.disk, nic=None, claims=())
            hardware.summary = with_part(hardware.summary, attached.part)
            hardware.mark(attached.part.entry, "coming")
            pieces.append(Piece(part=attachment.part, attached=attached))
    return pieces, hardware


async def bring(pieces: list[Piece], hardware: Hardware, peer: Peer, monitor: Monitor, refused: str) -> list[str]:
    """Have them attached by a QEMU that refuses every command that names something; the commands, in order.

    Raises:
        QmpCommandError: of the attach.
    """
    commands: list[str] = []

    async def serve() -> None:
        while True:
            command = await peer.command()
            commands.append(str(command["execute"]))
            if refused in json.dumps(command.get("arguments")):
                error = {"class": "GenericError", "desc": f"no {command['execute']}"}
                await peer.say(json.dumps({"error": error, "id": command["id"]}).encode())
            else:
                await peer.answer(command, {})

    async with trio.open_nursery() as qemu:
        qemu.start_soon(serve)
        numbers = dict.fromkeys([fd for piece in pieces for fd in descriptors_of(piece)], peer.stream.socket.fileno())
        with trio.fail_after(TIMEOUT):
            with pytest.raises(QmpCommandError, match="no blockdev-add") as caught:
                await wiring.attach(pieces, hardware, monitor, numbers)
        qemu.cancel_scope.cancel()
    assert pieces[-1].part.subject in caught.value.message
    return commands


def descriptors_of(piece: Piece) -> list[str]:
    """The names of all that travel with a disk's commands."""
    return [command.fd for command in hotplug.backend_steps(piece.part) if command.fd]


@pytest.mark.parametrize("names", [("data",), ("one", "data")])
async def test_a_fake_qemu_that_refuses_a_back_end_gets_no_device(
    nursery: trio.Nursery, names: tuple[str, ...]
) -> None:
    """A device cannot be taken back without its guest; all that stands below it goes, each thing once."""
    pieces, hardware = coming(*names)
    async with by_hand(nursery) as (monitor, peer):
        commands = await bring(pieces, hardware, peer, monitor, "disk-data")
    assert "device_add" not in commands
    assert commands.count("blockdev-del") == 2 * len(names) - 1
    assert commands.count("remove-fd") == len(names)
    assert [part.entry for part in hardware.summary.parts if part.entry.startswith("disk.")] == []
