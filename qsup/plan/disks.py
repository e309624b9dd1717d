"""Disks and CD drives: the devices that the guest sees, where they hang, and the threads that work for them.

Decides: the device model for each type and bus, its place, the boot order, and what happens on an I/O error.
Must not: know how an image is opened (`qsup.plan.blockdev`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from attrs import frozen

from qsup.errors import UnsupportedError
from qsup.plan.blockdev import chain_nodes, image_backends, image_chain, is_read_only
from qsup.plan.board import Board, Place
from qsup.plan.part import Backend, Part, Properties
from qsup.plan.spec import Capabilities, DiskPlan
from qsup.unit.effective import effective_bus
from qsup.unit.families import BUS_ROOM, FAMILIES
from qsup.unit.model import Unit
from qsup.unit.sections.disks import WRITE_THROUGH, DiskSection

_MODELS = {
    ("disk", "scsi"): "scsi-hd",
    ("disk", "nvme"): "nvme",
    ("disk", "sata"): "ide-hd",
    ("disk", "ide"): "ide-hd",
    ("disk", "usb"): "usb-storage",
    ("cdrom", "scsi"): "scsi-cd",
    ("cdrom", "sata"): "ide-cd",
    ("cdrom", "ide"): "ide-cd",
    ("cdrom", "usb"): "scsi-cd",  # usb-storage is always a disk: a drive is a SCSI drive on the bare transport
}
_IOTHREAD = "iothread-"
_SHORT_SERIAL = 20  # characters (NVM Express, Identify Controller; QEMU's SCSI device_id)


@frozen(kw_only=True)
class DiskPart:
    """One disk: its arguments, and what is known of it afterwards."""

    part: Part
    plan: DiskPlan


def disk_parts(
    unit: Unit, boot: Mapping[str, int], board: Board, capabilities: Capabilities, fdsets: Iterator[int]
) -> list[DiskPart]:
    """Plan all disks, in the order of the unit.

    Args:
        boot: boot index by disk id; see `boot_order`.
        fdsets: numbers of descriptor sets not used yet.

    Raises:
        UnsupportedError: a disk that this board or this QEMU cannot have.
    """
    counts: dict[str, Iterator[int]] = {}
    parts = []
    for disk in unit.disks:
        bus = effective_bus(unit, disk)
        slots = bus if bus in BUS_ROOM else "board"
        check_disk(disk, bus, board, capabilities)
        place = _place(disk, bus, next(counts.setdefault(slots, itertools.count())), board)
        parts.append(disk_part(disk, bus, place, board, boot.get(disk.id), fdsets))
    return parts


def iothread_parts(unit: Unit) -> list[Part]:
    """Plan all iothreads, which are there before the disks."""
    return [
        Part(
            subject=f"iothread {iothread.id!r}",
            backends=(Backend(kind="object", properties={"qom-type": "iothread", "id": iothread_name(iothread.id)}),),
        )
        for iothread in unit.iothreads
    ]


def iothread_name(id_: str) -> str:
    """The QOM id of an iothread: the unit's, apart from those of other objects."""
    return f"{_IOTHREAD}{id_}"


def iothread_id(name: str) -> str:
    """The unit's id of one of QEMU's iothreads, ``""`` of one that is not the unit's."""
    return name.removeprefix(_IOTHREAD) if name.startswith(_IOTHREAD) else ""


def controllers(unit: Unit, board: Board) -> Part:
    """The controllers that the disks' buses need and the board does not bring; USB's is shared with other devices."""
    buses = {effective_bus(unit, disk) for disk in unit.disks}
    found: list[Properties] = []
    if "scsi" in buses:
        found.append({"driver": board.virtio_device("scsi"), "id": "scsi", **board.place("scsi")})
    if "sata" in buses and board.family != "q35":
        found.append({"driver": "ich9-ahci", "id": "sata", **board.place("sata")})
    return Part(subject="disk controllers", devices=tuple(found))


def boot_order(unit: Unit) -> Mapping[str, int]:
    """Boot index by disk id: the unit's, or the order of the disks where neither a disk nor a NIC says one."""
    said = {disk.id: disk.bootindex for disk in unit.disks if disk.bootindex >= 0}
    if said or any(nic.bootindex >= 0 for nic in unit.nics):
        return said
    return {disk.id: index for index, disk in enumerate(unit.disks)}


def boot_place(bootindex: int | None) -> int:
    """``bootindex`` as QEMU has it: one more than the unit's, since a kernel that is booted directly takes 0; or -1."""
    return -1 if bootindex is None else bootindex + 1


