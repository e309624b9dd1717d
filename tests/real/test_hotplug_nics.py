"""NICs that come, go and change while a VM runs, on every QEMU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from qsup.errors import UnitError
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, free_port, linux_unit, rom_unit
from tests.real.hotplug import agree, attach, attach_lasting, change, detach, guest, peripherals, qmp, shown
from tests.waiting import came_true, poll_until

pytestmark = [pytest.mark.real]

BRIDGE = "qshot0"


def netdevs(daemon: Daemon, vm: str) -> set[str]:
    """The names of QEMU's network back ends."""
    text: str = qmp(daemon, vm, "human-monitor-command", **{"command-line": "info network"})
    return {line.strip(" \\").split(":")[0] for line in text.splitlines() if "type=user" in line or "type=tap" in line}


def accepts(port: int) -> bool:
    """Whether a port of the loopback address is listened on."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_nic_comes_and_goes_with_a_live_guest(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """The guest sees it with the MAC of its id, its link as it is set, and its back end goes last."""
    daemon.unit("web", linux_unit(qemu, linux_guest))
    daemon.do("web", "start")
    before = peripherals(daemon, "web"), netdevs(daemon, "web")
    operation = attach(daemon, "web", "nics", id="dmz", type="user", link="down")
    assert operation["state"] == "succeeded", operation
    assert agree(daemon, "web")
    (nic,) = daemon.view("web")["nics"]
    assert nic["link"] == "down"
    assert ", link down" in daemon.ctl("status", "web").stdout
    find = f"grep -l {nic['mac']} /sys/class/net/*/address"
    assert came_true(lambda: guest(daemon, "web", find) != "", seconds=10)
    card = Path(guest(daemon, "web", find)).parent
    guest(daemon, "web", f"ip link set {card.name} up || ifconfig {card.name} up")
    assert guest(daemon, "web", f"cat {card}/carrier") == "0"
    assert change(daemon, "web", nic=[{"id": "dmz", "link": "up"}])["state"] == "succeeded"
    assert daemon.view("web")["nics"][0]["link"] == "up"
    assert came_true(lambda: guest(daemon, "web", f"cat {card}/carrier") == "1", seconds=10)
    assert detach(daemon, "web", "nics/dmz")["state"] == "succeeded"
    assert (peripherals(daemon, "web"), netdevs(daemon, "web")) == before
    assert agree(daemon, "web")
    assert attach(daemon, "web", "nics", id="dmz", type="user")["state"] == "succeeded"
    assert daemon.view("web")["nics"][0]["mac"] == nic["mac"]


def test_forwards_change_while_the_vm_runs(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """One goes, one stays, one comes; a taken port is refused with its holder, and then nothing has changed."""
    old, kept, new = free_port(), free_port(), free_port()
    nic = f'[[nic]]\nid = "lan"\nforward = ["{old}:22", "{kept}:80"]\n'
    daemon.unit("web", rom_unit(qemu, rom_guest, tables=nic))
    daemon.do("web", "start")
    assert accepts(old)
    operation = change(daemon, "web", nic=[{"id": "lan", "forward": [f"{kept}:80", f"{new}:22"]}])
    assert operation["state"] == "succeeded", operation
    assert [accepts(port) for port in (old, kept, new)] == [False, True, True]
    wanted = [f"tcp:127.0.0.1:{kept}:80", f"tcp:127.0.0.1:{new}:22"]
    assert [text.partition("/")[0].split(":")[-2:] for text in daemon.view("web")["nics"][0]["forward"]] == [
        text.split(":")[-2:] for text in wanted
    ]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        operation = change(daemon, "web", nic=[{"id": "lan", "forward": [f"{port}:22"]}])
        assert (operation["state"], operation["error"]["code"]) == ("failed", "network")
        assert f"port {port} on 127.0.0.1 is already taken by" in operation["error"]["detail"]
    assert [accepts(port) for port in (old, kept, new)] == [False, True, True]
    operation = change(daemon, "web", nic=[{"id": "lan", "forward": [f"{kept}:80", f"0.0.0.0:{new}:23"]}])
    assert operation["state"] == "succeeded", operation  # the VM's own port is not taken by somebody else
    assert f"0.0.0.0:{new}:23/tcp" in daemon.view("web")["nics"][0]["forward"]
    assert [accepts(port) for port in (old, kept, new)] == [False, True, True]
    daemon.restart()
    daemon.wait("web", "running")
    assert len(daemon.view("web")["nics"][0]["forward"]) == 2
    assert detach(daemon, "web", "nics/lan", wait=1)["state"] == "running"
    for entry in ({"id": "lan", "forward": ["24999:22"]}, {"id": "lan", "link": "down"}):
        operation = change(daemon, "web", nic=[entry])
        assert "nic.lan is still being detached" in operation["error"]["detail"], operation


@pytest.mark.alone
def test_a_tap_and_its_bridge_come_and_go(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """The bridge that was made for it goes with it, after a daemon that was killed too."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.do("web", "start")
    assert attach(daemon, "web", "nics", id="lan", type="bridge", bridge=BRIDGE)["state"] == "succeeded"
    assert agree(daemon, "web")
    assert len(ports()) == 1
    daemon.restart()
    daemon.wait("web", "running")
    operation = detach(daemon, "web", "nics/lan", query="&force-after=0.2")
    assert operation["state"] == "succeeded", operation
    poll_until(lambda: ports() == {"no bridge"}, "the bridge is gone")
    attach(daemon, "web", "nics", id="lan", type="bridge", bridge=BRIDGE)
    daemon.restart()
    daemon.do("web", "kill")
    poll_until(lambda: ports() == {"no bridge"}, "the bridge is gone with its VM")


