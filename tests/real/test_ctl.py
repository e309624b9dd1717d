"""qsupctl with a real daemon and real guests: the console at a pseudo-terminal, the agent, the QMP prompt.

Decides: that what a person types reaches a guest, and what a guest says reaches the person, across resets and restarts.
Must not: repeat what `tests/ctl` shows with a supervisor in memory.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired

import pytest

from qsup.ctl.connection import Deadline
from qsup.errors import DaemonUnreachable
from tests.ctl.running import COMMAND, Terminal, terminal
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import DEADLINE, Daemon, kill_process, linux_unit, rom_unit, signal_process
from tests.waiting import poll_until

pytestmark = pytest.mark.real

ESCAPE = b"\x1d"


@contextmanager
def console(daemon: Daemon, *options: str) -> Iterator[Terminal]:
    """``qsupctl console web`` at a terminal."""
    with terminal("--root", str(daemon.root), "console", "web", *options) as attached:
        yield attached


def read_next(attached: Terminal, wanted: bytes, seen: int) -> int:
    """Read on until a text comes behind the first ``seen`` bytes; returns how much was seen then."""
    attached.wait(lambda: wanted in attached.seen[seen:], f"{wanted!r}", seconds=30)
    return len(attached.seen)


def test_a_log_is_followed_through_all_lives(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """From before the VM runs, through a start that fails, to the end of a later life and the next."""
    daemon.unit("web", rom_unit(emulator, rom_guest, qemu='extra-args = ["-nonsense"]'))
    with daemon.client() as client, client.stream("/v1/instances/web/log?lines=0&follow=1") as stream:
        lines = stream.lines(Deadline(DEADLINE))
        assert daemon.power("web", "start")["state"] == "failed"
        assert "-nonsense: invalid option" in next(lines).decode()
        daemon.unit("web", rom_unit(emulator, rom_guest))
        for _ in range(2):
            signal_process(daemon.do("web", "start")["pid"], signal.SIGTERM)
            assert "terminating on signal 15" in next(lines).decode()
            daemon.do("web", "kill")


def detach(attached: Terminal) -> None:
    """Press Ctrl-]; the terminal must be as it was."""
    attached.type(ESCAPE)
    assert attached.end() == 0
    assert attached.is_restored


def test_a_shell_in_the_guest_is_used_through_the_terminal(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest
) -> None:
    """Typed commands run in a Linux guest, before and after a reset, and the agent runs others beside them."""
    daemon.unit("web", linux_unit(qemu, linux_guest))
    daemon.ctl("start", "web")
    with console(daemon) as attached:
        attached.type(b"\r")
        seen = read_next(attached, b"qsup-guest#", 0)
        attached.type(b"echo answer $((6 * 7))\r")
        seen = read_next(attached, b"answer 42", seen)
        done = daemon.ctl("agent", "web", "exec", "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
        assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
        daemon.ctl("reset", "web")
        seen = read_next(attached, b"guest ready", seen)
        attached.type(b"\recho second $((6 * 8))\r")
        read_next(attached, b"second 48", seen)
        detach(attached)
    daemon.ctl("wait", "web", "--for", "agent")
    daemon.ctl("stop", "web")
    assert "inactive" in daemon.ctl("status", "web", check=False).stdout


def test_the_console_outlives_a_crash_and_a_restart(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """The terminal stays while QEMU is killed and started again, and types into the next life."""
    daemon.unit("web", rom_unit(qemu, rom_guest, service='restart = "on-failure"\nrestart-delay = "50ms"'))
    daemon.ctl("start", "web")
    with console(daemon) as attached:
        seen = read_next(attached, b"ready", 0)
        attached.type(b"abc")
        seen = read_next(attached, b"abc", seen)
        kill_process(daemon.view("web")["pid"])
        seen = read_next(attached, b"the console was closed", seen)
        seen = read_next(attached, b"attached", seen)
        daemon.ctl("wait", "web")
        attached.type(b"xyz")
        seen = read_next(attached, b"xyz", seen)
        daemon.ctl("stop", "web")
        seen = read_next(attached, b"the VM is down (waiting for it)", seen)
        daemon.ctl("start", "web")
        seen = read_next(attached, b"attached", seen)
        attached.type(b"R")
        read_next(attached, b"boot 2", seen)
        detach(attached)
    gone = {"type": "serial", "watchers": 0, "has_writer": False}
    poll_until(lambda: daemon.view("web")["console"] == gone, "the daemon has seen it go", seconds=DEADLINE)


def test_the_console_outlives_the_daemon(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Killed or told to end, another daemon in its place has the terminal again; the VM was never said to go down."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.ctl("start", "web")
    with console(daemon) as attached:
        seen = read_next(attached, b"ready", 0)
        for number in (signal.SIGKILL, signal.SIGTERM):
            daemon.signal(number)
            seen = read_next(attached, b"the daemon went away", seen)
            daemon.start()
            seen = read_next(attached, b"attached", seen)
            attached.type(b"abc")
            seen = read_next(attached, b"abc", seen)
        assert b"goes down" not in attached.seen
        detach(attached)


def connections(daemon: Daemon) -> int:
    """How many clients a daemon has (proc(5): its ends of the connections bear its socket's path)."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(f" {daemon.address.path}") and line.split()[5] == "03" for line in lines)


#: What waits for the daemon; ``wait`` holds two connections.
FOLLOWING = (["console", "web"], ["wait", "web", "--for", "paused"], ["events"], ["logs", "web", "-f"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_daemon_that_goes_is_one_cause(
    daemon: Daemon, qemu: Emulator, rom_guest: Path, number: signal.Signals
) -> None:
    """Whatever waits for it ends with the code of a daemon that cannot be reached, however it went."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.ctl("start", "web")
    pid = daemon.view("web")["pid"]
    where = ("--root", str(daemon.root))
    waiting = [Popen([*COMMAND, *where, *verb], stdin=PIPE, stdout=PIPE, stderr=PIPE) for verb in FOLLOWING]
    poll_until(lambda: daemon.view("web")["console"]["watchers"] and connections(daemon) >= 5, "all are attached")
    daemon.signal(number)
    ends = [process.communicate(timeout=DEADLINE)[1] for process in waiting]
    assert [process.returncode for process in waiting] == [5] * len(FOLLOWING), ends
    assert not any(b"goes down" in said for said in ends)
    daemon.start()
    assert daemon.wait("web", "running")["pid"] == pid


def test_several_watch_while_one_types(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Everybody sees recent output first and all that follows; one types, a second writer is refused."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.ctl("start", "web")
    with console(daemon) as writer, console(daemon, "--watch") as first, console(daemon, "--watch") as second:
        for attached in (writer, first, second):
            read_next(attached, b"ready", 0)
        view = daemon.view("web")["console"]
        assert (view["watchers"], view["has_writer"]) == (3, True)
        refused = daemon.ctl("console", "web", check=False)
        assert refused.returncode == 1
        assert "qsupctl console --watch web" in refused.stderr
        first.type(b"unheard")
        writer.type(b"heard")
        for attached in (writer, first, second):
            read_next(attached, b"heard", 0)
            assert b"unheard" not in attached.seen
        detach(first)
        detach(second)
        detach(writer)


def test_a_vm_is_run_from_the_command_line(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """start, list, status, pause, a failed start, an unknown name: what is printed and the exit codes of systemctl."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.unit("sick", rom_unit(qemu, rom_guest, tables='[qemu]\nextra-args = ["-bogus"]'))
    assert daemon.ctl("status", "web", check=False).returncode == 3
    daemon.ctl("start", "web")
    assert "Active: active (running)" in daemon.ctl("status", "web").stdout
    assert [line.split()[:3] for line in daemon.ctl("list", "--no-legend").stdout.splitlines()] == [
        ["sick", "inactive", "dead"],
        ["web", "active", "running"],
    ]
    daemon.ctl("pause", "w*")
    daemon.ctl("wait", "web", "--for", "paused")
    failed = daemon.ctl("start", "sick", check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "bogus" in failed.stderr
    assert daemon.ctl("start", "nope", check=False).returncode == 4
    assert json.loads(daemon.ctl("qmp", "web", "query-status").stdout)["status"] == "paused"
    daemon.ctl("stop", "--all")
    assert daemon.ctl("list", "--state", "active", "--no-legend").stdout == ""


def test_the_prompt_completes_from_the_vms_own_schema(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Command names and arguments come from this QEMU, and a command's result is shown."""
    daemon.unit("web", rom_unit(qemu, rom_guest))
    daemon.ctl("start", "web")
    environ = {"XDG_STATE_HOME": str(daemon.root / "state-home"), "INPUTRC": "/dev/null"}
    with terminal("--root", str(daemon.root), "qmp", "web", environ=environ) as prompt:
        seen = read_next(prompt, b"web> ", 0)
        prompt.type(b"query-stat\t")
        read_next(prompt, b"query-stat", seen)
        prompt.type(b"us\n")
        seen = read_next(prompt, b"}\r\nweb> ", seen)
        assert b'"running": true' in prompt.seen
        prompt.type(b"human-monitor-comm\t")
        read_next(prompt, b"human-monitor-command ", seen)
        prompt.type(b"comm\t")
        read_next(prompt, b"command-line=", seen)
        prompt.type(b"'info version'\n")
        read_next(prompt, qemu.version.encode(), seen)
        read_next(prompt, b"web> ", seen)
        prompt.type(b"\x04")
        assert prompt.end() == 0
        assert prompt.is_restored


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to end"])
@pytest.mark.parametrize("verb", [("stop", "--all"), ("stop", "web"), ("restart", "web")], ids=" ".join)
def test_a_daemon_may_be_restarted_under_a_command(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, verb: tuple[str, ...], number: signal.Signals
) -> None:
    """Also while nobody listens for a moment: the command ends when the next daemon has done what was asked."""
    service = 'stop-timeout = "60s"\nready = {serial = "ready"}'
    daemon.unit("web", rom_unit(emulator, rom_guest, service=service))
    daemon.do("web", "start")
    daemon.type("web", "D")
    with Popen([*COMMAND, "--root", str(daemon.root), *verb], stdout=PIPE, stderr=PIPE) as command:
        daemon.wait("web", "stopping-guest")
        daemon.signal(number)
        with pytest.raises(DaemonUnreachable):
            daemon.get("/v1")
        with pytest.raises(TimeoutExpired):
            command.wait(0.5)
        daemon.start()
        daemon.wait("web", "stopping-guest")
        daemon.type("web", "O", after="")
        out, err = command.communicate(timeout=DEADLINE)
    assert (command.returncode, out) == (0, b"")
    assert err in (b"", b"qsupctl: the daemon is gone; it is waited for, 30 s at most\n")  # if that took so long
    assert daemon.view("web")["substate"] == ("running" if verb[0] == "restart" else "dead")
