"""What a handler gets and what it may answer.

Decides: the shapes of requests, answers and problem documents (RFC 9457).
Must not: touch a socket, or know any route.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol, TypeVar, TypeVarTuple

from attrs import field, frozen

from qsup.api import jsontext
from qsup.api.peer import Peer
from qsup.api.protocol import JSON, PROBLEM
from qsup.api.transport import run_while
from qsup.api.websocket import WebSocket
from qsup.errors import MethodNotAllowed, QsupError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Exchange(Protocol):
    """The connection behind a request, as far as the request needs it."""

    async def read_body(self) -> bytes:
        """The whole body; called once."""

    async def wait_peer_left(self) -> None:
        """Return when the client has closed the connection."""


class Request:
    """One HTTP request, routed and authorised; its body is still to be read.

    A client that leaves cancels nothing: the handler runs to its end and its answer is dropped. What is only worth
    doing for somebody who waits (a long poll) goes through `while_connected`.

    Attributes:
        method: as sent; ``HEAD`` reaches the handler of ``GET``.
        path: percent-decoded, without the query. Not normalised, and not what was routed by: see ``params``.
        query: percent-decoded; no name occurs twice.
        headers: names in lower case, repeated ones joined by ``", "``.
        peer: who sent it.
        request_id: for logs and problems; the client's ``X-Request-Id`` when that is harmless.
        params: percent-decoded path parameters. They may hold anything (``/``, ``..``, NUL): the handler validates.
    """

    __slots__ = ("_body", "_exchange", "headers", "method", "params", "path", "peer", "query", "request_id")

    def __init__(
        self,
        *,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        peer: Peer,
        request_id: str,
        params: Mapping[str, str],
        exchange: Exchange,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.peer = peer
        self.request_id = request_id
        self.params = params
        self._exchange = exchange
        self._body: bytes | None = None

    async def body(self) -> bytes:
        """The whole body, ``b""`` without one.

        Raises:
            PayloadTooLarge: beyond the kernel's bound.
            RequestTimeout: it did not arrive in time.
            RequestError: it broke HTTP's framing.
        """
        if self._body is None:
            self._body = await self._exchange.read_body()
        return self._body

    async def json(self) -> object:
        """The body as strict JSON; raises as `body` and `qsup.api.jsontext.loads` do."""
        return jsontext.loads(await self.body())

    async def while_connected(self, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """``await fn(*args)``, cancelled when the client closes the connection. Read the body before.

        A client that only shut down its sending side still waits for the answer, and so does the call.

        Raises:
            PeerLeft: it was cancelled for that; let it pass, the connection is simply closed.
        """
        return await run_while(self._exchange.wait_peer_left, fn, *args)


@frozen(kw_only=True)
class Response:
    """A whole answer. Content-Length and Connection are added when it is sent."""

    status: int = 200
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes = b""


@frozen(kw_only=True)
class StreamResponse:
    """An answer without a known end: events, a log that is followed. Anything finite belongs into a `Response`.

    Each chunk must be taken by the client within the send deadline. The iterator is cancelled (and closed) when the
    client leaves and when the server drains, in which case the stream ends in good order. An error in it tears the
    connection: what can be refused must be refused before this is returned.
    """

    status: int = 200
    headers: Mapping[str, str] = field(factory=dict)
    chunks: AsyncIterator[bytes]


@frozen(kw_only=True)
class UpgradeResponse:
    """Continue as a WebSocket (RFC 6455).

    Args:
        handler: ends when `WebSocket.receive` returns ``None``; the socket is closed after it returns (code 1000) or
            raises (1011, with the error's text where it is a `QsupError`).
        attach: what the conversation needs and must give back. Entered when the handshake is known to be valid and
            has not been answered yet: what it raises is answered like any handler's error. Left at the end.
    """

    handler: Callable[[WebSocket], Awaitable[None]]
    attach: AbstractAsyncContextManager[object] = field(factory=nullcontext)


Answer = Response | StreamResponse | UpgradeResponse
Handler = Callable[[Request], Awaitable[Answer]]


def json_response(value: object, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON document; raises as `qsup.api.jsontext.dumps` does."""
    content_type = {"content-type": JSON}
    return Response(
        status=status, headers={**content_type, **headers} if headers else content_type, body=jsontext.dumps(value)
    )


def problem(error: QsupError, request_id: str) -> dict[str, object]:
    """The problem document of an error: `qsup.api.wire.Problem`, then the error's own details.

    The details cannot replace a standard member. ``type`` is a name, not a place: nothing is to be fetched.
    """
    document: dict[str, object] = {
        "type": f"urn:qsup:problem:{error.code}",
        "title": error.code.replace("-", " ").capitalize(),
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "request_id": request_id,
    }
    if error.instance:
        document["instance"] = error.instance
    if error.hint:
        document["hint"] = error.hint
    return document | {name: value for name, value in error.details.items() if name not in document}


def problem_response(error: QsupError, request_id: str) -> Response:
    """An error as ``application/problem+json``, with ``Allow`` where the method was wrong."""
    headers = {"content-type": PROBLEM}
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = ", ".join(error.allow)
    return Response(status=error.status, headers=headers, body=jsontext.dumps(problem(error, request_id)))
