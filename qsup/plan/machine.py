"""The machine type, the accelerator and the CPUs.

Decides: which versioned type stands for an alias, whether a VM gets KVM or TCG, and whether the machine can have that
many CPUs.
Must not: compare QEMU versions; what a binary can do is in its `Capabilities`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from attrs import frozen

from qsup.errors import UnsupportedError
from qsup.plan.part import Part
from qsup.plan.spec import Capabilities, HostFacts, Identity, MachineType
from qsup.unit.effective import effective_max_vcpus, machine_family
from qsup.unit.families import unplanned
from qsup.unit.guestnodes import effective_sockets
from qsup.unit.model import Unit
from qsup.unit.sections.machine import CpuSection, MachineSection


@frozen(kw_only=True)
class Machine:
    """A chosen machine type.

    Args:
        type: its entry in QEMU's list; ``type.name`` is versioned.
        alias: the alias it was resolved from, or ``""``.
        family: ``q35``, ``pc`` or ``microvm``.
    """

    type: MachineType
    alias: str
    family: str


def choose_machine(wanted: str, identity: Identity, capabilities: Capabilities) -> Machine:
    """The machine type that a unit's ``machine.type`` means for this VM.

    An alias that was resolved before keeps its versioned type, so that a new QEMU does not change a VM's hardware.

    Raises:
        UnsupportedError: QEMU does not have it (any more), or no plan can be made for its board.
    """
    by_name = {machine.name: machine for machine in capabilities.machines}
    by_alias = {machine.alias: machine for machine in capabilities.machines if machine.alias}
    kept = identity.machines.get(wanted, "")
    if kept and kept not in by_name:
        raise UnsupportedError(
            f"this VM's {wanted} machine is a {kept}, which {_called(capabilities)} does not have",
            hint=f'use a QEMU that has it, or name another in [machine] type, such as "{_newest(wanted, by_alias)}"',
        )
    found = by_name.get(kept or wanted) or by_alias.get(wanted)
    if found is None:
        raise UnsupportedError(
            f"{_called(capabilities)} has no machine type {wanted!r}{_suggestion(wanted, [*by_alias, *by_name])}"
        )
    return Machine(type=found, alias=wanted if found.name != wanted else "", family=_family(found.name, wanted))


def _newest(wanted: str, by_alias: dict[str, MachineType]) -> str:
    return by_alias[wanted].name if wanted in by_alias else wanted


def _family(name: str, wanted: str) -> str:
    family = machine_family(name)
    if not family:
        raise UnsupportedError(unplanned(wanted))
    return family


def _called(capabilities: Capabilities) -> str:
    return f"{capabilities.emulator} ({capabilities.version})"


def _suggestion(wanted: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(wanted, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def choose_accel(wanted: str, host: HostFacts, capabilities: Capabilities) -> tuple[str, tuple[str, ...]]:
    """``kvm`` or ``tcg``, and what the user should know about it.

    Raises:
        UnsupportedError: KVM was asked for and cannot be used, or neither is there.
    """
    obstacle = _kvm_obstacle(host, capabilities)
    if wanted == "kvm" and obstacle:
        raise UnsupportedError(f"KVM was asked for and cannot be used: {obstacle}", hint='say accel = "auto" or "tcg"')
    if wanted == "kvm":
        return "kvm", (() if host.kvm else (f"KVM may not work here: {host.kvm_reason}",))
    if wanted == "auto" and host.kvm and not obstacle:
        return "kvm", ()
    if "tcg" not in capabilities.accelerators:
        raise UnsupportedError(f"{_called(capabilities)} was built without TCG, and KVM is not used")
    slow = f"the guest's CPU is emulated, which is slow: {obstacle or host.kvm_reason}"
    return "tcg", ((slow,) if wanted == "auto" else ())


def _kvm_obstacle(host: HostFacts, capabilities: Capabilities) -> str:
    if "kvm" not in capabilities.accelerators:
        return f"{_called(capabilities)} was built without KVM"
    runs_on = {"i386": ("i386", "i686", "x86_64")}.get(capabilities.architecture, (capabilities.architecture,))
    if host.architecture not in runs_on:
        return f"{_called(capabilities)} emulates {capabilities.architecture}, and the host is {host.architecture}"
    return "" if host.kvm_device else host.kvm_reason


def choose_cpu_model(cpu: CpuSection, accel: str) -> str:
    """What ``-cpu`` says: the unit's model, else the best that the accelerator has.

    Raises:
        UnsupportedError: ``host`` without KVM.
    """
    if accel != "kvm" and re.match(r"host(,|$)", cpu.model):
        raise UnsupportedError(f"CPU model {cpu.model!r} needs KVM, and this VM runs under {accel.upper()}")
    return cpu.model or {"kvm": "host", "tcg": "max"}[accel]


def cpu_part(unit: Unit, machine: Machine, model: str) -> Part:
    """The CPUs.

    Raises:
        UnsupportedError: more of them than the machine type allows.
    """
    cpu, most = unit.cpu, effective_max_vcpus(unit)
    if most > machine.type.cpu_max:
        raise UnsupportedError(f"{most} CPUs are more than the {machine.type.cpu_max} that {machine.type.name} allows")
    if most > cpu.vcpus and not machine.type.hotpluggable_cpus:
        raise UnsupportedError(
            f"max-vcpus = {most} is beyond vcpus = {cpu.vcpus}, and {machine.type.name} takes no CPU while it runs"
        )
    topology = cpu.topology
    wanted = {
        "sockets": effective_sockets(unit),
        "dies": topology.dies,
        "cores": topology.cores,
        "threads": topology.threads,
    }
    numbers = {"cpus": cpu.vcpus, "maxcpus": most} | {key: number for key, number in wanted.items() if number}
    # flags are part of the model, so its commas are meant
    smp = ",".join(f"{key}={number}" for key, number in numbers.items())
    return Part(subject="[cpu]", arguments=("-cpu", model, "-smp", smp))


def machine_part(section: MachineSection, machine: Machine, accel: str, settings: dict[str, str]) -> Part:
    """The board.

    Args:
        settings: further machine properties, such as ``{"pflash0": "firmware-code"}``; no text of the unit's.
    """
    properties = {"type": machine.type.name, **settings}
    text = ",".join(f"{key}={value}" for key, value in properties.items())
    old = f"machine type {machine.type.name} is deprecated in this QEMU"
    return Part(
        subject="[machine]",
        arguments=("-machine", text, "-accel", accel, "-rtc", f"base={section.rtc}"),
        warnings=(old,) if machine.type.deprecated else (),
    )
