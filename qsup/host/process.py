"""Starting programs confined, and owning what was started.

Decides: the chain of programs that turns the daemon's child into QEMU as its own user: which rights it keeps (none),
its session, its environment and its descriptors.
Must not: know QEMU's arguments, restart anything, or judge an exit.

The child becomes QEMU by execs alone, so the pid never changes and no helper stays behind::

    [prlimit                how many files it may have open, where that is said]
    setpriv                 the VM's user, no group, no capability, no new privileges
    [sh                     of what is to end with the daemon: whether the daemon still is there]
    PROGRAM

What further programs of the chain would need a millisecond each for, it inherits. From the daemon (`settle`) come the
directory, the umask and the core limit. From the spawning thread come the CPUs that it is to run on, and with
`kvm_node` a mount namespace with a /dev/kvm that the VM's user may open. That thread is a new one each time and ends
with the spawn, so nobody else ever works in such a place.

The child joins no cgroup: that makes whoever does it wait for the kernel (see `qsup.host.cgroup.Cgroup.join`), and QEMU
can start meanwhile. The vfork-and-exec is `os.posix_spawn`: it holds the interpreter for 0.2 ms, half of what
`trio.lowlevel.open_process` takes, and leaves no object that could reap the child behind the pidfd's back.
"""

from __future__ import annotations

import _thread
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TypeVar

import trio
from attrs import frozen

from qsup.errors import HostError, StartError, from_oserror
from qsup.host import affinity, descriptors, kvmnode, syscalls
from qsup.host.pidfd import ExitStatus, PidFd

#: The whole environment of what we start; nothing of the daemon's, of systemd's or of a session's goes along. No
#: locale is named: each program of the chain would read a dozen files for it, 0.4 ms of a start.
CLEAN_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/nonexistent",
}

T = TypeVar("T")

