"""The limits of a cgroup: what it is held to, in either version's words.

Decides: which file of which version keeps a limit, and why one cannot be kept on this host.
Must not: make cgroups (`qsup.host.cgroup`), or judge whether a limit that cannot be kept matters.

Source: Documentation/admin-guide/cgroup-v2.rst; cgroup-v1/memory.rst and scheduler/sched-bwc.rst in Linux's source.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from qsup.errors import from_oserror
from qsup.host import cpuset

#: An amount for each of some devices, which are named by path or by number; in order.
Devices = tuple[tuple[str, int], ...]


@frozen(kw_only=True)
class Limits:
    """What the processes of a cgroup may have together; ``None``: no limit, or of the weight the usual one.

    Args:
        cpu: thousandths of a CPU.
        vcpu_cpu, emulator_cpu: the same of the threads in one of its two groups (`qsup.host.threadgroups`).
        cpu_weight: 1 to 10000, against the 100 of others.
        memory: bytes beyond which one of them is killed.
        memory_high: bytes beyond which they are slowed down.
        pids: threads and processes.
        swap: bytes of swap space.
        io_weight: of disks, as ``cpu_weight``.
        io_read_bps, io_write_bps: bytes a second, by the numbers of a device (``8:0``).
        io_read_iops, io_write_iops: reads and writes a second.
        cpuset_cpus, cpuset_mems: the CPUs and memory nodes beside which they have none.
    """

    cpu: int | None = None
    vcpu_cpu: int | None = None
    emulator_cpu: int | None = None
    cpu_weight: int | None = None
    memory: int | None = None
    memory_high: int | None = None
    pids: int | None = None
    swap: int | None = None
    io_weight: int | None = None
    io_read_bps: Devices | None = None
    io_write_bps: Devices | None = None
    io_read_iops: Devices | None = None
    io_write_iops: Devices | None = None
    cpuset_cpus: frozenset[int] | None = None
    cpuset_mems: frozenset[int] | None = None

    def items(self) -> dict[str, Any]:
        """All of them, by the names of the fields."""
        return {field.name: getattr(self, field.name) for field in attrs.fields(Limits)}


@frozen(kw_only=True)
class Effective(Limits):
    """What the kernel holds a VM to; of what is QEMU's alone, only where its unit asks for it.

    Args:
        oom_score_adjust: QEMU's score.
        nofile: files that it may have open.
    """

    oom_score_adjust: int | None = None
    nofile: int | None = None


#: The groups of threads below a cgroup, by the limit that is kept there; it can be wherever ``cpu`` can.
GROUPS: Mapping[str, str] = {"vcpu_cpu": "vcpu", "emulator_cpu": "emulator"}
#: Their names in a unit, by those of the fields.
NAMES: Mapping[str, str] = {field.name: field.name.replace("_", "-") for field in attrs.fields(Limits)}

_PERIOD = 100_000  # microseconds, as the kernel has it where nobody says otherwise
_SHARES, _WEIGHT = 1024, 100  # what a cgroup has that nobody gave a weight, in version 1 and in version 2
_LEAST_SHARES, _MOST_SHARES = 2, 1 << 18  # MIN_SHARES and MAX_SHARES in kernel/sched/sched.h
_UNLIMITED = 1 << 62  # version 1 has no word for it: it says all that its counter of pages can count


def _quota(limit: int) -> int:
    """Microseconds of a period."""
    return limit * _PERIOD // 1000


def _share(quota: str, period: str) -> int | None:
    return None if quota in ("max", "-1") else round(int(quota) * 1000 / int(period))


@frozen
class _Keeper:
    """A file that keeps a limit.

    Args:
        name: the file's.
        spell: the lines that are written into it one after the other, with its directory for what they depend on.
        read: what it says, by its directory.
    """

    name: str
    spell: Callable[[Path, Any], Sequence[str]]
    read: Callable[[Path], Any]


def _number(name: str, none: str, spell: Callable[[int], str], read: Callable[[Path], int | None]) -> _Keeper:
    """A file that keeps one number, and has a word for none."""
    return _Keeper(name, lambda _, limit: [none if limit is None else spell(limit)], read)


def _plain(name: str, none: str = "max") -> _Keeper:
    def read(directory: Path) -> int | None:
        text = (directory / name).read_text().strip()
        return None if text == "max" or int(text) >= _UNLIMITED else int(text)

    return _number(name, none, str, read)


def _cpu_time(group: str = "") -> Sequence[_Keeper]:
    """Of all threads, or of those in a group below."""

    def read_max(directory: Path) -> int | None:
        return _share(*(directory / group / "cpu.max").read_text().split())

    def read_cfs(directory: Path) -> int | None:
        return _share(*((directory / group / f"cpu.cfs_{word}_us").read_text().strip() for word in ("quota", "period")))

    return (
        _number(os.path.join(group, "cpu.max"), f"max {_PERIOD}", lambda limit: f"{_quota(limit)} {_PERIOD}", read_max),
        _number(os.path.join(group, "cpu.cfs_quota_us"), "-1", lambda limit: str(_quota(limit)), read_cfs),
    )


def _read_shares(directory: Path) -> int | None:
    return round(int((directory / "cpu.shares").read_text()) * _WEIGHT / _SHARES)


def _shares(weight: int) -> str:
    return str(min(max(weight * _SHARES // _WEIGHT, _LEAST_SHARES), _MOST_SHARES))


def _weight_of_io(name: str, least: int, most: int) -> _Keeper:
    def read(directory: Path) -> int | None:
        words_of_first = (directory / name).read_text().partition("\n")[0].split()  # "default 100", or the number alone
        return int(words_of_first[-1])

    return _number(name, str(_WEIGHT), lambda weight: str(min(max(weight, least), most)), read)


def _of_devices(name: str, word: str, none: str) -> _Keeper:
    """A file with a line for each device; in version 2 several limits share it, and ``word`` is one."""
    prefix = f"{word}=" if word else ""

    def read(directory: Path) -> Devices | None:
        found = []
        for line in (directory / name).read_text().splitlines():
            device, *values = line.split()
            value = next((each for each in values if each.startswith(prefix)), prefix + none).removeprefix(prefix)
            if value != none:
                found.append((device, int(value)))
        return tuple(sorted(found)) or None

    def spell(directory: Path, limit: Devices | None) -> Sequence[str]:
        wanted = dict(limit or ())
        over = dict.fromkeys(device for device, _ in read(directory) or () if device not in wanted)
        return [f"{device} {prefix}{none if value is None else value}" for device, value in (over | wanted).items()]

    return _Keeper(name, spell, read)


def _io(word: str, name: str) -> Sequence[_Keeper]:
    return (_of_devices("io.max", word, "max"), _of_devices(f"blkio.throttle.{name}_device", "", "0"))


def _cpuset(name: str) -> Sequence[_Keeper]:
    file = cpuset.FILES[name]
    return (_Keeper(file, lambda path, fence: cpuset.spell(path, file, fence), lambda path: cpuset.read(path, file)),)


#: Of each limit its controller, and the files that may keep it. A controller is in one hierarchy at a time.
_KEEPERS: Mapping[str, tuple[str, Sequence[_Keeper]]] = {
    "cpu": ("cpu", _cpu_time()),
    **{name: ("cpu", _cpu_time(group)) for name, group in GROUPS.items()},
    "cpu_weight": (
        "cpu",
        (_plain("cpu.weight", str(_WEIGHT)), _number("cpu.shares", str(_SHARES), _shares, _read_shares)),
    ),
    "memory": ("memory", (_plain("memory.max"), _plain("memory.limit_in_bytes", "-1"))),
    "memory_high": ("memory", (_plain("memory.high"),)),
    "pids": ("pids", (_plain("pids.max"),)),
    "swap": ("memory", (_plain("memory.swap.max"),)),
    # the ranges of kernel/block/blk-iocost.c and bfq-cgroup.c
    "io_weight": ("io", (_weight_of_io("io.weight", 1, 10_000), _weight_of_io("blkio.bfq.weight", 1, 1000))),
    "io_read_bps": ("io", _io("rbps", "read_bps")),
    "io_write_bps": ("io", _io("wbps", "write_bps")),
    "io_read_iops": ("io", _io("riops", "read_iops")),
    "io_write_iops": ("io", _io("wiops", "write_iops")),
    **{name: ("cpuset", _cpuset(name)) for name in cpuset.FILES},
}
#: Bytes that the kernel may round a limit down by: a page.
_PAGE = os.sysconf("SC_PAGE_SIZE")
_BYTES = ("memory", "memory_high", "swap")
_WEIGHTS = ("cpu_weight", "io_weight")
#: The controllers that are used.
CONTROLLERS = tuple(dict.fromkeys(controller for controller, _ in _KEEPERS.values()))


def controller(name: str) -> str:
    """The controller that keeps a limit."""
    return _KEEPERS[name][0]


def agree(name: str, wanted: Any, found: Any) -> bool:
    """Whether what the kernel says is what was wanted, but for its rounding; of a fence, what is there of it."""
    if name in cpuset.FILES:
        return not wanted or (bool(found) and bool(found <= wanted))
    if wanted is None and name in _WEIGHTS:
        wanted = _WEIGHT
    if wanted is None or found is None or name not in _BYTES:
        return bool(wanted == found)
    return bool(0 <= wanted - found < _PAGE)


def _found(paths: Sequence[Path], name: str) -> tuple[Path, _Keeper] | None:
    """The directory and the file that keep a limit."""
    keepers = _KEEPERS[name][1]
    return next(((path, each) for path in paths for each in keepers if os.path.exists(f"{path}/{each.name}")), None)


def directory_of(paths: Sequence[Path], name: str) -> Path | None:
    """The directory of a VM's cgroups that keeps a limit, ``None`` for none."""
    found = _found(paths, name)
    return None if found is None else found[0]


