"""The threads of a VM and the CPUs that they are to run on.

Decides: when a thread is put where it belongs, and what counts as drift: somebody else has moved it.
Must not: choose CPUs; the unit has (`qsup.plan.pinning`), or fail a VM that runs because it cannot be pinned.

QEMU cannot pin itself, by its sandbox (``resourcecontrol=deny``). What it starts later begins where the thread is that
starts it, so a worker of the main loop needs nobody. The programs that serve devices count with its workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager

from attrs import frozen

from qsup.errors import HostError
from qsup.host import affinity, usage
from qsup.instance.view import CpusView, Stray, ThreadView
from qsup.plan.disks import iothread_id
from qsup.plan.pinning import ANYWHERE, Pins
from qsup.qmp import commands
from qsup.qmp.connection import Monitor
from qsup.unit.quantity import format_cpu_set

#: Seconds for QEMU to say which threads run its vCPUs.
_TIMEOUT = 10.0
#: Threads that are shown.
SHOWN = 512


@frozen(kw_only=True)
class Drift:
    """A thread that somebody has moved, and that is back.

    Args:
        vcpu: the number of the vCPU that it runs, ``None`` if it runs none.
        iothread: the unit's id of the iothread that it is, ``""`` if it is none.
        helper: the entry that its program serves, ``""`` if that is QEMU itself.
        was, cpus: where it might run, and may run now.
        ran: the CPU that it had run on last, ``None`` where that was not seen.
    """

    thread: int
    vcpu: int | None
    iothread: str
    helper: str = ""
    was: Set[int]
    cpus: Set[int]
    ran: int | None

    def __str__(self) -> str:
        who = _who(self.thread, self.vcpu, self.iothread, self.helper)
        return f"{who} was moved to CPUs {format_cpu_set(self.was)}, and is back on {format_cpu_set(self.cpus)}"


class Pinning:
    """The threads of one life.

    Args:
        pid: QEMU's.
        pins: where its threads belong now; ``None`` while that is not known.
        has_iothreads: whether QEMU is to be asked for them; it has those that it was started with.
        helpers: the programs that serve its devices, by the entries that they serve.
        found: an earlier daemon has started it, and may have left its threads where they belong no more.

    Attributes:
        vcpus: the threads that run the vCPUs, by the numbers of these, ascending, as QEMU said last. One that has gone
            may leave a gap.
        iothreads: the unit's ids of its iothreads, by thread, as QEMU said last.
        trouble: why a thread is not where it belongs, or may not use all of that, one sentence, or ``""``.
        is_misplaced: some thread may run where it does not belong.
        drifts: how many have been put back.
        strays: how often each of those that are there.
    """

    def __init__(
        self,
        pid: int,
        pins: Callable[[], Pins | None],
        *,
        has_iothreads: bool = False,
        helpers: Callable[[], Mapping[str, int]] = dict,
        found: bool = False,
    ) -> None:
        self.vcpus: Mapping[int, int] = {}
        self.iothreads: Mapping[int, str] = {}
        self.trouble = ""
        self.is_misplaced = False
        self.drifts = 0
        self.strays: Mapping[int, Stray] = {}
        self._pid = pid
        self._pins = pins
        self._has_iothreads = has_iothreads
        self._helpers = helpers
        self._is_found = found
        self._serving: Mapping[int, str] = {}
        self._placed: dict[int, frozenset[int]] = {}
        self._astray: frozenset[int] = frozenset()  # nobody has moved them: they could not be put where they belong
        self._threads: tuple[int, ...] = ()
        self._left: tuple[tuple[int, Set[int]], ...] | None = None
        self._online: Set[int] = ANYWHERE
        self._excuses = 0

    async def find(self, monitor: Monitor) -> tuple[int, ...]:
        """Ask QEMU which threads run the vCPUs and are iothreads, and put those that are new where they belong.

        Returns:
            The vCPUs' threads, in their order.

        Raises:
            MonitorError: QEMU did not say it.
        """
        if self._has_iothreads:
            found = await commands.query_iothreads(monitor, timeout=_TIMEOUT)
            named = {each.thread_id: iothread_id(each.id) for each in found}
            self.iothreads = {thread: id_ for thread, id_ in named.items() if id_}
        cpus = await commands.query_cpus_fast(monitor, timeout=_TIMEOUT)
        # QEMU lists them as they came, and which of them goes is the guest's choice
        self.vcpus = dict(sorted((cpu.cpu_index, cpu.thread_id) for cpu in cpus))
        self.put()
        return self.vcpu_threads

    def put(self, online: Set[int] | None = None, *, excused: bool = False) -> tuple[Drift, ...]:
        """Put every thread where it belongs; nothing happens before QEMU has said which of them run vCPUs.

        Args:
            online: the CPUs that are, where that is known already.
            excused: no thread counts as moved by somebody; see `excused`.

        Returns:
            Those that were there before and are no more.
        """
        if excused:
            with self._uncounted():
                return self.put(online)
        pins = self._pins()
        self._left = None
        if pins is None or not self.vcpus or not (pins or self._placed or self._is_found):
            return ()
        there = affinity.online() if online is None else online
        drifts = self._put(pins, there)
        # one had ended, and another may have come in its place
        return drifts if self._threads else (*drifts, *self._put(pins, there))

    @contextmanager
    def excused(self) -> Iterator[None]:
        """Count no thread as moved by somebody: the kernel itself moves them when their cpuset changes.

        Linux 6.1 lets each run on all of it then (cpuset_attach(), update_tasks_cpumask()). Each is put back then.
        """
        with self._uncounted():
            yield
            self.put()

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        self._excuses += 1
        try:
            yield
        finally:
            self._excuses -= 1

    def is_as_left(self) -> bool:
        """Whether every thread still may run where the last `put` has left it, and there are no others.

        For as long as the pins and the CPUs online are the same: this asks for neither.
        """
        # one that could not be put where it belongs is put until it can: the kernel itself may do so, without a word
        if self._left is None or self._astray or affinity.count(self._pid) != len(self._threads):
            return False
        return affinity.are(self._left) and self._helper_threads() == self._serving

    @property
    def sets(self) -> tuple[frozenset[int], ...]:
        """Where each vCPU belongs, by number, `ANYWHERE` if that is so, or there is none of that number."""
        pins = self._pins() or Pins()
        numbers = range(max(self.vcpus, default=-1) + 1)
        return tuple(pins.of_vcpu(number) if number in self.vcpus else ANYWHERE for number in numbers)

    @property
    def vcpu_threads(self) -> tuple[int, ...]:
        """The threads that run the vCPUs, in their order."""
        return tuple(self.vcpus.values())

    @property
    def is_free(self) -> bool:
        """Whether no thread is anywhere for our sake, or is to be."""
        return not (self._pins() or self._placed or self._is_found)

    def look(self) -> CpusView:
        """All threads, with where each is to run, may run, and has run. Reads files of the kernel's."""
        serving, pins = self._helper_threads(), self._pins() or Pins()
        threads = [*sorted(affinity.threads(self._pid)), *serving]
        own = pins.of_threads(self.vcpus, self.iothreads, threads)
        wanted = {**own, **dict.fromkeys(serving, pins.of_helpers)}
        shown = []
        for thread in threads[:SHOWN]:
            allowed, used = affinity.get(thread), usage.thread_usage(thread)
            if allowed is not None and used is not None:
                mine = tuple(number for number, other in self.vcpus.items() if other == thread)
                shown.append(
                    ThreadView(
                        thread=thread,
                        vcpus=mine,
                        iothread=self.iothreads.get(thread, ""),
                        helper=serving.get(thread, ""),
                        pin=wanted[thread],
                        allowed=allowed,
                        usage=used,
                        stray=self.strays.get(thread, Stray()),
                    )
                )
        return CpusView(threads=tuple(shown), count=len(threads), drifts=self.drifts)

    def _put(self, pins: Pins, online: Set[int]) -> tuple[Drift, ...]:
        if affinity.count(self._pid) != len(self._threads):
            self._threads = affinity.threads(self._pid)
        self._serving = self._helper_threads()
        own = pins.of_threads(self.vcpus, self.iothreads, self._threads)
        wanted = {**own, **dict.fromkeys(self._serving, pins.of_helpers)}
        drifts: list[Drift] = []
        left: list[tuple[int, Set[int]]] = []
        troubles: list[str] = []
        astray: set[int] = set()
        self.is_misplaced = False
        # cpusets move threads, too, when a CPU comes or goes
        is_excused, self._online = bool(self._excuses) or online != self._online, online
        for thread, cpus in wanted.items():
            former = self._placed.get(thread, ANYWHERE)
            if not (cpus or former or self._is_found):
                continue  # it never was to be anywhere
            # one that is free again may run wherever we may; the kernel keeps in mind what is outside of a fence
            asked = cpus or _free(pins.fence, affinity.get(0) or online)
            target = (asked if cpus or not pins.fence else asked & pins.fence) & online
            was = affinity.get(thread)
            if was is None:
                self._threads = ()
                continue
            left.append((thread, target))
            # one that is free again within a fence is told so, or it would stay there when that grows
            if was == target and (cpus or not (former and pins.fence)):
                continue
            ran = found.cpu if (found := usage.thread_usage(thread)) else None
            refusal = _move(thread, asked) if target else ""
            now = affinity.get(thread)
            if now is None:
                self._threads = ()
            elif cpus and now != target:
                astray.add(thread)
                self.is_misplaced |= not now <= target
                troubles.append(self._trouble(thread, cpus, target, now, refusal))
            elif cpus and former == cpus and thread not in self._astray and not is_excused:
                drifts.append(self._drift(thread, was, target, ran))
        troubles += [pins.lack] * bool(pins.lack)
        self.trouble = troubles[0] + (f" (and {len(troubles) - 1} more)" if troubles[1:] else "") if troubles else ""
        self._placed = {thread: cpus for thread, cpus in wanted.items() if cpus & online}
        self._left, self._astray = tuple(left), frozenset(astray)
        self._is_found = False
        self.drifts += len(drifts)
        earlier = {thread: stray for thread, stray in self.strays.items() if thread in wanted}
        now_strayed = {drift.thread: Stray(earlier.get(drift.thread, Stray()).times + 1, drift.ran) for drift in drifts}
        self.strays = earlier | now_strayed
        return tuple(drifts)

    def _trouble(self, thread: int, cpus: Set[int], target: Set[int], now: Set[int], refusal: str) -> str:
        """Why a thread may not run on just those CPUs on which it is to."""
        if not target:
            return f"none of the CPUs {format_cpu_set(cpus)} that it is pinned to is online"
        who = _who(thread, self._vcpu(thread), self.iothreads.get(thread, ""), self._serving.get(thread, ""))
        belongs, allowed = format_cpu_set(target), format_cpu_set(now)
        if refusal:
            return f"{who} belongs on CPUs {belongs} and is on {allowed}: {refusal} (does a cpuset cgroup forbid it?)"
        return f"{who} belongs on CPUs {belongs}, and the kernel lets it run on {allowed} alone (by a cpuset cgroup?)"

    def _helper_threads(self) -> dict[int, str]:
        """The threads of the programs that serve devices, with the entry that each serves."""
        return {
            thread: entry
            for entry, pid in self._helpers().items()
            for each in affinity.family(pid)
            for thread in sorted(affinity.threads(each))
        }

    def _vcpu(self, thread: int) -> int | None:
        return next((number for number, other in self.vcpus.items() if other == thread), None)

    def _drift(self, thread: int, was: Set[int], cpus: Set[int], ran: int | None) -> Drift:
        return Drift(
            thread=thread,
            vcpu=self._vcpu(thread),
            iothread=self.iothreads.get(thread, ""),
            helper=self._serving.get(thread, ""),
            was=frozenset(was),
            cpus=cpus,
            ran=ran,
        )


def _move(thread: int, cpus: Set[int]) -> str:
    """Have a thread run on some CPUs; the kernel's words where it refuses, else ``""``."""
    try:
        affinity.put(thread, cpus)
    except HostError as error:
        return error.message
    return ""


def _free(fence: Set[int], ours: Set[int]) -> Set[int]:
    """Where a thread may run that is to be nowhere: where we may, if the fence lets it."""
    return ours if ours & fence or not fence else fence


def _who(thread: int, vcpu: int | None, iothread: str, helper: str = "") -> str:
    if vcpu is not None:
        return f"vCPU {vcpu}"
    if helper:
        return f"thread {thread} of what serves {helper}"
    return f"iothread {iothread}" if iothread else f"thread {thread}"
