"""What NICs need of the host and of QEMU besides their devices, at a VM's start or later.

Decides: that a forward's host port is free, or whose it is, before QEMU is asked for it.
Must not: keep a tap's descriptor: whoever asked closes it once QEMU has its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from qsup.errors import NetworkError, QsupError
from qsup.host import network
from qsup.plan.spec import NicPlan, TapFd
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.unit.sections.devices import NicSection

_TIMEOUT = 10.0


def check_forwards(nic: NicPlan) -> None:
    """See that every host port of a NIC's forwards can be had; `NetworkError`."""
    for text in nic.forward:
        check_forward(nic.id, text)


def check_forward(nic: str, forward: str) -> None:
    """See that the host port of one forward can be had.

    Args:
        forward: as `qsup.unit.kinds.Forward` is written.

    Raises:
        NetworkError: it cannot.
    """
    address, port, _ = forward.partition("/")[0].rsplit(":", 2)
    try:
        network.check_port_free(forward.rpartition("/")[2], address, int(port))
    except QsupError as error:
        raise NetworkError(f"NIC {nic}: {error.message}", hint=error.hint) from error


def make_tap(request: TapFd, vm: str, uuid: str, mac: str, numbers: dict[str, int]) -> str:
    """Make a tap and join it to its bridge.

    Args:
        numbers: gets its descriptor by its name.

    Returns:
        The interface's name.

    Raises:
        NetworkError: it cannot be made; see `qsup.host.network.create_tap`.
    """
    name = network.tap_name(vm, uuid, request.nic)
    numbers[request.name] = network.create_tap(
        name, bridge=request.bridge, mac=mac, create_bridge=request.create_bridge
    )
    return name


async def unplug_links(nics: Iterable[NicSection], monitor: Monitor) -> None:
    """What neither a command line nor ``device_add`` can say: NICs whose link is down from the beginning.

    Raises:
        MonitorError: QEMU did not do it.
    """
    for nic in nics:
        if nic.link == "down":
            await commands.set_link(monitor, f"nic-{nic.id}", up=False, timeout=_TIMEOUT)


def release_bridges(nics: Iterable[NicPlan]) -> None:
    """Remove the bridges that were made for NICs, where no port is left of them.

    Raises:
        NetworkError: no right to do so.
    """
    for nic in nics:
        if nic.type == "bridge":
            network.release_bridge(nic.bridge)
