"""Where devices are attached on each board: PCI slots and PCIe ports, or virtio-mmio transports.

Decides: every device's bus and address, so that a guest finds it at the same place at each start.
Must not: know a device's own properties.

Addresses depend on a device's role and its number among its kind, never on what else the VM has: adding a disk moves no
NIC. On q35, what can come and go while the VM runs has a PCIe root port of its own (``pcie.0`` takes no hotplug); NICs'
ports come first, so the bus numbers that guests derive NIC names from stay when disks are added.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from qsup.errors import UnsupportedError
from qsup.plan.part import Properties


@frozen(kw_only=True)
class Range:
    """Slots for devices of which there can be several.

    Args:
        first: the first slot (or transport).
        slots: how many slots.
        ports: devices in one slot, each behind a root port; 0: one device in each slot, without a port.
    """

    first: int
    slots: int
    ports: int = 0

    @property
    def size(self) -> int:
        """How many devices have room."""
        return self.slots * max(self.ports, 1)


@frozen(kw_only=True)
class Place:
    """Where one device goes.

    Args:
        ports: properties of the root port to make for it, if any.
        properties: ``bus`` and ``addr`` of the device itself.
    """

    ports: tuple[Properties, ...] = ()
    properties: Properties


@frozen(kw_only=True)
class Board:
    """One family of machine types.

    Args:
        family: ``q35``, ``pc`` or ``microvm``.
        root: the root bus; ``{}`` stands for the transport's number where each device has a bus of its own.
        virtio: suffix of the names of virtio devices, ``pci`` or ``device``.
        single: slot by role, for devices of which there is one.
        several: slots by role, for the others.
    """

    family: str
    root: str
    virtio: str
    single: Mapping[str, int] = field(factory=dict)
    several: Mapping[str, Range] = field(factory=dict)

    @property
    def has_pci(self) -> bool:
        """Whether there is a PCI bus."""
        return self.virtio == "pci"

    def virtio_device(self, kind: str) -> str:
        """The device name of a virtio ``kind`` such as ``blk``."""
        return f"virtio-{kind}-{self.virtio}"

    def place(self, role: str) -> Properties:
        """Bus and address of the only device in its role.

        Raises:
            UnsupportedError: this board cannot have one.
        """
        if role not in self.single:
            raise UnsupportedError(f"a {self.family} machine cannot have {_WORDS[role]}")
        return self._direct(self.single[role])

    def place_one_of(self, role: str, index: int) -> Place:
        """Where device number ``index``, counted from 0, of its role goes.

        Raises:
            UnsupportedError: there is no room for that many.
        """
        slots = self.several.get(role, Range(first=0, slots=0))
        if index >= slots.size:
            raise UnsupportedError(f"a {self.family} machine has room for {slots.size} {_WORDS[role]}, not {index + 1}")
        if not slots.ports:
            return Place(properties=self._direct(slots.first + index))
        port = self._port(role, index, slots)
        return Place(ports=(port,), properties={"bus": port["id"], "addr": "0x0"})

    def free_ports(self, count: int) -> tuple[Properties, ...]:
        """Root ports kept free for devices that come later; none where the root bus takes hotplug or nothing does."""
        if "free" not in self.several:
            return ()
        return tuple(port for index in range(count) for port in self.place_one_of("free", index).ports)

    def _direct(self, slot: int) -> Properties:
        return {"bus": self.root, "addr": f"{slot:#x}"} if self.has_pci else {"bus": self.root.format(slot)}

    def _port(self, role: str, index: int, slots: Range) -> Properties:
        slot, function = slots.first + index // slots.ports, index % slots.ports
        return {
            "driver": "pcie-root-port",
            "id": f"port-{role}-{index}",
            "bus": self.root,
            "addr": f"{slot:#x}.{function:#x}",
            "multifunction": True,
            # pairs of chassis and slot number must be unique (PCIe 7.8.9, "Physical Slot Number")
            "chassis": slot * slots.ports + function,
        }


_WORDS = {
    "video": "a graphics card",
    "usb": "a USB controller",
    "sata": "a SATA controller",
    "serial": "virtio serial ports",
    "balloon": "a balloon",
    "memory": "memory that grows",
    "scsi": "a SCSI controller",
    "nic": "NICs",
    "legacy-nic": "e1000 and rtl8139 NICs",
    "disk": "virtio and NVMe disks",
    "device": "further devices",
    "free": "hotplug slots",
}

_Q35 = Board(
    family="q35",
    root="pcie.0",
    virtio="pci",
    # the chipset's own devices are in slots 0 and 0x1f
    single={"video": 0x01, "serial": 0x02, "balloon": 0x03, "scsi": 0x04, "usb": 0x05, "memory": 0x1E},
    several={
        # conventional PCI cards belong on the root bus (docs/pcie.txt in QEMU's source)
        "legacy-nic": Range(first=0x06, slots=4),
        "nic": Range(first=0x0A, slots=4, ports=8),
        "disk": Range(first=0x0E, slots=8, ports=8),
        "device": Range(first=0x16, slots=4, ports=8),
        "free": Range(first=0x1A, slots=4, ports=8),
    },
)

_PC = Board(
    family="pc",
    root="pci.0",
    virtio="pci",
    # slot 0x1f, and what a VM does not use, are free for hotplug
    single={"video": 0x02, "serial": 0x03, "balloon": 0x04, "scsi": 0x05, "usb": 0x06, "sata": 0x07, "memory": 0x1E},
    several={
        "nic": Range(first=0x08, slots=8),
        "device": Range(first=0x10, slots=4),
        "disk": Range(first=0x14, slots=10),
    },
)

_MICROVM = Board(
    family="microvm",
    root="virtio-mmio-bus.{}",
    virtio="device",
    single={"serial": 0, "balloon": 1, "scsi": 2},
    several={
        "nic": Range(first=3, slots=6),
        "device": Range(first=9, slots=4),
        "disk": Range(first=13, slots=11),
    },
)

BOARDS = {board.family: board for board in (_Q35, _PC, _MICROVM)}
