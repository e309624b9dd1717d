"""``memory.size`` while a VM runs: by virtio-mem, by memory modules, or by the balloon, as its unit says.

Decides: what each of them can do, in which steps, and what is said of a guest that gives back less than it was asked
for.
Must not: believe QEMU's answer to a request: what the guest has done shows by what QEMU has afterwards.

virtio-mem and the balloon are asked for a size, and the guest comes nearer to it in its own time. Linux rests for a
minute or more after it has failed to give memory back, unless it is asked anew, so it is (virtio_mem.c). A module comes
at once, and goes as a whole or not at all. Long because each of the three has its own steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import trio
from attrs import evolve

from qsup.errors import ChangeError, GuestRefused, MonitorError, QmpCommandError, QsupError
from qsup.instance import hotplug as wiring
from qsup.instance.context import NOTHING, Changes, Context, Goal
from qsup.instance.hardware import Attached, Hardware
from qsup.instance.hotplug import STEP_TIMEOUT, Piece
from qsup.plan.memory import GROWTH, growth_nodes, module_part
from qsup.qmp import commands
from qsup.qmp.results import MemoryDevice
from qsup.unit.compare import Change
from qsup.unit.effective import effective_resize, huge_page
from qsup.unit.model import Unit
from qsup.unit.needs import too_little_memory
from qsup.unit.quantity import format_size
from qsup.unit.sections.memory import MODULE_BLOCK

SIZE: Final = "memory.size"
_GROWTH_PATH = f"/machine/peripheral/{GROWTH}"
#: Seconds after which a guest that gives no memory back is asked once more.
_ASK_AGAIN = 10.0


class Memory:
    """Carries out changes of ``memory.size``."""

    def concerns(self, key: str) -> bool:
        """That key alone."""
        return key == SIZE

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """See that the VM was started with what such a change takes."""
        hardware, wanted = context.hardware, unit.memory.size
        base, way = hardware.summary.memory_base, effective_resize(hardware.unit)
        if wanted > hardware.unit.memory.size and (why := too_little_memory(unit, hardware.summary.accel)):
            raise ChangeError(f"limits.{why}", hint="let it have more of the host first ([limits] memory)")
        if not way:
            hint = "set [memory] max, or balloon = true, in its unit, and restart the VM"
            raise ChangeError("it has neither a balloon nor room for more memory", hint=hint)
        if way == "balloon":
            if wanted > base:
                words = f"it was started with {format_size(base)}, and a balloon gives it no more"
                raise ChangeError(words, hint="set [memory] max in its unit, and restart the VM")
            return
        if wanted < base:
            words = f"it was started with {format_size(base)}, which it keeps while it runs"
            raise ChangeError(words, hint="change the unit, and restart the VM")
        if way == "dimm":
            _check_modules(hardware, wanted)

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Any]:
        """Ask for it; what the guest has not done at once becomes a goal."""
        await context.overtake(SIZE)
        hardware, way = context.hardware, effective_resize(context.hardware.unit)
        more = unit.memory.size - hardware.unit.memory.size
        if more > 0 and way != "balloon":
            nodes = growth_nodes(hardware.unit, hardware.summary)
            await context.services.memory.check_more(context.name, hardware.unit, nodes, more)
            await context.services.capacity.take_more(context.name, size=unit.memory.size)
        if way == "balloon":
            # what QEMU was started with stays the most, however little of it the guest has
            _keep_memory(hardware, max=hardware.summary.memory_base, resize="balloon")
        elif way == "virtio-mem":
            _keep_memory(hardware, min=hardware.summary.memory_base)
        goal = memory_goal(unit, context.hardware)
        if isinstance(goal, _Modules):
            before = hardware.unit.memory.size
            try:
                await goal.grow(context)
            except QsupError:
                _settle(context, before)
                raise
        try:
            waits = await goal.step(context)
        except QsupError:
            if isinstance(goal, _Growth) and not goal.may_come:
                _settle(context, unit.memory.size - more)
            raise
        if waits:
            context.goals.append(goal)
            return {}
        context.reached.append(goal)
        return {SIZE: await goal.result(context)}


def memory_goal(unit: Unit, hardware: Hardware) -> Goal:
    """The goal of a unit that is to have another size."""
    way, wanted = effective_resize(hardware.unit), unit.memory.size
    if way == "balloon":
        return _Balloon(wanted, hardware.summary.memory_base)
    return _Modules(wanted) if way == "dimm" else _Growth(wanted, hardware.summary.memory_base)


def _keep_size(hardware: Hardware, size: int) -> None:
    _keep_memory(hardware, size=size)


def _keep_memory(hardware: Hardware, **values: Any) -> None:
    hardware.set_unit(evolve(hardware.unit, memory=evolve(hardware.unit.memory, **values)))


def _settle(context: Context, size: int) -> None:
    """So much of the host is promised to it: what it has yet to give back is its own until then."""
    context.services.capacity.settle(context.name, size=size)


def _stands(size: int, wanted: int, before: int | None) -> str:
    """How far the guest is, where it is known from where it came.

    >>> _stands(3 << 28, 1 << 29, 1 << 30)
    'gave back 256M of 512M: it has 768M and is to have 512M'
    """
    words = f"it has {format_size(size)} and is to have {format_size(wanted)}"
    if before is None or before == wanted:
        return words
    done, all_of_it = abs(size - before), format_size(abs(wanted - before))
    told = "gave back" if wanted < before else "took"
    return f"{told} {format_size(done) if done else 'nothing'} of {all_of_it}: {words}"


# virtio-mem


class _Growth:
    """So much memory in all, by virtio-mem.

    Args:
        base: what the machine was started with.

    Attributes:
        may_come: QEMU was told to have its guest take it, though it may not have answered.
    """

    key: str = SIZE

    def __init__(self, wanted: int, base: int) -> None:
        self.may_come = False
        self._wanted = wanted
        self._base = base
        self._before: int | None = None
        self._asked = 0.0
        self._answers = False

    @property
    def besides(self) -> Changes:
        """The machine starts as small as it did; but a guest that has not taken any yet would never have the rest."""
        return {"memory": {"min": format_size(self._base)}} if self._answers else {}

    async def step(self, context: Context) -> str:
        """Ask where that was not done, or long ago, and look."""
        base, device = self._base, await _growth(context)
        _settle(context, max(base + device.size, self._wanted))
        self._answers = self._answers or device.size > 0
        target, now = self._wanted - base, trio.current_time()
        if device.requested != target:
            self._before, self._asked = base + device.size, now
            await self._request(target, context)
            device = await _growth(context)
        context.note({"memory_size": base + device.size})
        self._answers = self._answers or device.size > 0
        if device.size == target:
            return ""
        if device.size > target and now - self._asked > _ASK_AGAIN:
            self._asked = now
            # the guest only hears of a change
            await self._request(device.size, context)
            await self._request(target, context)
        return _stands(base + device.size, self._wanted, self._before)

    async def _request(self, size: int, context: Context) -> None:
        self.may_come = True
        try:
            await commands.qom_set(context.monitor, _GROWTH_PATH, "requested-size", size, timeout=STEP_TIMEOUT)
        except QmpCommandError:
            self.may_come = False
            raise

    async def result(self, context: Context) -> Mapping[str, Any]:
        """What it has."""
        return await _told(context)

    async def stop(self, context: Context) -> None:
        """The guest is asked for what it has."""
        size = (await _growth(context)).size
        await self._request(size, context)
        _keep_size(context.hardware, context.hardware.summary.memory_base + size)
        _settle(context, context.hardware.unit.memory.size)
        await _told(context)


async def _growth(context: Context) -> MemoryDevice:
    for device in await commands.query_memory_devices(context.monitor, timeout=STEP_TIMEOUT):
        if device.id == GROWTH:
            return device
    words = "it has no virtio-mem device"
    raise ChangeError(words, hint="it was started with size = max, or somebody removed it: restart the VM")


async def _told(context: Context) -> Mapping[str, Any]:
    size = await commands.query_memory_size(context.monitor, timeout=STEP_TIMEOUT)
    context.note({"memory_size": size})
    if context.hardware.unit.memory.balloon:
        # what the balloon leaves counts modules, too, and no event tells of it when one comes or goes
        context.note({"memory_actual": await commands.query_balloon(context.monitor, timeout=STEP_TIMEOUT)})
    return {"size": size}


# the balloon


class _Balloon:
    """So much memory left to the guest by its balloon.

    Args:
        base: what the machine has.
    """

    key: str = SIZE

    def __init__(self, wanted: int, base: int) -> None:
        self._wanted = wanted
        self._base = base
        self._before: int | None = None
        self._asked = False
        self._answers = False

    @property
    def besides(self) -> Changes:
        """The machine stays as large as it is; but where no guest has answered yet, less would only be a wish."""
        if self._wanted >= self._base or not self._answers:
            return {}
        return {"memory": {"max": format_size(self._base), "resize": "balloon"}}

    async def step(self, context: Context) -> str:
        """Ask once, which a balloon's driver keeps to, and look."""
        actual = await _actual(context)
        context.note({"memory_actual": actual})
        self._answers = self._answers or actual < self._base
        if actual == self._wanted:
            return ""
        if not self._asked:
            self._before = actual
            await commands.balloon(context.monitor, self._wanted, timeout=STEP_TIMEOUT)
            self._asked = True
        return _stands(actual, self._wanted, self._before)

    async def result(self, context: Context) -> Mapping[str, Any]:
        """What the guest has left."""
        actual = await _actual(context)
        context.note({"memory_actual": actual})
        return {"actual": actual}

    async def stop(self, context: Context) -> None:
        """The guest is asked for what it has."""
        actual = await _actual(context)
        await commands.balloon(context.monitor, actual, timeout=STEP_TIMEOUT)
        _keep_size(context.hardware, actual)


