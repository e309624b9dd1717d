"""Making the view of a VM. Pure.

Decides: what is shown of a VM that runs (what was planned and is known) and of one that does not (what its unit asks).
Must not: read anything but its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from qsup.instance.cause import Cause
from qsup.instance.change import compared
from qsup.instance.life import Life
from qsup.instance.outside import socket_of
from qsup.instance.state import State
from qsup.instance.view import DeviceView, InstanceView
from qsup.plan.identity import derive_mac
from qsup.plan.inventory import slots
from qsup.plan.spec import DiskPlan, NicPlan, PlanSummary
from qsup.unit.compare import needs_restart
from qsup.unit.effective import effective_bus, effective_resize, huge_page
from qsup.unit.load import LoadedUnit
from qsup.unit.model import Unit
from qsup.unit.sections.devices import DeviceSection
from qsup.unit.throttle import said


@frozen(kw_only=True)
class Moving:
    """What changes while a VM lives.

    Args:
        warnings: what QEMU said of itself that is not as it was started.
        memory_size: what QEMU said that the machine has, ``None`` where it has not.
        uuid: from the VM's identity, ``""`` before its first start.
    """

    state: State
    cause: Cause | None
    since: float
    restarts: int
    operation: str | None
    waits_for: str
    agent_connected: bool
    memory_actual: int | None
    memory_size: int | None
    threads: tuple[int, ...]
    trays: Mapping[str, str]
    resets: int
    warnings: tuple[str, ...]
    console_watchers: int
    console_has_writer: bool
    uuid: str


def make_view(loaded: LoadedUnit, life: Life | None, moving: Moving) -> InstanceView:
    """The view of one VM.

    Args:
        loaded: its unit as the files say it now.
        life: what runs, ``None`` while nothing does.
    """
    unit = life.unit if life else loaded.unit
    summary = life.summary if life else None
    stale = life is not None and life.record.unit_digest != loaded.etag
    return InstanceView(
        name=loaded.name,
        state=moving.state,
        cause=moving.cause,
        since=moving.since,
        pid=life.process.pid if life else None,
        uid=life.record.uid if life else None,
        restarts=moving.restarts,
        resets=moving.resets,
        uuid=moving.uuid,
        description=loaded.unit.unit.description,
        files=tuple(map(str, loaded.files)),
        autostart=bool(loaded.files) and loaded.unit.install.autostart,
        unit_stale=stale,
        needs_restart=life is not None and stale and needs_restart(compared(life.hardware, loaded.unit)),
        machine=summary.machine if summary else unit.machine.type,
        accel=summary.accel if summary else unit.machine.accel,
        cpu_model=summary.cpu_model if summary else unit.cpu.model,
        emulator=summary.emulator if summary else unit.machine.emulator,
        firmware=unit.machine.firmware,
        vcpus=len(moving.threads) or unit.cpu.vcpus,
        max_vcpus=max(unit.cpu.max_vcpus, unit.cpu.vcpus),
        threads=moving.threads,
        memory_size=moving.memory_size or _memory(unit, summary),
        limited=life.limiting.effective if life else None,
        memory_max=max(unit.memory.max, unit.memory.size, summary.memory_base if summary else 0),
        memory_actual=_left(unit, summary, moving),
        memory_page=huge_page(unit),
        memory_nodes=summary.memory_nodes if summary else (),
        guest_nodes=summary.guest_nodes if summary else (),
        disks=summary.disks if summary else _disks(unit),
        limits={disk.id: said(disk.throttle) for disk in unit.disks},
        trays=moving.trays,
        links={nic.id: nic.link for nic in unit.nics},
        nics=summary.nics if summary else _nics(unit, moving.uuid),
        devices=tuple(_device(device, life) for device in unit.devices),
        moving={part.entry: part.state for part in summary.parts if part.state != "there"} if summary else {},
        slots=slots(summary) if summary else None,
        agent_enabled=unit.agent.enabled,
        agent_connected=moving.agent_connected,
        console=unit.console.type,
        console_watchers=moving.console_watchers,
        console_has_writer=moving.console_has_writer,
        display=unit.display.type,
        video=summary.has_video if summary else False,
        operation=moving.operation,
        waits_for=moving.waits_for,
        warnings=(*((*life.summary.warnings, *_troubles(life)) if life else ()), *moving.warnings),
    )


def _troubles(life: Life) -> tuple[str, ...]:
    """What is said of devices that do not work any more, of what serves them, and of media that are being changed."""
    media = (
        f"disk {disk.id}: its medium is being changed to {disk.coming.path or 'none'}"
        for disk in life.summary.disks
        if disk.coming is not None
    )
    threads = filter(None, [life.pinning.trouble])
    limits = life.limiting.troubles
    troubles = (*life.helpers.troubles.values(), *life.hardware.troubles.values(), *life.output.troubles)
    return (*troubles, *limits, *threads, *media)


def _device(device: DeviceSection, life: Life | None) -> DeviceView:
    return DeviceView(id=device.id, type=device.type, socket=socket_of(device, life.directory) if life else "")


def _memory(unit: Unit, summary: PlanSummary | None) -> int:
    """What the machine has where QEMU has not said; a balloon makes it no smaller, and virtio-mem not yet larger."""
    comes = effective_resize(unit) in ("balloon", "virtio-mem")
    return summary.memory_base if summary and comes else unit.memory.size


def _left(unit: Unit, summary: PlanSummary | None, moving: Moving) -> int | None:
    """What the balloon leaves, of all there is: QEMU counts no virtio-mem (get_current_ram_size, virtio-balloon.c)."""
    actual, size = moving.memory_actual, moving.memory_size
    if actual is None or size is None or summary is None or effective_resize(unit) != "virtio-mem":
        return actual
    return actual + size - summary.memory_base


def _disks(unit: Unit) -> tuple[DiskPlan, ...]:
    return tuple(
        DiskPlan(
            id=disk.id,
            path=disk.path,
            format=disk.format,
            type=disk.type,
            bus=effective_bus(unit, disk),
            read_only=disk.read_only,
            node="",
            device="",
            iothread=disk.iothread,
        )
        for disk in unit.disks
    )


def _nics(unit: Unit, uuid: str) -> tuple[NicPlan, ...]:
    return tuple(
        NicPlan(
            id=nic.id,
            type=nic.type,
            model=nic.model,
            mac=nic.mac or (derive_mac(uuid, nic.id) if uuid else ""),
            bridge=nic.bridge,
            forward=tuple(map(str, nic.forward)),
        )
        for nic in unit.nics
    )
