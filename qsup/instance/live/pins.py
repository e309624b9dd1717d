"""``cpu.pin`` and its like, and ``iothread.NAME.pin``, while a VM runs.

Decides: that threads are where they are to be before a change counts as made.
Must not: keep them there (`qsup.instance.reconciler`), or choose CPUs (`qsup.instance.placements`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from qsup.errors import ChangeError
from qsup.instance.context import Context
from qsup.unit.compare import Change
from qsup.unit.model import Unit

_KEYS: Final = ("cpu.pin", "cpu.exclusive", "cpu.emulator-pin", "cpu.helper-pin")


def are_about_places(changes: Mapping[str, Any]) -> bool:
    """Whether some changes, which nobody has checked yet, may have such a key."""
    cpu = changes.get("cpu")
    return "iothread" in changes or (isinstance(cpu, Mapping) and any(f"cpu.{name}" in _KEYS for name in cpu))


class PinKeys:
    """Moves a VM's threads."""

    def concerns(self, key: str) -> bool:
        """Whether it is one of them."""
        return key in _KEYS or (key.startswith("iothread.") and key.endswith(".pin"))

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """See that the VM can have such a place beside the others."""
        context.services.placements.check(context.name, unit)

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Any]:
        """Move them, all or none."""
        placements, pinning = context.services.placements, context.life.pinning
        before = context.hardware.unit
        had = placements.chosen(context.name)
        await placements.take(context.name, unit)
        pinning.put()
        if pinning.is_misplaced:
            why = pinning.trouble
            placements.restore(context.name, before, had)
            pinning.put()
            raise ChangeError(f"its threads stay where they are: {why}")
        return {}
