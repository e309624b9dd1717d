"""Network interfaces: the card the guest sees and what it is plugged into.

Decides: card models, MAC addresses, port forwards, and where the cards hang.
Must not: create taps or bridges, or open ports.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from attrs import frozen

from qsup.errors import UnsupportedError
from qsup.plan.board import Board, Place
from qsup.plan.disks import boot_property
from qsup.plan.identity import derive_mac
from qsup.plan.part import Backend, Part, Properties
from qsup.plan.spec import Capabilities, NicPlan, TapFd
from qsup.unit.families import FAMILIES, nic_kind
from qsup.unit.sections.devices import NicSection


@frozen(kw_only=True)
class NicPart:
    """One NIC: its arguments, and what is known of it afterwards."""

    part: Part
    plan: NicPlan


def nic_parts(nics: Sequence[NicSection], uuid: str, board: Board, capabilities: Capabilities) -> list[NicPart]:
    """Plan all NICs, in the order of the unit.

    Args:
        uuid: the VM's, from which the MAC addresses derive.

    Raises:
        UnsupportedError: a NIC that this board or this QEMU cannot have.
    """
    counts: dict[str, Iterator[int]] = {}
    parts = []
    for nic in nics:
        role = nic_role(nic, board)
        place = board.place_one_of(role, next(counts.setdefault(role, itertools.count())))
        parts.append(nic_part(nic, place, uuid, board, capabilities))
    return parts


def nic_role(nic: NicSection, board: Board) -> str:
    """Which slots of the board its card takes."""
    return nic_kind(nic, board.several)


def nic_part(nic: NicSection, place: Place, uuid: str, board: Board, capabilities: Capabilities) -> NicPart:
    """Plan one NIC at its place.

    Args:
        uuid: the VM's, from which its MAC address derives unless it has one.

    Raises:
        UnsupportedError: a NIC that this board or this QEMU cannot have.
    """
    mac = nic.mac or derive_mac(uuid, nic.id)
    if nic.model not in FAMILIES[board.family].nic_models:
        raise UnsupportedError(f"nic {nic.id!r}: a {board.family} machine has no {nic.model} NICs")
    if nic.type == "user" and "netdev-user" not in capabilities.schema_features:
        raise UnsupportedError(f"nic {nic.id!r}: this QEMU was built without user networking (slirp)")
    device: dict[str, object] = {
        "driver": board.virtio_device("net") if nic.model == "virtio" else nic.model,
        "id": f"nic-{nic.id}",
        **place.properties,
        "netdev": f"nic-{nic.id}",
        "mac": mac,
    }
    if nic.bootindex >= 0:
        device |= boot_property(nic.bootindex)
    elif board.has_pci:
        # without its boot ROM the firmware has nothing to load and to try
        device["romfile"] = ""
    tap = TapFd(name=f"nic-{nic.id}", nic=nic.id, bridge=nic.bridge, create_bridge=nic.type == "bridge")
    part = Part(
        subject=f"nic {nic.id!r}",
        entry=f"nic.{nic.id}",
        backends=(_backend(nic, tap),),
        devices=(*place.ports, device),
        fds=() if nic.type == "user" else (tap,),
    )
    forward = tuple(str(forward) for forward in nic.forward)
    plan = NicPlan(id=nic.id, type=nic.type, model=nic.model, mac=mac, bridge=nic.bridge, forward=forward)
    return NicPart(part=part, plan=plan)


def _backend(nic: NicSection, tap: TapFd) -> Backend:
    """``-netdev`` (QAPI ``Netdev``)."""
    if nic.type != "user":
        # vhost-net would run the data path in the kernel, past QEMU's sandbox, and needs a descriptor of its own
        tap_options: Properties = {"type": "tap", "id": f"nic-{nic.id}", "vhost": False}
        return Backend(kind="netdev", properties=tap_options, fd=tap.name)
    user: dict[str, object] = {"type": "user", "id": f"nic-{nic.id}"}
    if nic.forward:
        user["hostfwd"] = [
            {"str": f"{forward.protocol}:{forward.host_address}:{forward.host_port}-:{forward.guest_port}"}
            for forward in nic.forward
        ]
    return Backend(kind="netdev", properties=user)
