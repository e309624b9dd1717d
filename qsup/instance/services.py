"""What every driver shares with the others: the daemon's directories, tables and caches.

Decides: the list of these things, so that a driver is given one value.
Must not: do anything itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import frozen

from qsup.host.cgroup import CgroupManager
from qsup.host.claims import Claims
from qsup.host.records import IdentityStore
from qsup.host.rundir import Layout
from qsup.instance.operations import OperationTable
from qsup.plan.spec import Capabilities, HostFacts
from qsup.unit.load import LoadedUnit


class Publish(Protocol):
    """Tell everyone who listens."""

    def __call__(self, event_type: str, instance: str | None, data: Mapping[str, Any]) -> None:
        """Add an event; never waits."""


@frozen(kw_only=True)
class Services:
    """The shared things.

    Args:
        load: a unit by its instance's name, read afresh; `UnitError`, `NoSuchUnit`.
        facts: what planning needs to know of the host, read afresh.
        capabilities: what a QEMU binary can do, probed once.
        block_devices: globs of block devices that units may use.
        uids: the range of uids for QEMU processes, ``None`` where the daemon cannot give any.
        on_latency: told each QMP command's name and seconds.
    """

    layout: Layout
    load: Callable[[str], Awaitable[LoadedUnit]]
    facts: Callable[[], HostFacts]
    capabilities: Callable[[str], Awaitable[Capabilities]]
    claims: Claims
    cgroups: CgroupManager
    identities: IdentityStore
    operations: OperationTable
    publish: Publish
    block_devices: tuple[str, ...]
    uids: range | None
    on_latency: Callable[[str, float], None]

    def state_dir(self, name: str) -> Path:
        """The directory of what a VM keeps over its lives, such as UEFI variables; it may not exist yet."""
        return self.layout.state / "vms" / name
