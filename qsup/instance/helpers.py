"""Programs that serve devices of a VM, supervised with it: each starts before its device and ends with it.

Decides: that the unexpected end of one is told, with its last words, and that none is left behind.
Must not: know what a program does, or start it again: a vhost-user device of QEMU's does not connect a second time.

A program is connected before it is started, and ends by itself when that connection does. So one that a dying daemon
started and did not come to record ends as soon as nobody has the other end: neither that daemon nor QEMU.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog
import trio
from attrs import define, field

from qsup.errors import HostError, from_oserror
from qsup.host import process
from qsup.host.cgroup import Cgroup
from qsup.host.opening import open_fifo
from qsup.host.output import last_lines
from qsup.host.process import Process
from qsup.host.rundir import InstanceDirectory
from qsup.instance.record import HelperRecord
from qsup.plan.pinning import Pins

_log = structlog.get_logger()

#: Seconds after the end of a program in which the VM's own may turn out to be why.
_GRACE = 0.5
#: Seconds for one to end after SIGTERM, and after SIGKILL.
_END_TIMEOUT, _KILL_TIMEOUT = 2.0, 5.0
#: Seconds for the end of one to be seen that QEMU has seen already.
_SEEN_WITHIN = 0.5
#: What has a device work again whose other end is gone for good; without ``--runtime`` its unit would lose it.
ATTACH_ANEW = "detach it with --runtime, and apply attaches it again"
_OUTPUT_LIMIT = 64 << 10
_WORDS_MAX = 300

#: Takes an entry of the unit and what happened to the program that serves it.
Tell = Callable[[str, str], None]


@define(eq=False)
class _Helper:
    """One program.

    Attributes:
        output: reads what it printed last; ``None``: nothing does.
        ended: set by whoever watches it.
        dismissed: its end is wanted.
    """

    entry: str
    process: Process
    output: int | None
    ended: trio.Event = field(factory=trio.Event)
    watched: bool = False
    dismissed: bool = False


class Helpers:
    """The programs of one life.

    Args:
        directory: the VM's run directory.
        pins: where the VM's threads belong now, and so they; ``None`` while that is not known.

    Attributes:
        troubles: what is said of those that have ended though they were needed, by entry.
        cgroup: the VM's, which those that come later go into; ``None`` before QEMU is in it.
    """

    def __init__(self, directory: InstanceDirectory, pins: Callable[[], Pins | None] = Pins) -> None:
        self.troubles: dict[str, str] = {}
        self.cgroup: Cgroup | None = None
        self._directory = directory
        self._pins = pins
        self._helpers: dict[str, _Helper] = {}
        self._nursery: trio.Nursery | None = None
        self._tell: Tell | None = None

    async def start(self, entry: str, argv: Sequence[str], fds: Sequence[int]) -> None:
        """Start the program that serves an entry of the unit.

        Args:
            fds: descriptors that it inherits, under the same numbers; the caller closes them.

        Raises:
            StartError, HostError: it could not be executed; a failure of its own shows later, see `failure`.
        """
        output = self._open_output(entry)
        try:
            child = await process.spawn(argv, fds=fds, output_fd=output, cpus=(self._pins() or Pins()).of_helpers)
        except BaseException:
            os.close(output)
            raise
        self._add(_Helper(entry, child, output))
        _log.info("helper started", entry=entry, pid=child.pid, program=argv[0])
        if self.cgroup is not None and (reason := await self.cgroup.join(child.pid)):
            _log.warning("a helper runs outside its VM's cgroup", entry=entry, pid=child.pid, reason=reason)

    def adopt(self, records: Iterable[HelperRecord], boot_id: str) -> None:
        """Watch on over those that an earlier daemon started."""
        for record in records:
            child = process.adopt(record.pid, record.start_time, boot_id)
            if child is None:
                self.troubles[record.entry] = _sentence(record.entry, "while no daemon was running")
            else:
                self._add(_Helper(record.entry, child, self._reopen_output(record.entry)))

    def _reopen_output(self, entry: str) -> int | None:
        try:
            return self._open_output(entry)
        except HostError as error:  # the program is worth more than its words
            _log.warning("what a helper prints is lost", entry=entry, why=error.message)
            return None

    def _open_output(self, entry: str) -> int:
        """A FIFO that never blocks who writes to it, and holds the last of that for as long as one end is open."""
        path = self._directory.path / f"{entry}.out"
        try:
            return open_fifo(path)
        except OSError as error:
            raise from_oserror(error, f"could not make {path}") from error

    def _add(self, helper: _Helper) -> None:
        self.troubles.pop(helper.entry, None)
        self._helpers[helper.entry] = helper
        if self._nursery is not None:
            self._begin_watch(helper, self._nursery)

    def _begin_watch(self, helper: _Helper, nursery: trio.Nursery) -> None:
        helper.watched = True
        nursery.start_soon(self._watch, helper)

    def records(self) -> tuple[HelperRecord, ...]:
        """What the next daemon needs to know of them."""
        return tuple(
            HelperRecord(entry=entry, pid=helper.process.pid, start_time=helper.process.start_time)
            for entry, helper in self._helpers.items()
        )

    @property
    def serving(self) -> Mapping[str, int]:
        """Those that are there, by the entries that they serve; each may have started others."""
        alive = {entry: each.process for entry, each in self._helpers.items() if each.process.status is None}
        return {entry: process.pid for entry, process in alive.items()}

    def watch(self, nursery: trio.Nursery, tell: Tell) -> None:
        """From now on the unexpected end of one is told.

        Args:
            nursery: where that is done.
        """
        self._nursery, self._tell = nursery, tell
        for helper in self._helpers.values():
            self._begin_watch(helper, nursery)

    async def _watch(self, helper: _Helper) -> None:
        try:
            status = await helper.process.wait_exit()
        finally:
            helper.watched = False
        helper.ended.set()
        # the connection ends with QEMU, too, whose own end is told otherwise
        await trio.sleep(_GRACE)
        if not helper.dismissed and self._tell is not None:
            how = f"{status.describe()}: {words}" if (words := _words(helper)) else status.describe()
            self.troubles[helper.entry] = _sentence(helper.entry, how)
            self._tell(helper.entry, self.troubles[helper.entry])

    async def failure(self, entry: str = "") -> str:
        """Why one has failed, when QEMU says that a connection has ended; ``""`` when none has.

        Args:
            entry: that it serves, ``""`` for whichever.
        """
        for helper in [each for each in self._helpers.values() if entry in ("", each.entry)]:
            with trio.move_on_after(_SEEN_WITHIN):
                await _wait_exit(helper)
            status = helper.process.status
            if status is not None and not status.success:
                said = process.launch_failure(status, words := _words(helper)) or words
                return f"{helper.entry}: {said or status.describe()}"
        return ""

    def dismiss(self, entry: str) -> None:
        """The end of one is wanted from now on."""
        if entry in self._helpers:
            self._helpers[entry].dismissed = True

    async def end(self, entry: str) -> None:
        """See that the one of an entry is gone, if there is one."""
        self.troubles.pop(entry, None)
        helper = self._helpers.pop(entry, None)
        if helper is None:
            return
        helper.dismissed = True
        for number, seconds in ((signal.SIGTERM, _END_TIMEOUT), (signal.SIGKILL, _KILL_TIMEOUT)):
            helper.process.send_signal(number)
            with trio.move_on_after(seconds):
                await _wait_exit(helper)
                break
        else:
            _log.error("the kernel keeps a helper after SIGKILL", entry=entry, pid=helper.process.pid)
        if not helper.watched:
            await helper.process.aclose()
        if helper.output is not None:
            os.close(helper.output)
        self._directory.unlink(f"{entry}.out")

    async def aclose(self) -> None:
        """End all of them."""
        for entry in list(self._helpers):
            await self.end(entry)


async def _wait_exit(helper: _Helper) -> None:
    if helper.watched:
        await helper.ended.wait()
    else:
        await helper.process.wait_exit()


def _words(helper: _Helper) -> str:
    """The last line that it printed."""
    if helper.output is None:
        return ""
    try:
        said = os.read(helper.output, _OUTPUT_LIMIT)
    except (BlockingIOError, OSError):
        return ""
    return last_lines(said, 1)[0][:_WORDS_MAX]


def _sentence(entry: str, how: str) -> str:
    return f"{entry}: the program that serves it has ended ({how}); {ATTACH_ANEW}"
