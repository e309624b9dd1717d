"""The JSON shapes of the API, as types. Pure.

Decides: every member of every request and reply, with `qsup.api.hostwire`. The OpenAPI document is generated from
these, and a test compares.
Must not: hold behaviour. Sizes are bytes, durations seconds, times RFC 3339 in UTC with microseconds. Long because
it is one dictionary, to look things up in.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Level = Literal["active", "activating", "deactivating", "inactive", "failed"]
OperationState = Literal["running", "succeeded", "failed", "cancelled"]


class Problem(TypedDict):
    """An error: RFC 9457, with a stable ``code``."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    instance: NotRequired[str]
    hint: NotRequired[str]


class CauseWire(TypedDict):
    """Why a VM is in its state. ``disk``: that of an I/O error; ``nospace``: which is for want of room alone.

    ``output`` and ``console``: the last lines that QEMU printed and the guest wrote before, at most 10 of each and 200
    characters of a line; none where an operator ended it. They hold no control characters and are untrusted text.
    """

    kind: str
    text: str
    detail: str
    exit_code: int | None
    signal: str
    disk: str
    nospace: bool
    output: list[str]
    console: list[str]


class MachineWire(TypedDict):
    """The machine as it runs, or as the unit asks for while it does not."""

    type: str
    accel: str
    cpu_model: str
    emulator: str
    firmware: str


class CpusWire(TypedDict):
    """Virtual CPUs; ``threads`` are host thread ids in the order of the CPU index, empty while not running."""

    vcpus: int
    max_vcpus: int
    threads: list[int]


class GuestNodeWire(TypedDict):
    """A NUMA node that a guest sees: bytes that it was started with, and its ``vcpus``, such as ``0-3``.

    ``nodes`` are those of the host that its memory is on by the VM's unit.
    """

    id: str
    size: int
    vcpus: str
    nodes: list[int]


class MemoryWire(TypedDict):
    """Guest memory in bytes.

    ``max`` is what there can be of it while the VM runs, and ``actual`` what the balloon leaves, null where it is not
    known. ``page`` is the size of the huge pages that it is in, 0 for none, and ``nodes`` are those of the host that a
    VM which runs has it on by its unit. ``guest_nodes`` are those that its guest sees, in its order, while it runs.
    """

    size: int
    max: int
    actual: int | None
    page: int
    nodes: list[int]
    guest_nodes: list[GuestNodeWire]


#: Where an entry of a unit stands.
PartState = Literal["there", "coming", "leaving"]


class DiskWire(TypedDict):
    """One disk.

    ``state``: one that is ``leaving`` waits for the guest to let it go. ``throttle``: the limits that there are, as the
    unit names them, lengths in seconds. ``iothread``: the one that does its work, empty for QEMU's main loop.
    ``tray``: of a CD drive while it runs: ``locked`` is closed, and the guest keeps it so; else, and while it is not
    known, empty.
    """

    id: str
    state: PartState
    path: str
    format: str
    type: str
    bus: str
    read_only: bool
    iothread: str
    throttle: dict[str, int]
    tray: Literal["", "open", "closed", "locked"]


class NicWire(TypedDict):
    """One network interface; ``link``: whether its cable is plugged in, as the guest sees it."""

    id: str
    state: PartState
    type: str
    model: str
    mac: str
    bridge: str
    forward: list[str]
    link: Literal["up", "down"]


class DeviceWire(TypedDict):
    """One further device; ``socket``: where programs of the host connect to it while it runs, empty for nowhere."""

    id: str
    state: PartState
    type: str
    socket: str


class DiskList(TypedDict):
    """The disks of a VM."""

    disks: list[DiskWire]


class NicList(TypedDict):
    """The network interfaces of a VM."""

    nics: list[NicWire]


class SlotsWire(TypedDict):
    """Places for PCI devices that can come while the VM runs, and how many of them are free."""

    free: int
    total: int


class PluggedWire(TypedDict):
    """One device that QEMU has.

    ``id``: QEMU's; of one without an id its path in QOM. ``entry``: what it is for in the unit, such as ``disk.root``,
    or empty. ``bus`` and ``address``: its place, empty where QEMU chose it. ``state``: ``leaving`` waits for the guest
    to let it go.
    """

    id: str
    driver: str
    bus: str
    address: str
    entry: str
    state: PartState


