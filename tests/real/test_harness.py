"""What every other real test stands on: the guests on each QEMU, and the fixture that finds leftovers."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests import leftovers
from tests.bare import BareConnection, bare_machine, linux_options, rom_options
from tests.guests import Emulator
from tests.waiting import came_true, poll_until


@pytest.mark.user
def test_rom_guest_powers_off(root_dir: Path, qemu: Emulator) -> None:
    """The ROM guest echoes what is typed and powers off when the power button is pressed."""
    with bare_machine(root_dir, *rom_options(), emulator=qemu) as machine:
        machine.console.read_until(b"boot 1\r\nready\r\n")
        machine.console.write(b"hello")
        machine.console.read_until(b"hello")
        machine.monitor.command("system_powerdown", until=["SHUTDOWN"])
        assert machine.monitor.ask("query-status")["status"] == "shutdown"


@pytest.mark.user
def test_rom_guest_obeys_keys(root_dir: Path, qemu: Emulator) -> None:
    """The ROM guest resets, counting its boots, shows an NMI, and panics when told to."""
    with bare_machine(root_dir, *rom_options(), "-device", "pvpanic", emulator=qemu) as machine:
        machine.console.read_until(b"ready\r\n")
        machine.console.write(b"R")
        machine.console.read_until(b"boot 2\r\nready\r\n")
        machine.monitor.event("RESET")
        machine.monitor.command("inject-nmi")
        machine.console.read_until(b"nmi\r\n")
        machine.console.write(b"P")
        machine.monitor.event("GUEST_PANICKED")


def test_linux_guest_is_complete(root_dir: Path, qemu: Emulator) -> None:
    """The Linux guest has a shell, an agent, an address and a web server, and obeys the power button."""
    agent = ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
    agent += ["-chardev", f"socket,id=agent,path={root_dir}/agent.sock,server=on,wait=off"]
    nic = ["-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:80", "-device", "virtio-net-pci,netdev=net"]
    with bare_machine(root_dir, *linux_options(), *agent, *nic, emulator=qemu) as machine:
        machine.console.read_until(b"guest ready")
        machine.console.write(b"expr 6 '*' 7\n")
        machine.console.read_until(b"\n42\r\n")
        with BareConnection(root_dir / "agent.sock") as channel:
            assert channel.ask("guest-ping") == {}
            poll_until(lambda: "10.0.2.15" in str(channel.ask("guest-network-get-interfaces")), "a lease")
        usernet = machine.monitor.ask("human-monitor-command", {"command-line": "info usernet"})
        port = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", usernet)
        assert port
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/", timeout=10) as answer:
            assert answer.read() == b"hello from the guest\n"
        machine.monitor.command("system_powerdown", until=["SHUTDOWN"])
        # a killed QEMU would leave the agent's socket behind
        machine.monitor.ask("quit")
        machine.process.wait(10)


# Leftovers


def shell(script: str, *, cwd: Path) -> subprocess.Popen[bytes]:
    """A shell without our mark in its environment."""
    return subprocess.Popen(
        ["/bin/sh", "-c", script], env={"PATH": os.environ["PATH"]}, cwd=cwd, stdout=subprocess.PIPE
    )


def orphan(redirection: str, *, cwd: Path) -> leftovers.Process:
    """A process of another session whose parent is gone, with one file open."""
    with shell(f"setsid sleep 61 {redirection} >/dev/null & echo $!", cwd=cwd) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
    poll_until(lambda: Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x0061\0", "the orphan's exec")
    return next(process for process in leftovers.processes() if process.pid == pid)


@pytest.mark.user
@pytest.mark.alone
def test_forgotten_child_is_named_and_ended(session: leftovers.Session, root_dir: Path) -> None:
    """A child that a test forgot is named by its command line, and dead afterwards."""
    before = leftovers.take(alone=True)
    with shell("exec sleep 61", cwd=Path("/")) as child:
        words = leftovers.clear(before, session, root_dir, seconds=0.1)
        assert f"process {child.pid}: sleep 61" in words
        assert child.wait(5) == -9


@pytest.mark.user
@pytest.mark.alone
def test_what_lasts_is_the_sessions(session: leftovers.Session, root_dir: Path) -> None:
    """What a fixture of the session has started again within a test is left alone until the session ends."""
    before = leftovers.take(alone=True)
    environment = os.environ | {leftovers.LASTING: "1"}
    with subprocess.Popen(["sleep", "61"], env=environment) as child:
        poll_until(lambda: Path(f"/proc/{child.pid}/cmdline").read_bytes() == b"sleep\x0061\0", "its exec")
        assert leftovers.clear(before, session, root_dir, seconds=0) == []
        assert f"process {child.pid}: sleep 61" in leftovers.clear(before, session, session.root, seconds=0)
        assert child.wait(5) == -9


@pytest.mark.user
@pytest.mark.alone
def test_orphan_is_known_by_its_open_files(session: leftovers.Session, root_dir: Path) -> None:
    """A process that left our family and cleared its environment is known by a file it has open."""
    before = leftovers.take(alone=True)
    (root_dir / "open").touch()
    found = orphan(f"<{root_dir}/open", cwd=Path("/"))
    assert leftovers.clear(before, session, root_dir, seconds=0) == [f"process {found.pid}: sleep 61"]
    assert found not in leftovers.processes()


@pytest.mark.user
@pytest.mark.alone
def test_forgotten_probe_is_named_and_ended(session: leftovers.Session, root_dir: Path) -> None:
    """A QEMU that a dead daemon was asking bears no mark of anybody's; none may be left."""
    before = leftovers.take(alone=True)
    command = "setsid qemu-system-x86_64 -machine none,accel=tcg:kvm -display none -S </dev/null >/dev/null & echo $!"
    with shell(command, cwd=Path("/")) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
    poll_until(lambda: b"-S" in Path(f"/proc/{pid}/cmdline").read_bytes(), "the orphan's exec")
    (words,) = leftovers.clear(before, session, root_dir, seconds=0)
    assert words.startswith(f"process {pid}: qemu-system-x86_64 -machine none")
    assert came_true(lambda: not Path(f"/proc/{pid}").exists(), seconds=5)


