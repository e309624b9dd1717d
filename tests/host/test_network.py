"""Tests of `qsup.host.network`: taps and bridges of this host under names of their own, and its ports."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import NetworkError
from qsup.host import network
from qsup.host.network import check_port_free, create_tap, ensure_bridge, release_bridge, tap_name
from tests.waiting import wait_until

MAC = "52:54:00:12:34:56"
SYSFS = Path("/sys/class/net")


@given(st.text(), st.text())
def test_tap_names_fit(vm: str, nic: str) -> None:
    """Whatever the VM and the NIC are called, the name has 15 characters the kernel takes, and is stable."""
    assert re.fullmatch(r"[a-z0-9]{15}", tap_name("web", vm, nic))
    assert tap_name("web", vm, nic) == tap_name("web", vm, nic)


def test_tap_names_differ() -> None:
    """Two NICs of a VM, and one NIC's name in two VMs, have different taps."""
    assert len({tap_name("web", vm, nic) for vm in ("a", "b") for nic in ("lan", "wan")}) == 4


@pytest.fixture
def bridge() -> Iterator[str]:
    """A name for a bridge that does not exist; nothing of that name may be left."""
    name = f"qst{uuid.uuid4().hex[:8]}"
    yield name
    left = (SYSFS / name).exists()
    if left:
        subprocess.run(["ip", "link", "delete", name], check=True, timeout=10)
    assert not left


def exists(interface: str) -> bool:
    """Whether the host has that interface."""
    return (SYSFS / interface).exists()


def attribute(interface: str, name: str) -> str:
    """One of an interface's attributes."""
    return (SYSFS / interface / name).read_text().strip()


@pytest.mark.root
async def test_tap_lives_as_long_as_its_descriptor(bridge: str) -> None:
    """A tap joins its bridge and is up; it vanishes with its last descriptor, and our bridge with its last port."""
    name = tap_name("web", bridge, "lan")
    fd = create_tap(name, bridge=bridge, mac=MAC, create_bridge=True)
    assert not os.get_inheritable(fd)
    assert attribute(name, "address") == "fe:54:00:12:34:56"
    assert attribute(name, "master/ifindex") == attribute(bridge, "ifindex")
    assert int(attribute(name, "flags"), 16) & int(attribute(bridge, "flags"), 16) & 1
    assert not release_bridge(bridge)
    os.close(fd)
    await wait_until(lambda: not exists(name), "the tap is gone")
    assert release_bridge(bridge)
    assert not release_bridge(bridge)


@pytest.mark.root
def test_two_taps_share_a_bridge(bridge: str) -> None:
    """The second tap finds the bridge there; the bridge stays while one port is left."""
    fds = [create_tap(tap_name("web", bridge, nic), bridge=bridge, mac=MAC, create_bridge=True) for nic in ("a", "b")]
    os.close(fds[0])
    assert not release_bridge(bridge)
    os.close(fds[1])
    assert release_bridge(bridge)


@pytest.mark.root
def test_foreign_bridge_is_left_alone(bridge: str) -> None:
    """A bridge that somebody else made is used, and never removed."""
    subprocess.run(["ip", "link", "add", bridge, "mtu", "1400", "type", "bridge"], check=True, timeout=10)
    assert not ensure_bridge(bridge)
    name = tap_name("web", bridge, "lan")
    fd = create_tap(name, bridge=bridge, mac=MAC, create_bridge=True)
    assert attribute(name, "mtu") == "1400"
    os.close(fd)
    assert not release_bridge(bridge)
    subprocess.run(["ip", "link", "delete", bridge], check=True, timeout=10)


@pytest.mark.root
def test_missing_bridge_is_named(bridge: str) -> None:
    """Where the bridge is to be there already and is not, the error names it and the key that would make it."""
    with pytest.raises(NetworkError, match=f"there is no bridge {bridge}") as caught:
        create_tap(tap_name("web", bridge, "lan"), bridge=bridge, mac=MAC)
    assert 'type = "bridge"' in caught.value.hint


@pytest.mark.root
def test_failed_tap_leaves_nothing(bridge: str) -> None:
    """When the tap cannot be had, the bridge made for it goes too, and the reason is told."""
    with pytest.raises(NetworkError, match="cannot be the name of a network interface"):
        create_tap("x" * 16, bridge=bridge, mac=MAC, create_bridge=True)
    assert not exists(bridge)
    with pytest.raises(NetworkError, match=f"there is no bridge {bridge}") as caught:
        create_tap(tap_name("web", bridge, "lan"), bridge=bridge, mac=MAC)
    assert "create" in caught.value.hint
    with pytest.raises(NetworkError, match="lo is no bridge"):
        create_tap(tap_name("web", bridge, "lan"), bridge="lo", mac=MAC)
    assert not exists(tap_name("web", bridge, "lan"))


