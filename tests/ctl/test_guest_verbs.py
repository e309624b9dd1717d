"""``qmp`` and ``agent``: words to QEMU and to the guest."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qsup.ctl.completion import Completer
from qsup.errors import AgentCommandError, MonitorTimeout, QmpCommandError
from tests.api.calling import Daemon
from tests.api.fake import FakeBackend
from tests.ctl.running import Ctl, in_thread, run_process, terminal
from tests.ctl.test_render import EVIL

SCHEMA: list[dict[str, Any]] = [
    {"name": "device_add", "meta-type": "command", "arg-type": "7", "ret-type": "0"},
    {"name": "device_del", "meta-type": "command", "arg-type": "8", "ret-type": "0"},
    {"name": "query-status", "meta-type": "command", "arg-type": "0", "ret-type": "1"},
    {
        "name": "7",
        "meta-type": "object",
        "members": [{"name": "driver", "type": "str"}, {"name": "bus", "type": "str"}],
    },
    {"name": "8", "meta-type": "object", "members": [{"name": "id"}]},
    {"name": "0", "meta-type": "object", "members": []},
]
ANSWERS: dict[str, Any] = {
    "query-commands": [{"name": entry["name"]} for entry in SCHEMA if entry["meta-type"] == "command"],
    "query-qmp-schema": SCHEMA,
    "query-status": {"status": "running", "running": True},
    "human-monitor-command": f"QEMU 7.2\r\n{EVIL}\r\n",
    "device_del": {},
    "qom-get": "off",
}


@pytest.fixture
def monitor(served: Daemon, monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """A supervisor whose VMs know a few QMP commands."""
    backend = served.backend

    async def qmp(name: str, command: str, arguments: Mapping[str, Any] | None, timeout: float) -> object:
        backend.calls.append((name, command, arguments, timeout))
        if command == "stall":
            raise MonitorTimeout("stall: no answer within 30 s", instance=name)
        if command not in ANSWERS:
            raise QmpCommandError(
                command, "CommandNotFound", f"The command {command} has not been found", instance=name
            )
        return ANSWERS[command]

    monkeypatch.setattr(backend, "qmp", qmp)
    return backend


async def test_one_command(monitor: FakeBackend, ctl: Ctl) -> None:
    """One command and its result, as JSON that a program can read and a person too."""
    assert json.loads(await ctl.ok("qmp", "web", "query-status")) == ANSWERS["query-status"]
    assert await ctl.ok("qmp", "web", "query-status", "-o", "jsonl") == '{"status": "running", "running": true}\n'
    assert await ctl.ok("qmp", "web", "device_del", "id=net0", "a.b=1", "--timeout", "5") == "{}\n"
    assert monitor.calls[-1] == ("web", "device_del", {"id": "net0", "a": {"b": 1}}, 5.0)


async def test_text_of_the_human_monitor_is_made_harmless(monitor: FakeBackend, ctl: Ctl) -> None:
    """HMP's text is shown as text, line by line, without what steers a terminal."""
    out = await ctl.ok("qmp", "web", "human-monitor-command", "command-line=info version")
    assert out.startswith("QEMU 7.2\n")
    assert "\033" not in out


async def test_a_text_is_a_line(monitor: FakeBackend, ctl: Ctl) -> None:
    """Whatever ends it, the terminal's prompt begins on a line of its own."""
    assert await ctl.ok("qmp", "web", "qom-get", "path=/", "property=x") == "off\n"


async def test_errors_name_class_and_description(monitor: FakeBackend, ctl: Ctl) -> None:
    """QEMU's error is told in its own words, with its class; code 1."""
    result = await ctl("qmp", "web", "bogus")
    assert (result.code, result.out) == (1, "")
    assert result.err == "qsupctl: web: bogus: The command bogus has not been found (CommandNotFound)\n"
    assert (await ctl("qmp", "web", "query-status", "word")).code == 2
    assert (await ctl("qmp", "web", "stall")).err.startswith("qsupctl: web: stall: no answer within 30 s\n")


