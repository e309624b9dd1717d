"""Where the daemon's files are: its layout, its lock, and the run directory of each VM.

Decides: the three layouts (``--root DIR``, ``--user``, system), the rights of each directory, that one daemon at a time
has them, and how a socket in a run directory is bound whatever the length of its path.
Must not: decide what a record means.

Sources: the XDG Base Directory Specification, file-hierarchy(7), flock(2), unix(7) for the 107 bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import structlog
from attrs import frozen

from qsup.errors import AlreadyRunning, ConfigError, HostError, StateFileError, from_oserror
from qsup.host import codec, proc
from qsup.host.opening import open_regular
from qsup.host.records import RunRecord

_log = structlog.get_logger()

__all__ = ("SOCKET_PATH_LIMIT", "DaemonLock", "InstanceDirectory", "Layout", "RunRecord")

#: What ``sun_path`` holds, without its final zero byte.
SOCKET_PATH_LIMIT = 107


@frozen(kw_only=True)
class Layout:
    """The directories of one daemon.

    Args:
        unit_dirs: unit files, from low to high priority; the last is where a user writes them.
        state: what outlives a reboot: identities, variables, the operation journal.
        run: what does not: sockets, run records, the lock.
        log: what QEMU printed.
        socket: the API's socket.
        pools: directories that images may be in; a relative path resolves in the first.
    """

    unit_dirs: tuple[Path, ...]
    state: Path
    run: Path
    log: Path
    socket: Path
    pools: tuple[Path, ...]

    @classmethod
    def for_root(cls, directory: Path) -> Layout:
        """Everything under one directory, which is the pool too: for trials and tests."""
        top = directory.absolute()
        run = top / "run"
        return cls(
            unit_dirs=(run / "units", top / "units"),
            state=top / "state",
            run=run,
            log=top / "log",
            socket=run / "api.sock",
            pools=(top,),
        )

    @classmethod
    def for_user(cls, env: Mapping[str, str]) -> Layout:
        """The caller's own, in the XDG directories.

        Raises:
            ConfigError: neither ``HOME`` nor what stands in for it is set.
        """
        config = _xdg(env, "XDG_CONFIG_HOME", ".config") / "qsup"
        data = _xdg(env, "XDG_DATA_HOME", ".local/share") / "qsup"
        state = _xdg(env, "XDG_STATE_HOME", ".local/state") / "qsup"
        # the runtime directory vanishes at logout, when VMs run on, and outside a login session there is none: what is
        # to be found again is kept elsewhere
        run = state / "run"
        runtime = _absolute(env.get("XDG_RUNTIME_DIR", ""))
        return cls(
            unit_dirs=(data / "units", (runtime / "qsup" if runtime else run) / "units", config / "units"),
            state=state,
            run=run,
            log=state / "log",
            socket=run / "api.sock",
            pools=(data / "images",),
        )

    @classmethod
    def for_system(cls) -> Layout:
        """The machine's, for root; unit directories in systemd's order."""
        return cls(
            unit_dirs=tuple(map(Path, ("/usr/lib/qsup/units", "/run/qsup/units", "/etc/qsup/units"))),
            state=Path("/var/lib/qsup"),
            run=Path("/run/qsup"),
            log=Path("/var/log/qsup"),
            socket=Path("/run/qsup/api.sock"),
            pools=(Path("/var/lib/qsup/images"),),
        )

    @property
    def instances(self) -> Path:
        """The run directories of the VMs, one each."""
        return self.run / "instances"

    @property
    def consoles(self) -> Path:
        """What the VMs wrote to their consoles, a file each; see `console_log`."""
        return self.run / "console"

    def console_log(self, name: str) -> Path:
        """Where the history of a VM's console is kept."""
        return self.consoles / f"{name}.log"

    def console_names(self) -> list[str]:
        """The VMs that have such a history."""
        files = os.listdir(self.consoles) if self.consoles.exists() else ()
        return sorted({file.removesuffix(".1").removesuffix(".log") for file in files})

    def instance(self, name: str) -> InstanceDirectory:
        """The run directory of one VM, made when it is not there."""
        return InstanceDirectory.open(self.instances, name)

    def instance_names(self) -> list[str]:
        """The VMs that have a run directory: those that may be running."""
        return sorted(os.listdir(self.instances)) if self.instances.exists() else []

    def has_instance(self, name: str) -> bool:
        """Whether there is anything in the place of a VM's run directory."""
        return os.path.lexists(self.instances / name)

    @property
    def tag(self) -> str:
        """What this daemon's own things on the host are named after; see `tag_of`."""
        return tag_of(self.run)

    def prepare(self) -> DaemonLock:
        """Make the directories and take the lock that lets one daemon at a time work in them.

        What a former boot left in `run` is removed, as far as that is certain. A run directory on tmpfs is empty then
        anyway.

        Raises:
            ConfigError: the socket's path is too long, or a directory belongs to another user.
            AlreadyRunning: another daemon holds the lock; it is named.
            HostError: a directory cannot be made.
        """
        self.check_socket()
        try:
            for directory, mode in ((self.state, 0o700), (self.run, 0o755), (self.log, 0o700)):
                _make_own(directory, mode)
            self.unit_dirs[-1].mkdir(parents=True, exist_ok=True)
            for pool in self.pools:
                pool.mkdir(mode=0o700, parents=True, exist_ok=True)
            # both: whoever empties the run directory lets no second daemon write what outlives it
            lock = DaemonLock.take(self.state / "daemon.lock", self.run / "daemon.lock")
            self._forget_former_boot()
            _make_own(self.instances, 0o700)
            _make_own(self.consoles, 0o700)
        except OSError as error:
            raise from_oserror(error, f"could not prepare {error.filename or self.run}") from error
        return lock

    def check_socket(self) -> None:
        """Refuse a socket that clients could not connect to, before anything is made."""
        length = len(os.fsencode(self.socket))
        if length > SOCKET_PATH_LIMIT:
            raise ConfigError(
                f"the socket path {self.socket} has {length} bytes; Unix sockets allow {SOCKET_PATH_LIMIT}",
                hint="use a shorter directory, or --socket PATH",
            )

    def _forget_former_boot(self) -> None:
        """Remove what says itself that it is of another boot; what cannot be read is left to whoever looks at it."""
        for name in self.instance_names():
            try:
                with closing(self.instance(name)) as directory:
                    if directory.is_of_former_boot():
                        directory.remove()
                        _log.info("removed what a former boot left", instance=name)
            except HostError as error:
                _log.warning("a run directory is left as it is", instance=name, why=str(error))


