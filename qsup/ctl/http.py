"""What comes back from the daemon, byte by byte: HTTP/1.1 heads and bodies (RFC 9112).

Decides: where a head ends, how long a body is, and which bytes are not HTTP.
Must not: touch a socket, know a route, or hold more of a stream than one read brought.

`http.client` costs 20 ms at every start of ``qsupctl``; the daemon sends a small part of HTTP, and all of it is here.
"""

from __future__ import annotations

from qsup.errors import DaemonProtocolError, DaemonUnreachable

#: Longest head of an answer, in bytes.
HEAD_MAX = 32 * 1024
#: Longest line that holds a chunk's size or a trailer, in bytes.
_LINE_MAX = 4096
_HEXADECIMAL = frozenset(b"0123456789abcdefABCDEF")
_BODILESS = (204, 304)


class Head:
    """Status line and headers of an answer.

    Args:
        status: the status code.
        headers: by lower-case name; repeated ones joined by ``", "``.
    """

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers

    @property
    def keeps_connection(self) -> bool:
        """Whether another request may follow on the connection."""
        return self.headers.get("connection", "").lower() != "close"


def parse_head(block: bytes) -> Head:
    """Parse everything before the empty line.

    Raises:
        DaemonProtocolError: it is not the head of an HTTP/1.1 answer.
    """
    lines = block.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    status = rest[:3]
    if version not in ("HTTP/1.1", "HTTP/1.0") or len(status) != 3 or not (status.isascii() and status.isdigit()):
        raise DaemonProtocolError(f"the answer begins with {lines[0][:60]!r}, which is not HTTP")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise DaemonProtocolError(f"the answer has a malformed header: {line[:60]!r}")
        key = name.lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return Head(int(status), headers)


class Body:
    """Decodes a body that arrives in pieces, however they are cut.

    Args:
        head: of the same answer; says how the body is delimited (RFC 9112, section 6.3).

    Attributes:
        finished: the body's end was seen. A body delimited by the connection's end never sees it by itself.
        rest: bytes behind the body's end.
    """

    __slots__ = ("_buffer", "_chunked", "_left", "_step", "finished", "rest")

    def __init__(self, head: Head) -> None:
        self._buffer = bytearray()
        self._left = 0
        self._chunked = False
        self.finished = False
        self.rest = b""
        coding = head.headers.get("transfer-encoding")
        length = head.headers.get("content-length")
        if head.status in _BODILESS or 100 <= head.status < 200:
            self._step = self._end
        elif coding is not None:
            if coding.lower() != "chunked":
                raise DaemonProtocolError(f"the answer has the transfer coding {coding[:40]!r}")
            self._chunked = True
            self._step = self._size
        elif length is not None:
            if not (length.isascii() and length.isdigit() and len(length) < 19):
                raise DaemonProtocolError(f"the answer has the length {length[:40]!r}")
            self._left = int(length)
            self._step = self._data if self._left else self._end
        else:
            self._step = self._until_closed
        if self._step == self._end:
            self.finished = True

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes from the connection and return what they hold of the body.

        Raises:
            DaemonProtocolError: they break the framing.
        """
        self._buffer += data
        parts = []
        while (part := self._step()) is not None:
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        """Tell that the connection ended.

        Raises:
            DaemonUnreachable: in the middle of the body.
        """
        if not self.finished and self._step != self._until_closed:
            raise DaemonUnreachable("the daemon closed the connection in the middle of its answer")
        self.finished = True

    # Each step consumes from the buffer and returns what it found of the body, or None when it needs more bytes.

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n", 0, _LINE_MAX)
        if end >= 0:
            return self._take(end + 2)[:-2]
        if len(self._buffer) >= _LINE_MAX:
            raise DaemonProtocolError("the answer's chunks are malformed: a line without an end")
        return None

    def _size(self) -> bytes | None:
        line = self._line()
        if line is None:
            return None
        digits = line.partition(b";")[0].strip()
        if not 0 < len(digits) < 16 or not _HEXADECIMAL.issuperset(digits):
            raise DaemonProtocolError(f"the answer's chunks are malformed: {line[:40]!r} is not a size")
        self._left = int(digits, 16)
        self._step = self._data if self._left else self._trailer
        return b""

    def _data(self) -> bytes | None:
        taken = self._take(self._left)
        self._left -= len(taken)
        if self._left:
            return taken or None
        self._step = self._chunk_end if self._chunked else self._end
        return taken

    def _chunk_end(self) -> bytes | None:
        if len(self._buffer) < 2:
            return None
        if self._take(2) != b"\r\n":
            raise DaemonProtocolError("the answer's chunks are malformed: a chunk is longer than it says")
        self._step = self._size
        return b""

    def _trailer(self) -> bytes | None:
        line = self._line()
        if line is None:
            return None
        if not line:
            self._step = self._end
        return b""

    def _until_closed(self) -> bytes | None:
        return self._take(len(self._buffer)) or None

    def _end(self) -> bytes | None:
        self.finished = True
        self.rest += self._take(len(self._buffer))
        return None
