"""What the guest works on while others change its VM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
import trio
import trio.testing

from qsup.errors import DeniedError, GuestRefused, MonitorTimeout, NoSpaceError, OperationCancelled, QmpCommandError
from qsup.instance.context import Changes, Context
from qsup.instance.jobs import Jobs
from qsup.instance.messages import Finished
from qsup.instance.operation import GIVEN_UP, UNWRITTEN, Operation, OperationState, uncancellable
from qsup.instance.operations import OperationTable
from qsup.instance.works import Works


class _Memory:
    """A journal that keeps nothing."""

    async def append(self, *records: dict[str, Any], flush: bool = True) -> None:
        """Take it."""
        await trio.lowlevel.checkpoint()


class _Context:
    """What a goal works on, as far as these tests look at it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.kept = 0

    def progress(self, words: str) -> None:
        """It stands so."""
        self.said.append(words)

    def keep(self) -> None:
        """It is written down."""
        self.kept += 1


class _Goal:
    """Reached after some steps; each of `answers` is said, or raised, in turn."""

    def __init__(self, key: str, *answers: str | Exception) -> None:
        self.key = key
        self.answers = list(answers)
        self.besides: Changes = {"for": {}}
        self.stopped = False

    async def step(self, context: Context) -> str:
        """The next answer."""
        await trio.lowlevel.checkpoint()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def result(self, context: Context) -> Mapping[str, Any]:
        """What has come of it."""
        await trio.lowlevel.checkpoint()
        return {"reached": True}

    async def stop(self, context: Context) -> None:
        """Give it up."""
        await trio.lowlevel.checkpoint()
        self.stopped = True


class _Stuck(_Goal):
    """Given up only once QEMU is gone."""

    def __init__(self, key: str, *answers: str | Exception) -> None:
        super().__init__(key, *answers)
        self.asked, self.ended = trio.Event(), trio.Event()

    async def stop(self, context: Context) -> None:
        """Wait, and fail."""
        self.asked.set()
        await self.ended.wait()
        raise MonitorTimeout("no answer")


class _Vm:
    """The works of one VM, and what becomes of them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.context: _Context | None = _Context()
        self.operations = OperationTable(_Memory())
        self._post, self._ended = trio.open_memory_channel[Finished](10)
        make, file, read, post = self._make, self._file, self._read, self._post.send_nowait
        self.works = Works("web", Jobs(nursery), self.operations, make, file, read, post)
        self.filed: list[tuple[str, ...]] = []
        self.files: Changes | None = {"a": {"b": 1}}
        self.full = False

    async def _file(self, operation: str, keys: Mapping[str, Changes]) -> None:
        await trio.lowlevel.checkpoint()
        if self.full:
            raise NoSpaceError("the disk is full")
        assert all(besides in ({"for": {}}, {"a": {"max": 3}}) for key, besides in keys.items())
        self.filed.append(tuple(keys))

    async def _read(self) -> Changes | None:
        await trio.lowlevel.checkpoint()
        return self.files

    async def _make(self, operation: str) -> Context | None:
        await trio.lowlevel.checkpoint()
        return cast(Context | None, self.context)

    def begin(self, *goals: _Goal) -> Operation:
        """A new operation with these goals."""
        operation = self.operations.begin("set", "web", uid=0, arguments={"persist": True})
        self.works.begin(operation.id, goals, {"changed": True, "keys": {"done.already": {}}}, "start")
        return operation

    async def outcome(self) -> Finished:
        """How the next of them ends."""
        with trio.fail_after(60):
            return await self._ended.receive()

    async def lasts(self) -> bool:
        """Whether none of them ends within half a minute."""
        with trio.move_on_after(30) as scope:
            await self._ended.receive()
        return scope.cancelled_caught


async def test_it_ends_once_all_is_reached(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    """Each goal is told by its key, beside what was true before; where it stands is told meanwhile."""
    vm = _Vm(nursery)
    operation = vm.begin(_Goal("memory.size", "half", ""), _Goal("cpu.vcpus", "one left", "none left", ""))
    ended = await vm.outcome()
    assert (ended.operation, ended.error) == (operation.id, None)
    keys = {"done.already": {}, "memory.size": {"reached": True}, "cpu.vcpus": {"reached": True}}
    assert ended.result == {"changed": True, "keys": keys}
    assert vm.context is not None
    assert vm.context.said == ["half; one left", "none left"]
    assert vm.filed == [("memory.size", "cpu.vcpus")]


async def test_what_is_true_and_cannot_be_written_down_has_failed(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Nobody is told that it lasts."""
    vm = _Vm(nursery)
    vm.full = True
    vm.begin(_Goal("memory.size", "half", ""))
    assert isinstance((await vm.outcome()).error, NoSpaceError)


