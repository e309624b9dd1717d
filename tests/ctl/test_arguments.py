"""Arguments of QMP commands, as typed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.ctl.arguments import parse_arguments, parse_line
from qsup.errors import UsageError


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ([], {}),
        (["id=net0"], {"id": "net0"}),
        (["force=true", "n=5", "f=1.5", "nothing=null"], {"force": True, "n": 5, "f": 1.5, "nothing": None}),
        (["text=5x", "empty=", "eq=a=b"], {"text": "5x", "empty": "", "eq": "a=b"}),
        (["props.mtu=1500", "props.a.b=x"], {"props": {"mtu": 1500, "a": {"b": "x"}}}),
        (["list=[1, 2]", 'text="5"'], {"list": [1, 2], "text": "5"}),
        (['{"driver": "null-co", "node": {"a": 1}}', "x=1"], {"driver": "null-co", "node": {"a": 1}, "x": 1}),
    ],
)
def test_words_become_one_object(words: list[str], arguments: dict[str, Any]) -> None:
    """Pairs, dotted pairs and JSON objects are merged; values are JSON where they read as such."""
    assert parse_arguments(words) == arguments


@pytest.mark.parametrize("words", [["word"], ["=x"], ["a=1", "a=2"], ["a=1", "a.b=2"], ["{bad"], ["{}x"]])
def test_other_words_are_refused(words: list[str]) -> None:
    """A word that is no argument, a key given twice, a value that would have to be an object: the error says which."""
    with pytest.raises(UsageError):
        parse_arguments(words)


@pytest.mark.parametrize(
    ("line", "command", "arguments"),
    [
        ("query-status", "query-status", {}),
        ("device_del id=net0", "device_del", {"id": "net0"}),
        ("a text='two words' b.c=1", "a", {"text": "two words", "b": {"c": 1}}),
        ('a {"x": {"y": [1]}}', "a", {"x": {"y": [1]}}),
        ('{"execute": "a", "arguments": {"x": 1}}', "a", {"x": 1}),
        ('{"execute": "a"}', "a", {}),
    ],
)
def test_a_line_is_a_command(line: str, command: str, arguments: dict[str, Any]) -> None:
    """The prompt takes pairs, a JSON object behind the command, and QMP's own form."""
    assert parse_line(line) == {"execute": command, "arguments": arguments}


@pytest.mark.parametrize("line", ["a 'open", "{}", '{"execute": 5}', '{"execute": "a", "arguments": []}', "{", "a {"])
def test_other_lines_are_refused(line: str) -> None:
    """What is none of these is told, and nothing is sent."""
    with pytest.raises(UsageError):
        parse_line(line)


@given(line=st.text(max_size=40).map(str.strip).filter(bool))
def test_any_line_is_a_command_or_an_error(line: str) -> None:
    """No line ends in anything but a command or a `UsageError`."""
    try:
        request = parse_line(line)
    except UsageError:
        return
    assert isinstance(request["execute"], str)
