"""What every fault must leave alone, and what is said of it.

Decides: what "nothing else was touched" means.
Must not: cause a fault; tests do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qsup.errors import QsupError
from tests.faults.trial import Promise
from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit

MEBIBYTE = 1 << 20
BYSTANDER = "bystander"


def forget_peak(daemon: Daemon) -> int:
    """Count the peak of the daemon's memory from now on (proc(5): clear_refs); what it holds now, in bytes."""
    Path(f"/proc/{daemon.pid}/clear_refs").write_text("5")
    return peak(daemon)


def peak(daemon: Daemon) -> int:
    """The most memory that it held, in bytes."""
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    return int(kilobytes) * 1024


@contextmanager
def bystander(
    daemon: Daemon,
    emulator: Emulator,
    rom: Path,
    *,
    growth: int = 16 * MEBIBYTE,
    promise: Promise | None = None,
) -> Iterator[None]:
    """A VM beside, which must not notice anything; of whatever else was tried, nothing is left.

    Args:
        growth: bytes by which the daemon's memory may have grown in the end.
        promise: where it is told how much it grew; then at no moment it may have grown by more.
    """
    daemon.unit(BYSTANDER, rom_unit(emulator, rom))
    before, process, memory = daemon.do(BYSTANDER, "start"), daemon.pid, forget_peak(daemon)
    yield
    assert daemon.is_alive()
    assert daemon.pid == process
    after = daemon.view(BYSTANDER)
    assert [after[key] for key in ("pid", "substate", "since")] == [before[key] for key in ("pid", "substate", "since")]
    assert daemon.remains() == [BYSTANDER]
    if promise is None:
        assert daemon.memory() - memory < growth
    else:
        promise.kept("memory grew", (peak(daemon) - memory) / MEBIBYTE, within=growth / MEBIBYTE, unit="MiB")


def refusal(daemon: Daemon, name: str, verb: str = "start") -> QsupError | dict[str, Any]:
    """Why a request is refused at once, or the error of its operation."""
    try:
        operation = daemon.power(name, verb)
    except QsupError as error:
        return error
    assert operation["state"] == "failed", operation
    told: dict[str, Any] = operation["error"]
    return told


def words(refused: QsupError | dict[str, Any]) -> str:
    """What a refusal says, its hint included."""
    if isinstance(refused, QsupError):
        return f"{refused.message}; {refused.hint}"
    return f"{refused['detail']}; {refused.get('hint', '')}"
