"""Making plans of units that are written as values."""

from __future__ import annotations

from typing import Any

from qsup.plan.argv import build_plan
from qsup.plan.spec import Identity, Plan
from qsup.unit.model import Unit
from tests.plan import goldens


def build(unit: Unit, **changes: Any) -> Plan:
    """The plan of a unit on the recorded QEMU and a host without KVM, unless `build_plan`'s arguments say otherwise."""
    given: dict[str, Any] = {
        "identity": Identity(name="web", uuid=goldens.UUID),
        "host": goldens.HOSTS[""],
        "capabilities": goldens.capabilities(),
        "state_dir": goldens.STATE_DIR,
    }
    return build_plan(unit, **given | changes)
