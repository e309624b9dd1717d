"""The rooms of `qsup.host` around a real QEMU, without the driver: what it inherits, may do, holds and leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from qsup.errors import ImageInUse
from qsup.host import kvmnode, network, proc
from qsup.host.cgroup import CgroupTree
from qsup.host.claims import Claims
from qsup.host.image import OpenImage, open_image
from qsup.host.output import Output
from qsup.host.process import Credentials, Process, adopt, launch_failure, spawn
from qsup.host.rundir import InstanceDirectory
from tests.bare import SMALLEST, BareConnection, bare_machine, rom_options
from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit
from tests.waiting import wait_until

VM_USER = Credentials(uid=720_125, gid=720_125)
SANDBOX = ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]


class Launched:
    """A QEMU started with all that the host gives one."""

    def __init__(self, process: Process, directory: InstanceDirectory, output: Output) -> None:
        self.process = process
        self.directory = directory
        self.output = output

    def printed(self) -> str:
        """The last it has printed."""
        self.output.drain()
        return "\n".join(self.output.tail(5))

    def status(self) -> dict[str, list[str]]:
        """/proc/PID/status."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}

    def descriptors(self) -> dict[int, str]:
        """What it has open: number, target."""
        top = f"/proc/{self.process.pid}/fd"
        return {int(name): os.readlink(f"{top}/{name}") for name in os.listdir(top)}


