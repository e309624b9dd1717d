"""A served route table and raw clients, over a real Unix socket inside the test's own trio loop.

Decides: how tests talk to the kernel: bytes in, parsed answers out, every wait with a deadline.
Must not: know routes of the product.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import trio
from attrs import evolve, field, frozen

from qsup.api.http import Answer, Handler, Limits, Peer, Pressure, Request, Response, Role, Router, json_response, serve
from qsup.api.pressure import NO_PRESSURE
from qsup.errors import ForbiddenError

#: Seconds any single answer may take; virtual ones under trio's mock clock.
PATIENCE = 100.0


@frozen(kw_only=True)
class Reply:
    """One answer as a client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        """The body, which must be a JSON object."""
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value

    @property
    def code(self) -> object:
        """The stable code of a problem document."""
        assert self.headers["content-type"] == "application/problem+json"
        return self.json()["code"]


class ConnectionEnded(Exception):
    """The server closed instead of answering."""


class Client:
    """One connection to the server."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(data)

    async def reply(self, method: str = "GET") -> Reply:
        """Read one answer to a request that was sent by `send`."""
        with trio.fail_after(PATIENCE):
            return await self._reply(method)

    async def _reply(self, method: str) -> Reply:
        parser = self._http
        if parser.our_state is h11.DONE:
            parser.start_next_cycle()
        parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        parser.send(h11.EndOfMessage())
        head, body = await self._head(), b""
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data), event
            body += event.data
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return Reply(status=head.status_code, headers=headers, body=body)

    async def _head(self) -> h11.Response:
        event = await self._event()
        while isinstance(event, h11.InformationalResponse):
            event = await self._event()
        if isinstance(event, h11.ConnectionClosed):
            raise ConnectionEnded
        assert isinstance(event, h11.Response), event
        return event

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self.stream.receive_some(65536))
        return event

    async def get(self, target: str, *headers: str) -> Reply:
        """``GET target`` and its answer."""
        await self.send(request(f"GET {target}", *headers))
        return await self.reply()

    async def closed(self) -> bytes:
        """Wait for the server to close; what it still sent."""
        rest = b""
        with trio.fail_after(PATIENCE):
            try:
                while data := await self.stream.receive_some(65536):
                    rest += data
            except trio.BrokenResourceError:
                pass  # closed with bytes of ours unread
        return rest


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """The bytes of one request of HTTP/1.1; Content-Length is added for a body."""
    lines = [f"{line} HTTP/1.1", "Host: localhost", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@frozen(kw_only=True)
class Bug:
    """What the server reported as nobody's expected failure."""

    error: Exception
    request_id: str
    where: str


@frozen(kw_only=True)
class Served:
    """A running server.

    Args:
        bugs: what `on_bug` was told.
        requests: what `on_request` was told, without the time.
        scope: cancel it to begin the drain; `ended` is set behind it.
        clients: every connection that was made; closed when the test ends.
    """

    path: str
    bugs: list[Bug] = field(factory=list)
    requests: list[tuple[str, str, int]] = field(factory=list)
    clients: list[Client] = field(factory=list)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)

    async def connect(self) -> Client:
        """A new connection."""
        client = Client(await trio.open_unix_socket(self.path))
        self.clients.append(client)
        return client


@asynccontextmanager
async def serving(
    path: Path,
    router: Router,
    *,
    forbid: bool = False,
    administers: Callable[[Peer], bool] = lambda peer: False,
    pressure: Pressure = NO_PRESSURE,
    **limits: Any,
) -> AsyncIterator[Served]:
    """Serve ``router`` on a Unix socket below ``path``; every caller administers.

    Args:
        forbid: refuse every caller instead.
        administers: who finds room beyond the bounds.
        pressure: what the process is short of.
        limits: replace those of `Limits`.
    """
    served = Served(path=str(path / "api.sock"))
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[None]) -> None:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(served.path)
            listener.listen(512)
            with served.scope:
                await serve(
                    listener,
                    router,
                    limits=evolve(Limits(), **limits),
                    authorise=lambda role, request: ForbiddenError("no") if forbid else None,
                    on_bug=lambda error, request_id, where: served.bugs.append(
                        Bug(error=error, request_id=request_id, where=where)
                    ),
                    administers=administers,
                    pressure=pressure,
                    on_request=lambda method, pattern, status, _: served.requests.append((method, pattern, status)),
                    task_status=task_status,
                )
            served.ended.set()

        await nursery.start(run)
        try:
            yield served
        finally:
            for client in served.clients:
                client.stream.socket.close()
            served.scope.cancel()
            nursery.cancel_scope.deadline = trio.current_time() + PATIENCE


def routes(**handlers: Handler) -> Router:
    """A route table with ``GET`` and ``POST`` of ``/NAME`` for each handler, and ``GET /health``."""
    router = Router()
    router.add("GET", "/health", healthy, Role.READ)
    for name, handler in handlers.items():
        router.add("GET", f"/{name}", handler, Role.READ)
        router.add("POST", f"/{name}", handler, Role.READ)
    return router


async def healthy(request: Request) -> Answer:
    """Answer at once."""
    return json_response({"status": "ok"})


async def echo_body(request: Request) -> Answer:
    """Answer with the body."""
    return Response(body=await request.body())


async def echo_json(request: Request) -> Answer:
    """Answer with the body's JSON."""
    return json_response({"value": await request.json()})
