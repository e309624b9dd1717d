"""Further devices that come and go while a VM runs, on every QEMU: channels, watchdogs, random numbers."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from qsup.errors import HostDeviceError, QmpCommandError, UnitError
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import DEADLINE, Daemon, linux_unit, rom_unit
from tests.real.hotplug import agree, attach, change, chardevs, detach, guest, peripherals, qmp
from tests.waiting import came_true

pytestmark = [pytest.mark.real]


def removes(daemon: Daemon, chardev: str) -> bool:
    """Whether QEMU removes a character device, which is busy until the device that had it is freed."""
    try:
        qmp(daemon, "web", "chardev-remove", id=chardev)
    except QmpCommandError as error:
        assert error.message.endswith("is busy")
        return False
    return True


def socket_of(daemon: Daemon, vm: str, device: str) -> Path:
    """Where programs of the host connect to a device."""
    (path,) = [each["socket"] for each in daemon.view(vm)["devices"] if each["id"] == device]
    return Path(path)


def dial(path: Path) -> socket.socket:
    """A connection to a device."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE)
    client.connect(str(path))
    return client


def port_of(daemon: Daemon, name: str) -> str:
    """The guest's device of a serial channel, once there is one."""
    find = f"cd /sys/class/virtio-ports && grep -lx {name} */name"
    assert came_true(lambda: guest(daemon, "web", find) != "", seconds=10)
    return f"/dev/{guest(daemon, 'web', find).partition('/')[0]}"


def talk(daemon: Daemon, path: Path, name: str) -> bytes:
    """What the guest answers to a line on a channel."""
    port = port_of(daemon, name)
    with dial(path) as client:
        client.sendall(b"hello\n")
        guest(daemon, "web", f"exec 3<>{port}; read word <&3; echo heard $word >&3")
        return client.recv(100)