@asynccontextmanager
async def launched(
    root: Path,
    qemu: Emulator,
    *options: str,
    fds: Sequence[int] = (),
    credentials: Credentials | None = None,
    kvm_node: bool = False,
) -> AsyncIterator[Launched]:
    """Start QEMU through the launcher with a listening monitor and its output in a FIFO; end it and clean up."""
    directory = InstanceDirectory.open(root, "web")
    output = Output(directory.path / "output", root / "web.log")
    listener, writer = directory.bind_listener("qmp"), output.open_writer()
    monitor = ["-chardev", f"socket,id=qmp,fd={listener},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
    try:
        process = await spawn(
            [str(qemu.path), *monitor, *options],
            fds=[listener, *fds],
            output_fd=writer,
            credentials=credentials,
            kvm_node=kvm_node,
        )
    finally:
        os.close(listener)
        os.close(writer)
    try:
        yield Launched(process, directory, output)
    finally:
        with trio.CancelScope(shield=True):
            process.send_signal(signal.SIGKILL)
            await process.wait_exit()
            await process.aclose()
        output.close()
        directory.remove()
        kvmnode.release()


def disk_options(image: OpenImage) -> list[str]:
    """A disk by its descriptors alone."""
    sets = [part for fd in image.fds for part in ("-add-fd", f"fd={fd},set=1")]
    file = {"driver": "file", "node-name": "f", "filename": "/dev/fdset/1"}
    node = {"driver": image.format, "node-name": "d", "file": "f"}
    return [*sets, "-blockdev", json.dumps(file), "-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=d"]


def make_disk(root: Path, qemu: Emulator) -> Path:
    """A qcow2 image that only we may open."""
    path = root / "disk.qcow2"
    subprocess.run([qemu.img, "create", "-q", "-f", "qcow2", path, "16M"], check=True, timeout=30)
    path.chmod(0o600)
    return path


@pytest.mark.root
async def test_qemu_as_its_own_user(root_dir: Path, qemu: Emulator) -> None:
    """QEMU runs with a uid of its own, no right, its seccomp filter, a disk it could not open, and no descriptor more.

    The image is then in use by it for everybody else, and free once it is gone.
    """
    make_disk(root_dir, qemu)
    cgroup = CgroupTree(f"qsup-test-{uuid.uuid4().hex[:8]}").create("web")
    image = open_image("disk.qcow2", pools=[root_dir], format="qcow2", read_only=False)
    options = [*SMALLEST, *SANDBOX, "-accel", "tcg", "-m", "16", "-S", *disk_options(image)]
    async with launched(root_dir, qemu, *options, fds=image.fds, credentials=VM_USER) as machine:
        image.close()
        assert await cgroup.join(machine.process.pid) == ""
        with BareConnection(machine.directory.path / "qmp") as monitor:
            monitor.negotiate()
            assert monitor.ask("query-status")["status"] == "prelaunch"
            assert monitor.ask("query-block")[0]["inserted"]["image"]["virtual-size"] == 16 << 20
        status = machine.status()
        assert status["Uid"] == status["Gid"] == [str(VM_USER.uid)] * 4
        assert status["Groups"] == []
        assert {status[name][0] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
        assert machine.process.pid in cgroup.members()
        assert machine.directory.holders("output") == (machine.process.pid,)
        targets = machine.descriptors()
        assert targets.pop(0) == "/dev/null"
        assert targets.pop(1) == targets.pop(2) == str(machine.directory.path / "output")
        files = [target for target in targets.values() if target.startswith("/") and target != "/dev/null"]
        assert set(files) == {str(root_dir / "disk.qcow2")}

        again = open_image("disk.qcow2", pools=[root_dir], format="qcow2", read_only=False)
        with pytest.raises(ImageInUse, match=rf"is in use by qemu-system-x86 \(pid {machine.process.pid}\)"):
            Claims().acquire(again, holder="mail", writable=True)
    Claims().acquire(again, holder="mail", writable=True)
    again.close()
    await cgroup.remove()


@pytest.mark.root
@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="missing hardware: this host has no /dev/kvm")
async def test_kvm_for_a_user_who_may_not_open_it(root_dir: Path, qemu: Emulator, rom_guest: Path) -> None:
    """With a KVM node of its own, the VM's user runs a guest under KVM, whatever the host's node allows."""
    rom = root_dir / "rom.bin"
    rom.write_bytes(rom_guest.read_bytes())  # noqa: ASYNC240  # a small local file
    options = [*SMALLEST, *SANDBOX, "-accel", "kvm", "-cpu", "kvm64", "-m", "16", "-bios", str(rom), "-serial", "stdio"]
    async with launched(root_dir, qemu, *options, credentials=VM_USER, kvm_node=True) as machine:
        with BareConnection(machine.directory.path / "qmp") as monitor:
            monitor.negotiate()
            assert monitor.ask("query-kvm") == {"enabled": True, "present": True}
        await wait_until(lambda: "ready" in machine.printed(), "the guest is up")


@pytest.mark.root
@pytest.mark.alone
async def test_tap_goes_with_qemu(root_dir: Path, qemu: Emulator) -> None:
    """A QEMU without any right uses the tap it was handed; killed, it takes the tap along, and then the bridge goes."""
    bridge = f"qst{uuid.uuid4().hex[:8]}"
    name = network.tap_name("web", bridge, "lan")
    tap = network.create_tap(name, bridge=bridge, mac="52:54:00:12:34:56", create_bridge=True)
    nic = ["-netdev", f"tap,id=lan,fd={tap}", "-device", "virtio-net-pci,netdev=lan,mac=52:54:00:12:34:56"]
    options = [*SMALLEST, *SANDBOX, "-accel", "tcg", "-m", "16", "-S", *nic]
    async with launched(root_dir, qemu, *options, fds=[tap], credentials=VM_USER) as machine:
        os.close(tap)
        with BareConnection(machine.directory.path / "qmp") as monitor:
            monitor.negotiate()
        assert name in os.listdir("/sys/class/net")
        machine.process.send_signal(signal.SIGKILL)
        assert (await machine.process.wait_exit()).describe() == "signal KILL"
        assert name not in os.listdir("/sys/class/net")
        assert network.release_bridge(bridge)


@pytest.mark.user
async def test_failing_qemu_in_its_own_words(root_dir: Path, qemu: Emulator) -> None:
    """A command line that QEMU refuses gives its exit code and its words, which are not the launcher's."""
    async with launched(root_dir, qemu, "-machine", "no-such-machine") as machine:
        with trio.fail_after(10):
            status = await machine.process.wait_exit()
        machine.output.drain()
        text = machine.output.text_since(0)
        assert status.describe() == "exit code 1"
        assert "unsupported machine type" in text
        assert launch_failure(status, text) is None


@pytest.mark.user
async def test_found_again_by_another_daemon(root_dir: Path, qemu: Emulator) -> None:
    """A QEMU is found by its record, its monitor answers a second client, and its end is told with the reason."""
    options = [*SMALLEST, "-accel", "tcg", "-m", "16", "-S"]
    async with launched(root_dir, qemu, *options) as machine:
        with BareConnection(machine.directory.path / "qmp") as monitor:
            monitor.negotiate()
        found = adopt(machine.process.pid, machine.process.start_time, proc.boot_id())
        assert found
        with BareConnection(machine.directory.path / "qmp") as monitor:
            monitor.negotiate()
            monitor.ask("quit")
        with trio.fail_after(10):
            assert (await found.wait_exit()).describe() == "exit code 0"
        await found.aclose()


@pytest.mark.user
def test_image_of_a_foreign_qemu(root_dir: Path, qemu: Emulator) -> None:
    """An image that a QEMU outside the daemon writes is refused for writing and for reading, and that QEMU is named."""
    path = make_disk(root_dir, qemu)
    drive = ["-drive", f"file={path},format=qcow2,if=virtio"]
    with bare_machine(root_dir, *rom_options("tcg"), *drive, emulator=qemu) as machine:
        image = open_image("disk.qcow2", pools=[root_dir], format="qcow2", read_only=False)
        for writable in (True, False):
            with pytest.raises(ImageInUse, match=rf"\(pid {machine.process.pid}\)"):
                Claims().acquire(image, holder="web", writable=writable)
        image.close()


@pytest.mark.user
def test_launch_that_a_daemon_did_not_come_to_record(root_dir: Path, qemu: Emulator, rom_guest: Path) -> None:
    """A QEMU whose daemon died before it wrote its pid down, or moved it into its cgroup, is found and ended."""
    daemon = Daemon(root_dir)
    daemon.start()
    try:
        daemon.unit("web", rom_unit(qemu, rom_guest))
        pid = daemon.do("web", "start")["pid"]
        daemon.signal(signal.SIGKILL)
        path = root_dir / "run" / "instances" / "web" / "record.json"
        record = json.loads(path.read_bytes())
        path.write_text(json.dumps(record | {"pid": None, "start_time": None, "cgroups": []}))
        daemon.start()
        daemon.wait("web", "start-failed")
        left = proc.read_stat(pid)
        assert left is None or left.state == "Z"  # whose reaping is up to this machine's first process
        assert daemon.remains() == []
    finally:
        daemon.close()
    # found by the VM's name: the record that named them is lost
    assert [name for name in record["cgroups"] if Path(name).exists()] == []
