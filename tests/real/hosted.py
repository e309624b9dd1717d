"""A host of our own with several NUMA nodes, cgroups of version 2 alone and systemd: Linux in an emulated machine.

Decides: what that machine is made of, how it is switched on and off, and how commands and clients reach what is in it.
Must not: run it by qsup, or assert anything about qsup.

Its processors are emulated, and VMs in it are emulated by what is emulated: all takes 10 to 30 times as long as on this
machine. It is switched on once for all tests of a session. Commands come by ssh over a virtual serial port, because
one connection then carries any number of commands and of connections to the sockets in it, and no network is needed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from qsup.ctl.connection import Address
from tests.bare import BareConnection
from tests.guests import CONTRIB, Emulator, host_directory, rom_guest
from tests.leftovers import LASTING
from tests.real.booted import PATH, commands_of_the_guide, write_programs
from tests.real.daemons import Daemon, rom_unit
from tests.real.users import CHECKOUT
from tests.waiting import came_true, poll_until

#: Where qsup's files are, on a disk that nobody can write, and where units are.
TOP, UNITS = "/opt/qsup", "/etc/qsup/units"
#: Seconds until a command can be run, and until a command has ended: twice what was measured on a machine with far too
#: much else to do.
UP, COMMAND = 120.0, 90.0
#: How often it may boot in vain. One boot of thirty or so stood still for ever when the kernel had just found its clock
#: stable, and had all CPUs change the code that they run: so it is told that the clock is not.
TRIES = 3
#: GiB of each node; the last has no CPU.
MEMORY = (2, 2, 2, 1)
#: CPUs of each node: two threads a core; nodes 0 and 1 are one package, node 2 is the other.
CPUS = ((0, 1), (2, 3), (4, 5, 6, 7), ())
DISTANCES = ((10, 15, 21, 28), (15, 10, 21, 28), (21, 21, 10, 17), (28, 28, 17, 10))
ISOLATED = 7
#: Huge pages of each node, by their size.
PAGES = {"2M": (32, 64, 32, 16), "1G": (0, 1, 1, 0)}
#: What a command line of the kernel says beside the pages. The clock of an emulated machine is late at times, and a
#: timer may never come: the kernel's warning of a stall, after 21 s, also wakes who waits for it. Memory that Linux
#: moves between nodes by itself is nowhere that a test could name, and where chance decides where the kernel lies, a
#: node may have no room for a page of 1G.
APPEND = (
    "console=ttyS0 quiet mitigations=off lsm= cryptomgr.notests nowatchdog random.trust_cpu=on "
    f"numa_balancing=disable nokaslr tsc=unstable isolcpus={ISOLATED}"
)
#: What ssh is told; its proxy hands it a connection to the machine's serial port. That port was seen, once in 140
#: commands, to keep what it has until something else comes: so something does each second.
SSH = """Host host
    User root
    ProxyCommand env "PYTHONPATH={checkout}" "{python}" -m tests.real.hosted {place}/port
    ProxyUseFdpass yes
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    PreferredAuthentications none
    ControlPath {place}/control
    ConnectTimeout {seconds:.0f}
    StreamLocalBindUnlink yes
    ServerAliveInterval 1
    ServerAliveCountMax {seconds:.0f}
    LogLevel ERROR
