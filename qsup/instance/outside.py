"""What the entries of ``[[device]]`` have on the host, at a VM's start or later: sockets that programs connect to.

Decides: where they are, and that they go with their device.
Must not: keep a descriptor: whoever asked closes it once QEMU has its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from qsup.host.rundir import InstanceDirectory
from qsup.plan.others import channel_socket
from qsup.plan.spec import FdRequest, ListenerFd
from qsup.unit.model import DeviceSection


def open_listeners(requests: Sequence[FdRequest], directory: InstanceDirectory, numbers: dict[str, int]) -> None:
    """Bind the sockets that QEMU is to listen on.

    Args:
        numbers: gets each descriptor by its name; those made before a failure are in it, and to be closed.

    Raises:
        HostError: the kernel refused one.
    """
    for request in requests:
        if isinstance(request, ListenerFd):
            numbers[request.name] = directory.bind_listener(request.name)


def socket_of(device: DeviceSection, directory: InstanceDirectory) -> str:
    """Where programs of the host connect to a device, ``""`` for nowhere."""
    return str(directory.path / channel_socket(device.id)) if device.type == "serial" else ""


def release(entry: str, directory: InstanceDirectory) -> None:
    """Give back what an entry has on the host, which QEMU does not have any more."""
    section, _, name = entry.partition(".")
    if section == "device":
        directory.unlink(channel_socket(name))
