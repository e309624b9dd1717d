"""The API's HTTP/1.1 server on Unix sockets (trio, h11, wsproto for upgrades), and the names routes are written with.

Decides: which connections are accepted, which one goes when there are too many, and how serving ends.
Must not: know VMs, routes, or who may do what.

Not an ASGI server: none gives peer credentials, a body limit and a bounded shutdown together.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable

import trio

from qsup.api.connection import Authorise, Connection, OnBug, OnRequest, Service
from qsup.api.limits import Limits
from qsup.api.message import (
    Answer,
    Handler,
    Request,
    Response,
    StreamResponse,
    UpgradeResponse,
    json_response,
    problem,
    problem_response,
)
from qsup.api.peer import Peer, peer_of
from qsup.api.pressure import NO_PRESSURE, Pressure, endless, idle
from qsup.api.roles import Role
from qsup.api.router import Route, Router
from qsup.api.transport import PeerLeft, Transport
from qsup.api.websocket import WebSocket
from qsup.errors import HostError, OverloadedError, from_oserror
from qsup.host.resources import DESCRIPTORS, MEMORY

__all__ = [
    "Answer",
    "Authorise",
    "Handler",
    "Limits",
    "OnBug",
    "OnRequest",
    "Peer",
    "PeerLeft",
    "Pressure",
    "Request",
    "Response",
    "Role",
    "Route",
    "Router",
    "StreamResponse",
    "UpgradeResponse",
    "WebSocket",
    "json_response",
    "problem",
    "problem_response",
    "serve",
]

# accept(2): the process or the machine has no more of something; it passes
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RESOURCES_DELAY = 0.1
#: Seconds between two looks at the process's memory.
_MEMORY_INTERVAL = 1.0


def _ignore_request(method: str, pattern: str, status: int, seconds: float) -> None:
    """Count nothing."""


def _is_nobody(peer: Peer) -> bool:
    """Whether it administers: no."""
    return False


async def serve(
    listener: socket.socket | trio.SocketListener,
    router: Router,
    *,
    limits: Limits,
    authorise: Authorise,
    on_bug: OnBug,
    on_request: OnRequest = _ignore_request,
    administers: Callable[[Peer], bool] = _is_nobody,
    pressure: Pressure = NO_PRESSURE,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve HTTP on a listening Unix socket until cancelled, then drain and close it.

    Draining: nothing more is accepted, idle connections and endless answers end at once, running requests have
    ``limits.drain_timeout`` seconds. A client that does not read cannot prolong that.

    Args:
        listener: bound and listening; closed at the end, its path is left alone.
        authorise, on_request, on_bug: see `qsup.api.connection.Service`.
        administers: whether a caller finds room where the bounds leave others none.
        pressure: how it learns what the process is short of, for which clients have to go.
        task_status: started as soon as connections are accepted.

    Raises:
        HostError: the listening socket is broken.
    """
    service = Service(router=router, limits=limits, authorise=authorise, on_request=on_request, on_bug=on_bug)
    sock = listener if isinstance(listener, socket.socket) else socket.socket(fileno=listener.socket.detach())
    sock.setblocking(False)
    server = _Server(service, administers, pressure)
    broken: HostError | None = None
    async with trio.open_nursery() as nursery:
        connections = await nursery.start(server.hold_connections)
        nursery.start_soon(server.evict_idle)
        nursery.start_soon(server.shed_for_memory)
        task_status.started()
        try:
            await server.accept_from(sock, connections)
        except HostError as error:
            broken = error
        finally:
            sock.close()
            server.drain(connections)
        nursery.cancel_scope.cancel()
    if broken is not None:
        raise broken