def hand_down(top: Path, tag: Path) -> None:
    """Let the cgroups below ``tag``, which is below ``top``, have controllers of version 2 if ``top`` is their root.

    Any other cgroup can hand down only without processes of its own, and the daemon is in ``top``. There not even a try
    is harmless: the kernel takes cpu and pids, and ``tag`` can then have no process (cgroup-v2.rst, "Threads").

    Raises:
        HostError: the kernel refused it.
    """
    if (top / "cgroup.type").exists():
        return
    for directory in (top, tag):
        there = [controller for controller in CONTROLLERS if controller in words(directory / "cgroup.controllers")]
        path = directory / "cgroup.subtree_control"
        if there:
            try:
                path.write_text(" ".join(f"+{controller}" for controller in there))
            except OSError as error:
                raise from_oserror(error, f"could not hand controllers down by {path}") from error


def words(path: Path) -> Sequence[str]:
    """What a file of words says, such as ``cgroup.controllers``; nothing where there is none."""
    try:
        return path.read_text().split()
    except OSError:  # it is one of version 1
        return ()


def why_not(paths: Sequence[Path], name: str) -> str:
    """Why a limit cannot be kept, words for after a colon, or ``""`` where it can.

    Args:
        paths: the directories of a VM's cgroups.
        name: of a field of `Limits`.
    """
    if _found(paths, "cpu" if name in GROUPS else name) is not None:
        return ""
    if not paths:
        return "it has no cgroup of its own"
    controller = _KEEPERS[name][0]
    others = (_found(paths, other) for other, (one, _) in _KEEPERS.items() if one == controller)
    if there := next(filter(None, others), None):
        version = 2 if (there[0] / "cgroup.controllers").exists() else 1
        return f"the {controller} controller of the host, of cgroup version {version}, has no such limit"
    above = [path.parents[1] for path in paths if controller in words(path.parents[1] / "cgroup.controllers")]
    if above:
        return f"the {controller} controller cannot be handed down from {above[0]}, which the daemon itself is in"
    return f"the host offers the daemon no {controller} controller"


