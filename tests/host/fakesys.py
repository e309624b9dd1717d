"""A tree like /sys with PCI and USB devices, and a kernel behind it that does what is written there.

Decides: what the kernel does with ``driver_override``, ``unbind`` and ``drivers_probe``.
Must not: know what is tested with it.

It stands in for a host with an IOMMU and USB buses where there is none.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from qsup.host.pci import VFIO, Sysfs

DISPLAY, AUDIO, NETWORK, STORAGE, BRIDGE = "0x030000", "0x040300", "0x020000", "0x010802", "0x060400"


class FakeSysfs(Sysfs):
    """The tree, below a directory.

    Attributes:
        native: the driver that knows a device, by its address.
        refuses: drivers that do not take a device, for whatever reason.
        owners: the uid that a node of /dev was given to, by its name.
        written: what was written, in order: attribute and text.
    """

    def __init__(self, top: Path) -> None:
        super().__init__(top / "sys", top / "dev", top / "mountinfo")
        self.native: dict[str, str] = {}
        self.refuses: set[str] = set()
        self.owners: dict[str, int] = {}
        self.written: list[tuple[str, str]] = []
        (top / "mountinfo").write_text("")
        (self.root / "class/block").mkdir(parents=True)
        (self.root / "bus/pci/devices").mkdir(parents=True)
        (self.root / "bus/usb/devices").mkdir(parents=True)
        self.load(VFIO)

    def load(self, driver: str) -> None:
        """Load a driver."""
        (self.root / "bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)

    def add_pci(self, address: str, kind: str, *, driver: str = "", group: int | None = None) -> None:
        """A device, bound to the driver that knows it."""
        real = self.root / "devices/pci0000:00" / address
        real.mkdir(parents=True)
        (real / "class").write_text(f"{kind}\n")
        (real / "driver_override").write_text("(null)\n")
        self.device(address).symlink_to(real)
        self.native[address] = driver
        if driver:
            self.load(driver)
            self._bind(address, driver)
        if group is not None:
            place = self.root / "kernel/iommu_groups" / str(group)
            (place / "devices").mkdir(parents=True, exist_ok=True)
            (place / "devices" / address).symlink_to(real)
            (real / "iommu_group").symlink_to(place)
            (self.dev / "vfio").mkdir(parents=True, exist_ok=True)

    def add_disk(self, address: str, name: str, number: str, mounted: str = "") -> None:
        """A block device of a PCI device, with a file system in use or without."""
        block = self.device(address).resolve() / "block" / name
        block.mkdir(parents=True)
        (block / "dev").write_text(f"{number}\n")
        (self.root / "class/block" / name).symlink_to(block)
        if mounted:
            (self.root.parent / "mountinfo").write_text(
                f"22 1 {number} / {mounted} rw shared:1 - ext4 /dev/{name} rw\n"
            )

    def add_usb(self, port: str, identity: str, number: int, kind: str = "00") -> Path:
        """Something that is plugged in: its node."""
        directory = self.root / "bus/usb/devices" / port
        directory.mkdir()
        vendor, product = identity.split(":")
        bus = port.partition("-")[0]
        values = {"bDeviceClass": kind, "idVendor": vendor, "idProduct": product, "busnum": bus, "devnum": str(number)}
        for name, text in values.items():
            (directory / name).write_text(f"{text}\n")
        node = self.dev / "bus/usb" / f"{int(bus):03}" / f"{number:03}"
        node.parent.mkdir(parents=True, exist_ok=True)
        node.write_text("")
        return node

    # the kernel

    def write(self, path: Path, text: str) -> None:
        """Do what the kernel does."""
        self.written.append((path.name, text))
        match path.name:
            case "driver_override":
                super().write(path, text)
                path.write_text("(null)\n" if text == "\n" else f"{text}\n")
            case "unbind":
                link = self.device(text) / "driver"
                if not link.is_symlink():
                    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
                link.unlink()
            case "drivers_probe":
                override = (self.device(text) / "driver_override").read_text().strip()
                driver = self.native[text] if override == "(null)" else override
                if driver and driver not in self.refuses and not (self.device(text) / "driver").is_symlink():
                    self._bind(text, driver)

    def chown(self, path: Path, uid: int) -> None:
        """Nodes are plain files here."""
        self.owners[path.name] = uid

    def _bind(self, address: str, driver: str) -> None:
        (self.device(address).resolve() / "driver").symlink_to(self.root / "bus/pci/drivers" / driver)
        link = self.device(address) / "iommu_group"
        if driver == VFIO and link.is_symlink():
            # the group's node is there as long as a driver of VFIO has one of its devices
            (self.dev / "vfio" / link.resolve().name).write_text("")
