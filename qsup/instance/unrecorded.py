"""Naming the QEMUs of VMs that are down to the daemon: somebody has removed their records.

Decides: how long such processes are looked for.
Must not: take one over or signal it; its VM is not started meanwhile (`qsup.instance.prepare`).
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping

import trio

from qsup.host import strays
from qsup.instance.driver import Driver
from qsup.instance.services import Services
from qsup.instance.settle import DOWN
from qsup.instance.state import Level, State

#: Seconds between two looks, once there are any.
_INTERVAL = 2.0


async def name_all(drivers: Mapping[str, Driver], services: Services) -> None:
    """Have each such VM say so, as long as there are any.

    Args:
        drivers: all VMs; a table that changes.
    """
    uids: Container[int] = services.uids or {os.geteuid()}
    while True:
        # one that is quarantined is said to have a process, if it has
        down = (d for d in drivers.values() if d.state.level in DOWN and d.state is not State.QUARANTINED)
        found = strays.find({driver.name: driver.view.uuid for driver in down if driver.view.uuid}, uids)
        for driver in drivers.values():
            driver.set_stray(found.get(driver.name))
        # a start may be refused for such a process, and its VM is down only then
        starting = any(driver.life is None and driver.state.level is Level.ACTIVATING for driver in drivers.values())
        if not found and not starting:
            return
        await trio.sleep(_INTERVAL)
