"""Where threads are put, seen with a fake kernel: no test takes a CPU of the machine offline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import cast

import pytest
import trio
import trio.lowlevel
from attrs import evolve

from qsup.errors import HostError
from qsup.host import affinity
from qsup.instance.pinning import Pinning
from qsup.plan.pinning import Pins
from qsup.qmp.connection import Monitor
from qsup.unit.quantity import format_cpu_set

PID, VCPU = 10, 11
PINS = Pins((frozenset({2, 3}),), frozenset({0}))


class FakeKernel:
    """Two threads on four CPUs, which may go offline.

    Attributes:
        cpuset: what somebody lets all threads run on at most.
        ours: where the daemon may run.
    """

    def __init__(self) -> None:
        self.is_pinned = True
        self.online = self.cpuset = self.ours = frozenset({0, 1, 2, 3})
        self.masks = {PID: self.online, VCPU: self.online}

    def get(self, thread: int) -> frozenset[int] | None:
        """As sched_getaffinity(2): of those that are online."""
        if thread == 0:
            return self.ours & self.online
        return (self.masks[thread] & self.online) or self.online if thread in self.masks else None

    def are(self, places: Iterable[tuple[int, Set[int]]]) -> bool:
        """Whether all are there."""
        return all(self.get(thread) == cpus for thread, cpus in places)

    def threads(self, pid: int) -> tuple[int, ...]:
        """Those of a process."""
        return tuple(self.masks)

    @property
    def shown(self) -> dict[int, str]:
        """Where each thread may run."""
        return {thread: format_cpu_set(mask) for thread, mask in self.masks.items()}

    def put(self, thread: int, cpus: frozenset[int]) -> bool:
        """As sched_setaffinity(2), which refuses what nothing can run on and else skips what a cpuset forbids."""
        assert cpus & self.online
        if not cpus & self.cpuset:
            raise HostError(f"could not pin thread {thread}: Invalid argument")
        self.masks[thread] = cpus & self.cpuset
        return True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """The kernel that is asked."""
    fake = FakeKernel()
    for name in ("get", "put", "are"):
        monkeypatch.setattr(affinity, name, getattr(fake, name))
    monkeypatch.setattr(affinity, "online", lambda: fake.online)
    monkeypatch.setattr(affinity, "threads", fake.threads)
    monkeypatch.setattr(affinity, "count", lambda pid: len(fake.threads(pid)))
    return fake


@pytest.fixture
def pinning(kernel: FakeKernel) -> Pinning:
    """A VM with one vCPU, which is where it belongs."""
    pinning = Pinning(PID, lambda: PINS if kernel.is_pinned else Pins())
    pinning.vcpus = {0: VCPU}
    assert pinning.put() == ()
    assert kernel.shown == {PID: "0", VCPU: "2-3"}
    return pinning


def test_nothing_is_moved_before_it_is_known_what_runs_the_vcpus_fake(kernel: FakeKernel) -> None:
    """A vCPU would be taken for the main loop."""
    assert Pinning(PID, lambda: PINS).put() == ()
    assert kernel.masks[VCPU] == kernel.online


def test_a_cpu_that_goes_offline_is_no_drift_fake(kernel: FakeKernel, pinning: Pinning) -> None:
    """The thread still may run on the other, and on both again later."""
    kernel.online -= {3}
    assert (pinning.put(), pinning.trouble) == ((), "")
    kernel.online |= {3}
    assert (pinning.put(), pinning.trouble, kernel.shown[VCPU]) == ((), "", "2-3")


def test_a_thread_without_any_cpu_left_is_told_of_fake(kernel: FakeKernel, pinning: Pinning) -> None:
    """The kernel lets it run anywhere; it is back as soon as it can be."""
    kernel.online -= {2, 3}
    kernel.masks[VCPU] = frozenset({0, 1, 2, 3})  # as select_fallback_rq() in kernel/sched/core.c does
    assert pinning.put() == ()
    assert pinning.trouble == "none of the CPUs 2-3 that it is pinned to is online"
    kernel.online |= {2, 3}
    assert pinning.put() == (), "nobody has moved it"
    assert (pinning.trouble, kernel.shown[VCPU]) == ("", "2-3")


def test_what_a_vm_lacks_of_its_place_is_a_trouble_fake(kernel: FakeKernel, pinning: Pinning) -> None:
    """Its threads are where they belong all the same."""
    lacking = Pinning(PID, lambda: evolve(PINS, lack="vCPU 0 is not alone on a CPU now"))
    lacking.vcpus = {0: VCPU}
    assert (lacking.put(), lacking.trouble, lacking.is_misplaced) == ((), "vCPU 0 is not alone on a CPU now", False)
    assert lacking.is_as_left()
    assert kernel.shown == {PID: "0", VCPU: "2-3"}


def test_what_somebody_has_moved_is_drift_and_what_is_new_is_not_fake(kernel: FakeKernel, pinning: Pinning) -> None:
    """A worker that has just begun was never anywhere else."""
    kernel.masks |= {VCPU: frozenset({1}), 12: frozenset({1})}
    (drift,) = pinning.put()
    assert str(drift) == "vCPU 0 was moved to CPUs 1, and is back on 2-3"
    assert (kernel.shown[12], pinning.drifts) == ("0", 1)


def test_a_look_at_threads_that_are_as_they_were_left_moves_none_fake(kernel: FakeKernel, pinning: Pinning) -> None:
    """It is a question for each; any other answer, thread or number of threads has them put where they belong."""
    assert pinning.is_as_left()
    kernel.masks[VCPU] = frozenset({1})
    assert not pinning.is_as_left()
    pinning.put()
    assert pinning.is_as_left()
    kernel.masks[12] = kernel.masks[PID]
    assert not pinning.is_as_left(), "one that has begun"
    pinning.put()
    kernel.masks[13] = kernel.masks.pop(12)
    assert not pinning.is_as_left(), "one in place of another"
    pinning.put()
    kernel.online -= {2, 3}
    kernel.masks[VCPU] = frozenset({0, 1})
    pinning.put()
    assert not pinning.is_as_left(), "one that is nowhere that it belongs"


def test_it_is_known_how_often_each_thread_was_moved_fake(kernel: FakeKernel, pinning: Pinning) -> None:
    """One that has ended is forgotten, and what all of them were is not."""
    for _ in range(2):
        kernel.masks[VCPU] = frozenset({1})
        pinning.put()
    kernel.masks[PID] = frozenset({1})
    pinning.put()
    assert {thread: stray.times for thread, stray in pinning.strays.items()} == {VCPU: 2, PID: 1}
    del kernel.masks[VCPU]
    pinning.put()
    assert (set(pinning.strays), pinning.drifts) == ({PID}, 3)


class FakeQemu:
    """A monitor that says which threads QEMU has, and what it was asked.

    Args:
        vcpus: number and thread of each, in the order in which they came.
    """

    def __init__(self, vcpus: Sequence[tuple[int, int]] = ((0, VCPU),)) -> None:
        self.asked: list[str] = []
        self.vcpus = vcpus

    async def execute(self, command: str, *_: object, **__: object) -> object:
        """Two iothreads, one of them somebody else's, and vCPUs."""
        await trio.lowlevel.checkpoint()
        self.asked.append(command)
        if command == "query-iothreads":
            return [{"id": "iothread-fast", "thread-id": 12}, {"id": "theirs", "thread-id": 13}]
        return [{"cpu-index": index, "thread-id": id_, "qom-path": "/x", "props": {}} for index, id_ in self.vcpus]


