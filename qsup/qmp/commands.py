"""QMP's commands as typed verbs.

Decides: each command's arguments, and what its answer must look like.
Must not: decide when a command is allowed, retry, or keep state.

Every verb takes ``timeout``, seconds for the whole exchange, and raises what `Monitor.execute` raises;
`MonitorProtocolError` also for an answer that is not of the command's type. Each names its QAPI command.

Long because it has a function for each command.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from qemu.qmp.message import UnexpectedTypeError

from qsup.errors import MonitorClosed, MonitorProtocolError, QmpCommandError
from qsup.qmp.connection import MAX_LARGE_REPLY, MAX_REPLY, Monitor
from qsup.qmp.results import (
    AddfdInfo,
    BlockInfo,
    BlockStats,
    ChardevInfo,
    CpuInfoFast,
    HotpluggableCpu,
    IothreadInfo,
    JobInfo,
    KvmInfo,
    MemoryDevice,
    StatusInfo,
)
from qsup.qmp.wire import elements, member

_T = TypeVar("_T")
_Arguments = Mapping[str, object] | None


async def _ask(
    monitor: Monitor,
    command: str,
    parse: Callable[[object], _T],
    timeout: float,
    arguments: _Arguments = None,
    fds: Sequence[int] = (),
    max_reply: int = MAX_REPLY,
) -> _T:
    answer = await monitor.execute(command, arguments, timeout=timeout, fds=fds, max_reply=max_reply)
    try:
        return parse(answer)
    except UnexpectedTypeError as error:
        words = f"QEMU answered {command} with something else: {error.error_message}"
        raise MonitorProtocolError(words, instance=monitor.name) from error


async def _list(
    monitor: Monitor, command: str, parse: Callable[[object], _T], timeout: float, arguments: _Arguments = None
) -> tuple[_T, ...]:
    def parse_all(answer: object) -> tuple[_T, ...]:
        return tuple(parse(item) for item in elements(answer))

    return await _ask(monitor, command, parse_all, timeout, arguments)


def _name(value: object) -> str:
    return member(value, "name", str)


def _node_name(value: object) -> str:
    return member(value, "node-name", str)


def _child(value: object) -> tuple[str, str]:
    """Name and type of a QOM property that is an object of its own, else two empty texts."""
    type_ = member(value, "type", str)
    return (_name(value), type_[6:-1]) if type_.startswith("child<") else ("", "")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise UnexpectedTypeError("no text", type(value).__name__)
    return value


#: Where QEMU has the devices that were given an id, and the others.
PERIPHERAL, _ANONYMOUS = "/machine/peripheral", "/machine/peripheral-anon"


# The machine


async def query_status(monitor: Monitor, *, timeout: float) -> StatusInfo:
    """``query-status``."""
    return await _ask(monitor, "query-status", StatusInfo.parse, timeout)


async def cont(monitor: Monitor, *, timeout: float) -> None:
    """``cont``: let the vCPUs run; the event RESUME follows when they had not."""
    await monitor.execute("cont", timeout=timeout)


async def stop(monitor: Monitor, *, timeout: float) -> None:
    """``stop``: halt the vCPUs; the event STOP follows when they ran."""
    await monitor.execute("stop", timeout=timeout)


async def system_reset(monitor: Monitor, *, timeout: float) -> None:
    """``system_reset``: the reset button."""
    await monitor.execute("system_reset", timeout=timeout)


async def system_powerdown(monitor: Monitor, *, timeout: float) -> None:
    """``system_powerdown``: press the ACPI power button; the guest may not listen."""
    await monitor.execute("system_powerdown", timeout=timeout)


async def inject_nmi(monitor: Monitor, *, timeout: float) -> None:
    """``inject-nmi``: to all vCPUs."""
    await monitor.execute("inject-nmi", timeout=timeout)


async def quit(monitor: Monitor, *, timeout: float) -> None:
    """``quit``: end QEMU. Its end of the connection is an answer too, but only its pidfd says that it is gone."""
    try:
        await monitor.execute("quit", timeout=timeout)
    except MonitorClosed as error:
        if not error.details["sent"]:
            raise


async def set_link(monitor: Monitor, name: str, *, up: bool, timeout: float) -> None:
    """``set_link``: plug a NIC in or out, as the guest sees it, by its id or its back end's."""
    await monitor.execute("set_link", {"name": name, "up": up}, timeout=timeout)


# Queries


async def query_kvm(monitor: Monitor, *, timeout: float) -> KvmInfo:
    """``query-kvm``."""
    return await _ask(monitor, "query-kvm", KvmInfo.parse, timeout)


