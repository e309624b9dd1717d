"""More memory by virtio-mem, without a VM: what a VM is promised when that is not carried out."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from qsup.errors import MonitorTimeout, QmpCommandError, QsupError
from qsup.instance.capacity import Capacity
from qsup.instance.context import Context
from qsup.instance.hardware import Hardware
from qsup.instance.live.memory import Memory
from qsup.instance.placements import Placements
from qsup.plan.memory import GROWTH
from qsup.plan.topology import Node, Topology
from qsup.unit.parse import unit_from_values
from qsup.unit.write import values_of
from tests.plan.building import build

GIB = 1 << 30
SILENT, REFUSED = MonitorTimeout("no answer"), QmpCommandError("qom-set", "GenericError", "no")


def values(size: int) -> dict[str, Any]:
    """A unit with so many GiB, of eight."""
    return {"memory": {"size": f"{size}G", "max": "8G", "min": "1G", "balloon": False}}


class Qemu:
    """A QEMU whose guest has no driver, with commands that fail."""

    def __init__(self, failures: Mapping[str, QsupError]) -> None:
        self.failures = failures

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, **_: object) -> object:
        """What the goal needs."""
        await trio.lowlevel.checkpoint()
        if command in self.failures:
            raise self.failures[command]
        data = {"id": GROWTH, "size": 0, "requested-size": GIB, "block-size": 1 << 21}
        return [{"type": "virtio-mem", "data": data}] if command == "query-memory-devices" else {}


class Host(Placements):
    """The CPUs of a host that has memory for all."""

    async def look(self) -> Topology:
        """As it is."""
        await trio.lowlevel.checkpoint()
        return Topology(cpus=(), nodes=(Node(number=0, memory=64 * GIB),))


@pytest.mark.parametrize(
    ("failures", "promised"),
    [
        ({"query-memory-devices": SILENT}, 2),
        ({"qom-set": REFUSED}, 2),
        ({"qom-set": SILENT}, 4),
        ({}, 4),
    ],
    ids=["never asked", "refused", "perhaps asked", "asked"],
)
async def test_what_is_promised(failures: Mapping[str, QsupError], promised: int) -> None:
    """A VM that gets no more memory is promised what it had; what QEMU may yet be doing is promised all the same."""
    unit, account = unit_from_values(values(2)), Capacity(Host())
    plan = build(unit).summary()
    account.restore("web", unit, plan)

    async def nothing(*_: object) -> None:
        await trio.lowlevel.checkpoint()

    context = SimpleNamespace(
        name="web",
        hardware=Hardware(unit, values_of(unit), plan, ()),
        monitor=Qemu(failures),
        overtake=nothing,
        note=lambda _: None,
        goals=[],
        services=SimpleNamespace(capacity=account, memory=SimpleNamespace(check_more=nothing)),
    )
    try:
        await Memory().apply((), unit_from_values(values(4)), cast("Context", context))
    except QsupError as error:
        assert error in failures.values()
    else:
        assert not failures
    (given,) = account.promises
    assert (given.memory - given.own) // GIB == promised
