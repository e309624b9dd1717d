"""What every driver shares with the others: the daemon's directories, tables and caches.

Decides: the list of these things, so that a driver is given one value.
Must not: do anything itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import trio
from attrs import field, frozen

from qsup.host.cgroup import CgroupManager
from qsup.host.claims import Claims
from qsup.host.pci import Passthrough
from qsup.host.records import IdentityStore
from qsup.host.rundir import Layout
from qsup.instance.capacity import Capacity
from qsup.instance.hostmemory import HostMemory
from qsup.instance.nodememory import NodeMemories
from qsup.instance.operations import OperationTable
from qsup.instance.placements import Placements
from qsup.instance.reconciler import Reconciler
from qsup.plan.spec import Capabilities, HostFacts
from qsup.unit.load import LoadedUnit


class Publish(Protocol):
    """Tell everyone who listens."""

    def __call__(self, event_type: str, instance: str | None, data: Mapping[str, Any]) -> None:
        """Add an event; never waits."""


class Persist(Protocol):
    """Have a unit's files say what was changed; see `qsup.catalog.UnitStore.persist`."""

    async def __call__(
        self, name: str, changes: Mapping[str, Any], *, replaced: Sequence[str] = (), rehearsal: bool = False
    ) -> LoadedUnit:
        """The unit as its files say it then."""


class Turns(Protocol):
    """When a VM may start or stop, as far as that hangs on other VMs."""

    def try_start(self, name: str, operation: str) -> bool:
        """Whether nothing keeps this start; then it counts among those under way. That of a policy is ``""``."""

    async def wait_to_start(self, name: str, operation: str) -> None:
        """Wait until nothing keeps this start; `DependencyError` when it cannot be."""

    def may_stop(self, name: str) -> bool:
        """Whether this stop need not wait for another VM's."""

    async def wait_to_stop(self, name: str, operation: str) -> None:
        """Wait until this stop need not wait any more."""


class _AtOnce:
    """No VM hangs on another."""

    def try_start(self, name: str, operation: str) -> bool:
        return True

    async def wait_to_start(self, name: str, operation: str) -> None:
        await trio.lowlevel.checkpoint()

    def may_stop(self, name: str) -> bool:
        return True

    async def wait_to_stop(self, name: str, operation: str) -> None:
        await trio.lowlevel.checkpoint()


@frozen(kw_only=True)
class Services:
    """The shared things.

    Args:
        load: a unit by its instance's name, read afresh; `UnitError`, `NoSuchUnit`.
        persist: has a unit's files say what was changed.
        facts: what planning needs to know of the host, read afresh.
        capabilities: what a QEMU binary can do, probed once.
        block_devices: globs of block devices that units may use.
        uids: the range of uids for QEMU processes, ``None`` where the daemon cannot give any.
        on_latency: told each QMP command's name and seconds.
        turns: when a VM may start or stop.
        passthrough: PCI devices of the host that VMs have.
        placements: where VMs run.
        reconciler: keeps their threads there.
        memory: what of the host's VMs that start are about to take.
        capacity: what of the host all VMs were promised.
        node_memories: where the memory of those that run is.
    """

    layout: Layout
    load: Callable[[str], Awaitable[LoadedUnit]]
    persist: Persist
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
    turns: Turns = field(factory=_AtOnce)
    passthrough: Passthrough = field(factory=Passthrough)
    placements: Placements = field(factory=Placements)
    reconciler: Reconciler = field(default=attrs.Factory(lambda self: Reconciler(self.placements), takes_self=True))
    memory: HostMemory = field(default=attrs.Factory(lambda self: HostMemory(self.placements.look), takes_self=True))
    capacity: Capacity = field(default=attrs.Factory(lambda self: Capacity(self.placements), takes_self=True))
    node_memories: NodeMemories = field(factory=NodeMemories)

    def state_dir(self, name: str) -> Path:
        """The directory of what a VM keeps over its lives, such as UEFI variables; it may not exist yet."""
        return self.layout.state / "vms" / name
