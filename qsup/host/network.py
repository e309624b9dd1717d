"""Tap interfaces, the bridges they join, and host ports for forwards.

Decides: how taps are named, that they vanish with the QEMU that holds them, and that a bridge made here goes with its
last port.
Must not: configure addresses, routes or filters; a bridge made here connects its VMs with each other, and that is all.

Source: Documentation/networking/tuntap.rst in Linux's source, netdevice(7), and the bridge ioctls of linux/sockios.h.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import socket
import struct
from pathlib import Path

from qsup.errors import HostError, NetworkError
from qsup.host import proc

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
_IFF_UP = 0x1
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCGIFMTU, _SIOCSIFMTU = 0x8921, 0x8922
_SIOCSIFNAME = 0x8923
_SIOCSIFHWADDR = 0x8924
_SIOCBRADDBR, _SIOCBRDELBR, _SIOCBRADDIF = 0x89A0, 0x89A1, 0x89A2
_ARPHRD_ETHER = 1
_IFREQ_SIZE = 40
_NAME_SIZE = 16  # IFNAMSIZ, with the final zero byte
#: The alias (``ip link show``) of a bridge that was made here, and so may be removed here.
_OURS = "made by qsup"

# what QEMU is told as its name; shown to people, so nothing but the characters of a name
_GUEST = re.compile(r"\0-name\0guest=([A-Za-z0-9_.@-]+)")


def tap_name(vm: str, uuid: str, nic: str) -> str:
    """The name of a NIC's tap: 15 characters that differ between VMs, also those of another daemon, and between NICs.

    Args:
        vm: the VM's name.
        uuid: its UUID, which a unit may give to several VMs.
        nic: the NIC's id.
    """
    digest = hashlib.sha256(f"{vm}/{uuid}/{nic}".encode()).hexdigest()
    return f"qs{digest[:13]}"


def create_tap(name: str, *, bridge: str, mac: str, create_bridge: bool = False) -> int:
    """Make a tap interface, join it to a bridge, and set it up.

    It is not persistent: it vanishes when its last descriptor is closed, so with QEMU, however that ends.

    Args:
        name: at most 15 characters; see `tap_name`.
        mac: the guest's address; the tap gets the same with a first byte of fe, so that the bridge, which takes the
            lowest address among its ports, never changes its own to it.
        create_bridge: make the bridge when it is absent.

    Returns:
        its descriptor (``vnet_hdr`` on, one queue), close-on-exec, which the caller closes once QEMU has it.

    Raises:
        NetworkError: no right to do so (CAP_NET_ADMIN), no such bridge, or a tap of that name exists.
    """
    made = create_bridge and ensure_bridge(bridge)
    try:
        _check_bridge(bridge)
        fd = _open_tap(name)
        try:
            _join(name, bridge, mac)
        except BaseException:
            os.close(fd)
            raise
    except BaseException:
        if made:
            release_bridge(bridge)
        raise
    return fd


def _check_bridge(bridge: str) -> None:
    if not _sysfs(bridge).exists():
        hint = 'create it, or let the NIC say `type = "bridge"`, which makes it'
        raise NetworkError(f"there is no bridge {bridge}", hint=hint, bridge=bridge)
    if not (_sysfs(bridge) / "bridge").exists():
        raise NetworkError(f"{bridge} is no bridge", bridge=bridge)


def _open_tap(name: str) -> int:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, _request(name, struct.pack("=H", flags)))
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise _network_error(error, f"could not make the tap interface {name}") from error
    return fd


def _join(name: str, bridge: str, mac: str) -> None:
    address = bytes.fromhex("fe" + mac.replace(":", "")[2:])
    what = f"could not join the tap interface {name} to the bridge {bridge}"
    with _control() as control:
        try:
            mtu = _control_integer(control, _SIOCGIFMTU, bridge)
            fcntl.ioctl(control, _SIOCSIFMTU, _request(name, struct.pack("=i", mtu)))
            fcntl.ioctl(control, _SIOCSIFHWADDR, _request(name, struct.pack("=H", _ARPHRD_ETHER) + address))
            fcntl.ioctl(control, _SIOCBRADDIF, _request(bridge, struct.pack("=i", socket.if_nametoindex(name))))
            _set_up(control, name)
        except OSError as error:
            raise _network_error(error, what) from error


def ensure_bridge(bridge: str) -> bool:
    """Make a bridge and set it up, unless an interface of that name exists; whether it was made.

    Raises:
        NetworkError: no right to do so, or the name is not allowed.
    """
    if _sysfs(bridge).exists():
        return False
    with _control() as control:
        try:
            _make_bridge(control, bridge)
        except FileExistsError:
            _delete_bridge(control, _unfinished(bridge))
            return False
        except OSError as error:
            for name in (_unfinished(bridge), bridge):
                _delete_bridge(control, name)
            raise _network_error(error, f"could not make the bridge {bridge}") from error
    return True


def _unfinished(bridge: str) -> str:
    """What a bridge is called until it says whose it is, so that a daemon killed in between leaves none unmarked."""
    return f"qb{hashlib.sha256(bridge.encode()).hexdigest()[:13]}"


def _make_bridge(control: socket.socket, bridge: str) -> None:
    unfinished = _unfinished(bridge)
    try:
        fcntl.ioctl(control, _SIOCBRADDBR, unfinished.encode() + b"\0")
    except FileExistsError:
        pass  # a killed daemon's, to be finished now
    (_sysfs(unfinished) / "ifalias").write_text(_OURS)
    fcntl.ioctl(control, _SIOCSIFNAME, _request(unfinished, bridge.encode() + b"\0"))
    _set_up(control, bridge)


def _delete_bridge(control: socket.socket, bridge: str) -> None:
    """Delete a bridge that is not up, if it is there."""
    try:
        fcntl.ioctl(control, _SIOCBRDELBR, bridge.encode() + b"\0")
    except OSError:  # ENXIO: none of that name; EBUSY: it is up, so it is not one that was left half-made
        return


def release_bridge(bridge: str) -> bool:
    """Remove a bridge that was made here, once it has no port left; whether it was removed.

    Called after a VM's end. Who made it is written on the bridge itself, so a restarted daemon knows too. What a killed
    daemon made of it only in part goes as well.

    Raises:
        NetworkError: no right to do so.
    """
    with _control() as control:
        _delete_bridge(control, _unfinished(bridge))
    try:
        if (_sysfs(bridge) / "ifalias").read_text().strip() != _OURS or os.listdir(_sysfs(bridge) / "brif"):
            return False
    except FileNotFoundError:
        return False
    with _control() as control:
        try:
            flags = _control_integer(control, _SIOCGIFFLAGS, bridge, "=H")
            fcntl.ioctl(control, _SIOCSIFFLAGS, _request(bridge, struct.pack("=H", flags & ~_IFF_UP)))
            fcntl.ioctl(control, _SIOCBRDELBR, bridge.encode() + b"\0")
        except OSError as error:
            raise _network_error(error, f"could not remove the bridge {bridge}") from error
    return True


def _sysfs(interface: str) -> Path:
    return Path("/sys/class/net") / interface


def _control() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _request(name: str, payload: bytes) -> bytes:
    """A struct ifreq: the interface's name and one member of its union."""
    encoded = name.encode()
    if not 0 < len(encoded) < _NAME_SIZE or "/" in name:
        raise NetworkError(f"{name!r} cannot be the name of a network interface")
    return (encoded.ljust(_NAME_SIZE, b"\0") + payload).ljust(_IFREQ_SIZE, b"\0")


