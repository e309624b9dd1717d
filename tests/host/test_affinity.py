"""The kernel's word on threads: of this very process, and of one that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from qsup.host import affinity


def test_the_threads_of_a_process_are_counted_and_listed() -> None:
    """Alike, also when one comes or goes; one that is no more has none."""
    before = affinity.count(os.getpid())
    assert before == len(affinity.threads(os.getpid()))
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert affinity.count(os.getpid()) == before + 1
        assert thread.native_id in affinity.threads(os.getpid())
    finally:
        end.set()
        thread.join()
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    assert (affinity.count(child), affinity.threads(child), affinity.get(child)) == (0, (), None)
    assert affinity.put(child, {0}) is False
    assert not affinity.are([(child, {0})])


def test_the_family_of_a_process_are_all_that_descend_from_it() -> None:
    """One that is no more has nobody."""
    script = "sleep 60 & sh -c 'sleep 60 & echo $!; wait' & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        told = {int(child.stdout.readline()) for _ in range(2)}
        family = affinity.family(child.pid)
        for pid in family[::-1]:
            os.kill(pid, signal.SIGKILL)
    assert (family[0], len(family)) == (child.pid, 4)
    assert told <= set(family)
    assert affinity.family(child.pid) == (child.pid,)


def test_a_thread_runs_where_it_is_put() -> None:
    """And nowhere else."""
    assert affinity.online() >= os.sched_getaffinity(0)
    before = affinity.get(0)
    assert before
    one = {min(before)}
    try:
        assert affinity.put(0, one)
        assert affinity.get(0) == one
        assert affinity.are([(0, one)])
    finally:
        affinity.put(0, before)
    assert affinity.are([(0, before)]) and not affinity.are([(0, before), (0, set())])


def test_what_the_kernel_does_not_say_is_online_is_what_we_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A container may have /sys masked, and its VMs are pinned all the same."""
    monkeypatch.setattr(affinity, "_ONLINE", tmp_path / "online")
    assert affinity.online() == os.sched_getaffinity(0)
    (tmp_path / "online").write_text("nonsense")
    assert affinity.online() == os.sched_getaffinity(0)
