"""What the outside may know of the relations of VMs: frozen values. Pure.

Decides: the contents of a listing.
Must not: be computed by waiting for a VM.
"""

from __future__ import annotations

from attrs import field, frozen

from qsup.instance.state import State
from qsup.unit.sections.service import UnitSection


@frozen(kw_only=True)
class Relation:
    """One VM and what its unit says of others.

    Args:
        state: ``None`` for a name that no unit has.
        unit: its ``[unit]`` section; an empty one where there is none.
    """

    name: str
    state: State | None
    unit: UnitSection = field(factory=UnitSection)


@frozen(kw_only=True)
class Relations:
    """All of them, sorted by name, and the cycles in their order."""

    vms: tuple[Relation, ...]
    cycles: tuple[tuple[str, ...], ...]
