"""A client of HTTP that costs next to nothing: one connection, prepared bytes.

Decides: how an answer's end is found.
Must not: be a client for anything but measurements; `qsup.ctl.client` is the real one.
"""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

DEADLINE = 60.0
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Kept:
    """One connection that is kept.

    Args:
        path: the server's socket.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE)
        self._socket.connect(str(path))
        self._received = b""

    def exchange(self, request: bytes) -> bytes:
        """Send prepared bytes and return the body of the answer, whose header says how long it is."""
        self._socket.sendall(request)
        head, self._received = b"", b""
        while not head:
            self._receive()
            head, separator, rest = self._received.partition(b"\r\n\r\n")
            head = head if separator else b""
            self._received = rest if separator else self._received
        length = _LENGTH.search(head)
        assert length, head
        while len(self._received) < int(length[1]):
            self._receive()
        return self._received

    def ask(self, method: str, target: str, document: object = None) -> Any:
        """Send a request and return the document that answers it."""
        return json.loads(self.exchange(request(method, target, document)))

    def read_until(self, text: bytes) -> bytes:
        """Read an endless answer until a text has come, and forget all up to it; what stood before it."""
        while text not in self._received:
            self._receive()
        before, _, self._received = self._received.partition(text)
        return before

    def send(self, data: bytes) -> None:
        """Send without waiting for the answer."""
        self._socket.sendall(data)

    def _receive(self) -> None:
        data = self._socket.recv(1 << 18)
        assert data, "the server closed the connection"
        self._received += data

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def connects(path: Path) -> bool:
    """Whether a server listens there."""
    try:
        Kept(path).close()
    except OSError:
        return False
    return True


def request(method: str, target: str, document: object = None) -> bytes:
    """The bytes of a request."""
    body = b"" if document is None else json.dumps(document).encode()
    fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode() + body
