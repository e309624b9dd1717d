"""The daemon's own log."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog

from qsup import log

LOGGING = """
import structlog
from qsup import log
log.configure("info")
for number in range(3):
    structlog.get_logger().warning("told", number=number, surrogate="\\udcff")
print("alive")
"""


def test_a_log_that_nobody_can_take_harms_nobody() -> None:
    """Standard error whose reader is gone, or on a full disk: the record is lost, and the program goes on."""
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full:
        for stderr in (writer, full.fileno()):
            done = subprocess.run([sys.executable, "-c", LOGGING], stderr=stderr, stdout=subprocess.PIPE, timeout=30)
            assert (done.returncode, done.stdout) == (0, b"alive\n")
    os.close(writer)


FLOOD = """
import sys
import structlog
from qsup import log
log.configure("info")
log_ = structlog.get_logger()
for number in range(5000):
    log_.info("flood", number=number, filling="x" * 100)
print("alive", flush=True)
sys.stdin.readline()
log_.info("last")
"""


@contextmanager
def flooding(stderr: int) -> Iterator[subprocess.Popen[bytes]]:
    """A program that logs far more than anything holds which nobody reads, and once more at a word."""
    command = [sys.executable, "-c", FLOOD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr) as program:
        try:
            assert program.stdout is not None
            assert select.select([program.stdout], [], [], 30)[0], "it waits for whoever reads its log"
            assert program.stdout.readline() == b"alive\n"
            yield program
        finally:
            program.kill()


def read_all(fd: int, program: subprocess.Popen[bytes]) -> bytes:
    """What a descriptor holds, and what the program writes to it at its last word."""
    found = drained(fd)
    program.communicate(b"\n", timeout=30)
    return found + drained(fd)


def drained(fd: int) -> bytes:
    """What can be read now."""
    found = b""
    while select.select([fd], [], [], 0.2)[0]:
        found += os.read(fd, 1 << 16)
    return found


def check(lines: list[str]) -> None:
    """Each line is whole and in its place, and what is missing is counted, once or as often as there was room again."""
    records = [line for line in lines if "flood" in line]
    numbers = [int(found[1]) for line in records if (found := re.search(r'number"?[:=] ?(\d+)', line))]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == len(records)
    assert all("x" * 100 in line for line in records)
    dropped = [int(found[1]) for line in lines if (found := re.search(r'dropped"?[:=] ?(\d+)', line))]
    assert sum(dropped) == 5000 - len(numbers) > 0
    assert any("last" in line for line in lines)


def test_a_pipe_that_nobody_reads_holds_nobody_up() -> None:
    """Lines are dropped, whole ones, and the next that can be written is followed by how many."""
    reader, writer = os.pipe()
    with flooding(writer) as program:
        check(read_all(reader, program).decode().splitlines())
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("stopped", [True, False])
def test_a_terminal_that_stands_still_holds_nobody_up(stopped: bool) -> None:
    """Ctrl-S, or a window that nobody empties."""
    terminal, stderr = pty.openpty()
    if stopped:
        termios.tcflow(stderr, termios.TCOOFF)
    with flooding(stderr) as program:
        if stopped:
            termios.tcflow(stderr, termios.TCOON)
        check(read_all(terminal, program).decode().splitlines())
    os.close(terminal)
    os.close(stderr)


def test_a_socket_that_nobody_reads_holds_nobody_up() -> None:
    """As a pipe."""
    ours, theirs = socket.socketpair()
    with ours, theirs, flooding(theirs.fileno()) as program:
        check(read_all(ours.fileno(), program).decode().splitlines())


def test_a_journal_that_does_not_keep_up_hears_how_much_it_missed() -> None:
    """An entry that is not taken is dropped and counted."""
    taken: list[str] = []
    answers = iter([True, False, False, True, True, True])

    def send(fields: dict[str, str]) -> bool:
        if found := next(answers):
            taken.append(fields["MESSAGE"])
        return found

    journal = log._Journal(send)
    for number in range(5):
        with pytest.raises(structlog.DropEvent):
            journal(None, "", {"event": f"{number}", "level": "info"})
    assert taken == ["0", "3", f"{log._DROPPED}  dropped=2", "4"]


def test_a_record_is_one_line_of_json() -> None:
    """Whatever is in it."""
    done = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, timeout=30, check=True)
    assert [json.loads(line)["number"] for line in done.stderr.splitlines()] == [0, 1, 2]
