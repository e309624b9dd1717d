"""What a unit can say: the frozen model of a unit file, with the meaning of every key beside it.

Decides: sections, keys, defaults (those that hang on another key too), each key's kind, its documentation, QEMU's name
for it, and when a change of it takes effect. The parser, the JSON Schema and ``docs/units.md`` are made from this and
nothing else.
Must not: parse text, resolve paths, look at the host, or hold anything that is not in a unit file.

A field's TOML name is its Python name with ``-`` for ``_``; plural fields that hold arrays of tables give theirs
explicitly (``disks`` is ``[[disk]]``). Values are in base units: bytes and seconds.

Long because it is one table: everything there is to know of every key, in the order of a unit file.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from attrs import field, frozen

from qsup.unit import kinds
from qsup.unit.kinds import Forward, Kind, Ready

MIB = 1 << 20


class Applies(enum.Enum):
    """What makes a changed key count for a VM that runs."""

    SUPERVISOR = "at once"  # the daemon alone acts on it, by what the files say; QEMU is not concerned
    LIVE = "live"  # `qsupctl set` or `apply` does it
    RESET = "guest reset"
    RESTART = "restart"


def _always(before: Any, after: Any) -> bool:
    return True


@frozen(kw_only=True)
class Key:
    """What is known of one key besides its value.

    Args:
        kind: which values it takes.
        doc: its meaning, in the words of the unit reference.
        qemu: QEMU's name for it, such as ``-smp maxcpus=``, or ``""``.
        applies: when a change takes effect.
        only: of which entries of its section it does so, in words; of the others a restart is needed.
        holds: whether it does, by the entry before and after the change.
    """

    kind: Kind
    doc: str
    qemu: str = ""
    applies: Applies = Applies.RESTART
    only: str = ""
    holds: Callable[[Any, Any], bool] = _always

    def needs(self, before: Any, after: Any) -> Applies:
        """When a change takes effect that makes an entry of its section ``after``."""
        return self.applies if self.holds(before, after) else Applies.RESTART


@frozen(kw_only=True)
class Section:
    """What is known of one table of a unit file.

    Args:
        name: the TOML table's name.
        many: ``True`` for an array of tables, whose entries merge by ``id``.
        doc: its meaning.
    """

    name: str
    many: bool
    doc: str


_KEY = "qsup.key"
_SECTION = "qsup.section"


def _key(
    kind: Kind,
    doc: str,
    *,
    default: Any = attrs.NOTHING,
    qemu: str = "",
    applies: Applies = Applies.RESTART,
    only: str = "",
    holds: Callable[[Any, Any], bool] = _always,
) -> Any:
    key = Key(kind=kind, doc=doc, qemu=qemu, applies=applies, only=only, holds=holds)
    return field(default=default, metadata={_KEY: key})


def _section(cls: type[Any], doc: str, *, name: str = "") -> Any:
    many = bool(name)
    default: Any = () if many else attrs.Factory(cls)
    return field(default=default, metadata={_SECTION: (cls, Section(name=name, many=many, doc=doc))})


def key_name(attribute: attrs.Attribute[Any]) -> str:
    """The TOML name of a model field."""
    return attribute.name.strip("_").replace("_", "-")


def keys_of(cls: type[Any]) -> Mapping[str, tuple[attrs.Attribute[Any], Key]]:
    """The keys of one section class, by TOML name, in the order of the model."""
    if (known := _KEYS.get(cls)) is None:
        known = _KEYS[cls] = {key_name(a): (a, a.metadata[_KEY]) for a in attrs.fields(cls) if _KEY in a.metadata}
    return known


def sections_of(cls: type[Any]) -> Mapping[str, tuple[attrs.Attribute[Any], type[Any], Section]]:
    """The tables nested in ``cls`` (`Unit` itself, or a section with sub-tables), by TOML name."""
    if (known := _SECTIONS.get(cls)) is None:
        known = _SECTIONS[cls] = {}
        for a in attrs.fields(cls):
            if _SECTION in a.metadata:
                nested, section = a.metadata[_SECTION]
                name = section.name or key_name(a)
                known[name] = (a, nested, attrs.evolve(section, name=name))
    return known


# looked up once: each unit that is parsed asks for all of them
_KEYS: dict[type[Any], dict[str, tuple[attrs.Attribute[Any], Key]]] = {}
_SECTIONS: dict[type[Any], dict[str, tuple[attrs.Attribute[Any], type[Any], Section]]] = {}

_S = Applies.SUPERVISOR


def _present(by: str = " (`qsupctl detach --persist`)") -> Any:
    what = "`false`: the VM does not have it, as if no file named it. A drop-in says so of what another file has"
    return _key(kinds.BOOLEAN, f"{what}{by}.", default=True)


@frozen(kw_only=True)
class UnitSection:
    """``[unit]``: what the VM is and how it relates to others."""

    description: str = _key(kinds.STRING, "One line for people, shown by `list` and `status`.", default="", applies=_S)
    after: tuple[str, ...] = _key(
        kinds.list_of(kinds.UNIT_NAME),
        "VMs that, when they are started too, are ready before this one is started, and that stop after it has "
        "stopped. It starts none of them.",
        default=(),
        applies=_S,
    )
    before: tuple[str, ...] = _key(
        kinds.list_of(kinds.UNIT_NAME),
        "The same from the other side: these VMs are `after` this one.",
        default=(),
        applies=_S,
    )
    requires: tuple[str, ...] = _key(
        kinds.list_of(kinds.UNIT_NAME),
        "VMs that are started with this one. When one of them cannot be started, or is not up when it is the turn "
        "of this one, this one fails (`start-failed`, cause `dependency`); when an operator stops or restarts "
        "one, so is this one. It orders nothing: mostly the same names stand in `after`.",
        default=(),
        applies=_S,
    )
    wants: tuple[str, ...] = _key(
        kinds.list_of(kinds.UNIT_NAME),
        "VMs that are started with this one; their failure is ignored. It orders nothing.",
        default=(),
        applies=_S,
    )
    conflicts: tuple[str, ...] = _key(
        kinds.list_of(kinds.UNIT_NAME),
        "VMs that are not active at the same time: a start of one stops the other first, gracefully.",
        default=(),
        applies=_S,
    )


@frozen(kw_only=True)
class InstallSection:
    """``[install]``: what happens when the daemon starts."""

    autostart: bool = _key(
        kinds.BOOLEAN,
        "Start the VM with the first daemon after each boot of the host (`qsupctl enable`). One that has run since the "
        "boot and is down stays so when the daemon is restarted.",
        default=False,
        applies=_S,
    )


STOP_METHODS = ("agent", "acpi", "quit", "term", "kill")


@frozen(kw_only=True)
class ServiceSection:
    """``[service]``: how the VM is started, watched, restarted and stopped."""

    restart: str = _key(
        kinds.choice("no", "on-failure", "on-panic", "always"),
        "When the VM is started again after it ended by itself. `on-failure`: after a crash of QEMU, a failed start, a "
        "panic of the guest or its watchdog; `on-panic`: after the last two alone; `always`: also after the guest "
        "powered itself off. A guest that resets itself, or is paused for an I/O error, has not ended. An operator's "
        "stop is never undone.",
        default="no",
        applies=_S,
    )
    restart_delay: float = _key(
        kinds.duration(0.01),
        "Wait before the first restart; each further one waits twice as long. The delays begin anew when somebody "
        "starts the VM, or once it has been ready and has run for longer than `start-limit-interval` and "
        "`restart-max-delay`.",
        default=1.0,
        applies=_S,
    )
    restart_max_delay: float = _key(
        kinds.duration(0.01), "The longest wait before a restart.", default=60.0, applies=_S
    )
    start_limit_burst: int = _key(
        kinds.integer(0, 1_000_000),
        "After that many automatic restarts within `start-limit-interval` the VM stays down (`start-limit-hit`); 0: no "
        "limit.",
        default=5,
        applies=_S,
    )
    start_limit_interval: float = _key(
        kinds.duration(), "The time over which restarts are counted for `start-limit-burst`.", default=300.0, applies=_S
    )
    start_timeout: float = _key(
        kinds.duration(0.1),
        "From the start of QEMU until the VM is ready; then it is stopped and has failed.",
        default=90.0,
        applies=_S,
    )
    stop_methods: tuple[str, ...] = _key(
        kinds.list_of(kinds.choice(*STOP_METHODS)),
        "How the VM is stopped. The order is fixed: the guest agent's shutdown (skipped when no agent answers), the "
        "ACPI power button (pressed every five seconds, for a guest that is just booting hears it later), QMP `quit`, "
        "SIGTERM, SIGKILL. The list chooses among them, in any order, and SIGKILL always comes last, listed or not.",
        default=STOP_METHODS,
        qemu="guest-shutdown, system_powerdown, quit",
        applies=_S,
    )
    stop_timeout: float = _key(
        kinds.duration(0.1),
        "How long the guest has to power off after `agent` or `acpi`, each.",
        default=90.0,
        applies=_S,
    )
    quit_timeout: float = _key(kinds.duration(0.1), "How long QEMU has to end after `quit`.", default=10.0, applies=_S)
    term_timeout: float = _key(kinds.duration(0.1), "How long QEMU has to end after SIGTERM.", default=5.0, applies=_S)
    ready: Ready = _key(
        kinds.READY,
        'What makes the VM ready: `"running"`, `"agent"` (the guest agent answers), `{ serial = "TEXT" }` (literal '
        "text on the serial console) or `{ port = 22 }` (the guest accepts a TCP connection through its forward). A VM "
        "that is being waited for goes on by what it was started with. A text that may have gone by while no daemon "
        "ran is waited for, for another `start-timeout`, and then taken as seen, with the cause `ready-assumed`.",
        default=Ready(on="running"),
        applies=_S,
    )


#: Firmware that is found through QEMU's firmware descriptors.
UEFI_FIRMWARE = ("uefi", "uefi-secure")


@frozen(kw_only=True)
class MachineSection:
    """``[machine]``: the emulator, the board and what it boots."""

    emulator: str = _key(
        kinds.PROGRAM, "The QEMU binary: a name looked up in PATH, or an absolute path.", default="qemu-system-x86_64"
    )
    type: str = _key(
        kinds.NAME,
        "The machine type. An alias such as `q35` is resolved to its versioned type at the first start and kept.",
        default="q35",
        qemu="-machine",
    )
    accel: str = _key(
        kinds.choice("auto", "kvm", "tcg"),
        "The accelerator. `auto`: KVM where /dev/kvm opens and the CPU lists vmx or svm, else TCG. `kvm` means exactly "
        "KVM.",
        default="auto",
        qemu="-accel",
    )
    firmware: str = _key(
        kinds.word_or_path("bios", *UEFI_FIRMWARE),
        "`bios`, `uefi`, `uefi-secure` (found through QEMU's firmware descriptors, with variables of the VM's own), or "
        "the path of a ROM file.",
        default="bios",
        qemu="-bios, pflash",
    )
    kernel: str = _key(kinds.STRING, "A Linux kernel to boot directly.", default="", qemu="-kernel")
    initrd: str = _key(kinds.STRING, "The initial RAM disk of `kernel`.", default="", qemu="-initrd")
    append: str = _key(kinds.STRING, "The command line of `kernel`.", default="", qemu="-append")
    rtc: str = _key(
        kinds.choice("utc", "localtime"), "What the real-time clock shows.", default="utc", qemu="-rtc base="
    )
    uuid: str = _key(
        kinds.optional(kinds.UUID),
        "The SMBIOS UUID; by default one is made at the first start and kept.",
        default="",
        qemu="-uuid",
    )
    boot_menu: bool = _key(kinds.BOOLEAN, "Let the firmware show its boot menu.", default=False, qemu="-boot menu=")
    hotplug_slots: int = _key(
        kinds.integer(0, 32),
        "PCIe root ports kept free for devices that come later (q35).",
        default=8,
        qemu="pcie-root-port",
    )


@frozen(kw_only=True)
class TopologySection:
    """``[cpu.topology]``: how the vCPUs are arranged. 0 leaves the number to QEMU."""

    sockets: int = _key(kinds.integer(0, 512), "Sockets.", default=0, qemu="-smp sockets=")
    dies: int = _key(kinds.integer(0, 64), "Dies of a socket.", default=0, qemu="-smp dies=")
    cores: int = _key(kinds.integer(0, 512), "Cores of a die.", default=0, qemu="-smp cores=")
    threads: int = _key(kinds.integer(0, 8), "Threads of a core.", default=0, qemu="-smp threads=")


@frozen(kw_only=True)
class CpuSection:
    """``[cpu]``: the virtual processors."""

    model: str = _key(
        kinds.STRING,
        "The CPU model with its flags; by default `host` under KVM and `max` under TCG.",
        default="",
        qemu="-cpu",
    )
    vcpus: int = _key(
        kinds.integer(1, 4096),
        "Virtual CPUs. While the VM runs there can be more, up to `max-vcpus`, and fewer, if the guest lets them go.",
        default=1,
        qemu="-smp cpus=, device_add",
        applies=Applies.LIVE,
    )
    max_vcpus: int = _key(
        kinds.integer(0, 4096), "Virtual CPUs at most; 0: as many as `vcpus`.", default=0, qemu="-smp maxcpus="
    )
    pin: str | tuple[tuple[int, ...], ...] = _key(
        kinds.PINS,
        'The CPUs of the host that each vCPU may run on: a set for each, up to `max-vcpus`, such as `["2", "3"]`, or '
        'one for all of them, such as `["2-5,10"]`. `"auto"`: they are chosen at each start, on as few NUMA nodes as '
        "can be. By default they may run on all that are not exclusively another VM's. QEMU keeps to these CPUs from "
        "its first moment, each vCPU before the guest runs, and whatever moves a thread later is put right within five "
        "seconds.",
        default=(),
        applies=Applies.LIVE,
    )
    exclusive: bool = _key(
        kinds.BOOLEAN,
        "No other VM of this daemon may use the CPUs of its vCPUs, not even one without `pin`; with `auto` it gets "
        "whole cores, one CPU for each vCPU up to `max-vcpus`.",
        default=False,
        applies=Applies.LIVE,
    )
    emulator_pin: tuple[int, ...] = _key(
        kinds.optional(kinds.CPU_SET, ()),
        "The CPUs for everything else that QEMU does: its main loop, its workers, and each `[[iothread]]` without a "
        "`pin` of its own. By default those of `pin`, all together; with `auto`, shared ones near by.",
        default=(),
        applies=Applies.LIVE,
    )
    topology: TopologySection = _section(TopologySection, "How the virtual CPUs are arranged.")


RESIZES = ("virtio-mem", "dimm", "balloon")
#: What virtio-mem gives and takes at a time: a huge page of x86-64. What a memory module is a multiple of: Linux adds
#: and removes memory in blocks of that size (memory-hotplug.rst).
MEMORY_BLOCK, MODULE_BLOCK = 2 * MIB, 128 * MIB
#: Bytes of a huge page, by what a unit calls it.
HUGE_PAGES: Mapping[str, int] = {"2M": 2 * MIB, "1G": 1 << 30}


@frozen(kw_only=True)
class MemorySection:
    """``[memory]``: the guest's memory."""

    size: int = _key(
        kinds.size(1 * MIB, 1 << 46),
        "The guest's memory. What can be had of it while the VM runs hangs on `resize`.",
        default=512 * MIB,
        qemu="-m size=",
        applies=Applies.LIVE,
    )
    max: int = _key(
        kinds.size(0, 1 << 46),
        'The most memory it can have while it runs; `"0B"`: no more than `size`. With `resize = "balloon"` the machine '
        "has so much from the start, and its guest is left `size` of it.",
        default=0,
        qemu="-m maxmem=, -m size= with a balloon",
    )
    min: int = _key(
        kinds.size(0, 1 << 46),
        "How much of `size` the machine is started with, and keeps while it runs, with `virtio-mem`; its guest takes "
        'the rest as it boots, and can give that back. `"0B"`: all of it.',
        default=0,
        qemu="-m size=, virtio-mem requested-size=",
    )
    slots: int = _key(
        kinds.integer(0, 256), "Memory modules that can be plugged (`dimm`).", default=0, qemu="-m slots="
    )
    resize: str = _key(
        kinds.optional(kinds.choice(*RESIZES)),
        "How `size` changes while the VM runs. `virtio-mem`: between what it was started with (`min`) and `max`, in "
        "steps of 2M; its guest must know virtio-mem (Linux 5.8). `dimm`: by memory modules of multiples of 128M, one "
        "for each change, up to `max` and `slots`; one goes as a whole, and only if the guest uses it for what can be "
        "moved. `balloon`: up to `max`, by a guest that has a driver for it. By default `virtio-mem` where `max` is "
        "given, else `balloon` where there is one.",
        default="",
        qemu="virtio-mem, pc-dimm, balloon",
    )
    balloon: bool = _key(kinds.BOOLEAN, "Give the guest a memory balloon.", default=True, qemu="virtio-balloon")
    shared: bool = _key(
        kinds.BOOLEAN,
        "Keep the guest's memory so that other programs can be given it, for devices of the types `share` and "
        "`vhost-user` that come while it runs; a unit that has one from the start needs not say it.",
        default=False,
        qemu="memory-backend-memfd share=",
    )
    hugepages: str = _key(
        kinds.optional(kinds.choice(*HUGE_PAGES)),
        "Keep the guest's memory in huge pages of this size, which the host must have free: they are all taken when it "
        "starts, as with `prealloc`, and free again when it has ended. By default in pages of the usual size.",
        default="",
        qemu="memory-backend-memfd hugetlb=, hugetlbsize=",
    )
    prealloc: bool = _key(
        kinds.BOOLEAN,
        "Take all of its memory from the host before the guest runs, and what comes later when it comes, instead of "
        "page by page as the guest touches it. That takes a part of `start-timeout`: seconds for many GiB.",
        default=False,
        qemu="memory-backend prealloc=, virtio-mem prealloc=",
    )
    lock: bool = _key(
        kinds.BOOLEAN,
        "Keep all of QEMU in memory, so that nothing of it is ever swapped out.",
        default=False,
        qemu="-overcommit mem-lock=",
    )
    nodes: str | tuple[int, ...] = _key(
        kinds.NODES,
        'The NUMA nodes of the host that its memory is on, such as `"0"` or `"0-1"`. `"auto"`: those that `pin = '
        '"auto"` has chosen at the start, which then looks for memory, too. By default memory is of the node whose '
        "CPU first touches it.",
        default=(),
        qemu="memory-backend host-nodes=",
    )
    policy: str = _key(
        kinds.choice("bind", "preferred", "interleave"),
        "What `nodes` means. `bind`: these alone. `preferred`: others, too, when the first of them has no more. "
        "`interleave`: page by page in turn, others when these have no more.",
        default="bind",
        qemu="memory-backend policy=",
    )


