"""contrib/demo.sh, as a person runs it. What it shows it checks itself, and ends with the first thing that fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.guests import CONTRIB, guest_directory

DEMO = str(CONTRIB / "demo.sh")
DEADLINE = 120


def _environment(root_dir: Path) -> dict[str, str]:
    guest_directory()  # built before the clock runs
    return {**os.environ, "TMPDIR": str(root_dir)}


@pytest.mark.user
@pytest.mark.slow
def test_demonstration(root_dir: Path) -> None:
    """The demonstration shows each of its subjects with real output, and leaves nothing behind."""
    done = subprocess.run(
        [DEMO], env=_environment(root_dir), capture_output=True, text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    shown = [
        r"hello  inactive  dead",
        r"hello  active  running +\d+ ",
        r"guest ready",
        r"Linux qsup-guest .*x86_64",
        r"eth0 .* 10\.0\.2\.15/24",
        r"hello from the guest",
        r"hello  active  paused",
        r"\(auto-restart\), was (running|exiting): signal KILL",
        r"'no-such-device' is not a valid device model name",
        r'"status":"ok"',
        r"Active: inactive \(operator\)",
        r"nothing of it is left",
    ]
    missing = [pattern for pattern in shown if not re.search(pattern, done.stdout)]
    assert not missing, done.stdout
    assert "\x1b" not in done.stdout, "no escape sequence of the guest's or ours goes to what is no terminal"
    assert not list(root_dir.iterdir())


@pytest.mark.slow
def test_demonstration_is_kept(root_dir: Path) -> None:
    """With --keep daemon and VM run on, and the commands that it prints are those to talk to them and to end them."""
    done = subprocess.run(
        [DEMO, "--keep"], env=_environment(root_dir), capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    talk, _, end = done.stdout.partition("Talk to it:\n")[2].partition("End it:\n")
    export, status = talk.splitlines()[:2]
    told = subprocess.run(
        ["bash", "-ec", f"{export}\n{status}\n{end}"], capture_output=True, text=True, timeout=DEADLINE
    )
    assert told.returncode == 0, told.stderr
    assert "Active: active (running)" in told.stdout
    assert not list(root_dir.iterdir())


@pytest.mark.slow
def test_demonstration_is_interrupted(root_dir: Path) -> None:
    """Ctrl-C while the VM boots ends the VM, the daemon and the demonstration."""
    process = subprocess.Popen(
        [DEMO],
        env=_environment(root_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert any("qsupctl start hello" in line for line in output), "the VM was not started"
        os.killpg(process.pid, signal.SIGINT)
        output.read()
    assert process.wait(DEADLINE) == 130
    assert not list(root_dir.iterdir())
