"""The devices of ``[[device]]``: what each type is made of.

Decides: the properties of each, and what it stands on.
Must not: decide where it hangs (`qsup.plan.board` at a start, `qsup.plan.attach` later), or make any of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import frozen

from qsup.errors import UnsupportedError
from qsup.plan.board import Board, Place
from qsup.plan.identity import derive_mac
from qsup.plan.part import Backend, Part, Properties, chardev_on_listener, connected_chardev
from qsup.plan.spec import Capabilities, ConnectFd, ListenerFd, PciTaken, ShareFd, UsbFd
from qsup.unit.effective import channel_name, mount_tag
from qsup.unit.families import needs_slot
from qsup.unit.model import Unit
from qsup.unit.sections.devices import DeviceSection


@frozen(kw_only=True)
class Tools:
    """What the plan of a device needs to know besides its entry.

    Args:
        uuid: from which MAC addresses derive.
        fdsets: numbers for descriptor sets.
    """

    board: Board
    capabilities: Capabilities
    uuid: str
    fdsets: Iterator[int]


def device_parts(unit: Unit, tools: Tools) -> list[Part]:
    """All of a unit's; those in slots are numbered among themselves.

    Raises:
        UnsupportedError: this machine or this QEMU cannot have one of them.
    """
    slots = {device.id: index for index, device in enumerate(filter(needs_slot, unit.devices))}
    return [device_part(device, _place(device, slots, tools.board), tools) for device in unit.devices]


def _place(device: DeviceSection, slots: Mapping[str, int], board: Board) -> Place:
    if device.id in slots:
        return board.place_one_of("device", slots[device.id])
    return place_on_bus(device.type)


def place_on_bus(controller: str) -> Place:
    """Where one goes that needs no slot."""
    return Place(properties={"bus": f"{controller}.0"})


def device_part(device: DeviceSection, place: Place, tools: Tools) -> Part:
    """One entry of ``[[device]]``.

    Raises:
        UnsupportedError: this machine or this QEMU cannot have it.
    """
    return _TYPES[device.type](device, place, tools)


def _subject(device: DeviceSection) -> str:
    return f"device {device.id!r}"


def _rng(device: DeviceSection, place: Place, tools: Tools) -> Part:
    source = _random_source(f"rng-{device.id}", tools.capabilities)
    limit = {"max-bytes": device.max_bytes, "period": round(device.period * 1000)} if device.max_bytes else {}
    name = {"driver": tools.board.virtio_device("rng"), "id": f"device-{device.id}"}
    return Part(
        subject=_subject(device),
        entry=f"device.{device.id}",
        backends=(Backend(kind="object", properties=source),),
        devices=(*place.ports, {**name, **place.properties, "rng": source["id"], **limit}),
    )


def _random_source(name: str, capabilities: Capabilities) -> Properties:
    if "rng-builtin" in capabilities.objects:
        return {"qom-type": "rng-builtin", "id": name}
    return {"qom-type": "rng-random", "id": name, "filename": "/dev/urandom"}


def _watchdog(device: DeviceSection, place: Place, tools: Tools) -> Part:
    if not tools.board.has_pci:
        raise UnsupportedError(f"{_subject(device)}: a {tools.board.family} machine has no PCI bus for a watchdog")
    timer = {"driver": "i6300esb", "id": f"device-{device.id}", **place.properties}
    return Part(
        subject=_subject(device),
        entry=f"device.{device.id}",
        # QEMU has one action for all watchdogs of a VM, and it must stand before the timer can expire
        backends=(Backend(kind="watchdog", properties={"action": device.action}),),
        devices=(*place.ports, timer),
    )


def channel_socket(device: str) -> str:
    """The name of a serial channel's socket, and of QEMU's character device."""
    return f"channel-{device}"


def _serial(device: DeviceSection, place: Place, tools: Tools) -> Part:
    socket = channel_socket(device.id)
    port = {"driver": "virtserialport", "id": f"device-{device.id}", **place.properties}
    return Part(
        subject=_subject(device),
        entry=f"device.{device.id}",
        backends=(chardev_on_listener(socket),),
        devices=({**port, "chardev": socket, "name": channel_name(device)},),
        fds=(ListenerFd(name=socket),),
    )


def _share(device: DeviceSection, place: Place, tools: Tools) -> Part:
    name, entry = f"share-{device.id}", f"device.{device.id}"
    driver = {"driver": tools.board.virtio_device("fs").replace("virtio", "vhost-user"), "id": f"device-{device.id}"}
    return Part(
        subject=_subject(device),
        entry=entry,
        backends=(connected_chardev(name),),
        devices=(*place.ports, {**driver, **place.properties, "chardev": name, "tag": mount_tag(device)}),
        fds=(ShareFd(name=name, entry=entry, path=device.path, read_only=device.read_only),),
    )


def _usb(device: DeviceSection, place: Place, tools: Tools) -> Part:
    name, entry, number = f"usb-{device.id}", f"device.{device.id}", next(tools.fdsets)
    stick = {"driver": "usb-host", "id": f"device-{device.id}", **place.properties}
    return Part(
        subject=_subject(device),
        entry=entry,
        backends=(Backend(kind="fdset", properties={"fdset-id": number}, fd=name),),
        devices=({**stick, "hostdevice": f"/dev/fdset/{number}"},),
        fds=(UsbFd(name=name, entry=entry, identity=device.identity, port=device.port),),
    )


def _pci(device: DeviceSection, place: Place, tools: Tools) -> Part:
    if not tools.board.has_pci:
        raise UnsupportedError(f"{_subject(device)}: a {tools.board.family} machine has no PCI bus")
    entry = f"device.{device.id}"
    card = {"driver": "vfio-pci", "id": f"device-{device.id}", **place.properties, "host": device.address}
    return Part(
        subject=_subject(device),
        entry=entry,
        devices=(*place.ports, card),
        fds=(PciTaken(name=f"pci-{device.id}", entry=entry, address=device.address),),
    )


def _vhost_user(device: DeviceSection, place: Place, tools: Tools) -> Part:
    name, entry = f"vhost-{device.id}", f"device.{device.id}"
    backends, board = [connected_chardev(name)], tools.board
    card: dict[str, object] = {"id": f"device-{device.id}", **place.properties}
    if device.model == "blk":
        card = {"driver": board.virtio_device("blk").replace("virtio", "vhost-user"), **card, "chardev": name}
    else:
        backends.append(Backend(kind="netdev", properties={"type": "vhost-user", "id": name, "chardev": name}))
        mac = derive_mac(tools.uuid, device.id)
        card = {"driver": board.virtio_device("net"), **card, "netdev": name, "mac": mac}
    return Part(
        subject=_subject(device),
        entry=entry,
        backends=tuple(backends),
        devices=(*place.ports, card),
        fds=(ConnectFd(name=name, entry=entry, path=device.socket),),
    )


_TYPES = {
    "rng": _rng,
    "watchdog": _watchdog,
    "serial": _serial,
    "share": _share,
    "usb": _usb,
    "pci": _pci,
    "vhost-user": _vhost_user,
}