async def test_iothreads_are_found_by_what_qemu_says_and_kept_where_they_belong_fake(kernel: FakeKernel) -> None:
    """By the unit's ids; one of somebody's extra-args is a thread like others."""
    kernel.masks |= {12: kernel.online, 13: kernel.online}
    pins, qemu = evolve(PINS, iothreads={"fast": frozenset({1})}), FakeQemu()
    pinning = Pinning(PID, lambda: pins, has_iothreads=True)
    await pinning.find(cast("Monitor", qemu))
    assert pinning.iothreads == {12: "fast"}
    assert kernel.shown == {PID: "0", VCPU: "2-3", 12: "1", 13: "0"}
    kernel.masks[12] = frozenset({3})
    (drift,) = pinning.put()
    assert str(drift) == "iothread fast was moved to CPUs 3, and is back on 1"
    pins = evolve(pins, iothreads={})
    assert (pinning.put(), kernel.shown[12]) == ((), "0"), "it follows the emulator's"


async def test_a_vcpu_is_known_by_its_number_fake(kernel: FakeKernel) -> None:
    """One between others has gone, and the first is the last that came."""
    kernel.masks |= {12: kernel.online}
    pins = Pins((frozenset({0}), frozenset({1}), frozenset({2, 3})), frozenset({0}))
    pinning = Pinning(PID, lambda: pins)
    assert await pinning.find(cast("Monitor", FakeQemu([(2, VCPU), (0, 12)]))) == (12, VCPU)
    assert kernel.shown == {PID: "0", VCPU: "2-3", 12: "0"}
    assert list(map(format_cpu_set, pinning.sets)) == ["0", "", "2-3"]
    kernel.masks[VCPU] = frozenset({1})
    (drift,) = pinning.put()
    assert str(drift) == "vCPU 2 was moved to CPUs 1, and is back on 2-3"


