"""What every fault must leave alone, and what is said of it.

Decides: what "nothing else was touched" means.
Must not: cause a fault; tests do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qsup.errors import QsupError
from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit

MEBIBYTE = 1 << 20
BYSTANDER = "bystander"


@contextmanager
def bystander(daemon: Daemon, emulator: Emulator, rom: Path, *, growth: int = 16 * MEBIBYTE) -> Iterator[None]:
    """A VM beside, which must not notice anything; of whatever else was tried, nothing is left.

    Args:
        growth: bytes by which the daemon's memory may grow meanwhile.
    """
    daemon.unit(BYSTANDER, rom_unit(emulator, rom))
    before, process, memory = daemon.do(BYSTANDER, "start"), daemon.pid, daemon.memory()
    yield
    assert daemon.is_alive()
    assert daemon.pid == process
    after = daemon.view(BYSTANDER)
    assert [after[key] for key in ("pid", "substate", "since")] == [before[key] for key in ("pid", "substate", "since")]
    assert daemon.remains() == [BYSTANDER]
    assert daemon.memory() - memory < growth


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
