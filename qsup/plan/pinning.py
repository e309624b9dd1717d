"""Which CPUs of the host each thread of a VM may run on.

Decides: what a VM's pins mean for a thread, by what it does.
Must not: find the threads or move them (`qsup.host.affinity`), or choose CPUs (`qsup.plan.placement`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import field, frozen

#: What is wanted of a thread that may run anywhere.
ANYWHERE: frozenset[int] = frozenset()


@frozen
class Pins:
    """The pins of one VM.

    Args:
        vcpus: a set for each vCPU, or one for all of them, or none: `ANYWHERE`.
        emulator: for all other threads.
        iothreads: sets by the unit's ids, of those that have one of their own.
        helper: for the programs that serve its devices; none: as for all other threads.
        lack: what it has not got of its place, a sentence, or ``""``.
        fence: what none of its threads leaves, by a cgroup; none: nothing. It asks no thread to be anywhere.
    """

    vcpus: tuple[frozenset[int], ...] = ()
    emulator: frozenset[int] = ANYWHERE
    iothreads: Mapping[str, frozenset[int]] = field(factory=dict)
    helper: frozenset[int] = ANYWHERE
    lack: str = ""
    fence: frozenset[int] = ANYWHERE

    def __bool__(self) -> bool:
        """Whether any thread is to be anywhere."""
        return bool(self.vcpus or self.emulator or self.iothreads or self.helper)

    @property
    def start(self) -> frozenset[int]:
        """Where QEMU begins, before its threads are known: memory is the host node's that first touches it."""
        return self.emulator.union(*self.vcpus) if self.vcpus else ANYWHERE

    @property
    def of_helpers(self) -> frozenset[int]:
        """Those of all threads of the programs that serve its devices."""
        return self.helper or self.emulator

    def of_vcpu(self, index: int) -> frozenset[int]:
        """Those of one vCPU, counted from 0 as QEMU does."""
        if len(self.vcpus) > 1:
            return self.vcpus[index] if index < len(self.vcpus) else ANYWHERE
        return self.vcpus[0] if self.vcpus else ANYWHERE

    def of_threads(
        self, vcpus: Mapping[int, int], iothreads: Mapping[int, str], threads: Iterable[int]
    ) -> Mapping[int, frozenset[int]]:
        """Those of each thread of a VM.

        Args:
            vcpus: thread ids of its vCPUs, by number; several may share one thread (TCG without MTTCG), which may run
                where any of them may.
            iothreads: the unit's ids of its iothreads, by the thread that each is.
            threads: ids of all its threads.
        """
        wanted = {thread: self.iothreads.get(iothreads.get(thread, ""), self.emulator) for thread in threads}
        sharing: dict[int, list[frozenset[int]]] = {}
        for index, thread in vcpus.items():
            sharing.setdefault(thread, []).append(self.of_vcpu(index))
        for thread, sets in sharing.items():
            if thread in wanted:
                wanted[thread] = ANYWHERE if ANYWHERE in sets else ANYWHERE.union(*sets)
        return wanted