@pytest.mark.user
@pytest.mark.alone
def test_strangers_are_left_alone(session: leftovers.Session, root_dir: Path) -> None:
    """A process that came during the test and has nothing to do with it is neither named nor ended."""
    before = leftovers.take(alone=True)
    found = orphan("</dev/null", cwd=Path("/"))
    assert leftovers.clear(before, session, root_dir, seconds=0) == []
    assert found in leftovers.processes()
    found.end()


@pytest.mark.user
@pytest.mark.alone
def test_descriptors_and_sockets_are_named(session: leftovers.Session, root_dir: Path) -> None:
    """A descriptor left open and a socket left in the test's directory are named, and the socket is removed."""
    before = leftovers.take(alone=True)
    leaked = os.open("/dev/null", os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root_dir / "left.sock"))
    try:
        words = leftovers.clear(before, session, root_dir, seconds=0)
    finally:
        os.close(leaked)
    assert words == [f"file {root_dir}/left.sock", f"descriptor {leaked} -> /dev/null"]
    assert not list(root_dir.iterdir())


@pytest.mark.root
@pytest.mark.alone
def test_interfaces_are_named_and_removed(session: leftovers.Session, root_dir: Path) -> None:
    """An interface left behind is named, and removed when a unit of ours names it; another daemon's stays."""
    before = leftovers.take(alone=True)
    for name in ("qs-left", "qs-left2"):
        subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True, timeout=10)
    (root_dir / "web.toml").write_text('[[nics]]\ntype = "bridge"\nbridge = "qs-left"\n')
    try:
        assert leftovers.clear(before, session, root_dir, seconds=0) == ["interface qs-left", "interface qs-left2"]
        assert leftovers.left(before, session, root_dir).things == [("interface", "qs-left2")]
    finally:
        subprocess.run(["ip", "link", "delete", "qs-left2"], check=True, timeout=10)


@pytest.mark.root
@pytest.mark.alone
def test_cgroups_are_named_unless_strangers(session: leftovers.Session, root_dir: Path) -> None:
    """A cgroup left behind is named and removed; one of a daemon that nobody here started is left alone."""
    before = leftovers.take(alone=True)
    hierarchy = next(path for path in cgroup_roots() if (path / "cgroup.procs").exists())
    ours, theirs = hierarchy / "qsup-left", hierarchy / "qsup-strange"
    ours.mkdir()
    theirs.mkdir()
    stranger = orphan("</dev/null", cwd=Path("/"))
    try:
        (theirs / "cgroup.procs").write_text(str(stranger.pid))
        assert leftovers.clear(before, session, root_dir, seconds=0) == [f"cgroup {ours}"]
        assert not ours.exists()
    finally:
        stranger.end()
        poll_until(lambda: not (theirs / "cgroup.procs").read_text(), "the cgroup is empty")
        theirs.rmdir()


def cgroup_roots() -> list[Path]:
    """Where cgroup hierarchies are mounted."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(fields[1]) for fields in mounts if fields[2] in {"cgroup", "cgroup2"}]
