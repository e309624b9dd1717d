"""Whether units could start on this host: what starts would find out one after another, found out all at once.

Decides: which of a start's checks are made beforehand, and which keys each is about.
Must not: make, take or promise anything, or refuse for what others use just now: that is another thing at the start.
CPUs that are named for two VMs are told all the same, unless these exclude each other anyhow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import trio
from attrs import evolve, frozen

from qsup.errors import QsupError
from qsup.host.image import OpenImage
from qsup.host.records import IdentityRecord, new_uuid
from qsup.host.staging import stage_file
from qsup.host.storage import open_in_thread
from qsup.instance.entry import named_place
from qsup.instance.images import open_one
from qsup.instance.limiting import check_enough
from qsup.instance.placements import Placements
from qsup.instance.services import Services
from qsup.plan.argv import build_plan
from qsup.plan.hostmemory import check_nodes, check_room, demands
from qsup.plan.memory import guest_nodes
from qsup.plan.placement import check_fence, check_named
from qsup.plan.residents import Resident
from qsup.plan.spec import FileRequest, ImageFd, Plan
from qsup.plan.topology import Topology, idle
from qsup.unit.fence import CPUS, MEMS
from qsup.unit.kinds import AUTO
from qsup.unit.model import Unit
from qsup.unit.tree import Key


@frozen(kw_only=True)
class HostFinding:
    """Why a unit's VM could not start here.

    Args:
        unit: its name.
        keys: what it rests on; the first that the unit's files hold is to blame.
        message: as the start would tell it, with what to do.
    """

    unit: str
    keys: Sequence[Key]
    message: str


async def check_host(units: Mapping[str, Unit], known: Mapping[str, Unit], services: Services) -> list[HostFinding]:
    """Check units against this host.

    Args:
        units: by name, each without errors.
        known: all other units that CPUs may be named in.

    Raises:
        HostError: the host could not be looked at.
    """
    topology = await services.placements.look()
    found: list[HostFinding] = []
    for name, unit in units.items():
        check = _Check(name, unit, services, idle(topology))
        check.cpus({**known, **units})
        check.memory()
        check.place()
        if (plan := await check.plan()) is not None:
            await check.files(plan)
            await check.promise(plan)
        found += check.found
    return found


class _Check:
    """The checks of one unit.

    Args:
        topology: the host as if nobody used anything of it.
    """

    def __init__(self, name: str, unit: Unit, services: Services, topology: Topology) -> None:
        self.found: list[HostFinding] = []
        self._name = name
        self._unit = unit
        self._services = services
        self._topology = topology
        self._empty = Placements()
        self._empty.see(topology)
        mems = unit.limits.cpuset_mems
        self._has_mems = self._try(partial(check_nodes, name, mems, topology, MEMS), tuple(MEMS.split(".")))

    def _note(self, error: QsupError, *keys: Key) -> None:
        message = f"{error.message}; {error.hint}" if error.hint else error.message
        self.found.append(HostFinding(unit=self._name, keys=keys, message=message))

    def _try(self, check: Callable[[], None], *keys: Key) -> bool:
        try:
            check()
        except QsupError as error:
            self._note(error, *keys)
            return False
        return True

    def cpus(self, everyone: Mapping[str, Unit]) -> None:
        """CPUs that are not there, or are another's; and whether there could ever be so many of its own."""
        unit = self._unit
        others = list(_named_by_others(self._name, unit, everyone))
        for key, alone in _by_key(unit):
            if (place := named_place(self._name, alone)) is not None:
                self._try(partial(check_named, place, others, self._topology), key)
        fence = frozenset(unit.limits.cpuset_cpus)
        there = self._try(partial(check_fence, self._name, fence, others, self._topology), tuple(CPUS.split(".")))
        if unit.cpu.pin == AUTO and there and self._has_mems:
            numa = tuple(evolve(node, nodes=()) for node in unit.numa)
            anywhere = evolve(unit, memory=evolve(unit.memory, nodes=()), numa=numa)
            self._try(partial(self._empty.check, self._name, anywhere), ("cpu", "exclusive"), ("cpu", "pin"))

    def memory(self) -> None:
        """Nodes that are not there or have none, pages of a size that there is not, and more than there is."""
        unit, name, topology = self._unit, self._name, self._topology
        on, guest = () if isinstance(unit.memory.nodes, str) else unit.memory.nodes, guest_nodes(unit)
        places: list[tuple[Key, tuple[int, ...]]] = [(("memory", "nodes"), on)] if not guest else []
        places += [(("numa", node.id, "nodes"), node.nodes) for node in guest]
        known = [self._try(partial(check_nodes, name, those, topology), key) for key, those in places]
        if not (all(known) and self._has_mems):
            return
        wanted = demands(name, unit, on, guest)
        for index, each in enumerate(wanted):
            keys: list[Key] = [("memory", "hugepages")] if each.page else []
            keys += [("numa", guest[index].id, "size")] if guest else []
            self._try(partial(check_room, each, topology, wanted[:index]), *keys, ("memory", "size"))

    def place(self) -> None:
        """Whether there could ever be memory near its CPUs, where that has not been told in other words."""
        keys: list[Key] = [("numa", node.id, "nodes") for node in self._unit.numa if node.nodes]
        if self._unit.cpu.pin == AUTO and not self.found:
            self._try(partial(self._empty.check, self._name, self._unit), *keys, ("memory", "nodes"), ("cpu", "pin"))

    async def plan(self) -> Plan | None:
        """What the emulator and the host can do; ``None`` where that is not what the unit asks for."""
        try:
            capabilities = await self._services.capabilities(self._unit.machine.emulator)
        except QsupError as error:
            self._note(error, ("machine", "emulator"))
            return None
        try:
            known = self._services.identities.load(self._name)
            plan = build_plan(
                self._unit,
                identity=(known or IdentityRecord(name=self._name, uuid=new_uuid())).identity,
                host=self._services.facts(),
                capabilities=capabilities,
                state_dir=str(self._services.state_dir(self._name)),
            )
        except QsupError as error:
            self._note(error, ("machine",))
            return None
        self._try(partial(check_enough, self._unit, plan.accel), ("limits", "memory"))
        return plan

    async def files(self, plan: Plan) -> None:
        """Images as they are opened at the start, and other files that QEMU is to have."""
        for request in plan.fds:
            if isinstance(request, ImageFd) and not request.own:
                key = (*request.entry.split("."), "path")
                try:
                    image = await open_in_thread(partial(open_one, request, self._services), close=OpenImage.close)
                except QsupError as error:
                    self._note(error, key)
                else:
                    image.close()
        for file in plan.files:
            check = partial(_look_at, file, self._services)
            await trio.to_thread.run_sync(self._try, check, ("machine", file.name))

    async def promise(self, plan: Plan) -> None:
        """Whether so much may be promised to anybody."""
        try:
            await self._services.capacity.check_alone(self._name, self._unit, plan)
        except QsupError as error:
            if not self.found:  # else it was told in other words
                self._note(error, ("memory", "size"), ("cpu", "vcpus"))