async def query_name(monitor: Monitor, *, timeout: float) -> str:
    """``query-name``: the ``-name`` QEMU was given, or ``""``."""
    return await _ask(monitor, "query-name", lambda answer: member(answer, "name", str, ""), timeout)


async def query_uuid(monitor: Monitor, *, timeout: float) -> uuid.UUID:
    """``query-uuid``: the ``-uuid`` QEMU was given; all zero without."""
    text = await _ask(monitor, "query-uuid", lambda answer: member(answer, "UUID", str), timeout)
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise MonitorProtocolError(f"QEMU answered query-uuid with {text!r:.50}", instance=monitor.name) from error


async def query_cpus_fast(monitor: Monitor, *, timeout: float) -> tuple[CpuInfoFast, ...]:
    """``query-cpus-fast``: the vCPUs and their threads, without disturbing them."""
    return await _list(monitor, "query-cpus-fast", CpuInfoFast.parse, timeout)


async def query_iothreads(monitor: Monitor, *, timeout: float) -> tuple[IothreadInfo, ...]:
    """``query-iothreads``: the threads that do the work of disks."""
    return await _list(monitor, "query-iothreads", IothreadInfo.parse, timeout)


async def query_hotpluggable_cpus(monitor: Monitor, *, timeout: float) -> tuple[HotpluggableCpu, ...]:
    """``query-hotpluggable-cpus``: every place for a vCPU, in the order of the topology (QEMU's own is the reverse)."""
    found = await _list(monitor, "query-hotpluggable-cpus", HotpluggableCpu.parse, timeout)
    return found[::-1]


async def query_block(monitor: Monitor, *, timeout: float) -> tuple[BlockInfo, ...]:
    """``query-block``: the drives the guest sees."""
    return await _list(monitor, "query-block", BlockInfo.parse, timeout)


async def block_set_io_throttle(monitor: Monitor, drive: str, limits: Mapping[str, int], *, timeout: float) -> None:
    """``block_set_io_throttle``: what the guest may do with a drive, in place of what it might before.

    Args:
        drive: as ``query-block`` has it in ``qdev``.
        limits: QAPI's BlockIOThrottle, all averages among them.
    """
    await monitor.execute("block_set_io_throttle", {"id": drive, **limits}, timeout=timeout)


async def blockdev_open_tray(monitor: Monitor, drive: str, *, force: bool, timeout: float) -> None:
    """``blockdev-open-tray``; of a tray that the guest has locked it only asks the guest, unless ``force`` is set."""
    await monitor.execute("blockdev-open-tray", {"id": drive, "force": force}, timeout=timeout)


async def blockdev_close_tray(monitor: Monitor, drive: str, *, timeout: float) -> None:
    """``blockdev-close-tray``."""
    await monitor.execute("blockdev-close-tray", {"id": drive}, timeout=timeout)


async def blockdev_remove_medium(monitor: Monitor, drive: str, *, timeout: float) -> None:
    """``blockdev-remove-medium``, from an open tray."""
    await monitor.execute("blockdev-remove-medium", {"id": drive}, timeout=timeout)


async def blockdev_insert_medium(monitor: Monitor, drive: str, node: str, *, timeout: float) -> None:
    """``blockdev-insert-medium``, into an open tray."""
    await monitor.execute("blockdev-insert-medium", {"id": drive, "node-name": node}, timeout=timeout)


async def blockdev_reopen(monitor: Monitor, nodes: Sequence[Mapping[str, object]], *, timeout: float) -> None:
    """``blockdev-reopen``: have nodes be as these say, all of them or none."""
    await monitor.execute("blockdev-reopen", {"options": list(nodes)}, timeout=timeout)


async def block_resize(monitor: Monitor, node: str, size: int, *, timeout: float) -> None:
    """``block_resize``: make an image as large as ``size`` bytes; the guest is told."""
    await monitor.execute("block_resize", {"node-name": node, "size": size}, timeout=timeout)


async def query_blockstats(monitor: Monitor, *, timeout: float) -> tuple[BlockStats, ...]:
    """``query-blockstats``: what went through them."""
    return await _list(monitor, "query-blockstats", BlockStats.parse, timeout)


async def query_chardev(monitor: Monitor, *, timeout: float) -> tuple[ChardevInfo, ...]:
    """``query-chardev``."""
    return await _list(monitor, "query-chardev", ChardevInfo.parse, timeout)


