"""One conversation in a process of its own, whose memory is measured: ``python -m tests.qmp.measured``.

Decides: what counts as growth: the highest resident size since the connection was made, less the size then.
Must not: hold an expectation.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio

from qsup.errors import QsupError
from qsup.qmp.agent import GuestAgent
from qsup.qmp.connection import MAX_LARGE_REPLY
from qsup.qmp.dial import start_monitor

TIMEOUT = 20.0


def measure(kind: str, place: str, *calls: str, fds: Sequence[int] = (), timeout: float = TIMEOUT) -> dict[str, Any]:
    """Run this module in a child.

    Args:
        kind: ``monitor``, ``raw monitor`` (answers may be large) or ``agent``.
        place: the number of a connected descriptor, or the path of an agent's socket.
        calls: the commands to execute one after the other.
        fds: descriptors to inherit.
        timeout: seconds for each call.

    Returns:
        ``outcomes``: ``answered`` or an error's code for each call; ``grown``: bytes; ``statistics`` of a monitor.
    """
    command = [sys.executable, "-m", "tests.qmp.measured", kind, place, str(timeout), *calls]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        pass_fds=fds,
        check=True,
        stdout=subprocess.PIPE,
        timeout=TIMEOUT * (len(calls) + 1),
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _memory(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _forget_highest() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


async def _execute(execute: Callable[..., Any], calls: list[str], timeout: float) -> dict[str, Any]:
    _forget_highest()
    before = _memory("VmRSS")
    outcomes = []
    for call in calls:
        try:
            await execute(call, timeout=timeout)
            outcomes.append("answered")
        except QsupError as error:
            outcomes.append(error.code)
    return {"outcomes": outcomes, "grown": _memory("VmHWM") - before}


async def _main(kind: str, place: str, timeout: float, calls: list[str]) -> dict[str, Any]:
    if kind == "agent":
        return await _execute(GuestAgent(Path(place), name="web").execute, calls, timeout)
    async with trio.open_nursery() as nursery:
        stream = socket.socket(fileno=int(place))
        monitor = await start_monitor(nursery, stream, name="web", timeout=TIMEOUT)
        execute = partial(monitor.execute, max_reply=MAX_LARGE_REPLY) if kind == "raw monitor" else monitor.execute
        result = await _execute(execute, calls, timeout)
        statistics = monitor.statistics()
        await monitor.aclose()
    return result | {"events": statistics.events, "lost": statistics.events_lost}


if __name__ == "__main__":
    _, kind, place, timeout, *calls = sys.argv
    print(json.dumps(trio.run(_main, kind, place, float(timeout), calls)))
