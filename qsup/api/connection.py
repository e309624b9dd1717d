"""One HTTP/1.1 connection: requests in, answers out, in order.

Decides: what is refused before a handler sees it, how each kind of answer is sent, what becomes of a handler's error,
and whether the connection goes on.
Must not: know any route or role, or other connections.

A request goes through: head, routing, authorisation, the declared length of its body, the handler (without a deadline,
and without anything read from the socket that it did not ask for), the answer, what is left of the body. The handler
runs in the connection's own task, and nothing that the client does or fails to do cancels it; only the end of the
server's drain does.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncIterator, Callable

import h11
import trio
from attrs import frozen
from wsproto.frame_protocol import CloseReason

from qsup.api.incoming import Head, Incoming
from qsup.api.limits import Limits
from qsup.api.message import Answer, Request, Response, StreamResponse, UpgradeResponse, problem_response
from qsup.api.outgoing import Outgoing, close_chunks
from qsup.api.peer import Peer
from qsup.api.roles import Role
from qsup.api.router import Route, Router, parse_target
from qsup.api.transport import PeerLeft, Transport
from qsup.api.websocket import WebSocket
from qsup.errors import PayloadTooLarge, QsupError, RequestError, RequestTimeout

Authorise = Callable[[Role, Request], QsupError | None]
OnRequest = Callable[[str, str, int, float], None]
OnBug = Callable[[Exception, str, str], None]

#: A client's own request id is taken when it is harmless in a log line and a header.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@frozen(kw_only=True)
class Service:
    """What all connections of a server share.

    Args:
        authorise: called with the route's role and the request, before the body is read; what it returns is answered.
        on_request: called for each answer, before it is sent: method, route pattern, status, seconds since the head
            was read. Method and pattern are ``""`` where no route was found, so that a client cannot invent labels.
        on_bug: called with an exception that nobody foresaw, the request's id, and ``"METHOD pattern"``.
    """

    router: Router
    limits: Limits
    authorise: Authorise
    on_request: OnRequest
    on_bug: OnBug


class Connection:
    """One connection, served by `run`.

    Attributes:
        peer: who is at the other end.
        idle_since: when it began to wait for a request (trio's clock), ``None`` while one is served.
        endless_since: when it began an answer that only ends with the server, ``None`` while there is none.
    """

    def __init__(self, service: Service, transport: Transport, peer: Peer) -> None:
        self.peer = peer
        self.idle_since: float | None = trio.current_time()
        self.endless_since: float | None = None
        self._service = service
        self._transport = transport
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=service.limits.header)
        self._incoming = Incoming(self._http, transport, service.limits)
        self._outgoing = Outgoing(self._http, transport, timeout=service.limits.send_timeout)
        self._scope = trio.CancelScope()
        self._endless_scope = trio.CancelScope()
        self._draining = False
        self._must_close = False

    async def run(self) -> None:
        """Serve requests until either side has enough, then close the socket."""
        try:
            with self._scope:
                while await self._serve_one():
                    pass  # one after the other
        except PeerLeft:
            pass  # nobody is left to be told
        finally:
            self._transport.close()

    def evict(self) -> None:
        """Close an idle connection; a request that arrives at this moment is not begun."""
        self._scope.cancel()

    def drain(self) -> None:
        """Close once the request that is being served is answered; endless answers end now."""
        self._draining = True
        self._endless_scope.cancel()
        if self.idle_since is not None:
            self.evict()

    def backlog(self) -> int:
        """Bytes that its client has yet to read."""
        return self._transport.backlog()

    async def _serve_one(self) -> bool:
        """Serve one request; whether another may follow."""
        try:
            head = await self._incoming.next_head()
        except RequestError as error:
            return await self._refuse(error)
        if head is None or self._scope.cancel_called:
            return False
        self.idle_since = None
        call = _Call(head)
        try:
            answer = await self._call_handler(call, head)
            if isinstance(answer, UpgradeResponse):
                return await self._upgrade(call, head, answer)
            opening = self._outgoing.opening(answer, close=self._ends_here())
        except Exception as error:
            answer = self._answer_for(error, call)
            opening = self._outgoing.opening(answer, close=self._ends_here())
        self._count(call, answer.status)
        await self._send(call, answer, opening)
        return await self._finish()

    async def turn_away(self, error: QsupError) -> None:
        """In place of `run`: answer with an error, whatever is asked, and close."""
        try:
            await self._refuse(error)
        except PeerLeft:
            pass  # it saved us the trouble
        finally:
            self._transport.close()

    async def _refuse(self, error: QsupError) -> bool:
        """Answer where there is no request, as far as that is still possible; there will not be another one."""
        self._must_close = True
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            call = _Call(None)
            answer = problem_response(error, call.request_id)
            self._service.on_request("", "", answer.status, 0.0)
            await self._send(call, answer, self._outgoing.opening(answer, close=self._ends_here()))
        return False

    def _ends_here(self) -> bool:
        return self._draining or self._must_close

    def _count(self, call: _Call, status: int) -> None:
        self._service.on_request(call.method, call.pattern, status, time.monotonic() - call.begun)

    async def _call_handler(self, call: _Call, head: Head) -> Answer:
        target = parse_target(head.target)
        route = self._service.router.find(head.method, target.segments)
        call.route = route
        request = Request(
            method=head.method,
            path=target.path,
            query=target.query,
            headers=head.headers,
            peer=self.peer,
            request_id=call.request_id,
            params={name: target.segments[index] for name, index in route.params},
            exchange=self._incoming,
        )
        if denial := self._service.authorise(route.role, request):
            raise denial
        length = head.headers.get("content-length")
        if length is not None and int(length) > self._service.limits.body:
            raise self._incoming.body_too_large()
        return await route.handler(request)

    def _answer_for(self, error: Exception, call: _Call) -> Response:
        """The problem document for whatever ended a handler; `PeerLeft` passes."""
        error = _bare(error)
        if isinstance(error, PeerLeft):
            raise error
        if not isinstance(error, QsupError):
            self._service.on_bug(error, call.request_id, call.label)
            error = QsupError("an error inside the daemon", hint="its log has the details under this request id")
        if isinstance(error, PayloadTooLarge | RequestTimeout):
            self._must_close = True
        try:
            return problem_response(error, call.request_id)
        except (TypeError, ValueError) as wrong_details:
            return self._answer_for(wrong_details, call)

    async def _upgrade(self, call: _Call, head: Head, answer: UpgradeResponse) -> bool:
        """Become a WebSocket until its end. What is raised can still be answered: the handshake has not been."""
        opening = self._outgoing.switching(head)
        attached = False
        try:
            async with answer.attach:
                attached = True
                self._count(call, opening.status_code)
                await self._talk(call, answer, await self._outgoing.switch(opening))
        except Exception as error:
            if not attached:
                raise
            self._report(error, call)
        return False

    async def _send(self, call: _Call, answer: Response | StreamResponse, opening: h11.Response) -> None:
        if isinstance(answer, Response):
            await self._outgoing.send(opening, answer.body if call.wants_body else b"")
        elif not call.wants_body:
            await close_chunks(answer.chunks)
            await self._outgoing.send(opening, b"")
        else:
            await self._stream(call, answer.chunks, opening)

    async def _stream(self, call: _Call, chunks: AsyncIterator[bytes], opening: h11.Response) -> None:
        """Send chunks until they end, the server drains, or (`PeerLeft`) the client leaves or an error tears it."""
        try:
            wait_left = self._incoming.wait_peer_left
            await self._outgoing.stream(opening, chunks, scope=self._endless(), wait_left=wait_left)
        except Exception as error:
            self._report(error, call)
            raise PeerLeft from error

    async def _talk(self, call: _Call, answer: UpgradeResponse, received: bytes) -> None:
        """Run a WebSocket's handler and close the socket behind it."""
        limits = self._service.limits
        socket = WebSocket(self._transport, received, message_max=limits.message, send_timeout=limits.send_timeout)
        code, reason = CloseReason.NORMAL_CLOSURE, ""
        try:
            with self._endless() as scope:
                await answer.handler(socket)
            if scope.cancelled_caught:
                code = CloseReason.GOING_AWAY
        except Exception as error:
            code, reason = CloseReason.INTERNAL_ERROR, self._report(error, call)
        await socket.close(code, reason)

    def _endless(self) -> trio.CancelScope:
        """A scope for what only ends with the server, or has ended already when that is ending."""
        self._endless_scope = trio.CancelScope()
        self.endless_since = trio.current_time()
        if self._draining:
            self._endless_scope.cancel()
        return self._endless_scope

    def _report(self, error: Exception, call: _Call) -> str:
        """Tell a bug to the log and return what the client may know of any error."""
        error = _bare(error)
        if isinstance(error, QsupError):
            return error.message
        if not isinstance(error, PeerLeft):
            self._service.on_bug(error, call.request_id, call.label)
        return "an error inside the daemon"

    async def _finish(self) -> bool:
        """Bring the connection to where the next request may be read; whether there may be one."""
        self.idle_since, self.endless_since = trio.current_time(), None
        if not await self._incoming.drop_body() or self._draining:
            return False
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True


class _Call:
    """One request on its way through: its head (``None`` where none could be read) and its route once found."""

    __slots__ = ("begun", "head", "request_id", "route")

    def __init__(self, head: Head | None) -> None:
        self.begun = time.monotonic()
        self.head = head
        self.route: Route | None = None
        given = head.headers.get("x-request-id") if head else None
        self.request_id = given if given and _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()

    @property
    def method(self) -> str:
        """The route's method, ``""`` without a route."""
        return self.route.method if self.route else ""

    @property
    def pattern(self) -> str:
        """The route's pattern, ``""`` without a route."""
        return self.route.pattern if self.route else ""

    @property
    def label(self) -> str:
        """The route, for a log line."""
        return f"{self.method} {self.pattern}"

    @property
    def wants_body(self) -> bool:
        """Whether the answer may have a body."""
        return self.head is None or self.head.method != "HEAD"


def _bare(error: Exception) -> Exception:
    """The one error inside a group that a handler's nursery made of it; peers that left do not count beside others."""
    while isinstance(error, ExceptionGroup):
        _, rest = error.split(PeerLeft)
        if rest is None:
            return PeerLeft()
        if len(rest.exceptions) > 1:
            return rest
        error = rest.exceptions[0]
    return error
