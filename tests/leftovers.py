"""What a test leaves behind: found, named and ended.

Decides: which processes, interfaces, cgroups, device nodes, mounts and descriptors belong to this test session.
Must not: touch anything that existed before the test, or signal a process by its number.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import re
import select
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs

from qsup.host.rundir import tag_of
from tests.guests import cache_directory
from tests.waiting import came_true

# In the environment of everything a session starts, unless what it starts clears it.
MARK = "QSUP_TEST_SESSION"
# In the environment of what a fixture of the session starts, maybe within a test: only the session's end asks for it.
LASTING = "QSUP_TEST_LASTING"
# How long after its end a test may take to be gone: an exiting QEMU needs 30 ms for each GiB of memory.
GRACE = 1.0


@attrs.frozen(kw_only=True)
class Process:
    """A process by its number and its start time, in clock ticks since boot: the pair is never used twice."""

    pid: int
    started: int

    def command(self) -> str:
        """Its command line, or its name in brackets."""
        words = _read(self.pid, "cmdline").replace(b"\0", b" ").strip() or b"[" + _read(self.pid, "comm").strip() + b"]"
        return words.decode(errors="replace")

    def end(self) -> None:
        """Kill it through a pidfd, if it is still the same, and wait until it is gone."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self in processes():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], 5.0)
        finally:
            os.close(pidfd)


@attrs.frozen(kw_only=True)
class Snapshot:
    """All that could be left behind, as it stands at one moment; each thing by the words that name it.

    Args:
        alone: nobody else tests on this machine until it is compared, so what comes is ours even if nothing says so.
    """

    processes: frozenset[Process]
    things: frozenset[tuple[str, str]]
    descriptors: frozenset[tuple[int, str]]
    alone: bool


@attrs.frozen(kw_only=True)
class Session:
    """One run of pytest: the directory of all its tests, and the mark of all that it starts."""

    root: Path
    mark: str


@attrs.frozen(kw_only=True)
class Leftovers:
    """What is left: processes; things as kind and name; descriptors of our own, in words."""

    processes: list[Process]
    things: list[tuple[str, str]]
    descriptors: list[str]

    def __bool__(self) -> bool:
        return bool(self.processes or self.things or self.descriptors)

    def words(self) -> list[str]:
        """Each leftover in one line."""
        ours = [f"process {process.pid}: {process.command()}" for process in self.processes]
        return ours + [f"{kind} {name}" for kind, name in self.things] + [f"descriptor {fd}" for fd in self.descriptors]


def processes() -> frozenset[Process]:
    """Every process of this machine but zombies that are not ours to reap."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdecimal() and (fields := _stat(int(name))):
            state, parent, started = fields[0], fields[1], fields[19]
            if state != "Z" or int(parent) == os.getpid():
                found.add(Process(pid=int(name), started=int(started)))
    return frozenset(found)


def take(*, alone: bool) -> Snapshot:
    """The present state of this machine, as far as a test may change it."""
    things = {("interface", name) for name in os.listdir("/sys/class/net")}
    things |= {("cgroup", directory) for directory in _cgroups()}
    things |= {("device node", str(node)) for node in Path("/dev").glob("qsup*")}
    with open("/proc/self/mounts") as mounts:
        things |= {("mount", line.split()[1]) for line in mounts}
    return Snapshot(processes=processes(), things=frozenset(things), descriptors=frozenset(_descriptors()), alone=alone)


def left(before: Snapshot, session: Session, root: Path) -> Leftovers:
    """What has come since a snapshot and belongs to this session.

    Args:
        before: taken when the test began.
        session: whose processes are looked for.
        root: the test's directory, below which only files and directories may remain.
    """
    now = take(alone=before.alone)
    ours = [process for process in now.processes - before.processes if _belongs(process.pid, session)]
    if root != session.root:
        ours = [process for process in ours if not _lasts(process.pid)]
    known = dict(before.descriptors)
    things = sorted(now.things - before.things)
    if before.alone:
        things = [thing for thing in things if not _is_strangers(thing, before, session)]
    else:
        things = [thing for thing in things if _is_marked(thing, root)]
    return Leftovers(
        processes=sorted(ours, key=lambda process: process.started),
        things=things + [("file", str(path)) for path in _special_files(root)],
        descriptors=[f"{fd} -> {target}" for fd, target in sorted(now.descriptors) if fd not in known],
    )


def remove(kind: str, name: str, session: Session) -> None:
    """Remove one thing that a test left; what cannot be removed, or may be another daemon's, has been named anyway."""
    with contextlib.suppress(OSError):
        if kind == "interface" and name.startswith("qs") and _is_named(name, session.root):
            subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True, timeout=10)
        elif kind == "mount":
            subprocess.run(["umount", "--lazy", name], check=False, capture_output=True, timeout=10)
        elif kind == "cgroup":
            os.rmdir(name)
        elif kind in {"device node", "file"}:
            os.unlink(name)


