"""USB devices of the host that are pulled while a VM has them.

Decides: what is said of one that is not plugged in any more, or is so again.
Must not: give QEMU another device in its place: what it was handed is a node that is gone for good.

QEMU tells the guest that the device is gone, and nobody else: there is no event of it (hw/usb/host-libusb.c). So the
host's devices are looked at, every few seconds, by VMs that have any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import trio

from qsup.errors import HostDeviceError
from qsup.host.usb import UsbDevice, find
from qsup.instance.helpers import ATTACH_ANEW
from qsup.instance.life import Life
from qsup.unit.model import Unit
from qsup.unit.sections.devices import DeviceSection

#: Seconds between two looks.
_INTERVAL = 2.0


def usb_devices(unit: Unit) -> tuple[DeviceSection, ...]:
    """Those of a unit."""
    return tuple(device for device in unit.devices if device.type == "usb")


class Pulled:
    """What became of one VM's USB devices.

    Args:
        root: where sysfs is mounted.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: dict[str, UsbDevice] = {}
        self.troubles: dict[str, str] = {}

    def look(self, devices: Iterable[DeviceSection]) -> Mapping[str, str]:
        """Look at the host's devices. Reads files of the kernel's.

        Returns:
            What is new of those that were pulled, or are back, a sentence by entry.
        """
        wanted = {f"device.{device.id}": device for device in devices}
        self._seen = {entry: seen for entry, seen in self._seen.items() if entry in wanted}
        troubles = {entry: words for entry, device in wanted.items() if (words := self._judge(entry, device))}
        new = {entry: words for entry, words in troubles.items() if self.troubles.get(entry) != words}
        self.troubles = troubles
        return new

    def _judge(self, entry: str, device: DeviceSection) -> str:
        try:
            now = find(entry, device.identity, device.port, self._root)
        except HostDeviceError as error:
            if entry in self._seen and self._is_there(self._seen[entry]):
                return ""  # another of its kind has come
            return f"{error.message}; the guest has it no more"
        if self._seen.setdefault(entry, now) == now and entry not in self.troubles:
            return ""
        return f"{entry}: USB device {now.identity} is back at {now.port}; {ATTACH_ANEW}"

    def _is_there(self, device: UsbDevice) -> bool:
        try:
            return find("", device.identity, device.port, self._root) == device
        except HostDeviceError:
            return False


async def watch(life: Life, root: Path, tell: Callable[[str, str], None]) -> None:
    """Tell of each USB device of a VM that is pulled, until it has none.

    Args:
        root: where sysfs is mounted.
        tell: takes the entry and what became of it.
    """
    pulled = Pulled(root)
    while devices := usb_devices(life.unit):
        new = await trio.to_thread.run_sync(partial(pulled.look, devices))
        life.hardware.troubles = dict(pulled.troubles)
        for entry, words in new.items():
            tell(entry, words)
        await trio.sleep(_INTERVAL)
    life.hardware.troubles = {}
