"""What the VMs of this daemon were promised of the host: the one account of it.

Decides: when a promise begins and ends, and that none is given which could not be kept.
Must not: say what may be promised (`qsup.plan.capacity`, `qsup.plan.admission`), or take anything from a VM that runs.

A promise is given in one step before QEMU is started, so two VMs that start at once cannot both have the last of
something. It lasts until the VM is down and is not to come back by itself: what restarts has its place, and from when
its restart is accepted that of what it is to come back with. The account is not kept on disk: a VM's run record has all
that it follows from.
"""

from __future__ import annotations

from functools import cached_property

import structlog
from attrs import evolve, frozen

from qsup.errors import CapacityError, HostError
from qsup.instance.placements import Placements
from qsup.plan.admission import check_fits
from qsup.plan.capacity import Bounds, Host, Promise, promise
from qsup.plan.memory import guest_nodes
from qsup.plan.spec import PlanSummary
from qsup.plan.topology import Topology
from qsup.unit.model import Unit

_log = structlog.get_logger()


@frozen(kw_only=True)
class _Given:
    """What a promise follows from.

    Args:
        unit: with the memory and the vCPUs that are promised.
        plan: of the VM.
    """

    name: str
    unit: Unit
    plan: PlanSummary

    @cached_property
    def promise(self) -> Promise:
        """What its VM may come to use."""
        return promise(self.name, self.unit, self.plan)

    def resized(self, size: int | None, vcpus: int | None, mems: tuple[int, ...] | None) -> _Given:
        """With another size of memory, number of vCPUs, or fence of its memory."""
        memory, cpu = self.unit.memory, self.unit.cpu
        if size is not None:
            memory = evolve(memory, size=size)
        if vcpus is not None:
            cpu = evolve(cpu, vcpus=vcpus)
        limits = self.unit.limits if mems is None else evolve(self.unit.limits, cpuset_mems=mems)
        return evolve(self, unit=evolve(self.unit, memory=memory, cpu=cpu, limits=limits))


class Capacity:
    """What VMs were promised.

    Args:
        placements: where VMs run, by which the host is looked at.
        bounds: how much may be promised.
    """

    def __init__(
        self,
        placements: Placements,
        bounds: Bounds | None = None,
    ) -> None:
        self._placements = placements
        self._bounds = bounds or Bounds()
        self._given: dict[str, _Given] = {}
        self._next: dict[str, _Given] = {}
        self._seen: Topology | None = None

    async def take(self, name: str, unit: Unit, plan: PlanSummary, *, forced: bool = False) -> str:
        """Promise a VM what its unit wants, from now on; in place of what it was promised before.

        Args:
            plan: of the VM.
            forced: even if that is too much.

        Returns:
            Why it would have been refused, ``""`` if it would not.

        Raises:
            CapacityError: it is too much; the VM has what it had.
        """
        wanted, refused = _Given(name=name, unit=unit, plan=plan), ""
        topology = await self._see(wanted.promise)
        try:
            self._check(wanted, topology)
        except CapacityError as error:
            if not forced:
                raise
            refused = error.message
        self._given[name] = wanted
        self.forgo(name)
        return refused

    def basis(self, name: str) -> PlanSummary | None:
        """What of its plan a VM's promise follows from, ``None`` where it has none."""
        if (given := self._given.get(name)) is None:
            return None
        names = ("emulator", "machine", "accel", "cpu_model", "memory_nodes", "guest_nodes")
        return PlanSummary(**{each: getattr(given.plan, each) for each in names})

    def restore(self, name: str, unit: Unit, plan: PlanSummary) -> None:
        """A VM runs that an earlier daemon has started, or waits for that to be done again."""
        self._given[name] = _Given(name=name, unit=unit, plan=plan)

    async def take_next(self, name: str, unit: Unit) -> None:
        """Promise a VM that runs what its unit wants by now, for when it starts again; it keeps what it has besides.

        What the host may choose anew, its accelerator and the nodes, counts as it is.

        Raises:
            CapacityError: it is too much; the VM has what it had.
        """
        topology = await self._see()
        if (given := self._given.get(name)) is not None:
            nodes = given.plan.memory_nodes if isinstance(unit.memory.nodes, str) else unit.memory.nodes
            plan = evolve(given.plan, memory_nodes=nodes, guest_nodes=guest_nodes(unit))
            wanted = _Given(name=name, unit=unit, plan=plan)
            self._check(wanted, topology)
            self._next[name] = wanted

    def forgo(self, name: str) -> None:
        """A VM is not about to start again, or has; nothing happens when that is known."""
        self._next.pop(name, None)

    async def check_alone(self, name: str, unit: Unit, plan: PlanSummary) -> None:
        """See that a VM could be promised what its unit wants, were it the only one; `CapacityError`, `HostError`."""
        host, _ = await self.survey()
        check_fits(promise(name, unit, plan), (), host)

    async def take_more(
        self, name: str, *, size: int | None = None, vcpus: int | None = None, mems: tuple[int, ...] | None = None
    ) -> None:
        """Promise a VM that runs so much memory, or so many vCPUs, or its memory elsewhere.

        Args:
            size: bytes.
            mems: the nodes that all of it is to be on; none: any.

        Raises:
            CapacityError: it is too much; the VM has what it had.
        """
        topology = await self._see()
        if (given := self._given.get(name)) is not None:
            wanted = given.resized(size, vcpus, mems)
            self._check(wanted, topology)
            self._given[name] = wanted

    def settle(
        self, name: str, *, size: int | None = None, vcpus: int | None = None, mems: tuple[int, ...] | None = None
    ) -> None:
        """A VM that runs has this, and will have no more."""
        if (given := self._given.get(name)) is not None:
            self._given[name] = given.resized(size, vcpus, mems)

    def release(self, name: str) -> None:
        """A VM is down; nothing happens when that is known."""
        self._given.pop(name, None)
        self.forgo(name)

    async def survey(self) -> tuple[Host, tuple[Promise, ...]]:
        """What there is to be promised, and what is, by the names of VMs.

        Raises:
            HostError: the host was never seen, and cannot be now.
        """
        topology = await self._see() or await self._placements.look()
        return self._host(topology), self.promises

    @property
    def promises(self) -> tuple[Promise, ...]:
        """What was promised, by the names of VMs."""
        return tuple(self._promise(self._given[name]) for name in sorted(self._given))

    def _promise(self, given: _Given) -> Promise:
        after = self._next.get(given.name)
        return given.promise if after is None else given.promise.joined(after.promise)

    async def _see(self, wanted: Promise | None = None) -> Topology | None:
        """The host as it is now, or was when it was seen last: what there is of it seldom changes.

        Args:
            wanted: what is to be judged. A look takes two milliseconds, which a start that asks for no place of its
                memory need not wait for as long as the host has the same CPUs and pools.
        """
        seen = self._seen
        if seen and wanted and not wanted.is_particular and self._placements.is_still(seen):
            return seen
        try:
            self._seen = await self._placements.look()
        except HostError as error:
            _log.warning("what there is of the host is not known anew", why=error.message)
        return self._seen

    def _check(self, wanted: _Given, topology: Topology | None) -> None:
        if topology is None:
            return  # of a host that never says what it has, nothing is refused
        held = self._given.get(wanted.name)
        check_fits(wanted.promise, self.promises, self._host(topology), None if held is None else self._promise(held))

    def _host(self, topology: Topology) -> Host:
        return Host(topology=topology, bounds=self._bounds, owned=frozenset(self._placements.ledger(topology).owners))
