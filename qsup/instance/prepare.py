"""Everything that is made on the host before QEMU is executed.

Decides: the order in which things are made, and what is recorded before anything can be lost.
Must not: execute QEMU, or leave anything behind that is not on the stack of resources it was given.
"""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import structlog
import trio
from attrs import evolve, field, frozen

from qsup.errors import StartError, from_oserror
from qsup.host import codec, network, proc, strays
from qsup.host.cgroup import Cgroup
from qsup.host.claims import Claim
from qsup.host.image import create_qcow2_copy
from qsup.host.output import Output
from qsup.host.records import IdentityRecord, RunRecord, new_uuid
from qsup.host.rundir import InstanceDirectory
from qsup.host.staging import StagedFile, stage_file
from qsup.host.storage import open_in_thread
from qsup.instance import ended
from qsup.instance.helpers import Helpers
from qsup.instance.images import open_images
from qsup.instance.limiting import Limiting, check_enough
from qsup.instance.outside import lockable_memory, open_outside, release_pci, reserve_pci
from qsup.instance.record import Running
from qsup.instance.restart import RestartHistory
from qsup.instance.services import Services
from qsup.instance.taps import check_forwards, make_tap
from qsup.plan.argv import build_plan
from qsup.plan.pinning import Pins
from qsup.plan.spec import ImageFd, Plan, TapFd
from qsup.unit.load import LoadedUnit
from qsup.unit.model import Unit
from qsup.unit.write import values_of

_log = structlog.get_logger()


@frozen(kw_only=True, eq=False)
class Prepared:
    """What the launch needs, ready to be handed over.

    Args:
        record: to be written once QEMU has a pid. The one on disk until then names no process, and of what else was
            made only what cannot be found by the VM's name.
        fds: descriptors that QEMU inherits under these numbers; `close_fds` once it has them.
        uid: whom QEMU runs as, ``None`` for the daemon's own user.
        lockable: bytes of memory that it must be able to lock.
        hugepages: the kernel may put its memory into huge pages as it goes.
        nofile: how many files it may have open, 0 for as many as the daemon.
    """

    plan: Plan
    argv: list[str]
    fds: tuple[int, ...]
    uid: int | None
    directory: InstanceDirectory
    output: Output
    cgroup: Cgroup
    limiting: Limiting
    record: RunRecord
    running: Running
    helpers: Helpers
    lockable: int
    hugepages: bool
    nofile: int

    def close_fds(self) -> None:
        """Close our copies: an image's open file description must be QEMU's alone, or its lock would outlive it."""
        for fd in self.fds:
            os.close(fd)


@frozen(kw_only=True)
class _Handed:
    """Descriptors and paths collected for the command line."""

    numbers: dict[str, int] = field(factory=dict)
    paths: dict[str, str] = field(factory=dict)

    def close(self) -> None:
        for fd in self.numbers.values():
            os.close(fd)