async def query_jobs(monitor: Monitor, *, timeout: float) -> tuple[JobInfo, ...]:
    """``query-jobs``: all that were not dismissed."""
    return await _list(monitor, "query-jobs", JobInfo.parse, timeout)


async def query_named_block_nodes(monitor: Monitor, *, timeout: float) -> frozenset[str]:
    """``query-named-block-nodes``: the names of all block nodes, those of a chain of images each by itself."""
    # flat: without it each node repeats what it stands on, and long chains make an answer of megabytes
    arguments = {"flat": True}
    nodes = await _list(monitor, "query-named-block-nodes", _node_name, timeout, arguments)
    return frozenset(nodes)


async def qom_list_peripherals(monitor: Monitor, *, timeout: float) -> Mapping[str, str]:
    """``qom-list`` of ``/machine/peripheral``: the type of each device that was given an id, by that."""
    return await _list_children(monitor, PERIPHERAL, timeout)


async def qom_list_anonymous(monitor: Monitor, *, timeout: float) -> Mapping[str, str]:
    """``qom-list`` of ``/machine/peripheral-anon``: the type of each device that was given no id, by its path."""
    found = await _list_children(monitor, _ANONYMOUS, timeout)
    return {f"{_ANONYMOUS}/{name}": type_ for name, type_ in found.items()}


async def _list_children(monitor: Monitor, path: str, timeout: float) -> Mapping[str, str]:
    found = await _list(monitor, "qom-list", _child, timeout, {"path": path})
    return {name: type_ for name, type_ in found if name}


async def qom_place(monitor: Monitor, path: str, *, timeout: float) -> tuple[str, str]:
    """Where a device is: the name of its bus, and of a PCI device its slot there, such as ``0x1a`` or ``0x1a.0x3``.

    Either is ``""`` where it has none, or is not there any more.
    """
    bus = await _property(monitor, path, "parent_bus", str, timeout) or ""
    devfn = await _property(monitor, path, "addr", int, timeout)
    # PCI_DEVFN of QEMU's include/hw/pci/pci.h
    slot, function = divmod(devfn or 0, 8)
    address = "" if devfn is None else f"{slot:#x}.{function:#x}" if function else f"{slot:#x}"
    return bus.rpartition("/")[2], address


async def _property(monitor: Monitor, path: str, name: str, kind: type[_T], timeout: float) -> _T | None:
    """``qom-get``; ``None`` where there is no such property, or no such device."""

    def parse(answer: object) -> _T:
        return member({name: answer}, name, kind)

    try:
        return await _ask(monitor, "qom-get", parse, timeout, {"path": path, "property": name})
    except QmpCommandError:
        return None


async def query_balloon(monitor: Monitor, *, timeout: float) -> int | None:
    """``query-balloon``: bytes the guest holds, or ``None`` without a balloon (or before its driver has started)."""
    try:
        return await _ask(monitor, "query-balloon", lambda answer: member(answer, "actual", int), timeout)
    except QmpCommandError as error:
        if error.error_class in ("DeviceNotActive", "KVMMissingCap"):
            return None
        raise


async def balloon(monitor: Monitor, size: int, *, timeout: float) -> None:
    """``balloon``: ask the guest to get by with that many bytes; BALLOON_CHANGE tells what it does."""
    await monitor.execute("balloon", {"value": size}, timeout=timeout)


async def query_memory_devices(monitor: Monitor, *, timeout: float) -> tuple[MemoryDevice, ...]:
    """``query-memory-devices``: memory that came, or may come, beside what the VM was started with."""
    return await _list(monitor, "query-memory-devices", MemoryDevice.parse, timeout)


async def query_memory_size(monitor: Monitor, *, timeout: float) -> int:
    """``query-memory-size-summary``: bytes that the machine has, those that came included."""

    def parse(answer: object) -> int:
        return member(answer, "base-memory", int) + member(answer, "plugged-memory", int, 0)

    return await _ask(monitor, "query-memory-size-summary", parse, timeout)


async def qom_set(monitor: Monitor, path: str, name: str, value: object, *, timeout: float) -> None:
    """``qom-set``."""
    await monitor.execute("qom-set", {"path": path, "property": name, "value": value}, timeout=timeout)


async def qom_get_number(monitor: Monitor, path: str, name: str, *, timeout: float) -> int:
    """``qom-get`` of a property that is a whole number."""

    def parse(answer: object) -> int:
        number: int = member({name: answer}, name, int)
        return number

    return await _ask(monitor, "qom-get", parse, timeout, {"path": path, "property": name})


