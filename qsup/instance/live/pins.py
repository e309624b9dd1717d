"""``cpu.pin`` and its like, ``iothread.NAME.pin``, and the fence that they lie in, while a VM runs.

Decides: that threads are where they are to be before a change counts as made, and the order in which a fence
(``limits.cpuset-cpus``, ``limits.cpuset-mems``) and what is in it change.
Must not: keep threads there (`qsup.instance.reconciler`), or choose CPUs (`qsup.instance.placements`).

A fence grows first, then threads move, then it shrinks; and back in the same way where one of that is not possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final

import trio
from attrs import evolve

from qsup.errors import ChangeError
from qsup.instance.context import Context
from qsup.instance.limiting import FENCE, KEYS, asked
from qsup.unit.compare import Change
from qsup.unit.fence import MEMS
from qsup.unit.model import Unit
from qsup.unit.quantity import format_cpu_set

_KEYS: Final = ("cpu.pin", "cpu.exclusive", "cpu.emulator-pin", "cpu.helper-pin")
_FENCE: Final = {f"limits.{KEYS[name]}": name for name in FENCE}


def are_about_places(changes: Mapping[str, Any]) -> bool:
    """Whether some changes, which nobody has checked yet, may have such a key."""
    named = {f"{section}.{name}" for section in ("cpu", "limits") for name in _names(changes.get(section))}
    return "iothread" in changes or not named.isdisjoint((*_KEYS, *_FENCE))


def _names(section: object) -> Iterable[str]:
    return section if isinstance(section, Mapping) else ()


class PinKeys:
    """Moves a VM's threads, and its fence."""

    def concerns(self, key: str) -> bool:
        """Whether it is one of them."""
        return key in _KEYS or key in _FENCE or (key.startswith("iothread.") and key.endswith(".pin"))

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """See that the VM can have such a place beside the others, and that the host can keep its fence."""
        wanted = asked(unit).items().get(_FENCE.get(change.key, ""))
        if wanted and (why := context.life.limiting.why_not(_FENCE[change.key])):
            raise ChangeError(f"{change.key} cannot be enforced: {why}")
        if wanted and change.key == MEMS and (outside := frozenset(context.hardware.summary.memory_nodes) - wanted):
            words = (
                f"{MEMS} ({format_cpu_set(wanted)}) lacks node {format_cpu_set(outside)}, which its memory is bound to"
            )
            raise ChangeError(words, hint="name that, too; or change the unit (--next-start), and restart the VM")
        context.services.placements.check(context.name, unit)

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Any]:
        """Move them, all or none; told is what the kernel says of the fence then."""
        life, before, had = context.life, context.hardware.unit, context.services.placements.chosen(context.name)
        fence = frozenset(_FENCE[change.key] for change in changes if change.key in _FENCE)
        with life.pinning.excused() if fence else nullcontext():
            try:
                if MEMS in [change.key for change in changes]:
                    await context.services.capacity.take_more(context.name, mems=unit.limits.cpuset_mems)
                await _hold(_wider(before, unit), fence, context)
                await context.services.placements.take(context.name, unit)
                _put(context)
                await _hold(unit, fence, context)
                _put(context)
            except BaseException:
                with trio.CancelScope(shield=True):  # what it waits for has a deadline, or is the kernel's own work
                    await self._restore(before, unit, had, fence, context)
                raise
        kept = life.limiting.effective.items()
        return {key: {"limit": _told(kept[name])} for key, name in _FENCE.items() if name in fence}

    async def _restore(self, before: Unit, unit: Unit, had: Any, fence: frozenset[str], context: Context) -> None:
        limiting, placements = context.life.limiting, context.services.placements
        if fence:
            context.services.capacity.settle(context.name, mems=before.limits.cpuset_mems)
            await limiting.change(_wider(before, unit), fence)
        placements.restore(context.name, before, had)
        context.life.pinning.put()
        if fence:
            await limiting.change(before, fence)
            context.life.pinning.put()


def _wider(one: Unit, other: Unit) -> Unit:
    """A unit with a fence that has all of two others."""

    def both(these: tuple[int, ...], those: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted({*these, *those})) if these and those else ()

    cpus = both(one.limits.cpuset_cpus, other.limits.cpuset_cpus)
    mems = both(one.limits.cpuset_mems, other.limits.cpuset_mems)
    return evolve(other, limits=evolve(other.limits, cpuset_cpus=cpus, cpuset_mems=mems))


async def _hold(unit: Unit, fence: frozenset[str], context: Context) -> None:
    refused = await context.life.limiting.change(unit, fence) if fence else {}
    if refused:
        words = "; ".join(f"limits.{KEYS[name]} cannot be enforced: {why}" for name, why in refused.items())
        raise ChangeError(f"its limits stay as they were: {words}")


def _put(context: Context) -> None:
    context.life.pinning.put()
    if context.life.pinning.is_misplaced:
        raise ChangeError(f"its threads stay where they are: {context.life.pinning.trouble}")


def _told(fence: frozenset[int] | None) -> str | None:
    return None if fence is None else format_cpu_set(fence)
