"""What a VM that runs consists of, and where there is room for more. Pure.

Decides: which place the next device gets, and what becomes of the port of one that is gone.
Must not: describe a device (`qsup.plan.attach`), or say how QEMU is given one (`qsup.plan.hotplug`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

from attrs import evolve, frozen

from qsup.errors import UnsupportedError
from qsup.plan.board import BOARDS, Board
from qsup.plan.part import Properties
from qsup.plan.spec import DevicePlan, PartPlan, PlanSummary

ROOT_PORT: Final = "pcie-root-port"
#: The section of entries that no unit has: of controllers that came for something.
CONTROLLER: Final = "controller"
_NO_SLOT = "detach something, or raise [machine] hotplug-slots and restart the VM"
_MAY_COME = "wait until the guest has let go of what is leaving, or reset it"
#: What the drivers of devices begin with that are on controllers.
_ON_CONTROLLERS = ("scsi-", "usb-", "virtserial", "virtcon")


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


# controllers


def free_controller(summary: PlanSummary, bus: str) -> tuple[str, bool]:
    """The controller of a bus that something can come to: its name, and whether it is there.

    One that is on its way out takes nothing along, so whatever comes meanwhile comes to another.
    """
    states = {device.id: part.state for part in summary.parts for device in part.devices}
    for number in itertools.count(1):
        name = bus if number == 1 else f"{bus}{number}"
        if states.get(name) != "leaving":
            return name, name in states
    raise AssertionError("there is always another number")


def idle_controllers(summary: PlanSummary) -> tuple[str, ...]:
    """The entries of controllers that came for something, and have nothing on them any more.

    None while another is on its way out: a guest that does not answer keeps no more than that one's slot. Nor while
    QEMU has a device of somebody else's that may be on one.
    """
    came = _came(summary)
    foreign = any(not device.bus and device.driver.startswith(_ON_CONTROLLERS) for device in devices_of(summary))
    if foreign or leaving_controllers(summary):
        return ()
    buses = {device.bus for device in devices_of(summary)}
    idle = [part for part in came if not any(f"{device.id}.0" in buses for device in part.devices)]
    return tuple(part.entry for part in idle if part.state == "there")


def leaving_controllers(summary: PlanSummary) -> bool:
    """Whether any is on its way out."""
    return any(part.state == "leaving" for part in _came(summary))


def _came(summary: PlanSummary) -> list[PartPlan]:
    return [part for part in summary.parts if part.entry.startswith(f"{CONTROLLER}.")]


def check_entry(entry: str, summary: PlanSummary, names: Sequence[str]) -> None:
    """See that nothing of QEMU's has a name that an entry is going to take.

    Raises:
        UnsupportedError: something has.
    """
    known = {device.id for device in devices_of(summary)}
    if taken := sorted(known.intersection(names)):
        raise UnsupportedError(f"{entry}: QEMU has a device {taken[0]!r} already", hint="choose another id")


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
        raise takes_nothing(board)
    if summary.family == "q35":
        for port in _free_ports(summary):
            return {"bus": port.id, "addr": "0x0"}
        total = slots(summary).total
        if not total:
            hint = "raise [machine] hotplug-slots and restart the VM"
            raise UnsupportedError("there is no free slot: the VM was started without any", hint=hint)
        raise UnsupportedError(
            f"there is no free slot: all {total} PCIe root ports are taken",
            hint=_NO_SLOT if all(part.state != "leaving" for part in summary.parts) else f"{_MAY_COME}; or {_NO_SLOT}",
        )
    used = {(device.bus, device.address) for device in devices_of(summary)}
    for index in range(board.several[role].size):
        place = board.place_one_of(role, index).properties
        if (place["bus"], place["addr"]) not in used:
            return place
    raise UnsupportedError(f"there is no free slot for it: all {board.several[role].size} are taken")


def takes_nothing(board: Board) -> UnsupportedError:
    """Why nothing comes to a machine of this kind."""
    return UnsupportedError(f"a {board.family} machine takes no devices while it runs", hint="restart the VM")


def next_fdset(summary: PlanSummary) -> Iterator[int]:
    """Numbers of descriptor sets that nothing uses."""
    used = [int(each.name) for part in summary.parts for each in part.backends if each.kind == "fdset"]
    return itertools.count(max(used, default=0) + 1)
