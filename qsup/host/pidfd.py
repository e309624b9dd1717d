"""Process descriptors: waiting for a process, signalling it, and learning how it ended.

Decides: that a signal or a wait is addressed to one process and never to a later one of the same pid.
Must not: start processes (that is `qsup.host.process`) or decide what an exit means for a VM.

How a process ended that is not our child: from when the kernel begins to take it down until it is reaped, /proc says
so; once it has been reaped, the kernel still knows (Linux 6.15). On an older one it is `UNKNOWN` then.

Sources: pidfd_open(2), pidfd_send_signal(2), waitid(2), proc(5), ``PIDFD_GET_INFO`` in linux/pidfd.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct

import trio
from attrs import frozen

from qsup.host import proc

# struct pidfd_info of Linux 6.15: mask, cgroupid, eleven 32-bit ids, exit_code
_INFO = struct.Struct("=QQ11Ii")
_INFO_EXIT = 1 << 3
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11  # _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)


@frozen(kw_only=True)
class ExitStatus:
    """How a process ended.

    Args:
        kind: ``code``, ``signal``, or ``unknown`` where nobody could say.
        value: the exit code or the signal's number, 0 for ``unknown``.
        core: whether a core was dumped.
    """

    kind: str
    value: int = 0
    core: bool = False

    @classmethod
    def from_wait_status(cls, status: int) -> ExitStatus:
        """From the form that wait(2) gives."""
        if os.WIFSIGNALED(status):
            return cls(kind="signal", value=os.WTERMSIG(status), core=os.WCOREDUMP(status))
        return cls(kind="code", value=os.WEXITSTATUS(status))

    @property
    def success(self) -> bool:
        """Whether it is exit code 0."""
        return self.kind == "code" and self.value == 0

    def describe(self) -> str:
        """``exit code 1``, ``signal KILL``, ``signal ABRT, core dumped`` or ``exit-unknown``."""
        if self.kind == "unknown":
            return "exit-unknown"
        if self.kind == "code":
            return f"exit code {self.value}"
        return f"signal {_signal_name(self.value)}{', core dumped' if self.core else ''}"


UNKNOWN = ExitStatus(kind="unknown")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:  # a real-time signal
        return str(number)


class PidFd:
    """One process for good: its pid, its start time and a descriptor that stands for it alone.

    The object owns the descriptor; `close` ends that. A child is reaped by the first `wait_exit` that sees its end.
    """

    def __init__(self, fd: int, *, pid: int, start_time: int) -> None:
        self._fd = fd
        self._status: ExitStatus | None = None
        self._waiting = trio.Lock()  # trio lets one task at a time wait for a descriptor
        self.pid = pid
        self.start_time = start_time

    @classmethod
    def open(cls, pid: int) -> PidFd:
        """A descriptor of the process that has this pid now, alive or zombie.

        Raises:
            ProcessLookupError: there is none.
            OSError: there is no descriptor to be had.
        """
        fd = os.pidfd_open(pid)
        try:
            # read after the descriptor exists: a pid that was reused meanwhile shows as a process that has ended
            start = proc.start_time(pid)
            if start is None:
                raise ProcessLookupError(errno.ESRCH, f"pid {pid} ended")
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, pid=pid, start_time=start)

    @classmethod
    def find(cls, pid: int, *, start_time: int, boot_id: str) -> PidFd | None:
        """The very process recorded earlier, or ``None`` when it is gone, whoever has its pid now."""
        if boot_id != proc.boot_id():
            return None
        try:
            found = cls.open(pid)
        except ProcessLookupError:
            return None
        if found.start_time == start_time:
            return found
        found.close()
        return None

    def fileno(self) -> int:
        """The descriptor's number, -1 once closed."""
        return self._fd

    @property
    def status(self) -> ExitStatus | None:
        """How it ended, once a `wait_exit` has returned."""
        return self._status

    def exited(self) -> bool:
        """Whether the process has ended; a zombie has."""
        if self._status is not None:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def dying(self) -> ExitStatus | None:
        """How it ends, when it cannot live on although it is still there; see `dying_status`."""
        return dying_status(self.pid, self.start_time)

    def send_signal(self, number: signal.Signals) -> bool:
        """Signal the process; ``False`` when it has ended, whoever has its pid now.

        Raises:
            PermissionError: it belongs to another user.
        """
        if self._status is not None:
            return False
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    async def wait_exit(self) -> ExitStatus:
        """Wait until the process has ended, whoever its parent is, and say how. May be called again, and by several.

        Raises:
            trio.ClosedResourceError: the descriptor was given up meanwhile.
        """
        async with self._waiting:
            while self._status is None:
                if self._fd < 0:
                    raise trio.ClosedResourceError
                await trio.lowlevel.wait_readable(self._fd)
                try:
                    self._reap()
                except ChildProcessError:  # not our child
                    self._status = dying_status(self.pid, self.start_time) or exit_info(self._fd)
        return self._status

    def _reap(self) -> None:
        """Take the status of our child that has ended; raises `ChildProcessError` when it is not ours."""
        result = os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)
        if result is not None:
            self._status = _from_siginfo(result)

    def close(self) -> None:
        """Give the descriptor up; whoever waits gets `trio.ClosedResourceError`. The process is left as it is."""
        if self._fd >= 0:
            if trio.lowlevel.in_trio_run():
                trio.lowlevel.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1


def _from_siginfo(result: os.waitid_result) -> ExitStatus:
    if result.si_code == os.CLD_EXITED:
        return ExitStatus(kind="code", value=result.si_status)
    return ExitStatus(kind="signal", value=result.si_status, core=result.si_code == os.CLD_DUMPED)


def dying_status(pid: int, start_time: int) -> ExitStatus | None:
    """How a process ended that the kernel is taking down, or that others have yet to reap.

    Returns:
        ``None`` when it lives, is gone, or we may not know.
    """
    try:
        stat = proc.read_stat(pid)
    except OSError:  # no descriptor is left to look with
        return None
    if stat is None or stat.start_time != start_time or not stat.exiting:
        return None
    if stat.exit_status == 0 and not proc.may_inspect(pid):
        return None
    return ExitStatus.from_wait_status(stat.exit_status)


def exit_info(fd: int) -> ExitStatus:
    """The exit status by ``PIDFD_GET_INFO``, `UNKNOWN` before it was reaped or on a kernel that cannot tell."""
    request = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(fd, _GET_INFO, request)
    except OSError:  # ENOTTY before 6.13, ESRCH once reaped before 6.15
        return UNKNOWN
    mask, *_, status = _INFO.unpack(request)
    return ExitStatus.from_wait_status(status) if mask & _INFO_EXIT else UNKNOWN