def read(paths: Sequence[Path]) -> Limits:
    """What the kernel says that they are; `None` also of one that is not kept.

    Raises:
        HostError: a file could not be read; the cgroup may be gone.
    """
    found: dict[str, Any] = {}
    for name in NAMES:
        if (keeper := _found(paths, name)) is not None:
            try:
                found[name] = keeper[1].read(keeper[0])
            except OSError as error:
                raise from_oserror(error, f"could not read {keeper[0] / keeper[1].name}") from error
    return Limits(**found)


def impose(paths: Sequence[Path], wanted: Mapping[str, Any]) -> Mapping[str, str]:
    """Hold a cgroup to limits; may wait for the kernel to take memory back.

    Args:
        paths: the directories of a VM's cgroups.
        wanted: by the names of the fields of `Limits`; of others it stays as it is. Devices are given by number.

    Returns:
        Why a limit is not kept, words for after a colon, by its name.
    """
    return {name: why for name, limit in wanted.items() if (why := _impose(paths, name, limit))}


def _impose(paths: Sequence[Path], name: str, limit: Any) -> str:
    found = _found(paths, name)
    if found is None:
        return "" if limit is None else why_not(paths, name)
    directory, keeper = found
    path = directory / keeper.name
    try:
        for line in keeper.spell(directory, limit):
            path.write_text(line)
        # version 2 takes a fence of which the cgroups above have nothing, and then goes by theirs
        kept = not isinstance(limit, frozenset) or agree(name, limit, keeper.read(directory))
    except OSError as error:
        return f"{path}: {os.strerror(error.errno or 0)}"
    return "" if kept else f"{path}: the cgroups above it have none of that"


def memory_held(paths: Sequence[Path]) -> int:
    """Bytes that its processes hold and the kernel cannot simply drop; 0 where nobody counts them.

    Raises:
        HostError: it could not be read; the cgroup may be gone.
    """
    return max((_held(path / "memory.stat") for path in paths), default=0)


def _held(path: Path) -> int:
    try:
        lines: Iterator[list[str]] = map(str.split, path.read_text().splitlines())
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise from_oserror(error, f"could not read {path}") from error
    counted = {line[0]: int(line[1]) for line in lines}
    # version 1 calls anonymous memory rss, and counts what is below apart
    return sum(counted.get(name, 0) for name in ("anon", "total_rss", "shmem"))
