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
from qsup.host import proc
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