@frozen(kw_only=True)
class BackingSection:
    """``[[disk.backing]]``: a file an overlay stands on; the chain from the overlay down to its base."""

    path: str = _key(kinds.PATH, "The backing file.")
    format: str = _key(kinds.choice("raw", "qcow2"), "Its format; never guessed.")


#: Most operations or bytes a second that QEMU can limit anything to (THROTTLE_VALUE_MAX).
THROTTLE_MAX = 10**15


def _rate(what: str, qemu: str, kind: Kind) -> Any:
    return _key(kind, f"{what} a second on average; 0: no limit.", default=0, qemu=qemu, applies=Applies.LIVE)


def _burst(qemu: str, kind: Kind) -> Any:
    words = "As many a second while a burst lasts; 0: a tenth of a second's worth above the average at once."
    return _key(kind, words, default=0, qemu=qemu, applies=Applies.LIVE)


def _length(qemu: str) -> Any:
    words = "How long a burst may last, in whole seconds."
    return _key(kinds.duration(1.0, 1e6), words, default=1.0, qemu=qemu, applies=Applies.LIVE)


_OPERATIONS, _BYTES = kinds.integer(0, THROTTLE_MAX), kinds.size(0, THROTTLE_MAX)


@frozen(kw_only=True)
class ThrottleSection:
    """``[disk.throttle]``: how much the guest may do with a disk (QAPI ``BlockIOThrottle``)."""

    iops: int = _rate("Operations", "iops", _OPERATIONS)
    iops_max: int = _burst("iops_max", _OPERATIONS)
    iops_max_length: float = _length("iops_max_length")
    iops_read: int = _rate("Reads", "iops_rd", _OPERATIONS)
    iops_read_max: int = _burst("iops_rd_max", _OPERATIONS)
    iops_read_max_length: float = _length("iops_rd_max_length")
    iops_write: int = _rate("Writes", "iops_wr", _OPERATIONS)
    iops_write_max: int = _burst("iops_wr_max", _OPERATIONS)
    iops_write_max_length: float = _length("iops_wr_max_length")
    bps: int = _rate("Bytes", "bps", _BYTES)
    bps_max: int = _burst("bps_max", _BYTES)
    bps_max_length: float = _length("bps_max_length")
    bps_read: int = _rate("Bytes read", "bps_rd", _BYTES)
    bps_read_max: int = _burst("bps_rd_max", _BYTES)
    bps_read_max_length: float = _length("bps_rd_max_length")
    bps_write: int = _rate("Bytes written", "bps_wr", _BYTES)
    bps_write_max: int = _burst("bps_wr_max", _BYTES)
    bps_write_max_length: float = _length("bps_wr_max_length")


