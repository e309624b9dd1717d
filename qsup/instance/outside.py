"""What the entries of ``[[device]]`` have on the host, at a VM's start or later: sockets, and programs that serve them.

Decides: where sockets are, that a program is connected before it is started, and that all goes with its device.
Must not: keep a descriptor: whoever asked closes it once QEMU has its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from qsup.errors import from_oserror
from qsup.host import vhostuser
from qsup.host.image import find_directory
from qsup.host.rundir import InstanceDirectory
from qsup.instance.helpers import Helpers
from qsup.plan.others import channel_socket
from qsup.plan.spec import FdRequest, ListenerFd, ShareFd
from qsup.qmp.dial import connect_unix
from qsup.unit.model import DeviceSection


async def open_outside(
    requests: Sequence[FdRequest],
    directory: InstanceDirectory,
    pools: Sequence[Path],
    helpers: Helpers,
    numbers: dict[str, int],
) -> None:
    """Make what devices need of the host: sockets that QEMU is to listen on, and connections to programs.

    Args:
        pools: directories that shared ones may be in.
        helpers: gets the programs that are started.
        numbers: gets each descriptor by its name; those made before a failure are in it, and to be closed.

    Raises:
        QsupError: the first that cannot be had.
    """
    for request in requests:
        match request:
            case ListenerFd():
                numbers[request.name] = directory.bind_listener(request.name)
            case ShareFd():
                numbers[request.name] = await _share(request, directory, pools, helpers)


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


async def release(entry: str, directory: InstanceDirectory, helpers: Helpers) -> None:
    """Give back what an entry has on the host, which QEMU does not have any more; takes a bounded time."""
    section, _, name = entry.partition(".")
    if section == "device":
        with trio.CancelScope(shield=True):
            await helpers.end(entry)
        directory.unlink(channel_socket(name))
