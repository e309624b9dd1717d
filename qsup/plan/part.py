"""What one part of a VM adds to its plan, and how values are written as QEMU arguments.

Decides: the spelling of arguments: JSON where QEMU takes it, else commas doubled, so that no value of a unit can become
an option of its own.
Must not: know what any device is for, or how the same is said to a QEMU that runs (`qsup.plan.hotplug`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from qsup.plan.spec import Argument, BackendPlan, DevicePlan, FdArgument, FdRequest, FileRequest, PartPlan

#: One JSON argument: the properties of a device, block node, network back end or object.
Properties = Mapping[str, object]

# Stands for a descriptor's number in JSON until `split_at_fd` cuts there; no text of a unit holds a control character.
_FD = "\x00fd"
#: Where a backend's properties hold its name, by kind.
_NAMES = {
    "fdset": "fdset-id",
    "blockdev": "node-name",
    "object": "id",
    "netdev": "id",
    "chardev": "id",
    "watchdog": "action",
}


@frozen(kw_only=True)
class Backend:
    """Something that a device stands on.

    Args:
        kind: ``fdset`` (a descriptor in a descriptor set), ``blockdev``, ``object``, ``netdev``, ``chardev`` (on a
            socket) or ``watchdog`` (what happens when one expires).
        properties: as QAPI has them; of an ``fdset`` its ``fdset-id``, of a ``chardev`` its ``id`` and whether it is
            a ``server``.
        fd: name of the descriptor that belongs to it, ``""`` for none; of a ``netdev`` it is its property ``fd``.
    """

    kind: str
    properties: Properties
    fd: str = ""

    @property
    def name(self) -> str:
        """What QEMU calls it."""
        return str(self.properties[_NAMES[self.kind]])

    def render(self) -> tuple[Argument, ...]:
        """As options."""
        if self.kind == "fdset":
            return ("-add-fd", FdArgument(before="fd=", fd=self.fd, after=f",set={self.name}"))
        if self.kind == "chardev":
            after = ",server=on,wait=off" if self.properties["server"] else ""
            return ("-chardev", FdArgument(before=f"socket,id={self.name},fd=", fd=self.fd, after=after))
        if self.kind == "watchdog":
            return ("-action", f"watchdog={self.name}")
        if self.fd:
            return fd_option(self.kind, self.properties, "fd", self.fd)
        return option(self.kind, self.properties)


@frozen(kw_only=True)
class Part:
    """The contribution of one disk, one NIC, one feature.

    Args:
        subject: what it is, for errors, such as ``disk "root"``.
        entry: of the unit that it serves, such as ``disk.root``; ``""`` for what belongs to the VM as a whole.
        arguments: options with their values, in order.
        backends: what the devices stand on, in order.
        devices: properties of the ``-device`` options that follow, controllers before what hangs on them.
        fds: descriptors it needs.
        files: files it needs by path.
        warnings: what the user should know, one sentence each.
    """

    subject: str
    entry: str = ""
    arguments: tuple[Argument, ...] = ()
    backends: tuple[Backend, ...] = field(default=())
    devices: tuple[Properties, ...] = ()
    fds: tuple[FdRequest, ...] = ()
    files: tuple[FileRequest, ...] = ()
    warnings: tuple[str, ...] = ()

    def render(self) -> tuple[Argument, ...]:
        """All its arguments, devices last."""
        backends = flatten([backend.render() for backend in self.backends])
        devices = flatten([option("device", device) for device in self.devices])
        return (*self.arguments, *backends, *devices)

    def plan(self) -> PartPlan:
        """What is remembered of it while the VM runs."""
        found = [BackendPlan(kind=backend.kind, name=backend.name) for backend in self.backends]
        return PartPlan(
            entry=self.entry,
            devices=tuple(map(_device_plan, self.devices)),
            # the descriptors of one set are one
            backends=tuple(dict.fromkeys(found)),
        )


def chardev_on_listener(name: str) -> Backend:
    """A character device on a listening socket that is handed over; its client may come and go."""
    return Backend(kind="chardev", properties={"id": name, "server": True}, fd=name)


def connected_chardev(name: str) -> Backend:
    """A character device on a connected socket that is handed over."""
    return Backend(kind="chardev", properties={"id": name, "server": False}, fd=name)


def _device_plan(device: Properties) -> DevicePlan:
    def text(key: str) -> str:
        return str(device.get(key, ""))

    scsi = [text(key) for key in ("channel", "scsi-id", "lun") if key in device]
    address = text("addr") or ":".join(scsi) or text("unit")
    return DevicePlan(id=text("id"), driver=text("driver"), bus=text("bus"), address=address)


def escape(text: str) -> str:
    """A value for a comma-separated option such as ``-name``: commas doubled (QEMU's ``opts_parse``)."""
    return text.replace(",", ",,")


def to_json(properties: Properties) -> str:
    """A JSON argument, on one line and in the order given."""
    return json.dumps(properties, separators=(",", ":"))


def option(name: str, properties: Properties) -> tuple[str, str]:
    """``-NAME JSON``."""
    return f"-{name}", to_json(properties)


def fd_option(name: str, properties: Properties, key: str, fd: str) -> tuple[str, FdArgument]:
    """``-NAME JSON`` whose string property ``key`` is the number of a descriptor.

    Args:
        fd: the `FdRequest`'s name.
    """
    before, after = to_json({**properties, key: _FD}).split(json.dumps(_FD)[1:-1])
    return f"-{name}", FdArgument(before=before, fd=fd, after=after)


def flatten(pairs: Sequence[Sequence[Argument]]) -> tuple[Argument, ...]:
    """Options one after the other."""
    return tuple(argument for pair in pairs for argument in pair)
