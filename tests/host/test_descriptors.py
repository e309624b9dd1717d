"""Tests of `qsup.host.process` at the limit of descriptors: what is started is watched, or it is not there."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import trio

from qsup.errors import HostError
from qsup.host import descriptors, proc
from qsup.host.pidfd import PidFd, dying_status
from qsup.host.process import spawn
from tests.host.children import children


@pytest.fixture
def output() -> Iterator[int]:
    """Where a test's child prints: nowhere."""
    fd = os.open(os.devnull, os.O_WRONLY)
    yield fd
    os.close(fd)


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """As many descriptors as that are to be had, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(2))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


@pytest.mark.parametrize("count", range(4))
async def test_without_descriptors_nothing_is_started(output: int, count: int) -> None:
    """Whether it has descriptors enough or none: a spawn yields a watched process, or an error and no process."""
    started = None
    with free_descriptors(count):
        try:
            started = await spawn(["/bin/sleep", "60"], output_fd=output)
        except HostError as error:
            assert "could not start another process: Too many open files" in str(error)
    assert (started is not None) == (count >= 2)
    assert len(children()) == (0 if started is None else 1)
    if started is not None:
        started.send_signal(signal.SIGKILL)
        with trio.fail_after(5):
            await started.wait_exit()
        await started.aclose()


def test_what_is_left_is_known_and_its_lack_named() -> None:
    """Neither one more nor one less, others' reservations included; the error says which limit it is."""
    before = os.listdir("/proc/self/fd")
    with free_descriptors(8):
        found = [count for count in range(12) if descriptors.are_left(count)]
        with descriptors.reserved(3, "start another VM", beside=5):
            pass  # just enough
        with descriptors.reserved(3, "start another VM", beside=2), descriptors.reserved(3, "start another", beside=2):
            with pytest.raises(HostError, match=r"fewer than 9 file descriptors are left .*RLIMIT_NOFILE") as refused:
                with descriptors.reserved(1, "start another VM", beside=2):
                    pass  # not reached
        with descriptors.reserved(6, "start another VM", beside=2):
            pass  # what others had is free again
    assert found == list(range(9))
    assert (refused.value.details["errno"], "LimitNOFILE" in refused.value.hint) == ("EMFILE", True)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("given", [256, None])
def test_the_limit_is_raised_as_far_as_it_may_be(given: int | None) -> None:
    """The soft limit becomes the hard one, which stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (given or hard, hard))
    try:
        descriptors.raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 1 << 20), hard)
        assert descriptors.limit() == min(hard, 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_an_end_is_seen_without_a_descriptor(output: int) -> None:
    """/proc cannot be asked then how a process ended that is not ours to wait for: it has ended all the same."""
    started = await spawn(["/bin/sleep", "60"], output_fd=output)
    watched = PidFd.open(started.pid)
    started.send_signal(signal.SIGKILL)
    with trio.fail_after(5):
        await started.wait_exit()
    with free_descriptors(0), trio.fail_after(5):
        status = await watched.wait_exit()
    assert status.kind in ("unknown", "signal")
    assert dying_status(started.pid, started.start_time) is None
    watched.close()
    await started.aclose()


@pytest.mark.parametrize("refuser", ["pidfd_open", "start_time"])
async def test_child_that_cannot_be_watched_is_ended(
    output: int, monkeypatch: pytest.MonkeyPatch, refuser: str
) -> None:
    """When the last descriptor was taken after the spawn, the child is killed and reaped, and nothing leaks."""
    room = os if refuser == "pidfd_open" else proc
    real = getattr(room, refuser)

    def refuse_once(_pid: int) -> int:
        monkeypatch.setattr(room, refuser, real)
        raise OSError(errno.EMFILE, "no words of the kernel")

    monkeypatch.setattr(room, refuser, refuse_once)
    with pytest.raises(HostError, match="could not watch the process just started: Too many open files"):
        await spawn(["/bin/sleep", "60"], output_fd=output)
    assert children() == []
