"""From a unit to a plan.

Decides: the order of QEMU's command line, and what every VM gets whatever its unit says.
Must not: read anything but its arguments; the same ones give the same plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from qsup.errors import UnsupportedError
from qsup.plan import devices, disks, machine, memory, network, others
from qsup.plan.board import BOARDS
from qsup.plan.firmware import firmware_part, kernel_part
from qsup.plan.part import Part, escape
from qsup.plan.spec import Capabilities, GuestNodePlan, HostFacts, Identity, Plan
from qsup.unit.effective import effective_bus, effective_video, machine_memory, shares_memory
from qsup.unit.model import Unit

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def build_plan(
    unit: Unit,
    *,
    identity: Identity,
    host: HostFacts,
    capabilities: Capabilities,
    state_dir: str,
    chosen_nodes: tuple[int, ...] = (),
    homes: tuple[int, ...] = (),
    node_cpus: Sequence[Sequence[int]] = (),
) -> Plan:
    """Plan one VM.

    Args:
        unit: the merged and checked unit.
        identity: what the VM keeps over its starts.
        host: facts of this host.
        capabilities: of the binary that ``machine.emulator`` names.
        state_dir: the VM's own directory for what outlives a start, absolute.
        chosen_nodes: of the host, where ``[memory] nodes`` is ``auto``.
        homes: of the host, for each node of its guest, where ``nodes`` is ``auto``.
        node_cpus: those of the host that the vCPUs of each node of its guest are pinned to, and that are online.

    Raises:
        UnsupportedError: this host or this QEMU cannot do what the unit asks for; the message says what and why.
    """
    chosen = machine.choose_machine(unit.machine.type, identity, capabilities)
    board = BOARDS[chosen.family]
    accel, accel_warnings = machine.choose_accel(unit.machine.accel, host, capabilities)
    model = machine.choose_cpu_model(unit.cpu, accel)
    uuid = unit.machine.uuid or identity.uuid
    fdsets = itertools.count(1)
    firmware = firmware_part(unit.machine, chosen, host, capabilities, state_dir, fdsets)
    nics = network.nic_parts(unit.nics, uuid, board, capabilities)
    boot = disks.boot_order(unit)
    drives = disks.disk_parts(unit, boot, board, capabilities, fdsets)
    guest_nodes = memory.guest_nodes(unit, chosen_nodes, homes)
    contexts = node_cpus if "thread-context" in capabilities.objects else ()
    memory_nodes = _memory_nodes(unit, chosen_nodes, guest_nodes)
    tools = others.Tools(board=board, capabilities=capabilities, uuid=uuid, fdsets=fdsets)
    parts = [
        _process_part(identity.name, uuid, capabilities),
        devices.monitor_part(),
        machine.machine_part(unit.machine, chosen, accel, {**_machine_settings(unit), **firmware.settings}),
        machine.cpu_part(unit, chosen, model),
        memory.memory_part(unit, memory_nodes, guest_nodes, contexts),
        firmware.part,
        kernel_part(unit.machine),
        _boot_part(unit, ordered=bool(boot) or any(nic.bootindex >= 0 for nic in unit.nics)),
        devices.panic_part(capabilities),
        *_attached_parts(unit, tools),
        memory.growth_part(unit, board, memory_nodes, guest_nodes),
        *others.device_parts(unit, tools),
        *(nic.part for nic in nics),
        *disks.iothread_parts(unit),
        disks.controllers(unit, board),
        *(drive.part for drive in drives),
        Part(subject="hotplug slots", devices=board.free_ports(unit.machine.hotplug_slots)),
        Part(subject="[qemu] extra-args", arguments=unit.qemu.extra_args),
    ]
    _check_devices(parts, capabilities)
    return Plan(
        emulator=capabilities.emulator,
        arguments=tuple(argument for part in parts for argument in part.render()),
        fds=tuple(fd for part in parts for fd in part.fds),
        files=tuple(file for part in parts for file in part.files),
        machine=chosen.type.name,
        machine_alias=chosen.alias,
        accel=accel,
        cpu_model=model,
        variables=firmware.variables,
        family=chosen.family,
        vcpus_made=unit.cpu.vcpus,
        memory_base=machine_memory(unit),
        memory_nodes=memory_nodes,
        guest_nodes=guest_nodes,
        parts=tuple(planned for part in parts if (planned := part.plan()).devices or planned.backends),
        disks=tuple(drive.plan for drive in drives),
        nics=tuple(nic.plan for nic in nics),
        has_console=unit.console.type != "none",
        has_agent=unit.agent.enabled,
        has_vnc=unit.display.type == "vnc",
        has_video=effective_video(unit) != "none",
        shared_memory=shares_memory(unit),
        warnings=(
            *accel_warnings,
            *memory.host_warnings(unit, host),
            *(warning for part in parts for warning in part.warnings),
        ),
    )


def _process_part(name: str, uuid: str, capabilities: Capabilities) -> Part:
    """What every QEMU gets: no configuration but ours, paused, alive after the guest's power-off, and sandboxed."""
    sandboxed = "sandbox" in capabilities.options
    return Part(
        subject="the process",
        arguments=(
            *("-name", f"guest={escape(name)},debug-threads=on"),
            *("-uuid", uuid),
            *("-no-user-config", "-nodefaults", "-S", "-no-shutdown"),
            *(("-sandbox", _SANDBOX) if sandboxed else ()),
        ),
        warnings=() if sandboxed else ("this QEMU was built without its seccomp sandbox",),
    )


def _machine_settings(unit: Unit) -> dict[str, str]:
    # without a screen, BIOS and boot loader talk on the serial console (SeaBIOS's sercon)
    talks = unit.console.type == "serial" and effective_video(unit) == "none"
    settings = {"graphics": "off"} if talks else {}
    return settings | memory.machine_settings(unit)


def _boot_part(unit: Unit, *, ordered: bool) -> Part:
    # strict: what has no boot index is not tried
    settings = {"menu": unit.machine.boot_menu, "strict": ordered}
    text = ",".join(f"{key}={'on' if value else 'off'}" for key, value in settings.items())
    return Part(subject="boot order", arguments=("-boot", text))


def _memory_nodes(unit: Unit, chosen: tuple[int, ...], guest: tuple[GuestNodePlan, ...]) -> tuple[int, ...]:
    if guest:
        return tuple(sorted({node for each in guest for node in each.nodes}))
    return chosen if isinstance(unit.memory.nodes, str) else unit.memory.nodes


def _attached_parts(unit: Unit, tools: others.Tools) -> list[Part]:
    board, capabilities = tools.board, tools.capabilities
    on_usb = any(effective_bus(unit, disk) == "usb" for disk in unit.disks)
    on_usb |= any(device.type == "usb" for device in unit.devices)
    return [
        devices.display_part(unit, board),
        devices.serial_controller(unit, board),
        devices.console_part(unit),
        devices.agent_part(unit),
        devices.balloon_part(unit, board, capabilities),
        devices.usb_part(unit, board, needed=on_usb),
    ]


def _check_devices(parts: list[Part], capabilities: Capabilities) -> None:
    for part in parts:
        for device in part.devices:
            if device["driver"] not in capabilities.devices:
                raise UnsupportedError(
                    f"{part.subject}: {capabilities.emulator} ({capabilities.version}) has no device "
                    f"{device['driver']!r}"
                )