async def _actual(context: Context) -> int:
    actual = await commands.query_balloon(context.monitor, timeout=STEP_TIMEOUT)
    if actual is None:
        raise ChangeError("it has no balloon that works", hint="its guest has no driver for it, or it was removed")
    return actual


# memory modules


def _check_modules(hardware: Hardware, wanted: int) -> None:
    difference, slots = wanted - hardware.unit.memory.size, hardware.unit.memory.slots
    block = max(MODULE_BLOCK, huge_page(hardware.unit))
    if difference % block:
        raise ChangeError(
            f"a memory module has a multiple of {format_size(block)}, not {format_size(abs(difference))}",
            hint=f"it has {format_size(hardware.unit.memory.size)} now",
        )
    taken = [part for part in hardware.summary.parts if part.entry.startswith("memory.") and part.state != "coming"]
    if difference > 0 and len(taken) >= slots:
        hint = "raise [memory] slots in its unit, and restart the VM"
        raise ChangeError(f"all {slots} slots for memory modules are taken", hint=hint)


class _Modules:
    """So much memory in all, by memory modules."""

    key: str = SIZE
    besides: Changes = NOTHING

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._before: int | None = None
        self._asked: dict[str, float] = {}

    async def grow(self, context: Context) -> None:
        """Plug one module with what is missing, or nothing."""
        hardware, modules = context.hardware, await _modules(context)
        for left in hardware.in_state("coming"):
            # what a killed daemon left: QEMU has all of it or, once its memory is given up, nothing
            if left.entry in modules:
                hardware.mark(left.entry, "there")
            elif left.entry.startswith("memory."):
                await wiring.give_up(left, context.monitor)
                hardware.remove(left.entry)
        missing = self._wanted - _total(hardware, modules)
        if missing <= 0:
            return
        free = (index for index in range(hardware.unit.memory.slots) if hardware.part(f"memory.{index}") is None)
        part = module_part(next(free), missing, hardware.unit, hardware.summary)
        attached = Attached(part=part.plan())
        hardware.add(attached)
        hardware.mark(part.entry, "coming")
        try:
            context.keep()
            await wiring.attach([Piece(part=part, attached=attached)], hardware, context.monitor, {})
        except MonitorError:
            raise
        except BaseException:
            hardware.remove(part.entry)
            raise
        _keep_size(hardware, self._wanted)

    async def step(self, context: Context) -> str:
        """Ask for the last ones, and anew, as a guest that was reset knows of no question; until none is too much."""
        hardware, modules = context.hardware, await _modules(context)
        total = _total(hardware, modules)
        _settle(context, max(total, self._wanted))
        context.note({"memory_size": total})
        if total <= self._wanted:
            return ""
        surplus = _surplus(modules, total - self._wanted, total)
        for entry in surplus:
            part = hardware.part(entry)
            if part is None:
                continue  # somebody else's, or just being tidied up after
            if entry in self._asked and part.state != "leaving":
                _keep_size(hardware, total)
                raise GuestRefused(
                    f"the guest does not let memory module {entry.partition('.')[2]} go: it has {format_size(total)}",
                    hint="it can give back only what it has onlined as movable (memhp_default_state=online_movable)",
                )
            now = trio.current_time()
            if now - self._asked.get(entry, now - _ASK_AGAIN) >= _ASK_AGAIN:
                self._before = self._before or total
                self._asked[entry] = now
                hardware.mark(entry, "leaving")
                try:
                    await wiring.ask_to_go(part, context.monitor)
                except QmpCommandError as error:
                    hardware.mark(entry, "there")
                    raise ChangeError(f"QEMU does not remove {entry}: {error.message}") from error
        return _stands(total, self._wanted, self._before)

    async def result(self, context: Context) -> Mapping[str, Any]:
        """What it has, once nothing of what went is left."""
        modules = await _modules(context)
        for part in context.hardware.in_state("leaving"):
            if part.entry.startswith("memory.") and part.entry not in modules:
                await wiring.give_up(part, context.monitor)
                context.hardware.remove(part.entry)
        return await _told(context)

    async def stop(self, context: Context) -> None:
        """QEMU cannot take the question back: the guest may still let one go, and then that is shown."""
        modules = await _modules(context)
        for entry in modules:
            context.hardware.mark(entry, "there")
        _keep_size(context.hardware, _total(context.hardware, modules))
        _settle(context, context.hardware.unit.memory.size)


