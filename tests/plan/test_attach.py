"""Further devices that come to a VM that runs: the QMP commands, in order, and what takes each away again.

Those of the host (`usb`, `pci`) are seen here and on a fake sysfs alone: no host that the tests run on has any.
"""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from qsup.errors import UnsupportedError
from qsup.plan import hotplug, inventory
from qsup.plan.attach import Attachment, Vm, attach_device, attach_disk, attach_nic
from qsup.plan.identity import derive_mac
from qsup.plan.spec import DevicePlan, PartPlan, PlanSummary
from qsup.unit.model import Unit
from qsup.unit.sections.devices import AgentSection, DeviceSection, NicSection
from qsup.unit.sections.disks import DiskSection, IothreadSection
from qsup.unit.sections.machine import MachineSection
from qsup.unit.sections.memory import MemorySection
from tests.plan import goldens
from tests.plan.building import build

VM = Vm(uuid=goldens.UUID, capabilities=goldens.capabilities())
SHARED = MemorySection(shared=True)


def attach(device: DeviceSection, unit: Unit | None = None) -> tuple[list[Attachment], PlanSummary]:
    """The plan of a device that comes to a VM, and that of the VM."""
    summary = build(unit or Unit()).summary()
    return attach_device(unit or Unit(), device, summary, VM), summary


def steps(attachments: list[Attachment]) -> list[tuple[str, dict[str, Any], str]]:
    """Every command, in order: its name, its arguments, and the descriptor that goes with it."""
    return [
        (command.command, dict(command.arguments), command.fd)
        for attachment in attachments
        for each in (hotplug.backend_steps, hotplug.device_steps)
        for command in each(attachment.part)
    ]


def removals(part: PartPlan) -> list[str]:
    """The commands that take a part away."""
    devices = [hotplug.removal(device).command for device in hotplug.unplugged(part)]
    return devices + [hotplug.removal(backend).command for backend in reversed(part.backends)]


def slot(number: int = 0) -> dict[str, str]:
    """A free root port."""
    return {"bus": f"port-free-{number}", "addr": "0x0"}


def on_socket(name: str, **data: object) -> tuple[str, dict[str, Any], str]:
    """How a character device on a socket comes."""
    address = {"type": "fd", "data": {"str": name}}
    return "chardev-add", {"id": name, "backend": {"type": "socket", "data": {"addr": address, **data}}}, name


CASES = {
    "rng": (
        DeviceSection(id="x", type="rng", max_bytes=1024, period=0.5),
        [
            ("object-add", {"qom-type": "rng-builtin", "id": "rng-x"}, ""),
            (
                "device_add",
                {
                    "driver": "virtio-rng-pci",
                    "id": "device-x",
                    **slot(),
                    "rng": "rng-x",
                    "max-bytes": 1024,
                    "period": 500,
                },
                "",
            ),
        ],
        ["device_del", "object-del"],
    ),
    "watchdog": (
        DeviceSection(id="x", type="watchdog", action="pause"),
        [
            ("watchdog-set-action", {"action": "pause"}, ""),
            ("device_add", {"driver": "i6300esb", "id": "device-x", **slot()}, ""),
        ],
        ["device_del", "watchdog-set-action"],
    ),
    "serial": (
        DeviceSection(id="x", type="serial", name="org.example"),
        [
            on_socket("channel-x", server=True, wait=False),
            (
                "device_add",
                {
                    **{"driver": "virtserialport", "id": "device-x", "bus": "serial.0"},
                    **{"chardev": "channel-x", "name": "org.example"},
                },
                "",
            ),
        ],
        ["device_del", "chardev-remove"],
    ),
    "share": (
        DeviceSection(id="x", type="share", path="data"),
        [
            on_socket("share-x", server=False),
            (
                "device_add",
                {"driver": "vhost-user-fs-pci", "id": "device-x", **slot(), "chardev": "share-x", "tag": "x"},
                "",
            ),
        ],
        ["device_del", "chardev-remove"],
    ),
    "vhost-user disk": (
        DeviceSection(id="x", type="vhost-user", socket="/run/x"),
        [
            on_socket("vhost-x", server=False),
            ("device_add", {"driver": "vhost-user-blk-pci", "id": "device-x", **slot(), "chardev": "vhost-x"}, ""),
        ],
        ["device_del", "chardev-remove"],
    ),
    "vhost-user card": (
        DeviceSection(id="x", type="vhost-user", socket="/run/x", model="net"),
        [
            on_socket("vhost-x", server=False),
            ("netdev_add", {"type": "vhost-user", "id": "vhost-x", "chardev": "vhost-x"}, ""),
            (
                "device_add",
                {
                    **{"driver": "virtio-net-pci", "id": "device-x", **slot()},
                    **{"netdev": "vhost-x", "mac": derive_mac(goldens.UUID, "x")},
                },
                "",
            ),
        ],
        ["device_del", "netdev_del", "chardev-remove"],
    ),
    "usb without a bus of the host": (
        DeviceSection(id="x", type="usb", port="1-2"),
        [
            ("device_add", {"driver": "qemu-xhci", "id": "usb", **slot(), "p2": 15, "p3": 15}, ""),
            ("add-fd", {"fdset-id": 1}, "usb-x"),
            (
                "device_add",
                {"driver": "usb-host", "id": "device-x", "bus": "usb.0", "hostdevice": "/dev/fdset/1"},
                "",
            ),
        ],
        ["device_del", "remove-fd"],
    ),
    "pci without an IOMMU": (
        DeviceSection(id="x", type="pci", address="0000:03:00.0"),
        [("device_add", {"driver": "vfio-pci", "id": "device-x", **slot(), "host": "0000:03:00.0"}, "")],
        ["device_del"],
    ),
}


