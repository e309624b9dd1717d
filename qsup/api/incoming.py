"""The receiving half of an HTTP/1.1 connection: requests and their bodies (RFC 9112, on h11).

Decides: how long each part of a request may take, how large it may be, and what is ambiguous enough to be refused.
Must not: send anything but ``100 Continue``, or know routes and answers.
"""

from __future__ import annotations

import math

import h11
import trio

from qsup.api.limits import Limits
from qsup.api.transport import PeerLeft, Transport
from qsup.errors import HeaderTooLarge, PayloadTooLarge, RequestError, RequestTimeout

#: A client that sends this much ahead of an answer is no longer watched for leaving.
_READ_AHEAD_MAX = 65536
#: A body may come in so many pieces: a mebibyte in chunks of one byte would be half a minute of parsing.
_PIECES_MAX = 16384


class Head:
    """A request's line and header, decoded.

    Attributes:
        method: as sent.
        target: ASCII, as sent.
        version: of HTTP: ``b"1.0"`` or ``b"1.1"``.
        headers: names in lower case, repeated ones joined by ``", "``.
    """

    __slots__ = ("headers", "method", "target", "version")

    def __init__(self, event: h11.Request) -> None:
        self.method = event.method.decode("ascii")
        self.target = event.target.decode("ascii")
        self.version = event.http_version
        self.headers: dict[str, str] = {}
        for raw_name, raw_value in event.headers:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value


class Incoming:
    """Requests from one connection, each: `next_head`, then `read_body` or not, then `drop_body`."""

    def __init__(self, http: h11.Connection, transport: Transport, limits: Limits) -> None:
        self._http = http
        self._transport = transport
        self._limits = limits
        self._body_deadline = math.inf
        self._body_size = 0
        self._body_pieces = 0

    async def next_head(self) -> Head | None:
        """Wait for the head of the next request, without end for its first byte; ``None`` when the client closed.

        Raises:
            RequestError: what came is no acceptable request; nothing that follows it can be understood.
            PeerLeft: the connection was reset.
        """
        self._body_deadline = deadline = math.inf
        self._body_size = self._body_pieces = 0
        try:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                # pipelined: this client has had its turn
                await trio.lowlevel.checkpoint()
            while event is h11.NEED_DATA:
                self._http.receive_data(await self._transport.receive(deadline))
                event = self._http.next_event()
                if event is h11.NEED_DATA and deadline == math.inf:
                    deadline = trio.current_time() + self._limits.header_timeout
        except h11.RemoteProtocolError as error:
            raise _refusal(error) from error
        except trio.TooSlowError as error:
            raise RequestTimeout(f"the header did not arrive within {self._limits.header_timeout:g} s") from error
        return _unambiguous(Head(event)) if isinstance(event, h11.Request) else None

    async def read_body(self) -> bytes:
        """The body of the present request; answers ``Expect: 100-continue`` first.

        Raises:
            PayloadTooLarge, RequestTimeout, RequestError: see `qsup.api.message.Request.body`.
        """
        if self._http.they_are_waiting_for_100_continue:
            go_on = self._http.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
            await self._transport.send_all(go_on, self._limits.send_timeout)
        body = bytearray()
        try:
            while data := await self._next_data():
                body += data
        except trio.TooSlowError as error:
            raise RequestTimeout(f"the body did not arrive within {self._limits.body_timeout:g} s") from error
        return bytes(body)

    def body_too_large(self) -> PayloadTooLarge:
        """The error for a body that is, or says it will be, beyond the bound."""
        text = f"the body is larger than {self._limits.body} bytes, or comes in too many chunks"
        return PayloadTooLarge(text, limit=self._limits.body)

    async def drop_body(self) -> bool:
        """Read what nobody asked for, so that the next request can be found; whether it can.

        Closing at once would be simpler, but a client that first writes all of its body would then fail in writing and
        never read the answer that says why.
        """
        try:
            while await self._next_data():
                pass  # dropped
        except (RequestError, trio.TooSlowError):
            return False
        return True

    async def wait_peer_left(self) -> None:
        """Return when the client has closed the connection, reading ahead within bounds to notice.

        Never returns for a client that only shut down its sending side (it awaits its answer, and its close cannot be
        told apart from that any more), nor for one that sends too much ahead.
        """
        ahead = 0
        try:
            while ahead < _READ_AHEAD_MAX and (data := await self._transport.receive(math.inf)):
                self._http.receive_data(data)
                ahead += len(data)
        except PeerLeft:
            return
        if not self._transport.has_hung_up():
            await trio.sleep_forever()

    async def _next_data(self) -> bytes:
        """The next piece of the body, ``b""`` at its end; `RequestError`, `trio.TooSlowError`."""
        if self._http.their_state is h11.ERROR:
            raise RequestError("the body could not be read")
        while self._http.their_state is h11.SEND_BODY:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise _refusal(error) from error
            if isinstance(event, h11.Data):
                self._count(len(event.data))
                return bytes(event.data)
            if event is h11.NEED_DATA:
                if self._body_deadline == math.inf:
                    self._body_deadline = trio.current_time() + self._limits.body_timeout
                self._http.receive_data(await self._transport.receive(self._body_deadline))
        return b""

    def _count(self, size: int) -> None:
        self._body_size += size
        self._body_pieces += 1
        if self._body_size > self._limits.body or self._body_pieces > _PIECES_MAX:
            raise self.body_too_large()


def _refusal(error: h11.RemoteProtocolError) -> RequestError:
    if error.error_status_hint == HeaderTooLarge.status:
        return HeaderTooLarge("the request line and header are too large")
    # h11 quotes the bytes it dislikes as a Python object
    words = str(error).partition(": bytearray(")[0]
    return RequestError(f"this is not HTTP/1.1 as it should be: {words}")


def _unambiguous(head: Head) -> Head:
    """Refuse a request whose end an intermediary might see elsewhere (RFC 9112, sections 6.1 and 6.3).

    h11 lets Transfer-Encoding win over Content-Length, takes it from a client of HTTP/1.0, and takes any version.
    """
    if head.version not in (b"1.1", b"1.0"):
        raise RequestError("this is not HTTP/1.1")
    if "transfer-encoding" in head.headers:
        if "content-length" in head.headers:
            raise RequestError("the request has both Transfer-Encoding and Content-Length")
        if head.version != b"1.1":
            raise RequestError("Transfer-Encoding needs HTTP/1.1")
    return head
