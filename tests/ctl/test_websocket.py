"""WebSocket frames, with wsproto as the peer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection as Peer
from wsproto.connection import ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong

from qsup.ctl import websocket
from qsup.ctl.connection import Address, Connection, Deadline
from qsup.errors import DaemonProtocolError
from tests.ctl.test_http import cut

SIZES = [0, 1, 125, 126, 127, 65535, 65536, 70000]
CUTS = st.lists(st.integers(min_value=0), max_size=5)


class Pair:
    """A client WebSocket and the wsproto peer at the other end of its socket."""

    def __init__(self, path: str) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        self.client = websocket.WebSocket(Connection(Address(path, ""), Deadline(5)))
        self._socket, _ = listener.accept()
        self._socket.settimeout(5)
        listener.close()
        self._peer = Peer(ConnectionType.SERVER)

    def send(self, *events: BytesMessage | Ping | CloseConnection) -> None:
        """Let the peer say something."""
        self._socket.sendall(b"".join(self._peer.send(event) for event in events))

    def events(self) -> list[object]:
        """What the peer has heard."""
        self._peer.receive_data(self._socket.recv(1 << 20))
        return list(self._peer.events())

    def hang_up(self) -> None:
        """End the peer's side."""
        self._socket.close()

    def close(self) -> None:
        """Close both ends."""
        self.client.close()
        self._socket.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A connected pair."""
    joined = Pair(str(tmp_path / "ws.sock"))
    yield joined
    joined.close()


@given(payload=st.binary(max_size=300) | st.sampled_from(SIZES).map(bytes), mask=st.binary(min_size=4, max_size=4))
def test_the_peer_reads_what_was_sent(payload: bytes, mask: bytes) -> None:
    """A masked binary frame of any length is read by wsproto as the bytes it was made of."""
    peer = Peer(ConnectionType.SERVER)
    peer.receive_data(websocket.encode(websocket.BINARY, payload, mask))
    data = b"".join(bytes(event.data) for event in peer.events() if isinstance(event, BytesMessage))
    assert data == payload


@given(payloads=st.lists(st.binary(max_size=300) | st.sampled_from(SIZES).map(bytes), max_size=5), cuts=CUTS)
def test_what_the_peer_sent_is_read(payloads: list[bytes], cuts: list[int]) -> None:
    """Frames of wsproto's are read whole, wherever the bytes are cut."""
    peer = Peer(ConnectionType.SERVER)
    sent = b"".join(peer.send(BytesMessage(data=payload)) for payload in payloads)
    decoder = websocket.Decoder()
    frames = [frame for piece in cut(sent, cuts) for frame in decoder.feed(piece)]
    assert frames == [(websocket.BINARY, payload) for payload in payloads]


@given(garbage=st.binary(max_size=100), cuts=CUTS)
def test_garbage_ends_in_the_one_error(garbage: bytes, cuts: list[int]) -> None:
    """Whatever comes as frames is decoded or refused with a `DaemonProtocolError`."""
    decoder = websocket.Decoder()
    try:
        frames = [frame for piece in cut(garbage, cuts) for frame in decoder.feed(piece)]
    except DaemonProtocolError:
        return
    assert sum(len(payload) for _, payload in frames) <= len(garbage)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x82\x80\0\0\0\0",
        b"\xc2\x00",
        b"\x83\x00",
        b"\x09\x00",
        b"\x89\x7e\x00\x7e",
        b"\x82\x7f" + (1 << 40).to_bytes(8, "big"),
    ],
    ids=["masked", "reserved-bit", "unknown-opcode", "fragmented-ping", "long-ping", "absurd-length"],
)
def test_wrong_frames_are_refused(frame: bytes) -> None:
    """What RFC 6455 forbids a server, and a frame beyond every bound, is an error as soon as its head is there."""
    with pytest.raises(DaemonProtocolError):
        websocket.Decoder().feed(frame)


def test_pings_are_answered_between_data(pair: Pair) -> None:
    """A ping between two messages is answered by its own bytes, and the messages come through."""
    pair.send(BytesMessage(data=b"a"), Ping(payload=b"are you there"), BytesMessage(data=b"b"))
    assert pair.client.receive() == b"ab"
    assert pair.events() == [Pong(payload=b"are you there")]


def test_a_fragmented_message_is_its_bytes(pair: Pair) -> None:
    """Fragments come through as they come."""
    pair.send(BytesMessage(data=b"a", message_finished=False), BytesMessage(data=b"b", message_finished=True))
    assert pair.client.receive() == b"ab"


def test_the_peers_close_is_answered_and_explained(pair: Pair) -> None:
    """A close frame ends the WebSocket, is answered, and its reason is kept."""
    pair.send(BytesMessage(data=b"last"), CloseConnection(code=1001, reason="the VM went down"))
    assert pair.client.receive() == b"last"
    assert (pair.client.closed, pair.client.reason) == (True, "the VM went down")
    assert pair.events() == [CloseConnection(code=1001, reason="")]


def test_leaving_says_goodbye(pair: Pair) -> None:
    """Closing sends a normal closure."""
    pair.client.close()
    assert pair.events() == [CloseConnection(code=1000, reason="")]


def test_a_peer_that_is_gone_closes_it(pair: Pair) -> None:
    """The end of the connection without a close frame ends the WebSocket."""
    pair.hang_up()
    assert pair.client.receive() == b""
    assert pair.client.closed


def test_a_peer_that_does_not_read_fills_the_backlog(pair: Pair) -> None:
    """What the socket does not take waits, bounded by whoever looks at `is_full`, and nothing blocks."""
    while not pair.client.is_full:
        pair.client.send(bytes(65536))
    assert pair.client.wants_write