async def prepare(
    loaded: LoadedUnit,
    services: Services,
    history: RestartHistory,
    resources: AsyncExitStack,
    *,
    forced_by: str = "",
) -> Prepared:
    """Plan a start and make what it needs.

    Args:
        resources: gets everything that must be given back when the VM has ended, or the launch has failed.
        forced_by: the operation that has it started in spite of what other VMs were promised.

    Raises:
        QsupError: why it cannot be made.
    """
    # the place, as the promise below, is its driver's to take back, once it is down and not to come back
    chosen = await services.placements.take(loaded.name, loaded.unit, starts=True)
    resources.callback(services.memory.release, loaded.name)
    homes = () if chosen is None else chosen.homes
    nodes = await services.memory.take(loaded.name, loaded.unit, () if chosen is None else chosen.nodes, homes)
    known = services.identities.load(loaded.name)
    identity = _identity(loaded, known, services)
    plan = await _plan(loaded, identity, services, nodes, homes)
    check_enough(loaded.unit, plan.accel)
    await _admit(loaded, plan, services, forced_by)
    if plan.machine_alias:
        identity = identity.with_machine(plan.machine_alias, plan.machine)
    _check_alone(identity)
    if identity != known:
        await trio.to_thread.run_sync(services.identities.save, identity)
    directory = services.layout.instance(loaded.name)
    resources.callback(directory.remove)
    resources.push_async_callback(release_pci, loaded.name, services)
    bindings = reserve_pci(plan.fds, loaded.name, services)
    running = evolve(_running(loaded, plan, history), bindings=bindings, chosen=chosen)
    record = _record(loaded, plan, identity, running)
    # before anything is made that whoever comes after a killed daemon must give back
    directory.write_record(record)
    ended.reserve(services.layout, loaded)
    handed = _Handed()
    helpers = Helpers(directory, partial(services.placements.pins, loaded.name))
    resources.push_async_callback(helpers.aclose)
    try:
        claims = await _images(plan, identity, services, handed, resources)
        for nic in plan.nics:
            check_forwards(nic)
        taps = _taps(plan, identity, handed, resources)
        await open_outside(plan.fds, directory, services, helpers, handed.numbers, identity.uid)
        running = evolve(running, helpers=helpers.records())
        await _stage(plan, services, identity, handed)
        cgroup = services.cgroups.create(loaded.name, loaded.unit.unit.description)
        resources.push_async_callback(cgroup.end)
        limiting = Limiting(cgroup)
        await limiting.impose(loaded.unit)
        limiting.check_kept(loaded.unit)
        output = Output(directory.path / "output", services.layout.log / f"{loaded.name}.log")
        resources.callback(output.close)
        if cgroup.absence:
            running = evolve(running, plan=evolve(running.plan, warnings=(*plan.warnings, cgroup.absence)))
        argv = plan.command(handed.numbers, handed.paths)
        cgroups = tuple(map(str, cgroup.paths))
        state = codec.encode(running)
        record = evolve(record, argv=tuple(argv), cgroups=cgroups, taps=taps, claims=claims, state=state)
    except BaseException:
        handed.close()
        raise
    return Prepared(
        plan=plan,
        argv=argv,
        fds=tuple(sorted(handed.numbers.values())),
        uid=identity.uid,
        directory=directory,
        output=output,
        cgroup=cgroup,
        limiting=limiting,
        record=record,
        running=running,
        helpers=helpers,
        lockable=lockable_memory(plan.fds, loaded.unit),
        hugepages=loaded.unit.memory.transparent_hugepages is not False,
        nofile=loaded.unit.limits.nofile,
    )


async def _admit(loaded: LoadedUnit, plan: Plan, services: Services, forced_by: str) -> None:
    """Promise the VM what it may come to use, which its driver takes back once it is down; `CapacityError`."""
    name = loaded.name
    if why := await services.capacity.take(name, loaded.unit, plan, forced=bool(forced_by)):
        uid = services.operations.get(forced_by).requested_by
        _log.warning("started by force", instance=name, operation=forced_by, uid=uid, why=why)
        services.publish("start-forced", name, {"operation": forced_by, "uid": uid, "detail": why})


def _check_alone(identity: IdentityRecord) -> None:
    """See that the VM does not run already, unknown to this daemon; `StartError`."""
    uid = os.geteuid() if identity.uid is None else identity.uid
    for pid in strays.find({identity.name: identity.uuid}, {uid}).values():
        raise StartError(
            f"process {pid} is this VM already, and there is no record of it",
            hint=f"its records were lost, or it is another daemon's: shut its guest down, or end it by `kill {pid}`",
            pid=pid,
        )


def _record(loaded: LoadedUnit, plan: Plan, identity: IdentityRecord, running: Running) -> RunRecord:
    """What is known before anything is made."""
    bridges = {request.bridge: None for request in plan.fds if isinstance(request, TapFd) and request.create_bridge}
    return RunRecord(
        name=loaded.name,
        uuid=identity.uuid,
        boot_id=proc.boot_id(),
        uid=os.geteuid() if identity.uid is None else identity.uid,
        unit_digest=loaded.etag,
        argv=(),
        machine=plan.machine,
        started=running.since,
        uptime=proc.uptime(),
        bridges=tuple(bridges),
        state=codec.encode(running),
    )