class PluggedList(TypedDict):
    """Every device of a VM that runs.

    ``absent``: entries that its unit, as its files were last read, has and QEMU has not, such as ``disk.data``:
    somebody or the guest has removed them, or they are yet to come.
    """

    devices: list[PluggedWire]
    slots: SlotsWire
    absent: list[str]


class AgentWire(TypedDict):
    """The guest agent: whether there is a channel, and whether somebody in the guest has it open."""

    enabled: bool
    connected: bool


class ConsoleWire(TypedDict):
    """The text console and who is attached: at most one client types, any number watch."""

    type: str
    watchers: int
    has_writer: bool


class DisplayWire(TypedDict):
    """The screen."""

    type: str
    video: bool


class UnitRef(TypedDict):
    """The unit behind an instance. ``files``: none once they are gone. ``stale``: they changed since its start.

    ``needs_restart``: what changed in them counts for this VM only once it is started anew.
    """

    name: str
    description: str
    files: list[str]
    autostart: bool
    stale: bool
    needs_restart: bool


class Instance(TypedDict):
    """One VM. ``restarts``: automatic ones. ``resets``: the guest's own since its QEMU was started.

    Both outlive the daemon. A reset while none runs is not counted. ``waits_for``: what its ``operation`` waits for,
    such as ``db (waiting-ready)``; empty when it waits for nothing. ``slots``, ``limits``: null while it does not run.
    """

    name: str
    state: Level
    substate: str
    cause: CauseWire | None
    pid: int | None
    uid: int | None
    since: str
    restarts: int
    resets: int
    uuid: str
    unit: UnitRef
    machine: MachineWire
    cpus: CpusWire
    memory: MemoryWire
    limits: LimitsWire | None
    disks: list[DiskWire]
    nics: list[NicWire]
    devices: list[DeviceWire]
    slots: SlotsWire | None
    agent: AgentWire
    console: ConsoleWire
    display: DisplayWire
    operation: str | None
    waits_for: str
    warnings: list[str]


class LimitsWire(TypedDict):
    """What a VM's QEMU may take of the host, as the kernel said when it was set; null: no limit, or none that is kept.

    ``cpu``, and of parts of its threads ``vcpu_cpu`` and ``emulator_cpu``: CPUs, such as 0.5. ``cpu_weight``: against
    the 100 of others. ``memory``, ``memory_high``, ``swap``: bytes. ``pids``: threads and processes. ``io_weight``: as
    ``cpu_weight``. ``io_read_bps`` and the like: bytes or requests a second, by the numbers of a device (``8:0``).
    ``cpuset_cpus``, ``cpuset_mems``: the CPUs and NUMA nodes of the host, such as ``0-3``, that nothing of it leaves.
    ``oom_score_adjust``, ``nofile``: QEMU's own, of units that ask for it.
    """

    cpu: float | None
    vcpu_cpu: float | None
    emulator_cpu: float | None
    cpu_weight: int | None
    memory: int | None
    memory_high: int | None
    pids: int | None
    swap: int | None
    io_weight: int | None
    io_read_bps: dict[str, int] | None
    io_write_bps: dict[str, int] | None
    io_read_iops: dict[str, int] | None
    io_write_iops: dict[str, int] | None
    cpuset_cpus: str | None
    cpuset_mems: str | None
    oom_score_adjust: int | None
    nofile: int | None


class InstanceList(TypedDict):
    """``next`` is the name to give as ``after`` for the following page, or null."""

    instances: list[Instance]
    next: str | None


class Operation(TypedDict):
    """A change that talks to QEMU. One that its guest works on can be ``cancellable``.

    ``arguments``: what was asked for besides, of a change: ``changes`` or ``entry`` and more. ``progress``: how far it
    is, by the VM's substate, or which other VMs it waits for. ``target``: the VM, or an empty text for `stop-all`,
    whose ``result`` names VMs as ``stopped`` and ``killed``, and before its end all of them as ``vms``. The ``result``
    of `set`, or its ``error``, has ``keys``.
    """

    id: str
    kind: str
    target: str
    arguments: dict[str, Any]
    state: OperationState
    progress: str
    created: str
    updated: str
    cancellable: bool
    result: dict[str, Any] | None
    error: Problem | None