def _are_drives(before: Any, after: Any) -> bool:
    return bool(before.type == after.type == "cdrom")


#: Cache modes in which the guest sees no write cache; which of them it is fixes the device.
WRITE_THROUGH = ("writethrough", "directsync")


def _keep_the_device(before: Any, after: Any) -> bool:
    return bool((before.cache in WRITE_THROUGH) == (after.cache in WRITE_THROUGH))


def _medium_key(kind: Kind, doc: str, *, default: str, qemu: str = "") -> Any:
    live = Applies.LIVE
    return _key(kind, doc, default=default, qemu=qemu, applies=live, only="of a `cdrom`", holds=_are_drives)


DISK_BUSES = ("virtio", "scsi", "nvme", "sata", "ide", "usb")


@frozen(kw_only=True)
class DiskSection:
    """``[[disk]]``: a disk or a CD drive."""

    id: str = _key(kinds.NAME, "Its name within the VM.")
    present: bool = _present()
    path: str = _medium_key(
        kinds.STRING,
        "The image or block device; relative to the first pool. A `cdrom` without one is an empty drive.",
        default="",
    )
    format: str = _medium_key(
        kinds.choice("raw", "qcow2"), "The image's format; never guessed.", default="raw", qemu="blockdev driver"
    )
    type: str = _key(kinds.choice("disk", "cdrom"), "What the guest sees.", default="disk")
    bus: str = _key(
        kinds.optional(kinds.choice(*DISK_BUSES)),
        "How it is attached; by default `virtio`. For a `cdrom`: `sata` on `q35`, `ide` on `pc`, `scsi` on others.",
        default="",
        qemu="virtio-blk, scsi-hd, nvme, ide-hd, usb-storage",
    )
    cache: str = _key(
        kinds.choice("writeback", "none", "writethrough", "directsync", "unsafe"),
        "How the host caches the image.",
        default="writeback",
        qemu="cache.direct, cache.no-flush, write-cache",
        applies=Applies.LIVE,
        only="unless to or from `writethrough` or `directsync`",
        holds=_keep_the_device,
    )
    iothread: str = _key(
        kinds.optional(kinds.NAME),
        "On `virtio`: the `[[iothread]]` that does its work; by default QEMU's main loop does, which is busy with much "
        "else.",
        default="",
        qemu="iothread",
    )
    aio: str = _key(
        kinds.choice("threads", "native", "io_uring"),
        'How QEMU reads and writes it; `native` needs `cache = "none"` or `"directsync"`.',
        default="threads",
        qemu="aio",
    )
    discard: str = _key(
        kinds.choice("ignore", "unmap"),
        "Whether the guest's discards free space.",
        default="unmap",
        qemu="discard",
        applies=Applies.LIVE,
    )
    detect_zeroes: str = _key(
        kinds.choice("off", "on", "unmap"),
        "Whether writes of zeroes are made cheap.",
        default="off",
        qemu="detect-zeroes",
        applies=Applies.LIVE,
    )
    read_only: bool = _key(kinds.BOOLEAN, "The guest cannot write to it.", default=False, qemu="read-only")
    shareable: bool = _key(
        kinds.BOOLEAN,
        "Other VMs may use it at the same time; the guests must be made for that.",
        default=False,
        qemu="share-rw",
    )
    serial: str = _key(kinds.STRING, "The serial number the guest sees.", default="", qemu="serial")
    bootindex: int = _key(
        kinds.integer(-1, 1000),
        "Place in the boot order; -1: not in it.",
        default=-1,
        qemu="bootindex",
        applies=Applies.RESET,
    )
    throttle: ThrottleSection = _section(
        ThrottleSection, "How much the guest may do with it; without limits by default."
    )
    backing: tuple[BackingSection, ...] = _section(
        BackingSection,
        "The files the image stands on, nearest first. A backing file that is not declared is refused.",
        name="backing",
    )