def _identity(loaded: LoadedUnit, known: IdentityRecord | None, services: Services) -> IdentityRecord:
    """What stays with the VM over its starts, as of this start; nothing of it is saved yet."""
    record = known or IdentityRecord(name=loaded.name, uuid=loaded.unit.machine.uuid or new_uuid())
    if loaded.unit.machine.uuid:
        record = evolve(record, uuid=loaded.unit.machine.uuid)
    if services.uids is not None and record.uid is None:
        record = evolve(record, uid=services.identities.give_uid(record.uuid, within=services.uids))
    if services.uids is None:
        record = evolve(record, uid=None)
    return record


async def _plan(
    loaded: LoadedUnit,
    identity: IdentityRecord,
    services: Services,
    nodes: tuple[int, ...],
    homes: tuple[int, ...],
) -> Plan:
    capabilities = await services.capabilities(loaded.unit.machine.emulator)
    return build_plan(
        loaded.unit,
        identity=identity.identity,
        host=services.facts(),
        capabilities=capabilities,
        state_dir=str(services.state_dir(loaded.name)),
        chosen_nodes=nodes,
        homes=homes,
        node_cpus=_node_cpus(loaded.unit, services.placements.pins(loaded.name), services.placements.online),
    )


def _node_cpus(unit: Unit, pins: Pins | None, online: frozenset[int] | None) -> tuple[tuple[int, ...], ...]:
    """The CPUs online that the vCPUs of each node of a guest are pinned to, none where all may do for all."""
    if pins is None or len(pins.vcpus) < 2 or online is None:
        return ()
    sets = [frozenset[int]().union(*map(pins.of_vcpu, node.vcpus)) for node in unit.numa]
    return tuple(tuple(sorted(cpus & online)) for cpus in sets)


async def _images(
    plan: Plan, identity: IdentityRecord, services: Services, handed: _Handed, resources: AsyncExitStack
) -> tuple[Claim, ...]:
    await _variables(plan, services, identity)
    resources.callback(services.claims.release, identity.name)
    wanted = [request for request in plan.fds if isinstance(request, ImageFd)]
    return await open_images(wanted, services, identity.name, handed.numbers)


async def _variables(plan: Plan, services: Services, identity: IdentityRecord) -> None:
    """Make the UEFI variable store at the first start; from then on it is the VM's own."""
    store = plan.variables
    if store is None:
        return
    target = services.state_dir(identity.name) / store.file
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if target.exists():
            return
    except OSError as error:
        raise from_oserror(error, f"could not make the UEFI variable store {target}") from error
    await create_qcow2_copy(Path(store.template), target, source_format=store.template_format)


def _taps(plan: Plan, identity: IdentityRecord, handed: _Handed, resources: AsyncExitStack) -> tuple[str, ...]:
    names = []
    macs = {nic.id: nic.mac for nic in plan.nics}
    for request in plan.fds:
        if isinstance(request, TapFd):
            names.append(make_tap(request, identity.name, identity.uuid, macs[request.nic], handed.numbers))
            if request.create_bridge:
                resources.callback(network.release_bridge, request.bridge)
    return tuple(names)


async def _stage(plan: Plan, services: Services, identity: IdentityRecord, handed: _Handed) -> None:
    for request in plan.files:
        path = services.layout.pools[0] / request.path  # an absolute path stays as it is
        staged = await open_in_thread(partial(stage_file, path, uid=identity.uid), close=StagedFile.close)
        handed.paths[request.name] = staged.path
        if staged.fd is not None:
            handed.numbers[f"file:{request.name}"] = staged.fd


def _running(loaded: LoadedUnit, plan: Plan, history: RestartHistory) -> Running:
    return Running(
        description=loaded.unit.unit.description,
        files=tuple(map(str, loaded.files)),
        unit=values_of(loaded.unit),
        plan=plan.summary(),
        since=time.time(),
        restarts=history.count,
        restart_times=history.recent,
    )
