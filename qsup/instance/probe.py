"""Learning what a QEMU binary can do, once for each binary.

Decides: which binary a name means, when what is known of it is still true, and what is said when it cannot be run.
Must not: know which facts there are (`qsup.qmp.capabilities`), or start a VM.

A binary is known by its path, its time of modification and its size. What it said is kept on disk; a file that cannot
be read, or that another qsup wrote, only costs asking again (0.1 to 0.2 s).
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar, Final

import structlog
import trio
from attrs import define, field, frozen

from qsup.errors import HostError, MonitorError, StartError, StateFileError
from qsup.host import codec, process
from qsup.host.output import last_lines
from qsup.host.pidfd import ExitStatus
from qsup.host.process import Credentials, Process
from qsup.plan.spec import Capabilities
from qsup.qmp.capabilities import REVISION, query_capabilities
from qsup.qmp.dial import start_monitor

_log = structlog.get_logger()

#: Seconds for the whole of one probe.
PROBE_TIMEOUT: Final = 30.0
_END_TIMEOUT = 1.0  # seconds for a binary whose connection ended to end, too
_REAP_TIMEOUT = 5.0  # seconds for one that was sent SIGKILL to go
_OUTPUT_LIMIT = 64 << 10  # what a pipe holds by default (pipe(7))
_WORDS_MAX = 500  # characters of a binary's last line that a message holds
_ARGUMENTS = ("-machine", "none,accel=tcg:kvm", "-nodefaults", "-no-user-config", "-display", "none", "-S")
_EMULATOR_NAME = re.compile(r"qemu-system-(\w+)")
_EMULATOR_HINT = "[machine] emulator takes a QEMU system emulator, such as qemu-system-x86_64"
# Debian's packages, and what they provide (apt-cache show)
_PACKAGES = {
    "qemu-system-x86": ("x86_64", "i386"),
    "qemu-system-arm": ("aarch64", "arm"),
    "qemu-system-ppc": ("ppc", "ppc64"),
    "qemu-system-mips": ("mips", "mipsel", "mips64", "mips64el"),
    "qemu-system-sparc": ("sparc", "sparc64"),
    "qemu-system-misc": (
        *("alpha", "avr", "cris", "hppa", "loongarch64", "m68k", "microblaze", "microblazeel", "nios2", "or1k"),
        *("riscv32", "riscv64", "rx", "s390x", "sh4", "sh4eb", "tricore", "xtensa", "xtensaeb"),
    ),
}


@frozen(kw_only=True)
class Binary:
    """One QEMU binary as it is now."""

    path: str
    mtime_ns: int
    size: int


@frozen(kw_only=True)
class ProbeRecord:
    """What is kept on disk of a probe."""

    SCHEMA: ClassVar[int] = 1
    UPGRADES: ClassVar[codec.Upgrades] = {}

    revision: int
    mtime_ns: int
    size: int
    capabilities: Capabilities


@define
class _Run:
    """A probe under way, which others who want the same wait for."""

    done: trio.Event = field(factory=trio.Event)
    result: Capabilities | None = None
    error: StartError | None = None


def find_emulator(name: str, *, path: str | None = None) -> Binary:
    """The binary that a unit's ``machine.emulator`` means.

    Args:
        name: a name to look up, or an absolute path.
        path: directories to look in, as in ``PATH``; ``None`` for the daemon's own.

    Raises:
        StartError: there is none, or it cannot be executed; the hint names Debian's package of a known one.
    """
    if "/" in name and not os.path.isabs(name):
        raise StartError(f"emulator {name!r} is neither a name to look up in PATH nor an absolute path")
    found = name if os.path.isabs(name) else shutil.which(name, path=path)
    if found is None:
        raise StartError(f"emulator {name!r} was not found in PATH", hint=_package_hint(name))
    try:
        status = os.stat(found)
    except OSError as error:
        raise StartError(f"emulator {name!r}: {error.strerror}", hint=_package_hint(name)) from error
    return Binary(path=found, mtime_ns=status.st_mtime_ns, size=status.st_size)


def _package_hint(name: str) -> str:
    match = _EMULATOR_NAME.fullmatch(os.path.basename(name))
    package = next((each for each, targets in _PACKAGES.items() if match and match[1] in targets), "")
    return f"Debian has it in the package {package}" if package else _EMULATOR_HINT


class Prober:
    """Answers what binaries can do, from memory, from disk, or by running them.

    Args:
        cache: the directory of what was learnt; made when absent.
        ask: runs a binary, by its path; `probe_binary`.
    """

    def __init__(self, cache: Path, *, ask: Callable[[str], Awaitable[Capabilities]] | None = None) -> None:
        self._cache = cache
        self._ask = ask or probe_binary
        self._known: dict[Binary, Capabilities] = {}
        self._runs: dict[Binary, _Run] = {}

    async def probe(self, emulator: str) -> Capabilities:
        """What the binary can do. Callers who ask for the same at the same time share one run.

        Args:
            emulator: as the unit says it; see `find_emulator`.

        Raises:
            StartError: there is no such binary, or it did not answer as a QEMU does.
        """
        await trio.lowlevel.checkpoint()
        binary = find_emulator(emulator)
        while binary not in self._known:
            run = self._runs.get(binary)
            if run is None:
                self._known[binary] = self._load(binary) or await self._run_shared(binary)
                continue
            await run.done.wait()
            if run.error is not None:
                raise StartError(run.error.message, hint=run.error.hint) from run.error
            # neither result nor error: whoever ran it was cancelled, so it is this caller's turn
        return self._known[binary]

    async def _run_shared(self, binary: Binary) -> Capabilities:
        run = self._runs[binary] = _Run()
        try:
            run.result = await self._ask(binary.path)
        except StartError as error:
            run.error = error
            raise
        finally:
            del self._runs[binary]
            run.done.set()
        self._save(binary, run.result)
        return run.result

    def _file(self, binary: Binary) -> Path:
        return self._cache / f"{hashlib.sha256(os.fsencode(binary.path)).hexdigest()[:16]}.json"

    def _load(self, binary: Binary) -> Capabilities | None:
        path = self._file(binary)
        try:
            record = codec.load(ProbeRecord, path)
        except StateFileError as error:
            if not error.details.get("missing"):
                _log.warning("probe record not used", reason=error.message)
            return None
        kept = (record.capabilities.emulator, record.revision, record.mtime_ns, record.size)
        return record.capabilities if kept == (binary.path, REVISION, binary.mtime_ns, binary.size) else None

    def _save(self, binary: Binary, capabilities: Capabilities) -> None:
        record = ProbeRecord(revision=REVISION, mtime_ns=binary.mtime_ns, size=binary.size, capabilities=capabilities)
        try:
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            codec.save(record, self._file(binary))
        except (HostError, OSError) as error:
            # a full disk costs the next daemon a probe, and this one nothing
            _log.warning("probe record not written", emulator=binary.path, reason=str(error))


async def probe_binary(path: str, *, timeout: float = PROBE_TIMEOUT) -> Capabilities:
    """Run a binary without a machine, as nobody where this is root, and ask it.

    Args:
        timeout: seconds for the whole of it.

    Raises:
        StartError: it could not be run, did not speak QMP, or took too long; the message ends with its own last words.
    """
    ours, theirs = socket.socketpair()
    output, output_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        chardev = ("-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control")
        child = await process.spawn(
            (path, *_ARGUMENTS, *chardev),
            fds=(theirs.fileno(),),
            output_fd=output_fd,
            credentials=_nobody(),
            mortal=True,
        )
        theirs.close()
        try:
            with trio.fail_after(timeout):
                return await _converse(ours, path, timeout)
        except (MonitorError, trio.TooSlowError) as error:
            said = await _last_words(child, output)
            if child.status == ExitStatus(kind="code", value=0):
                # a QEMU ends well only when it is told to, and nobody did
                raise StartError(f"{path} is no QEMU system emulator", hint=_EMULATOR_HINT) from error
            hint = "" if _EMULATOR_NAME.fullmatch(os.path.basename(path)) else _EMULATOR_HINT
            reason = said or (str(error) if isinstance(error, MonitorError) else f"it took over {timeout:g} s")
            raise StartError(f"could not learn what {path} can do: {reason}", hint=hint) from error
        finally:
            with trio.move_on_after(_REAP_TIMEOUT, shield=True):
                child.send_signal(signal.SIGKILL)
                await child.wait_exit()
            child.pidfd.close()
    finally:
        ours.close()
        theirs.close()
        os.close(output)
        os.close(output_fd)


async def _converse(stream: socket.socket, path: str, timeout: float) -> Capabilities:
    result: Capabilities | MonitorError
    async with trio.open_nursery() as nursery:
        try:
            monitor = await start_monitor(nursery, stream, name="", timeout=timeout)
            result = await query_capabilities(monitor, path, timeout=timeout)
        except MonitorError as error:  # kept, so that the nursery does not wrap it in a group
            result = error
        nursery.cancel_scope.cancel()
    if isinstance(result, MonitorError):
        raise result
    return result


async def _last_words(child: Process, output: int) -> str:
    """What a binary that ended by itself printed last."""
    with trio.move_on_after(_END_TIMEOUT) as scope:
        await child.wait_exit()
    if scope.cancelled_caught:
        return ""
    try:
        lines = last_lines(os.read(output, _OUTPUT_LIMIT), 1)
    except BlockingIOError:
        lines = []
    return lines[0][:_WORDS_MAX] if lines else child.status.describe() if child.status else ""


def _nobody() -> Credentials | None:
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return Credentials(uid=entry.pw_uid, gid=entry.pw_gid)
