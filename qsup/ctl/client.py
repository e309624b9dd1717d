"""The daemon as a set of resources: requests, documents, streams.

Decides: when a request is sent again, how lists are put together, how the daemon's problems become errors of the tree.
Must not: know a verb, or print.
"""

from __future__ import annotations

import json
import math
import os
import time

from qsup.api.protocol import BODY_MAX, JSON, TOML, quote
from qsup.ctl.connection import Connection, Deadline, NotAnswered, Stream, TooLate
from qsup.errors import DaemonProtocolError, DaemonUnreachable, QsupError, RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from qsup.ctl.connection import Address
    from qsup.ctl.http import Head

#: Seconds the daemon has for an ordinary answer. Its reads never wait for a VM; raw QMP and the agent add their own.
ANSWER_TIMEOUT = 30.0
#: Seconds that a daemon which was there has to come back: restarted, or upgraded.
RETURN_TIMEOUT = 30.0
#: Seconds between two tries to reach it, and after which somebody is told.
_RETRY, _TELL = 0.1, 2.0


def decode(data: bytes) -> Any:
    """JSON from the daemon; `DaemonProtocolError` for anything else."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DaemonProtocolError(f"the daemon's answer is not JSON: {data[:60]!r}") from error


def new_token() -> str:
    """A fresh ``Idempotency-Key``: 32 hexadecimal digits."""
    return os.urandom(16).hex()


def error_from(problem: Mapping[str, Any], instance: str = "") -> QsupError:
    """The error that a problem document (RFC 9457) stands for, in the class of its ``code``.

    Args:
        problem: `qsup.api.wire.Problem`.
        instance: the VM it is about, where the document names none.
    """
    known = {"type", "title", "status", "detail", "code", "instance", "hint", "message", "self"}
    kind = _classes(QsupError).get(str(problem.get("code")), QsupError)
    error = kind.__new__(kind)
    # several classes take what their message is made of; here it is made already
    QsupError.__init__(
        error,
        str(problem.get("detail") or problem.get("title") or "the daemon gave no reason"),
        instance=str(problem.get("instance") or instance),
        hint=str(problem.get("hint") or ""),
        **{name: value for name, value in problem.items() if name not in known},
    )
    return error


def _classes(kind: type[QsupError]) -> dict[str, type[QsupError]]:
    classes = {kind.code: kind}
    for child in kind.__subclasses__():
        classes |= _classes(child)
    return classes


class Client:
    """The daemon as a set of resources. Documents are `qsup.api.wire` shapes.

    Every method raises `DaemonUnreachable`, `DaemonProtocolError`, or the error that the daemon answered with.

    Args:
        tell: told in words that the daemon is waited for.
        returns: seconds that one which was there has to come back, for a request that may be sent again; ``None`` for
            `RETURN_TIMEOUT`.
    """

    def __init__(
        self, address: Address, *, tell: Callable[[str], None] | None = None, returns: float | None = None
    ) -> None:
        self.address = address
        self._tell = tell
        self._returns = RETURN_TIMEOUT if returns is None else returns
        self._met = False
        self._idle: Connection | None = None

    def get(self, path: str, *, timeout: float = ANSWER_TIMEOUT, outlast: bool = False) -> Any:
        """A document.

        Args:
            timeout: seconds for the whole answer.
            outlast: a daemon that goes meanwhile is waited for, and its successor asked; else it is asked once more.
        """
        if outlast:
            return decode(self._outlasting("GET", path, timeout=timeout))
        return decode(self.exchange("GET", path, timeout=timeout))

    def post(self, path: str, document: object = None, *, key: str = "", timeout: float = ANSWER_TIMEOUT) -> Any:
        """Ask for something.

        Args:
            document: the JSON body, ``None`` for none.
            key: an ``Idempotency-Key``. With one, a daemon that goes before it has answered is waited for, and its
                successor is sent the same request.
        """
        body = b"" if document is None else json.dumps(document).encode()
        if key:
            return decode(self._outlasting("POST", path, body=body, key=key, timeout=timeout))
        return decode(self.exchange("POST", path, body=body, timeout=timeout))

    def _outlasting(self, method: str, path: str, *, timeout: float, body: bytes = b"", key: str = "") -> bytes:
        """`exchange`, also with a daemon that is restarted meanwhile; one that never was there is not waited for."""
        lost, told = math.inf, False
        while True:
            began = time.monotonic()
            try:
                return self.exchange(method, path, body=body, key=key, timeout=timeout)
            except DaemonUnreachable as error:
                now = time.monotonic()
                if now - began > _TELL:
                    lost, told = math.inf, False  # it was back meanwhile
                lost = min(lost, now)
                if not self._met or isinstance(error, TooLate) or now - lost > self._returns:
                    raise
            if self._tell is not None and not told and now - lost > _TELL:
                self._tell(f"the daemon is gone; it is waited for, {self._returns:g} s at most")
                told = True
            time.sleep(_RETRY)

    def patch(self, path: str, document: object, *, key: str = "", timeout: float = ANSWER_TIMEOUT) -> Any:
        """Change something; arguments as for `post`."""
        body = json.dumps(document).encode()
        return decode(self.exchange("PATCH", path, body=body, key=key, timeout=timeout))

    def put(self, path: str, text: str, *, etag: str) -> Any:
        """Write a file. ``etag``: the version that is meant, which the daemon compares."""
        headers = f'If-Match: "{etag}"\r\n'
        return decode(self.exchange("PUT", path, body=text.encode(), media=TOML, headers=headers))

    def post_text(self, path: str, text: str, *, etag: str) -> Any:
        """Ask about a file, arguments as for `put`."""
        headers = f'If-Match: "{etag}"\r\n'
        return decode(self.exchange("POST", path, body=text.encode(), media=TOML, headers=headers))

    def delete(self, path: str, *, key: str = "") -> Any:
        """Remove or cancel something; ``None`` when the daemon has nothing to say. ``key``: as for `post`."""
        answer = self.exchange("DELETE", path, key=key)
        return decode(answer) if answer else None

    def pages(self, path: str, noun: str) -> Iterator[Any]:
        """Every entry of a list that comes in pages: ``{noun: [...], "next": ...}``."""
        separator = "&" if "?" in path else "?"
        after = ""
        while True:
            page = self.get(path + after)
            yield from page[noun]
            if not page.get("next"):
                return
            after = f"{separator}after={quote(str(page['next']))}"

    def exchange(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        key: str = "",
        media: str = JSON,
        headers: str = "",
        timeout: float = ANSWER_TIMEOUT,
    ) -> bytes:
        """One request and the body of its answer, on the kept connection."""
        deadline = Deadline(timeout)
        request = self._request(method, path, body=body, key=key, media=media, headers=headers)
        try:
            connection, head = self._ask(request, deadline)
        except NotAnswered:
            if method != "GET" and not key:
                raise
            # the daemon may just be changing places with its successor
            connection, head = self._ask(request, deadline)
        try:
            answer = connection.receive_body(head, deadline)
        except QsupError:
            connection.close()
            raise
        if head.keeps_connection:
            self._idle = connection
        else:
            connection.close()
        if head.status >= 400:
            raise _refusal(head, answer)
        return answer

    def stream(self, path: str) -> Stream:
        """An endless answer, on a connection of its own. It is under way when this returns."""
        connection, head = self._open(self._request("GET", path), 200)
        return Stream(connection, head)

    def upgrade(self, path: str, headers: str) -> tuple[Connection, Head]:
        """Ask for another protocol; returns the connection once the daemon agreed (101).

        Args:
            headers: the handshake's own, each ended by CRLF.
        """
        return self._open(self._request("GET", path, headers=headers), 101)

    def close(self) -> None:
        """Close the kept connection."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    def _open(self, request: bytes, expected: int) -> tuple[Connection, Head]:
        deadline = Deadline(ANSWER_TIMEOUT)
        connection = Connection(self.address, deadline)
        try:
            connection.send(request, deadline)
            head = connection.receive_head(deadline)
            if head.status != expected:
                raise _refusal(head, connection.receive_body(head, deadline))
        except BaseException:
            connection.close()
            raise
        return connection, head

    def _ask(self, request: bytes, deadline: Deadline) -> tuple[Connection, Head]:
        connection, self._idle = self._idle, None
        if connection is not None and connection.is_stale:
            connection.close()
            connection = None
        if connection is None:
            connection = Connection(self.address, deadline)
        self._met = True
        try:
            connection.send(request, deadline)
            return connection, connection.receive_head(deadline)
        except BaseException:
            connection.close()
            raise

    @staticmethod
    def _request(
        method: str, path: str, *, body: bytes = b"", key: str = "", media: str = JSON, headers: str = ""
    ) -> bytes:
        if len(body) > BODY_MAX:
            raise RequestError(f"the request is longer than the {BODY_MAX >> 20} MiB that the daemon reads")
        head = f"{method} {path} HTTP/1.1\r\nHost: qsup\r\nUser-Agent: qsupctl\r\n{headers}"
        if key:
            head += f"Idempotency-Key: {key}\r\n"
        if body or method in ("POST", "PUT"):
            head += f"Content-Type: {media}\r\nContent-Length: {len(body)}\r\n"
        return f"{head}\r\n".encode("ascii") + body


def _refusal(head: Head, answer: bytes) -> QsupError:
    if head.status < 400:
        return DaemonProtocolError(f"the daemon answered with the status {head.status}, which does not belong here")
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return DaemonProtocolError(f"the daemon answered with the status {head.status} and no problem document")
    return error_from(document)