async def count_modules(context: Context) -> None:
    """Some went that nobody waits for: the unit as it runs has those that are left."""
    _keep_size(context.hardware, _total(context.hardware, await _modules(context)))
    _settle(context, context.hardware.unit.memory.size)


async def _modules(context: Context) -> dict[str, int]:
    """The bytes of each module by its entry, in order."""
    found = await commands.query_memory_devices(context.monitor, timeout=STEP_TIMEOUT)
    numbers = {device.id.removeprefix(f"{GROWTH}-"): device.size for device in found if device.kind == "dimm"}
    known = sorted((int(number), size) for number, size in numbers.items() if number.isdecimal())
    return {f"memory.{number}": size for number, size in known}


def _total(hardware: Hardware, modules: Mapping[str, int]) -> int:
    return hardware.summary.memory_base + sum(modules.values())


def _surplus(modules: Mapping[str, int], bytes_: int, total: int) -> list[str]:
    """The last modules that make up so many bytes.

    Raises:
        ChangeError: no number of them does.
    """
    chosen: list[str] = []
    possible = []
    for entry in reversed(list(modules)):
        total -= modules[entry]
        bytes_ -= modules[entry]
        chosen.append(entry)
        possible.append(format_size(total))
        if bytes_ <= 0:
            break
    if bytes_:
        sizes = " or ".join(possible) or "nothing less"
        raise ChangeError(f"memory modules go as a whole: it can have {sizes}", hint="the last that came goes first")
    return chosen
