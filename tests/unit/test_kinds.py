"""The kinds of values: what each takes, what it keeps, and what it says otherwise."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsup.unit import kinds
from qsup.unit.keys import keys_of, sections_of
from qsup.unit.kinds import Forward, Kind, Ready
from qsup.unit.model import Unit
from tests.unit.strategies import values_of_kind


def kinds_of(cls: type[Any], path: str = "") -> dict[str, Kind]:
    """The kind of every key of the model, by dotted name."""
    found = {f"{path}{name}": facts.kind for name, (_, facts) in keys_of(cls).items()}
    for name, (_, nested, _) in sections_of(cls).items():
        found |= kinds_of(nested, f"{path}{name}.")
    return found


KINDS = kinds_of(Unit)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=20)
@given(data=st.data())
def test_what_is_written_is_read_as_the_same(name: str, data: st.DataObject) -> None:
    """For every key: a value that was read, written and read again is the same value, spelled the same way."""
    kind = KINDS[name]
    value = kind.parse(data.draw(values_of_kind(kind)))
    written = kind.format(value)
    assert kind.parse(written) == value
    assert kind.format(kind.parse(written)) == written


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("value", [datetime.date(2026, 1, 1), 1.5, [[]], {"x": {}}, {}], ids=str)
def test_values_of_no_kind(name: str, value: object) -> None:
    """No key takes a date, a fraction, an array in an array or a table of tables."""
    with pytest.raises(ValueError, match=r"expected|must be"):
        KINDS[name].parse(value)


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        (kinds.STRING, 1, "expected a string, not an integer"),
        (kinds.STRING, "a\nb", "control characters"),
        (kinds.PATH, "", "must not be empty"),
        (kinds.BOOLEAN, "yes", "expected true or false, not a string"),
        (kinds.BOOLEAN, 1, "expected true or false, not an integer"),
        (kinds.PROGRAM, "bin/qemu", "a name looked up in PATH, or an absolute path"),
        (kinds.integer(1, 8), True, "expected an integer, not a boolean"),
        (kinds.integer(1, 8), 9, "must be from 1 to 8, not 9"),
        (kinds.integer(1, 8), 10**30, "not a number of more than 20 digits"),
        (kinds.choice("kvm", "tcg"), "kmv", "must be kvm or tcg, not 'kmv'; did you mean 'kvm'?"),
        (kinds.NAME, "-a", "is not a valid name: use letters"),
        (kinds.NAME, "a" * 49, "at most 48"),
        (kinds.NAME, "a/b", "is not a valid name"),
        (kinds.NAME, "..", "is not a valid name"),
        (kinds.UNIT_NAME, "web@", "is not a valid unit name"),
        (kinds.MAC, "52:54:00:12:34", "six lower-case"),
        (kinds.MAC, "01:00:5e:00:00:01", "unicast"),
        (kinds.MAC, "00:00:00:00:00:00", "not all zero"),
        (kinds.UUID, "x", "8-4-4-4-12"),
        (kinds.INTERFACE, "a" * 16, "at most 15"),
        (kinds.size(1 << 20, 1 << 30), 512, 'such as "512M"'),
        (kinds.size(1 << 20, 1 << 30), "2G", "must be from 1M to 1G, not '2G'"),
        (kinds.duration(1.0, 60.0), 90, 'such as "90s"'),
        (kinds.duration(1.0, 60.0), 1.5, 'such as "1.5s"'),
        (kinds.duration(1.0, 60.0), "2min", "must be from 1s to 1min, not '2min'"),
        (kinds.list_of(kinds.NAME), "a", "expected an array, not a string"),
        (kinds.list_of(kinds.NAME), ["a", ""], "entry 2: '' is not a valid name"),
        (kinds.list_of(kinds.NAME, maximum=1), ["a", "b"], "at most 1 entries"),
        (kinds.word_or_path("bios", "uefi"), "ueif", "did you mean 'uefi'?"),
        (kinds.word_or_path("bios", "uefi"), "rom", "bios, uefi or a path with a / or ."),
        (kinds.device_limit(kinds.COUNT), "/dev/sda", "is not an absolute path, a space and a number"),
        (kinds.device_limit(kinds.COUNT), "sda 5", "is not an absolute path, a space and a number"),
        (kinds.device_limit(kinds.COUNT), "/dev/sda  5", "is not an absolute path, a space and a number"),
        (kinds.device_limit(kinds.COUNT), "/dev/sda 0", "'0' is not a number from 1 to 999999999"),
        (kinds.device_limit(kinds.size(1)), "/dev/sda 50", "is not a size: write"),
        (kinds.FORWARD, "22", "write [ADDRESS:]HOST-PORT:GUEST-PORT"),
        (kinds.FORWARD, "0:22", "a port is from 1 to 65535"),
        (kinds.FORWARD, "2222:65536", "a port is from 1 to 65535"),
        (kinds.FORWARD, "1.2.3.256:1:1", "'1.2.3.256' is not an IPv4 address"),
        (kinds.FORWARD, "127.0.0.01:1:1", "not an IPv4 address"),
        (kinds.FORWARD, "1:1/sctp", "write [ADDRESS:]"),
        (kinds.FORWARD, "\u0662:\u0662", "write [ADDRESS:]"),
        (kinds.READY, "booted", 'must be "running", "agent"'),
        (kinds.READY, {"serial": ""}, "1 to 256 bytes"),
        (kinds.READY, {"serial": "x" * 257}, "1 to 256 bytes"),
        (kinds.READY, {"port": 0}, "port = NUMBER"),
        (kinds.READY, {"port": True}, "port = NUMBER"),
        (kinds.READY, {"serial": "x", "port": 1}, "must be"),
        (kinds.READY, {}, "must be"),
    ],
)
def test_refusals(kind: Kind, value: object, why: str) -> None:
    """A wrong value is refused with what was expected and what was there."""
    with pytest.raises(ValueError) as caught:
        kind.parse(value)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("text", "forward", "written"),
    [
        (
            "2222:22",
            Forward(protocol="tcp", host_address="127.0.0.1", host_port=2222, guest_port=22),
            "127.0.0.1:2222:22/tcp",
        ),
        (
            "53:53/udp",
            Forward(protocol="udp", host_address="127.0.0.1", host_port=53, guest_port=53),
            "127.0.0.1:53:53/udp",
        ),
        (
            "0.0.0.0:80:8080",
            Forward(protocol="tcp", host_address="0.0.0.0", host_port=80, guest_port=8080),
            "0.0.0.0:80:8080/tcp",
        ),
    ],
)
def test_forwards(text: str, forward: Forward, written: str) -> None:
    """A forward listens on the loopback address unless it names another, and is TCP unless it says UDP."""
    assert kinds.FORWARD.parse(text) == forward
    assert kinds.FORWARD.format(forward) == written


def test_readiness() -> None:
    """Readiness is one of two words, a literal text, or a port."""
    assert kinds.READY.parse("agent") == Ready(on="agent")
    assert kinds.READY.parse({"serial": "login: [%"}) == Ready(on="serial", text="login: [%")
    assert kinds.READY.parse({"port": 22}) == Ready(on="port", port=22)


@pytest.mark.parametrize(
    ("name", "instance", "template"),
    [
        ("web", True, False),
        ("web@blue", True, False),
        ("web@", False, True),
        ("a" * 48 + "@" + "b" * 48, True, False),
        ("@", False, False),
        ("@blue", False, False),
        ("web@a@b", False, False),
        ("../x", False, False),
        (".web", False, False),
        ("-web", False, False),
        ("we b", False, False),
        ("web\n", False, False),
        ("", False, False),
    ],
)
def test_names(name: str, instance: bool, template: bool) -> None:
    """Names are those that are safe as a file name, an argument and a URL's part."""
    assert kinds.is_instance_name(name) == instance
    assert kinds.is_template_name(name) == template
