"""The firmware: the board's own BIOS, UEFI with variables of the VM's own, or a ROM file; and direct kernel boot.

Decides: which of the host's UEFI builds fits, and how it is put into the flash.
Must not: read descriptors or copy variable stores; the host room does.

The variables are qcow2, so that a snapshot of the VM holds them too. (docs/interop/firmware.json in QEMU's source.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from attrs import field, frozen

from qsup.errors import UnsupportedError
from qsup.plan.blockdev import Image, image_backends
from qsup.plan.machine import Machine
from qsup.plan.part import Part, flatten
from qsup.plan.spec import (
    Capabilities,
    FileArgument,
    FileRequest,
    Firmware,
    HostFacts,
    ImageFd,
    VariableStore,
)
from qsup.unit.effective import machine_family
from qsup.unit.quantity import alternatives
from qsup.unit.sections.machine import UEFI_FIRMWARE, MachineSection


@frozen(kw_only=True)
class FirmwarePart:
    """The firmware's contribution.

    Args:
        settings: machine properties, such as ``{"pflash0": "firmware-code"}``.
        variables: the variable store to make before the first start.
    """

    part: Part
    settings: dict[str, str] = field(factory=dict)
    variables: VariableStore | None = None


def firmware_part(
    section: MachineSection,
    machine: Machine,
    host: HostFacts,
    capabilities: Capabilities,
    state_dir: str,
    fdsets: Iterator[int],
) -> FirmwarePart:
    """Plan the firmware.

    Args:
        state_dir: the VM's own directory, absolute, for the variables.
        fdsets: numbers of descriptor sets not used yet.

    Raises:
        UnsupportedError: the host has no UEFI build that fits.
    """
    if section.firmware == "bios":
        return FirmwarePart(part=Part(subject="[machine] firmware"))
    if section.firmware not in UEFI_FIRMWARE:
        rom = FileRequest(name="firmware", path=section.firmware)
        arguments = ("-bios", FileArgument(before="", file=rom.name))
        return FirmwarePart(part=Part(subject="[machine] firmware", arguments=arguments, files=(rom,)))
    return _uefi(section.firmware, machine, host, capabilities, state_dir, fdsets)


def choose_uefi(wanted: str, machine: str, architecture: str, host: HostFacts) -> Firmware:
    """The first UEFI build, in the order of the descriptors, that fits.

    ``uefi-secure`` insists on Secure Boot with enrolled keys. ``uefi`` takes a build without enrolled keys, if possible
    one that needs no SMM.

    Args:
        wanted: ``uefi`` or ``uefi-secure``.
        machine: the versioned machine type.

    Raises:
        UnsupportedError: there is none.
    """
    usable = [each for each in host.firmware if _is_usable(each, architecture)]
    found = [each for each in usable if _is_kind(wanted, each) and _is_for(machine, architecture, each)]
    if not found:
        keys = " with Secure Boot and enrolled keys" if wanted == "uefi-secure" else ""
        raise UnsupportedError(
            f"no UEFI firmware{keys} for machine type {machine} among QEMU's firmware descriptors",
            hint=_way_out(wanted, machine, architecture, usable),
        )
    if wanted == "uefi":
        found.sort(key=lambda each: "requires-smm" in each.features)  # stable
    return found[0]


def _is_usable(firmware: Firmware, architecture: str) -> bool:
    has_store = firmware.mapping == "flash" and bool(firmware.variables)
    return "uefi" in firmware.interfaces and has_store and bool(firmware.machines.get(architecture))


def _is_for(machine: str, architecture: str, firmware: Firmware) -> bool:
    return any(fnmatchcase(machine, glob) for glob in firmware.machines[architecture])


def _is_kind(wanted: str, firmware: Firmware) -> bool:
    features = set(firmware.features)
    return {"secure-boot", "enrolled-keys"} <= features if wanted == "uefi-secure" else "enrolled-keys" not in features


def _way_out(wanted: str, machine: str, architecture: str, usable: Sequence[Firmware]) -> str:
    """What to change where none of the builds for an architecture fits; to install one only where there is none."""
    if not usable:
        return "install the distribution's package of it (Debian: ovmf)"
    globs = {glob: None for each in usable if _is_kind(wanted, each) for glob in each.machines[architecture]}
    families = {machine_family(glob): None for glob in globs}.keys() - {"", machine_family(machine)}
    if families:
        types = alternatives(f'"{family}"' for family in sorted(families, reverse=True))
        return f"this host has it for {alternatives(globs)}: say type = {types} in [machine]"
    for other in UEFI_FIRMWARE:
        if any(_is_kind(other, each) and _is_for(machine, architecture, each) for each in usable):
            return f'this host has another kind of it for {machine}: say firmware = "{other}"'
    return f"this host has {alternatives([each.descriptor for each in usable], 'and')}, which do not fit"


def _uefi(
    wanted: str,
    machine: Machine,
    host: HostFacts,
    capabilities: Capabilities,
    state_dir: str,
    fdsets: Iterator[int],
) -> FirmwarePart:
    chosen = choose_uefi(wanted, machine.type.name, capabilities.architecture, host)
    # a store of their own for each kind: keys enrolled in one are not trusted in the other
    store = VariableStore(
        template=chosen.variables, template_format=chosen.variables_format, file=f"{wanted}-variables.qcow2"
    )
    code = _flash("code", chosen.executable, chosen.executable_format, fdsets, writable=False)
    variables = _flash("variables", f"{state_dir}/{store.file}", "qcow2", fdsets, writable=True)
    settings = {"pflash0": code.node, "pflash1": variables.node}
    protection: tuple[str, ...] = ()
    if "requires-smm" in chosen.features:
        settings["smm"] = "on"
        # only code in system management mode may then write variables
        protection = ("-global", "driver=cfi.pflash01,property=secure,value=on")
    nodes = [node for image in (code, variables) for node in (image.file(), image.format())]
    part = Part(
        subject="[machine] firmware",
        arguments=protection,
        backends=image_backends(nodes, code, variables),
        fds=(code.request, variables.request),
    )
    return FirmwarePart(part=part, settings=settings, variables=store)


def _flash(name: str, path: str, format_: str, fdsets: Iterator[int], *, writable: bool) -> Image:
    request = ImageFd(
        name=f"firmware-{name}", path=path, format=format_, writable=writable, claim_write=writable, own=True
    )
    return Image(request=request, fdset=next(fdsets), node=f"firmware-{name}", file_node=f"firmwarefile-{name}")


def kernel_part(section: MachineSection) -> Part:
    """Direct boot of a Linux kernel. These options take their whole argument, so commas in it are plain."""
    wanted = {"kernel": section.kernel, "initrd": section.initrd}
    files = tuple(FileRequest(name=name, path=path) for name, path in wanted.items() if path)
    arguments = [(f"-{file.name}", FileArgument(before="", file=file.name)) for file in files]
    command_line = ("-append", section.append) if section.append else ()
    return Part(subject="[machine] kernel", arguments=(*flatten(arguments), *command_line), files=files)