def _by_key(unit: Unit) -> Iterator[tuple[Key, Unit]]:
    """Each key that names CPUs, with a unit that has this one alone."""
    cpu = evolve(unit.cpu, pin=(), emulator_pin=(), helper_pin=(), exclusive=False)
    bare = evolve(unit, cpu=cpu, iothreads=tuple(evolve(each, pin=()) for each in unit.iothreads))
    if unit.cpu.pin != AUTO:
        yield ("cpu", "pin"), evolve(bare, cpu=evolve(cpu, pin=unit.cpu.pin, exclusive=unit.cpu.exclusive))
    yield ("cpu", "emulator-pin"), evolve(bare, cpu=evolve(cpu, emulator_pin=unit.cpu.emulator_pin))
    yield ("cpu", "helper-pin"), evolve(bare, cpu=evolve(cpu, helper_pin=unit.cpu.helper_pin))
    for iothread in unit.iothreads:
        yield ("iothread", iothread.id, "pin"), evolve(bare, iothreads=(iothread,))


def _named_by_others(name: str, unit: Unit, everyone: Mapping[str, Unit]) -> Iterable[Resident]:
    """The places that other units name which may run beside it."""
    for other, theirs in everyone.items():
        excluded = other in unit.unit.conflicts or name in theirs.unit.conflicts
        if other != name and not excluded and (place := named_place(other, theirs)) is not None:
            yield place


def _look_at(file: FileRequest, services: Services) -> None:
    """See that a file can be opened. Blocks for the disk."""
    stage_file(services.layout.pools[0] / file.path, uid=None).close()
