"""CPUs and memory nodes of a cgroup, in the words of either version of the cpuset controller.

Decides: what is written for a fence, and, of version 1, what a new cgroup is given so that it can hold a process, and
what it has lost and is given again.
Must not: know why a cgroup has a fence, or make and remove cgroups (`qsup.host.cgroup`).

In version 2 nothing said is all that is above. In version 1 a new cgroup has neither CPUs nor nodes, and no process may
be in it until it has; what goes offline it loses for ever, and with the last of them its processes, to the one above.

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/cpusets.rst in Linux's source.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qsup.errors import from_oserror
from qsup.unit.quantity import format_cpu_set, parse_cpu_set

#: The file of each limit, by the name that `qsup.host.limits` has for it; both versions call it so.
FILES: Mapping[str, str] = {"cpuset_cpus": "cpuset.cpus", "cpuset_mems": "cpuset.mems"}
#: Only version 1 has it: whether memory follows when the nodes change. Version 2 always does that.
_MIGRATE = "cpuset.memory_migrate"


#: All CPUs and nodes that there can ever be, which version 2 takes beforehand.
_ALL: Mapping[str, Callable[[], frozenset[int]]] = {
    "cpuset.cpus": lambda: _numbers(Path("/sys/devices/system/cpu/possible")),
    "cpuset.mems": lambda: _numbers(Path("/sys/devices/system/node/possible")),
}


def is_v1(directory: Path) -> bool:
    """Whether a cgroup is in a hierarchy of version 1 with this controller."""
    return os.path.exists(f"{directory}/{_MIGRATE}")


def _numbers(path: Path) -> frozenset[int]:
    text = path.read_text().strip()
    return frozenset(parse_cpu_set(text)) if text else frozenset()


def read(directory: Path, file: str) -> frozenset[int] | None:
    """What its processes may use, ``None`` where nothing was said of it; `OSError`."""
    said = _numbers(directory / file)
    effective = directory / f"{file}.effective"  # in version 2, of what was said, what is online and had above
    return (_numbers(effective) if said and effective.exists() else said) or None


def spell(directory: Path, file: str, fence: frozenset[int] | None) -> Sequence[str]:
    """What is written for a fence, or for none; `OSError`."""
    if not is_v1(directory):
        # Linux 6.1 does not let go of what was said while there are processes: then all is said
        return [format_cpu_set(fence or _ALL[file]())] if fence or _numbers(directory / file) else []
    above = _numbers(directory.parent / file)
    return [format_cpu_set(above if fence is None else fence & above or fence)]


def fill(directory: Path, top: Path) -> None:
    """Have a cgroup of version 1 below another's hold processes: those between have all that ``top`` has; `OSError`."""
    if not is_v1(top):
        return
    for each in [*reversed([path for path in directory.parents if top in path.parents]), directory]:
        for file in FILES.values():
            has, above = _numbers(each / file), _numbers(each.parent / file)
            if has != above and (each != directory or not has):
                (each / file).write_text(format_cpu_set(above))
        (each / _MIGRATE).write_text("1")


def has_lost(paths: Sequence[Path], fences: Mapping[str, frozenset[int] | None]) -> bool:
    """Whether `mend` has something to do; where that is not to be seen, it says why."""
    try:
        return bool(_lost(paths, fences))
    except OSError:
        return True


def mend(paths: Sequence[Path], fences: Mapping[str, frozenset[int] | None]) -> bool:
    """Give a VM's cgroups of version 1 what was offline and is back; not yet the processes that have left it meanwhile.

    Args:
        paths: all of its cgroups.
        fences: what they are to have, by the names of `FILES`; ``None``: all that there is.

    Returns:
        Whether there was something: then its threads may run on all that it has.

    Raises:
        HostError: the kernel refused it; the cgroups may be gone.
    """
    try:
        lost = _lost(paths, fences)
        for path in lost:
            fill(path, path.parents[1])
            for name, file in FILES.items():
                for line in spell(path, file, fences.get(name)):
                    (path / file).write_text(line)
    except OSError as error:
        raise from_oserror(error, "could not give it CPUs and nodes again that were offline") from error
    return bool(lost)


def _lost(paths: Sequence[Path], fences: Mapping[str, frozenset[int] | None]) -> list[Path]:
    return [path for path in paths if is_v1(path) and _has_lost(path, path.parents[1], fences)]


def _has_lost(directory: Path, top: Path, fences: Mapping[str, frozenset[int] | None]) -> bool:
    for name, file in FILES.items():
        there, fence = _numbers(top / file), fences.get(name)
        if not _numbers(directory / file) >= (there if fence is None else there & fence):
            return True
    return False
