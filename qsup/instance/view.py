"""What the outside may know of a VM, and of the daemon itself: frozen values, made anew at each change. Pure.

Decides: the contents of a view, of an event and of the counters.
Must not: be computed by asking QEMU. A view is what the driver knew at its last event, so reading it never waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from attrs import field, frozen

from qsup.host.limits import Effective
from qsup.host.usage import NodeMemory, ThreadUsage, Times
from qsup.instance.cause import Cause
from qsup.instance.pinned import Pinned
from qsup.instance.state import State
from qsup.plan.capacity import Host, Promise
from qsup.plan.inventory import Slots
from qsup.plan.occupancy import Occupancy
from qsup.plan.spec import DiskPlan, GuestNodePlan, NicPlan, PartPlan
from qsup.plan.topology import Topology


@frozen(kw_only=True)
class DeviceView:
    """One entry of ``[[device]]``.

    Args:
        socket: where programs of the host connect to it while it runs, ``""`` for nowhere.
    """

    id: str
    type: str
    socket: str = ""


@frozen(kw_only=True)
class InstanceView:
    """One VM as it is known now.

    Args:
        since: wall clock of the last change of `state`, seconds since the epoch.
        resets: how often the guest has reset itself since QEMU was started, as far as a daemon was there to hear of it.
        files: of its unit, none when they are gone (or masked) while it runs.
        threads: host thread ids of the vCPUs, by CPU index; empty while not running.
        limited: what it may take of the host, as the kernel said when that was set, ``None`` while not running.
        limits: what the guest may do with disks, by the disk's id and the limit's name in a unit.
        trays: of CD drives, by id: ``open``, ``closed`` or ``locked``; empty while that is not known.
        links: of NICs, by id: ``up`` or ``down``.
        memory_max: bytes the machine can have at most while it runs.
        memory_actual: bytes the balloon leaves the guest, ``None`` where not known.
        memory_page: bytes of the huge pages that its memory is in, 0 for none.
        memory_nodes: of the host, that it is on by its unit; none: nothing was said of it.
        guest_nodes: NUMA nodes of its guest while it runs, in its order.
        moving: where each entry stands that is ``coming`` or ``leaving``, such as ``disk.data``.
        slots: places for devices that may come, ``None`` while not running.
        console: the console's type, ``none`` for no console.
        display: the display's type.
        video: whether there is a graphics card, so that a screenshot can be taken.
        unit_stale: the unit's files changed since QEMU was started.
        needs_restart: something in them counts only once the VM is started anew.
        operation: id of the operation that holds the VM, or ``None``.
        waits_for: what that waits for: other VMs with their substates, or its turn; ``""``: nothing.
        warnings: what is not as the unit asks, one sentence each.
    """

    name: str
    state: State
    cause: Cause | None
    since: float
    pid: int | None
    uid: int | None
    restarts: int
    resets: int
    uuid: str
    description: str
    files: tuple[str, ...]
    autostart: bool
    unit_stale: bool
    needs_restart: bool
    machine: str
    accel: str
    cpu_model: str
    emulator: str
    firmware: str
    vcpus: int
    max_vcpus: int
    threads: tuple[int, ...]
    limited: Effective | None
    memory_size: int
    memory_max: int
    memory_actual: int | None
    memory_page: int = 0
    memory_nodes: tuple[int, ...] = ()
    guest_nodes: tuple[GuestNodePlan, ...] = ()
    disks: tuple[DiskPlan, ...]
    limits: Mapping[str, Mapping[str, int]] = field(factory=dict)
    trays: Mapping[str, str] = field(factory=dict)
    links: Mapping[str, str] = field(factory=dict)
    nics: tuple[NicPlan, ...]
    devices: tuple[DeviceView, ...]
    moving: Mapping[str, str]
    slots: Slots | None
    agent_enabled: bool
    agent_connected: bool
    console: str
    console_watchers: int
    console_has_writer: bool
    display: str
    video: bool
    operation: str | None
    waits_for: str
    warnings: tuple[str, ...]


@frozen(kw_only=True)
class HardwareView:
    """The devices of a VM that runs.

    Args:
        parts: what QEMU has.
        slots: the room that is left.
        absent: entries that the unit has and QEMU has not, such as ``disk.data``: somebody or the guest has removed
            them, or they are to come yet.
    """

    parts: tuple[PartPlan, ...]
    slots: Slots
    absent: tuple[str, ...]


@frozen(kw_only=True)
class EventRecord:
    """One event: ``seq`` grows by one for each, within one life of the daemon (``boot_id``)."""

    seq: int
    boot_id: str
    time: float
    type: str
    instance: str | None
    data: Mapping[str, Any]


@frozen(kw_only=True)
class TimesView:
    """What a thread that has a task of its own has had of the host's CPUs.

    Args:
        vcpus: those that it runs, several where all share one thread (TCG without MTTCG).
        iothread: the unit's id of the iothread that it is, ``""`` if it is none.
    """

    vcpus: tuple[int, ...]
    iothread: str = ""
    times: Times


@frozen(kw_only=True)
class StatsView:
    """Counters of one VM; disks and NICs by id.

    Args:
        read_at: seconds since the boot, when those of the process were read.
        cpu_seconds: CPU time of QEMU, the threads that have ended included.
        times: of each thread that runs vCPUs or is an iothread.
        memory_rss: bytes that are resident.
        memory_huge: bytes in huge pages, which are not among these.
        memory_swapped: bytes that the host has swapped out.
        memory_limit: bytes that the kernel holds it to, ``None`` for no limit.
        node_memory: where on the host its memory is, as last read, ``None`` when it was not read.
        threads: how many QEMU has, 0 when it has just ended.
        disks: as last sampled.
        balloon: what its guest said last of its memory.
        drifts: how often a thread was put back on its CPUs since this daemon has looked after it.
    """

    read_at: float
    cpu_seconds: float
    times: tuple[TimesView, ...] = ()
    memory_rss: int
    memory_huge: int = 0
    memory_swapped: int = 0
    memory_limit: int | None = None
    node_memory: NodeMemory | None = None
    threads: int
    disks: Mapping[str, Mapping[str, int]]
    nics: Mapping[str, Mapping[str, int]]
    balloon: Mapping[str, int]
    drifts: int


@frozen
class Stray:
    """How often a thread was found off its CPUs, and put back; and the CPU that it had last run on then."""

    times: int = 0
    cpu: int | None = None


@frozen(kw_only=True)
class ThreadView:
    """One thread of a VM's QEMU, or of a program that serves a device of it.

    Args:
        thread: its id on the host.
        vcpus: the vCPUs that it runs.
        iothread: the unit's id of the iothread that it is, ``""`` if it is none.
        helper: the entry that its program serves, such as ``device.data``, ``""`` if that is QEMU itself.
        pin: where it is to run, empty for anywhere.
        allowed: where it may.
        usage: what it has had of the host's CPUs.
        stray: how often somebody had moved it.
    """

    thread: int
    vcpus: tuple[int, ...]
    iothread: str = ""
    helper: str = ""
    pin: frozenset[int]
    allowed: Set[int]
    usage: ThreadUsage
    stray: Stray = Stray()


@frozen(kw_only=True)
class CpusView:
    """The threads of a VM's QEMU.

    Args:
        threads: its main thread first, and no more than `qsup.instance.pinning.SHOWN`.
        count: of all of them.
        drifts: how often one was put back that somebody had moved.
        explanation: why its CPUs were chosen, in sentences.
    """

    threads: tuple[ThreadView, ...]
    count: int
    drifts: int
    explanation: tuple[str, ...] = ()


@frozen(kw_only=True)
class TopologyView:
    """The host, and who has been put where on it.

    Args:
        topology: as it is now.
        pinned: by CPU; none of a CPU that nobody is pinned to.
        occupancy: what of it was given away.
    """

    topology: Topology
    pinned: Mapping[int, tuple[Pinned, ...]]
    occupancy: Occupancy = Occupancy()


@frozen(kw_only=True)
class CapacityView:
    """What there is of the host to be promised to VMs, and what each of them was promised, by name."""

    host: Host
    promises: tuple[Promise, ...]


@frozen
class Usage:
    """How much of something is used, and how much may be; ``None``: as much as there is."""

    used: int
    limit: int | None


@frozen(kw_only=True)
class HealthView:
    """How the daemon is.

    Args:
        problems: what is wrong with it, one sentence each.
        uptime: seconds.
        descriptors: its own file descriptors.
        memory: its own, bytes.
    """

    problems: tuple[str, ...]
    uptime: float
    descriptors: Usage
    memory: Usage
