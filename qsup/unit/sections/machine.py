"""``[machine]`` and ``[cpu]``: the board, what it boots, and its processors.

Decides: their keys. Must not: know which boards QEMU has.
"""

from __future__ import annotations

from attrs import frozen

from qsup.unit import kinds
from qsup.unit.keys import Applies, key, section

#: Firmware that is found through QEMU's firmware descriptors.
UEFI_FIRMWARE = ("uefi", "uefi-secure")


@frozen(kw_only=True)
class MachineSection:
    """``[machine]``: the emulator, the board and what it boots."""

    emulator: str = key(
        kinds.PROGRAM, "The QEMU binary: a name looked up in PATH, or an absolute path.", default="qemu-system-x86_64"
    )
    type: str = key(
        kinds.NAME,
        "The machine type. An alias such as `q35` is resolved to its versioned type at the first start and kept.",
        default="q35",
        qemu="-machine",
    )
    accel: str = key(
        kinds.choice("auto", "kvm", "tcg"),
        "The accelerator. `auto`: KVM where /dev/kvm opens and the CPU lists vmx or svm, else TCG. `kvm` means exactly "
        "KVM.",
        default="auto",
        qemu="-accel",
    )
    firmware: str = key(
        kinds.word_or_path("bios", *UEFI_FIRMWARE),
        "`bios`, `uefi`, `uefi-secure` (found through QEMU's firmware descriptors, with variables of the VM's own), or "
        "the path of a ROM file.",
        default="bios",
        qemu="-bios, pflash",
    )
    kernel: str = key(kinds.STRING, "A Linux kernel to boot directly.", default="", qemu="-kernel")
    initrd: str = key(kinds.STRING, "The initial RAM disk of `kernel`.", default="", qemu="-initrd")
    append: str = key(kinds.STRING, "The command line of `kernel`.", default="", qemu="-append")
    rtc: str = key(
        kinds.choice("utc", "localtime"), "What the real-time clock shows.", default="utc", qemu="-rtc base="
    )
    uuid: str = key(
        kinds.optional(kinds.UUID),
        "The SMBIOS UUID; by default one is made at the first start and kept.",
        default="",
        qemu="-uuid",
    )
    boot_menu: bool = key(kinds.BOOLEAN, "Let the firmware show its boot menu.", default=False, qemu="-boot menu=")
    hotplug_slots: int = key(
        kinds.integer(0, 32),
        "PCIe root ports kept free for devices that come later (q35).",
        default=8,
        qemu="pcie-root-port",
    )


@frozen(kw_only=True)
class TopologySection:
    """``[cpu.topology]``: how the vCPUs are arranged. 0 leaves the number to QEMU."""

    sockets: int = key(kinds.integer(0, 512), "Sockets.", default=0, qemu="-smp sockets=")
    dies: int = key(kinds.integer(0, 64), "Dies of a socket.", default=0, qemu="-smp dies=")
    cores: int = key(kinds.integer(0, 512), "Cores of a die.", default=0, qemu="-smp cores=")
    threads: int = key(kinds.integer(0, 8), "Threads of a core.", default=0, qemu="-smp threads=")


@frozen(kw_only=True)
class CpuSection:
    """``[cpu]``: the virtual processors."""

    model: str = key(
        kinds.STRING,
        "The CPU model with its flags; by default `host` under KVM and `max` under TCG.",
        default="",
        qemu="-cpu",
    )
    vcpus: int = key(
        kinds.integer(1, 4096),
        "Virtual CPUs. While the VM runs there can be more, up to `max-vcpus`, and fewer, if the guest lets them go.",
        default=1,
        qemu="-smp cpus=, device_add",
        applies=Applies.LIVE,
    )
    max_vcpus: int = key(
        kinds.integer(0, 4096), "Virtual CPUs at most; 0: as many as `vcpus`.", default=0, qemu="-smp maxcpus="
    )
    pin: str | tuple[tuple[int, ...], ...] = key(
        kinds.PINS,
        'The CPUs of the host that each vCPU may run on: a set for each, up to `max-vcpus`, such as `["2", "3"]`, or '
        'one for all of them, such as `["2-5,10"]`. `"auto"`: they are chosen at each start, on as few NUMA nodes as '
        "can be. By default they may run on all that are not exclusively another VM's. QEMU keeps to these CPUs from "
        "its first moment, each vCPU before the guest runs, and whatever moves a thread later is put right within five "
        "seconds.",
        default=(),
        applies=Applies.LIVE,
    )
    exclusive: bool = key(
        kinds.BOOLEAN,
        "No other VM of this daemon may use the CPUs of its vCPUs, not even one without `pin`; with `auto` it gets "
        "whole cores, one CPU for each vCPU up to `max-vcpus`.",
        default=False,
        applies=Applies.LIVE,
    )
    emulator_pin: tuple[int, ...] = key(
        kinds.optional(kinds.CPU_SET, ()),
        "The CPUs for everything else that QEMU does: its main loop, its workers, and each `[[iothread]]` without a "
        "`pin` of its own. By default those of `pin`, all together; with `auto`, shared ones near by.",
        default=(),
        applies=Applies.LIVE,
    )
    helper_pin: tuple[int, ...] = key(
        kinds.optional(kinds.CPU_SET, ()),
        "The CPUs for the programs that serve its devices beside QEMU, such as the file server of a share. By default "
        "those of everything else that QEMU does.",
        default=(),
        applies=Applies.LIVE,
    )
    topology: TopologySection = section(TopologySection, "How the virtual CPUs are arranged.")
