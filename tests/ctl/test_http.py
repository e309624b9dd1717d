"""Heads and bodies of answers, against h11 as the peer and against garbage."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qsup.ctl.http import Body, Head, parse_head
from qsup.errors import DaemonProtocolError, DaemonUnreachable

PIECES = st.lists(st.binary(max_size=200), max_size=8)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data in pieces, cut at positions taken modulo its length."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def sent_by_h11(pieces: list[bytes], *headers: tuple[str, str]) -> bytes:
    """An answer as h11 writes it, chunked unless headers give a length."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    while not isinstance(server.next_event(), h11.EndOfMessage):
        continue
    sent = server.send(h11.Response(status_code=200, headers=list(headers)))
    for piece in pieces:
        sent += server.send(h11.Data(data=piece))
    return bytes(sent + server.send(h11.EndOfMessage()))


def decode(answer: bytes, cuts: list[int]) -> tuple[bytes, Body]:
    """The body of an answer that arrives in pieces, and its decoder."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    body = Body(parse_head(head))
    return b"".join(body.feed(piece) for piece in cut(rest, cuts)), body


@given(pieces=PIECES, cuts=st.lists(st.integers(min_value=0)), behind=st.binary(max_size=20))
def test_chunks_arrive_whole_however_they_are_cut(pieces: list[bytes], cuts: list[int], behind: bytes) -> None:
    """A chunked body is what was sent, and what follows it is kept apart, wherever the bytes are cut."""
    data, body = decode(sent_by_h11(pieces) + behind, cuts)
    assert (data, body.finished, body.rest) == (b"".join(pieces), True, behind)


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(min_value=0)), behind=st.binary(max_size=20))
def test_a_length_delimits_a_body(data: bytes, cuts: list[int], behind: bytes) -> None:
    """A body with a length ends there, wherever the bytes are cut."""
    answer = sent_by_h11([data], ("Content-Length", str(len(data)))) + behind
    found, body = decode(answer, cuts)
    assert (found, body.finished, body.rest) == (data, True, behind)


def test_a_body_without_length_ends_with_the_connection() -> None:
    """Neither length nor chunks: the body is all there is until the connection's end."""
    data, body = decode(b"HTTP/1.1 200 OK\r\n\r\nabc", [1])
    assert (data, body.finished) == (b"abc", False)
    body.close()
    assert body.finished


@pytest.mark.parametrize("status", [204, 304, 101])
def test_some_answers_have_no_body(status: int) -> None:
    """204, 304 and 1xx end with their head, whatever its headers say."""
    body = Body(Head(status, {"content-length": "5"}))
    assert body.finished


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
    ],
    ids=["length", "chunked"],
)
def test_a_body_that_is_cut_off_is_an_error(answer: bytes) -> None:
    """A connection that ends within a body is told apart from one that ends behind it."""
    _, body = decode(answer, [])
    with pytest.raises(DaemonUnreachable, match="in the middle"):
        body.close()


@pytest.mark.parametrize(
    "chunks",
    [b"-1\r\n", b"+5\r\nabcde", b"0x5\r\n", b"5_0\r\n", b"\r\n", b"5\r\nabcdeXX", b"f" * 20 + b"\r\n", b"1" * 5000],
)
def test_malformed_chunks_are_an_error(chunks: bytes) -> None:
    """A chunk size is plain hexadecimal, a chunk as long as it says, a line bounded."""
    with pytest.raises(DaemonProtocolError, match="malformed"):
        decode(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks, [])


@given(garbage=st.binary(max_size=200), chunked=st.booleans(), cuts=st.lists(st.integers(min_value=0)))
@example(garbage=b"0\r\n\r\n", chunked=True, cuts=[])
def test_garbage_ends_in_the_one_error(garbage: bytes, chunked: bool, cuts: list[int]) -> None:
    """Whatever comes as a body gives bytes or a `DaemonProtocolError`, and never more bytes than came."""
    headers = {"transfer-encoding": "chunked"} if chunked else {"content-length": "100"}
    body = Body(Head(200, headers))
    try:
        found = b"".join(body.feed(piece) for piece in cut(garbage, cuts))
    except DaemonProtocolError:
        return
    assert len(found) + len(body.rest) <= len(garbage)


@given(garbage=st.binary(max_size=100))
def test_garbage_is_no_head(garbage: bytes) -> None:
    """Whatever comes as a head is parsed or refused with a `DaemonProtocolError`."""
    try:
        head = parse_head(garbage)
    except DaemonProtocolError:
        return
    assert 100 <= head.status <= 999 or garbage.split(b" ")[1].startswith(b"0")


@pytest.mark.parametrize("length", ["-1", "1 1", "0x5", "\u0661", "9" * 30])
def test_a_length_is_digits(length: str) -> None:
    """A Content-Length that is not a plain, sane number is an error."""
    with pytest.raises(DaemonProtocolError, match="length"):
        Body(Head(200, {"content-length": length}))


def test_headers_are_joined_and_lowered() -> None:
    """Header names are compared in lower case, repeated ones joined."""
    head = parse_head(b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a:2\r\nConnection: Close")
    assert head.headers == {"x-a": "1, 2", "connection": "Close"}
    assert not head.keeps_connection
