"""The values that planning takes in and gives out.

Decides: what is known of the host and of a QEMU binary when a plan is made, and what a plan asks of the launcher.
Must not: read any of it from the host; `qsup.host` fills the facts in and carries the plan out.

A plan is a pure function of the unit, the identity, the host's facts and QEMU's capabilities. File descriptor numbers
and staged file names are not known when it is made, so arguments hold references (`FdArgument`, `FileArgument`) that
`Plan.command` replaces. Long because it is one list of plain values.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, fields, frozen


@frozen(kw_only=True)
class Identity:
    """What stays with a VM over its starts, stored by the daemon.

    Args:
        name: the instance's name.
        uuid: the SMBIOS UUID, and the seed of the MAC addresses.
        machines: machine alias -> versioned type, as first resolved, such as ``{"q35": "pc-q35-7.2"}``.
    """

    name: str
    uuid: str
    machines: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class Firmware:
    """One firmware found through QEMU's descriptor files (docs/interop/firmware.json in QEMU's source).

    Args:
        descriptor: the descriptor's path; descriptors are tried in the order of their file names.
        interfaces: ``uefi``, ``bios``...
        mapping: ``flash`` or ``memory``.
        executable: the code image.
        executable_format: ``raw`` or ``qcow2``.
        variables: the template of the variable store, or ``""``.
        variables_format: ``raw`` or ``qcow2``.
        machines: globs of machine types by architecture, such as ``{"x86_64": ("pc-q35-*",)}``.
        features: such as ``secure-boot``, ``requires-smm``, ``enrolled-keys``.
    """

    descriptor: str
    interfaces: tuple[str, ...]
    mapping: str
    executable: str
    executable_format: str = "raw"
    variables: str = ""
    variables_format: str = "raw"
    machines: Mapping[str, tuple[str, ...]] = field(factory=dict)
    features: tuple[str, ...] = ()


@frozen(kw_only=True)
class HostFacts:
    """What planning needs to know of the host.

    Args:
        kvm: whether KVM can be used: /dev/kvm opens read-write and the CPU lists vmx or svm.
        kvm_device: whether /dev/kvm opens read-write at all (``accel = "kvm"`` insists and QEMU has the last word).
        kvm_reason: why `kvm` is false, for the user.
        architecture: the host's machine, as ``uname -m`` says it.
        firmware: all firmware found, in order.
        boot_id: the kernel's boot id.
        merges_pages: its ksmd runs.
        hugepages: when it puts memory into huge pages as it goes, by the file that says so: ``enabled`` (memory of one
            process alone) and ``shmem_enabled``; none where it cannot.
    """

    kvm: bool
    kvm_device: bool
    kvm_reason: str = ""
    architecture: str = "x86_64"
    firmware: tuple[Firmware, ...] = ()
    boot_id: str = ""
    merges_pages: bool = False
    hugepages: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class MachineType:
    """One entry of QAPI ``query-machines``."""

    name: str
    alias: str = ""
    cpu_max: int = 1
    hotpluggable_cpus: bool = False
    default_cpu_type: str = ""
    deprecated: bool = False


@frozen(kw_only=True)
class Capabilities:
    """What one QEMU binary can do, probed once for its (path, mtime, size).

    Args:
        emulator: the binary's absolute path.
        version: for people only; nothing is decided by it.
        architecture: QAPI ``query-target``.
        machines: all machine types.
        commands: names of all QMP commands (``query-commands``).
        devices: names of all creatable device types (``qom-list-types implements=device``).
        objects: names of all user-creatable object types.
        options: command line options and their parameters (``query-command-line-options``).
        schema_features: probed facts of the QAPI schema by name, such as ``screendump-format``.
        accelerators: ``kvm``, ``tcg``.
    """

    emulator: str
    version: str
    architecture: str
    machines: tuple[MachineType, ...]
    commands: frozenset[str]
    devices: frozenset[str]
    objects: frozenset[str] = frozenset()
    options: Mapping[str, tuple[str, ...]] = field(factory=dict)
    schema_features: frozenset[str] = frozenset()
    accelerators: frozenset[str] = frozenset()


@frozen(kw_only=True)
class ListenerFd:
    """A listening Unix socket of the VM's run directory: ``qmp``, ``console``, ``agent``."""

    name: str


