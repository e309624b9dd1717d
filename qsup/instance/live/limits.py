"""``[limits]`` while a VM runs.

Decides: that a limit which cannot be enforced, or would end the VM at once, is refused.
Must not: know how a cgroup keeps one (`qsup.host.limits`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qsup.errors import ChangeError
from qsup.instance.context import Context
from qsup.instance.limiting import FENCE, KEYS, OOM_SCORE, asked
from qsup.unit.compare import Change
from qsup.unit.model import Unit
from qsup.unit.needs import too_little_memory
from qsup.unit.quantity import format_size

_SECTION, _REQUIRE = "limits.", "limits.require"
#: Where it may run goes with its pins (`qsup.instance.live.pins`).
_FIELDS = {f"{_SECTION}{key}": name for name, key in KEYS.items() if name not in FENCE}


class LimitKeys:
    """Changes of what a VM may take of the host."""

    def concerns(self, key: str) -> bool:
        """Whether it is one of them."""
        return key == _REQUIRE or key in _FIELDS

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """See that the host can keep it, and that the VM outlives it."""
        limiting = context.life.limiting
        wanted = asked(unit).items() | {OOM_SCORE: unit.limits.oom_score_adjust or None}
        if change.key == _REQUIRE:
            names = [name for name, limit in wanted.items() if limit is not None and unit.limits.require]
        else:
            names = [name for name in [_FIELDS[change.key]] if wanted[name] is not None]
        for name in names:
            if why := limiting.why_not(name):
                raise ChangeError(f"limits.{KEYS[name]} cannot be enforced: {why}")
        if change.key == f"{_SECTION}memory" and (why := too_little_memory(unit, context.hardware.summary.accel)):
            raise ChangeError(f"limits.{why}")
        if change.key == f"{_SECTION}memory" and 0 < unit.limits.memory < (held := limiting.memory_held()):
            words = f"{format_size(unit.limits.memory)} is less than the {format_size(held)} that it holds now"
            raise ChangeError(f"{words}, and it would be killed", hint="have its guest give memory back first")

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Any]:
        """Have the kernel take them, all or none; told is what it says then."""
        limiting = context.life.limiting
        fields = {change.key: _FIELDS[change.key] for change in changes if change.key != _REQUIRE}
        refused = await limiting.change(unit, frozenset(fields.values()))
        if refused:
            words = "; ".join(f"limits.{KEYS[name]} cannot be enforced: {why}" for name, why in refused.items())
            raise ChangeError(f"its limits stay as they were: {words}")
        kept = limiting.effective.items() | {OOM_SCORE: unit.limits.oom_score_adjust}
        return {key: {"limit": _told(kept[name])} for key, name in fields.items()}


def _told(limit: Any) -> Any:
    """A limit as JSON has it: of devices an object."""
    return dict(limit) if isinstance(limit, tuple) else limit