@frozen(kw_only=True)
class IothreadSection:
    """``[[iothread]]``: a thread of QEMU's for the work of disks."""

    id: str = _key(kinds.NAME, "Its name within the VM, which disks call it by.", qemu="-object iothread")
    present: bool = _present("")
    pin: tuple[int, ...] = _key(
        kinds.optional(kinds.CPU_SET, ()),
        "The CPUs of the host that it may run on. By default those of everything else that QEMU does: `[cpu] "
        "emulator-pin`, and what follows where that says nothing.",
        default=(),
        applies=Applies.LIVE,
    )


NIC_MODELS = ("virtio", "e1000", "e1000e", "rtl8139")


@frozen(kw_only=True)
class NicSection:
    """``[[nic]]``: a network interface."""

    id: str = _key(kinds.NAME, "Its name within the VM; the MAC derives from it and from the VM's UUID.")
    present: bool = _present()
    type: str = _key(
        kinds.choice("user", "tap", "bridge"),
        "`user`: behind the host's own address, no privilege needed. `tap`: a tap made by the daemon on `bridge`, "
        "which must exist. `bridge`: the same, and the bridge is made when it is absent and removed when its "
        "last VM leaves.",
        default="user",
        qemu="-netdev",
    )
    model: str = _key(
        kinds.choice(*NIC_MODELS),
        "The card the guest sees.",
        default="virtio",
        qemu="virtio-net, e1000, e1000e, rtl8139",
    )
    mac: str = _key(
        kinds.optional(kinds.MAC),
        "Its MAC address; by default derived, and stable.",
        default="",
        qemu="mac",
    )
    bridge: str = _key(
        kinds.optional(kinds.INTERFACE),
        "The bridge that a `tap` or `bridge` NIC joins.",
        default="",
    )
    forward: tuple[Forward, ...] = _key(
        kinds.list_of(kinds.FORWARD),
        "Host ports that lead into the guest (`user`): `[ADDRESS:]HOST-PORT:GUEST-PORT[/tcp|/udp]`, on 127.0.0.1 "
        "unless said otherwise.",
        default=(),
        qemu="hostfwd",
        applies=Applies.LIVE,
    )
    link: str = _key(
        kinds.choice("up", "down"),
        "Whether the card is plugged in, as the guest sees it.",
        default="up",
        qemu="set_link",
        applies=Applies.LIVE,
    )
    bootindex: int = _key(
        kinds.integer(-1, 1000),
        "Place in the boot order; -1: not in it.",
        default=-1,
        qemu="bootindex",
        applies=Applies.RESET,
        only="of a card that is in it, as others have no boot ROM",
        holds=lambda before, after: before.bootindex >= 0,
    )


