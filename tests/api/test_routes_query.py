"""Query parameters and bodies: read strictly, refused in words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.api import wire
from qsup.api.protocol import WAIT_MAX
from qsup.api.routes.body import check
from qsup.api.routes.parameters import PAGING, Globs, Parameter, choice, count, flag, globs, read_query, seconds, text
from qsup.errors import RequestError

PARAMETERS = (
    count("lines", "Lines.", minimum=0, maximum=100, default=10),
    seconds("wait", "Wait."),
    flag("follow", "Follow."),
    choice("mode", "Mode.", "watch", "write"),
    text("after", "After."),
    globs("type", "Types."),
)


def read_one(name: str, value: str) -> Any:
    """The value of one parameter."""
    return read_query(PARAMETERS, {name: value})[name]


def test_absent_parameters_have_their_defaults() -> None:
    """What is not given is what the declaration says."""
    assert read_query(PARAMETERS, {}) == {
        "lines": 10,
        "wait": None,
        "follow": False,
        "mode": "watch",
        "after": None,
        "type": None,
    }


def test_an_unknown_parameter_is_refused_with_a_suggestion() -> None:
    """A misspelt parameter is an error, not a default."""
    with pytest.raises(RequestError, match=r"unknown query parameter 'limt'; did you mean 'limit'\?"):
        read_query(PAGING, {"limt": "1"})


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("lines", "0", 0),
        ("lines", "100", 100),
        ("wait", "2.5", 2.5),
        ("wait", "1e-05", 1e-05),
        ("wait", "3600", WAIT_MAX),
        ("follow", "true", True),
        ("follow", "0", False),
        ("mode", "write", "write"),
        ("after", "web@blue", "web@blue"),
    ],
)
def test_well_formed_values_are_read(name: str, value: str, result: object) -> None:
    """Each kind gives a value of its own type."""
    assert read_one(name, value) == result


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lines", "101"),
        ("lines", "-1"),
        ("lines", "+1"),
        ("lines", "1_0"),
        ("lines", "1.0"),
        ("lines", " 1"),
        ("lines", "\N{ARABIC-INDIC DIGIT ONE}"),
        ("lines", "9" * 5000),
        ("lines", ""),
        ("wait", "nan"),
        ("wait", "inf"),
        ("wait", "1e99"),
        ("wait", "3601"),
        ("wait", "-1"),
        ("follow", ""),
        ("follow", "yes"),
        ("mode", "Write"),
        ("after", ""),
        ("after", "x" * 513),
        ("type", ","),
        ("type", "a,,b"),
        ("type", ",".join("abcdefghijklmnopqrstuvwxyzabcdefg")),
    ],
)
def test_malformed_values_are_refused_by_name(name: str, value: str) -> None:
    """What is not of the parameter's kind is refused, and the error names the parameter and is short."""
    with pytest.raises(RequestError, match=f"query parameter '{name}' must be ") as caught:
        read_one(name, value)
    assert len(caught.value.message) < 250


@given(st.text(max_size=60))
def test_any_text_gives_a_value_of_the_kind_or_a_refusal(value: str) -> None:
    """No text reaches a handler as anything but what the kind promises."""
    kinds: dict[str, type] = {"lines": int, "wait": float, "follow": bool, "mode": str, "after": str, "type": Globs}
    for parameter in PARAMETERS:
        try:
            assert isinstance(read_one(parameter.name, value), kinds[parameter.name])
        except RequestError:
            continue


def test_globs_match_whole_names() -> None:
    """Names and globs, separated by commas, match as a shell's would; nothing matches the absence of a name."""
    wanted = read_one("type", "instance-*,guest-panic")
    assert wanted.match("instance-state")
    assert wanted.match("guest-panic")
    assert not wanted.match("guest-panicked")
    assert not wanted.match(None)


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_a_parameter_says_what_it_takes(parameter: Parameter) -> None:
    """Each has a schema and a sentence."""
    assert parameter.schema
    assert parameter.doc.endswith(".")


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        ([], wire.QmpRequest, "the body must be an object, not an array"),
        ({}, wire.QmpRequest, "the body lacks 'execute'"),
        ({"execute": 1}, wire.QmpRequest, "'execute' must be a string, not an integer"),
        ({"execute": "x", "argument": {}}, wire.QmpRequest, "unknown member 'argument' in the body; did you mean"),
        ({"execute": "x", "arguments": []}, wire.QmpRequest, "'arguments' must be an object, not an array"),
        ({"timeout": True}, wire.PowerRequest, "'timeout' must be a number, not a boolean"),
        ({"timeout": None}, wire.PowerRequest, "'timeout' must be a number, not null"),
        ({"command": "exce"}, wire.AgentRequest, "'command' must be ping, info, addresses or exec; did you mean"),
        ({"command": []}, wire.AgentRequest, "'command' must be ping, info, addresses or exec"),
        (
            {"command": "exec", "arguments": ["a", 1]},
            wire.AgentRequest,
            r"'arguments\[1\]' must be a string, not an integer",
        ),
        ({"lines": [{}]}, wire.Log, r"'lines\[0\]' must be a string, not an object"),
        ({"argv": [], "running": 1}, wire.CommandLine, "'running' must be a boolean, not an integer"),
        ({"size": 1.5, "max": 2, "actual": None}, wire.MemoryWire, "'size' must be an integer, not a number"),
        ({"size": 1, "max": 2, "actual": "x"}, wire.MemoryWire, "'actual' must be null, not a string"),
    ],
)
def test_a_body_of_another_shape_is_refused_by_member(value: object, shape: Any, message: str) -> None:
    """The refusal names the member, what it must be and what it was."""
    with pytest.raises(RequestError, match=message):
        check(value, shape)


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ({}, wire.PowerRequest),
        ({"timeout": 1}, wire.PowerRequest),
        ({"execute": "x", "arguments": {"deep": [{}]}, "timeout": 0.5}, wire.QmpRequest),
        ({"command": "exec", "path": "/bin/ls", "arguments": ["-l"]}, wire.AgentRequest),
        ({"size": 1, "max": 2, "actual": 2, "page": 0, "nodes": [0], "guest_nodes": []}, wire.MemoryWire),
    ],
)
def test_a_body_of_the_right_shape_passes(value: object, shape: Any) -> None:
    """Optional members may be absent, integers are numbers, ``Any`` is anything."""
    check(value, shape)
