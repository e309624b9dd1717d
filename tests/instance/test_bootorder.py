"""The boot order of a VM that runs, without one: which devices QEMU is told of, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from attrs import evolve

from qsup.errors import ChangeError, QmpCommandError
from qsup.instance.context import Context
from qsup.instance.hardware import Hardware
from qsup.instance.live.bootorder import BootOrder
from qsup.unit.compare import compare
from qsup.unit.model import Unit
from qsup.unit.sections.devices import NicSection
from qsup.unit.sections.disks import DiskSection
from qsup.unit.write import values_of
from tests.plan.building import build


class Qemu:
    """A QEMU that takes each place once, as the real one does."""

    def __init__(self, places: dict[str, int], *, refused: int | None = None) -> None:
        self.places = places
        self.refused = refused
        self.told: list[tuple[str, int]] = []

    async def execute(self, command: str, arguments: Mapping[str, Any], **_: object) -> object:
        """``qom-get`` and ``qom-set`` of ``bootindex``."""
        await trio.lowlevel.checkpoint()
        device = arguments["path"].rpartition("/")[2]
        if command == "qom-get":
            return self.places[device]
        place = arguments["value"]
        taken = place >= 0 and place in (at for other, at in self.places.items() if other != device)
        if taken or place == self.refused:
            raise QmpCommandError(command, "GenericError", f"The bootindex {place} has already been used")
        self.places[device] = place
        self.told.append((device, place))
        return {}


UNIT = Unit(
    disks=tuple(DiskSection(id=name, path=f"{name}.img") for name in ("a", "b", "c")),
    nics=(NicSection(id="lan", bootindex=-1),),
)


def vm(unit: Unit, qemu: Qemu) -> tuple[Hardware, Context]:
    """A VM that runs with that."""
    hardware = Hardware(unit, values_of(unit), build(unit).summary(), ())
    return hardware, cast("Context", SimpleNamespace(hardware=hardware, monitor=qemu, name="web"))


def ordered(**places: int) -> Unit:
    """The unit with such places of its disks, and -1 of the others."""
    return evolve(UNIT, disks=tuple(evolve(disk, bootindex=places.get(disk.id, -1)) for disk in UNIT.disks))


async def apply(before: Unit, after: Unit, qemu: Qemu) -> Hardware:
    """Change one to the other."""
    hardware, context = vm(before, qemu)
    keys, changes = BootOrder(), compare(before, after)
    assert all(keys.concerns(change.key) for change in changes)
    for change in changes:
        keys.check(change, after, context)
    await keys.apply(changes, after, context)
    return hardware


async def test_places_can_be_exchanged() -> None:
    """None is taken twice on the way."""
    qemu = Qemu({"disk-a": 1, "disk-b": 2, "disk-c": -1, "nic-lan": -1})
    hardware = await apply(ordered(a=0, b=1), ordered(a=1, b=0), qemu)
    assert qemu.places == {"disk-a": 2, "disk-b": 1, "disk-c": -1, "nic-lan": -1}
    assert {disk.id: disk.bootindex for disk in hardware.summary.disks} == {"a": 1, "b": 0, "c": -1}


async def test_the_order_of_the_unit_counts_only_while_no_place_is_said() -> None:
    """Then the others are not tried any more, as at a start."""
    qemu = Qemu({"disk-a": 1, "disk-b": 2, "disk-c": 3, "nic-lan": -1})
    await apply(UNIT, ordered(c=0), qemu)
    assert qemu.places == {"disk-a": -1, "disk-b": -1, "disk-c": 1, "nic-lan": -1}
    await apply(ordered(c=0), UNIT, qemu)
    assert qemu.places == {"disk-a": 1, "disk-b": 2, "disk-c": 3, "nic-lan": -1}


async def test_what_qemu_does_not_take_leaves_the_order_as_it_was() -> None:
    """All have their places again."""
    before = {"disk-a": 1, "disk-b": 2, "disk-c": -1, "nic-lan": -1}
    qemu = Qemu(dict(before), refused=8)
    with pytest.raises(ChangeError, match=r"does not take the boot order: .*The bootindex 8"):
        await apply(ordered(a=0, b=1), ordered(a=1, b=7), qemu)
    assert qemu.places == before


async def test_what_is_on_its_way_out_gets_no_place() -> None:
    """Nor is one asked for of it."""
    hardware, context = vm(ordered(a=0, b=1), Qemu({}))
    hardware.mark("disk.b", "leaving")
    (change,) = compare(ordered(a=0, b=1), ordered(a=0, b=2))
    with pytest.raises(ChangeError, match=r"disk\.b is still being detached") as refusal:
        BootOrder().check(change, ordered(a=0, b=2), context)
    assert "or reset it" in refusal.value.hint
    hardware.mark("disk.b", "coming")
    with pytest.raises(ChangeError, match=r"QEMU does not have disk\.b yet"):
        BootOrder().check(change, ordered(a=0, b=2), context)