#: The name of the channel that qemu-guest-agent looks for.
AGENT_PORT = "org.qemu.guest_agent.0"
#: What each type of device has besides an id and a type.
DEVICE_KEYS: Mapping[str, tuple[str, ...]] = {
    "rng": ("max-bytes", "period"),
    "watchdog": ("action",),
    "serial": ("name",),
    "share": ("path", "tag", "read-only"),
    "usb": ("identity", "port"),
    "pci": ("address",),
    "vhost-user": ("socket", "model"),
}
#: Types whose programs read and write the guest's memory themselves.
SHARING_DEVICES = ("share", "vhost-user")


@frozen(kw_only=True)
class DeviceSection:
    """``[[device]]``: any other device."""

    id: str = _key(kinds.NAME, "Its name within the VM.")
    present: bool = _present()
    type: str = _key(
        kinds.choice(*DEVICE_KEYS),
        "`rng`: a virtio random number generator fed by the host. `watchdog`: a timer that the guest must keep from "
        "expiring. `serial`: a channel by which programs of the host and of the guest talk. `share`: a directory of "
        "the host, by virtiofs. `usb`, `pci`: a device of the host. `vhost-user`: a device that another program of the "
        "host is, such as SPDK's or DPDK's.",
        qemu="virtio-rng, i6300esb, virtserialport, vhost-user-fs, usb-host, vfio-pci, vhost-user-blk, vhost-user",
    )
    max_bytes: int = _key(
        kinds.size(0, 1 << 62),
        "`rng`: how much the guest gets within each `period`; 0B: no limit.",
        default=0,
        qemu="max-bytes",
    )
    period: float = _key(
        kinds.duration(0.001, 86400.0), "`rng`: the time over which `max-bytes` counts.", default=1.0, qemu="period"
    )
    action: str = _key(
        kinds.choice("reset", "shutdown", "poweroff", "pause", "inject-nmi", "none"),
        "`watchdog`: what happens when it expires. `reset`: the guest is reset. `shutdown`: the power button is "
        "pressed. `poweroff`: the VM ends at once. `pause`: the guest stands still, to be looked at. `inject-nmi`: the "
        "guest gets an NMI. `none`: it is told, and no more. `[service] restart` counts the middle three as failures.",
        default="reset",
        qemu="watchdog-set-action",
        applies=Applies.LIVE,
    )
    name: str = _key(
        kinds.optional(kinds.NAME),
        "`serial`: what the guest finds it by, as `/dev/virtio-ports/NAME`; by default its id. The host's end is a "
        "Unix socket, whose path the VM's devices show while it runs; one program at a time is connected.",
        default="",
        qemu="name",
    )
    path: str = _key(
        kinds.STRING, "`share`: the directory; relative to the first pool, absolute inside one.", default=""
    )
    tag: str = _key(
        kinds.optional(kinds.NAME),
        "`share`: what the guest mounts it by, `mount -t virtiofs TAG /mnt`; by default its id.",
        default="",
        qemu="tag",
    )
    read_only: bool = _key(kinds.BOOLEAN, "`share`: the guest cannot write to it.", default=False)
    identity: str = _key(
        kinds.optional(kinds.USB_IDENTITY),
        "`usb`: which device, by vendor and product as `lsusb` shows them, such as `046d:c52b`, if there is just one.",
        default="",
    )
    port: str = _key(
        kinds.optional(kinds.USB_PORT),
        "`usb`: where it is plugged in, as `/sys/bus/usb/devices` calls it: the bus and the ports on the way, such as "
        "`1-2.3`.",
        default="",
    )
    address: str = _key(
        kinds.optional(kinds.PCI_ADDRESS),
        "`pci`: where it is on the host, such as `0000:03:00.0` (`lspci -D`). It is taken from its driver, and given "
        "back when the VM has ended or it is detached. All of its IOMMU group that the host uses must be the VM's.",
        default="",
        qemu="host",
    )
    socket: str = _key(
        kinds.STRING,
        "`vhost-user`: the Unix socket that the program listens on, absolute. QEMU gets a connection to it, once.",
        default="",
        qemu="chardev",
    )
    model: str = _key(
        kinds.choice("blk", "net"), "`vhost-user`: what the guest sees, a disk or a network card.", default="blk"
    )