def test_a_channel_comes_and_goes_with_a_live_guest(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """Host and guest talk on it, under a later daemon too; its socket goes with it."""
    daemon.unit("web", linux_unit(qemu, linux_guest))
    daemon.do("web", "start")
    before = peripherals(daemon, "web"), chardevs(daemon, "web")
    assert attach(daemon, "web", "devices", id="0ctl", type="serial", name="org.example.ctl")["state"] == "succeeded"
    assert agree(daemon, "web")
    path = socket_of(daemon, "web", "0ctl")
    assert talk(daemon, path, "org.example.ctl") == b"heard hello\n"
    daemon.restart()
    daemon.wait("web", "running")
    assert socket_of(daemon, "web", "0ctl") == path
    assert talk(daemon, path, "org.example.ctl") == b"heard hello\n"
    assert detach(daemon, "web", "devices/0ctl")["state"] == "succeeded"
    assert (peripherals(daemon, "web"), chardevs(daemon, "web")) == before
    assert agree(daemon, "web")
    assert not path.exists()


def test_channels_are_there_from_the_start(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """The guest finds it by its id, and a restart of the VM gives it a new socket under the same path."""
    daemon.unit("web", linux_unit(qemu, linux_guest, tables='[[device]]\nid = "ctl"\ntype = "serial"\n'))
    assert daemon.view("web")["devices"] == [{"id": "ctl", "type": "serial", "socket": "", "state": "there"}]
    daemon.do("web", "start")
    assert talk(daemon, socket_of(daemon, "web", "ctl"), "ctl") == b"heard hello\n"
    assert f"at {socket_of(daemon, 'web', 'ctl')}" in daemon.ctl("status", "web").stdout
    daemon.do("web", "kill")
    daemon.wait("web", "dead")
    assert daemon.view("web")["devices"][0]["socket"] == ""


def test_a_channel_brings_its_controller(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Of a VM without an agent; both are shown, and the controller stays as long as there is another channel."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.do("web", "start")
    for name in ("one", "two"):
        assert attach(daemon, "web", "devices", id=name, type="serial")["state"] == "succeeded"
    assert {"serial", "device-one", "device-two"} <= peripherals(daemon, "web")
    assert agree(daemon, "web")
    assert detach(daemon, "web", "devices/one")["state"] == "succeeded"
    assert {"serial", "device-two"} <= peripherals(daemon, "web")


def test_a_channel_that_cannot_be_leaves_nothing(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Somebody else's character device, or port, has its name: no socket and no character device of ours stays."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.do("web", "start")
    assert attach(daemon, "web", "devices", id="first", type="serial")["state"] == "succeeded"
    before = peripherals(daemon, "web"), chardevs(daemon, "web")
    null = {"id": "channel-ctl", "backend": {"type": "null", "data": {}}}
    qmp(daemon, "web", "chardev-add", **null)
    operation = attach(daemon, "web", "devices", id="ctl", type="serial")
    assert (operation["state"], operation["error"]["code"]) == ("failed", "qmp-error")
    qmp(daemon, "web", "chardev-remove", id="channel-ctl")
    qmp(daemon, "web", "chardev-add", **{**null, "id": "foreign"})
    qmp(daemon, "web", "device_add", driver="virtserialport", id="foreign", bus="serial.0", chardev="foreign", name="x")
    # two ports of one name are refused by QEMU, after the character device was made
    operation = attach(daemon, "web", "devices", id="ctl", type="serial", name="x")
    assert (operation["state"], operation["error"]["code"]) == ("failed", "qmp-error"), operation
    assert "device 'ctl'" in operation["error"]["detail"]
    qmp(daemon, "web", "device_del", id="foreign")
    assert came_true(lambda: removes(daemon, "foreign"), seconds=5)
    assert (peripherals(daemon, "web"), chardevs(daemon, "web")) == before
    sockets = (daemon.run / "instances" / "web").glob("channel-*")
    assert [path.name for path in sockets] == ["channel-first"]
    assert attach(daemon, "web", "devices", id="ctl", type="serial", name="x")["state"] == "succeeded"


def expire(daemon: Daemon) -> None:
    """Have the guest arm its watchdog, without feeding it: it counts two times 2^20 microseconds.

    By PCI configuration alone, as the Intel 6300ESB has it: 0x60 is WDT Configuration (bit 2: count
    microseconds; bits 0 and 1: no interrupt first), 0x68
    WDT Lock (bit 1: enable). Debian's cloud kernel has no driver.
    """
    find = "grep -l 0x25ab /sys/bus/pci/devices/*/device"
    assert came_true(lambda: guest(daemon, "web", find) != "", seconds=10)
    config = f"{Path(guest(daemon, 'web', find)).parent}/config"
    arm = f"printf '\\007\\000' | dd of={config} bs=2 seek=48 conv=notrunc"
    guest(daemon, "web", f"{arm}; printf '\\002' | dd of={config} bs=1 seek=104 conv=notrunc")


def test_a_watchdog_comes_and_its_action_changes(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """The action that counts is the last that was set, when the guest lets it expire."""
    daemon.unit("web", linux_unit(qemu, linux_guest))
    daemon.do("web", "start")
    assert attach(daemon, "web", "devices", id="dog", type="watchdog", action="none")["state"] == "succeeded"
    assert agree(daemon, "web")
    with daemon.events() as events:
        expire(daemon)
        assert events.next("watchdog")["data"]["action"] == "none"
    assert daemon.view("web")["substate"] == "running"
    assert change(daemon, "web", device=[{"id": "dog", "action": "pause"}])["state"] == "succeeded"
    expire(daemon)
    view = daemon.wait("web", "guest-panicked")
    assert view["cause"]["kind"] == "watchdog"


def test_a_watchdog_is_there_from_the_start(daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest) -> None:
    """With its action; a detach gives QEMU its own action back."""
    dog = '[[device]]\nid = "dog"\ntype = "watchdog"\naction = "poweroff"\n'
    daemon.unit("web", linux_unit(qemu, linux_guest, tables=dog))
    daemon.do("web", "start")
    expire(daemon)
    view = daemon.wait("web", "crashed")
    assert view["cause"]["kind"] == "watchdog"
    daemon.do("web", "start")
    assert detach(daemon, "web", "devices/dog", query="&force-after=10")["state"] == "succeeded"
    assert attach(daemon, "web", "devices", id="dog", type="watchdog")["state"] == "succeeded"
    with daemon.events() as events:
        expire(daemon)
        assert events.next("watchdog")["data"]["action"] == "reset"
        events.next("guest-reset")


def test_random_numbers_can_be_limited(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """QEMU has the limit of the unit, and that of a generator that came later."""
    limited = '[[device]]\nid = "one"\ntype = "rng"\nmax-bytes = "1K"\nperiod = "10s"\n'
    daemon.unit("web", rom_unit(qemu, rom_guest, tables=limited))
    daemon.do("web", "start")
    more = {"id": "two", "type": "rng", "max-bytes": "512B", "period": "500ms"}
    assert attach(daemon, "web", "devices", **more)["state"] == "succeeded"
    for name, wanted in (("one", (1024, 10000)), ("two", (512, 500))):
        path = f"/machine/peripheral/device-{name}"
        found = [qmp(daemon, "web", "qom-get", path=path, property=each) for each in ("max-bytes", "period")]
        assert tuple(found) == wanted


@pytest.mark.parametrize(
    ("entry", "code", "words"),
    [
        ({"id": "x", "type": "floppy"}, UnitError.code, "must be"),
        ({"id": "x", "type": "rng", "action": "pause"}, UnitError.code, "rng has no action"),
        ({"id": "x", "type": "watchdog"}, UnitError.code, "device 'dog' is a watchdog already"),
        ({"id": "x", "type": "serial", "name": "ctl"}, UnitError.code, "is that of device 'ctl'"),
        ({"id": "x", "type": "serial", "name": "../x"}, UnitError.code, "not a valid name"),
    ],
    ids=str,
)
def test_a_wrong_device_is_refused(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, entry: dict[str, object], code: str, words: str
) -> None:
    """Each with its own problem, and nothing is attached."""
    there = '[[device]]\nid = "dog"\ntype = "watchdog"\n[[device]]\nid = "ctl"\ntype = "serial"\n'
    daemon.unit("web", rom_unit(emulator, rom_guest, tables=there))
    daemon.do("web", "start")
    before = peripherals(daemon, "web"), chardevs(daemon, "web")
    operation = attach(daemon, "web", "devices", **entry)
    assert (operation["state"], operation["error"]["code"]) == ("failed", code), operation
    assert words in json.dumps(operation["error"])
    assert (peripherals(daemon, "web"), chardevs(daemon, "web")) == before


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"id": "x", "type": "usb", "identity": "ffff:ffff"}, "no USB device ffff:ffff is plugged in"),
        ({"id": "x", "type": "pci", "address": "ffff:ff:1f.7"}, "there is no PCI device ffff:ff:1f.7"),
    ],
    ids=["usb", "pci"],
)
def test_a_device_that_the_host_does_not_have_is_refused(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, entry: dict[str, object], words: str
) -> None:
    """At a start and later; a controller that came for it may stay, nothing else does."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    before = peripherals(daemon, "web")
    operation = attach(daemon, "web", "devices", **entry)
    assert (operation["state"], operation["error"]["code"]) == ("failed", HostDeviceError.code), operation
    assert words in operation["error"]["detail"]
    assert peripherals(daemon, "web") == before
    assert agree(daemon, "web")
    daemon.do("web", "kill")
    daemon.wait("web", "dead")
    table = "".join(f'{key} = "{value}"\n' for key, value in entry.items())
    daemon.unit("web", rom_unit(emulator, rom_guest, tables=f"[[device]]\n{table}"))
    operation = daemon.power("web", "start")
    assert operation["state"] == "failed"
    assert words in operation["error"]["detail"]
    assert daemon.remains() == []
