"""What a VM that runs can be given and can give back: the QMP commands, in order, with what undoes each. Pure.

Decides: where there is room, what is done one after the other and what side by side, and what is left to remove once a
device is gone.
Must not: send anything (`qsup.instance.hotplug`), or describe a device otherwise than at a start: both are the same
`Part`.

A device that the guest drives goes when the guest lets it go, so a removal is two halves: the request (``device_del``),
and, once QEMU says that the device is gone, the removal of what it stood on. The order is never the other way round: a
back end that goes first leaves the guest with a dead device (QAPI ``device_del``, ``netdev_del``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from attrs import evolve, frozen

from qsup.errors import UnsupportedError
from qsup.plan.blockdev import chain_nodes, image_backends, image_chain
from qsup.plan.board import BOARDS, Board, Place
from qsup.plan.disks import check_disk, disk_part
from qsup.plan.identity import node_name
from qsup.plan.network import nic_part, nic_role
from qsup.plan.others import Tools, device_part, needs_slot, place_on_bus
from qsup.plan.part import Backend, Part, Properties
from qsup.plan.spec import BackendPlan, Capabilities, DevicePlan, DiskPlan, ImageFd, NicPlan, PartPlan, PlanSummary
from qsup.unit.model import SHARING_DEVICES, DeviceSection, DiskSection, NicSection, Unit, effective_bus

ROOT_PORT: Final = "pcie-root-port"

_ADD = {
    "fdset": "add-fd",
    "blockdev": "blockdev-add",
    "object": "object-add",
    "netdev": "netdev_add",
    "chardev": "chardev-add",
    "watchdog": "watchdog-set-action",
}
_REMOVE: dict[str, Callable[[str], tuple[str, Properties]]] = {
    "fdset": lambda name: ("remove-fd", {"fdset-id": int(name)}),
    "blockdev": lambda name: ("blockdev-del", {"node-name": name}),
    "object": lambda name: ("object-del", {"id": name}),
    "netdev": lambda name: ("netdev_del", {"id": name}),
    "chardev": lambda name: ("chardev-remove", {"id": name}),
    "watchdog": lambda name: ("watchdog-set-action", {"action": "reset"}),  # as QEMU begins
}


@frozen(kw_only=True)
class Command:
    """One QMP command.

    Args:
        fd: name of the descriptor that travels with it, ``""`` for none.
        makes: what QEMU has once it has succeeded.
    """

    command: str
    arguments: Properties
    fd: str = ""
    makes: BackendPlan | DevicePlan | None = None


@frozen(kw_only=True)
class Attachment:
    """Something that is to be attached.

    Args:
        disk, nic: what is known of it afterwards, of a disk or NIC.
    """

    part: Part
    disk: DiskPlan | None = None
    nic: NicPlan | None = None


def backend_steps(part: Part) -> list[list[Command]]:
    """How QEMU gets what a part's devices stand on: groups one after the other, the commands of each in any order."""
    groups: list[list[Command]] = []
    for backend in part.backends:
        # a node's children must be there before it, so each is a group of its own; descriptors are independent
        if backend.kind != "fdset" or not groups or groups[-1][0].command != _ADD["fdset"]:
            groups.append([])
        groups[-1].append(_add(backend))
    return groups


def device_steps(part: Part) -> list[list[Command]]:
    """The same of its devices, each after the one it may hang on."""
    planned = part.plan().devices
    return [
        [Command(command="device_add", arguments=device, makes=plan)]
        for device, plan in zip(part.devices, planned, strict=True)
    ]


def _add(backend: Backend) -> Command:
    made = BackendPlan(kind=backend.kind, name=backend.name)
    arguments = dict(backend.properties)
    if backend.kind == "chardev":
        arguments = {"id": backend.name, "backend": _socket(backend)}
    elif backend.fd and backend.kind != "fdset":
        arguments["fd"] = backend.fd  # as it is called once `getfd` has brought it
    return Command(command=_ADD[backend.kind], arguments=arguments, fd=backend.fd, makes=made)


def _socket(backend: Backend) -> Properties:
    """A character device on a socket, as QAPI's ChardevBackend has it."""
    data: dict[str, object] = {
        "addr": {"type": "fd", "data": {"str": backend.fd}},
        "server": backend.properties["server"],
    }
    if data["server"]:
        data["wait"] = False
    return {"type": "socket", "data": data}