@frozen(kw_only=True)
class ConsoleSection:
    """``[console]``: the text console that `qsupctl console` attaches to."""

    type: str = _key(
        kinds.choice("serial", "virtio", "none"),
        "`serial`: the first UART. `virtio`: hvc0.",
        default="serial",
        qemu="isa-serial, virtconsole",
    )


@frozen(kw_only=True)
class AgentSection:
    """``[agent]``: the guest agent's channel."""

    enabled: bool = _key(
        kinds.BOOLEAN, "Give the guest a channel for qemu-guest-agent.", default=True, qemu="org.qemu.guest_agent.0"
    )


@frozen(kw_only=True)
class DisplaySection:
    """``[display]``: the screen."""

    type: str = _key(
        kinds.choice("none", "vnc"),
        "`vnc`: viewers come through the API's Unix socket; QEMU itself listens nowhere.",
        default="none",
        qemu="-vnc",
    )
    video: str = _key(
        kinds.optional(kinds.choice("none", "std", "virtio", "qxl")),
        "The graphics card; by default `std` with a display and none without.",
        default="",
        qemu="VGA, virtio-vga, qxl-vga",
    )
    tablet: bool = _key(
        kinds.BOOLEAN, "With a display: a USB tablet, so that the pointer follows.", default=True, qemu="usb-tablet"
    )