@frozen(kw_only=True)
class ImageFd:
    """An image to open, check and claim.

    Args:
        name: unique within the plan, such as ``disk-root``.
        path: as the unit says it; resolved in the pools, unless `own` is set.
        format: ``raw`` or ``qcow2``; the header must agree.
        writable: open read-write.
        claim_write: the claim taken on it: ``True`` excludes other VMs. Backing files are claimed for reading.
        shareable: several VMs may hold it for writing.
        backing: declared backing file right below it, ``None`` for none: (path, format).
        block_device: the path must be a block device; without it, a regular file.
        direct: open with ``O_DIRECT``; QEMU looks for a descriptor with the very flag (since 9.1).
        own: the path is one of the daemon's own (firmware, UEFI variables), absolute, outside the pools' rules.
        entry: of the unit that it serves, such as ``disk.root``.
    """

    name: str
    path: str
    format: str
    writable: bool
    claim_write: bool
    shareable: bool = False
    backing: tuple[str, str] | None = None
    block_device: bool = False
    direct: bool = False
    own: bool = False
    entry: str = ""


@frozen(kw_only=True)
class TapFd:
    """A tap interface to create.

    Args:
        name: unique within the plan, such as ``nic-lan``.
        nic: the NIC's id.
        bridge: the bridge it joins.
        create_bridge: make the bridge when it is absent.
    """

    name: str
    nic: str
    bridge: str
    create_bridge: bool


@frozen(kw_only=True)
class ShareFd:
    """A connection to a file server of its own, which shares a directory by vhost-user.

    Args:
        name: unique within the plan, such as ``share-data``.
        entry: of the unit that it serves, such as ``device.data``.
        path: as the unit says it; resolved in the pools.
        read_only: nobody can write to it.
    """

    name: str
    entry: str
    path: str
    read_only: bool


@frozen(kw_only=True)
class UsbFd:
    """A USB device of the host; see `qsup.host.usb.find`.

    Args:
        name: unique within the plan, such as ``usb-stick``.
        entry: of the unit that it is for, such as ``device.stick``.
    """

    name: str
    entry: str
    identity: str
    port: str


@frozen(kw_only=True)
class PciTaken:
    """A PCI device of the host that is to be taken from its driver; no descriptor goes to QEMU for it.

    Args:
        name: unique within the plan, such as ``pci-gpu``.
        entry: of the unit that it is for, such as ``device.gpu``.
        address: such as ``0000:03:00.0``.
    """

    name: str
    entry: str
    address: str


@frozen(kw_only=True)
class ConnectFd:
    """A connection to a program of the host that listens already.

    Args:
        name: unique within the plan, such as ``vhost-disk``.
        entry: of the unit that it is for, such as ``device.disk``.
        path: of the socket, absolute.
    """

    name: str
    entry: str
    path: str


FdRequest = ListenerFd | ImageFd | TapFd | ShareFd | UsbFd | PciTaken | ConnectFd


@frozen(kw_only=True)
class FdArgument:
    """An argument with a descriptor's number in it: ``before + number + after``."""

    before: str
    fd: str
    after: str = ""


@frozen(kw_only=True)
class FileRequest:
    """A file that QEMU opens by its path and that must be readable for the VM's own user.

    Args:
        name: unique within the plan, such as ``kernel``.
        path: as the unit says it; a relative path resolves in the first pool.
    """

    name: str
    path: str


@frozen(kw_only=True)
class FileArgument:
    """An argument that is the path of a `FileRequest`, as staged by the launcher: ``before + path + after``."""

    before: str
    file: str
    after: str = ""


@frozen(kw_only=True)
class VariableStore:
    """A UEFI variable store to make before the first start: a qcow2 copy of ``template``, kept per VM.

    Args:
        template: the pristine variables, absolute.
        template_format: ``raw`` or ``qcow2``.
        file: name of the copy within the VM's state directory; an `ImageFd` of the plan opens it.
    """

    template: str
    template_format: str
    file: str


Argument = str | FdArgument | FileArgument


@frozen(kw_only=True)
class NicPlan:
    """What was planned for one NIC: id, type, model, MAC, bridge, and the forwards as text."""

    id: str
    type: str
    model: str
    mac: str
    bridge: str = ""
    forward: tuple[str, ...] = ()


@frozen(kw_only=True)
class ComingMedium:
    """What is about to be in a CD drive.

    Args:
        path, format, node: as those of the `DiskPlan` are to be; of a drive that is to be empty there are none.
        claims: how many of the last claims of the drive are for it.
    """

    path: str
    format: str
    node: str
    claims: int


@frozen(kw_only=True)
class DiskPlan:
    """What was planned for one disk.

    Args:
        node: the block node the device reads (at most 31 characters).
        device: the device's QOM id, as in ``/machine/peripheral/DEVICE``.
        bootindex: its place in the boot order, -1 for none; what came while the VM runs has none.
        coming: of a drive whose medium is being changed; QEMU knows which of the two it has.
        iothread: the unit's id of the one that does its work, ``""`` for the main loop.
    """

    id: str
    path: str
    format: str
    type: str
    bus: str
    read_only: bool
    node: str
    device: str
    bootindex: int = -1
    coming: ComingMedium | None = None
    iothread: str = ""