async def test_qemu_is_not_asked_for_iothreads_that_it_has_not_fake(kernel: FakeKernel) -> None:
    """It is asked at each start."""
    qemu = FakeQemu()
    await Pinning(PID, lambda: PINS).find(cast("Monitor", qemu))
    assert qemu.asked == ["query-cpus-fast"]


def confine(kernel: FakeKernel, *cpus: int) -> None:
    """Put all threads into a cpuset."""
    kernel.cpuset = frozenset(cpus)
    kernel.masks = {thread: (mask & kernel.cpuset) or kernel.cpuset for thread, mask in kernel.masks.items()}


def test_what_a_cpuset_forbids_is_told_of_and_is_no_drift_fake(kernel: FakeKernel, pinning: Pinning) -> None:
    """A thread that may not be where it belongs keeps no other from that, and nobody is said to be back."""
    confine(kernel, 0, 1)
    kernel.masks[PID] = frozenset({1})
    (drift,) = pinning.put()
    assert (drift.thread, kernel.shown) == (PID, {PID: "0", VCPU: "0-1"})
    assert pinning.trouble.startswith("vCPU 0 belongs on CPUs 2-3 and is on 0-1: could not pin thread 11: Invalid arg")
    assert pinning.is_misplaced
    assert (pinning.put(), pinning.drifts) == ((), 1)
    assert not pinning.is_as_left(), "it is tried again"
    kernel.cpuset = kernel.online
    kernel.masks[VCPU] = frozenset({2, 3})  # as the kernel does since Linux 6.2: it had been asked for that
    assert not pinning.is_as_left(), "its trouble is over"
    assert (pinning.put(), pinning.trouble, pinning.is_misplaced, kernel.shown[VCPU]) == ((), "", False, "2-3")
    assert pinning.is_as_left()


def test_a_cpuset_with_some_of_its_cpus_is_told_of_and_is_no_drift_fake(kernel: FakeKernel, pinning: Pinning) -> None:
    """It is where it belongs, if not on all of that."""
    confine(kernel, 0, 2)
    assert (pinning.put(), kernel.shown) == ((), {PID: "0", VCPU: "2"})
    assert pinning.trouble.startswith("vCPU 0 belongs on CPUs 2-3, and the kernel lets it run on 2 alone")
    assert not pinning.is_misplaced
    confine(kernel, 2, 3)
    assert pinning.put() == ()
    assert pinning.trouble.startswith("thread 10 belongs on CPUs 0 and is on 2-3")


def test_threads_that_an_earlier_daemon_left_somewhere_are_free_fake(kernel: FakeKernel) -> None:
    """They had made room for a VM that ended before this daemon came; once, and nobody is said to have moved them."""
    kernel.masks = {PID: frozenset({1}), VCPU: frozenset({1})}
    pinning = Pinning(PID, Pins, found=True)
    assert (pinning.put(), pinning.is_free) == ((), False), "QEMU has not said yet which of them run vCPUs"
    pinning.vcpus = {0: VCPU}
    assert (pinning.put(), kernel.shown) == ((), {PID: "0-3", VCPU: "0-3"})
    assert pinning.is_free, "nobody is to look again"
    kernel.masks[VCPU] = frozenset({1})
    assert (pinning.put(), kernel.shown[VCPU]) == ((), "1")


def test_without_pins_threads_are_free_again_fake(kernel: FakeKernel, pinning: Pinning) -> None:
    """Those that were pinned; and then nobody is touched any more."""
    assert not pinning.is_free
    kernel.is_pinned = False
    assert pinning.put() == ()
    assert kernel.shown == {PID: "0-3", VCPU: "0-3"}
    kernel.masks[VCPU] = frozenset({1})
    assert pinning.put() == ()
    assert kernel.shown[VCPU] == "1"
    assert pinning.is_free


def test_threads_that_are_free_run_where_the_daemon_may_fake(kernel: FakeKernel, pinning: Pinning) -> None:
    """As those of a QEMU that it starts now."""
    kernel.ours = frozenset({0, 1, 2})
    kernel.is_pinned = False
    assert (pinning.put(), kernel.shown) == ((), {PID: "0-2", VCPU: "0-2"})


