"""Starting QEMU on a plan without qsup's launcher: images, taps and sockets are made as the plan asks, and no more.

Decides: what stands for each thing a plan asks for.
Must not: use qsup's host room, or leave anything behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs

from qsup.errors import UnsupportedError
from qsup.host.vhostuser import file_server, find_file_server
from qsup.plan.spec import FileRequest, ImageFd, ListenerFd, Plan, ShareFd, TapFd
from tests.bare import BareConnection
from tests.guests import Emulator, linux_guest, rom_guest
from tests.plan.goldens import fd_names

_SIZE = 1 << 24
_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_TAP_FLAGS = 0x0002 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
_DEADLINE = 60.0


@attrs.frozen(kw_only=True)
class Paused:
    """A QEMU that was started on a plan and has not run its guest yet."""

    process: subprocess.Popen[bytes]
    monitor: BareConnection
    errors: Path


@contextlib.contextmanager
def paused(plan: Plan, directory: Path, emulator: Emulator) -> Iterator[Paused]:
    """Start a plan's QEMU and negotiate with it; end it.

    Args:
        directory: an empty one, for all its files.

    Raises:
        AssertionError: it ended before it was ready; the message is what it said.
    """
    errors = directory / "stderr"
    with contextlib.ExitStack() as stack:
        for request in plan.fds:
            if isinstance(request, ListenerFd):
                # QEMU removes what it listens on when it quits
                stack.callback((directory / request.name).unlink, missing_ok=True)
        with _resources(plan, directory, emulator, stack) as numbers, errors.open("wb") as output:
            argv = plan.command(numbers, {file.name: str(_file(file)) for file in plan.files})
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=tuple(numbers.values())
            )
            stack.callback(_end, process)
            # while we hold the listener, too: a QEMU that has ended is an end of file then, not a refusal
            monitor = stack.enter_context(BareConnection(directory / "qmp"))
        try:
            monitor.negotiate()
        except (AssertionError, OSError) as error:
            raise AssertionError(errors.read_text().strip() or repr(error)) from error
        yield Paused(process=process, monitor=monitor, errors=errors)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(_DEADLINE)


def obstacle(word: str) -> str:
    """Why this host lacks what a golden's ``needs:`` names, found out by trying; ``""`` when it has it."""
    return _OBSTACLES[word]()


def _file(request: FileRequest) -> Path:
    stand_ins = {"kernel": linux_guest().kernel, "initrd": linux_guest().initrd, "firmware": rom_guest()}
    return stand_ins[request.name]


@contextlib.contextmanager
def _resources(
    plan: Plan, directory: Path, emulator: Emulator, afterwards: contextlib.ExitStack
) -> Iterator[dict[str, int]]:
    """Descriptor numbers for everything that the plan asks for.

    Args:
        afterwards: closed once QEMU has ended.
    """
    with contextlib.ExitStack() as stack:
        numbers: dict[str, int] = {}
        for request in plan.fds:
            match request:
                case ListenerFd():
                    numbers[request.name] = stack.enter_context(_listener(directory / request.name)).fileno()
                case TapFd():
                    numbers[request.name] = _closing(stack, open_tap())
                case ShareFd():
                    numbers[request.name] = _closing(stack, _file_server(request, directory, afterwards))
                case ImageFd():
                    path = _image(plan, request, directory, emulator, stack)
                    direct = os.O_DIRECT if request.direct else 0
                    modes = (os.O_RDWR, os.O_RDONLY) if request.writable else (os.O_RDONLY,)
                    for name, mode in zip(fd_names(request), modes, strict=True):
                        numbers[name] = _closing(stack, os.open(path, mode | direct))
        yield numbers


def _closing(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _file_server(request: ShareFd, directory: Path, afterwards: contextlib.ExitStack) -> int:
    """A connection to a file server, which ends when that does."""
    with _listener(directory / request.name) as listener, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(directory / request.name))
        (directory / request.name).unlink()
        fd = listener.fileno()
        shared = directory / f"{request.name}.d"
        shared.mkdir()
        command = file_server(find_file_server(), str(shared), fd, read_only=request.read_only)
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[fd])
        afterwards.callback(server.wait, _DEADLINE)
        return os.dup(connection.fileno())