@frozen(kw_only=True)
class DevicePlan:
    """One device that QEMU knows by an id.

    Args:
        id: below ``/machine/peripheral``; of one that somebody gave QEMU without an id its path, which ``device_del``
            takes, too.
        driver: QEMU's name of its type, ``""`` where nobody has asked yet.
        bus: id of the bus it is on, ``""`` where QEMU chose.
        address: its place on that bus, such as ``0x1`` or ``0:3:0``.
    """

    id: str
    driver: str
    bus: str = ""
    address: str = ""


@frozen(kw_only=True)
class BackendPlan:
    """Something of QEMU's that devices stand on.

    Args:
        kind: as `qsup.plan.part.Backend` has it.
        name: QEMU's for it: a node's, an object's id, the number of a descriptor set.
    """

    kind: str
    name: str


@frozen(kw_only=True)
class PartPlan:
    """What QEMU has for one entry of a unit, or for the board.

    Args:
        entry: of the unit, such as ``disk.root``; ``""`` for what belongs to the VM as a whole.
        devices: controllers before what hangs on them.
        backends: in the order in which they are made; none is removed before all devices are gone.
        state: ``there``; ``coming`` while it is being attached; ``leaving`` once its devices were asked to go.
    """

    entry: str
    devices: tuple[DevicePlan, ...]
    backends: tuple[BackendPlan, ...] = ()
    state: str = "there"


@frozen(kw_only=True)
class GuestNodePlan:
    """One NUMA node of a guest.

    Args:
        id: as the unit has it; the guest calls it by its number in their order.
        size: bytes that it is started with.
        vcpus: the numbers of those that are in it, that are not there yet included.
        nodes: of the host, that its memory is to be on; none: nothing was said of it.
    """

    id: str
    size: int
    vcpus: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()


@frozen(kw_only=True)
class PlanSummary:
    """What is planned of a VM that runs; kept in the run record, so that an adopting daemon knows it too.

    Args:
        emulator: the binary's absolute path.
        machine: the versioned machine type.
        accel: ``kvm`` or ``tcg``.
        cpu_model: what ``-cpu`` says.
        family: of machine types, such as ``q35``.
        vcpus_made: how many vCPUs QEMU has made so far, those that went again included.
        memory_base: bytes of memory that the guest was started with.
        memory_nodes: of the host, that its memory is on; none: nothing was said of it.
        guest_nodes: of a guest that has NUMA nodes, in its order.
        parts: every device, and what it stands on.
        shared_memory: other programs can be given the guest's memory.
        warnings: what the user should know, one sentence each.
    """

    emulator: str
    machine: str
    accel: str
    cpu_model: str
    family: str = ""
    vcpus_made: int = 1
    memory_base: int = 0
    memory_nodes: tuple[int, ...] = ()
    guest_nodes: tuple[GuestNodePlan, ...] = ()
    parts: tuple[PartPlan, ...] = ()
    disks: tuple[DiskPlan, ...] = ()
    nics: tuple[NicPlan, ...] = ()
    has_console: bool = False
    has_agent: bool = False
    has_vnc: bool = False
    has_video: bool = False
    shared_memory: bool = False
    warnings: tuple[str, ...] = ()


@frozen(kw_only=True)
class Plan(PlanSummary):
    """Everything the launcher needs to start one VM.

    Args:
        arguments: QEMU's arguments, without ``argv[0]``, with references for what is not known yet.
        fds: descriptors to make, in order.
        files: files to stage.
        variables: the UEFI variable store to make when it is absent, or ``None``.
        machine_alias: what the versioned machine type was resolved from, or ``""``; the launcher keeps the pair in the
            identity.
    """

    arguments: tuple[Argument, ...]
    fds: tuple[FdRequest, ...]
    files: tuple[FileRequest, ...]
    machine_alias: str = ""
    variables: VariableStore | None = None

    def summary(self) -> PlanSummary:
        """The part that outlives the launch."""
        return PlanSummary(**{a.name: getattr(self, a.name) for a in fields(PlanSummary)})

    def command(self, numbers: Mapping[str, int], paths: Mapping[str, str]) -> list[str]:
        """The whole argv.

        Args:
            numbers: descriptor number by `FdRequest` name.
            paths: staged path by `FileRequest` name.

        Raises:
            KeyError: a reference that was not resolved.
        """

        def render(argument: Argument) -> str:
            match argument:
                case FdArgument():
                    return f"{argument.before}{numbers[argument.fd]}{argument.after}"
                case FileArgument():
                    return f"{argument.before}{paths[argument.file]}{argument.after}"
                case str():
                    return argument

        return [self.emulator, *map(render, self.arguments)]
