"""What cgroups count, in either version's words: CPU time, memory, processes killed because memory ran out.

Decides: where that is counted, and of which VM a kill is told where one cgroup counts for several.
Must not: make or change a cgroup (`qsup.host.cgroup`), or judge what an end was.
"""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

#: Where OOM kills are counted, in version 2 and in version 1.
OOM_FILES = ("memory.events", "memory.oom_control")


@frozen(kw_only=True)
class CgroupStats:
    """What a VM's cgroups have counted; ``None`` where no controller counts it."""

    cpu_seconds: float | None = None
    memory_bytes: int | None = None


class SharedOomKills:
    """The OOM kills of a cgroup that counts for all VMs below it (``memory.events`` is hierarchical).

    Which of them was killed it does not say: each kill is told of the first that turns out to have been sent SIGKILL.

    Args:
        path: the directory; kills up to now are nobody's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = oom_kills(path)

    def take(self) -> bool:
        """Whether there was one that nobody has been told of; it is told now."""
        if oom_kills(self._path) <= self._told:
            return False
        self._told += 1
        return True

    def forget(self) -> None:
        """Those up to now are nobody's: others may have VMs below it, too, and what was ours has been told."""
        self._told = oom_kills(self._path)

    def told(self, kills: int) -> None:
        """So many of them have been told otherwise."""
        self._told += max(0, kills)


def oom_kills(path: Path) -> int:
    """How many a cgroup has counted, 0 where it counts none."""
    text = next(filter(None, (read(path / name) for name in OOM_FILES)), "")
    return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))


def read(path: Path) -> str | None:
    """What a file of a cgroup says, ``None`` where there is none."""
    try:
        return path.read_text()
    except OSError:  # no such controller here, or the cgroup is gone
        return None


def stats(path: Path) -> CgroupStats:
    """What one directory counts, in either version's words."""
    usage = dict(line.split() for line in (read(path / "cpu.stat") or "").splitlines()).get("usage_usec")
    nanoseconds = read(path / "cpuacct.usage")
    cpu = int(usage) / 1e6 if usage else int(nanoseconds) / 1e9 if nanoseconds else None
    memory = read(path / "memory.current") or read(path / "memory.usage_in_bytes")
    return CgroupStats(cpu_seconds=cpu, memory_bytes=int(memory) if memory else None)
