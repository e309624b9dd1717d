"""One life of a VM: what exists from the spawn of QEMU until its end has been cleaned up.

Decides: what belongs to a life and is given back with it.
Must not: change, but for its hardware; what else moves is in the driver.
"""

from __future__ import annotations

import re
from contextlib import AsyncExitStack

from attrs import frozen

from qsup.host.cgroup import Cgroup
from qsup.host.output import Output
from qsup.host.process import Process
from qsup.host.records import RunRecord
from qsup.host.rundir import InstanceDirectory
from qsup.instance.hardware import Hardware
from qsup.instance.helpers import Helpers
from qsup.instance.limiting import Limiting
from qsup.instance.pinning import Pinning
from qsup.instance.record import Running
from qsup.plan.spec import PlanSummary
from qsup.qmp.connection import Monitor
from qsup.unit.model import Unit

_PROGRAM = re.compile(r"^\S*qemu-system-\S+: ")
_HARMLESS = re.compile(r": (warning|info): ")
_WORDS_MAX = 300


@frozen(kw_only=True, eq=False)
class Life:
    """One life.

    Args:
        number: grows by one with each life of this VM in this daemon.
        hardware: what it consists of, which changes.
        helpers: programs that serve its devices.
        monitor: the connection at birth, ``None`` when an adopted VM could not be reached.
        launched: its guest has been let run, by whichever daemon.
        pinning: its threads, and the CPUs that they run on.
        limiting: what it may take of the host.
        output_start: where in QEMU's output this life begins.
        console_start: where in the console's output this life begins.
        resources: closed after QEMU's end: claims, cgroup, sockets, record.
        oom_kills: those that its cgroup had counted before this life was watched.
    """

    number: int
    hardware: Hardware
    process: Process
    directory: InstanceDirectory
    record: RunRecord
    running: Running
    output: Output
    cgroup: Cgroup
    helpers: Helpers
    monitor: Monitor | None
    launched: bool
    pinning: Pinning
    limiting: Limiting
    output_start: int
    console_start: int
    resources: AsyncExitStack
    oom_kills: int = 0

    def leave(self) -> None:
        """Close what is open of it here, and leave the VM, with all that it holds, to whoever finds it."""
        self.process.pidfd.close()
        self.output.close()
        self.directory.close()

    def was_oom_killed(self) -> bool:
        """Whether the SIGKILL that ended it was the kernel's, because memory ran out; to be asked once."""
        return self.cgroup.was_oom_killed(self.oom_kills)

    def last_words(self) -> str:
        """The last line QEMU wrote, without its program name."""
        self.output.drain()
        return last_words(self.output.text_since(self.output_start))

    def output_bytes(self) -> bytes:
        """What QEMU has printed in this life, as far as it is kept."""
        self.output.drain()
        return self.output.feed.ring.since(self.output_start)

    @property
    def unit(self) -> Unit:
        """What is running, whatever the files say now."""
        return self.hardware.unit

    @property
    def summary(self) -> PlanSummary:
        """What is planned of it."""
        return self.hardware.summary


def last_words(text: str) -> str:
    """The last line of what QEMU wrote that is more than a warning, without its program name, or ``""``."""
    lines = [line for line in text.splitlines() if line.strip() and not _HARMLESS.search(line)]
    return _PROGRAM.sub("", lines[-1].strip())[:_WORDS_MAX] if lines else ""
