"""PCI devices of the host that VMs are given: taken from their drivers for vfio-pci, and given back.

Decides: whether a device can be given to a VM (an IOMMU group that the host does not use besides, nobody else who has
it, nothing of it mounted), and how its driver changes.
Must not: write anything down: whoever asks has what `Passthrough.reserve` returns on record before `Passthrough.bind`.

Sources: Documentation/ABI/testing/sysfs-bus-pci (driver_override, drivers_probe, unbind) and
Documentation/driver-api/vfio.rst in Linux: a group can be used when each device in it is bound to vfio-pci or to no
driver at all, bridges aside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import structlog
from attrs import frozen

from qsup.errors import HostDeviceError, UnsupportedError, from_oserror

_log = structlog.get_logger()

VFIO = "vfio-pci"
#: Drivers that leave a group to its user (vfio_dev_driver_allowed in Linux's drivers/vfio/vfio.c).
_HARMLESS = ("", VFIO, "pci-stub", "pcieport")
_BRIDGE = "0x06"


@frozen(kw_only=True)
class Binding:
    """One device in a VM's hands, as its run record keeps it.

    Args:
        entry: of the unit that it is for, such as ``device.gpu``.
        address: such as ``0000:03:00.0``.
        driver: that it had before and gets back, ``""`` for none.
        group: number of its IOMMU group.
    """

    entry: str
    address: str
    driver: str
    group: int


class Sysfs:
    """The kernel's tree of devices.

    Args:
        root: where it is mounted.
        dev: the directory of device nodes.
        mountinfo: what is mounted (proc(5)).
    """

    def __init__(
        self, root: Path = Path("/sys"), dev: Path = Path("/dev"), mountinfo: Path = Path("/proc/self/mountinfo")
    ) -> None:
        self.root = root
        self.dev = dev
        self._mountinfo = mountinfo

    def device(self, address: str) -> Path:
        """A PCI device's directory."""
        return self.root / "bus/pci/devices" / address

    def write(self, path: Path, text: str) -> None:
        """Write an attribute; `OSError`."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def chown(self, path: Path, uid: int) -> None:
        """Give a device node to a user; `OSError`."""
        os.chown(path, uid, -1)

    def driver(self, address: str) -> str:
        """The driver of a PCI device, ``""`` for none."""
        link = self.device(address) / "driver"
        return link.resolve().name if link.is_symlink() else ""

    def group(self, address: str) -> int | None:
        """The IOMMU group of a PCI device."""
        link = self.device(address) / "iommu_group"
        return int(link.resolve().name) if link.is_symlink() else None

    def members(self, group: int) -> list[str]:
        """The addresses of an IOMMU group, in order."""
        return sorted(os.listdir(self.root / "kernel/iommu_groups" / str(group) / "devices"))

    def is_bridge(self, address: str) -> bool:
        """Whether it is what other devices are behind."""
        return (self.device(address) / "class").read_text().startswith(_BRIDGE)

    def mounted(self, address: str) -> Iterator[tuple[str, str]]:
        """Block devices of a PCI device that hold a file system in use, and where."""
        where = {fields[2]: fields[4] for line in self._mountinfo.read_text().splitlines() if (fields := line.split())}
        top = self.device(address).resolve()
        for block in sorted((self.root / "class/block").glob("*")):
            if block.resolve().is_relative_to(top) and (place := where.get((block / "dev").read_text().strip())):
                yield block.name, place


class Passthrough:
    """All devices of the host that VMs have.

    Attributes:
        sysfs: where they are.
    """

    def __init__(self, sysfs: Sysfs | None = None) -> None:
        self.sysfs = sysfs or Sysfs()
        self._held: dict[str, list[Binding]] = {}

    def reserve(self, wanted: Mapping[str, str], holder: str) -> tuple[Binding, ...]:
        """Claim devices for a VM, until `release`; nothing is done to them yet.

        Args:
            wanted: addresses by entries of the unit.
            holder: the VM's name.

        Raises:
            HostDeviceError, UnsupportedError: the first that cannot be had; none is claimed then.
        """
        mine = {binding.address for binding in self._held.get(holder, [])} | set(wanted.values())
        try:
            found = [self._look(entry, address, holder, mine) for entry, address in wanted.items()]
        except OSError as error:
            raise from_oserror(error, "could not look at the host's PCI devices") from error
        self._held.setdefault(holder, []).extend(found)
        return tuple(found)

    def _look(self, entry: str, address: str, holder: str, mine: set[str]) -> Binding:
        sysfs = self.sysfs
        if not sysfs.device(address).exists():
            raise HostDeviceError(f"{entry}: there is no PCI device {address}", hint="`lspci -D` shows what there is")
        if sysfs.is_bridge(address):
            raise HostDeviceError(f"{entry}: {address} is a bridge, which other devices are behind")
        group = sysfs.group(address)
        if group is None:
            hint = "switch the IOMMU on, in the firmware and by intel_iommu=on or its like on the kernel's command line"
            raise UnsupportedError(f"{entry}: PCI device {address} is in no IOMMU group", hint=hint)
        self._check_holders(entry, address, group, holder)
        for name, place in sysfs.mounted(address):
            raise HostDeviceError(f"{entry}: the host has {name}, which is on {address}, mounted on {place}")
        self._check_group(entry, address, group, mine)
        return Binding(entry=entry, address=address, driver=sysfs.driver(address), group=group)

    def _check_holders(self, entry: str, address: str, group: int, holder: str) -> None:
        for other, bindings in self._held.items():
            for binding in bindings:
                if binding.address == address:
                    whose = f"{binding.entry} of this VM" if other == holder else f"{binding.entry} of VM {other}"
                    raise HostDeviceError(f"{entry}: PCI device {address} is {whose} already")
                if binding.group == group and other != holder:
                    words = f"is in IOMMU group {group} with {binding.address}, which VM {other} has ({binding.entry})"
                    raise HostDeviceError(
                        f"{entry}: PCI device {address} {words}", hint="a group is one VM's at a time"
                    )

    def _check_group(self, entry: str, address: str, group: int, mine: set[str]) -> None:
        sysfs = self.sysfs
        others = [other for other in sysfs.members(group) if other not in mine and not sysfs.is_bridge(other)]
        used = [f"{other} ({driver})" for other in others if (driver := sysfs.driver(other)) not in _HARMLESS]
        if used:
            words = f"PCI device {address} shares IOMMU group {group} with {', '.join(used)}, which the host uses"
            raise HostDeviceError(
                f"{entry}: {words}", hint="give the VM the whole group, or take these from their drivers"
            )

    def bind(self, binding: Binding, uid: int | None) -> None:
        """Take a device from its driver for a VM. Blocks while the driver lets go of it.

        Args:
            uid: whom QEMU runs as, ``None`` for the daemon's own user.

        Raises:
            HostDeviceError, UnsupportedError: the kernel did not do it; it has its driver again.
        """
        sysfs, address = self.sysfs, binding.address
        if not (sysfs.root / "bus/pci/drivers" / VFIO).exists():
            words = f"{binding.entry}: the host's kernel has no driver {VFIO}"
            raise UnsupportedError(words, hint=f"load it: modprobe {VFIO}")
        try:
            if sysfs.driver(address) != VFIO:
                self._change_driver(address, VFIO)
            if uid is not None:
                sysfs.chown(self._node(binding.group), uid)
            now = sysfs.driver(address)
        except OSError as error:
            self.give_back(binding)
            raise HostDeviceError(
                f"{binding.entry}: could not give PCI device {address} to {VFIO}: {os.strerror(error.errno or 0)}"
            ) from error
        if now != VFIO:
            self.give_back(binding)
            raise HostDeviceError(f"{binding.entry}: {VFIO} does not take PCI device {address}, and gives no reason")

    def _change_driver(self, address: str, driver: str) -> None:
        """Take a device from its driver, and have it probed by another, ``""`` for none."""
        sysfs, device = self.sysfs, self.sysfs.device(address)
        # a newline clears it; without, any driver that knows the device may take it
        sysfs.write(device / "driver_override", VFIO if driver == VFIO else "\n")
        if sysfs.driver(address):
            sysfs.write(device / "driver/unbind", address)
        if driver:
            sysfs.write(sysfs.root / "bus/pci/drivers_probe", address)

    def _node(self, group: int) -> Path:
        return self.sysfs.dev / "vfio" / str(group)

    def give_back(self, binding: Binding) -> None:
        """Give a device its former driver again. It must not be in use: the kernel waits for that without end.

        What cannot be done is logged: nobody can do more about it, and the device is nobody's.
        """
        sysfs, address = self.sysfs, binding.address
        try:
            others = [each for held in self._held.values() for each in held if each.address != address]
            if all(other.group != binding.group for other in others) and self._node(binding.group).exists():
                sysfs.chown(self._node(binding.group), 0)
            if binding.driver != VFIO and sysfs.driver(address) in (VFIO, ""):
                self._change_driver(address, binding.driver)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            _log.error("could not give a PCI device back", address=address, driver=binding.driver, why=why)

    def restore(self, bindings: Sequence[Binding], holder: str) -> None:
        """Take note of what an adopted VM has."""
        self._held.setdefault(holder, []).extend(bindings)

    def held(self, holder: str, entry: str = "") -> tuple[Binding, ...]:
        """What a VM has, for one entry of its unit or all."""
        return tuple(each for each in self._held.get(holder, []) if entry in ("", each.entry))

    def release(self, holder: str, entry: str = "") -> None:
        """Give back what a VM has, for one entry of its unit or all. Blocks; QEMU must have let go of it."""
        for binding in self.held(holder, entry):
            self.give_back(binding)
            self._held[holder].remove(binding)
