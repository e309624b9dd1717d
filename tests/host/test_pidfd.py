"""Tests of `qsup.host.pidfd` and `qsup.host.proc`: one process for good, and how it ended."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from qsup.host import pidfd, proc
from qsup.host.pidfd import ExitStatus, PidFd
from tests.host.children import child, grandchild
from tests.waiting import poll_until

KERNEL = tuple(int(part) for part in platform.release().split(".")[:2])
TELLS_EXIT_OF_OTHERS = KERNEL >= (6, 15)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (ExitStatus(kind="code", value=1), "exit code 1"),
        (ExitStatus(kind="signal", value=9), "signal KILL"),
        (ExitStatus(kind="signal", value=6, core=True), "signal ABRT, core dumped"),
        (ExitStatus(kind="signal", value=40), "signal 40"),
        (ExitStatus(kind="unknown"), "exit-unknown"),
    ],
)
def test_status_for_people(status: ExitStatus, text: str) -> None:
    """An exit status reads as one would say it."""
    assert status.describe() == text


@given(st.integers(0, 255))
def test_wait_status_codes(code: int) -> None:
    """Exit codes come out of wait(2)'s form; only 0 is success."""
    status = ExitStatus.from_wait_status(code << 8)
    assert (status.kind, status.value, status.success) == ("code", code, code == 0)


def test_wait_status_signals() -> None:
    """Signals and core dumps come out of wait(2)'s form."""
    assert ExitStatus.from_wait_status(signal.SIGSEGV | 0x80) == ExitStatus(kind="signal", value=11, core=True)


@pytest.mark.parametrize(
    ("script", "expected"), [("exit 3", "exit code 3"), ("exit 0", "exit code 0"), ("kill -TERM $$", "signal TERM")]
)
async def test_end_of_a_child(script: str, expected: str) -> None:
    """The end of a child is seen with its status, again and by several who wait."""
    seen: list[str] = []
    with child("/bin/sh", "-c", f"read x; {script}") as process, trio.fail_after(5):
        watched = PidFd.open(process.pid)
        process.returncode = 0  # the pidfd reaps it

        async def watch() -> None:
            seen.append((await watched.wait_exit()).describe())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            assert process.stdin
            process.stdin.close()
        await watch()
    watched.close()
    assert seen == [expected] * 3
    assert proc.read_stat(process.pid) is None


async def test_cancelled_waiter_leaves_the_others_waiting() -> None:
    """When one of two that wait gives up, the other still learns of the end."""
    with child("/bin/cat") as process, trio.fail_after(5):
        watched = PidFd.open(process.pid)
        process.returncode = 0  # the pidfd reaps it
        async with trio.open_nursery() as nursery:
            impatient = trio.CancelScope()

            @nursery.start_soon
            async def give_up() -> None:
                with impatient:
                    await watched.wait_exit()

            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(watched.wait_exit)
            await trio.testing.wait_all_tasks_blocked()
            impatient.cancel()
            assert process.stdin
            process.stdin.close()
        assert watched.status == ExitStatus(kind="code", value=0)
        watched.close()


async def test_kill_is_seen_within_milliseconds() -> None:
    """From SIGKILL to the answer it takes milliseconds, for a child that is only watched."""
    with child("/bin/sleep", "60") as process:
        watched = PidFd.open(process.pid)
        process.returncode = 0  # the pidfd reaps it
        started = time.monotonic()
        assert watched.send_signal(signal.SIGKILL)
        assert (await watched.wait_exit()).describe() == "signal KILL"
        assert time.monotonic() - started < 0.5
        assert not watched.send_signal(signal.SIGKILL)
        watched.close()


@pytest.mark.parametrize(("script", "expected"), [("exit 7", "exit code 7"), ("kill -KILL $$", "signal KILL")])
async def test_end_of_a_process_of_others(script: str, expected: str) -> None:
    """The status of a process that is not our child is known where the kernel tells it, else it is unknown."""
    with grandchild("/bin/sh", "-c", f"sleep 0.05; {script}") as pid:
        watched = PidFd.open(pid)
        with trio.fail_after(5):
            status = await watched.wait_exit()
        watched.close()
    assert status.describe() == (expected if TELLS_EXIT_OF_OTHERS else "exit-unknown")


@pytest.mark.parametrize(
    ("script", "expected"), [("exit 7", "exit code 7"), ("exit 0", "exit code 0"), ("kill -KILL $$", "signal KILL")]
)
async def test_end_of_a_zombie_of_others(script: str, expected: str) -> None:
    """The status of a process that its parent never reaps is known at once, on every kernel."""
    with grandchild("/bin/sh", "-c", f"sleep 0.05; {script}", reaped=False) as pid:
        watched = PidFd.open(pid)
        with trio.fail_after(5):
            assert (await watched.wait_exit()).describe() == expected
        assert watched.exited()
        watched.close()