@pytest.mark.root
def test_taken_tap_name_is_told(bridge: str) -> None:
    """A tap of that name that is in use is not shared by mistake."""
    name = tap_name("web", bridge, "lan")
    fd = create_tap(name, bridge=bridge, mac=MAC, create_bridge=True)
    with pytest.raises(NetworkError, match=f"could not make the tap interface {name}: it exists already"):
        create_tap(name, bridge=bridge, mac=MAC)
    os.close(fd)
    assert release_bridge(bridge)


UNPRIVILEGED = """
import sys
from qsup.errors import NetworkError
from qsup.host.network import create_tap, ensure_bridge
mac = "52:54:00:12:34:56"
for attempt in (lambda: ensure_bridge("qstnever"), lambda: create_tap("qstnever", bridge=sys.argv[1], mac=mac)):
    try:
        attempt()
    except NetworkError as error:
        print(error, "|", error.hint)
"""


@pytest.mark.root
def test_without_the_capability_it_is_refused_clearly(bridge: str) -> None:
    """Without CAP_NET_ADMIN the error says so and names the alternative."""
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True, timeout=10)
    rights = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    done = subprocess.run(
        [
            *rights,
            "/usr/bin/env",
            f"PYTHONPATH={os.pathsep.join(sys.path)}",
            sys.executable,
            "-c",
            UNPRIVILEGED,
            bridge,
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
    )
    subprocess.run(["ip", "link", "delete", bridge], check=True, timeout=10)
    first, second = done.stdout.splitlines()
    assert first.startswith("could not make the bridge qstnever: Operation not permitted | taps and bridges need")
    assert second.startswith("could not make the tap interface qstnever: Operation not permitted | taps and bridges")


@pytest.mark.parametrize(
    ("protocol", "address"), [("tcp", "127.0.0.1"), ("tcp", ""), ("udp", "127.0.0.1"), ("tcp", "::1")]
)
def test_taken_port_names_its_holder(protocol: str, address: str) -> None:
    """A port that a program has is refused with the program's name and pid; free, it is accepted."""
    code = (
        "import socket, sys\n"
        "kind = socket.SOCK_STREAM if sys.argv[1] == 'tcp' else socket.SOCK_DGRAM\n"
        "family = socket.AF_INET6 if ':' in sys.argv[2] else socket.AF_INET\n"
        "s = socket.socket(family, kind); s.bind((sys.argv[2], 0))\n"
        "s.listen() if sys.argv[1] == 'tcp' else None\n"
        "print(s.getsockname()[1], flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, protocol, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        port = int(holder.stdout.readline())
        with pytest.raises(
            NetworkError, match=rf"port {port} .* is already taken by python[\d.]* \(pid {holder.pid}\)"
        ):
            check_port_free(protocol, address, port)
        holder.communicate(timeout=5)
    check_port_free(protocol, address, port)


def test_ports_that_cannot_be_had() -> None:
    """A privileged port and an address that is not the host's are refused for what they are."""
    with pytest.raises(NetworkError, match="host port 80 is below 1024"):
        check_port_free("tcp", "", 80)
    with pytest.raises(NetworkError, match=r"tcp port 8080 on 192\.0\.2\.1 cannot be had: "):
        check_port_free("tcp", "192.0.2.1", 8080)


def test_finished_connections_do_not_take_a_port() -> None:
    """A port whose last connection is in TIME_WAIT is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first keeps TIME_WAIT
        client.close()
    check_port_free("tcp", "127.0.0.1", port)


@pytest.mark.root
def test_bridge_that_was_left_half_made_is_finished_or_removed(bridge: str) -> None:
    """Until it says whose it is, a bridge has another name; the next one takes that up, or a release removes it."""
    unfinished = network._unfinished(bridge)
    for _ in range(2):
        subprocess.run(["ip", "link", "add", unfinished, "type", "bridge"], check=True, timeout=10)
        assert ensure_bridge(bridge)
        assert not exists(unfinished)
        assert release_bridge(bridge)
    subprocess.run(["ip", "link", "add", unfinished, "type", "bridge"], check=True, timeout=10)
    assert not release_bridge(bridge)
    assert not exists(unfinished)


@pytest.mark.root
def test_impossible_bridge_leaves_nothing() -> None:
    """A name that the kernel does not take is refused, and nothing half-made stays."""
    before = set(os.listdir("/sys/class/net"))
    with pytest.raises(NetworkError, match="could not make the bridge"):
        ensure_bridge("a b")
    assert set(os.listdir("/sys/class/net")) == before