class OperationList(TypedDict):
    """Operations, newest first."""

    operations: list[Operation]
    next: str | None


class UnitWire(TypedDict):
    """One unit as the files say it. ``unit`` holds every key with its effective value."""

    name: str
    files: list[str]
    template: bool
    autostart: bool
    description: str
    etag: str
    text: NotRequired[str]
    unit: NotRequired[dict[str, Any]]


class SourceWire(TypedDict):
    """One file of a unit."""

    file: str
    text: str


class UnitFiles(TypedDict):
    """The files of one unit as they are, with or without errors, in the order in which they apply.

    ``own``: the unit's own file in the administrator's directory, which a `PUT` of the unit replaces; null where it
    would be a new one.
    """

    name: str
    etag: str
    own: str | None
    files: list[SourceWire]


class UnitList(TypedDict):
    """All units on the search path, and what is wrong with those that cannot be used."""

    units: list[UnitWire]
    diagnostics: list[DiagnosticWire]
    next: str | None


class DiagnosticWire(TypedDict):
    """One error in one unit file."""

    file: str
    line: int
    key: str
    message: str


class ValidateRequest(TypedDict):
    """A unit text to check."""

    name: str
    text: str


class HostCheckUnit(TypedDict):
    """A unit: the ``values`` of its sections and keys, as a drop-in would say them to an empty one."""

    name: str
    values: dict[str, Any]


class HostCheckRequest(TypedDict):
    """Units to check against the host, each without errors."""

    units: list[HostCheckUnit]


class HostFindingWire(TypedDict):
    """Why a ``unit`` could not start here. ``keys``: what it rests on, the one to blame first: each its steps from the
    root, such as ``["disk", "root", "path"]``.
    """

    unit: str
    keys: list[list[str]]
    message: str


class HostCheck(TypedDict):
    """All that was found."""

    findings: list[HostFindingWire]


class Validation(TypedDict):
    """What is wrong with it; nothing when the list is empty."""

    diagnostics: list[DiagnosticWire]


class KeyVerdict(TypedDict):
    """What would become of a key: both values, when the new one counts, and why not at once."""

    old: Any
    new: Any
    applied: Literal["live", "daemon", "reset", "start"]
    why: NotRequired[str]


class Preview(TypedDict):
    """What would become of the keys of a unit, by their names. ``running``: its VM runs, and is compared with it."""

    name: str
    running: bool
    keys: dict[str, KeyVerdict]


class ChangeWire(TypedDict):
    """A key that differs: its value in the running VM and in the files, and what makes the latter count.

    An entry of an array that came or went is one change, without its ``old`` or its ``new`` value.
    """

    key: str
    old: Any
    new: Any
    needs: Literal["at once", "live", "guest reset", "restart"]


class Diff(TypedDict):
    """A VM against its unit. One that is not ``running`` has nothing to be compared with."""

    instance: str
    running: bool
    changes: list[ChangeWire]


class Reload(TypedDict):
    """What a reload found: names of units that came, changed and went, and the errors.

    ``running``: the VMs that run whose units this reload changed, and what each changed key needs. None is restarted.
    """

    added: list[str]
    changed: list[str]
    removed: list[str]
    diagnostics: list[DiagnosticWire]
    running: list[Diff]


class Dependencies(TypedDict):
    """What one VM's unit says of others. ``state`` and ``substate`` are null for a name that no unit has."""

    name: str
    state: Level | None
    substate: str | None
    after: list[str]
    before: list[str]
    requires: list[str]
    wants: list[str]
    conflicts: list[str]


class DependencyList(TypedDict):
    """Every VM, and every name that a unit names, sorted. ``cycles``: in the order, each VM waiting for the next."""

    dependencies: list[Dependencies]
    cycles: list[list[str]]


class PowerRequest(TypedDict, total=False):
    """Options of a power verb. ``timeout``: seconds, in place of the unit's for this stop."""

    timeout: float


class StartRequest(PowerRequest, total=False):
    """Options of a start. ``force``: even if more of the host is promised then than may be; for administrators."""

    force: bool


