"""VMs that come back by their policy while the daemon goes: an upgrade at the wrong moment costs none of them.

Decides: that what a VM was when its daemon ended, however that ended, it is to the next one.
Must not: hope for a moment; an emulator that waits for a file makes it.
"""

from __future__ import annotations

import signal
from pathlib import Path

import attrs
import pytest

from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, kill_process, rom_unit
from tests.waiting import poll_until

pytestmark = pytest.mark.real

SOON = 'restart-delay = "20ms"'


@attrs.frozen
class Held:
    """An emulator that does not begin for as long as a file is there."""

    emulator: Emulator
    gate: Path

    def close(self) -> None:
        """From now on it waits."""
        self.gate.touch()

    def open(self) -> None:
        """It goes on."""
        self.gate.unlink()


@pytest.fixture
def held(root_dir: Path, emulator: Emulator) -> Held:
    """It begins at once until told otherwise."""
    gate, script = root_dir / "gate", root_dir / "qemu-system-x86_64"
    script.write_text(f'#!/bin/sh\nwhile [ -e {gate} ]; do sleep 0.02; done\nexec {emulator.path} "$@"\n')
    script.chmod(0o755)
    return Held(attrs.evolve(emulator, path=script), gate)


def restarted(daemon: Daemon, name: str) -> None:
    """Wait until a VM runs again that its policy has started anew."""
    poll_until(lambda: daemon.view(name)["substate"] == "running", f"{name} is back", seconds=DEADLINE)
    assert daemon.view(name)["restarts"] >= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_automatic_restart_that_the_daemons_end_cuts_short_is_made_again(
    daemon: Daemon, held: Held, rom_guest: Path, number: int
) -> None:
    """An upgrade while QEMU is being started by the policy: the next daemon starts it."""
    daemon.unit("web", rom_unit(held.emulator, rom_guest, service=f'restart = "always"\n{SOON}'))
    pid = daemon.do("web", "start")["pid"]
    held.close()
    kill_process(pid)
    daemon.wait("web", "spawning")
    daemon.signal(number)
    held.open()
    daemon.start()
    restarted(daemon, "web")
