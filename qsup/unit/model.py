"""What a unit can say: the frozen model of a whole unit file.

Decides: which tables there are. Each is a class in `qsup.unit.sections`, with the meaning of every key beside it. The
parser, the JSON Schema and ``docs/units.md`` are made from this and nothing else.
Must not: parse text, resolve paths, look at the host, or hold anything that is not in a unit file.
"""

from __future__ import annotations

from attrs import frozen

from qsup.unit.keys import section
from qsup.unit.sections.devices import AgentSection, ConsoleSection, DeviceSection, DisplaySection, NicSection
from qsup.unit.sections.disks import DiskSection, IothreadSection
from qsup.unit.sections.limits import LimitsSection, QemuSection
from qsup.unit.sections.machine import CpuSection, MachineSection
from qsup.unit.sections.memory import MemorySection, NumaSection
from qsup.unit.sections.service import InstallSection, ServiceSection, UnitSection


@frozen(kw_only=True)
class Unit:
    """A whole unit, as the merged files say it. Cross-key rules are in `qsup.unit.check`."""

    unit: UnitSection = section(UnitSection, "What the VM is and how it relates to others.")
    install: InstallSection = section(InstallSection, "What happens when the daemon starts.")
    service: ServiceSection = section(ServiceSection, "How the VM is started, watched, restarted and stopped.")
    machine: MachineSection = section(MachineSection, "The emulator, the board and what it boots.")
    cpu: CpuSection = section(CpuSection, "The virtual processors.")
    memory: MemorySection = section(MemorySection, "The guest's memory.")
    numa: tuple[NumaSection, ...] = section(
        NumaSection, "NUMA nodes that the guest sees, each with vCPUs and memory of its own.", name="numa"
    )
    disks: tuple[DiskSection, ...] = section(DiskSection, "Disks and CD drives.", name="disk")
    iothreads: tuple[IothreadSection, ...] = section(
        IothreadSection, "Threads that do the work of disks; a VM has those that it is started with.", name="iothread"
    )
    nics: tuple[NicSection, ...] = section(NicSection, "Network interfaces.", name="nic")
    devices: tuple[DeviceSection, ...] = section(DeviceSection, "Other devices.", name="device")
    console: ConsoleSection = section(ConsoleSection, "The text console.")
    agent: AgentSection = section(AgentSection, "The guest agent's channel.")
    display: DisplaySection = section(DisplaySection, "The screen.")
    limits: LimitsSection = section(LimitsSection, "How much of the host QEMU may take.")
    qemu: QemuSection = section(QemuSection, "The escape hatch.")