def boot_property(bootindex: int | None) -> Properties:
    """The same of a device that is made; what has none needs not say so."""
    return {} if bootindex is None else {"bootindex": boot_place(bootindex)}


def device_id(disk: DiskSection) -> str:
    """The QOM id of a disk's device."""
    return f"disk-{disk.id}"


def check_disk(disk: DiskSection, bus: str, board: Board, capabilities: Capabilities) -> None:
    """See that there can be such a disk; `UnsupportedError`."""
    if bus not in FAMILIES[board.family].disk_buses:
        raise UnsupportedError(f"disk {disk.id!r}: a {board.family} machine has no {bus} bus")
    if disk.path and disk.aio != "threads" and f"aio-{disk.aio}" not in capabilities.schema_features:
        raise UnsupportedError(f"disk {disk.id!r}: this QEMU was built without aio = {disk.aio!r}")


def _place(disk: DiskSection, bus: str, index: int, board: Board) -> Place:
    """Where disk number ``index`` of its bus hangs."""
    if index >= BUS_ROOM.get(bus, index + 1):
        raise UnsupportedError(f"disk {disk.id!r}: there is room for {BUS_ROOM[bus]} disks on a {bus} bus")
    match bus:
        case "scsi":
            return Place(properties={"bus": "scsi.0", "channel": 0, "scsi-id": index, "lun": 0})
        case "sata":
            return Place(properties={"bus": f"{'ide' if board.family == 'q35' else 'sata'}.{index}"})
        case "ide":
            return Place(properties={"bus": f"ide.{index // 2}", "unit": index % 2})
        case "usb" if disk.type == "cdrom":
            adapter = {"driver": "usb-bot", "id": f"usb-{disk.id}", "bus": "usb.0"}
            return Place(ports=(adapter,), properties={"bus": f"usb-{disk.id}.0", "lun": 0})
        case "usb":
            return Place(properties={"bus": "usb.0"})
    return board.place_one_of("disk", index)


def disk_part(
    disk: DiskSection, bus: str, place: Place, board: Board, bootindex: int | None, fdsets: Iterator[int]
) -> DiskPart:
    """Plan one disk at its place.

    Args:
        bootindex: the unit's, ``None`` for one that is not booted from.
        fdsets: numbers of descriptor sets not used yet.
    """
    chain = image_chain(disk, fdsets)
    node = chain[0].node if chain else ""
    drive = {"drive": node} if node else {}
    model = board.virtio_device("blk") if bus == "virtio" else _MODELS[disk.type, bus]
    worker = {"iothread": iothread_name(disk.iothread)} if disk.iothread else {}
    behaviour = {**worker, **_behaviour(disk, bus, bootindex)}
    device = {"driver": model, "id": device_id(disk), **place.properties, **drive, **behaviour}
    part = Part(
        subject=f"disk {disk.id!r}",
        entry=f"disk.{disk.id}",
        backends=image_backends(chain_nodes(disk, chain), *chain),
        devices=(*place.ports, device),
        fds=tuple(image.request for image in chain),
    )
    plan = DiskPlan(
        id=disk.id,
        path=disk.path,
        format=disk.format,
        type=disk.type,
        bus=bus,
        read_only=is_read_only(disk),
        node=node,
        device=device_id(disk),
        bootindex=-1 if bootindex is None else bootindex,
        iothread=disk.iothread,
    )
    return DiskPart(part=part, plan=plan)


def _behaviour(disk: DiskSection, bus: str, bootindex: int | None) -> Properties:
    """The device's properties besides its place and its image."""
    properties: dict[str, object] = {}
    if not is_read_only(disk):
        properties["write-cache"] = "off" if disk.cache in WRITE_THROUGH else "on"
        if bus != "nvme":
            # a full file system pauses the guest until there is room; other errors are the guest's to handle
            properties |= {"werror": "enospc", "rerror": "report"}
    if disk.shareable:
        properties["share-rw"] = True
    # NVMe insists on a serial number
    serial = disk.serial or (disk.id[-_SHORT_SERIAL:] if bus == "nvme" else "")
    if serial:
        properties["serial"] = serial
    if len(serial) > _SHORT_SERIAL and bus == "scsi":
        # the identifier of VPD page 0x83 is shorter than that of page 0x80, and is the serial number unless given
        properties["device_id"] = disk.id[-_SHORT_SERIAL:]
    return {**properties, **boot_property(bootindex)}