def test_nothing_is_moved_before_it_is_known_where_it_belongs_fake(kernel: FakeKernel) -> None:
    """A daemon that has just begun has not looked at the host yet."""
    pinning = Pinning(PID, lambda: None)
    pinning.vcpus = {0: VCPU}
    assert (pinning.put(), kernel.shown) == ((), {PID: "0-3", VCPU: "0-3"})


def test_a_thread_in_place_of_another_is_seen_fake(kernel: FakeKernel, pinning: Pinning) -> None:
    """Their number is the same as before."""
    kernel.masks[12] = frozenset({0})
    pinning.put()
    del kernel.masks[12]
    kernel.masks[13] = frozenset({1})
    assert pinning.put() == (), "it was never anywhere else"
    assert kernel.shown == {PID: "0", VCPU: "2-3", 13: "0"}


def test_programs_that_serve_devices_are_kept_in_their_place_fake(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All threads of all that such a program has started, also those that come later."""
    family, pins = {20: (20, 21)}, Pins((frozenset({2}),), frozenset({0}), helper=frozenset({1, 3}))
    tasks = {PID: (PID, VCPU), 20: (20,), 21: (21, 22)}
    monkeypatch.setattr(affinity, "family", family.__getitem__)
    monkeypatch.setattr(affinity, "threads", tasks.__getitem__)
    monkeypatch.setattr(affinity, "count", lambda pid: len(tasks[pid]))
    helpers = {"device.data": 20}
    pinning = Pinning(PID, lambda: pins, helpers=lambda: helpers)
    pinning.vcpus = {0: VCPU}
    kernel.masks |= dict.fromkeys((20, 21, 22, 23), kernel.online)
    assert pinning.put() == ()
    assert kernel.shown == {PID: "0", VCPU: "2", 20: "1,3", 21: "1,3", 22: "1,3", 23: "0-3"}
    assert pinning.is_as_left()
    kernel.masks[22] = frozenset({0})
    assert not pinning.is_as_left()
    (drift,) = pinning.put()
    assert str(drift) == "thread 22 of what serves device.data was moved to CPUs 0, and is back on 1,3"
    tasks[21] = (21, 22, 23)
    assert not pinning.is_as_left()
    assert pinning.put() == ()
    assert kernel.shown[23] == "1,3"
    helpers.clear()
    assert pinning.put() == ()
    assert pinning.is_as_left()


def test_what_moves_when_a_cpuset_changes_is_no_drift_fake(kernel: FakeKernel, pinning: Pinning) -> None:
    """The kernel lets each thread run on all of it then; and so it does when a CPU comes or goes. Else it is one."""
    with pinning.excused():
        kernel.masks[VCPU] = kernel.online
        with pinning.excused():
            pass
        kernel.masks[PID] = kernel.online
    assert (kernel.shown, pinning.drifts) == ({PID: "0", VCPU: "2-3"}, 0)
    kernel.online -= {1}
    kernel.masks[VCPU] = kernel.online
    assert (pinning.put(), kernel.shown[VCPU]) == ((), "2-3")
    kernel.masks[VCPU] = kernel.online
    assert len(pinning.put()) == 1


def test_a_thread_that_is_free_in_a_fence_is_so_when_that_grows_fake(kernel: FakeKernel) -> None:
    """It is told all CPUs, which the kernel keeps in mind (Linux 6.2); none of ours: those of the fence."""
    asked: list[frozenset[int]] = []
    pins = PINS
    pinning = Pinning(PID, lambda: pins)
    pinning.vcpus = {0: VCPU}
    pinning.put()
    put, kernel.cpuset = affinity.put, frozenset({2, 3})
    with pytest.MonkeyPatch.context() as patched:

        def noted(thread: int, cpus: frozenset[int]) -> bool:
            asked.append(cpus)
            return put(thread, cpus)

        patched.setattr(affinity, "put", noted)
        pins = Pins(fence=kernel.cpuset)
        assert (pinning.put(), pinning.is_free, kernel.shown) == ((), True, {PID: "2-3", VCPU: "2-3"})
        assert asked == [kernel.ours, kernel.ours]
        pins = PINS
        kernel.ours = frozenset({0})
        pinning.put()
        asked.clear()
        pins = Pins(fence=kernel.cpuset)
        pinning.put()
        assert asked == [kernel.cpuset, kernel.cpuset]
