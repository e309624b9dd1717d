"""What a VM has besides disks, NICs and what its unit calls devices: console, agent, balloon, screen, USB.

Decides: which devices these are on each board.
Must not: decide where they hang (`qsup.plan.board`).
"""

from __future__ import annotations

from qsup.errors import UnsupportedError
from qsup.plan.board import Board
from qsup.plan.part import Part, chardev_on_listener
from qsup.plan.spec import Argument, Capabilities, ListenerFd
from qsup.unit.effective import (
    effective_video,
)
from qsup.unit.families import FAMILIES
from qsup.unit.model import Unit
from qsup.unit.sections.devices import AGENT_PORT

_VIDEO = {"std": "VGA", "virtio": "virtio-vga", "qxl": "qxl-vga"}


def listener_chardev(name: str) -> tuple[Argument, ...]:
    """A character device on a listening socket that is handed over; its client may come and go."""
    return chardev_on_listener(name).render()


def monitor_part() -> Part:
    """The QMP monitor."""
    return Part(
        subject="the monitor",
        arguments=(*listener_chardev("qmp"), "-mon", "chardev=qmp,mode=control"),
        fds=(ListenerFd(name="qmp"),),
    )


def console_part(unit: Unit) -> Part:
    """The text console; a virtio console needs `serial_controller`."""
    if unit.console.type == "none":
        return Part(subject="[console]")
    model = {"serial": "isa-serial", "virtio": "virtconsole"}[unit.console.type]
    bus = {"bus": "serial.0"} if unit.console.type == "virtio" else {}
    return Part(
        subject="[console]",
        arguments=listener_chardev("console"),
        devices=({"driver": model, "id": "console", **bus, "chardev": "console"},),
        fds=(ListenerFd(name="console"),),
    )


def agent_part(unit: Unit) -> Part:
    """The guest agent's channel; it needs `serial_controller`."""
    if not unit.agent.enabled:
        return Part(subject="[agent]")
    port = {"driver": "virtserialport", "id": "agent", "bus": "serial.0", "chardev": "agent", "name": AGENT_PORT}
    return Part(
        subject="[agent]",
        arguments=listener_chardev("agent"),
        devices=(port,),
        fds=(ListenerFd(name="agent"),),
    )


def serial_controller(unit: Unit, board: Board) -> Part:
    """The controller of virtio consoles and channels, where there are any."""
    channels = any(device.type == "serial" for device in unit.devices)
    if unit.console.type != "virtio" and not unit.agent.enabled and not channels:
        return Part(subject="virtio serial ports")
    controller = {"driver": board.virtio_device("serial"), "id": "serial", **board.place("serial")}
    return Part(subject="virtio serial ports", devices=(controller,))


def balloon_part(unit: Unit, board: Board, capabilities: Capabilities) -> Part:
    """The memory balloon; a guest short of memory takes back what it gave."""
    device: dict[str, object] = {"driver": board.virtio_device("balloon"), "id": "balloon", **board.place("balloon")}
    device["deflate-on-oom"] = True
    if "free-page-reporting" in capabilities.schema_features:
        device["free-page-reporting"] = True
    return Part(subject="[memory] balloon", devices=(device,) if unit.memory.balloon else ())


def panic_part(capabilities: Capabilities) -> Part:
    """The device through which a guest's kernel reports a panic; the guest then stands still to be looked at."""
    seen = "pvpanic" in capabilities.devices
    device = {"driver": "pvpanic", "id": "panic"}
    return Part(
        subject="panic reports",
        arguments=("-action", "panic=pause"),
        devices=(device,) if seen else (),
        warnings=() if seen else ("a panic of the guest's kernel will not be noticed: this QEMU has no pvpanic",),
    )


def display_part(unit: Unit, board: Board) -> Part:
    """The screen. VNC is served on connections that the daemon hands over by ``add_client``: QEMU listens nowhere.

    Raises:
        UnsupportedError: a board without graphics.
    """
    model = effective_video(unit)
    if unit.display.type == "vnc" and not FAMILIES[board.family].has_graphics:
        raise UnsupportedError(f"[display]: a {board.family} machine has no graphics, so there is nothing to show")
    card = () if model == "none" else ({"driver": _VIDEO[model], "id": "video", **board.place("video")},)
    # viewers decide among themselves who types; none of them is thrown out by the next
    vnc = ("-vnc", "none,share=force-shared") if unit.display.type == "vnc" else ()
    return Part(subject="[display]", arguments=("-display", "none", *vnc), devices=card)


def usb_part(unit: Unit, board: Board, *, needed: bool) -> Part:
    """The USB controller, where anything is on it, and the tablet.

    Args:
        needed: whether a disk or a device is on it.
    """
    tablet = unit.display.type != "none" and unit.display.tablet
    if not tablet and not needed:
        return Part(subject="USB")
    # QEMU's limit of ports, so that the number of devices is the only one
    controller = {"driver": "qemu-xhci", "id": "usb", **board.place("usb"), "p2": 15, "p3": 15}
    pointer = ({"driver": "usb-tablet", "id": "tablet", "bus": "usb.0"},) if tablet else ()
    return Part(subject="USB", devices=(controller, *pointer))