def removal(made: BackendPlan | DevicePlan) -> Command:
    """What takes one thing away again; a device may go later than the answer to it."""
    if isinstance(made, DevicePlan):
        return Command(command="device_del", arguments={"id": made.id})
    command, arguments = _REMOVE[made.kind](made.name)
    return Command(command=command, arguments=arguments)


def unplugged(part: PartPlan) -> tuple[DevicePlan, ...]:
    """The devices of a part that can go, the last first; its port stays for another."""
    return tuple(device for device in reversed(part.devices) if device.driver != ROOT_PORT)


# what there is


def find(summary: PlanSummary, entry: str) -> PartPlan | None:
    """The part of an entry, such as ``disk.root``."""
    return next((part for part in summary.parts if part.entry == entry), None)


def devices_of(summary: PlanSummary) -> Iterator[DevicePlan]:
    """Every device."""
    return (device for part in summary.parts for device in part.devices)


def with_part(summary: PlanSummary, part: PartPlan) -> PlanSummary:
    """The same with a part added, or in place of the one with its entry."""
    kept = tuple(each for each in summary.parts if not part.entry or each.entry != part.entry)
    return evolve(summary, parts=(*kept, part))


def without_part(summary: PlanSummary, entry: str) -> PlanSummary:
    """The same without an entry, and with its port free for another."""
    parts: list[PartPlan] = []
    for part in summary.parts:
        if part.entry != entry:
            parts.append(part)
        elif ports := tuple(device for device in part.devices if device.driver == ROOT_PORT):
            parts.append(PartPlan(entry="", devices=ports))
    kind, _, name = entry.partition(".")
    return evolve(
        summary,
        parts=tuple(parts),
        disks=tuple(disk for disk in summary.disks if kind != "disk" or disk.id != name),
        nics=tuple(nic for nic in summary.nics if kind != "nic" or nic.id != name),
    )


# where there is room


@frozen(kw_only=True)
class Slots:
    """Places for PCI devices that can come while the VM runs.

    Args:
        free: places that are not taken.
        total: of all such places.
    """

    free: int
    total: int


def slots(summary: PlanSummary) -> Slots:
    """How much room is left."""
    if summary.family == "q35":
        ports = [device for device in devices_of(summary) if device.driver == ROOT_PORT]
        return Slots(free=sum(1 for _ in _free_ports(summary)), total=len(ports))
    board = BOARDS.get(summary.family)
    if board is None or not board.has_pci:
        return Slots(free=0, total=0)
    total = sum(slots.size for slots in board.several.values())
    return Slots(free=total - len(_taken(summary)), total=total)


def _free_ports(summary: PlanSummary) -> Iterator[DevicePlan]:
    taken = {device.bus for device in devices_of(summary)}
    # those that are kept free first: the others' numbers are those of the devices a start finds there
    found = [device for device in devices_of(summary) if device.driver == ROOT_PORT and device.id not in taken]
    return iter(sorted(found, key=lambda port: not port.id.startswith("port-free-")))


def _taken(summary: PlanSummary) -> set[str]:
    board = BOARDS[summary.family]
    several = {f"{slots.first + index:#x}" for slots in board.several.values() for index in range(slots.size)}
    used = {device.address.partition(".")[0] for device in devices_of(summary) if device.bus == board.root}
    return used & several


def free_slot(summary: PlanSummary, role: str) -> Properties:
    """Bus and address for one more PCI device.

    Args:
        role: of its kind, as `qsup.plan.board` has it: where a root bus takes hotplug, each kind has slots of its own.

    Raises:
        UnsupportedError: there is no room, or the machine takes nothing while it runs.
    """
    board = BOARDS[summary.family]
    if not board.has_pci:
        raise _takes_nothing(board)
    if summary.family == "q35":
        for port in _free_ports(summary):
            return {"bus": port.id, "addr": "0x0"}
        total = slots(summary).total
        raise UnsupportedError(
            f"there is no free slot: all {total} PCIe root ports are taken",
            hint="detach something, or raise [machine] hotplug-slots and restart the VM",
        )
    used = {(device.bus, device.address) for device in devices_of(summary)}
    for index in range(board.several[role].size):
        place = board.place_one_of(role, index).properties
        if (place["bus"], place["addr"]) not in used:
            return place
    raise UnsupportedError(f"there is no free slot for it: all {board.several[role].size} are taken")