async def test_a_silent_qemu_ends_nothing(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    """It is asked again, also after its monitor was out of reach."""
    vm = _Vm(nursery)
    context, vm.context = vm.context, None
    vm.begin(_Goal("memory.size", MonitorTimeout("no answer"), ""))
    assert await vm.lasts()
    vm.context = context
    assert (await vm.outcome()).error is None


@pytest.mark.parametrize(
    "error", [GuestRefused("no"), QmpCommandError("device_del", "GenericError", "no", instance="")]
)
async def test_a_refusal_ends_it(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, error: Exception
) -> None:
    """The guest's and QEMU's alike; what has come true is told, too."""
    vm = _Vm(nursery)
    vm.begin(_Goal("cpu.vcpus", ""), _Goal("memory.size", "half", error))
    ended = await vm.outcome()
    assert (ended.error, ended.result) == (error, None)
    assert ended.error is not None
    lost = {"applied": "start", "why": ended.error.message}
    keys = {"done.already": {}, "cpu.vcpus": {"reached": True}, "memory.size": lost}
    assert ended.error.details["keys"] == keys
    assert vm.filed == []


async def test_it_can_be_stopped(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    """QEMU is told, that is written down, and it ends as cancelled; a second time there is nothing to stop."""
    vm = _Vm(nursery)
    goal = _Goal("memory.size", "half")
    operation = vm.begin(goal)
    assert await vm.lasts()
    await vm.works.stop(operation.id)
    assert isinstance((await vm.outcome()).error, OperationCancelled)
    assert vm.context is not None
    assert (goal.stopped, vm.context.kept, vm.filed) == (True, 1, [])
    with pytest.raises(DeniedError):
        await vm.works.stop(operation.id)


async def test_what_qemu_cannot_be_told_goes_on(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    """A stop that fails stops nothing."""
    vm = _Vm(nursery)
    operation = vm.begin(_Goal("memory.size", "half", "half", ""))
    context, vm.context = vm.context, None
    with pytest.raises(DeniedError, match="cannot be told"):
        await vm.works.stop(operation.id)
    vm.context = context
    assert (await vm.outcome()).error is None


async def test_a_later_change_overtakes_its_key_alone(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """An operation that has nothing left ends as cancelled, another goes on with the rest."""
    vm = _Vm(nursery)
    one = vm.begin(_Goal("memory.size", "half"))
    both = vm.begin(_Goal("memory.size", "half"), _Goal("cpu.vcpus", "one left", ""))
    await vm.works.overtake("memory.size")
    assert vm.operations.get(both.id).overtaken == {"memory.size": GIVEN_UP}
    first, second = await vm.outcome(), await vm.outcome()
    assert (first.operation, type(first.error)) == (one.id, OperationCancelled)
    assert (second.operation, second.error) == (both.id, None)
    assert second.result is not None
    assert second.result["keys"].keys() == {"done.already", "cpu.vcpus"}
    assert vm.filed == [("cpu.vcpus",)]


async def test_what_a_later_change_has_written_is_not_written_over(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """It comes true all the same, and says so; where the later one could not be written nothing has changed."""
    vm = _Vm(nursery)
    operation = vm.begin(_Goal("memory.size", "half", ""), _Goal("cpu.vcpus", "one left", ""))
    with pytest.raises(NoSpaceError):
        async with vm.works.overruled({"memory": {"size": "1G"}}):
            raise NoSpaceError("the disk is full")
    assert vm.operations.get(operation.id).overtaken == {}
    async with vm.works.overruled({"memory": {"size": "1G", "slots": 2}}):
        assert vm.operations.get(operation.id).overtaken == {"memory.size": UNWRITTEN}
    ended = await vm.outcome()
    assert ended.result is not None
    assert ended.result["keys"]["memory.size"].keys() == {"reached", "why"}
    assert ended.result["keys"]["cpu.vcpus"].keys() == {"reached"}
    assert vm.filed == [("cpu.vcpus",)]


@pytest.mark.parametrize("edited", ["a.size", "a.max", "b.size", ""])
async def test_what_somebody_has_edited_is_not_written_over(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, edited: str
) -> None:
    """Neither the key nor what goes with it; what else the files say is no matter, nor that they cannot be read."""
    vm, goal = _Vm(nursery), _Goal("a.size", "half", "")
    goal.besides = {"a": {"max": 3}}
    vm.files = {"a": {"size": 1, "max": 2}, "b": {"size": 1}}
    vm.begin(goal)
    await trio.testing.wait_all_tasks_blocked()
    section, _, name = edited.partition(".")
    vm.files = {**vm.files, section: {**vm.files[section], name: 9}} if edited else None
    outcome = await vm.outcome()
    assert outcome.error is None and outcome.result is not None
    is_kept = section == "a"
    assert vm.filed == ([] if is_kept else [("a.size",)])
    assert ("a later change" in outcome.result["keys"]["a.size"].get("why", "")) == is_kept


async def test_the_vms_end_ends_them(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    """They are named to whoever ends their operations, with what has come true by that, and nothing goes on."""
    vm = _Vm(nursery)
    operation = vm.begin(_Goal("memory.size", "half"))
    (left,) = vm.works.life_over()
    assert (left.operation, left.result) == (operation.id, {"changed": True, "keys": {"done.already": {}}})
    assert left.besides == {"memory.size": {"for": {}}}
    assert vm.works.life_over() == ()
    assert await vm.lasts()


async def test_what_is_being_ended_when_the_vm_ends_is_cancelled(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Its wish does not count at the next start, and whoever ends it hears no error."""
    vm = _Vm(nursery)
    goal = _Stuck("memory.size", "half")
    operation = vm.begin(goal)
    assert await vm.lasts()
    async with trio.open_nursery() as children:
        children.start_soon(vm.works.stop, operation.id)
        await goal.asked.wait()
        assert vm.works.life_over() == ()
        goal.ended.set()
    ended = await vm.outcome()
    assert (ended.operation, type(ended.error)) == (operation.id, OperationCancelled)


async def test_what_lasts_can_be_cancelled_by_a_later_daemon_too() -> None:
    """An operation says so itself, from when QEMU has taken it until its end."""
    table = OperationTable(_Memory())
    operation = table.begin("set", "web", uid=0)
    assert "cannot be cancelled" in uncancellable(operation).message
    await table.pend(operation.id, "acknowledged")
    assert table.get(operation.id).cancellable
    detach = table.begin("detach", "web", uid=0)
    await table.pend(detach.id, "acknowledged")
    assert not table.get(detach.id).cancellable
    table.finish(operation.id, error=OperationCancelled("cancelled", instance="web"))
    ended = table.get(operation.id)
    assert (ended.state, ended.progress, ended.cancellable) == (OperationState.CANCELLED, "cancelled", False)
    assert "has ended" in uncancellable(ended).message