async def test_a_pipe_is_a_list_of_commands(monitor: FakeBackend, ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is a command; one that fails is told, the others go on, and the code is that of the worst."""
    lines = '# a comment\n\nquery-status\nbogus\n{"execute": "device_del", "arguments": {"id": "x"}}\n'
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    result = await ctl("qmp", "web", "-o", "jsonl")
    assert result.code == 1
    assert [json.loads(line) for line in result.out.splitlines()] == [ANSWERS["query-status"], {}]
    assert "CommandNotFound" in result.err


async def test_the_prompt_completes_and_remembers(monitor: FakeBackend, served: Daemon, tmp_path: Path) -> None:
    """At a terminal: Tab completes commands and arguments from the VM's schema, Ctrl-D ends, the history is kept."""
    environ = {"XDG_STATE_HOME": str(tmp_path / "state"), "INPUTRC": "/dev/null"}
    with terminal("qmp", "web", "--socket", served.served.path, environ=environ) as prompt:
        await in_thread(prompt.read_until, b"web> ")
        prompt.type(b"query-st\t")
        await in_thread(prompt.read_until, b"query-status ")
        prompt.type(b"\n")
        # keys pressed between two prompts would be echoed by the terminal itself
        await in_thread(prompt.read_until, b"}\r\nweb> ")
        prompt.type(b"device_d\t")
        await in_thread(prompt.read_until, b"device_del ")
        prompt.type(b"i\t")
        await in_thread(prompt.read_until, b"device_del id=")
        prompt.type(b"net0\n")
        await in_thread(prompt.read_until, b"{}\r\nweb> ")
        prompt.type(b"\x04")
        assert await in_thread(prompt.end) == 0
        assert prompt.is_restored
    assert monitor.calls[-1][:3] == ("web", "device_del", {"id": "net0"})
    history = tmp_path / "state" / "qsup" / "qmp_history"
    assert [line.strip() for line in history.read_text().splitlines()] == ["query-status", "device_del id=net0"]
    assert history.stat().st_mode & 0o077 == 0


def test_completion_survives_a_vm_that_does_not_answer() -> None:
    """A schema that cannot be had, or is not one, completes nothing; names that are none are left out."""

    def refuse(command: str) -> object:
        raise MonitorTimeout("no answer")

    assert Completer(refuse).candidates("", "q") == []
    assert Completer(lambda command: {"not": "a list"}).candidates("", "q") == []
    hostile = [{"name": "query-\033]0;x"}, {"name": "query-ok"}]
    assert Completer(lambda command: hostile).candidates("", "q") == ["query-ok "]


@pytest.mark.parametrize(
    ("before", "word", "found"),
    [
        ("", "device_", ["device_add ", "device_del "]),
        ("device_add ", "", ["driver=", "bus="]),
        ("device_add driver=x ", "b", ["bus="]),
        ("query-status ", "", []),
        ("unknown ", "", []),
    ],
)
def test_completion_follows_the_schema(before: str, word: str, found: list[str]) -> None:
    """The first word is a command, further ones its arguments."""
    assert Completer(ANSWERS.__getitem__).candidates(before, word) == found


# the guest agent


@pytest.fixture
def guest(served: Daemon, monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """A supervisor whose guests answer."""
    backend = served.backend

    async def agent(name: str, command: str, arguments: Mapping[str, Any], timeout: float) -> object:
        backend.calls.append((name, command, arguments, timeout))
        if command == "info":
            return {"version": "7.2.1", "supported_commands": [{"name": "guest-ping", "enabled": True}]}
        if command == "addresses":
            address = {"ip-address-type": "ipv4", "ip-address": "10.0.2.15", "prefix": 24}
            return [
                {"name": "lo", "hardware-address": "", "ip-addresses": []},
                {"name": f"eth0{EVIL}", "hardware-address": "52:54:00:12:34:56", "ip-addresses": [address]},
            ]
        if command != "exec":
            return {}
        if arguments["path"] == "missing":
            raise AgentCommandError("guest-exec", "GenericError", "no such file", instance=name)
        if arguments["path"] == "binary":
            raw = base64.b64encode(b"\xff\xfe\0x").decode()
            return {
                "exit_code": 0,
                "signal": None,
                "stdout": "\ufffd\ufffd\0x",
                "stdout_base64": raw,
                "stderr": "",
                "truncated": False,
            }
        killed = arguments["path"] == "killed"
        return {
            "exit_code": None if killed else 7,
            "signal": 9 if killed else None,
            "stdout": f"out {EVIL}\n",
            "stderr": "err\n",
            "truncated": killed,
        }

    monkeypatch.setattr(backend, "agent", agent)
    return backend


async def test_the_agent_answers(guest: FakeBackend, ctl: Ctl) -> None:
    """Ping, info and addresses read well, and nothing of the guest's steers the terminal."""
    assert await ctl.ok("agent", "web", "ping") == "the guest agent answers\n"
    info = await ctl.ok("agent", "web", "info")
    assert "Version: 7.2.1\n" in info
    assert "Commands: guest-ping\n" in info
    addresses = await ctl.ok("agent", "web", "addresses")
    assert addresses.splitlines()[0].split() == ["INTERFACE", "MAC", "ADDRESSES"]
    assert "10.0.2.15/24" in addresses
    assert "\033" not in addresses


async def test_a_command_in_the_guest_ends_as_ours(guest: FakeBackend, ctl: Ctl) -> None:
    """``exec`` keeps output and error output apart and ends with the command's exit code, or 128 + its signal."""
    result = await ctl("agent", "web", "exec", "--timeout=5", "--", "ls", "-l", "--color")
    assert (result.code, result.out, result.err) == (7, f"out {EVIL}\n", "err\n")
    assert guest.calls[-1] == ("web", "exec", {"path": "ls", "arguments": ["-l", "--color"]}, 5.0)
    result = await ctl("agent", "web", "exec", "killed")
    assert result.code == 137
    assert "the output was longer" in result.err


async def test_output_that_is_no_text_comes_byte_by_byte(guest: FakeBackend, served: Daemon) -> None:
    """What is copied out of a guest through a pipe is what was there."""
    done = await in_thread(partial(run_process, "agent", "web", "exec", "binary", "--socket", served.served.path))
    assert (done.returncode, done.stdout) == (0, b"\xff\xfe\0x")


async def test_a_command_in_the_guest_gets_input(guest: FakeBackend, ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--stdin`` hands standard input over."""
    monkeypatch.setattr("sys.stdin", io.StringIO("some input"))
    assert (await ctl("agent", "web", "exec", "--stdin", "cat")).code == 7
    assert guest.calls[-1][2] == {"path": "cat", "arguments": [], "input": "some input"}


async def test_guest_output_is_harmless_on_a_terminal(guest: FakeBackend, served: Daemon) -> None:
    """At a terminal, what a command in the guest prints steers nothing; the exit code is still its own."""
    with terminal("agent", "web", "exec", "ls", "--socket", served.served.path) as shown:
        assert await in_thread(shown.end) == 7
        assert b"\033" not in shown.seen
        assert b"out " in shown.seen


@pytest.mark.parametrize("words", [["exec"], ["ping", "x"], ["dance"], []])
async def test_wrong_words_to_the_agent_are_refused(guest: FakeBackend, ctl: Ctl, words: list[str]) -> None:
    """``exec`` needs a program, the others take none: code 2, nothing sent."""
    assert (await ctl("agent", "web", *words)).code == 2
    assert guest.calls == []


async def test_the_agents_errors_name_their_class(guest: FakeBackend, ctl: Ctl) -> None:
    """What the agent refuses is told in its words."""
    result = await ctl("agent", "web", "exec", "missing")
    assert (result.code, result.err) == (1, "qsupctl: web: guest-exec: no such file (GenericError)\n")


async def test_json_of_exec_keeps_the_exit_code(guest: FakeBackend, ctl: Ctl) -> None:
    """For programs the whole result is printed, and the exit code stays the command's."""
    result = await ctl("agent", "web", "exec", "ls", "-o", "json")
    assert (result.code, json.loads(result.out)["stderr"]) == (7, "err\n")
