"""What a real daemon says to wrong units, wrong names and wrong circumstances.

Decides: that each cause is named at the right place, and costs no other VM anything.
Must not: repeat the unit parser's own tests; one wrong file of each kind will do.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qsup.api.protocol import quote
from qsup.errors import MethodNotAllowed, NotFoundError, RequestError, UnitError
from tests.guests import Emulator
from tests.real.beside import bystander, refusal, words
from tests.real.daemons import Daemon, rom_unit
from tests.waiting import came_true

pytestmark = pytest.mark.real


BROKEN = {
    "syntax": ("[machine\n", "syntax.toml:1"),
    "unknown": ("[machine]\nfirmwear = 'bios'\n", "unknown.toml:2: machine.firmwear: unknown key"),
    "type": ("[cpu]\nvcpus = '2'\n", "type.toml:2: cpu.vcpus:"),
    "contradiction": ("[cpu]\nvcpus = 4\nmax-vcpus = 2\n", "contradiction.toml:"),
    "protocol": ("[[disk]]\nid = 'root'\npath = 'nbd:localhost:1'\n", "protocol.toml:3: disk.root.path: reads as a"),
    "outside": ("[[disk]]\nid = 'root'\npath = '../disk.img'\n", "outside.toml:3: disk.root.path: leaves its pool"),
}


def test_broken_units_are_named_by_file_and_line(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Each says where it is wrong, at the start by the API and at the reload, and the good one beside it starts."""
    with bystander(daemon, emulator, rom_guest):
        for name, (text, _) in BROKEN.items():
            daemon.unit(name, text)
        health = " ".join(daemon.get("/v1/health")["problems"])
        for name, (_, wanted) in BROKEN.items():
            refused = refusal(daemon, name)
            assert isinstance(refused, UnitError)
            assert wanted in refused.message
            assert wanted in health
            told = daemon.ctl("start", name, check=False)
            assert (told.returncode, wanted in told.stderr) == (1, True)
            told = daemon.ctl("status", name, check=False)
            assert (told.returncode, wanted in told.stderr) == (4, True)