class NamesRequest(TypedDict):
    """VMs, each named once, at most 1000. ``timeout``: seconds, in place of each unit's for this stop."""

    names: list[str]
    timeout: NotRequired[float]


class StartNamesRequest(NamesRequest):
    """VMs to be started. ``force``: those that are named, as with one VM."""

    force: NotRequired[bool]


class BegunOperations(TypedDict):
    """``operations``: one for each VM that was not refused, in the order in which they were named.

    ``refused``: by name, why nothing is done on the others.
    """

    operations: list[Operation]
    refused: dict[str, Problem]


class StopAllRequest(TypedDict, total=False):
    """``timeout``: seconds until what is left is killed, in place of the daemon's ``shutdown-timeout``."""

    timeout: float


class ChangeRequest(TypedDict, total=False):
    """What is to be changed of a VM, one of the two.

    ``changes``: sections and keys as a drop-in for its unit would say them; of arrays of tables the entries that
    change, or come, by ``id``. ``keys``: texts by the names of keys, such as ``vcpus`` or ``disk.data.cache``.
    """

    changes: dict[str, Any]
    keys: dict[str, str]


class DiskRequest(TypedDict):
    """What is to be changed of a disk. ``size``: as a unit would say it, such as ``20G``; never less than it has."""

    size: str


class InsertRequest(TypedDict):
    """A medium for a CD drive: the image as a unit would say it.

    ``force``: take what is in the drive from a guest that has locked its tray.
    """

    path: str
    format: NotRequired[Literal["raw", "qcow2"]]
    force: NotRequired[bool]


class EjectRequest(TypedDict, total=False):
    """``force``: take the medium from a guest that has locked the tray."""

    force: bool


class QmpRequest(TypedDict):
    """One raw QMP command."""

    execute: str
    arguments: NotRequired[dict[str, Any]]
    timeout: NotRequired[float]


class QmpReply(TypedDict):
    """QEMU's answer, as it came."""

    result: Any


class AgentRequest(TypedDict):
    """One guest agent command: ``ping``, ``info``, ``addresses``, or ``exec`` with its path and arguments."""

    command: Literal["ping", "info", "addresses", "exec"]
    path: NotRequired[str]
    arguments: NotRequired[list[str]]
    input: NotRequired[str]
    timeout: NotRequired[float]


class ExecResult(TypedDict):
    """What a command in the guest gave: output as UTF-8, at most 1 MiB each.

    Where that is not what it wrote, undecodable bytes are replaced, and ``stdout_base64`` or ``stderr_base64`` has all
    as they were.
    """

    exit_code: int | None
    signal: int | None
    stdout: str
    stderr: str
    stdout_base64: NotRequired[str]
    stderr_base64: NotRequired[str]
    truncated: bool


class AgentReply(TypedDict):
    """The agent's answer."""

    result: Any


class Log(TypedDict):
    """The last lines that QEMU wrote to its standard output and error, oldest first."""

    lines: list[str]


class LogLine(TypedDict):
    """One further line, where the log is followed."""

    line: str


class CommandLine(TypedDict):
    """QEMU's argv as it was executed; ``running``: in the present life, else in the last."""

    argv: list[str]
    running: bool


class Event(TypedDict):
    """Something that happened."""

    seq: int
    boot_id: str
    time: str
    type: str
    instance: str | None
    data: dict[str, Any]


class Whoami(TypedDict):
    """Who the caller is to the daemon."""

    uid: int
    gid: int
    pid: int
    groups: list[int]
    role: Literal["read", "operate", "admin"]


class UsageWire(TypedDict):
    """How much of something is used, and how much may be; null: as much as there is."""

    used: int
    limit: int | None


class Health(TypedDict):
    """The daemon's own state. ``memory`` is in bytes, its limit ``memory-ceiling``.

    Short of ``descriptors`` or ``memory`` it turns API clients out, which is among the ``problems`` for a minute more.
    """

    status: Literal["ok", "degraded"]
    version: str
    pid: int
    uptime: float
    instances: dict[str, int]
    descriptors: UsageWire
    memory: UsageWire
    problems: list[str]


class Root(TypedDict):
    """Where to go from here."""

    name: str
    version: str
    links: dict[str, str]