def ports() -> set[str]:
    """The bridge's ports; ``{"no bridge"}`` without one."""
    directory = Path("/sys/class/net", BRIDGE, "brif")
    return set(os.listdir(directory)) if directory.exists() else {"no bridge"}


@pytest.mark.alone
def test_a_nic_that_cannot_be_leaves_nothing(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """No such bridge; a bridge that was made for it when QEMU then refuses the card."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    before = shown(daemon, "web"), netdevs(daemon, "web")
    operation = attach(daemon, "web", "nics", id="lan", type="tap", bridge=BRIDGE)
    assert (operation["state"], operation["error"]["code"]) == ("failed", "network")
    qmp(daemon, "web", "netdev_add", type="user", id="nic-lan")
    operation = attach(daemon, "web", "nics", id="lan", type="bridge", bridge=BRIDGE)
    assert (operation["state"], operation["error"]["code"]) == ("failed", "qmp-error")
    assert "nic 'lan'" in operation["error"]["detail"]
    assert ports() == {"no bridge"}
    qmp(daemon, "web", "netdev_del", id="nic-lan")
    assert (shown(daemon, "web"), netdevs(daemon, "web")) == before
    names = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert ": qs" not in names


def test_nothing_comes_with_which_the_vm_would_not_start_again(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """Though there are free ports: a start has places of its own for these cards."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    for number in range(4):
        operation = attach_lasting(daemon, "web", "nics", id=f"n{number}", model="e1000")
        assert operation["state"] == "succeeded", operation
    operation = attach_lasting(daemon, "web", "nics", id="more", model="e1000")
    assert operation["error"]["code"] == UnitError.code
    assert "room for 4 e1000 and rtl8139 NICs" in json.dumps(operation["error"])
    assert len(daemon.do("web", "restart")["nics"]) == 4


def test_a_random_number_generator_comes_and_goes(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """Its source goes after it."""
    daemon.unit("web", linux_unit(qemu, linux_guest))
    daemon.do("web", "start")
    assert attach(daemon, "web", "devices", id="more", type="rng")["state"] == "succeeded"
    assert agree(daemon, "web")
    assert {"id": "more", "type": "rng", "socket": "", "state": "there"} in daemon.view("web")["devices"]
    operation = detach(daemon, "web", "devices/more", query="&force-after=10")
    assert operation["state"] == "succeeded"
    objects = {child["name"] for child in qmp(daemon, "web", "qom-list", path="/objects")}
    assert "rng-more" not in objects
    assert daemon.view("web")["devices"] == []


def test_a_card_with_a_rom_of_its_own_model(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Every model that the machine has can come while it runs."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    for model in ("virtio", "e1000", "e1000e", "rtl8139"):
        assert attach(daemon, "web", "nics", id=model, model=model)["state"] == "succeeded", model
    assert agree(daemon, "web")
