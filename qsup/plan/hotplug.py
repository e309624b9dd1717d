"""What a VM that runs can be given and can give back: the QMP commands, in order, with what undoes each. Pure.

Decides: what is done after what, and what is left to remove once a device is gone.
Must not: send anything (`qsup.instance.hotplug`), or decide what comes and where (`qsup.plan.attach`).

A device that the guest drives goes when the guest lets it go, so a removal is two halves: the request (``device_del``),
and, once QEMU says that the device is gone, the removal of what it stood on. The order is never the other way round: a
back end that goes first leaves the guest with a dead device (QAPI ``device_del``, ``netdev_del``).
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from qsup.errors import UnsupportedError
from qsup.plan.board import BOARDS
from qsup.plan.inventory import ROOT_PORT
from qsup.plan.part import Backend, Part, Properties
from qsup.plan.spec import BackendPlan, DevicePlan, PartPlan

_ADD = {
    "fdset": "add-fd",
    "blockdev": "blockdev-add",
    "object": "object-add",
    "netdev": "netdev_add",
    "chardev": "chardev-add",
    "watchdog": "watchdog-set-action",
}
_REMOVE: dict[str, Callable[[str], tuple[str, Properties]]] = {
    "fdset": lambda name: ("remove-fd", {"fdset-id": int(name)}),
    "blockdev": lambda name: ("blockdev-del", {"node-name": name}),
    "object": lambda name: ("object-del", {"id": name}),
    "netdev": lambda name: ("netdev_del", {"id": name}),
    "chardev": lambda name: ("chardev-remove", {"id": name}),
    "watchdog": lambda name: ("watchdog-set-action", {"action": "reset"}),  # as QEMU begins
}


@frozen(kw_only=True)
class Command:
    """One QMP command.

    Args:
        fd: name of the descriptor that travels with it, ``""`` for none.
        makes: what QEMU has once it has succeeded.
    """

    command: str
    arguments: Properties
    fd: str = ""
    makes: BackendPlan | DevicePlan | None = None


def backend_steps(part: Part) -> list[Command]:
    """How QEMU gets what a part's devices stand on, in order; what comes upon something fails where that has."""
    return [_add(backend) for backend in part.backends]


def device_steps(part: Part) -> list[Command]:
    """The same of its devices, each after the one it may hang on."""
    planned = part.plan().devices
    return [
        Command(command="device_add", arguments=device, makes=plan)
        for device, plan in zip(part.devices, planned, strict=True)
    ]


def _add(backend: Backend) -> Command:
    made = BackendPlan(kind=backend.kind, name=backend.name)
    arguments = dict(backend.properties)
    if backend.kind == "chardev":
        arguments = {"id": backend.name, "backend": _socket(backend)}
    elif backend.fd and backend.kind != "fdset":
        arguments["fd"] = backend.fd  # as it is called once `getfd` has brought it
    return Command(command=_ADD[backend.kind], arguments=arguments, fd=backend.fd, makes=made)


def _socket(backend: Backend) -> Properties:
    """A character device on a socket, as QAPI's ChardevBackend has it."""
    data: dict[str, object] = {
        "addr": {"type": "fd", "data": {"str": backend.fd}},
        "server": backend.properties["server"],
    }
    if data["server"]:
        data["wait"] = False
    return {"type": "socket", "data": data}


def removal(made: BackendPlan | DevicePlan) -> Command:
    """What takes one thing away again; a device may go later than the answer to it."""
    if isinstance(made, DevicePlan):
        return Command(command="device_del", arguments={"id": made.id})
    command, arguments = _REMOVE[made.kind](made.name)
    return Command(command=command, arguments=arguments)


def check_removable(part: PartPlan, family: str) -> None:
    """See that QEMU can take a part out of a machine that runs, if its guest lets it go.

    Raises:
        UnsupportedError: what it hangs on takes no hotplug ("Bus '...' does not support hotplugging").
    """
    board = BOARDS[family]
    for device in unplugged(part):
        if not board.has_pci:
            why = f"a {family} machine gives nothing back while it runs"
        elif device.driver in ("ide-hd", "ide-cd"):
            why = f"{part.entry} is on a SATA or IDE bus, which lets nothing go"
        elif family == "q35" and device.bus == board.root:
            why = f"{part.entry} is on the root bus {board.root}, which lets nothing go"
        else:
            continue
        raise UnsupportedError(f"{why} while the VM runs", hint="it is gone at the next start")


def unplugged(part: PartPlan) -> tuple[DevicePlan, ...]:
    """The devices of a part that can go, the last first; its port stays for another."""
    return tuple(device for device in reversed(part.devices) if device.driver != ROOT_PORT)
