"""A real daemon, and things that are no files in place of its VMs' files.

Decides: that nothing of the kind is waited for, followed or believed, and that it costs its VM that file alone.
Must not: wreck what is a file (`tests.real.test_wrecks`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, kill_process
from tests.real.wrecking import TARGET, found, put_directory, put_fifo, put_link, remove, start
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]


def warns(daemon: Daemon, name: str, path: Path) -> bool:
    """Whether a VM's view says what the file costs."""
    told = [warning for warning in daemon.view(name)["warnings"] if str(path) in warning]
    return any("is not kept: " in warning or "is lost: " in warning for warning in told)


#: What may stand in place of a file that is written to and never believed.
OBSTACLES: dict[str, Callable[[Path], object]] = {"other": put_fifo, "link": put_link, "directory": put_directory}


@pytest.mark.user
def test_t6_what_stands_in_place_of_a_log_is_named_and_costs_its_vm_that_log_alone(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """The console's history, QEMU's words, the FIFO that they come by: none is waited for, followed or replaced."""
    run = daemon.run
    kinds = {
        "history": f"{run}/console/{{}}.log",
        "words": f"{daemon.logs}/{{}}.log",
        "output": f"{run}/instances/{{}}/output",
    }
    files = {f"{kind}-{how}": Path(where.format(f"{kind}-{how}")) for kind, where in kinds.items() for how in OBSTACLES}
    pids = start(daemon, emulator, rom_guest, ("good", *files))
    for name, path in files.items():
        if not name.startswith("words"):
            poll_until(path.exists, f"{name} is made", seconds=DEADLINE)
    daemon.signal(signal.SIGKILL)
    for name, path in files.items():
        path.touch()
        OBSTACLES[name.partition("-")[2]](path)
        if name == "output-other":  # a FIFO it is anyway
            path.unlink()
            path.write_text("in the way")
    left = {name: found(path) for name, path in files.items()}
    daemon.start()
    for name, pid in pids.items():
        assert daemon.wait(name, "running")["pid"] == pid
        assert daemon.do(name, "reset")["substate"] == "running"  # after which the guest greets once more
    for name, path in files.items():
        poll_until(partial(warns, daemon, name, path), f"{name} is warned of", seconds=DEADLINE)
        assert str(path) in daemon.log()
    assert not warns(daemon, "good", daemon.root)
    daemon.restart(signal.SIGTERM)
    for name, path in files.items():
        assert daemon.wait(name, "running")["pid"] == pids[name]
        assert found(path) == left[name], name
        assert daemon.get(f"/v1/instances/{name}/log")["lines"] is not None
    assert daemon.root.joinpath("somebody-elses").read_bytes() == TARGET
    kill_process(pids["history-other"])
    daemon.wait("history-other", "crashed")
    for path in files.values():
        remove(path)
    assert daemon.do("history-other", "start")["substate"] == "running"
    poll_until(lambda: not warns(daemon, "history-other", daemon.root), "it is kept again", seconds=DEADLINE)
    assert "driver failed" not in daemon.log()