async def query_guest_stats(monitor: Monitor, path: str, *, timeout: float) -> Mapping[str, int]:
    """``qom-get`` of a balloon's ``guest-stats``, by QEMU's names without ``stat-``; none before a driver sent any."""

    def parse(answer: object) -> Mapping[str, int]:
        stats = member(answer, "stats", dict)
        names = {name.removeprefix("stat-").replace("-", "_"): name for name in stats}
        return {short: member(stats, name, int) for short, name in names.items()} if _updated(answer) else {}

    def _updated(answer: object) -> bool:
        return member(answer, "last-update", int) > 0

    arguments = {"path": path, "property": "guest-stats"}
    return await _ask(monitor, "qom-get", parse, timeout, arguments)


async def query_yank(monitor: Monitor, *, timeout: float) -> None:
    """``query-yank``, out of band: the harmless command that a QEMU answers whose main loop is busy.

    Raises:
        UnsupportedError: this QEMU takes no out-of-band commands.
    """
    await monitor.execute("query-yank", timeout=timeout, oob=True)


async def query_commands(monitor: Monitor, *, timeout: float) -> frozenset[str]:
    """``query-commands``: the names of all that this QEMU has."""
    return frozenset(await _list(monitor, "query-commands", _name, timeout))


async def human_monitor_command(monitor: Monitor, line: str, *, timeout: float) -> str:
    """``human-monitor-command``: what QMP has no command for; an error is text like any other."""
    arguments = {"command-line": line}
    return await _ask(monitor, "human-monitor-command", _text, timeout, arguments, max_reply=MAX_LARGE_REPLY)


# Descriptors


async def getfd(monitor: Monitor, fd: int, name: str, *, timeout: float) -> None:
    """``getfd``: hand QEMU a copy of ``fd``, to be used once under ``name``; one of that name is closed first."""
    await monitor.execute("getfd", {"fdname": name}, timeout=timeout, fds=(fd,))


async def closefd(monitor: Monitor, name: str, *, timeout: float) -> None:
    """``closefd``: take an unused one back."""
    await monitor.execute("closefd", {"fdname": name}, timeout=timeout)


async def watchdog_set_action(monitor: Monitor, action: str, *, timeout: float) -> None:
    """``watchdog-set-action``: what happens when a watchdog expires (QAPI WatchdogAction)."""
    await monitor.execute("watchdog-set-action", {"action": action}, timeout=timeout)


async def add_fd(
    monitor: Monitor, fd: int, *, timeout: float, fdset_id: int | None = None, opaque: str = ""
) -> AddfdInfo:
    """``add-fd``: hand QEMU a copy of ``fd`` for ``/dev/fdset/N``.

    On a running VM a set that nothing uses vanishes when the connection ends: this and the use of it belong to one.

    Args:
        fdset_id: the set to add it to; ``None`` makes one.
        opaque: free text, which ``query-fdsets`` gives back.
    """
    arguments: dict[str, object] = {"opaque": opaque} if opaque else {}
    if fdset_id is not None:
        arguments["fdset-id"] = fdset_id
    return await _ask(monitor, "add-fd", AddfdInfo.parse, timeout, arguments, (fd,))


async def query_fdsets(monitor: Monitor, *, timeout: float) -> Mapping[int, tuple[int, ...]]:
    """``query-fdsets``: QEMU's own numbers of the descriptors in each set."""

    def parse(value: object) -> tuple[int, tuple[int, ...]]:
        members = tuple(member(each, "fd", int) for each in member(value, "fds", list))
        return member(value, "fdset-id", int), members

    return dict(await _list(monitor, "query-fdsets", parse, timeout))


async def remove_fd(monitor: Monitor, fdset_id: int, *, timeout: float, fd: int | None = None) -> None:
    """``remove-fd``: close a set, or one member of it; what uses it now keeps its own copies."""
    arguments = {"fdset-id": fdset_id} | ({} if fd is None else {"fd": fd})
    await monitor.execute("remove-fd", arguments, timeout=timeout)


async def add_client_vnc(monitor: Monitor, fd: int, *, timeout: float) -> None:
    """``getfd`` and ``add_client``: serve VNC, without a password, on a connected stream socket.

    A VM started with ``-vnc none`` has VNC without listening anywhere: whoever may connect is decided here.
    """
    # a name of its own: two clients at a time must not take each other's descriptor
    name = f"vnc-{uuid.uuid4().hex}"
    await getfd(monitor, fd, name, timeout=timeout)
    await monitor.execute("add_client", {"protocol": "vnc", "fdname": name, "skipauth": True}, timeout=timeout)
