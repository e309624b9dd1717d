"""What comes to a VM that runs, where an earlier daemon had begun it: without a QEMU."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import trio

from qsup.instance.coming import attach
from qsup.instance.context import Context
from qsup.instance.hardware import Hardware
from qsup.unit.model import Unit
from qsup.unit.sections.devices import NicSection
from qsup.unit.write import values_of
from tests.plan.building import build


class Qemu:
    """A QEMU that has a NIC behind its port."""

    def __init__(self) -> None:
        self.links: list[tuple[str, bool]] = []

    async def execute(self, command: str, arguments: Mapping[str, Any], **_: object) -> object:
        """``qom-list`` of its devices, and ``set_link``."""
        await trio.lowlevel.checkpoint()
        if command == "qom-list":
            return [{"name": name, "type": "child<some>"} for name in ("port-nic-0", "nic-lan")]
        assert command == "set_link"
        self.links.append((arguments["name"], arguments["up"]))
        return {}


async def test_a_card_that_came_before_its_daemon_died_is_unplugged_by_the_next() -> None:
    """Its link is taken down only once QEMU has it, and that may be left to do."""
    unit, qemu = Unit(nics=(NicSection(id="lan", link="down"),)), Qemu()
    hardware = Hardware(Unit(), values_of(Unit()), build(unit).summary(), ())
    hardware.mark("nic.lan", "coming")
    context = cast("Context", SimpleNamespace(hardware=hardware, monitor=qemu, name="web"))
    await attach(["nic.lan"], unit, context)
    assert qemu.links == [("nic-lan", False)]
    part = hardware.part("nic.lan")
    assert part is not None
    assert part.state == "there"
