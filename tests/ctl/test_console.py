"""The console at a pseudo-terminal, against the real API over a supervisor in memory.

Decides: what a person at a terminal meets, byte by byte.
Must not: need a guest; `tests/real` has one.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from qsup.ctl.terminal import overlap
from qsup.errors import DeniedError
from qsup.instance.state import State
from tests.api.calling import Daemon
from tests.api.fake import FakeConsole
from tests.ctl.running import Terminal, in_thread, run_process, terminal
from tests.waiting import wait_until

ESCAPE = b"\x1d"


@asynccontextmanager
async def console(served: Daemon, *options: str, name: str = "web") -> AsyncIterator[Terminal]:
    """Qsupctl console at a terminal, attached: the guest's prompt is there."""
    with terminal("console", name, "--socket", served.served.path, *options) as attached:
        await in_thread(attached.read_until, b"login: ")
        yield attached


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All that reaches guests, piece by piece."""
    pieces: list[bytes] = []
    send = FakeConsole.send

    async def note(self: FakeConsole, data: bytes) -> None:
        pieces.append(data)
        await send(self, data)

    monkeypatch.setattr(FakeConsole, "send", note)
    return pieces


async def detach(attached: Terminal) -> int:
    """Press Ctrl-]; the exit code."""
    attached.type(ESCAPE)
    code: int = await in_thread(attached.end)
    return code


async def test_keys_reach_the_guest_and_its_output_the_terminal(served: Daemon) -> None:
    """The terminal is raw: keys travel one by one, control characters too, and come back only as the guest's echo."""
    async with console(served) as attached:
        assert attached.is_raw
        for keys in (b"root\r", b"\x03", b"\x1a", b"\x04", b"\x1b[A", b"\xc3\xbc\x00"):
            before = attached.seen
            attached.type(keys)
            await in_thread(attached.wait, lambda keys=keys, before=before: attached.seen == before + keys, repr(keys))
        assert await detach(attached) == 0


async def test_detaching_restores_the_terminal(served: Daemon, typed: list[bytes]) -> None:
    """Ctrl-] ends it with code 0 and says so; the terminal is as before, and the guest never sees the key."""
    async with console(served) as attached:
        attached.type(b"ab" + ESCAPE + b"cd")
        assert await in_thread(attached.end) == 0
        assert attached.is_restored
        assert b"detached from web" in attached.seen
        await wait_until(lambda: not served.backend.consoles["web"], "the end of the attachment")
        assert b"".join(typed) == b"ab"


async def test_resizing_changes_nothing(served: Daemon) -> None:
    """A terminal that changes its size stays attached; a serial line has none."""
    async with console(served) as attached:
        for _ in range(20):
            attached.process.send_signal(signal.SIGWINCH)
        attached.type(b"still here")
        await in_thread(attached.read_until, b"still here")
        assert await detach(attached) == 0


async def test_a_guest_that_does_not_read_holds_nobody(served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that nobody takes are dropped with a bell in the end, and Ctrl-] always works."""

    async def never(self: FakeConsole, data: bytes) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(FakeConsole, "send", never)
    async with console(served) as attached:

        def type_until_the_bell() -> None:
            def bell() -> bool:
                attached.type(b"x" * 4000)
                return b"\a" in attached.seen

            attached.wait(bell, "a bell")

        await in_thread(type_until_the_bell)
        assert await detach(attached) == 0
        assert attached.is_restored


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGQUIT, 131)]
)
async def test_signals_restore_the_terminal(served: Daemon, number: signal.Signals, code: int) -> None:
    """A signal ends it as signals do, but with the terminal as it was."""
    async with console(served) as attached:
        attached.process.send_signal(number)
        assert await in_thread(attached.end) == code
        assert attached.is_restored
        assert b"Traceback" not in attached.seen


async def test_stopping_hands_the_terminal_back(served: Daemon) -> None:
    """While the program is stopped the terminal is its own; continued, it is raw again and still attached."""
    async with console(served) as attached:
        attached.process.send_signal(signal.SIGTSTP)
        await in_thread(attached.wait, lambda: attached.is_stopped, "the program stopped")
        assert attached.is_restored
        attached.process.send_signal(signal.SIGCONT)
        await in_thread(attached.wait, lambda: attached.is_raw, "the terminal raw again")
        attached.type(b"still here")
        await in_thread(attached.read_until, b"still here")
        assert await detach(attached) == 0


async def test_the_end_of_the_daemon_restores_the_terminal(served: Daemon) -> None:
    """What goes wrong while attached is told on a terminal that works again."""
    async with console(served) as attached:
        served.served.scope.cancel()
        assert await in_thread(attached.end) == 5
        assert attached.is_restored
        assert b"qsupctl: " in attached.seen
        assert b"Traceback" not in attached.seen


async def test_one_types_and_others_watch(served: Daemon) -> None:
    """A second client is told that somebody types, and how to look on; watchers see everything and type nothing."""
    async with console(served) as first:
        refused = await in_thread(run_process, "console", "web", "--socket", served.served.path)
        assert (refused.returncode, refused.stdout) == (1, b"")
        assert b"another client is typing" in refused.stderr
        assert b"hint: look on with: qsupctl console --watch web" in refused.stderr
        async with console(served, "--watch") as watcher:
            watcher.type(b"lost")
            assert await detach(watcher) == 0
            assert b"lost" not in watcher.seen
        assert await detach(first) == 0


def go_down(served: Daemon) -> None:
    """Let the VM end: its console closes first, before anybody has seen the process end."""
    for attached in list(served.backend.consoles["web"]):
        attached.hang_up()


class Refusal:
    """A console that cannot be had, as while a VM is down."""

    def __init__(self, name: str, *, write: bool) -> None:
        self._name = name

    async def __aenter__(self) -> FakeConsole:
        raise DeniedError("its console is not open", instance=self._name, hint="start it first")

    async def __aexit__(self, *exc: object) -> None:
        """Never reached."""


async def test_it_outlives_a_restart_of_the_vm(served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the VM is down the terminal waits and says so; when the VM is back it is attached again."""
    async with console(served) as attached:
        with monkeypatch.context() as down:
            down.setattr(served.backend, "console", Refusal)
            go_down(served)
            await in_thread(attached.read_until, b"the VM is down (waiting for it)")
            served.backend.set_state("web", State.DEAD, pid=None)
            served.backend.set_state("web", State.SPAWNING)
        before = len(attached.seen)
        served.backend.set_state("web", State.RUNNING)
        await in_thread(attached.wait, lambda: b"login: " in attached.seen[before:], "the prompt of the next life")
        attached.type(b"again")
        await in_thread(attached.read_until, b"again")
        assert await detach(attached) == 0
        assert attached.is_restored


