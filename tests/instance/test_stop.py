"""Asking a guest to end: by whom, how often, and for how long; and ending all that a VM consists of."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from qsup.errors import HostError, MonitorTimeout
from qsup.instance import stop
from qsup.instance.life import Life
from qsup.instance.messages import Happened, Message
from qsup.instance.state import Event
from qsup.qmp import commands
from qsup.unit.sections.service import ServiceSection

LIFE = cast("Life", SimpleNamespace(number=1, record=SimpleNamespace(name="web")))


async def ask(monkeypatch: pytest.MonkeyPatch, *answers: Exception | None, left: float) -> tuple[list[float], float]:
    """Ask a guest without an agent that never obeys: when its button was pressed, and when that was given up."""
    began, pressed, posted = trio.current_time(), list[float](), list[Message]()
    said = iter(answers)

    async def press(_: Any, *, timeout: float) -> None:
        pressed.append(trio.current_time() - began)
        if (error := next(said, None)) is not None:
            raise error

    monkeypatch.setattr(commands, "system_powerdown", press)
    await stop.ask_guest(LIFE, ServiceSection(stop_timeout=12.0), cast("Any", None), None, None, left, posted.append)
    assert posted == [Happened(life=1, event=Event.STAGE_TIMEOUT)]
    return pressed, trio.current_time() - began


async def test_the_button_is_pressed_until_it_is_heard(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A guest that is just booting hears the next time; the time is the unit's all the same."""
    assert await ask(monkeypatch, left=12.0) == ([0, 5, 10], 12)
    assert await ask(monkeypatch, left=7.0) == ([0, 5], 7)


async def test_a_monitor_that_does_not_take_it_ends_the_asking(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Nobody can hear: the next stage begins at once."""
    assert await ask(monkeypatch, MonitorTimeout("no answer"), left=12.0) == ([0], 0)
    assert await ask(monkeypatch, None, MonitorTimeout("no answer"), left=12.0) == ([0, 5], 5)


class Killed:
    """A process and its cgroup, either of which is killed."""

    def __init__(self, refusal: HostError | None = None) -> None:
        self.seen: list[str] = []
        self.refusal = refusal

    def send_signal(self, number: signal.Signals) -> None:
        """To the process."""
        self.seen.append(number.name)

    async def kill(self) -> None:
        """The whole cgroup."""
        await trio.lowlevel.checkpoint()
        self.seen.append("cgroup")
        if self.refusal is not None:
            raise self.refusal

    def thaw(self) -> None:
        """Let signals be taken."""
        self.seen.append("thawed")


@pytest.mark.parametrize("refusal", [None, HostError("no such luck")])
async def test_a_kill_is_for_all_of_the_vm_fake(
    refusal: HostError | None, autojump_clock: trio.testing.MockClock
) -> None:
    """QEMU first, by its own descriptor; then all else in its cgroup, which is thawed if that cannot be killed."""
    killed, posted = Killed(refusal), list[Message]()
    life = SimpleNamespace(number=1, record=SimpleNamespace(name="web"), process=killed, cgroup=killed)
    await stop.kill(cast("Life", life), posted.append)
    assert killed.seen == ["SIGKILL", "cgroup"] + (["thawed"] if refusal else [])
    assert posted == [Happened(life=1, event=Event.STAGE_TIMEOUT)], "the kernel keeps it"