@pytest.mark.parametrize(("device", "coming", "going"), CASES.values(), ids=CASES)
def test_a_device_comes_by_these_commands(
    device: DeviceSection, coming: list[tuple[str, dict[str, Any], str]], going: list[str]
) -> None:
    """What it stands on first; and goes the other way round."""
    attachments, _ = attach(device, Unit(memory=SHARED))
    assert steps(attachments) == coming
    part = attachments[-1].part.plan()
    assert removals(part) == going


def test_what_was_there_from_the_start_goes_the_same_way() -> None:
    """A part of a start is known by the same names as one that came later."""
    for device, _, going in CASES.values():
        summary = build(Unit(memory=SHARED, devices=(device,))).summary()
        part = inventory.find(summary, "device.x")
        assert part is not None
        assert removals(part) == going


def test_what_comes_has_its_place_in_the_boot_order_unless_something_has_it() -> None:
    """QEMU gives none twice; a NIC that has to wait for its place has a boot ROM all the same."""
    disk, nic = DiskSection(id="x", path="x.img", bootindex=1), NicSection(id="x", bootindex=0)
    unit = Unit(disks=(DiskSection(id="root", path="root.img"), disk))
    summary = build(evolve(unit, disks=unit.disks[:1])).summary()
    (came,) = attach_disk(unit, disk, summary, evolve(VM, boot_places={0}))
    assert came.part.devices[0]["bootindex"] == 2
    assert came.disk is not None
    assert came.disk.bootindex == 1
    (came,) = attach_disk(unit, disk, summary, evolve(VM, boot_places={0, 1}))
    assert "bootindex" not in came.part.devices[0]
    assert came.disk is not None
    assert came.disk.bootindex == -1
    with_nic = evolve(unit, disks=unit.disks[:1], nics=(nic,))
    (came,) = attach_nic(with_nic, nic, summary, evolve(VM, boot_places={0}))
    assert came.part.devices[0].keys().isdisjoint({"bootindex", "romfile"})
    (came,) = attach_nic(with_nic, nic, summary, VM)
    assert came.part.devices[0]["bootindex"] == 1


def test_a_disk_that_comes_may_have_an_iothread_that_is_there() -> None:
    """None comes while the VM runs, and none goes with the disk."""
    summary = build(Unit(iothreads=(IothreadSection(id="fast"),))).summary()
    disk = DiskSection(id="x", path="x.img", iothread="fast")
    unit = Unit(iothreads=(IothreadSection(id="fast"), IothreadSection(id="new")), disks=(disk,))
    (came,) = attach_disk(unit, disk, summary, VM)
    assert came.part.devices[0]["iothread"] == "iothread-fast"
    assert came.disk is not None
    assert came.disk.iothread == "fast"
    assert "object-del" not in removals(came.part.plan())
    with pytest.raises(UnsupportedError, match="iothread 'new' is not there before the VM's next start"):
        attach_disk(unit, evolve(disk, iothread="new"), summary, VM)