#: The weight of a cgroup that nobody has given one (cgroup-v2.rst).
DEFAULT_WEIGHT = 100


@frozen(kw_only=True)
class LimitsSection:
    """``[limits]``: how much of the host QEMU may take."""

    cpu: int = _key(
        kinds.optional(kinds.CPU_QUOTA, 0),
        'CPU time at most, of all threads of its QEMU together: `"50%"` of one CPU, or `"2"` or `"1.5"` CPUs; in each '
        'tenth of a second it stands still once it has had that. By default, and with `""`, there is no limit.',
        default=0,
        qemu="cgroup cpu.max, cpu.cfs_quota_us",
        applies=Applies.LIVE,
    )
    cpu_weight: int = _key(
        kinds.integer(1, 10_000),
        "Its part of CPUs that others want, too, against the 100 of a VM that says nothing of it.",
        default=DEFAULT_WEIGHT,
        qemu="cgroup cpu.weight, cpu.shares",
        applies=Applies.LIVE,
    )
    memory: int = _key(
        kinds.size(0, 1 << 46),
        "The most memory of the host that QEMU may use; when it wants more, and what the kernel can take back of it "
        'is not enough, it is killed, with the cause `oom-kill`. No less than its guest and QEMU itself need. `"0B"`: '
        "no limit.",
        default=0,
        qemu="cgroup memory.max, memory.limit_in_bytes",
        applies=Applies.LIVE,
    )
    memory_high: int = _key(
        kinds.size(0, 1 << 46),
        "Beyond so much the kernel takes memory back from it, and slows it down; it is not killed for that. Cgroup "
        'version 1 cannot do it. `"0B"`: no limit.',
        default=0,
        qemu="cgroup memory.high",
        applies=Applies.LIVE,
    )
    pids: int = _key(
        kinds.integer(0, 1 << 22),
        "Threads and processes at most, those of QEMU itself among them; 0: no limit.",
        default=0,
        qemu="cgroup pids.max",
        applies=Applies.LIVE,
    )
    require: bool = _key(
        kinds.BOOLEAN,
        "Refuse to start the VM where the host cannot hold it to one of these limits. By default it starts, and a "
        "warning of the VM names what is not enforced.",
        default=False,
        applies=Applies.LIVE,
    )


