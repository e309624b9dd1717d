"""A peer that answers with bytes, right or wrong. It serves in a thread, one connection after the other.

Decides: what a daemon may do to a client: answer slowly, in pieces, with garbage, or not at all.
Must not: understand HTTP beyond the end of a request.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import field, frozen

from qsup.ctl.client import Client
from qsup.ctl.connection import Address

#: What one connection gets: an answer for each request in turn; then, or at ``None``, it is closed.
Script = Sequence[bytes | None]


@frozen(kw_only=True)
class Peer:
    """A listening peer.

    Args:
        client: one that is to talk to it.
        requests: each request as it came, head and body.
    """

    client: Client
    requests: list[bytes] = field(factory=list)


def answer(document: str, status: str = "200 OK", *headers: str) -> bytes:
    """A whole JSON answer."""
    body = document.encode()
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextmanager
def peer(directory: Path, *connections: Script) -> Iterator[Peer]:
    """Serve one script per connection, in order; later connections are closed unanswered."""
    listener = socket.socket(socket.AF_UNIX)
    path = str(directory / "peer.sock")
    listener.bind(path)
    listener.listen()
    served = Peer(client=Client(Address(path, "start the peer"), returns=0.5))
    open_sockets: list[socket.socket] = []

    def serve() -> None:
        scripts = iter(connections)
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # the test is over
            open_sockets.append(connection)
            _play(connection, next(scripts, ()), served.requests.append)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield served
    finally:
        served.client.close()
        listener.shutdown(socket.SHUT_RDWR)
        for connection in open_sockets:
            _end(connection)
        thread.join(10)
        listener.close()
        Path(path).unlink()
        assert not thread.is_alive()


def _play(connection: socket.socket, script: Script, note: Callable[[bytes], None]) -> None:
    with connection:
        for reply in script:
            request = _read_request(connection)
            if not request or reply is None:
                return
            note(request)
            try:
                connection.sendall(reply)
            except BrokenPipeError:
                return  # the client had enough of it


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is closed already


def _read_request(connection: socket.socket) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request:
        data = connection.recv(65536)
        if not data:
            return b""
        request += data
    head, _, body = request.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
