"""Planning what comes to a VM that runs: disks, their media, NICs and other devices. Pure.

Decides: what cannot come while the VM runs, and which controller comes before a device that needs one.
Must not: describe a device otherwise than at a start: both are the same `Part`; or say how QEMU is given it
(`qsup.plan.hotplug`).
"""

from __future__ import annotations

from collections.abc import Collection

from attrs import evolve, frozen

from qsup.errors import UnsupportedError
from qsup.plan.blockdev import chain_nodes, image_backends, image_chain
from qsup.plan.board import BOARDS, Board, Place
from qsup.plan.disks import check_disk, disk_part, iothread_name
from qsup.plan.hotplug import Command
from qsup.plan.identity import node_name
from qsup.plan.inventory import CONTROLLER, devices_of, free_controller, free_slot, next_fdset, takes_nothing, with_part
from qsup.plan.network import nic_part, nic_role
from qsup.plan.others import Tools, device_part, place_on_bus
from qsup.plan.part import Part, Properties
from qsup.plan.spec import BackendPlan, Capabilities, DiskPlan, ImageFd, NicPlan, PartPlan, PlanSummary
from qsup.unit.effective import effective_bus
from qsup.unit.families import needs_slot
from qsup.unit.model import Unit
from qsup.unit.sections.devices import SHARING_DEVICES, DeviceSection, NicSection
from qsup.unit.sections.disks import DiskSection


@frozen(kw_only=True)
class Vm:
    """What planning needs to know of a VM that runs besides its unit and its plan.

    Args:
        uuid: from which MAC addresses derive.
        capabilities: of its QEMU.
        boot_places: the places in the boot order that its devices have. QEMU gives none twice, so what comes to one of
            these comes without, and gets it once the device that has it has another.
    """

    uuid: str
    capabilities: Capabilities
    boot_places: Collection[int] = ()


@frozen(kw_only=True)
class Attachment:
    """Something that is to be attached.

    Args:
        disk, nic: what is known of it afterwards, of a disk or NIC.
    """

    part: Part
    disk: DiskPlan | None = None
    nic: NicPlan | None = None


# disks


def attach_disk(unit: Unit, disk: DiskSection, summary: PlanSummary, vm: Vm) -> list[Attachment]:
    """Plan a disk that comes to a VM that runs; before it a controller, where there is none for its bus yet.

    Args:
        unit: with the disk in it.

    Raises:
        UnsupportedError: this machine cannot take it while it runs, or has no room.
    """
    board = BOARDS[summary.family]
    bus = effective_bus(unit, disk)
    found: list[Attachment] = []
    check_disk(disk, bus, board, vm.capabilities)
    if disk.iothread and not any(_is_iothread(each, disk.iothread) for part in summary.parts for each in part.backends):
        words = f"disk {disk.id!r}: iothread {disk.iothread!r} is not there before the VM's next start"
        raise UnsupportedError(words, hint="choose one that is there, or restart the VM")
    if bus in ("sata", "ide"):
        hint = "say bus=scsi or bus=usb" if disk.type == "cdrom" else "say bus=virtio, or another"
        raise UnsupportedError(f"a {bus} bus takes no disks while the VM runs", hint=f"{hint}, or restart it")
    name = bus
    if bus in ("scsi", "usb"):
        found, summary, name = _with_controller(bus, board, summary)
    place = _place(disk, bus, name, summary)
    # what says nothing is booted from after the next start: what the VM boots from now is not what came last
    bootindex = None if disk.bootindex < 0 or disk.bootindex in vm.boot_places else disk.bootindex
    planned = disk_part(disk, bus, place, board, bootindex, next_fdset(summary))
    return [*found, Attachment(part=planned.part, disk=planned.plan)]


def _is_iothread(backend: BackendPlan, id_: str) -> bool:
    return (backend.kind, backend.name) == ("object", iothread_name(id_))


def plan_medium(disk: DiskSection, summary: PlanSummary, *, beside: str) -> Part:
    """Plan a medium for a drive that there is; of an empty one there is nothing to it.

    Args:
        beside: the node of the medium that is in it, ``""`` for none.
    """
    chain = image_chain(disk, next_fdset(summary), spare=beside == node_name("disk", disk.id))
    return Part(
        subject=f"the medium of {disk.id!r}",
        entry=f"disk.{disk.id}",
        backends=image_backends(chain_nodes(disk, chain), *chain),
        fds=tuple(image.request for image in chain),
    )


