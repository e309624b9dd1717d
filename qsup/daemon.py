"""``qsupd``: configuration, logging, signals, the sockets, and the nursery that everything runs in.

Decides: from its command line and environment, which directories it works in and how it is told to end.
Must not: know what a VM is; it joins the supervisor and the API, and that is all.

SIGTERM and SIGINT end the daemon and leave every VM running; SIGHUP reads the unit files again. ``--stop-all`` is
another program: it ends by itself, once no VM is left, and serves nobody.
"""

from __future__ import annotations

import argparse
import gc
import grp
import math
import os
import signal
import socket
import sys
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import structlog
import trio
from attrs import evolve, frozen
from structlog.contextvars import bind_contextvars

from qsup import log
from qsup.api.http import Limits, Peer, Pressure, Request, serve
from qsup.api.protocol import VERSION
from qsup.api.roles import Policy, Role, decide
from qsup.api.routes.endpoint import Api
from qsup.api.routes.table import make_router
from qsup.backend import DaemonBackend
from qsup.catalog import UnitStore
from qsup.config import Config, load_config
from qsup.errors import QsupError
from qsup.host import kvmnode, process, scope
from qsup.host.claims import Claims
from qsup.host.facts import firmware_directories, read_host_facts
from qsup.host.journal import Journal
from qsup.host.listener import listening
from qsup.host.memory import OwnMemory
from qsup.host.notify import JournalSender, Notifier, ServiceEnvironment, take_environment
from qsup.host.records import IdentityStore
from qsup.host.resources import OwnResources
from qsup.host.rundir import DaemonLock, Layout
from qsup.host.topology import TopologyReader
from qsup.instance.capacity import Capacity
from qsup.instance.events import EventRing
from qsup.instance.latency import LatencyTable
from qsup.instance.operation import OperationState
from qsup.instance.operations import KEPT, OperationTable
from qsup.instance.placements import Placements
from qsup.instance.probe import Prober
from qsup.instance.services import Services
from qsup.supervisor import Supervisor

_log = structlog.get_logger()

SYSTEM_CONFIG = Path("/etc/qsup/qsupd.toml")


@frozen(kw_only=True)
class Setup:
    """What the command line, the configuration and the environment amount to."""

    layout: Layout
    config: Config
    service: ServiceEnvironment


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="qsupd", description="Supervise QEMU virtual machines.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--root", type=Path, metavar="DIR", help="keep units/, state/, run/ and log/ under DIR")
    where.add_argument("--user", action="store_true", help="use the caller's own directories (the default unless root)")
    where.add_argument("--config", type=Path, metavar="FILE", help=f"configuration in place of {SYSTEM_CONFIG}")
    parser.add_argument(
        "--unit-path",
        type=Path,
        metavar="DIR",
        action="append",
        default=[],
        help="a further directory of unit files; it wins",
    )
    parser.add_argument("--socket", type=Path, metavar="PATH", help="the API's socket")
    parser.add_argument("--log-level", choices=log.LEVELS, help="the least that is logged")
    parser.add_argument(
        "--stop-all",
        action="store_true",
        help="where no daemon runs: stop all VMs that one has left, in order, and end",
    )
    parser.add_argument("--version", action="version", version=f"qsupd {VERSION}")
    return parser.parse_args(arguments)


def set_up(options: argparse.Namespace) -> Setup:
    """Make one value of the command line, the configuration and the environment.

    Raises:
        ConfigError: the configuration is wrong.
    """
    service = take_environment(os.environ)
    if options.root is not None:
        layout, default = Layout.for_root(options.root), options.root / "qsupd.toml"
    elif options.config is not None or (not options.user and os.geteuid() == 0):
        layout, default = Layout.for_system(), SYSTEM_CONFIG
    else:
        layout = Layout.for_user(os.environ)
        default = layout.unit_dirs[-1].parent / "qsupd.toml"
    config = load_config(options.config) if options.config else load_config(default) if default.exists() else Config()
    if options.log_level:
        config = evolve(config, log_level=options.log_level)
    if config.pools:
        layout = evolve(layout, pools=config.pools)
    if options.unit_path:
        layout = evolve(layout, unit_dirs=(*layout.unit_dirs, *(path.absolute() for path in options.unit_path)))
    if options.socket is not None:
        layout = evolve(layout, socket=options.socket.absolute())
    return Setup(layout=layout, config=config, service=service)