#: Bytes that nobody's memory has.
ANY_AMOUNT = 1 << 62
_WATCH_DESCRIPTORS = 2  # the pidfd, and /proc/PID/stat for a moment
_TOOL_OUTPUT = 65536  # bytes kept of what a tool writes
_NO_RIGHTS = ("--clear-groups", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--no-new-privs")
# A parent that died before the kernel was asked for the signal (prctl(2), PR_SET_PDEATHSIG) sends none.
_UNLESS_ORPHANED = ("/bin/sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')
# Python ignores some, and so may have whoever started the daemon
_DEFAULT_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


@frozen(kw_only=True)
class Credentials:
    """Whom a program runs as: one uid and one gid, no supplementary groups."""

    uid: int
    gid: int


class Process:
    """A process that the daemon started, or found again, and watches through its pidfd.

    Closing it gives up the watch; the process lives on.
    """

    def __init__(self, handle: PidFd) -> None:
        self.pidfd = handle

    @property
    def pid(self) -> int:
        """Its pid, the same from the spawn to its end."""
        return self.pidfd.pid

    @property
    def start_time(self) -> int:
        """Clock ticks after boot; see `qsup.host.proc.ProcessStat`."""
        return self.pidfd.start_time

    @property
    def status(self) -> ExitStatus | None:
        """How it ended, once a `wait_exit` has returned."""
        return self.pidfd.status

    async def wait_exit(self) -> ExitStatus:
        """Wait until it has ended and say how; see `PidFd.wait_exit`."""
        return await self.pidfd.wait_exit()

    def dying(self) -> ExitStatus | None:
        """How it ends, when it cannot live on although it is still there; see `PidFd.dying`."""
        return self.pidfd.dying()

    def send_signal(self, number: signal.Signals) -> bool:
        """Signal it; ``False`` when it has ended; see `PidFd.send_signal`."""
        return self.pidfd.send_signal(number)

    async def aclose(self) -> None:
        """Give up the watch; the process is left as it is."""
        self.pidfd.close()
        await trio.lowlevel.checkpoint()


def launch_chain(
    argv: Sequence[str], *, credentials: Credentials | None = None, parent: int | None = None, nofile: int = 0
) -> list[str]:
    """The argv that becomes ``argv``; pure.

    Args:
        argv: the program, by absolute path, and its arguments.
        credentials: whom it runs as, ``None`` for the caller.
        parent: the pid of its parent, when it is to be killed at that one's end.
        nofile: how many files it may have open, 0 for as many as the caller.
    """
    limited = ["prlimit", f"--nofile={nofile}:{nofile}"] if nofile else []
    rights: tuple[str, ...] = ("--no-new-privs",)
    if credentials is not None:
        rights = ("--reuid", str(credentials.uid), "--regid", str(credentials.gid), *_NO_RIGHTS)
    if parent is None:
        return [*limited, "setpriv", *rights, "--", *argv]
    return [*limited, "setpriv", *rights, "--pdeathsig", "KILL", "--", *_UNLESS_ORPHANED, str(parent), *argv]


def launch_failure(status: ExitStatus, output: str) -> str | None:
    """Whether the chain failed and not the program: then why, in one sentence, else ``None``.

    Args:
        status: how the process ended.
        output: what it wrote to its standard error, without colour or control characters.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("setpriv: ", "prlimit: "))]
    if status.kind != "code" or not (status.value in (126, 127) or (status.value and said and said[-1] == lines[-1])):
        return None
    words = (said or lines or [status.describe()])[-1]
    return f"the launcher could not start the program: {words}"


async def spawn(
    argv: Sequence[str],
    *,
    fds: Sequence[int] = (),
    output_fd: int,
    credentials: Credentials | None = None,
    kvm_node: bool = False,
    lockable: int = 0,
    cpus: Set[int] = frozenset(),
    mortal: bool = False,
    hugepages: bool = True,
    nofile: int = 0,
    env: Mapping[str, str] = CLEAN_ENVIRONMENT,
) -> Process:
    """Start a program through the chain, in a session of its own, with /dev/null as its standard input.

    A failure further down the chain shows as an early exit; `launch_failure` tells it from the program's own.

    Args:
        argv: the program, by absolute path, and its arguments.
        fds: descriptors it inherits, under the same numbers; all others stay here.
        output_fd: its standard output and error.
        credentials: whom it runs as (root only), ``None`` for the caller.
        kvm_node: give it a /dev/kvm that it may open (root only).
        lockable: bytes of memory that it must be able to lock (``RLIMIT_MEMLOCK``), such as `ANY_AMOUNT`.
        cpus: where it runs from its first moment (sched_setaffinity(2)), one of them online at least; none: anywhere.
        mortal: the kernel kills it when the daemon ends, however that ends: nobody would find it again. It hangs on
            the calling thread, so this does not go with ``kvm_node`` and ``cpus``, and needs the daemon's main thread.
        hugepages: the kernel may put its memory into huge pages as it goes.
        nofile: how many files it may have open, 0 for as many as the daemon.
        env: its whole environment.

    Raises:
        StartError: the chain's first program could not be executed, or the KVM node not be made.
        HostError: there is no descriptor left to watch it by, no thread, or none of the CPUs; then nothing runs.
    """
    await trio.lowlevel.checkpoint()
    assert not (mortal and (kvm_node or cpus))
    if kvm_node:
        kvmnode.hold()
    chain = launch_chain(argv, credentials=credentials, parent=os.getpid() if mortal else None, nofile=nofile)
    work = partial(_posix_spawn, chain, fds, output_fd, env)
    with _watchable(), _can_lock(lockable), nullcontext() if hugepages else _without_huge_pages():
        try:
            pid = _in_a_place(work, cpus, kvm_node=kvm_node) if cpus or kvm_node else work()
        except OSError as error:
            raise StartError(f"could not execute {chain[0]}: {os.strerror(error.errno or 0)}") from error
    return _watch(pid)


def settle() -> None:
    """Take the place that every child inherits: the root directory, umask 077, no core dumps (they hold secrets)."""
    descriptors.raise_limit()
    os.chdir("/")
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _in_a_place(spawn: Callable[[], int], cpus: Set[int], *, kvm_node: bool) -> int:
    """Spawn from a thread of some CPUs, in a mount namespace where /dev/kvm is our node, and that ends with it."""

    def enter_and_spawn() -> int:
        if cpus:
            affinity.put(_thread.get_native_id(), cpus)
        if kvm_node:
            try:
                syscalls.unshare(syscalls.CLONE_NEWNS)
                syscalls.follow_mounts()
                syscalls.bind_mount(str(kvmnode.NODE), str(kvmnode.HOST_NODE))
            except OSError as error:
                raise kvmnode.failure(error) from error
        return spawn()

    return _in_a_new_thread(enter_and_spawn)


def _in_a_new_thread(work: Callable[[], T]) -> T:
    """Do something short in a thread of its own, and raise what it raises.

    `threading.Thread` waits twice for its thread, for the beginning and the end: half of what a whole spawn takes.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    try:
        _thread.start_new_thread(run, ())
    except RuntimeError as error:  # pthread_create(3) says EAGAIN
        raise HostError("could not start another process: no thread can be started") from error
    return result.result()


@contextmanager
def _watchable() -> Iterator[None]:
    """Hold as many descriptors as watching a child takes, so that their lack shows before there is a child."""
    try:
        with descriptors.held(_WATCH_DESCRIPTORS):
            yield
    except OSError as error:
        raise from_oserror(error, "could not start another process") from error


@contextmanager
def _can_lock(size: int) -> Iterator[None]:
    """Children may lock so much memory meanwhile: limits are inherited, and outlive a change of the user."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if not size or before[0] == resource.RLIM_INFINITY or before[0] >= size:
        yield
        return
    hard = before[1] if before[1] == resource.RLIM_INFINITY else max(before[1], size)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, hard))
    except (OSError, ValueError) as error:
        raise _not_lockable(size) from error
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


@contextmanager
def _without_huge_pages() -> Iterator[None]:
    """Children get no transparent huge pages: fork and exec hand that down, and the daemon needs none meanwhile."""
    try:
        syscalls.set_thp_disable(True)
    except OSError as error:
        raise from_oserror(error, "could not do without transparent huge pages") from error
    try:
        yield
    finally:
        syscalls.set_thp_disable(False)


def let_lock(pid: int, size: int) -> None:
    """Let a process that runs lock so much memory; `HostError`."""
    try:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)
        if soft != resource.RLIM_INFINITY and soft < size:
            hard = hard if hard == resource.RLIM_INFINITY else max(hard, size)
            resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (size, hard))
    except (OSError, ValueError) as error:
        raise _not_lockable(size) from error


def _not_lockable(size: int) -> HostError:
    amount = "all of its memory" if size == ANY_AMOUNT else f"{size >> 20} MiB of memory"
    return HostError(f"could not let it lock {amount}", hint="raise LimitMEMLOCK of the daemon")


def _watch(pid: int) -> Process:
    """The child just spawned; when it cannot be watched it is killed and reaped."""
    try:
        return Process(PidFd.open(pid))
    except BaseException as error:
        _end(pid)
        if isinstance(error, OSError):
            raise from_oserror(error, "could not watch the process just started") from error
        raise


def _end(pid: int) -> None:
    """Kill and reap an unwatched child; of the two descriptors that watching takes, this needs the first alone."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    finally:
        os.close(fd)
    os.waitpid(pid, 0)


def _posix_spawn(chain: list[str], fds: Sequence[int], output_fd: int, env: Mapping[str, str]) -> int:
    # what the daemon itself inherited from a careless parent does not go on to a VM
    syscalls.close_on_exec_from(3)
    # dup2 onto itself clears close-on-exec in the child alone (posix_spawn_file_actions_adddup2(3))
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds]
    actions += [(os.POSIX_SPAWN_DUP2, output_fd, number) for number in (1, 2)]
    actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
    # looked up where the chain's other programs are, not in the PATH of whoever started the daemon
    program = shutil.which(chain[0], path=CLEAN_ENVIRONMENT["PATH"]) or chain[0]
    return os.posix_spawn(
        program, chain, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_DEFAULT_SIGNALS
    )


def adopt(pid: int, start_time: int, boot_id: str) -> Process | None:
    """The very process recorded earlier, or ``None`` when it has gone, whoever has its pid now; see `PidFd.find`."""
    found = PidFd.find(pid, start_time=start_time, boot_id=boot_id)
    return Process(found) if found else None


async def run_tool(argv: Sequence[str], *, seconds: float) -> str:
    """Run a small program to its end as the daemon's own user, without new privileges.

    Args:
        argv: the program, by absolute path, and its arguments.
        seconds: what it may take; then it is killed.

    Returns:
        What it wrote to standard output and error, its last 64 KiB.

    Raises:
        HostError: it failed, was killed, or took too long; the message holds its last line.
    """
    output_fd = os.memfd_create("qsup-tool")
    try:
        status = await _run(argv, output_fd, seconds)
        size = os.fstat(output_fd).st_size
        text = os.pread(output_fd, _TOOL_OUTPUT, max(0, size - _TOOL_OUTPUT)).decode(errors="replace")
    finally:
        os.close(output_fd)
    if not status.success:
        words = text.strip().rpartition("\n")[2] or "no output"
        raise HostError(f"{os.path.basename(argv[0])} failed ({status.describe()}): {words}", output=text)
    return text


async def _run(argv: Sequence[str], output_fd: int, seconds: float) -> ExitStatus:
    process = await spawn(argv, output_fd=output_fd)
    try:
        with trio.fail_after(seconds):
            return await process.wait_exit()
    except trio.TooSlowError as error:
        raise HostError(f"{os.path.basename(argv[0])} took longer than {seconds:g} s") from error
    finally:
        with trio.CancelScope(shield=True):  # a killed process is reaped at once
            process.send_signal(signal.SIGKILL)
            await process.wait_exit()
            await process.aclose()
