"""What /proc tells of processes (proc(5)): identity, use of CPU and memory, and who holds a file open.

Decides: how a process is told from a later one of the same pid, and how a process is named to a person.
Must not: signal or wait for anything, or remember what it read.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PF_EXITING = 0x4  # linux/sched.h, shown as field 9 since ever


@functools.cache
def boot_id() -> str:
    """The kernel's random id of this boot (random(4)); a pid and start time mean nothing under another one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@frozen(kw_only=True)
class ProcessStat:
    """One reading of /proc/PID/stat.

    Args:
        name: ``comm``, at most 15 bytes.
        state: one letter, ``Z`` for a zombie.
        exiting: its main thread has ended: the kernel is taking it down, or has and nobody reaped it yet (a zombie).
        parent: the parent's pid.
        cpu_seconds: user and system time of all threads.
        threads: number of threads.
        start_time: clock ticks after boot (field 22); with the pid and the boot id it names one process for good.
        rss: resident memory in bytes.
        exit_status: how one that is ``exiting`` ended, in wait(2)'s form; 0 also for who may not know (see
            `may_inspect`).
    """

    name: str
    state: str
    exiting: bool
    parent: int
    cpu_seconds: float
    threads: int
    start_time: int
    rss: int
    exit_status: int


def parse_stat(text: str) -> ProcessStat:
    """Parse /proc/PID/stat; the name may hold spaces and parentheses, so fields count from the last one."""
    head, _, tail = text.rpartition(") ")
    fields = tail.split()
    return ProcessStat(
        name=head.partition("(")[2],
        state=fields[0],
        exiting=bool(int(fields[6]) & _PF_EXITING),
        parent=int(fields[1]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        threads=int(fields[17]),
        start_time=int(fields[19]),
        rss=int(fields[21]) * _PAGE,
        exit_status=int(fields[49]),
    )


def read_stat(pid: int) -> ProcessStat | None:
    """What /proc says of a process now, or ``None`` when there is none of that pid."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return parse_stat(file.read().decode(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def thread_state(tid: int) -> str:
    """The letter of a thread's state, of a process its main thread's: ``R S D T t Z``...; ``""`` when there is none."""
    stat = read_stat(tid)
    return stat.state if stat else ""


def wait_channel(pid: int) -> str:
    """The function of the kernel that a process's main thread sleeps in, ``""`` where that cannot be known."""
    try:
        found = Path(f"/proc/{pid}/wchan").read_text().strip()
    except OSError:  # gone, or not ours to look at
        return ""
    return "" if found == "0" else found


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks after boot, or ``None`` when there is none of that pid."""
    stat = read_stat(pid)
    return stat.start_time if stat else None


def command_line(pid: int) -> str:
    """A process's arguments, each with a NUL behind it; ``""`` when there is none of that pid."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def session(pid: int) -> int | None:
    """The session that a process belongs to, by its leader's pid, or ``None`` when there is none of that pid."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def uid(pid: int) -> int | None:
    """Whom a process runs as, or ``None`` when there is none of that pid."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except (FileNotFoundError, ProcessLookupError):
        return None


def uptime() -> float:
    """Seconds since this boot, time asleep included (CLOCK_BOOTTIME): nobody sets that clock, and with the boot id it
    orders what daemons have written down.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def may_inspect(pid: int) -> bool:
    """Whether /proc shows us all of a process: ``PTRACE_MODE_READ_FSCREDS`` of ptrace(2), zombies included."""
    try:
        os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return False
    return True


def describe(pid: int) -> str:
    """A process for a person: ``qemu-system-x86 (pid 123)``."""
    stat = read_stat(pid)
    return f"{stat.name if stat else 'a process'} (pid {pid})"


def holders(device: int, inode: int) -> Iterator[int]:
    """The pids, other than our own, that hold a file open, as far as /proc lets us see.

    Args:
        device: ``st_dev`` of the file.
        inode: ``st_ino`` of the file; works for FIFOs and sockets too.
    """
    return _holding(lambda stat: (stat.st_dev, stat.st_ino) == (device, inode))


def socket_holders(inode: int) -> Iterator[int]:
    """The pids, other than our own, that hold the socket which /proc/net lists under that inode."""
    sockfs = _sockfs()
    return _holding(lambda stat: stat.st_ino == inode and stat.st_dev == sockfs)


@functools.cache
def _sockfs() -> int:
    import socket  # only error paths ask who holds a port

    with socket.socket() as probe:
        return os.fstat(probe.fileno()).st_dev


def _holding(wanted: Callable[[os.stat_result], bool]) -> Iterator[int]:
    for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
        if pid != os.getpid() and any(wanted(stat) for stat in _open_files(pid)):
            yield pid


def _open_files(pid: int) -> Iterator[os.stat_result]:
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # gone meanwhile, or another user's
        return
    for number in numbers:
        try:
            yield os.stat(f"/proc/{pid}/fd/{number}")
        except OSError:  # closed meanwhile
            continue
