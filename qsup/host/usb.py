"""USB devices of the host that VMs are given.

Decides: which device is meant, by its vendor and product or by where it is plugged in, and that it is just one.
Must not: take a device from its driver: QEMU does, by the descriptor that it is handed (usbdevfs, ``USBDEVFS_CLAIM``).

Source: Documentation/ABI/stable/sysfs-bus-usb and Documentation/driver-api/usb/usb.rst in Linux: a device's directory
is called BUS-PORT, with a further .PORT for each hub between; what has a ``:`` in its name is an interface.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from qsup.errors import HostDeviceError

_HUB = "09"


@frozen(kw_only=True)
class UsbDevice:
    """One device that is plugged in.

    Args:
        port: where, as sysfs calls it, such as ``1-2.3``.
        identity: vendor and product, such as ``046d:c52b``.
        bus, number: name its node, ``/dev/bus/usb/BBB/DDD``; the number changes each time that it is plugged in.
    """

    port: str
    identity: str
    bus: int
    number: int

    def node(self, dev: Path) -> Path:
        """Its node below the directory of device nodes."""
        return dev / "bus/usb" / f"{self.bus:03}" / f"{self.number:03}"


def plugged_in(root: Path) -> Iterator[UsbDevice]:
    """Every device but hubs, in the order of their ports; one that is pulled meanwhile is passed.

    Args:
        root: where sysfs is mounted.
    """
    for directory in sorted((root / "bus/usb/devices").glob("[0-9]*-*")):
        if ":" in directory.name:
            continue
        try:
            words = [
                (directory / name).read_text().strip()
                for name in ("bDeviceClass", "idVendor", "idProduct", "busnum", "devnum")
            ]
            if words[0] != _HUB:
                found = UsbDevice(
                    port=directory.name, identity=f"{words[1]}:{words[2]}", bus=int(words[3]), number=int(words[4])
                )
                yield found
        except (OSError, ValueError):
            continue


def find(entry: str, identity: str, port: str, root: Path) -> UsbDevice:
    """The device that an entry of a unit means.

    Args:
        identity: vendor and product, ``""`` for whatever is plugged in there.
        port: where it is plugged in, ``""`` for anywhere.

    Raises:
        HostDeviceError: it is not plugged in, or there are several.
    """
    found = [each for each in plugged_in(root) if identity in ("", each.identity) and port in ("", each.port)]
    what = " ".join(filter(None, ("no USB device", identity, "is plugged in", port and f"at {port}")))
    if not found:
        raise HostDeviceError(f"{entry}: {what}", hint="`lsusb` and `lsusb -t` show what there is")
    if len(found) > 1:
        ports = ", ".join(each.port for each in found)
        raise HostDeviceError(f"{entry}: USB device {identity} is plugged in at {ports}", hint="say at which port")
    return found[0]


def open_device(entry: str, identity: str, port: str, root: Path, dev: Path) -> int:
    """A descriptor of the device that an entry means, for QEMU.

    Raises:
        HostDeviceError: see `find`; or the node cannot be opened.
    """
    device = find(entry, identity, port, root)
    try:
        return os.open(device.node(dev), os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        words = f"could not open USB device {device.identity} at {device.port}: {os.strerror(error.errno or 0)}"
        raise HostDeviceError(f"{entry}: {words}") from error
