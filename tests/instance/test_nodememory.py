"""When it is read where the memory of VMs is; the kernel that is asked is a fake one, which may take its time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import pytest
import trio
import trio.testing

from qsup.errors import HostError
from qsup.host import usage
from qsup.host.usage import NodePart
from qsup.instance import nodememory
from qsup.instance.nodememory import NodeMemories, Whose
from tests.waiting import wait_until

WEB, DB = Whose("web", 1, 10), Whose("db", 1, 11)


class FakeKernel:
    """Each reading finds one byte more; QEMUs that hang keep their reader."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.hangs: set[int] = set()
        self.gone: set[int] = set()
        self.end = threading.Event()

    def read_numa_maps(self, pid: int) -> Mapping[int, NodePart]:
        """As the real one."""
        self.read.append(pid)
        if pid in self.hangs:
            self.end.wait()
        if pid in self.gone:
            raise HostError("no such process")
        return {0: NodePart(self.read.count(pid))}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    """The kernel that is asked."""
    fake = FakeKernel()
    monkeypatch.setattr(usage, "read_numa_maps", fake.read_numa_maps)
    yield fake
    fake.end.set()


async def test_who_looks_has_it_read_and_sees_what_was_read_last_fake(kernel: FakeKernel) -> None:
    """Nobody waits; another life has nothing of it."""
    memories = NodeMemories()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memories.run)
        assert memories.look(WEB) is None
        await wait_until(lambda: memories.look(WEB) is not None, "it was read")
        last = memories.look(WEB)
        assert last is not None and last.nodes == {0: NodePart(1)}
        assert memories.look(Whose("web", 2, 10)) is None
        nursery.cancel_scope.cancel()


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read at once: a clock that jumps does not wait for threads."""

    async def run_sync(work: Callable[[], object], **_: object) -> object:
        await trio.lowlevel.checkpoint()
        return work()

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@pytest.mark.usefixtures("no_threads")
async def test_it_is_read_again_while_somebody_looks_and_not_for_ever_fake(
    kernel: FakeKernel, autojump_clock: trio.testing.MockClock
) -> None:
    """Not at each look."""
    memories = NodeMemories()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memories.run)
        for _ in range(10):
            memories.look(WEB)
            await trio.sleep(10)  # virtual time
        assert 3 <= len(kernel.read) <= 4
        await trio.sleep(1000)  # virtual time
        done = len(kernel.read)
        await trio.sleep(1000)  # virtual time
        assert len(kernel.read) == done
        nursery.cancel_scope.cancel()


async def test_a_vm_that_hangs_has_no_other_wait_for_it_fake(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for it is told after a while, others are not held up, and it keeps one thread alone."""
    monkeypatch.setattr(nodememory, "DEADLINE", 0.1)
    kernel.hangs.add(WEB.pid)
    memories = NodeMemories()
    for _ in range(3):
        with pytest.raises(HostError, match="did not say within"):
            await memories.read(WEB)
    assert kernel.read == [WEB.pid]
    assert (await memories.read(DB)).nodes == {0: NodePart(1)}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memories.run)
        kernel.hangs.add(12)
        memories.look(Whose("hung", 1, 12))
        memories.look(Whose("mail", 1, 13))
        await wait_until(lambda: memories.look(Whose("mail", 1, 13)) is not None, "the other one was read")
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("no_threads")
async def test_a_vm_that_is_no_more_is_not_read_again_and_again_fake(
    kernel: FakeKernel, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever asks outright hears it."""
    kernel.gone.add(WEB.pid)
    memories = NodeMemories()
    with pytest.raises(HostError, match="no such process"):
        await memories.read(WEB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memories.run)
        for _ in range(10):
            memories.look(WEB)
            await trio.sleep(10)  # virtual time
        assert len(kernel.read) == 2
        nursery.cancel_scope.cancel()
