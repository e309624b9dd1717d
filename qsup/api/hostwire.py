"""The JSON shapes of the API that tell of the host, and of what VMs have of it. Pure.

Decides: their members; see `qsup.api.wire` for all others and for units.
Must not: hold behaviour.
"""

from __future__ import annotations

from typing import Literal, TypedDict


class PinnedWire(TypedDict):
    """A vCPU of a VM that is pinned to a CPU."""

    instance: str
    vcpu: int


class CpuWire(TypedDict):
    """A CPU of the host, by the kernel's numbers.

    Of one that is not ``online`` nothing is known but its node. ``core``: unique within its die; below 0 where the
    kernel does not tell it. ``kind``: empty where the host has cores of one kind only. ``isolated``: the kernel's
    scheduler leaves it alone. ``allowed``: the daemon may use it. ``owner``: the VM whose alone it is, else empty.
    ``pinned``: who is.
    """

    number: int
    node: int
    package: int
    die: int
    core: int
    kind: Literal["", "performance", "efficiency"]
    online: bool
    isolated: bool
    allowed: bool
    owner: str
    pinned: list[PinnedWire]


class CacheWire(TypedDict):
    """A cache of the host: its size in bytes, and the CPUs that share it."""

    level: int
    type: Literal["Data", "Instruction", "Unified"]
    size: int
    cpus: list[int]


class HugePagesWire(TypedDict):
    """A pool of huge pages: their size in bytes, and how many there are."""

    size: int
    total: int
    free: int


class PromisedWire(TypedDict):
    """What of a node is promised to VMs that run.

    ``own_cpus`` are one VM's alone, and ``vcpus`` run on the others: one that may run elsewhere counts in part.
    ``memory``: bytes, of those whose memory is bound to it, an even part of what is bound to several nodes.
    """

    own_cpus: int
    vcpus: float
    memory: int


class NodeWire(TypedDict):
    """A NUMA node of the host.

    ``memory`` is what it has, ``free`` what can be had of that at once, huge pages apart. ``distances``: by the number
    of the node, 10 for itself.
    """

    number: int
    memory: int
    free: int
    distances: dict[str, int]
    promised: PromisedWire
    hugepages: list[HugePagesWire]


class Topology(TypedDict):
    """What the host is made of: its nodes, at least one, and its CPUs, ascending, and the caches of those online."""

    nodes: list[NodeWire]
    cpus: list[CpuWire]
    caches: list[CacheWire]


class CapacityMemory(TypedDict):
    """Memory besides huge pages, in bytes.

    ``total`` less ``reserved`` times ``overcommit`` is the ``limit`` of what may be ``promised``; ``null`` for none.
    ``left``: what may be still, below 0 where it is too much. ``used`` and ``free`` are the host's own figures.
    """

    total: int
    reserved: int
    overcommit: float
    limit: int | None
    promised: int
    left: int | None
    used: int
    free: int


class CapacityPages(TypedDict):
    """Huge pages of one ``size`` in bytes: how many there are or may be made, are promised, are left, and are free."""

    size: int
    total: int
    promised: int
    left: int
    free: int


class CapacityCpus(TypedDict):
    """CPUs that VMs may use: how many, how many of them are exclusively some VM's, and the vCPUs on all others."""

    total: int
    exclusive: int
    overcommit: float
    limit: int | None
    promised: int
    left: int | None


class CapacityNode(TypedDict):
    """The same of one NUMA node. ``promised`` is what is bound to it, and an even part of what is bound to several."""

    number: int
    cpus: int
    exclusive: int
    memory: CapacityMemory
    hugepages: list[CapacityPages]


class CapacityInstance(TypedDict):
    """What a VM was promised, in bytes: its guest's ``memory``, and what QEMU takes of its ``own``.

    ``page``: the size of the huge pages that the memory is in, 0 for none. ``nodes``: it is bound to these.
    ``exclusive``: its vCPUs have CPUs of their own.
    """

    name: str
    memory: int
    own: int
    page: int
    nodes: list[int]
    vcpus: int
    exclusive: bool


class Capacity(TypedDict):
    """What there is of the host, what of it may be promised to VMs, what is, and to whom."""

    memory: CapacityMemory
    hugepages: list[CapacityPages]
    cpus: CapacityCpus
    nodes: list[CapacityNode]
    instances: list[CapacityInstance]


class Thread(TypedDict):
    """One thread of QEMU, and the ``vcpus`` that it runs, or the unit's id of the ``iothread`` that it is, else empty.
    That of a program beside QEMU has the entry that this serves as its ``helper``, such as ``device.data``.

    CPU sets are as ``0-3,8``: ``pin`` is where it is to run, none is anywhere, ``allowed`` where it may. ``cpu`` is the
    one it ran on last. It ran for ``seconds``, and ``waited`` for a CPU. ``migrations``: how often it went from one CPU
    to another. ``drifts``: how often it was found off its CPUs, and ``drift_cpu`` which one it had run on then.
    """

    thread: int
    name: str
    vcpus: list[int]
    iothread: str
    helper: str
    pin: str
    allowed: str
    cpu: int
    seconds: float
    waited: float | None
    migrations: int | None
    drifts: int
    drift_cpu: int | None


class Cpus(TypedDict):
    """The threads of a VM's QEMU: the first 512 of ``count``. ``drifts``: how often one was put back on its CPUs.
    ``explanation``: why its CPUs were chosen, where they were, in sentences.
    """

    threads: list[Thread]
    count: int
    drifts: int
    explanation: list[str]


class NodePartWire(TypedDict):
    """Bytes of a VM's memory on one NUMA node of the host.

    ``anonymous`` is nobody else's, ``huge`` in huge pages, ``file`` of files or shared as if it were one.
    """

    node: int
    anonymous: int
    huge: int
    file: int


class NodeMemoryWire(TypedDict):
    """Where on the host a VM's memory is, as it was ``age`` seconds ago: nodes that it has none of are left out."""

    age: float
    nodes: list[NodePartWire]


class Times(TypedDict):
    """What a thread that runs ``vcpus``, or is an ``iothread``, has had of the host's CPUs, in seconds.

    It ran for ``seconds``, and ``waited``, ready to run, while another did: null where the kernel does not count that.
    """

    vcpus: list[int]
    iothread: str
    seconds: float
    waited: float | None


class Stats(TypedDict):
    """Counters of one VM, from /proc and QEMU's own, as last read.

    ``read_at``: when those of /proc were read, in seconds since the host's boot. ``memory_huge`` is not part of
    ``memory_rss``, which is less than ``memory_limit`` where there is one. ``node_memory`` is null until it was read.
    """

    read_at: float
    cpu_seconds: float
    times: list[Times]
    memory_rss: int
    memory_huge: int
    memory_swapped: int
    memory_limit: int | None
    node_memory: NodeMemoryWire | None
    threads: int
    disks: dict[str, dict[str, int]]
    nics: dict[str, dict[str, int]]
    balloon: dict[str, int]
    drifts: int
