"""``cpu.pin`` and ``cpu.emulator-pin`` while a VM runs.

Decides: that threads are where they are to be before a change counts as made.
Must not: keep them there (`qsup.instance.pinning.keep`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import evolve

from qsup.errors import ChangeError
from qsup.instance.context import Context
from qsup.instance.hardware import Hardware
from qsup.instance.pinning import check_pins
from qsup.plan.pinning import pins_of
from qsup.unit.compare import Change
from qsup.unit.model import CpuSection, Unit

_KEYS: Final = ("cpu.pin", "cpu.emulator-pin")


class PinKeys:
    """Moves a VM's threads."""

    def concerns(self, key: str) -> bool:
        """Whether it is one of them."""
        return key in _KEYS

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """See that the host has these CPUs."""
        check_pins(unit)

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Any]:
        """Move them, all or none."""
        hardware, pinning = context.hardware, context.life.pinning
        before = hardware.unit.cpu
        # first, for whoever looks after them meanwhile
        _say(hardware, unit.cpu)
        pinning.put(pins_of(unit))
        if why := pinning.trouble:
            _say(hardware, before)
            pinning.put(pins_of(hardware.unit))
            raise ChangeError(f"its threads stay where they are: {why}")
        return {}


def _say(hardware: Hardware, cpu: CpuSection) -> None:
    pinned = evolve(hardware.unit.cpu, pin=cpu.pin, emulator_pin=cpu.emulator_pin)
    hardware.set_unit(evolve(hardware.unit, cpu=pinned))