def plan_reopen(disk: DiskSection, part: PartPlan, plan: DiskPlan) -> Reopening:
    """Plan to have the nodes of a disk that there is be as another version of it says.

    Args:
        part: of the disk as it is.
        plan: what is known of it.
    """
    sets = list(dict.fromkeys(int(each.name) for each in part.backends if each.kind == "fdset"))
    chain = image_chain(disk, iter(sets), spare=plan.node != node_name("disk", disk.id))
    members = [
        Command(command="add-fd", arguments=member.properties, fd=member.fd)
        for image in chain
        for member in image.descriptors()
    ]
    return Reopening(
        nodes=tuple(chain_nodes(disk, chain)),
        images=tuple(image.request for image in chain),
        members=tuple(members),
    )


@frozen(kw_only=True)
class Reopening:
    """How the nodes of a disk become others while it is in use.

    Args:
        nodes: all of them, as QAPI's ``blockdev-reopen`` takes them; what it is not told it sets back.
        images: to be opened anew where their descriptors must be others.
        members: commands that bring these.
    """

    nodes: tuple[Properties, ...]
    images: tuple[ImageFd, ...]
    members: tuple[Command, ...]


def _with_controller(bus: str, board: Board, summary: PlanSummary) -> tuple[list[Attachment], PlanSummary, str]:
    """The controller of a bus, where there is none yet, the plan with it, and what it is called."""
    name, is_there = free_controller(summary, bus)
    if is_there:
        return [], summary, name
    controller = _controller(bus, name, board, summary)
    return [Attachment(part=controller)], with_part(summary, controller.plan()), name


def _controller(bus: str, name: str, board: Board, summary: PlanSummary) -> Part:
    if not board.has_pci:
        raise takes_nothing(board)
    # what there is one of has a slot of its own wherever the root bus takes hotplug
    place = board.place(bus) if board.family != "q35" and name == bus else free_slot(summary, "device")
    device: Properties = {"driver": board.virtio_device(bus), "id": name, **place}
    if bus == "usb":
        device = {"driver": "qemu-xhci", "id": name, **place, "p2": 15, "p3": 15}
    return Part(subject=f"the {bus} controller", entry=f"{CONTROLLER}.{name}", devices=(device,))


def _place(disk: DiskSection, bus: str, controller: str, summary: PlanSummary) -> Place:
    match bus:
        case "scsi":
            used = {device.address for device in devices_of(summary) if device.bus == f"{controller}.0"}
            index = next((index for index in range(256) if f"0:{index}:0" not in used), None)
            if index is None:
                raise UnsupportedError(f"disk {disk.id!r}: all 256 places of the SCSI controller are taken")
            return Place(properties={"bus": f"{controller}.0", "channel": 0, "scsi-id": index, "lun": 0})
        case "usb" if disk.type == "cdrom":
            adapter = {"driver": "usb-bot", "id": f"usb-{disk.id}", "bus": f"{controller}.0"}
            return Place(ports=(adapter,), properties={"bus": f"usb-{disk.id}.0", "lun": 0})
        case "usb":
            return Place(properties={"bus": f"{controller}.0"})
    return Place(properties=free_slot(summary, "disk"))


# NICs and other devices


def attach_nic(unit: Unit, nic: NicSection, summary: PlanSummary, vm: Vm) -> list[Attachment]:
    """Plan a NIC that comes to a VM that runs; `UnsupportedError` as for `attach_disk`."""
    board = BOARDS[summary.family]
    place = Place(properties=free_slot(summary, nic_role(nic, board)))
    planned = nic_part(nic, place, vm.uuid, board, vm.capabilities)
    part = planned.part
    if nic.bootindex in vm.boot_places:
        part = evolve(part, devices=tuple(map(_unplaced, part.devices)))
    return [Attachment(part=part, nic=planned.plan)]


def _unplaced(device: Properties) -> Properties:
    """A device without its place in the boot order; that it has a boot ROM stays."""
    return {name: value for name, value in device.items() if name != "bootindex"}


def attach_device(unit: Unit, device: DeviceSection, summary: PlanSummary, vm: Vm) -> list[Attachment]:
    """Plan another device that comes to a VM that runs; `UnsupportedError` as for `attach_disk`."""
    board = BOARDS[summary.family]
    found: list[Attachment] = []
    if device.type in SHARING_DEVICES and not summary.shared_memory:
        words = (
            f"device {device.id!r}: a {device.type} needs memory that can be shared, and this VM was started without"
        )
        raise UnsupportedError(words, hint="say shared = true in [memory], and restart the VM")
    if needs_slot(device):
        place = Place(properties=free_slot(summary, "device"))
    else:
        found, summary, name = _with_controller(device.type, board, summary)
        place = place_on_bus(name)
    tools = Tools(board=board, capabilities=vm.capabilities, uuid=vm.uuid, fdsets=next_fdset(summary))
    return [*found, Attachment(part=device_part(device, place, tools))]
