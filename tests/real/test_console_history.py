"""What guests wrote to their consoles, over restarts of the daemon and of the VMs.

Decides: what of it the next daemon shows, and as whose words.
Must not: repeat when it is written down (`tests.instance.test_console`).
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from qsup.ctl.websocket import connect
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, kill_process, rom_unit
from tests.waiting import came_true, poll_until

pytestmark = pytest.mark.real

MARK = re.compile(r"--- qsup: web started \S+Z ---")
GREETING = "qsup rom guest, boot "


def shown(daemon: Daemon, *, until: str) -> str:
    """What a console shows that is attached to now, once it has shown a text."""
    with daemon.client() as client:
        console = connect(client, "/v1/instances/web/console?mode=watch")
        seen = bytearray()

        def has_shown() -> bool:
            seen.extend(console.receive())
            return until.encode() in seen

        try:
            assert came_true(has_shown, seconds=DEADLINE), f"never shown: {until}; but: {seen[-1000:]!r}"
        finally:
            console.close()
    return seen.decode()


def kept(daemon: Daemon) -> Path:
    """Where it is kept."""
    return daemon.run / "console" / "web.log"


def test_the_next_daemon_shows_what_the_guest_wrote_before(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """After SIGTERM all, after SIGKILL all but the last second; a failure comes with it, and with nothing older."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.type("web", "first")
    daemon.restart(signal.SIGTERM)
    assert daemon.wait("web", "running")["pid"] == pid
    daemon.type("web", "second", after="first")
    poll_until(lambda: b"second" in kept(daemon).read_bytes(), "it is kept", seconds=DEADLINE)
    daemon.restart(signal.SIGKILL)
    daemon.wait("web", "running")
    text = shown(daemon, until="second")
    assert text.count(GREETING) == 1
    assert not MARK.search(text)
    kill_process(pid)
    assert daemon.wait("web", "crashed")["cause"]["console"][-1] == "firstsecond"
    status = daemon.ctl("status", "web", check=False).stdout
    assert "Last lines of the console:\n" in status
    assert "firstsecond" in status
    daemon.restart()
    assert daemon.view("web")["cause"]["console"][-1] == "firstsecond"
    pid = daemon.do("web", "start")["pid"]
    daemon.type("web", "third")
    before, after = MARK.split(shown(daemon, until="third"))
    assert ("firstsecond" in before, "third" in after) == (True, True)
    assert (before.count(GREETING), after.count(GREETING)) == (1, 1)
    daemon.restart(signal.SIGTERM)
    daemon.wait("web", "running")
    kill_process(pid)
    told = "\n".join(daemon.wait("web", "crashed")["cause"]["console"])
    assert ("third" in told, "second" in told, told.count(GREETING)) == (True, False, 1)


@pytest.mark.parametrize("ends", ["seen", "unseen"])
def test_a_vm_without_a_console_has_nobody_elses_last_words(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, ends: str
) -> None:
    """What it wrote when it still had one is not why it fails now."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    daemon.type("web", "old")
    daemon.do("web", "kill")
    daemon.unit("web", rom_unit(emulator, rom_guest, console='type = "none"'))
    pid = daemon.do("web", "start")["pid"]
    if ends == "unseen":
        daemon.signal(signal.SIGTERM)
    kill_process(pid)
    if ends == "unseen":
        assert came_true(lambda: not Path(f"/proc/{pid}").exists(), seconds=DEADLINE)
        daemon.start()
    assert daemon.wait("web", "crashed")["cause"]["console"] == []


@pytest.mark.parametrize("seen", [True, False], ids=["dying still", "gone"])
def test_an_end_while_no_daemon_ran_has_its_last_words(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, seen: bool
) -> None:
    """The next daemon tells what the guest wrote last, of this life alone."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    daemon.type("web", "old")
    pid = daemon.do("web", "restart", timeout=0.1)["pid"]
    daemon.type("web", "new")
    daemon.signal(signal.SIGTERM)
    kill_process(pid)
    assert seen or came_true(lambda: not Path(f"/proc/{pid}").exists(), seconds=DEADLINE)
    daemon.start()
    told = "\n".join(daemon.wait("web", "crashed")["cause"]["console"])
    assert ("new" in told, "old" in told) == (True, False)


def test_what_the_last_life_wrote_makes_no_vm_ready(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A daemon that takes over a VM which is not ready yet looks for the text in the present life alone."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    daemon.type("web", "R")
    daemon.do("web", "kill")
    daemon.unit("web", rom_unit(emulator, rom_guest, service='ready = { serial = "boot 2" }\nstart-timeout = "1h"'))
    daemon.post("/v1/instances/web/start")
    daemon.wait("web", "waiting-ready")
    shown(daemon, until="ready")
    daemon.restart(signal.SIGTERM)
    assert daemon.wait("web", "waiting-ready")["cause"] is None
    daemon.type("web", "R", after="")
    assert daemon.wait("web", "running")["cause"] is None


def test_a_flood_leaves_bounded_files(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """However much a guest writes; the next daemon has the newest of it."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    with daemon.client() as client:
        console = connect(client, "/v1/instances/web/console?mode=write")
        seen = 0

        def has_flooded() -> bool:
            nonlocal seen
            seen += len(console.receive())
            return seen > 160 << 10

        try:
            console.send(b"F")
            console.flush()
            assert came_true(has_flooded, seconds=2 * DEADLINE)
        finally:
            console.close()
    daemon.restart(signal.SIGTERM)
    daemon.wait("web", "running")
    files = list((daemon.run / "console").iterdir())
    assert 64 << 10 <= sum(path.stat().st_size for path in files) <= 128 << 10


def test_what_is_no_vm_any_more_leaves_no_history(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Whoever gets its name does not see what it wrote; one whose unit has errors is still a VM."""
    text = rom_unit(emulator, rom_guest)
    for again in (daemon.restart, lambda: daemon.post("/v1/reload")):
        daemon.unit("web", text)
        daemon.do("web", "start")
        daemon.type("web", "secret")
        daemon.do("web", "kill")
        assert kept(daemon).stat().st_mode & 0o777 == 0o600
        assert kept(daemon).parent.stat().st_mode & 0o777 == 0o700
        (daemon.units / "web.toml").write_text("[broken")
        again()
        assert b"secret" in kept(daemon).read_bytes()
        (daemon.units / "web.toml").unlink()
        again()
        assert not kept(daemon).exists()
