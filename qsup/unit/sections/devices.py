"""``[[nic]]``, ``[[device]]``, ``[console]``, ``[agent]`` and ``[display]``: what else a guest has.

Decides: their keys. Must not: know where a device goes (`qsup.plan.board`).
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from qsup.unit import kinds
from qsup.unit.keys import Applies, key, present
from qsup.unit.kinds import Forward

NIC_MODELS = ("virtio", "e1000", "e1000e", "rtl8139")


@frozen(kw_only=True)
class NicSection:
    """``[[nic]]``: a network interface."""

    id: str = key(kinds.NAME, "Its name within the VM; the MAC derives from it and from the VM's UUID.")
    present: bool = present()
    type: str = key(
        kinds.choice("user", "tap", "bridge"),
        "`user`: behind the host's own address, no privilege needed. `tap`: a tap made by the daemon on `bridge`, "
        "which must exist. `bridge`: the same, and the bridge is made when it is absent and removed when its "
        "last VM leaves.",
        default="user",
        qemu="-netdev",
    )
    model: str = key(
        kinds.choice(*NIC_MODELS),
        "The card the guest sees.",
        default="virtio",
        qemu="virtio-net, e1000, e1000e, rtl8139",
    )
    mac: str = key(
        kinds.optional(kinds.MAC),
        "Its MAC address; by default derived, and stable.",
        default="",
        qemu="mac",
    )
    bridge: str = key(
        kinds.optional(kinds.INTERFACE),
        "The bridge that a `tap` or `bridge` NIC joins.",
        default="",
    )
    forward: tuple[Forward, ...] = key(
        kinds.list_of(kinds.FORWARD),
        "Host ports that lead into the guest (`user`): `[ADDRESS:]HOST-PORT:GUEST-PORT[/tcp|/udp]`, on 127.0.0.1 "
        "unless said otherwise.",
        default=(),
        qemu="hostfwd",
        applies=Applies.LIVE,
    )
    link: str = key(
        kinds.choice("up", "down"),
        "Whether the card is plugged in, as the guest sees it.",
        default="up",
        qemu="set_link",
        applies=Applies.LIVE,
    )
    bootindex: int = key(
        kinds.integer(-1, 1000),
        "Place in the boot order; -1: not in it.",
        default=-1,
        qemu="bootindex",
        applies=Applies.RESET,
        only="of a card that is in it, as others have no boot ROM",
        holds=lambda before, after: before.bootindex >= 0,
    )


#: The name of the channel that qemu-guest-agent looks for.
AGENT_PORT = "org.qemu.guest_agent.0"


#: What each type of device has besides an id and a type.
DEVICE_KEYS: Mapping[str, tuple[str, ...]] = {
    "rng": ("max-bytes", "period"),
    "watchdog": ("action",),
    "serial": ("name",),
    "share": ("path", "tag", "read-only"),
    "usb": ("identity", "port"),
    "pci": ("address",),
    "vhost-user": ("socket", "model"),
}


#: Types whose programs read and write the guest's memory themselves.
SHARING_DEVICES = ("share", "vhost-user")


@frozen(kw_only=True)
class DeviceSection:
    """``[[device]]``: any other device."""

    id: str = key(kinds.NAME, "Its name within the VM.")
    present: bool = present()
    type: str = key(
        kinds.choice(*DEVICE_KEYS),
        "`rng`: a virtio random number generator fed by the host. `watchdog`: a timer that the guest must keep from "
        "expiring. `serial`: a channel by which programs of the host and of the guest talk. `share`: a directory of "
        "the host, by virtiofs. `usb`, `pci`: a device of the host. `vhost-user`: a device that another program of the "
        "host is, such as SPDK's or DPDK's.",
        qemu="virtio-rng, i6300esb, virtserialport, vhost-user-fs, usb-host, vfio-pci, vhost-user-blk, vhost-user",
    )
    max_bytes: int = key(
        kinds.size(0, 1 << 62),
        "`rng`: how much the guest gets within each `period`; 0B: no limit.",
        default=0,
        qemu="max-bytes",
    )
    period: float = key(
        kinds.duration(0.001, 86400.0), "`rng`: the time over which `max-bytes` counts.", default=1.0, qemu="period"
    )
    action: str = key(
        kinds.choice("reset", "shutdown", "poweroff", "pause", "inject-nmi", "none"),
        "`watchdog`: what happens when it expires. `reset`: the guest is reset. `shutdown`: the power button is "
        "pressed. `poweroff`: the VM ends at once. `pause`: the guest stands still, to be looked at. `inject-nmi`: the "
        "guest gets an NMI. `none`: it is told, and no more. `[service] restart` counts the middle three as failures.",
        default="reset",
        qemu="watchdog-set-action",
        applies=Applies.LIVE,
    )
    name: str = key(
        kinds.optional(kinds.NAME),
        "`serial`: what the guest finds it by, as `/dev/virtio-ports/NAME`; by default its id. The host's end is a "
        "Unix socket, whose path the VM's devices show while it runs; one program at a time is connected.",
        default="",
        qemu="name",
    )
    path: str = key(
        kinds.STRING, "`share`: the directory; relative to the first pool, absolute inside one.", default=""
    )
    tag: str = key(
        kinds.optional(kinds.NAME),
        "`share`: what the guest mounts it by, `mount -t virtiofs TAG /mnt`; by default its id.",
        default="",
        qemu="tag",
    )
    read_only: bool = key(kinds.BOOLEAN, "`share`: the guest cannot write to it.", default=False)
    identity: str = key(
        kinds.optional(kinds.USB_IDENTITY),
        "`usb`: which device, by vendor and product as `lsusb` shows them, such as `046d:c52b`, if there is just one.",
        default="",
    )
    port: str = key(
        kinds.optional(kinds.USB_PORT),
        "`usb`: where it is plugged in, as `/sys/bus/usb/devices` calls it: the bus and the ports on the way, such as "
        "`1-2.3`.",
        default="",
    )
    address: str = key(
        kinds.optional(kinds.PCI_ADDRESS),
        "`pci`: where it is on the host, such as `0000:03:00.0` (`lspci -D`). It is taken from its driver, and given "
        "back when the VM has ended or it is detached. All of its IOMMU group that the host uses must be the VM's.",
        default="",
        qemu="host",
    )
    socket: str = key(
        kinds.STRING,
        "`vhost-user`: the Unix socket that the program listens on, absolute. QEMU gets a connection to it, once.",
        default="",
        qemu="chardev",
    )
    model: str = key(
        kinds.choice("blk", "net"), "`vhost-user`: what the guest sees, a disk or a network card.", default="blk"
    )


@frozen(kw_only=True)
class ConsoleSection:
    """``[console]``: the text console that `qsupctl console` attaches to."""

    type: str = key(
        kinds.choice("serial", "virtio", "none"),
        "`serial`: the first UART. `virtio`: hvc0.",
        default="serial",
        qemu="isa-serial, virtconsole",
    )


@frozen(kw_only=True)
class AgentSection:
    """``[agent]``: the guest agent's channel."""

    enabled: bool = key(
        kinds.BOOLEAN, "Give the guest a channel for qemu-guest-agent.", default=True, qemu="org.qemu.guest_agent.0"
    )


@frozen(kw_only=True)
class DisplaySection:
    """``[display]``: the screen."""

    type: str = key(
        kinds.choice("none", "vnc"),
        "`vnc`: viewers come through the API's Unix socket; QEMU itself listens nowhere.",
        default="none",
        qemu="-vnc",
    )
    video: str = key(
        kinds.optional(kinds.choice("none", "std", "virtio", "qxl")),
        "The graphics card; by default `std` with a display and none without.",
        default="",
        qemu="VGA, virtio-vga, qxl-vga",
    )
    tablet: bool = key(
        kinds.BOOLEAN, "With a display: a USB tablet, so that the pointer follows.", default=True, qemu="usb-tablet"
    )
