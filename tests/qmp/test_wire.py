"""Framing and JSON: what is a message, and what is refused."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import Message, UnexpectedTypeError

from qsup.errors import RequestError
from qsup.qmp.wire import LineSplitter, LineTooLong, decode, elements, encode, member
from tests.recordings.recording import load

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
CONVERSATION = b"".join(entry.data + b"\r\n" for entry in load("session").entries if entry.side == "server")


@given(st.lists(st.integers(0, len(CONVERSATION)), max_size=20).map(sorted))
def test_framing_does_not_depend_on_where_the_stream_is_cut(cuts: list[int]) -> None:
    """However the kernel cuts the stream, the same lines come out."""
    splitter = LineSplitter(1 << 20)
    edges = [0, *cuts, len(CONVERSATION)]
    lines = [line for a, b in itertools.pairwise(edges) for line in splitter.feed(CONVERSATION[a:b])]
    assert lines == CONVERSATION.split(b"\n")[:-1]
    assert splitter.pending == 0


@given(st.lists(st.binary(max_size=30)), st.integers(1, 60))
def test_a_line_is_refused_exactly_when_it_exceeds_the_limit(chunks: list[bytes], limit: int) -> None:
    """No line longer than the limit comes out, and no shorter one is refused."""
    splitter = LineSplitter(limit)
    whole = b"".join(chunks)
    try:
        lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    except LineTooLong:
        assert max(map(len, whole.split(b"\n"))) > limit
    else:
        assert [*lines, whole[len(whole) - splitter.pending :]] == whole.split(b"\n")
        assert max(map(len, whole.split(b"\n"))) <= limit


def test_an_unfinished_line_is_bounded_by_the_limit() -> None:
    """A peer that never ends its line is found out one read after the limit."""
    splitter = LineSplitter(1000)
    with pytest.raises(LineTooLong):
        for _ in range(11):
            splitter.feed(b"x" * 100)
    assert splitter.pending <= 1100


@given(st.dictionaries(st.text(), JSON, max_size=5))
@example({"": "\U0001f600"})
def test_what_is_well_formed_is_read_as_the_library_reads_it(message: dict[str, object]) -> None:
    """Every object that JSON can express is read as `qemu.qmp` reads it."""
    for line in (json.dumps(message).encode(), json.dumps(message, ensure_ascii=False).encode()):
        assert decode(line + b"\r") == dict(Message(line))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\r",
        b"nonsense",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": "\xff"}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[1]",
        b"null",
        '{"a": 1}'.encode("utf-16"),
    ],
    ids=lambda line: repr(line)[:24],
)
def test_what_json_or_qmp_cannot_express_is_refused(line: bytes) -> None:
    """Strict where Python's own parser is lenient, and with errors that do not hold the line they refuse."""
    with pytest.raises(ProtocolError) as caught:
        decode(line)
    assert caught.value.__context__ is None
    assert sum(len(repr(argument)) for argument in caught.value.args) < 600


def test_a_surrogate_pair_is_a_character() -> None:
    """QEMU writes characters beyond the basic plane as pairs of escapes."""
    assert decode(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_values_are_counted_where_they_could_matter() -> None:
    """A large line of tiny values is refused; a large line of text is not."""
    with pytest.raises(ProtocolError):
        decode(b'{"a": [' + b"[]," * 30_000 + b"[]]}", max_values=20_000)
    assert decode(b'{"a": "' + b"x" * 90_000 + b'"}', max_values=20_000)


@pytest.mark.parametrize("letter", ["\U0001f600".encode(), rb"\ud83d\ude00"], ids=["as it is", "escaped"])
def test_a_large_message_has_no_wide_characters(letter: bytes) -> None:
    """One of them would quadruple what all of it takes; a small message may be as it likes."""
    assert decode(b'{"a": "' + letter + b'"}') == {"a": "\U0001f600"}
    with pytest.raises(ProtocolError, match="wide"):
        decode(b'{"a": "' + letter + b"x" * (1 << 20) + b'"}')


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_what_is_sent_reads_back_the_same_or_is_refused(message: dict[str, object]) -> None:
    """Nothing is changed on the way; only what QEMU's parser refuses is refused here first."""
    try:
        line = encode(message)
    except RequestError:
        assert any(_is_noncharacter(letter) for letter in json.dumps(message, ensure_ascii=False))
    else:
        assert line.isascii()
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert json.loads(line) == message


def _is_noncharacter(letter: str) -> bool:
    code = ord(letter)
    return code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF or 0xD800 <= code <= 0xDFFF


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, "\ud800", "\uffff", {"\ufdd0": 1}, {1, 2}, b"bytes"],
    ids=ascii,
)
def test_what_qemu_could_not_read_is_never_sent(value: object) -> None:
    """QEMU answers it without saying to what, which would cost the connection."""
    with pytest.raises(RequestError):
        encode({"execute": "x", "arguments": value})


def test_arguments_nested_too_deeply_are_refused() -> None:
    """QEMU's parser takes 1,024 levels."""
    value: list[object] = []
    for _ in range(2000):
        value = [value]
    with pytest.raises(RequestError, match="nested too deeply"):
        encode({"arguments": value})


def test_arguments_of_excessive_size_are_refused() -> None:
    """Nothing that QMP is for needs 2 MiB of arguments."""
    with pytest.raises(RequestError, match="more than"):
        encode({"arguments": "x" * (3 << 20)})


def test_members_are_checked_for_their_type() -> None:
    """A member must be there and of its type; a bool is no number."""
    assert member({"a": 1}, "a", int) == 1
    assert member({}, "a", str, "x") == "x"
    for value, kind in (({"a": True}, int), ({"a": "1"}, int), ({}, int), ([], int), ({"a": None}, str)):
        with pytest.raises(UnexpectedTypeError):
            member(value, "a", kind)
    assert elements([1]) == [1]
    with pytest.raises(UnexpectedTypeError):
        elements({})