def clear(before: Snapshot, session: Session, root: Path, *, seconds: float = GRACE) -> list[str]:
    """Give what is ending its time to end, then end and remove the rest; return it in words."""
    found = left(before, session, root)

    def nothing_left() -> bool:
        nonlocal found
        # what only waits for the garbage collector warns as it goes, and warnings are errors
        gc.collect()
        found = left(before, session, root)
        return not found

    if found:
        came_true(nothing_left, seconds=seconds)
    words = found.words()
    for process in found.processes:
        process.end()
    for kind, name in reversed(found.things):
        remove(kind, name, session)
    return words


@contextlib.contextmanager
def machine(*, alone: bool) -> Iterator[None]:
    """Hold this machine with the other real tests that run on it, whatever session they are of, or without any.

    Args:
        alone: for what measures times, makes network interfaces, or looks at what is no one test's.
    """
    with _locked("turn", fcntl.LOCK_EX):  # who waits to be alone lets nobody else in
        held = contextlib.ExitStack()
        held.enter_context(_locked("machine", fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
    with held:
        yield


@contextlib.contextmanager
def _locked(name: str, how: int) -> Iterator[None]:
    """Hold a lock on a directory in the cache, which anyone may lock who may read it."""
    directory = os.open(cache_directory() / "locks" / name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, how)
        yield
    finally:
        os.close(directory)


def _belongs(pid: int, session: Session) -> bool:
    """Whether a process descends from us, carries our mark, or names or has open something below our directory."""
    if _descends(pid) or f"{MARK}={session.mark}".encode() in _read(pid, "environ").split(b"\0"):
        return True
    links = [f"/proc/{pid}/cwd"]
    with contextlib.suppress(OSError):
        links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    root = str(session.root)
    return (
        _is_forgotten_probe(pid)
        or root.encode() in _read(pid, "cmdline")
        or any(root in _target(link) for link in links)
    )


def _lasts(pid: int) -> bool:
    return f"{LASTING}=1".encode() in _read(pid, "environ").split(b"\0")


def _is_forgotten_probe(pid: int) -> bool:
    """Whether it is a QEMU without a machine whose daemon has gone: it bears no mark, and no test may leave one."""
    fields = _stat(pid)
    return bool(fields) and fields[1] == "1" and b"\0-machine\0none,accel=" in _read(pid, "cmdline")


def _is_named(interface: str, root: Path) -> bool:
    """Whether a unit or a run record below a directory names an interface; a tap goes with the QEMU that holds it."""
    word = re.compile(rf"(?<![\w.-]){re.escape(interface)}(?![\w.-])")
    files = (path for path in root.rglob("*") if path.suffix in {".toml", ".json"} and path.is_file())
    return any(word.search(path.read_text(errors="replace")) for path in files)


def _is_marked(thing: tuple[str, str], root: Path) -> bool:
    """Whether a thing shows that it is of a test's directory, among what other tests make and remove meanwhile."""
    kind, name = thing
    if kind == "interface":
        return _is_named(name, root)
    if kind == "mount":
        return Path(name).is_relative_to(root)
    tags = {tag_of(directory) for directory in (root, *root.rglob("*")) if directory.is_dir()}
    return kind == "cgroup" and not tags.isdisjoint(Path(name).parts)


def _is_strangers(thing: tuple[str, str], before: Snapshot, session: Session) -> bool:
    """Whether a thing is of a daemon that is not of this session, so that one may be tried beside a test run."""
    kind, name = thing
    if kind == "mount":
        return not Path(name).is_relative_to(session.root)
    if kind != "cgroup":
        return False
    parts = Path(name).parts
    daemons = next(index for index, part in enumerate(parts) if "qsup" in part)
    top = Path(*parts[: daemons + 1])
    return ("cgroup", str(top)) in before.things or any(
        not _belongs(pid, session) for listing in top.rglob("cgroup.procs") for pid in _pids(listing)
    )


def _pids(listing: Path) -> list[int]:
    try:
        return [int(pid) for pid in listing.read_text().split()]
    except OSError:
        return []


def _descends(pid: int) -> bool:
    while pid > 1:
        fields = _stat(pid)
        if not fields:
            return False
        pid = int(fields[1])
        if pid == os.getpid():
            return True
    return False


def _stat(pid: int) -> list[str]:
    """The fields of proc(5)'s stat from the third (the state) on; none when the process is gone."""
    return _read(pid, "stat").rpartition(b")")[2].decode().split()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _cgroups() -> Iterator[str]:
    for directory, children, _ in os.walk("/sys/fs/cgroup"):
        yield from (f"{directory}/{child}" for child in children if "qsup" in f"{directory}/{child}")


def _descriptors() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc/self/fd"):
        # the listing's own descriptor is closed by now
        if target := _target(f"/proc/self/fd/{name}"):
            yield int(name), target


def _special_files(root: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(root):
        for path in (Path(directory, name) for name in names):
            if not stat.S_ISREG(mode := path.lstat().st_mode) and not stat.S_ISLNK(mode):
                yield path
