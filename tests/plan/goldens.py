"""Golden pairs: a unit file, and the whole plan that is made of it, as text.

Decides: the form of both, the facts that plans are made from, and the numbers and paths that stand for the launcher's.
Must not: start anything; `tests.real.test_golden` does.

``NAME.toml`` opens with comments: what it shows, then directives.

- ``# host: kvm``: plan for a host with KVM; ``kvm-device``: for one where /dev/kvm opens and no more.
- ``# needs: WORD``: what a host must have for a real QEMU to start on this plan; `tests.real.planned` tries.

``NAME.argv`` holds the command line, an option and its value on one line, quoted as for a shell, and then as comments
what else the plan says.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from qsup.host import codec
from qsup.instance.probe import ProbeRecord
from qsup.plan.argv import build_plan
from qsup.plan.spec import (
    Capabilities,
    ConnectFd,
    FdRequest,
    Firmware,
    HostFacts,
    Identity,
    ImageFd,
    ListenerFd,
    PciTaken,
    Plan,
    ShareFd,
    TapFd,
    UsbFd,
)
from qsup.unit.load import load_unit
from qsup.unit.model import Unit
from qsup.unit.specifier import SpecifierContext

EXAMPLES = Path(__file__).resolve().parents[2] / "units"
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CAPABILITIES = Path(__file__).resolve().parent / "capabilities"
#: The QEMU that the pairs are made for; the plans for others differ in what `test_golden` says.
QEMU = "qemu-7.2"
STATE_DIR = "/var/lib/qsup/vms/golden"
UUID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
FIRST_FD = 10

_OVMF = "/usr/share/OVMF/OVMF"
_DESCRIPTORS = "/usr/share/qemu/firmware"


def _ovmf(descriptor: str, code: str, variables: str, machines: tuple[str, ...], *features: str) -> Firmware:
    return Firmware(
        descriptor=f"{_DESCRIPTORS}/{descriptor}.json",
        interfaces=("uefi",),
        mapping="flash",
        executable=f"{_OVMF}_{code}.fd",
        variables=f"{_OVMF}_{variables}.fd",
        machines={"x86_64": machines},
        features=("acpi-s3", *features),
    )


_SECURE = ("requires-smm", "secure-boot")
#: What Debian's package ovmf describes.
DEBIAN_FIRMWARE = (
    _ovmf("40-edk2-x86_64-secure-enrolled", "CODE_4M.ms", "VARS_4M.ms", ("pc-q35-*",), "enrolled-keys", *_SECURE),
    _ovmf("50-edk2-x86_64-secure", "CODE_4M.secboot", "VARS_4M", ("pc-q35-*",), *_SECURE),
    _ovmf("60-edk2-x86_64", "CODE_4M", "VARS_4M", ("pc-i440fx-*", "pc-q35-*")),
)
_NESTED = "/dev/kvm opens, but the CPU lists neither vmx nor svm"
HOSTS = {
    "": HostFacts(
        kvm=False,
        kvm_device=False,
        kvm_reason="there is no /dev/kvm (is the kvm module loaded?)",
        firmware=DEBIAN_FIRMWARE,
    ),
    "kvm": HostFacts(kvm=True, kvm_device=True, firmware=DEBIAN_FIRMWARE),
    "kvm-device": HostFacts(kvm=False, kvm_device=True, kvm_reason=_NESTED, firmware=DEBIAN_FIRMWARE),
}


@frozen(kw_only=True)
class Golden:
    """One pair.

    Args:
        host: which of `HOSTS`.
        needs: what a real start needs.
    """

    name: str
    unit: Unit
    host: str
    needs: tuple[str, ...]

    @property
    def expected(self) -> Path:
        """The file with the plan's text."""
        return GOLDEN / f"{self.name}.argv"

    def plan(self, capabilities: Capabilities, *, host: HostFacts | None = None, state_dir: str = STATE_DIR) -> Plan:
        """The plan of this unit, for the recorded host unless another is given."""
        return build_plan(
            self.unit,
            identity=Identity(name="golden", uuid=UUID),
            host=host or HOSTS[self.host],
            capabilities=capabilities,
            state_dir=state_dir,
        )


def names() -> list[str]:
    """All pairs."""
    return sorted(path.stem for path in GOLDEN.glob("*.toml"))


@functools.cache
def load(name: str) -> Golden:
    """One pair by its name."""
    text = (GOLDEN / f"{name}.toml").read_text()
    directives = dict(re.findall(r"^# (host|needs): (.*)$", text, flags=re.MULTILINE))
    return Golden(
        name=name,
        unit=load_unit(name, [GOLDEN], SpecifierContext(name=name)).unit,
        host=directives.get("host", ""),
        needs=tuple(directives.get("needs", "").split()),
    )