def test_status_of_the_living_is_unknown() -> None:
    """Of a process that has not ended, or that is not the one recorded, no status is made up."""
    with child("/bin/sleep", "60") as process:
        watched = PidFd.open(process.pid)
        assert not watched.exited()
        assert pidfd.exit_info(watched.fileno()) == pidfd.UNKNOWN
        assert pidfd.dying_status(process.pid, watched.start_time) is None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert pidfd.dying_status(process.pid, watched.start_time) == ExitStatus(kind="signal", value=9)
        assert pidfd.dying_status(process.pid, watched.start_time + 1) is None
        watched.close()


MAIN_THREAD_ENDS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
input()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_whose_main_thread_has_ended_is_dying_and_not_gone() -> None:
    """Before all of a process is taken down its end is known; that it is gone is only ever the pidfd's to say."""
    with child(sys.executable, "-c", MAIN_THREAD_ENDS) as process:
        watched = PidFd.open(process.pid)
        assert watched.dying() is None
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
        poll_until(watched.dying, "the main thread has ended")
        assert watched.dying() == ExitStatus(kind="code", value=0)
        assert not watched.exited()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert watched.exited()
        watched.close()


@pytest.mark.root
def test_status_of_who_may_not_be_inspected() -> None:
    """To a user who may not inspect it, a zombie shows exit status 0; that is not believed."""
    as_nobody = ["setpriv", "--reuid=65534", "--clear-groups"]
    with child("/bin/sh", "-c", "exit 7") as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        field = [*as_nobody, "cut", "-d ", "-f52", f"/proc/{process.pid}/stat"]
        assert subprocess.check_output(field, timeout=20) == b"0\n"
        link = [*as_nobody, "readlink", f"/proc/{process.pid}/ns/pid"]
        assert subprocess.run(link, timeout=20).returncode == 1
        assert proc.may_inspect(process.pid)


def test_finds_the_recorded_process_only() -> None:
    """Another start time, another boot or no such pid: the process recorded is gone, and nobody else is found."""
    with child("/bin/sleep", "60") as process:
        start = proc.start_time(process.pid)
        assert start
        found = PidFd.find(process.pid, start_time=start, boot_id=proc.boot_id())
        assert found
        assert (found.pid, found.start_time) == (process.pid, start)
        found.close()
        assert PidFd.find(process.pid, start_time=start + 1, boot_id=proc.boot_id()) is None
        assert PidFd.find(process.pid, start_time=start, boot_id="another") is None
    assert PidFd.find(process.pid, start_time=start, boot_id=proc.boot_id()) is None


def test_nothing_is_signalled_after_a_pid_is_gone() -> None:
    """A signal to a process that has been reaped reaches nobody and says so."""
    with child("/bin/true") as process:
        watched = PidFd.open(process.pid)
        process.wait()
        assert not watched.send_signal(signal.SIGTERM)
        assert watched.exited()
        watched.close()


async def test_closing_wakes_the_waiter() -> None:
    """Whoever waits while the descriptor is closed hears of it instead of waiting for ever."""
    with child("/bin/sleep", "60") as process, trio.fail_after(5):
        watched = PidFd.open(process.pid)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await watched.wait_exit()

            await trio.testing.wait_all_tasks_blocked()
            watched.close()
            watched.close()


def test_no_such_process() -> None:
    """A pid that nobody has is an error, and nothing is left open."""
    with child("/bin/true") as process:
        process.wait()
        with pytest.raises(ProcessLookupError):
            PidFd.open(process.pid)


def test_stat_with_a_hostile_name() -> None:
    """A process name with parentheses and spaces does not shift the fields."""
    fields = ["R", "7", *["0"] * 9, "100", "50", *["0"] * 4, "3", "0", "987", "0", "12", *["0"] * 27, "256"]
    stat = proc.parse_stat(f"5 (a) R 1 (b) {' '.join(fields)}")
    assert (stat.name, stat.state, stat.parent, stat.threads, stat.start_time) == ("a) R 1 (b", "R", 7, 3, 987)
    assert not stat.exiting
    assert stat.cpu_seconds == 150 / os.sysconf("SC_CLK_TCK")
    assert stat.rss == 12 * os.sysconf("SC_PAGE_SIZE")
    assert stat.exit_status == 256


def test_stat_of_ourselves() -> None:
    """What /proc says of this very process is plausible; of a pid nobody has, it says nothing."""
    stat = proc.read_stat(os.getpid())
    assert stat
    assert stat.parent == os.getppid()
    assert stat.rss > 1 << 20
    assert proc.read_stat(2**22 + 1) is None
    assert proc.describe(2**22 + 1) == "a process (pid 4194305)"
