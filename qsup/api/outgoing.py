"""The sending half of an HTTP/1.1 connection: the head of an answer and its body (RFC 9112, on h11).

Decides: which framing fields an answer gets, and when a body is not sent.
Must not: choose what is answered, or go on after a send that ended half way.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from http import HTTPStatus

import h11
import trio

from qsup.api.incoming import Head
from qsup.api.message import Response, StreamResponse
from qsup.api.transport import Transport, run_while
from qsup.api.websocket import accept_token
from qsup.errors import RequestError

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class Outgoing:
    """Answers on one connection. Whatever is sent raises `PeerLeft` when the peer does not take it in time.

    Args:
        timeout: seconds the peer has for a whole answer, or one chunk of a stream.
    """

    def __init__(self, http: h11.Connection, transport: Transport, *, timeout: float) -> None:
        self._http = http
        self._transport = transport
        self._timeout = timeout

    def opening(self, answer: Response | StreamResponse, *, close: bool) -> h11.Response:
        """The head of an answer, checked: after this only the socket can fail.

        Args:
            close: this is the last answer on the connection.

        Raises:
            h11.LocalProtocolError: the status or a header is not one.
        """
        fields = list(answer.headers.items())
        if isinstance(answer, Response) and answer.status not in _BODILESS:
            fields.append(("content-length", str(len(answer.body))))
        # a client that was not told to continue may send its body or not: what follows could be either
        if close or self._http.their_state is h11.ERROR or self._http.they_are_waiting_for_100_continue:
            fields.append(("connection", "close"))
        return _checked(answer.status, tuple(fields))

    def switching(self, head: Head) -> h11.InformationalResponse:
        """The answer to a valid WebSocket handshake.

        Raises:
            UpgradeRequired, RequestError: it is not one.
        """
        token = accept_token(head.method, head.version, head.headers)
        if head.headers.get("content-length", "0") != "0" or "transfer-encoding" in head.headers:
            raise RequestError("a WebSocket handshake has no body")
        if self._http.their_state is h11.SEND_BODY:
            # h11 switches protocols between messages only: read to the end of the empty body
            self._http.next_event()
        fields = [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-accept", token)]
        return h11.InformationalResponse(status_code=101, headers=fields, reason=_PHRASES[101])

    async def send(self, opening: h11.Response, body: bytes) -> None:
        """Send a whole answer, in one piece; the body is left out where the status has none."""
        data = self._bytes(opening)
        if body and opening.status_code not in _BODILESS:
            data += self._bytes(h11.Data(data=body))
        await self._put(data + self._bytes(h11.EndOfMessage()))

    async def switch(self, opening: h11.InformationalResponse) -> bytes:
        """Send the end of HTTP on this connection; what the client sent behind its handshake already."""
        await self._put(self._bytes(opening))
        received, _ = self._http.trailing_data
        return received

    async def stream(
        self,
        opening: h11.Response,
        chunks: AsyncIterator[bytes],
        *,
        scope: trio.CancelScope,
        wait_left: Callable[[], Awaitable[None]],
    ) -> None:
        """Send chunks until they end or ``scope`` is cancelled, then the end of the body; closes the iterator.

        Args:
            wait_left: returns when the client has gone, which ends the stream with `PeerLeft`.
        """
        try:
            await self._put(self._bytes(opening))
            with scope:
                await run_while(wait_left, self._pump, chunks)
        finally:
            await close_chunks(chunks)
        await self._put(self._bytes(h11.EndOfMessage()))

    async def _pump(self, chunks: AsyncIterator[bytes]) -> None:
        async for chunk in chunks:
            await self._put(self._bytes(h11.Data(data=chunk)))
            # an iterator that never waits must not keep the others waiting
            await trio.lowlevel.checkpoint()

    def _bytes(self, event: h11.Event) -> bytes:
        return self._http.send(event) or b""

    async def _put(self, data: bytes) -> None:
        await self._transport.send_all(data, self._timeout)


@functools.lru_cache(maxsize=256)
def _checked(status: int, fields: tuple[tuple[str, str], ...]) -> h11.Response:
    """A head that h11 has checked: a tenth of a small request's cost, and most heads have been sent before."""
    return h11.Response(status_code=status, headers=list(fields), reason=_PHRASES.get(status, b""))


async def close_chunks(chunks: AsyncIterator[bytes]) -> None:
    """Give back what an iterator of chunks holds, taken from or not."""
    if isinstance(chunks, AsyncGenerator):
        await chunks.aclose()