def test_a_unit_broken_after_its_start_costs_its_vm_nothing(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """It runs on, restart is refused with the line before anything is stopped, and the daemon's restart keeps it."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.unit("web", "[machine]\nnonsense = 1\n")
    refused = refusal(daemon, "web", "restart")
    assert "web.toml:2: machine.nonsense: unknown key" in words(refused)
    assert daemon.view("web")["pid"] == pid
    daemon.restart()
    newest = daemon.get("/v1/operations")["operations"][0]
    assert (newest["kind"], newest["state"]) == ("start", "succeeded")
    daemon.wait("web", "running")
    assert daemon.view("web")["pid"] == pid
    assert daemon.do("web", "stop")["substate"] == "dead"


def test_a_port_that_another_vm_has_is_that_vms(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Whoever reads the refusal knows VMs by name, not by pid."""
    with listening() as port:
        pass  # a moment ago it was free
    nic = f'[[nic]]\nid = "net"\nforward = ["{port}:80"]\n'
    for name in ("first", "second"):
        daemon.unit(name, rom_unit(emulator, rom_guest, tables=nic))
    pid = daemon.do("first", "start")["pid"]
    assert f"is already taken by VM first (pid {pid})" in words(refusal(daemon, "second"))


@contextmanager
def listening() -> Iterator[int]:
    """A TCP port of the loopback interface that somebody has: this process."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def disk(path: str, format: str = "raw") -> dict[str, str]:
    """A unit's disk."""
    return {"tables": f'[[disk]]\nid = "root"\npath = "{path}"\nformat = "{format}"\n'}


def forward(port: int) -> dict[str, str]:
    """A unit's NIC with a forwarded port."""
    return {"tables": f'[[nic]]\nid = "lan"\nforward = ["127.0.0.1:{port}:80"]\n'}


@pytest.mark.user
def test_what_a_host_lacks_is_named_at_the_start(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Images, binaries, ports, bridges: the operation fails with the one thing that is wrong, and nothing is left."""
    (daemon.root / "disk.img").write_bytes(bytes(1 << 20))
    (daemon.root / "directory.img").mkdir()
    (daemon.root / "link.img").symlink_to("/proc/version")
    (daemon.root / "no-program").write_text("not a program")
    with bystander(daemon, emulator, rom_guest), listening() as port:
        cases: dict[str, tuple[dict[str, str], str]] = {
            "missing": (disk("no.img"), "could not open disk image no.img: No such file or directory"),
            "format": (disk("disk.img", "qcow2"), "disk image 'disk.img' "),
            "directory": (disk("directory.img"), "is no regular file"),
            "outside": (disk("/proc/version"), "is in none of the pools"),
            "link": (disk("link.img"), "leaves its pool"),
            "dots": (disk("directory.img/../../disk.img"), "leaves its pool"),
            "port": (forward(port), f"tcp port {port} on 127.0.0.1 is already taken by"),
            "privileged": (forward(80), "host port 80 is below"),
            "bridge": (
                {"tables": '[[nic]]\nid = "lan"\ntype = "tap"\nbridge = "qs-nowhere"\n'},
                "there is no bridge qs-nowhere",
            ),
        }
        for name, (sections, wanted) in cases.items():
            daemon.unit(name, rom_unit(emulator, rom_guest, **sections))
            refused = refusal(daemon, name)
            assert wanted in words(refused), name
            view = daemon.view(name)
            assert (view["state"], view["substate"], view["pid"]) == ("failed", "start-failed", None)
            assert view["cause"]["detail"] in words(refused)
        assert str(os.getpid()) in words(refusal(daemon, "port"))


BINARIES = {
    "unfound": ("qemu-system-vax", "emulator 'qemu-system-vax' was not found"),
    "absent": (
        "/no/such/qemu-system-x86_64",
        "No such file or directory; Debian has it in the package qemu-system-x86",
    ),
    "directory": ("/usr", "could not learn what /usr can do"),
    "text": ("/etc/passwd", "could not learn what /etc/passwd can do"),
    "true": ("/bin/true", "/bin/true is no QEMU system emulator"),
}


def test_an_emulator_that_is_none_is_named(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A missing binary, one that cannot be executed and one that is no QEMU, each in its own words."""
    with bystander(daemon, emulator, rom_guest):
        for name, (path, wanted) in BINARIES.items():
            daemon.unit(name, f'[machine]\nemulator = "{path}"\n')
            assert wanted in words(refusal(daemon, name)), name


def test_an_image_that_another_vm_writes_is_refused_by_that_vms_name(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """By any path to it, and again free once its holder has stopped; a foreign QEMU is named by its pid."""
    (daemon.root / "disk.img").write_bytes(bytes(1 << 20))
    os.link(daemon.root / "disk.img", daemon.root / "same.img")
    daemon.unit("first", rom_unit(emulator, rom_guest, **disk("disk.img")))
    daemon.unit("second", rom_unit(emulator, rom_guest, **disk("same.img")))
    pid = daemon.do("first", "start")["pid"]
    assert "disk image same.img is written by VM first; set `shareable" in words(refusal(daemon, "second"))
    daemon.restart()
    daemon.wait("first", "running")
    assert "disk image same.img is written by VM first" in words(refusal(daemon, "second"))
    assert daemon.view("first")["pid"] == pid
    daemon.do("first", "kill")
    daemon.do("second", "start")
    assert "disk image disk.img is written by VM second" in words(refusal(daemon, "first"))


def test_an_image_that_a_foreign_qemu_writes_is_refused_by_its_pid(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """QEMU's own locks are looked at before QEMU is started, so the refusal names who has it."""
    image = daemon.root / "disk.img"
    image.write_bytes(bytes(1 << 20))
    blockdev = f"driver=raw,node-name=disk,file.driver=file,file.filename={image}"
    device = ("-device", "virtio-blk-pci,drive=disk")
    command = [str(emulator.path), "-S", "-nodefaults", "-display", "none", "-blockdev", blockdev, *device]
    with subprocess.Popen(command) as foreign:
        try:
            daemon.unit("web", rom_unit(emulator, rom_guest, **disk("disk.img")))
            wanted = f"(pid {foreign.pid})"
            seen: list[str] = []
            assert came_true(lambda: _says(daemon, "web", wanted, seen), seconds=20), seen
        finally:
            foreign.kill()
    assert daemon.do("web", "start")["substate"] == "running"


def _says(daemon: Daemon, name: str, wanted: str, seen: list[str]) -> bool:
    """Whether a start is refused in these words; one that succeeds too early is undone."""
    operation = daemon.power(name, "start")
    if operation["state"] == "succeeded":
        daemon.do(name, "kill")
        return False
    seen.append(operation["error"]["detail"])
    return wanted in seen[-1]


HIDE_KVM = """set -e
mkdir "$1/dev"; mount -t tmpfs tmpfs "$1/dev"
for node in null zero full random urandom; do : >"$1/dev/$node"; mount --bind "/dev/$node" "$1/dev/$node"; done
mount --move "$1/dev" /dev
shift; exec "$@"
"""


@pytest.mark.root
def test_kvm_that_is_not_there_is_a_clear_refusal(root_dir: Path, emulator: Emulator, rom_guest: Path) -> None:
    """With `accel = "kvm"` a host without /dev/kvm is told so; `auto` runs on TCG there and says why it is slow."""
    hide = ("unshare", "--mount", "--propagation", "private", "sh", "-c", HIDE_KVM, "sh", str(root_dir))
    daemon = Daemon(root_dir, command=(*hide, sys.executable, "-m", "qsup.daemon"))
    daemon.start()
    try:
        unit = rom_unit(emulator, rom_guest)
        daemon.unit("web", unit.replace('"tcg"', '"kvm"'))
        assert "there is no /dev/kvm" in words(refusal(daemon, "web"))
        daemon.unit("web", unit.replace('"tcg"', '"auto"'))
        view = daemon.do("web", "start")
        assert view["machine"]["accel"] == "tcg"
        assert "there is no /dev/kvm" in " ".join(view["warnings"])
    finally:
        daemon.close()


def test_kvm_is_confirmed_or_its_failure_named(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """`-cpu host` under a KVM that cannot do it: the start fails with QEMU's end; where it can, QEMU confirms KVM."""
    unit = rom_unit(emulator, rom_guest, cpu='model = "host"').replace('"tcg"', '"kvm"')
    with bystander(daemon, emulator, rom_guest):
        daemon.unit("web", unit)
        operation = daemon.power("web", "start")
        if operation["state"] == "succeeded":
            answer = daemon.post("/v1/instances/web/qmp", {"execute": "query-kvm"})
            assert answer["result"]["enabled"] is True
            daemon.do("web", "kill")
        else:
            said = operation["error"]["detail"]
            assert "signal ABRT" in said or "KVM" in said or "kvm" in said, said
            assert daemon.view("web")["substate"] == "start-failed"


NAMES = ["a/b", "../web", "..", ".", "-rf", ".web", "a\nb", "a b", "a" * 49, "web@a/b", "web@..", "@a", "é", "\0"]


@pytest.mark.user
def test_impossible_names_go_nowhere(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """By the API, by the command line and as file names: refused with the rule, and no file of that name is touched."""
    with bystander(daemon, emulator, rom_guest):
        with daemon.client() as client:
            for name in NAMES:
                path = quote(name)
                for method, resource in (
                    ("GET", f"/v1/instances/{path}"),
                    ("POST", f"/v1/instances/{path}/start"),
                    ("POST", f"/v1/instances/{path}/kill"),
                    ("GET", f"/v1/instances/{path}/log"),
                    ("PUT", f"/v1/units/{path}"),
                    ("DELETE", f"/v1/units/{path}"),
                ):
                    with pytest.raises((NotFoundError, RequestError, UnitError, MethodNotAllowed)):
                        client.exchange(method, resource, body=b"" if method == "GET" else b"[machine]\n")
        for name in ("a/b", "..", ".web", "a\nb", "a b"):
            told = daemon.ctl("start", "--", name, check=False)
            assert told.returncode not in (0, None), name
            assert "Traceback" not in told.stderr
        assert daemon.ctl("start", "-rf", check=False).returncode == 2
        before = {view["name"] for view in daemon.get("/v1/instances")["instances"]}
        for name in ("-rf", ".web", "a b", "a\nb"):
            (daemon.units / f"{name}.toml").write_text(rom_unit(emulator, rom_guest))
        problems = " ".join(daemon.post("/v1/reload")["diagnostics"][n]["message"] for n in range(3))
        assert "use letters, digits" in problems
        assert {view["name"] for view in daemon.get("/v1/instances")["instances"]} == before
    assert sorted(path.name for path in daemon.root.iterdir()) == ["log", "qsupd.log", "run", "state", "units"]


def qsupd(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a daemon that is expected not to begin."""
    command = [sys.executable, "-m", "qsup.daemon", "--root", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.user
def test_a_second_daemon_on_the_same_directories_does_not_begin(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """It names the first one's pid, exits with 1, and the first one's socket, VMs and files are as they were."""
    with bystander(daemon, emulator, rom_guest):
        for arguments in ((), ("--socket", str(daemon.root / "other.sock"))):
            second = qsupd(daemon.root, *arguments)
            assert second.returncode == 1
            assert f"another qsupd (pid {daemon.pid}) works in {daemon.root / 'state'}" in second.stderr
            assert "Traceback" not in second.stderr
        assert not (daemon.root / "other.sock").exists()


def deep(root: Path, length: int) -> Path:
    """A directory below ``root`` whose API socket's path has that many bytes."""
    missing = length - len(str(root / "run/api.sock")) - 1
    directory = root / ("x" * missing)
    assert len(str(directory / "run/api.sock")) == length
    return directory


@pytest.mark.user
def test_a_socket_path_beyond_107_bytes_is_refused_and_107_serve(
    root_dir: Path, emulator: Emulator, rom_guest: Path
) -> None:
    """The length and the limit are told before anything is made; at the limit itself VMs of the longest name run."""
    beyond = deep(root_dir, 108)
    refused = qsupd(beyond)
    assert refused.returncode == 1
    assert "has 108 bytes; Unix sockets allow 107" in refused.stderr
    assert not beyond.exists()
    longest = deep(root_dir, 107)
    longest.mkdir()
    daemon = Daemon(longest)
    daemon.start()
    try:
        name = "n" * 48
        daemon.unit(name, rom_unit(emulator, rom_guest))
        pid = daemon.do(name, "start")["pid"]
        daemon.type(name, "x")
        daemon.restart()
        assert daemon.wait(name, "running")["pid"] == pid
        assert daemon.do(name, "kill")["substate"] == "dead"
    finally:
        daemon.close()


def test_what_stands_in_the_way_of_a_beginning_is_named(root_dir: Path) -> None:
    """Files where directories should be, a wrong configuration: one sentence, exit status 1, no traceback."""
    (root_dir / "state").write_text("in the way")
    told = qsupd(root_dir)
    assert (told.returncode, "Traceback" in told.stderr) == (1, False)
    assert str(root_dir / "state") in told.stderr
    (root_dir / "state").unlink()
    (root_dir / "qsupd.toml").write_text("pool = []\nuid-first = 'x'\n")
    told = qsupd(root_dir)
    assert told.returncode == 1
    assert "unknown key 'pool'; did you mean 'pools'?; uid-first: must be an integer" in told.stderr
