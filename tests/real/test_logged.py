"""The daemon's log of a real run: whose lines are whose.

Decides: that a line about a VM names it, one about an operation names that, and one about a request its id.
Must not: fix the words of any line.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import termios
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import QsupError
from tests.api.serving import request
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, kill_process, rom_unit, signal_process

pytestmark = pytest.mark.real

#: Lines about all VMs at once, or about files that are not any VM's yet.
ABOUT_ALL = ("ready", "unit files read", "unit file", "told to end", "ended; VMs run on")
REQUEST = "request-of-the-test"


def lines_of(daemon: Daemon) -> list[dict[str, Any]]:
    """The log, parsed: each line is an object."""
    return [dict(json.loads(line)) for line in daemon.log().splitlines()]


def asked(daemon: Daemon, path: str, request_id: str) -> dict[str, Any]:
    """A POST with a request id of our own."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(daemon.address.path)
        client.sendall(request(f"POST {path}", f"X-Request-Id: {request_id}", "Connection: close"))
        answer = b""
        while data := client.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head
    return dict(json.loads(body))


def mentions(line: dict[str, Any], words: set[str], *, but: str) -> set[str]:
    """Which words stand in a line's values, other than in one member."""
    text = " ".join(str(value) for key, value in line.items() if key != but)
    return {word for word in words if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)}


def test_every_line_says_whose_it_is(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """Starts, stops, failures, silence on request, crashes and two daemons: no line is without what it is about."""
    deaf = 'stop-timeout = "100ms"\nquit-timeout = "100ms"\nterm-timeout = "100ms"'
    daemon.unit("vm-plain", rom_unit(qemu, rom_guest))
    daemon.unit("vm-deaf", rom_unit(qemu, rom_guest, service=deaf))
    daemon.unit("vm-broken", rom_unit(qemu, Path("/no/such/rom")))
    names = {"vm-plain", "vm-deaf", "vm-broken"}
    pids = {str(daemon.do(name, "start")["pid"]): name for name in ("vm-plain", "vm-deaf")}
    assert daemon.power("vm-broken", "start")["state"] == "failed"
    for verb in ("pause", "resume", "reset"):
        daemon.do("vm-plain", verb)
    signal_process(int(next(pid for pid, name in pids.items() if name == "vm-deaf")), signal.SIGSTOP)
    daemon.do("vm-deaf", "stop")
    with pytest.raises(QsupError):
        daemon.post("/v1/instances/vm-deaf/pause")
    daemon.restart()
    kill_process(daemon.wait("vm-plain", "running")["pid"])
    daemon.wait("vm-plain", "crashed")
    operation = asked(daemon, "/v1/instances/vm-plain/start?wait=30", REQUEST)
    assert operation["state"] == "succeeded"
    daemon.do("vm-plain", "kill")
    operations = {each["id"]: each for each in daemon.get("/v1/operations")["operations"]}
    wrong = []
    for line in lines_of(daemon):
        if line["event"] in ABOUT_ALL:
            continue
        for word in mentions(line, names | set(pids), but="instance"):
            if line.get("instance") != pids.get(word, word):
                wrong.append(("instance", line))
        for word in mentions(line, set(operations), but="operation"):
            wrong.append((f"operation {word}", line))
        if (known := operations.get(line.get("operation", ""))) and line.get("instance") != known["target"]:
            wrong.append(("the operation's instance", line))
    assert not wrong
    for known in operations.values():
        told = [line["event"] for line in lines_of(daemon) if line.get("operation") == known["id"]]
        assert told[0] == "operation begun", known
        assert told[-1] == "operation ended", known
        if known["kind"] in ("start", "stop", "kill"):
            assert "state changed" in told, known


def test_what_is_done_for_a_request_names_it(daemon: Daemon, qemu: Emulator, rom_guest: Path) -> None:
    """The request's id leads to the operation, and that to all the rest; later lines are nobody's request."""
    (daemon.units / "vm@.toml").write_text(rom_unit(qemu, rom_guest))
    daemon.post("/v1/reload")
    # its driver begins with this very request
    operation = asked(daemon, "/v1/instances/vm@one/start?wait=30", REQUEST)
    daemon.do("vm@one", "pause")
    lines = lines_of(daemon)
    (begun,) = [line for line in lines if line.get("request_id") == REQUEST]
    assert (begun["instance"], begun["operation"], begun["kind"]) == ("vm@one", operation["id"], "start")
    others = [line for line in lines if line["event"] == "operation begun" and line is not begun]
    assert all(line["request_id"] != REQUEST for line in others)
    changes = [line for line in lines if line["event"] == "state changed" and line["state"] == "spawning"]
    assert [line["operation"] for line in changes] == [operation["id"]]
    daemon.do("vm@one", "kill")


def test_lines_of_a_stop_that_fails_are_the_operations(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """What its stages have to say is said under its id, and under no other operation's afterwards."""
    service = 'stop-timeout = "100ms"\nquit-timeout = "100ms"\nterm-timeout = "100ms"\nstop-methods = ["quit", "kill"]'
    daemon.unit("web", rom_unit(emulator, rom_guest, service=service))
    signal_process(daemon.do("web", "start")["pid"], signal.SIGSTOP)
    stop = daemon.power("web", "stop")
    assert stop["state"] == "succeeded"
    (line,) = [line for line in lines_of(daemon) if line["event"] == "no answer to quit"]
    assert (line["instance"], line["operation"]) == ("web", stop["id"])
    daemon.do("web", "start")
    daemon.restart()
    daemon.wait("web", "running")
    kill_process(daemon.view("web")["pid"])
    daemon.wait("web", "crashed")
    after = [line for line in lines_of(daemon) if line["event"] == "state changed"][-1]
    assert (after["state"], after.get("operation")) == ("crashed", None)


@pytest.mark.parametrize("where", ["terminal", "pipe"])
def test_a_log_that_stands_still_holds_up_neither_vms_nor_answers(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, where: str
) -> None:
    """Ctrl-S on the daemon's terminal, or a pipe that nobody reads: it starts, answers and stops VMs all the same."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.signal(signal.SIGTERM)
    reader, writer = pty.openpty() if where == "terminal" else os.pipe()
    if where == "terminal":
        termios.tcflow(writer, termios.TCOOFF)
    daemon.start(stderr=writer)
    written = 0
    while written < 300:  # far more lines than a pipe or a terminal holds
        daemon.do("web", "start")
        daemon.do("web", "kill")
        written += sum(bool(daemon.get("/v1/health")) for _ in range(20))
    if where == "terminal":
        termios.tcflow(writer, termios.TCOON)
    for name in ("start", "kill"):
        daemon.do("web", name)
    os.close(reader)
    os.close(writer)