def _set_up_logging(config: Config) -> None:
    send = None
    if log.stderr_is_journal(os.environ):
        send = JournalSender().send
    log.configure(config.log_level, send_to_journal=send)


def operate_gids(group: str, *, uid: int) -> frozenset[int]:
    """Whose members may operate: the group's, where it exists, for root's daemon; a user's VMs are the user's alone.

    Args:
        group: its name.
        uid: whom the daemon runs as.
    """
    if uid != 0:
        return frozenset()
    try:
        return frozenset({grp.getgrnam(group).gr_gid})
    except KeyError:
        return frozenset()


@contextmanager
def _api_socket(layout: Layout, service: ServiceEnvironment, gids: frozenset[int]) -> Iterator[socket.socket]:
    """The socket that systemd handed over, else our own; raises what `listening` does."""
    if service.sockets:
        yield socket.socket(fileno=service.sockets[0][1])
    else:
        with listening(layout.socket, gids) as listener:
            yield listener


def make_supervisor(setup: Setup, resources: OwnResources) -> tuple[Supervisor, DaemonBackend]:
    """Join the parts of a supervisor, and of what the API sees of it; nothing runs yet.

    Raises:
        HostError: the operation journal cannot be used.
    """
    layout, config = setup.layout, setup.config
    journal = Journal(
        layout.state / "operations.jsonl",
        key=lambda record: str(record["id"]),
        keep=KEPT,
        spare=lambda record: record.get("state") == OperationState.RUNNING.value,
    )
    if journal.damage:
        _log.error("operation journal", damage=journal.damage)
    operations = OperationTable(journal)
    left_out = operations.restore(journal.records())
    damage = [*filter(None, [journal.damage]), *(f"{journal.path}: {words}" for words in left_out)]
    ring = EventRing(uuid.uuid4().hex)
    latency = LatencyTable()
    store = UnitStore(layout)
    topology = TopologyReader()
    root = os.geteuid() == 0
    firmware = firmware_directories(os.environ, uid=os.geteuid())
    placements = Placements(topology)
    services = Services(
        layout=layout,
        load=store.load,
        persist=store.persist,
        facts=partial(read_host_facts, firmware=firmware),
        capabilities=Prober(layout.state / "capabilities").probe,
        claims=Claims(),
        cgroups=scope.manager(layout.tag, os.environ),
        identities=IdentityStore(layout.state / "instances"),
        operations=operations,
        publish=ring.publish,
        block_devices=config.block_devices,
        uids=range(config.uid_first, config.uid_last + 1) if root else None,
        on_latency=latency.observe,
        placements=placements,
        capacity=Capacity(placements, config.capacity),
    )
    supervisor = Supervisor(
        services, store, start_concurrency=config.start_concurrency, shutdown_timeout=config.shutdown_timeout
    )
    return supervisor, DaemonBackend(
        supervisor, store, operations, ring, latency, resources, topology, logs=layout.log, damage=damage
    )


async def run(setup: Setup) -> None:
    """Run the daemon until it is told to end; VMs run on.

    Raises:
        QsupError: it cannot begin.
    """
    # what is made until the daemon is ready mostly stays: to look for garbage among that, now or later, is time lost
    gc.disable()
    gids = operate_gids(setup.config.operate_group, uid=os.geteuid())
    policy = Policy(daemon_uid=os.geteuid(), operate_gids=gids)
    memory = OwnMemory(setup.config.memory_ceiling << 20)
    resources = OwnResources(memory)
    supervisor, backend = make_supervisor(setup, resources)
    api = Api(backend, policy=policy, version=VERSION)
    notifier = Notifier(setup.service.notify_socket)
    pressure = Pressure(
        descriptors_left=resources.descriptors_left,
        memory_short=resources.memory_short,
        on_shed=resources.on_shed,
    )

    def authorise(needed: Role, request: Request) -> QsupError | None:
        # the first that is called for a request: from here on its task, one for each connection, logs on behalf of it
        bind_contextvars(request_id=request.request_id)
        return decide(needed, request.peer, policy)

    def administers(peer: Peer) -> bool:
        return decide(Role.ADMIN, peer, policy) is None

    with closing(notifier), closing(memory), _api_socket(setup.layout, setup.service, gids) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, nursery.cancel_scope, supervisor, notifier)
            await nursery.start(supervisor.run)
            serving = partial(
                serve,
                limits=Limits(),
                authorise=authorise,
                administers=administers,
                pressure=pressure,
                on_bug=_report_bug,
                on_request=api.traffic.on_request,
            )
            await nursery.start(partial(serving, listener, make_router(api)))
            if setup.service.watchdog:
                nursery.start_soon(_feed_watchdog, notifier, setup.service.watchdog)
            gc.freeze()
            gc.enable()
            _log.info("ready", socket=str(listener.getsockname()), instances=len(backend.instances()))
            notifier.ready(f"{len(backend.instances())} VMs")
    _log.info("ended; VMs run on")