def _takes_nothing(board: Board) -> UnsupportedError:
    return UnsupportedError(f"a {board.family} machine takes no devices while it runs", hint="restart the VM")


def next_fdset(summary: PlanSummary) -> Iterator[int]:
    """Numbers of descriptor sets that nothing uses."""
    used = [int(each.name) for part in summary.parts for each in part.backends if each.kind == "fdset"]
    return itertools.count(max(used, default=0) + 1)


# disks


@frozen(kw_only=True)
class Vm:
    """What planning needs to know of a VM that runs besides its unit and its plan.

    Args:
        uuid: from which MAC addresses derive.
        capabilities: of its QEMU.
    """

    uuid: str
    capabilities: Capabilities


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
    if bus in ("sata", "ide"):
        raise UnsupportedError(f"a {bus} bus takes no disks while the VM runs", hint="use another bus, or restart it")
    if bus in ("scsi", "usb"):
        found, summary = _with_controller(bus, board, summary)
    place = _place(disk, bus, summary)
    planned = disk_part(disk, bus, place, board, None, next_fdset(summary))
    return [*found, Attachment(part=planned.part, disk=planned.plan)]


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


def _with_controller(bus: str, board: Board, summary: PlanSummary) -> tuple[list[Attachment], PlanSummary]:
    """The controller of a bus, where there is none yet, and the plan with it."""
    if any(device.id == bus for device in devices_of(summary)):
        return [], summary
    controller = _controller(bus, board, summary)
    return [Attachment(part=controller)], with_part(summary, controller.plan())


def _controller(bus: str, board: Board, summary: PlanSummary) -> Part:
    if not board.has_pci:
        raise _takes_nothing(board)
    # what there is one of has a slot of its own wherever the root bus takes hotplug
    place = free_slot(summary, "device") if board.family == "q35" else board.place(bus)
    device: Properties = {"driver": board.virtio_device(bus), "id": bus, **place}
    if bus == "usb":
        device = {"driver": "qemu-xhci", "id": "usb", **place, "p2": 15, "p3": 15}
    return Part(subject=f"the {bus} controller", entry=f"controller.{bus}", devices=(device,))


def _place(disk: DiskSection, bus: str, summary: PlanSummary) -> Place:
    match bus:
        case "scsi":
            used = {device.address for device in devices_of(summary) if device.bus == "scsi.0"}
            index = next((index for index in range(256) if f"0:{index}:0" not in used), None)
            if index is None:
                raise UnsupportedError(f"disk {disk.id!r}: all 256 places of the SCSI controller are taken")
            return Place(properties={"bus": "scsi.0", "channel": 0, "scsi-id": index, "lun": 0})
        case "usb" if disk.type == "cdrom":
            adapter = {"driver": "usb-bot", "id": f"usb-{disk.id}", "bus": "usb.0"}
            return Place(ports=(adapter,), properties={"bus": f"usb-{disk.id}.0", "lun": 0})
        case "usb":
            return Place(properties={"bus": "usb.0"})
    return Place(properties=free_slot(summary, "disk"))


# NICs and other devices


def attach_nic(unit: Unit, nic: NicSection, summary: PlanSummary, vm: Vm) -> list[Attachment]:
    """Plan a NIC that comes to a VM that runs; `UnsupportedError` as for `attach_disk`."""
    board = BOARDS[summary.family]
    place = Place(properties=free_slot(summary, nic_role(nic, board)))
    planned = nic_part(nic, place, vm.uuid, board, vm.capabilities)
    return [Attachment(part=planned.part, nic=planned.plan)]


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
        found, summary = _with_controller(device.type, board, summary)
        place = place_on_bus(device)
    tools = Tools(board=board, capabilities=vm.capabilities, uuid=vm.uuid, fdsets=next_fdset(summary))
    return [*found, Attachment(part=device_part(device, place, tools))]


def check_entry(entry: str, summary: PlanSummary, names: Sequence[str]) -> None:
    """See that nothing of QEMU's has a name that an entry is going to take.

    Raises:
        UnsupportedError: something has.
    """
    known = {device.id for device in devices_of(summary)}
    if taken := sorted(known.intersection(names)):
        raise UnsupportedError(f"{entry}: QEMU has a device {taken[0]!r} already", hint="choose another id")