@frozen(kw_only=True)
class QemuSection:
    """``[qemu]``: the escape hatch."""

    extra_args: tuple[str, ...] = _key(
        kinds.list_of(kinds.STRING),
        "Further arguments, appended as they are. What they name by path must be readable for the VM's own user.",
        default=(),
    )


@frozen(kw_only=True)
class Unit:
    """A whole unit, as the merged files say it. Cross-key rules are in `qsup.unit.check`."""

    unit: UnitSection = _section(UnitSection, "What the VM is and how it relates to others.")
    install: InstallSection = _section(InstallSection, "What happens when the daemon starts.")
    service: ServiceSection = _section(ServiceSection, "How the VM is started, watched, restarted and stopped.")
    machine: MachineSection = _section(MachineSection, "The emulator, the board and what it boots.")
    cpu: CpuSection = _section(CpuSection, "The virtual processors.")
    memory: MemorySection = _section(MemorySection, "The guest's memory.")
    disks: tuple[DiskSection, ...] = _section(DiskSection, "Disks and CD drives.", name="disk")
    iothreads: tuple[IothreadSection, ...] = _section(
        IothreadSection, "Threads that do the work of disks; a VM has those that it is started with.", name="iothread"
    )
    nics: tuple[NicSection, ...] = _section(NicSection, "Network interfaces.", name="nic")
    devices: tuple[DeviceSection, ...] = _section(DeviceSection, "Other devices.", name="device")
    console: ConsoleSection = _section(ConsoleSection, "The text console.")
    agent: AgentSection = _section(AgentSection, "The guest agent's channel.")
    display: DisplaySection = _section(DisplaySection, "The screen.")
    limits: LimitsSection = _section(LimitsSection, "How much of the host QEMU may take.")
    qemu: QemuSection = _section(QemuSection, "The escape hatch.")


# What a unit leaves open when another key decides it, in one place for everyone

# Ubuntu's QEMU has aliases of its own for the newest of its types
_FAMILIES = (("q35", r"(pc-)?q35(-.*)?|ubuntu-q35"), ("pc", r"pc(-i440fx-.*)?|ubuntu"), ("microvm", r"microvm"))


def machine_family(machine_type: str) -> str:
    """``q35``, ``pc`` or ``microvm`` for an alias or versioned machine type of that family, else ``""``."""
    for family, pattern in _FAMILIES:
        if re.fullmatch(pattern, machine_type):
            return family
    return ""


def effective_bus(unit: Unit, disk: DiskSection) -> str:
    """How the disk is attached: its ``bus``, else ``virtio``, else for a CD drive what the machine has."""
    if disk.bus:
        return disk.bus
    if disk.type != "cdrom":
        return "virtio"
    return {"q35": "sata", "pc": "ide"}.get(machine_family(unit.machine.type), "scsi")


def effective_video(unit: Unit) -> str:
    """The graphics card: ``video``, else ``std`` with a display and ``none`` without."""
    return unit.display.video or ("none" if unit.display.type == "none" else "std")


def mount_tag(device: DeviceSection) -> str:
    """What the guest mounts a share by: its ``tag``, else its id."""
    return device.tag or device.id


def shares_memory(unit: Unit) -> bool:
    """Whether other programs than QEMU can be given the guest's memory; huge pages are in a file anyway."""
    memory = unit.memory
    return memory.shared or bool(memory.hugepages) or any(device.type in SHARING_DEVICES for device in unit.devices)


def huge_page(unit: Unit) -> int:
    """Bytes of the huge pages that the guest's memory is in, 0 for none."""
    return HUGE_PAGES.get(unit.memory.hugepages, 0)


def takes_memory_at_once(unit: Unit) -> bool:
    """Whether all of the guest's memory is taken from the host before it runs."""
    return unit.memory.prealloc or unit.memory.lock or bool(unit.memory.hugepages)


def channel_name(device: DeviceSection) -> str:
    """What the guest finds a serial channel by: its ``name``, else its id."""
    return device.name or device.id


def effective_resize(unit: Unit) -> str:
    """How the memory changes while the VM runs, ``""`` where it cannot."""
    memory = unit.memory
    return memory.resize or ("virtio-mem" if memory.max else "balloon" if memory.balloon else "")


def machine_memory(unit: Unit) -> int:
    """Bytes of memory that the machine is started with; a balloon may leave its guest less, virtio-mem give it more."""
    memory, way = unit.memory, effective_resize(unit)
    if way == "virtio-mem":
        return min(memory.min or memory.size, memory.size)
    return memory.max or memory.size if way == "balloon" else memory.size


def effective_max_vcpus(unit: Unit) -> int:
    """``max-vcpus``, else as many as ``vcpus``."""
    return unit.cpu.max_vcpus or unit.cpu.vcpus