"""


class Hosted:
    """The host, switched on.

    Args:
        place: a directory for its files, short enough for sockets.
        emulator: what emulates it.

    Attributes:
        silences: what was said each time when it booted in vain.
    """

    def __init__(self, place: Path, emulator: Emulator) -> None:
        self.place = place
        place.mkdir()
        self._config = place / "ssh_config"
        self._config.write_text(SSH.format(python=sys.executable, checkout=CHECKOUT, place=place, seconds=UP))
        lay_out(place / "qsup")
        _run("mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(place / "qsup"), str(place / "qsup.img"), "64M")
        shutil.rmtree(place / "qsup")
        self._errors = (place / "errors.log").open("ab")
        self._channel: subprocess.Popen[bytes] | None = None
        self._sockets: dict[str, Path] = {}
        self.silences: list[str] = []
        self._machine = self._popen(*_machine(place, emulator))
        try:
            poll_until((place / "port").exists, "it is switched on")
            self._reach()
        except BaseException:
            self.close()
            raise

    def _popen(self, *command: str) -> subprocess.Popen[bytes]:
        # whatever ends us ends it
        mortal = ("setpriv", "--pdeathsig", "KILL", *command)
        environment = os.environ | {LASTING: "1"}
        return subprocess.Popen(
            mortal, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors, env=environment
        )

    def _reach(self) -> None:
        """Wait until a command can be run in it; where that is not so in time it is reset."""
        while not self._connect():
            self.silences.append(self.words())
            assert len(self.silences) < TRIES, f"booted {TRIES} times in vain: {self.silences[-1]}"
            with BareConnection(self.place / "qmp") as monitor:
                monitor.negotiate()
                monitor.ask("system_reset")
        for path in self._sockets:
            self._forward(path)

    def _connect(self) -> bool:
        """Have one connection to it, which all others go through; whether there is one."""
        channel = self._channel = self._popen("ssh", "-F", str(self._config), "-M", "-N", "host")
        connected = (self.place / "control").exists
        if came_true(lambda: connected() or channel.poll() is not None, seconds=UP) and connected():
            return True
        channel.kill()
        channel.wait()
        return False

    def words(self) -> str:
        """The last that it, and what emulates it, have said."""
        return (self.place / "errors.log").read_text(errors="replace")[-1000:] + self.console()[-3000:]

    def console(self) -> str:
        """What it has written on its console: all of its journal, among others."""
        return (self.place / "console.log").read_text(errors="replace")

    def run(self, *command: str, check: bool = True, stdin: str = "", seconds: float = COMMAND) -> str:
        """Run a command in it, and return what it printed.

        Args:
            command: one argument is a line for the shell.
            stdin: what it reads.
            seconds: what it may take.
        """
        line = command[0] if len(command) == 1 else " ".join(map(shlex.quote, command))
        done = self.call(line, stdin=stdin, seconds=seconds)
        assert not check or done.returncode == 0, f"{line} ({done.returncode}): {done.stdout}{done.stderr}"
        return done.stdout

    def call(self, line: str, *, stdin: str = "", seconds: float = COMMAND) -> subprocess.CompletedProcess[str]:
        """Run a line of shell in it, whatever comes of it."""
        command = ["ssh", "-F", str(self._config), "host", f"PATH={PATH} LANG=C.UTF-8; export PATH LANG; {line}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, input=stdin, check=False)

    def read(self, path: Path | str) -> str:
        """What a file in it says."""
        return self.run("cat", str(path))

    def write(self, path: Path | str, text: str) -> None:
        """Write a file in it, directories and all."""
        self.run(f"mkdir -p {shlex.quote(str(Path(path).parent))} && cat >{shlex.quote(str(path))}", stdin=text)

    def forward(self, path: str) -> Path:
        """A socket here that is one in it."""
        if path not in self._sockets:
            self._sockets[path] = self.place / f"socket-{len(self._sockets)}"
            self._forward(path)
        return self._sockets[path]

    def _forward(self, path: str) -> None:
        _run("ssh", "-F", str(self._config), "-O", "forward", "-L", f"{self._sockets[path]}:{path}", "host")

    def property(self, unit: str, name: str) -> str:
        """What systemd says of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def reboot(self) -> None:
        """Have systemd shut it down and start all again that is to be; what is on its disk is still there."""
        assert self._channel is not None
        self.call("systemctl reboot")
        self._channel.wait(UP)
        self._reach()
        # not all may have come up well: tests see for themselves
        self.run("systemctl", "is-system-running", "--wait", check=False, seconds=UP)

    def close(self) -> None:
        """Switch it off without warning; nothing of it remains."""
        for process in filter(None, (self._channel, self._machine)):
            process.kill()
            process.wait()
        self._errors.close()
        for path in (*(self.place / name for name in ("port", "qmp", "control")), *self._sockets.values()):
            path.unlink(missing_ok=True)