class _Server:
    """The connections of one listener."""

    def __init__(self, service: Service, administers: Callable[[Peer], bool], pressure: Pressure) -> None:
        self._service = service
        self._administers = administers
        self._pressure = pressure
        self._connections: set[Connection] = set()
        self._draining = trio.Event()

    async def hold_connections(self, *, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        """Keep a nursery that outlives the accepting side's cancellation by the drain."""
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True
            task_status.started(nursery)
            await self._draining.wait()

    def drain(self, nursery: trio.Nursery) -> None:
        """Let every connection end, and cancel what has not within the drain timeout."""
        nursery.cancel_scope.deadline = trio.current_time() + self._service.limits.drain_timeout
        for connection in self._connections:
            connection.drain()
        self._draining.set()

    async def accept_from(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        """Accept connections for ever; `HostError` when the socket is broken."""
        exhausted = False
        while True:
            # not accept(2) first: it wants a free descriptor even when nobody is waiting
            await trio.lowlevel.wait_readable(sock)
            try:
                accepted, _ = sock.accept()
            except BlockingIOError:
                pass  # whoever it was has gone
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise from_oserror(error, "could not accept a connection to the API") from error
                if not exhausted:
                    self._service.on_bug(error, "", "accept")
                exhausted = True
                self._shed_one()
                await trio.sleep(_RESOURCES_DELAY)
            else:
                exhausted = False
                self._admit(accepted, nursery)

    async def evict_idle(self) -> None:
        """Enforce the idle timeout, for ever.

        One task for all connections: a deadline of its own for each wait would be a tenth of the cost of a small
        request. Whoever is busy now, or comes later, cannot be due before a whole timeout from now.
        """
        timeout = self._service.limits.idle_timeout
        while True:
            now = trio.current_time()
            for since, connection in idle(self._connections):
                if since + timeout <= now:
                    self._evict(connection)
            await trio.sleep_until(min((since for since, _ in idle(self._connections)), default=now) + timeout)

    def _admit(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        try:
            peer = peer_of(sock)
        except OSError as error:
            sock.close()
            self._service.on_bug(error, "", "accept")
            return
        connection = Connection(self._service, Transport(sock), peer)
        if not self._pressure.descriptors_left() and not self._shed_one():
            self._pressure.on_shed(DESCRIPTORS, 1)
            refusal = OverloadedError("too few file descriptors are left", hint="close connections, or try again later")
            nursery.start_soon(connection.turn_away, refusal)
        elif self._make_room(peer):
            self._connections.add(connection)
            nursery.start_soon(self._run, connection)
        else:
            refusal = OverloadedError("too many connections are in use", hint="close some, or try again later")
            nursery.start_soon(connection.turn_away, refusal)

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.run()
        except Exception as error:
            # one connection's end must not become everybody's
            self._service.on_bug(error, "", "connection")
        finally:
            self._connections.discard(connection)

    def _make_room(self, peer: Peer) -> bool:
        """Evict an idle connection when a bound is reached; whether one more may come."""
        limits = self._service.limits
        # a few users' endless answers must not keep out whoever could end them
        beyond = limits.connections_for_administrators if self._administers(peer) else 0
        same_uid = [connection for connection in self._connections if connection.peer.uid == peer.uid]
        if len(same_uid) >= limits.connections_per_uid:
            if self._evict_oldest(same_uid):
                return True
            if len(same_uid) >= limits.connections_per_uid + beyond:
                return False
        if len(self._connections) < limits.connections or self._evict_oldest(self._connections):
            return True
        return len(self._connections) < limits.connections + beyond

    def _evict_oldest(self, connections: Iterable[Connection]) -> bool:
        found = idle(connections)
        if found:
            self._evict(min(found, key=lambda pair: pair[0])[1])
        return bool(found)

    def _shed_one(self) -> bool:
        """End one connection for its descriptor; whether there was one that may be ended."""
        if not self._evict_oldest(self._connections):
            costly = endless(self._connections)
            if not costly:
                return False
            self._end(costly[0])
        self._pressure.on_shed(DESCRIPTORS, 1)
        return True

    async def shed_for_memory(self) -> None:
        """End clients for as long as there is too much memory, for ever; each time all idle ones and half the rest."""
        while True:
            await trio.sleep(_MEMORY_INTERVAL)
            if not self._pressure.memory_short():
                continue
            unused = [connection for _, connection in idle(self._connections)]
            for connection in unused:
                self._evict(connection)
            costly = endless(self._connections)
            costly = costly[: (len(costly) + 1) // 2]
            for connection in costly:
                self._end(connection)
            if unused or costly:
                self._pressure.on_shed(MEMORY, len(unused) + len(costly))

    def _end(self, connection: Connection) -> None:
        connection.drain()
        self._connections.discard(connection)

    def _evict(self, connection: Connection) -> None:
        connection.evict()
        self._connections.discard(connection)
