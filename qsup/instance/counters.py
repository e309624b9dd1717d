"""The counters of a VM: those of its process, threads and taps, which the kernel keeps, beside those that QEMU keeps.

Decides: which of them are read at one time, by nothing of the daemon's own, so that a thread can do it.
Must not: ask QEMU, or read what takes long: where its memory is comes as last read (`qsup.instance.nodememory`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from qsup.host import proc, usage
from qsup.host.usage import NodeMemory
from qsup.instance.view import StatsView, TimesView


@frozen(kw_only=True)
class Counters:
    """What of a life its counters are read of.

    Args:
        pid: QEMU's.
        vcpus: threads that run the vCPUs, by their numbers.
        iothreads: the unit's ids of its iothreads, by thread.
        taps: names of interfaces on the host, by NIC.
        memory_limit, node_memory, disks, balloon, drifts: see `StatsView`.
    """

    pid: int
    vcpus: Mapping[int, int]
    iothreads: Mapping[int, str]
    taps: Mapping[str, str]
    memory_limit: int | None
    node_memory: NodeMemory | None
    disks: Mapping[str, Mapping[str, int]]
    balloon: Mapping[str, int]
    drifts: int

    def read(self) -> StatsView:
        """All of them; of a process that has just ended, none of its own. Reads some ten files of the kernel's."""
        process = proc.read_stat(self.pid)
        held = usage.held(self.pid)
        seconds = usage.process_seconds(self.pid) if process and process.threads else None
        return StatsView(
            read_at=proc.uptime(),
            cpu_seconds=seconds or 0.0,
            times=self._times(),
            memory_rss=process.rss if process else 0,
            memory_huge=held.huge,
            memory_swapped=held.swapped,
            memory_limit=self.memory_limit,
            node_memory=self.node_memory,
            threads=process.threads if process and seconds is not None else 0,
            disks=self.disks,
            balloon=self.balloon,
            drifts=self.drifts,
            nics={nic: counters for nic, tap in self.taps.items() if (counters := _tap(tap))},
        )

    def _times(self) -> tuple[TimesView, ...]:
        vcpus: dict[int, list[int]] = {}
        for vcpu, thread in self.vcpus.items():
            vcpus.setdefault(thread, []).append(vcpu)
        found = []
        for thread in (*vcpus, *self.iothreads):
            if (times := usage.thread_times(self.pid, thread)) is not None:
                mine = tuple(vcpus.get(thread, ()))
                found.append(TimesView(vcpus=mine, iothread=self.iothreads.get(thread, ""), times=times))
        return tuple(found)


def _tap(tap: str) -> Mapping[str, int]:
    """A tap's counters seen from the guest: what the host sent is what the guest received."""
    directory = Path("/sys/class/net") / tap / "statistics"
    counters = {}
    for name in ("bytes", "packets", "errors", "dropped"):
        for ours, theirs in (("tx", "rx"), ("rx", "tx")):
            try:
                counters[f"{theirs}_{name}"] = int((directory / f"{ours}_{name}").read_text())
            except FileNotFoundError:
                return {}  # user networking has no interface on the host
    return counters
