"""Where this host's cgroup hierarchies are mounted, and where a process is in them.

Decides: which hierarchies there are to be used.
Must not: make or read a cgroup (`qsup.host.cgroup`).

Source: proc(5), cgroups(7).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

#: Controllers of version 1 that are used where they are mounted.
V1_CONTROLLERS = ("freezer", "memory", "cpu", "cpuacct", "pids", "blkio", "cpuset")


@frozen(kw_only=True)
class Hierarchies:
    """Where the daemon's own cgroups are.

    Args:
        unified: its cgroup in the version 2 tree, ``None`` where that is not mounted.
        v1: by controller, its cgroup in that hierarchy.
    """

    unified: Path | None
    v1: Mapping[str, Path] = field(factory=dict)


def detect() -> Hierarchies:
    """What is mounted, and where this process is in it."""
    mounts = Path("/proc/self/mountinfo").read_text()
    return parse_hierarchies(mounts, Path("/proc/self/cgroup").read_text())


def parse_hierarchies(mountinfo: str, membership: str) -> Hierarchies:
    """Pure: from the texts of /proc/self/mountinfo and /proc/self/cgroup (proc(5), cgroups(7))."""
    own: dict[str, str] = {}
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(","), path))
    unified = None
    v1: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        root, mountpoint = head.split()[3:5]
        kind, _, options = tail.split()[:3]
        if kind == "cgroup2" and "" in own:
            unified = _below(mountpoint, root, own[""])
        elif kind == "cgroup":
            found = [name for name in V1_CONTROLLERS if name in options.split(",") and name in own]
            v1.update({name: _below(mountpoint, root, own[name]) for name in found})
    return Hierarchies(unified=unified, v1=v1)


def _below(mountpoint: str, root: str, path: str) -> Path:
    """The directory of a cgroup in a mount that shows the tree from ``root`` on."""
    inside = path.removeprefix(root.rstrip("/")) if path.startswith(root) else path
    return Path(mountpoint.replace("\\040", " ")) / inside.strip("/")
