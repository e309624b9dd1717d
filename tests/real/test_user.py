"""``qsupd --user``: an ordinary user's own daemon, in his XDG directories, without any right.

Decides: that nothing in it assumes root.
Must not: repeat what does not depend on who the daemon is.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests import Emulator
from tests.real.beside import refusal, words
from tests.real.daemons import kill_process, rom_unit
from tests.real.injected import killed_at
from tests.real.test_faults import begun
from tests.real.users import UsersDaemon
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.user]


@pytest.fixture
def daemon(root_dir: Path) -> Iterator[UsersDaemon]:
    """The user's running daemon, ended with all its VMs."""
    found = UsersDaemon(root_dir)
    found.start()
    try:
        yield found
    finally:
        found.close()


def test_a_user_starts_looks_at_and_stops_his_own_vm(daemon: UsersDaemon, qemu: Emulator, rom_guest: Path) -> None:
    """QEMU runs as the user, with the sandbox and no new privileges; all verbs work, by his own qsupctl too."""
    image = daemon.images / "disk.img"
    image.write_bytes(bytes(1 << 20))
    os.chown(image, daemon.uid, -1)
    disk = '[[disk]]\nid = "root"\npath = "disk.img"\nformat = "raw"\n[[nic]]\nid = "lan"\n'
    daemon.unit("web", rom_unit(qemu, rom_guest, tables=disk))
    assert daemon.ctl("start", "web").stderr == ""
    view = daemon.view("web")
    assert (view["substate"], view["uid"]) == ("running", daemon.uid)
    status = Path(f"/proc/{view['pid']}/status").read_text()
    for line in (f"Uid:\t{daemon.uid}\t", "NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"):
        assert line in status
    daemon.type("web", "x")
    assert daemon.do("web", "pause")["substate"] == "paused"
    assert daemon.do("web", "resume")["substate"] == "running"
    assert daemon.do("web", "reset")["pid"] == view["pid"]
    assert "web" in daemon.ctl("list").stdout
    assert daemon.ctl("stop", "web", "--timeout", "1s").returncode == 0
    assert daemon.view("web")["substate"] == "dead"
    assert daemon.remains() == []


def test_a_users_vms_outlive_his_daemon(daemon: UsersDaemon, qemu: Emulator, rom_guest: Path) -> None:
    """SIGKILL or SIGTERM: the next daemon has the same process, watches it, and restarts it by its policy."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service='restart = "on-failure"\nrestart-delay = "20ms"'))
    pid = daemon.do("web", "start")["pid"]
    for number in (signal.SIGKILL, signal.SIGTERM):
        daemon.restart(number)
        assert daemon.wait("web", "running")["pid"] == pid
    daemon.do("web", "reset")
    daemon.type("web", "x")
    kill_process(pid)
    poll_until(lambda: daemon.view("web")["restarts"] == 1, "it is restarted", seconds=20)
    assert daemon.wait("web", "running")["pid"] != pid
    assert daemon.do("web", "kill")["substate"] == "dead"


def test_what_takes_root_is_refused_with_a_way_out(daemon: UsersDaemon, emulator: Emulator, rom_guest: Path) -> None:
    """Taps and bridges, an image of somebody else's: each names what is missing, and nothing is left."""
    foreign = daemon.images / "foreign.img"
    foreign.write_bytes(bytes(1 << 20))
    foreign.chmod(0o000)
    cases = {
        "tap": ('[[nic]]\nid = "lan"\ntype = "bridge"\nbridge = "qs-user"\n', "`user` networking does not"),
        "image": ('[[disk]]\nid = "root"\npath = "foreign.img"\nformat = "raw"\n', "Permission denied"),
    }
    for name, (tables, wanted) in cases.items():
        daemon.unit(name, rom_unit(emulator, rom_guest, tables=tables))
        assert wanted in words(refusal(daemon, name)), name
    assert daemon.remains() == []


def test_two_users_have_a_daemon_each(daemon: UsersDaemon) -> None:
    """The second one of the same user does not begin; his files are his alone."""
    told = daemon.ctl("version")
    assert told.returncode == 0
    second = subprocess.run(daemon._command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert f"another qsupd (pid {daemon.get('/v1/health')['pid']})" in second.stderr
    for directory in (daemon.state, daemon.run / "instances"):
        status = directory.stat()
        assert (status.st_uid, status.st_mode & 0o077) == (daemon.uid, 0)
    assert (daemon.run / "api.sock").stat().st_mode & 0o077 == 0


@pytest.mark.root
@pytest.mark.fault
@pytest.mark.alone
def test_t1_a_users_daemon_killed_right_after_the_spawn_leaves_no_orphan(
    daemon: UsersDaemon, emulator: Emulator, rom_guest: Path
) -> None:
    """Without a cgroup of its own QEMU is found by the output that it holds open."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    daemon.do("web", "kill")
    with killed_at(daemon, "clone,clone3,vfork", 1):
        begun(daemon, "web")
        poll_until(lambda: not daemon.is_alive(), "the daemon is killed", seconds=20)
    daemon.start()
    daemon.wait("web", "start-failed")
    assert daemon.remains() == []
    poll_until(lambda: not left(daemon.uid), "no process of the user's but the daemon is left", seconds=5)


def left(uid: int) -> list[str]:
    """Command lines of the QEMUs of a user."""
    found = []
    for pid in (name for name in os.listdir("/proc") if name.isdecimal()):
        try:
            if os.stat(f"/proc/{pid}").st_uid == uid:
                found.append(Path(f"/proc/{pid}/cmdline").read_text())
        except FileNotFoundError:
            continue
    return [line for line in found if "-chardev" in line]


def test_a_logout_loses_no_vm(daemon: UsersDaemon, emulator: Emulator, rom_guest: Path) -> None:
    """The runtime directory is emptied, as logind does, and the next daemon may come without one (cron, su)."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.signal(signal.SIGTERM)
    shutil.rmtree(daemon.runtime)
    daemon.start()
    assert daemon.wait("web", "running")["pid"] == pid
    daemon.ctl("stop", "web", "--timeout", "1s")
    assert daemon.view("web")["substate"] == "dead"


def test_there_is_one_daemon_whoever_starts_it(daemon: UsersDaemon) -> None:
    """From a login session, and without one: the second is told of the first, and both have the same qsupctl."""
    done = daemon.without_session("-m", "qsup.daemon", "--user")
    assert (done.returncode, f"another qsupd (pid {daemon.pid}) works in" in done.stderr) == (1, True)
    assert daemon.without_session("-m", "qsup.ctl.main", "list").returncode == 0