def example_names() -> list[str]:
    """The VMs of ``units/``; a template stands for one instance of it."""
    return sorted(f"{path.stem}alice" if path.stem.endswith("@") else path.stem for path in EXAMPLES.glob("*.toml"))


@functools.cache
def load_example(name: str) -> Golden:
    """One VM of ``units/``, as if it were half a pair."""
    unit = load_unit(name, [EXAMPLES], SpecifierContext(name=name)).unit
    needs = {
        "uefi": unit.machine.firmware == "uefi",
        "tap": any(nic.type != "user" for nic in unit.nics),
        "huge-pages-of-32G": bool(unit.memory.hugepages),
    }
    return Golden(name=name, unit=unit, host="", needs=tuple(word for word, there in needs.items() if there))


@functools.cache
def capabilities(qemu: str = QEMU) -> Capabilities:
    """What a QEMU said when it was recorded; see `tests.plan.regenerate`."""
    return codec.decode(ProbeRecord, json.loads((CAPABILITIES / f"{qemu}.json").read_text())).capabilities


def recorded() -> list[str]:
    """The names of all recorded QEMUs."""
    return sorted(path.stem for path in CAPABILITIES.glob("*.json"))


def numbers(plan: Plan) -> dict[str, int]:
    """A number for each descriptor: in order, from `FIRST_FD`; a writable image has two."""
    wanted = [name for request in plan.fds for name in fd_names(request)]
    return {name: FIRST_FD + index for index, name in enumerate(wanted)}


def fd_names(request: FdRequest) -> tuple[str, ...]:
    """The names under which the launcher must supply a request's descriptors."""
    if isinstance(request, ImageFd) and request.writable:
        return request.name, f"{request.name}:ro"
    return () if isinstance(request, PciTaken) else (request.name,)


def render(plan: Plan) -> str:
    """The text of a plan, as it stands in an ``.argv`` file."""
    given = numbers(plan)
    argv = plan.command(given, {file.name: f"/staged/{file.name}" for file in plan.files})
    return "\n".join([*_lines(argv), "", *_comments(plan, given), ""])


def _lines(argv: list[str]) -> Iterator[str]:
    yield argv[0]
    line = ""
    for argument in argv[1:]:
        if argument.startswith("-"):
            if line:
                yield line
            line = argument
        else:
            line += f" {shlex.quote(argument)}"
    yield line


def _comments(plan: Plan, given: dict[str, int]) -> Iterator[str]:
    yield f"# machine {plan.machine_alias or '(versioned)'} -> {plan.machine}, {plan.accel}, {plan.cpu_model}"
    for request in plan.fds:
        numbers = "+".join(str(given[name]) for name in fd_names(request))
        yield f"# fd {numbers} {_describe(request)}" if numbers else f"# {_describe(request)}"
    for file in plan.files:
        yield f"# file /staged/{file.name}: {file.path}"
    if plan.variables:
        yield f"# variables {plan.variables.file}: {plan.variables.template_format} {plan.variables.template}"
    for disk in plan.disks:
        access = "ro" if disk.read_only else "rw"
        yield f"# disk {disk.id}: {disk.type} on {disk.bus}, {access}, device {disk.device}, node {disk.node or '-'}"
    for nic in plan.nics:
        yield f"# nic {nic.id}: {nic.type} {nic.model} {nic.mac} {nic.bridge}{' '.join(nic.forward)}".rstrip()
    marks = {"console": plan.has_console, "agent": plan.has_agent, "vnc": plan.has_vnc, "video": plan.has_video}
    yield f"# has {' '.join(mark for mark, there in marks.items() if there) or 'nothing to talk to'}"
    for warning in plan.warnings:
        yield f"# warning: {warning}"


def _describe(request: FdRequest) -> str:
    match request:
        case ListenerFd():
            return f"listener {request.name}"
        case TapFd():
            return f"tap {request.name} on {request.bridge}{' (made if absent)' if request.create_bridge else ''}"
        case UsbFd():
            return f"USB device {request.name}: {request.identity or 'any'} at {request.port or 'any port'}"
        case PciTaken():
            return f"PCI device {request.name}: {request.address}, taken from its driver"
        case ConnectFd():
            return f"connection {request.name} to {request.path}"
        case ShareFd():
            return f"file server {request.name}: {request.path}{' (read-only)' if request.read_only else ''}"
        case ImageFd():
            marks = {
                "rw": request.writable,
                "claimed": request.claim_write,
                "shareable": request.shareable,
                "block-device": request.block_device,
                "direct": request.direct,
                "own": request.own,
            }
            words = " ".join(mark for mark, there in marks.items() if there)
            on = f", on {request.backing[1]} {request.backing[0]}" if request.backing else ""
            return f"image {request.name}: {request.format} {request.path}{on}{f' ({words})' if words else ''}"
