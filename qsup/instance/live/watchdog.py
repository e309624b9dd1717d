"""What happens when a watchdog expires.

Decides: that QEMU's one action for all watchdogs of a VM is the one of its unit.
Must not: arm or feed a watchdog; the guest does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qsup.instance.context import Context
from qsup.instance.hardware import entry_of
from qsup.qmp import commands
from qsup.unit.compare import Change
from qsup.unit.model import Unit

_KEY = re.compile(r"device\.(?P<device>.+)\.action")
#: Seconds for one command.
_TIMEOUT = 5.0


class WatchdogKeys:
    """``device.NAME.action``."""

    def concerns(self, key: str) -> bool:
        """Whether it is this."""
        return _KEY.fullmatch(key) is not None

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """Each action is possible at any time."""

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Any]:
        """Set it."""
        for change in changes:
            device = entry_of(unit, change.key.removesuffix(".action"))
            await commands.watchdog_set_action(context.monitor, device.action, timeout=_TIMEOUT)
        return {}