async def test_what_was_shown_is_not_shown_again(served: Daemon) -> None:
    """Attached again, the recent output that the daemon sends first appears only as far as it is new."""
    async with console(served) as attached:
        attached.type(b"what was said in the life before")
        await in_thread(attached.read_until, b"before")
        with pytest.MonkeyPatch.context() as patch:
            send = FakeConsole.receive

            async def receive(self: FakeConsole) -> bytes:
                if await send(self) == b"login: ":
                    return b"login: what was said in the life before, and in this one"
                return b""

            patch.setattr(FakeConsole, "receive", receive)
            go_down(served)
            await in_thread(attached.read_until, b", and in this one")
        assert attached.seen.count(b"in the life before") == 1


@given(shown=st.binary(max_size=60), kept=st.integers(0, 60), new=st.binary(max_size=20))
def test_history_is_recognised(shown: bytes, kept: int, new: bytes) -> None:
    """Whatever part of the output is sent again is recognised, up to what may be chance; nothing new is swallowed."""
    history = shown[len(shown) - min(kept, len(shown)) :] + new
    found = overlap(shown, history)
    assert found == 0 or shown.endswith(history[:found])
    assert found >= min(kept, len(shown)) or min(kept, len(shown)) < 16


async def test_waiting_for_a_vm_can_be_ended(served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM that is down is waited for, until Ctrl-]."""
    served.backend.set_state("web", State.DEAD, pid=None)
    monkeypatch.setattr(served.backend, "console", Refusal)
    with terminal("console", "web", "--socket", served.served.path) as waiting:
        await in_thread(waiting.read_until, b"waiting for it")
        assert await detach(waiting) == 0
        assert waiting.is_restored


async def test_no_wait_ends_with_the_vm(served: Daemon) -> None:
    """``--no-wait`` ends when the console does."""
    async with console(served, "--no-wait") as attached:
        go_down(served)
        assert await in_thread(attached.end) == 0
        assert attached.is_restored


async def test_a_vm_without_console_is_told(served: Daemon) -> None:
    """There is nothing to wait for then."""
    served.backend.views["web"] = evolve(served.backend.views["web"], console="none")
    with terminal("console", "web", "--socket", served.served.path) as refused:
        assert await in_thread(refused.end) == 1
        assert b"qsupctl: web: it has no console" in refused.seen
        assert refused.is_restored
    nowhere = await in_thread(run_process, "console", "nope", "--socket", served.served.path)
    assert nowhere.returncode == 4


def type_from_pipe(served: Daemon, keys: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Run qsupctl console with pipes instead of a terminal."""
    return run_process("console", "web", "--socket", served.served.path, *options, input=keys)


async def test_a_pipe_is_typed_and_its_echo_shown(served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a pipe everything is typed, bytes of any kind, and output shown until the VM goes down."""
    keys = bytes(range(256)) * 1000
    send, received = FakeConsole.send, 0

    async def send_and_hang_up(self: FakeConsole, data: bytes) -> None:
        nonlocal received
        received += len(data)
        await send(self, data)
        if received == len(keys):
            self.hang_up()

    monkeypatch.setattr(FakeConsole, "send", send_and_hang_up)
    done = await in_thread(type_from_pipe, served, keys)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"login: " + keys


async def test_a_pipe_ends_at_its_time(served: Daemon) -> None:
    """``--timeout`` ends it in good order."""
    done = await in_thread(type_from_pipe, served, b"hello", "--timeout", "300ms")
    assert (done.returncode, done.stdout) == (0, b"login: hello")