@pytest.mark.parametrize("type", ["rng", "watchdog", "share", "pci"])
def test_a_machine_that_takes_nothing_says_so(type: str) -> None:
    """A microvm has no bus that anything could come to."""
    unit = Unit(machine=MachineSection(type="microvm"), memory=SHARED)
    with pytest.raises(UnsupportedError, match="a microvm machine takes no devices while it runs"):
        attach(DeviceSection(id="x", type=type), unit)


def test_without_a_slot_there_is_nothing_to_detach() -> None:
    """What would make room is said."""
    with pytest.raises(UnsupportedError, match="the VM was started without any") as refused:
        attach(DeviceSection(id="x", type="rng"), Unit(machine=MachineSection(hotplug_slots=0)))
    assert refused.value.hint == "raise [machine] hotplug-slots and restart the VM"


def test_a_controller_is_idle_once_nothing_is_on_it() -> None:
    """One at a time, and only what came for something; what may be somebody else's device on it keeps it."""
    attachments, summary = attach(DeviceSection(id="x", type="usb", port="1-2"))
    controller, stick = (attachment.part.plan() for attachment in attachments)
    there = inventory.with_part(summary, controller)
    assert inventory.free_controller(there, "usb") == ("usb", True)
    assert inventory.idle_controllers(inventory.with_part(there, stick)) == ()
    assert inventory.idle_controllers(there) == ("controller.usb",)
    foreign = PartPlan(entry="", devices=(DevicePlan(id="mine", driver="usb-mouse"),))
    assert inventory.idle_controllers(inventory.with_part(there, foreign)) == ()
    leaving = inventory.with_part(there, evolve(controller, state="leaving"))
    assert inventory.free_controller(leaving, "usb") == ("usb2", False)
    (second, _) = attach_device(Unit(), DeviceSection(id="y", type="usb", port="1-3"), leaving, VM)
    both = inventory.with_part(leaving, second.part.plan())
    assert inventory.free_controller(both, "usb") == ("usb2", True)
    assert inventory.idle_controllers(both) == ()


@pytest.mark.parametrize("type", ["serial", "usb"])
def test_nor_does_it_take_a_controller(type: str) -> None:
    """What hangs on a controller cannot come either, where there is none."""
    unit = Unit(machine=MachineSection(type="microvm"), agent=AgentSection(enabled=False))
    with pytest.raises(UnsupportedError, match="a microvm machine takes no devices while it runs"):
        attach(DeviceSection(id="x", type=type, port="1-2" if type == "usb" else ""), unit)


def test_memory_that_is_not_shared_keeps_shares_away() -> None:
    """The words say what to do; a VM that began with a share takes another."""
    share = DeviceSection(id="x", type="share", path="data")
    with pytest.raises(UnsupportedError) as caught:
        attach(share)
    assert "needs memory that can be shared" in caught.value.message
    assert "shared = true in [memory]" in caught.value.hint
    assert attach(share, Unit(devices=(DeviceSection(id="y", type="share", path="other"),)))


@pytest.mark.parametrize(
    ("type", "bus", "why"),
    [
        ("q35", "virtio", ""),
        ("q35", "scsi", ""),
        ("q35", "nvme", ""),
        ("q35", "usb", ""),
        ("q35", "sata", "disk.data is on a SATA or IDE bus, which lets nothing go while the VM runs"),
        ("pc", "virtio", ""),
        ("pc", "scsi", ""),
        ("pc", "sata", "disk.data is on a SATA or IDE bus, which lets nothing go while the VM runs"),
        ("pc", "ide", "disk.data is on a SATA or IDE bus, which lets nothing go while the VM runs"),
        ("microvm", "virtio", "a microvm machine gives nothing back while it runs"),
    ],
)
def test_what_can_be_taken_from_a_machine_that_runs(type: str, bus: str, why: str) -> None:
    """By what it hangs on: its own port, or a bus that takes hotplug."""
    unit = Unit(machine=MachineSection(type=type), disks=(DiskSection(id="data", path="data.img", bus=bus),))
    summary = build(unit).summary()
    part = inventory.find(summary, "disk.data")
    assert part is not None
    if why:
        with pytest.raises(UnsupportedError, match=why):
            hotplug.check_removable(part, summary.family)
    else:
        hotplug.check_removable(part, summary.family)