async def stop_all(setup: Setup) -> None:
    """Take over what an earlier daemon left, and stop all of it; a host that shuts down has no daemon to ask for that.

    Raises:
        QsupError: it cannot begin, or not all could be stopped.
    """
    resources = OwnResources(OwnMemory(setup.config.memory_ceiling << 20))
    supervisor, backend = make_supervisor(setup, resources)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(supervisor.run, autostart=False))
        asked = await backend.stop_all(uid=os.geteuid())
        ended = await backend.wait_operation(asked.id, math.inf)
        nursery.cancel_scope.cancel()
    if ended.error is not None:
        raise ended.error
    _log.info("stopped all", **(ended.result or {}))


async def _obey_signals(scope: trio.CancelScope, supervisor: Supervisor, notifier: Notifier) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        async for number in received:
            if number == signal.SIGHUP:
                await _reload(supervisor)
                continue
            _log.info("told to end", signal=signal.Signals(number).name)
            notifier.stopping()
            scope.cancel()
            return


async def _reload(supervisor: Supervisor) -> None:
    try:
        result = await supervisor.reload()
    except Exception:
        # a bug of ours, found by some unit file: that is no reason to end
        _log.exception("unit files could not be read")
    else:
        _log.info("unit files read", added=result.added, changed=result.changed, removed=result.removed)


async def _feed_watchdog(notifier: Notifier, seconds: float) -> None:
    """Being able to run this task is what the watchdog watches."""
    while True:
        notifier.watchdog()
        await trio.sleep(seconds / 3)


def _report_bug(error: Exception, request_id: str, route: str) -> None:
    _log.error("request failed by a bug", route=route, request_id=request_id, exc_info=error)


def obituary(error: BaseException) -> list[str]:
    """Why the daemon ends, one line for each cause; a bug is logged besides, with all that helps to find it."""
    causes = list(_causes(error))
    bugs = [cause for cause in causes if not isinstance(cause, QsupError | KeyboardInterrupt)]
    # on a terminal, a person looks for a sentence; whoever keeps a log wants to know where it was
    if bugs and structlog.is_configured() and not sys.stderr.isatty():
        _log.critical("ended by a bug", exc_info=error)
    return [_in_a_line(cause) for cause in causes]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What is in a group, and in its groups."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _causes(each)
    else:
        yield error


def _in_a_line(cause: BaseException) -> str:
    if isinstance(cause, QsupError):
        return f"{cause}\n  hint: {cause.hint}" if cause.hint else str(cause)
    if isinstance(cause, KeyboardInterrupt):
        return "interrupted"  # before there was anybody to obey SIGINT
    place = traceback.extract_tb(cause.__traceback__)[-1:]
    where = f" at {place[0].filename}:{place[0].lineno}" if place else ""
    return f"unforeseen {type(cause).__name__}: {cause}{where}; VMs run on"


def main(arguments: Sequence[str] | None = None) -> int:
    """The program: 0 when it was told to end, 1 when it could not begin or go on."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    lock: DaemonLock | None = None
    try:
        setup = set_up(options)
        _set_up_logging(setup.config)
        process.settle()
        lock = setup.layout.prepare()
        trio.run(stop_all if options.stop_all else run, setup)
    except (Exception, BaseExceptionGroup, KeyboardInterrupt) as error:
        for line in obituary(error):
            print(f"qsupd: {line}", file=sys.stderr)
        return 1
    finally:
        gc.enable()
        if lock is not None:
            kvmnode.release()
            lock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