def _control_integer(control: socket.socket, request: int, name: str, form: str = "=i") -> int:
    value: int
    (value,) = struct.unpack_from(form, fcntl.ioctl(control, request, _request(name, b"")), _NAME_SIZE)
    return value


def _set_up(control: socket.socket, name: str) -> None:
    flags = _control_integer(control, _SIOCGIFFLAGS, name, "=H")
    fcntl.ioctl(control, _SIOCSIFFLAGS, _request(name, struct.pack("=H", flags | _IFF_UP)))


def _network_error(error: OSError, doing: str) -> NetworkError:
    words = os.strerror(error.errno or 0)
    hint = ""
    if error.errno in (errno.EPERM, errno.EACCES):
        hint = "taps and bridges need a daemon that runs as root or has CAP_NET_ADMIN; `user` networking does not"
    elif error.errno == errno.ENOENT:
        hint = "load the kernel module `tun`"
    elif error.errno == errno.EBUSY:
        words = "it exists already"
    return NetworkError(f"{doing}: {words}", hint=hint, errno=errno.errorcode.get(error.errno or 0, ""))


def check_port_free(protocol: str, address: str, port: int) -> None:
    """See that a forward's host port can be had; QEMU's own words would not name who has it.

    Args:
        protocol: ``tcp`` or ``udp``.
        address: an IPv4 or IPv6 address of the host, ``""`` for all IPv4 addresses.

    Raises:
        NetworkError: the port is taken, is for privileged programs, or the address is not the host's.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if port < lowest:
        raise NetworkError(f"host port {port} is below {lowest}: QEMU runs without the privilege to take it", port=port)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as probe:
        if protocol == "tcp":  # as QEMU does: connections in TIME_WAIT do not matter, listeners do
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise _port_error(error, protocol, address, port) from error


def _port_error(error: OSError, protocol: str, address: str, port: int) -> HostError:
    where = f"{protocol} port {port} on {address or 'all addresses'}"
    if error.errno != errno.EADDRINUSE:
        return NetworkError(f"host {where} cannot be had: {error.strerror}", port=port)
    pids = [pid for inode in _port_inodes(protocol, port) for pid in proc.socket_holders(inode)]
    by = f" by {', '.join(map(_owner, pids))}" if pids else ""
    return NetworkError(f"host {where} is already taken{by}", port=port)


def _port_inodes(protocol: str, port: int) -> list[int]:
    """Inodes of the sockets bound to a port, from /proc/net (proc(5)); fields: slot, local, remote, state... inode."""
    rows: list[list[str]] = []
    for name in (protocol, f"{protocol}6"):
        table = Path("/proc/net") / name
        if table.exists():
            rows += [line.split() for line in table.read_text().splitlines()[1:]]
    return [int(row[9]) for row in rows if int(row[1].rpartition(":")[2], 16) == port and row[9] != "0"]


def _owner(pid: int) -> str:
    """A process for a person; one of a VM's by the VM's name, as far as its command line is to be believed."""
    name = _GUEST.search(proc.command_line(pid))
    return f"VM {name[1]} (pid {pid})" if name else proc.describe(pid)
