"""What the entries of ``[[device]]`` have on the host, at a VM's start or later: sockets, programs that
serve them, and devices of the host.

Decides: where sockets are, that a program is connected before it is started, and that all goes with its device.
Must not: keep a descriptor: whoever asked closes it once QEMU has its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import structlog
import trio

from qsup.errors import HostDeviceError, from_oserror
from qsup.host import vhostuser
from qsup.host.image import find_directory
from qsup.host.pci import Binding
from qsup.host.process import ANY_AMOUNT
from qsup.host.rundir import InstanceDirectory
from qsup.host.usb import open_device
from qsup.instance.helpers import Helpers
from qsup.instance.services import Services
from qsup.plan.others import channel_socket
from qsup.plan.spec import ConnectFd, FdRequest, ListenerFd, PciTaken, ShareFd, UsbFd
from qsup.qmp.dial import connect_unix
from qsup.unit.effective import machine_memory
from qsup.unit.model import Unit
from qsup.unit.sections.devices import DeviceSection

_log = structlog.get_logger()

#: Seconds for a device to change its driver; a network card's may wait for its firmware.
_DRIVER_TIMEOUT = 15.0
#: Bytes of devices' own memory that are mapped beside the guest's, as libvirt reckons (qemuDomainGetMemLockLimitBytes).
_DEVICE_MEMORY = 1 << 30


def lockable_memory(requests: Sequence[FdRequest], unit: Unit) -> int:
    """Bytes that QEMU must be able to lock: a device of the host may write to all of the guest's memory, and more.

    All that may come counts: a module that QEMU cannot lock is its end (vfio_listener_region_add, hw_error in
    hw/vfio/common.c). One that locks itself locks all that it maps, its stacks and buffers too (mlockall(2)).
    """
    if unit.memory.lock:
        return ANY_AMOUNT
    most = max(machine_memory(unit), unit.memory.size, unit.memory.max)
    return most + _DEVICE_MEMORY if any(isinstance(each, PciTaken) for each in requests) else 0


def reserve_pci(requests: Sequence[FdRequest], name: str, services: Services) -> tuple[Binding, ...]:
    """Claim the PCI devices of the host that a VM is to get, which go on record before `open_outside` takes them.

    Raises:
        HostDeviceError, UnsupportedError: one cannot be had; none is claimed then.
    """
    wanted = {request.entry: request.address for request in requests if isinstance(request, PciTaken)}
    return services.passthrough.reserve(wanted, name)


async def open_outside(
    requests: Sequence[FdRequest],
    directory: InstanceDirectory,
    services: Services,
    helpers: Helpers,
    numbers: dict[str, int],
    uid: int | None,
) -> None:
    """Make what devices need of the host: sockets, connections to programs, devices that nobody else drives.

    Args:
        helpers: gets the programs that are started.
        uid: whom QEMU runs as, ``None`` for the daemon's own user.
        numbers: gets each descriptor by its name; those made before a failure are in it, and to be closed.

    Raises:
        QsupError: the first that cannot be had.
    """
    for request in requests:
        match request:
            case ListenerFd():
                numbers[request.name] = directory.bind_listener(request.name)
            case ShareFd():
                numbers[request.name] = await _share(request, directory, services.layout.pools, helpers)
            case UsbFd():
                sysfs = services.passthrough.sysfs
                work = partial(open_device, request.entry, request.identity, request.port, sysfs.root, sysfs.dev)
                numbers[request.name] = await trio.to_thread.run_sync(work)
            case ConnectFd():
                numbers[request.name] = _connect(request)
            case PciTaken():
                for binding in services.passthrough.held(directory.path.name, request.entry):
                    await _drive(partial(services.passthrough.bind, binding, uid))


def _connect(request: ConnectFd) -> int:
    try:
        connection = connect_unix(Path(request.path))
    except OSError as error:
        words = f"could not connect to {request.path}: {os.strerror(error.errno or 0)}"
        hint = "the program that listens there must run before"
        raise HostDeviceError(f"{request.entry}: {words}", hint=hint) from error
    connection.setblocking(True)  # as QEMU expects it
    return connection.detach()


async def _drive(change: Callable[[], None]) -> None:
    """Change a device's driver, in a thread: the one that has it may take its time to let go."""
    with trio.move_on_after(_DRIVER_TIMEOUT) as scope:
        await trio.to_thread.run_sync(change, abandon_on_cancel=True)
    if scope.cancelled_caught:
        raise HostDeviceError(f"the kernel has not changed the driver of a PCI device within {_DRIVER_TIMEOUT:g} s")


async def _share(request: ShareFd, directory: InstanceDirectory, pools: Sequence[Path], helpers: Helpers) -> int:
    """Start a file server that is connected already, so that it ends when nobody has the other end."""
    program = vhostuser.find_file_server()
    path = await trio.to_thread.run_sync(partial(find_directory, request.path, pools))
    listener = directory.bind_listener(request.name)
    try:
        try:
            connection = connect_unix(directory.path / request.name)
        except OSError as error:
            raise from_oserror(error, f"could not connect {directory.path / request.name}") from error
        try:
            command = vhostuser.file_server(program, str(path), listener, read_only=request.read_only)
            await helpers.start(request.entry, command, (listener,))
        except BaseException:
            connection.close()
            raise
    finally:
        os.close(listener)
        directory.unlink(request.name)
    connection.setblocking(True)  # as QEMU expects it
    return connection.detach()


def socket_of(device: DeviceSection, directory: InstanceDirectory) -> str:
    """Where programs of the host connect to a device, ``""`` for nowhere."""
    return str(directory.path / channel_socket(device.id)) if device.type == "serial" else ""


async def release_pci(name: str, services: Services, entry: str = "") -> None:
    """Give back the PCI devices of the host that a VM has, which QEMU must have let go of; takes a bounded time.

    Raises:
        HostDeviceError: the kernel takes too long; it goes on with it.
    """
    if services.passthrough.held(name, entry):
        with trio.CancelScope(shield=True):
            await _drive(partial(services.passthrough.release, name, entry))


async def release(entry: str, directory: InstanceDirectory, services: Services, helpers: Helpers) -> None:
    """Give back what an entry has on the host, which QEMU does not have any more; takes a bounded time."""
    section, _, name = entry.partition(".")
    if section == "device":
        with trio.CancelScope(shield=True):
            await helpers.end(entry)
        try:
            await release_pci(directory.path.name, services, entry)
        except HostDeviceError as error:
            # the VM is rid of it all the same, and its detach is over
            _log.error("could not give a device of the host back in time", entry=entry, why=error.message)
        directory.unlink(channel_socket(name))