def tag_of(run: Path) -> str:
    """``qsup`` for the system's daemon, else ``qsup-`` and eight digits that differ between daemons.

    Args:
        run: the daemon's run directory, by whatever links it is reached: what one daemon made, the next gives back.
    """
    real = os.path.realpath(run)
    if real == os.path.realpath("/run/qsup"):
        return "qsup"
    return f"qsup-{hashlib.sha256(os.fsencode(real)).hexdigest()[:8]}"


def _absolute(text: str) -> Path | None:
    """The XDG specification: a relative path in such a variable is invalid and ignored."""
    return Path(text) if text.startswith("/") else None


def _xdg(env: Mapping[str, str], variable: str, below_home: str) -> Path:
    given, home = _absolute(env.get(variable, "")), _absolute(env.get("HOME", ""))
    if given:
        return given
    if home:
        return home / below_home
    raise ConfigError(f"neither {variable} nor HOME is set", hint="set HOME, or use --root DIR")


def _make_own(directory: Path, mode: int) -> None:
    directory.mkdir(mode=mode, parents=True, exist_ok=True)
    owner = directory.stat().st_uid
    if owner not in (0, os.geteuid()):
        raise ConfigError(f"{directory} belongs to uid {owner}, who could replace what is in it")
    if owner == os.geteuid():
        directory.chmod(mode)