class HostedDaemon(Daemon):
    """The system's daemon on that host, installed as `docs/admin.md` says.

    Args:
        root: a test's directory.
        host: where it runs.
    """

    def __init__(self, root: Path, host: Hosted) -> None:
        super().__init__(root)
        self.host = host
        # a failed test keeps it; a link, because more is written to it meanwhile
        os.link(host.place / "console.log", root / "console.log")

    @property
    def address(self) -> Address:
        """Where it is reached."""
        return Address(str(self.host.forward("/run/qsup/api.sock")), "")

    @property
    def pid(self) -> int:
        """Its process, by the host's own numbers."""
        return int(self.host.property("qsupd.service", "MainPID"))

    def unit(self, name: str, text: str) -> None:
        """Write a unit file and have it read."""
        self.host.write(f"{UNITS}/{name}.toml", text)
        self.post("/v1/reload")

    def wait(self, name: str, substate: str, *, seconds: float = COMMAND) -> dict[str, Any]:
        """Wait until a VM is in a substate."""
        return super().wait(name, substate, seconds=seconds)

    def ctl(self, *arguments: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``qsupctl``."""
        done = self.host.call(" ".join(map(shlex.quote, ("qsupctl", *arguments))), stdin=stdin)
        assert not check or done.returncode == 0, f"qsupctl {' '.join(arguments)}: {done.stderr}"
        return done

    def log(self) -> str:
        """What the host has written on its console."""
        return self.host.console()

    def close(self) -> None:
        """End its VMs and forget their units."""
        try:
            for vm in self.get("/v1/instances")["instances"]:
                self.post(f"/v1/instances/{vm['name']}/kill?wait=30")
            self.host.run(f"rm -rf {UNITS}/*")
            self.post("/v1/reload")
        finally:
            self._log.close()


def rom_vm(*, size: str = "16M", **sections: str) -> str:
    """A unit of the ROM guest on that host.

    Args:
        size: its memory.
        sections: as for `daemons.rom_unit`.
    """
    text = rom_unit(Emulator(path=Path("/usr/bin/qemu-system-x86_64"), version=""), Path(f"{TOP}/rom.bin"), **sections)
    return text.replace('size = "16M"', f'size = "{size}"')


def install(host: Hosted) -> None:
    """Have qsup there as its guide says; its files are on a disk of their own."""
    host.run(f"cd {TOP} && set -eux; {commands_of_the_guide()}", seconds=UP)


def lay_out(top: Path) -> None:
    """What is at `TOP`: the checkout's package with all that it needs, and what its guide installs."""
    library = top / "lib"
    write_programs(top, library, python="/usr/bin/python3", place=f"{TOP}/lib")
    for package in _needed("qsup"):
        for file in package.files or ():
            if ".." not in file.parts:
                (library / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(str(package.locate_file(file)), library / file)
    # an emulated processor takes seconds for what this one does at once
    _run(sys.executable, "-m", "compileall", "-q", "-s", str(top), "-p", TOP, str(library))
    shutil.copytree(CONTRIB / "systemd", top / "contrib/systemd")
    shutil.copy(rom_guest(), top / "rom.bin")


def _needed(name: str) -> Iterator[Distribution]:
    """All that a distribution needs, and what that needs, as far as it is installed here."""
    waiting, known = [name], {name}
    while waiting:
        for requirement in distribution(waiting.pop()).requires or ():
            word = re.split(r"[^\w.-]", requirement)[0]
            if word in known or "extra ==" in requirement:
                continue
            known.add(word)
            with suppress(PackageNotFoundError):  # it is for another Python or system
                yield distribution(word)
                waiting.append(word)


def _machine(place: Path, emulator: Emulator) -> Iterator[str]:
    """The command that switches it on."""
    yield from (str(emulator.path), "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35")
    # its vendor decides whether Linux believes in two threads a core
    yield from ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,vendor=GenuineIntel", "-m", f"{sum(MEMORY)}G")
    yield from ("-smp", f"{sum(map(len, CPUS))},sockets=2,cores=2,threads=2")
    for node, (size, cpus) in enumerate(zip(MEMORY, CPUS, strict=True)):
        yield from ("-object", f"memory-backend-ram,id=m{node},size={size}G")
        yield from ("-numa", f"node,nodeid={node},memdev=m{node}" + "".join(f",cpus={cpu}" for cpu in cpus))
    for source, row in enumerate(DISTANCES):
        for target, distance in enumerate(row):
            yield from ("-numa", f"dist,src={source},dst={target},val={distance}")
    image = host_directory()
    pages = " ".join(
        f"hugepagesz={size} hugepages={','.join(f'{node}:{count}' for node, count in enumerate(counts) if count)}"
        for size, counts in PAGES.items()
    )
    yield from ("-kernel", f"{image}/vmlinuz", "-initrd", f"{image}/initrd", "-append", f"{APPEND} {pages}")
    # what it writes is nowhere once it has ended
    yield from ("-drive", f"file={image}/root.img,format=raw,if=virtio,snapshot=on,cache=unsafe")
    yield from ("-drive", f"file={place}/qsup.img,format=raw,if=virtio,readonly=on")
    yield from (
        "-chardev",
        f"socket,id=port,path={place}/port,server=on,wait=off",
        "-serial",
        f"file:{place}/console.log",
    )
    yield from ("-qmp", f"unix:{place}/qmp,server=on,wait=off")
    yield from ("-device", "virtio-serial", "-device", "virtserialport,chardev=port,name=ssh")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def _connect(path: str) -> None:
    """Pass a connection to a socket over our standard output (ssh_config(5): ProxyUseFdpass)."""
    with socket.socket(socket.AF_UNIX) as port, socket.socket(fileno=os.dup(1)) as ssh:
        port.connect(path)
        socket.send_fds(ssh, [b"\0"], [port.fileno()])


if __name__ == "__main__":
    _connect(sys.argv[1])
