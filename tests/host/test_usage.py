"""Tests of `qsup.host.usage`: what the kernel says of threads and memory, and what it never should."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import HostError
from qsup.host import usage
from qsup.host.usage import Held, NodePart, Times
from tests.waiting import poll_until

#: Field 14 and 15 are ticks that it ran, 39 the CPU.
STAT = "7 ({}) S 1 7 7 0 -1 0 0 0 0 0 150 50 " + "0 " * 23 + "3 0 0 0 0 0"
MIB = 1 << 20
#: As `cat /proc/PID/numa_maps` of a QEMU.
NUMA_MAPS = """\
5581e8a00000 default file=/usr/bin/qemu-system-x86_64 mapped=100 mapmax=2 active=0 N0=60 N3=40 kernelpagesize_kB=4
7f0000000000 bind:0-1 anon=768 dirty=768 N0=512 N1=256 kernelpagesize_kB=4
7f1000000000 default file=/memfd:memory-backend-memfd\\040(deleted) huge dirty=3 N1=3 kernelpagesize_kB=2048
7f2000000000 default file=/memfd:memory-backend-memfd\\040(deleted) dirty=5 N12=5 kernelpagesize_kB=4
7f3000000000 default
7ffc00000000 default stack anon=1 dirty=1 N0=1 kernelpagesize_kB=4
"""


@pytest.mark.parametrize("name", ["CPU 0/KVM", "a) R 1 2 (b", ") ) (", "", " "])
def test_a_threads_name_may_be_anything(name: str) -> None:
    """It is QEMU's to choose."""
    found = usage.parse_thread(STAT.format(name), "2000000000 500000000 9\n", "x\nse.nr_migrations   :   12\ny : 3\n")
    assert found is not None
    assert (found.name, found.cpu, found.migrations) == (name, 3, 12)
    assert found.times == Times(seconds=2.0, waited=0.5)


def test_a_kernel_that_keeps_less_says_less() -> None:
    """Time in ticks, and neither what a thread waited nor where it went."""
    found = usage.parse_thread(STAT.format("x"))
    assert found is not None
    assert found.times == Times(seconds=200 / os.sysconf("SC_CLK_TCK"), waited=None)
    assert found.migrations is None


@given(st.text(), st.text(), st.text())
def test_nonsense_is_nothing(stat: str, schedstat: str, sched: str) -> None:
    """No text raises anything."""
    usage.parse_thread(stat, schedstat, sched)
    usage.parse_held(sched)
    usage.parse_numa_maps(stat.splitlines())
    times = usage.parse_schedstat(schedstat)
    assert times is None or times.seconds >= 0


@pytest.mark.parametrize("text", ["", "1 2", "1 2 3 4", "-1 2 3", "1 x 3", "\u0661 2 3", "1.5 2 3"])
def test_what_is_no_schedstat(text: str) -> None:
    """Three counts, or none at all."""
    assert usage.parse_schedstat(text) is None


def test_a_thread_that_runs_is_seen_to() -> None:
    """It alone, to the nanosecond; when it has ended it is no more, and the process's time is what it was."""
    pid, end, idle = os.getpid(), threading.Event(), threading.Event()

    def work() -> None:
        while not end.is_set():
            pass

    threads = [threading.Thread(target=work), threading.Thread(target=idle.wait)]
    for thread in threads:
        thread.start()
    busy, resting = (thread.native_id or 0 for thread in threads)

    def ran(thread: int) -> float:
        found = usage.thread_times(pid, thread)
        return 0.0 if found is None else found.seconds

    try:
        before = ran(busy), ran(resting)
        poll_until(lambda: ran(busy) - before[0] > 0.02, "it has run")
        assert ran(resting) - before[1] < 0.01
        told = usage.thread_usage(busy)
    finally:
        end.set()
        idle.set()
        total = usage.process_seconds(pid)
        for thread in threads:
            thread.join()
    assert told is not None and told.cpu in os.sched_getaffinity(0)
    poll_until(lambda: usage.thread_times(pid, busy) is None, "it is no more")
    assert usage.thread_usage(busy) is None
    now = usage.process_seconds(pid)
    assert total is not None and now is not None and now >= total


def test_a_process_that_is_no_more_has_had_nothing() -> None:
    """And holds nothing."""
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    assert usage.process_seconds(child) is None
    assert usage.thread_times(child, child) is None
    assert usage.held(child) == Held()
    with pytest.raises(HostError, match="where the memory of process"):
        usage.read_numa_maps(child)


def test_what_a_process_holds_besides() -> None:
    """Of status, in bytes."""
    text = "Name:\tHugetlbPages: 9 kB\nVmSwap:\t     128 kB\nHugetlbPages:\t    4096 kB\n"
    assert usage.parse_held(text) == Held(huge=4 * MIB, swapped=128 << 10)


def test_memory_is_summed_by_node_and_kind() -> None:
    """Pages count as large as they are."""
    assert usage.parse_numa_maps(NUMA_MAPS.splitlines()) == {
        0: NodePart(anonymous=513 << 12, file=60 << 12),
        1: NodePart(anonymous=MIB, huge=6 * MIB),
        3: NodePart(file=40 << 12),
        12: NodePart(file=5 << 12),
    }


def test_no_file_can_pass_for_memory() -> None:
    """A name cannot have blanks there, and what only looks like a count is none."""
    line = "7f00 default file=/x\\040N0=99\\040kernelpagesize_kB=4 N0=1 N=3 N1=x xN2=2 kernelpagesize_kB=4"
    assert usage.parse_numa_maps([line]) == {0: NodePart(file=4096)}


def test_our_own_memory_is_where_it_is() -> None:
    """What is resident is on the nodes that there are."""
    data = bytearray(os.urandom(16 * MIB))
    found = usage.read_numa_maps(os.getpid())
    assert sum(part.anonymous for part in found.values()) > len(data)
    online = Path("/sys/devices/system/node/online")
    assert not online.exists() or set(found) <= set(range(1024))