class DaemonLock:
    """The right to work in a set of directories, held until `close` or the daemon's end, however it comes."""

    def __init__(self, fds: list[int]) -> None:
        self._fds = fds

    @classmethod
    def take(cls, *paths: Path) -> DaemonLock:
        """Take all of it, or nothing, without waiting.

        Raises:
            AlreadyRunning: ``details["pid"]`` holds it.
            OSError: the file cannot be opened.
        """
        lock = cls([])
        try:
            for path in paths:
                lock._add(path)
        except BaseException:
            lock.close()
            raise
        return lock

    def _add(self, path: Path) -> None:
        fd = open_regular(path, os.O_RDWR | os.O_CREAT)
        self._fds.append(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            raise AlreadyRunning(
                f"another qsupd (pid {holder or 'unknown'}) works in {path.parent}", pid=holder
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        """Give it up."""
        while self._fds:
            os.close(self._fds.pop())


class InstanceDirectory:
    """The run directory of one VM, ``run/instances/NAME``, 0700: its sockets, its output FIFO, its run record.

    It holds a descriptor of the directory until `close` or `remove`.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def open(cls, parent: Path, name: str) -> InstanceDirectory:
        """Open it, and make it when it is not there.

        Raises:
            ConfigError: the name is no file name, or something else stands in its place.
            HostError: the kernel refused.
        """
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ConfigError(f"{name!r} cannot be the name of a directory")
        path = parent / name
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise from_oserror(error, f"could not open the run directory {path}") from error
        return cls(path, fd)

    def address(self, name: str) -> str:
        """A path to an entry that fits into ``sun_path`` whatever the directory's own; valid until it is closed."""
        return f"/proc/self/fd/{self._fd}/{name}"

    def bind_listener(self, name: str, *, backlog: int = 1) -> int:
        """A listening Unix stream socket for QEMU to take over; what was there under that name is removed.

        Returns:
            its descriptor, close-on-exec, which the caller closes once QEMU has it.

        Raises:
            HostError: the kernel refused.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            (self.path / name).unlink(missing_ok=True)
            listener.bind(self.address(name))
            os.chmod(self.address(name), 0o600)
            listener.listen(backlog)
        except OSError as error:
            listener.close()
            raise from_oserror(error, f"could not listen on {self.path / name}") from error
        return listener.detach()

    def unlink(self, name: str) -> None:
        """Remove an entry, if it is there; `HostError`."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise from_oserror(error, f"could not remove {self.path / name}") from error

    def write_record(self, record: RunRecord) -> None:
        """Write the run record. It survives the daemon, and need not survive the machine.

        Raises:
            NoSpaceError, HostError: see `qsup.host.atomic.write_reserved`; once it has been written, want of room is
                no reason any more.
        """
        codec.save_for_boot(record, self.path / "record.json")

    def read_record(self) -> RunRecord:
        """Read the run record.

        Raises:
            StateFileError: it is missing (``details["missing"]``), unreadable, or another VM's; it is left as it is.
        """
        path = self.path / "record.json"
        record = codec.load(RunRecord, path)
        if record.name != self.path.name:
            raise StateFileError(f"{path} is the record of {record.name!r}", path=str(path))
        return record

    def is_of_former_boot(self) -> bool:
        """Whether it is of a VM that ended with an earlier boot: its record says so, and nobody has its output open.

        Raises:
            StateFileError: see `read_record`; then nothing is known.
        """
        return self.read_record().boot_id != proc.boot_id() and not self.holders("output")

    def holders(self, name: str) -> tuple[int, ...]:
        """The pids, other than our own, that have an entry open: of the output's FIFO, the QEMU that writes to it.

        That finds what a dying daemon started and did not come to record. It reads all of /proc: not for everyday use.
        """
        try:
            status = os.stat(self.path / name)
        except FileNotFoundError:
            return ()
        return tuple(proc.holders(status.st_dev, status.st_ino))

    def remove(self) -> None:
        """Remove the directory with everything in it, and give up the descriptor."""
        self.close()
        try:
            shutil.rmtree(self.path)
        except FileNotFoundError:
            pass  # somebody was faster
        except OSError as error:
            raise from_oserror(error, f"could not remove {self.path}") from error

    def close(self) -> None:
        """Give up the descriptor; the directory stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