def _image(plan: Plan, request: ImageFd, directory: Path, emulator: Emulator, stack: contextlib.ExitStack) -> Path:
    if request.own and not request.writable:
        return Path(request.path)
    path = directory / request.name
    if request.own:
        assert plan.variables
        template = _converted(plan.variables.template, plan.variables.template_format, str(emulator.img))
        path.write_bytes(template)
    elif request.format == "qcow2":
        path.write_bytes(_empty_qcow2(str(emulator.img)))
    else:
        with path.open("wb") as file:
            file.truncate(_SIZE)
    return stack.enter_context(loop_device(path)) if request.block_device else path


@functools.cache
def _empty_qcow2(img: str) -> bytes:
    return _made(img, "create", "-q", "-f", "qcow2", "OUT", str(_SIZE))


@functools.cache
def _converted(template: str, template_format: str, img: str) -> bytes:
    return _made(img, "convert", "-f", template_format, "-O", "qcow2", template, "OUT")


def _made(img: str, *arguments: str) -> bytes:
    """What qemu-img writes to ``OUT``."""
    out = f"/proc/self/fd/{(fd := os.memfd_create('image'))}"
    try:
        command = [img, *(out if argument == "OUT" else argument for argument in arguments)]
        subprocess.run(command, check=True, timeout=_DEADLINE, pass_fds=[fd], stdout=subprocess.DEVNULL)
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


@contextlib.contextmanager
def loop_device(path: Path) -> Iterator[Path]:
    """A block device of a file."""
    command = ["losetup", "--find", "--show", str(path)]
    device = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_DEADLINE).stdout.strip()
    try:
        yield Path(device)
    finally:
        # what still uses it keeps it until it is done
        subprocess.run(["losetup", "--detach", device], check=True, timeout=_DEADLINE)


def open_tap() -> int:
    """A descriptor of a tap interface that vanishes with it."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"qsuptest%d", _TAP_FLAGS))
    except OSError:
        os.close(fd)
        raise
    return fd


def _tap_obstacle() -> str:
    try:
        os.close(open_tap())
    except OSError as error:
        return f"a tap cannot be made: {error}"
    return ""


def loop_obstacle() -> str:
    """Why there can be none, ``""`` where there can."""
    if shutil.which("losetup") is None or not os.access("/dev/loop-control", os.R_OK | os.W_OK):
        return "a loop device cannot be made"
    return ""


def _kvm_obstacle() -> str:
    return "" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm cannot be opened"


def _vmx_obstacle() -> str:
    flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    return _kvm_obstacle() or ("" if {"vmx", "svm"} & set(flags) else "the CPU lists neither vmx nor svm")


def _uefi_obstacle(*features: str) -> str:
    descriptors = Path("/usr/share/qemu/firmware").glob("*.json")
    fitting = [text for text in map(Path.read_text, descriptors) if all(f'"{word}"' in text for word in features)]
    return "" if fitting else "no UEFI firmware is installed"


def _huge_pages_obstacle(wanted: int) -> str:
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    free = int(pool.read_text()) if pool.exists() else 0
    return "" if free >= wanted else f"of {wanted} huge pages of 2M {free} are free"


def _locked_memory_obstacle() -> str:
    program = (
        "import ctypes, mmap; lock = ctypes.CDLL(None).mlockall; failed = lock(3); mmap.mmap(-1, 1 << 28); exit(failed)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    return "locking 256M of memory is not allowed" if done.returncode else ""


def _host_device_obstacle() -> str:
    return "the devices that it names are nowhere: it is about the plan alone"


def _virtiofsd_obstacle() -> str:
    try:
        find_file_server()
    except UnsupportedError as error:
        return str(error)
    return "" if os.geteuid() == 0 else "virtiofsd needs root"


_OBSTACLES: Mapping[str, Callable[[], str]] = {
    "kvm-device": _kvm_obstacle,
    "vmx": _vmx_obstacle,
    "tap": _tap_obstacle,
    "virtiofsd": _virtiofsd_obstacle,
    "loop-device": loop_obstacle,
    "huge-pages": functools.partial(_huge_pages_obstacle, 32),
    "huge-pages-of-32G": functools.partial(_huge_pages_obstacle, 32 << 9),
    "locked-memory": _locked_memory_obstacle,
    "usb": _host_device_obstacle,
    "iommu": _host_device_obstacle,
    "vhost-user": _host_device_obstacle,
    "uefi": functools.partial(_uefi_obstacle, "uefi"),
    "uefi-secure": functools.partial(_uefi_obstacle, "uefi", "secure-boot", "enrolled-keys"),
}
