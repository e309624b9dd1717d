"""Tests of `qsup.instance.launch`: how a failed launch ends."""

from __future__ import annotations

import errno
import signal
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from qsup.errors import HostError, StartError
from qsup.host.pidfd import ExitStatus
from qsup.instance import launch
from qsup.instance.restart import RestartHistory
from qsup.unit.load import LoadedUnit
from qsup.unit.model import Unit

LOADED = LoadedUnit(name="web", unit=Unit(), files=(), etag="", text="")


@pytest.mark.parametrize("trouble", [HostError("the cgroup did not empty"), RuntimeError("a bug")])
async def test_clean_up_does_not_hide_why_a_launch_failed(monkeypatch: pytest.MonkeyPatch, trouble: Exception) -> None:
    """Whoever asked for the start hears its own error, whatever goes wrong while it is undone, and all is undone."""
    undone: list[str] = []

    def fail() -> None:
        raise trouble

    async def prepare(_unit: object, _services: object, _history: object, resources: AsyncExitStack, **_: Any) -> None:
        resources.callback(undone.append, "first")
        resources.callback(fail)
        raise StartError("QEMU's own words")

    monkeypatch.setattr(launch, "prepare", prepare)
    nothing = cast(Any, None)
    async with trio.open_nursery() as nursery:
        with pytest.raises(StartError, match="QEMU's own words"):
            await launch.launch(1, LOADED, nothing, nursery, nothing, RestartHistory())
    assert undone == ["first"]


async def test_what_the_kernel_refuses_of_a_launch_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever descriptors run out that were there at first: the launch has failed, in the kernel's words."""

    async def prepare(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "no words of the kernel")

    monkeypatch.setattr(launch, "prepare", prepare)
    nothing = cast(Any, None)
    async with trio.open_nursery() as nursery:
        with pytest.raises(HostError, match="could not start it: Too many open files"):
            await launch.launch(1, LOADED, nothing, nursery, nothing, RestartHistory())


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (ExitStatus(kind="signal", value=6), "KVM may not work here: no vmx"),
        (ExitStatus(kind="signal", value=signal.SIGSYS), "its sandbox forbids a system call that it made"),
    ],
)
def test_a_qemu_that_died_has_an_advice(status: ExitStatus, hint: str) -> None:
    """What was doubtful when the start was planned is told when it fails, and so is a trespass against the sandbox."""
    child = SimpleNamespace(status=status)
    output = SimpleNamespace(drain=lambda: None, text_since=lambda _start: "qemu-system-x86_64: Assertion failed\n")
    plan = SimpleNamespace(accel="kvm", warnings=("KVM may not work here: no vmx",))
    cgroup = SimpleNamespace(was_oom_killed=lambda _: True)
    prepared = SimpleNamespace(output=output, plan=plan, cgroup=cgroup)
    died = launch._died(cast(Any, child), cast(Any, prepared), 0)
    assert died.message == "Assertion failed"
    assert died.hint.startswith(hint)


def test_a_machine_that_has_no_iothreads_says_what_to_do() -> None:
    """QEMU speaks of something that no unit knows."""
    text = "qemu-system-x86_64: -device {}: ioeventfd is required for iothread\n"
    output = SimpleNamespace(drain=lambda: None, text_since=lambda _start: text)
    prepared = SimpleNamespace(output=output, plan=SimpleNamespace(accel="tcg", warnings=()), cgroup=None)
    child = SimpleNamespace(status=ExitStatus(kind="code", value=1))
    died = launch._died(cast(Any, child), cast(Any, prepared), 0)
    assert "is required for iothread" in died.message
    assert died.hint.startswith("leave `iothread` out of its disks")


def test_a_qemu_that_was_killed_for_want_of_memory_says_so() -> None:
    """It could say nothing itself; its cgroup has counted it."""
    child = SimpleNamespace(status=ExitStatus(kind="signal", value=signal.SIGKILL))
    output = SimpleNamespace(drain=lambda: None, text_since=lambda _start: "")
    plan = SimpleNamespace(accel="kvm", warnings=())
    prepared = SimpleNamespace(output=output, plan=plan, cgroup=SimpleNamespace(was_oom_killed=lambda _: True))
    assert "memory ran out" in launch._died(cast(Any, child), cast(Any, prepared), 0).message
    prepared.cgroup = SimpleNamespace(was_oom_killed=lambda _: False)
    assert "said nothing" in launch._died(cast(Any, child), cast(Any, prepared), 0).message
