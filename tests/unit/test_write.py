"""Units and changes as TOML."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings

from qsup.unit.document import Document, read_document
from qsup.unit.keys import keys_of, sections_of
from qsup.unit.model import Unit
from qsup.unit.parse import Builder, parse_document, unit_from_values
from qsup.unit.specifier import SpecifierContext
from qsup.unit.write import dropin_text, toml_value, unit_text, values_of
from tests.unit.strategies import lines, tables

CONTEXT = SpecifierContext(name="web@blue", hostname="host")


def unit_of(document: Document) -> Unit:
    """The unit that one document says, rules between keys aside."""
    table, diagnostics = parse_document(document, CONTEXT)
    assert diagnostics == ()
    unit = Builder().build(Unit, table, ())
    assert isinstance(unit, Unit)
    return unit


@settings(max_examples=50)
@given(tables(Unit))
def test_a_unit_survives_its_text(values: dict[str, Any]) -> None:
    """The text of a unit's values is a unit file that means the same unit, specifiers and all."""
    unit = unit_from_values(values)
    text = unit_text(values_of(unit))
    assert unit_of(read_document("web.toml", text.encode())) == unit


@settings(max_examples=50)
@given(tables(Unit))
def test_a_unit_survives_json(values: dict[str, Any]) -> None:
    """Values are JSON: a unit survives being stored as such."""
    unit = unit_from_values(values)
    assert unit_from_values(json.loads(json.dumps(values_of(unit)))) == unit


def test_values_hold_every_key() -> None:
    """Every key of the model is in the values, at its default where nothing was said."""
    values = values_of(Unit())
    for name, (_, cls, section) in sections_of(Unit).items():
        assert values[name] == [] if section.many else set(values[name]) >= set(keys_of(cls))
    assert values["memory"]["size"] == "512M"
    assert values["service"]["stop-timeout"] == "1min 30s"


def test_dropin() -> None:
    """A drop-in holds the changed keys alone, each under its header, entries of arrays by their id."""
    text = dropin_text(
        {
            ("install", "autostart"): True,
            ("disk", "root", "cache"): "none",
            ("cpu", "topology", "cores"): 2,
            ("disk", "root", "serial"): '100% "x"',
            ("nic", "lan"): None,
            ("limits", "cpu"): "50%",
            ("service", "ready"): {"port": 22},
        }
    )
    assert tomllib.loads(text) == {
        "install": {"autostart": True},
        "service": {"ready": {"port": 22}},
        "cpu": {"topology": {"cores": 2}},
        "disk": [{"id": "root", "cache": "none", "serial": '100%% "x"'}],
        "nic": [{"id": "lan"}],
        "limits": {"cpu": "50%"},
    }
    assert text.startswith("[install]\nautostart = true\n\n[service]\nready = { port = 22 }\n\n[cpu]\n")


def test_dropin_that_drops_an_array() -> None:
    """An array can be emptied: that line stands before all headers."""
    text = dropin_text({("cpu", "vcpus"): 2, ("disk",): [], ("nic", "lan"): None})
    assert text == 'disk = []\n\n[cpu]\nvcpus = 2\n\n[[nic]]\nid = "lan"\n'


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        (("install", "autostrt"), True, "install has no autostrt"),
        (("nothing",), 1, "a unit has no nothing"),
        (("memory", "size"), "2GB", "ambiguous"),
        (("install", "autostart"), 1, "expected true or false"),
        (("disk", "a b", "path"), "p", "not a valid name"),
        (("install", "autostart", "x"), True, r"install has no autostart.x"),
    ],
)
def test_changes_that_mean_nothing(key: tuple[str, ...], value: object, why: str) -> None:
    """A change of what does not exist, or to what it cannot be, is refused before it is written."""
    with pytest.raises(ValueError, match=why):
        dropin_text({key: value})


@given(lines)
def test_strings_are_written_as_toml_reads_them(text: str) -> None:
    """Any text is written as a TOML string of one line that is read as the text, percent signs doubled."""
    written = toml_value(text)
    assert "\n" not in written
    assert tomllib.loads(f"x = {written}")["x"] == text.replace("%", "%%")


def test_del_is_escaped() -> None:
    """DEL, which JSON leaves alone, is escaped for TOML."""
    assert tomllib.loads(f"x = {toml_value(chr(127))}")["x"] == "\x7f"


def test_values_of_no_toml_type() -> None:
    """What no key takes is not written."""
    with pytest.raises(ValueError, match="TOML has no set"):
        toml_value({1})


def test_stored_values_of_another_version() -> None:
    """Values that another version stored are read: unknown keys are passed over, wrong values are not."""
    assert unit_from_values({"cpu": {"vcpus": 2, "new": 1}, "newer": {}}).cpu.vcpus == 2
    with pytest.raises(ValueError, match=r"cpu\.vcpus: expected an integer"):
        unit_from_values({"cpu": {"vcpus": "2"}})
    with pytest.raises(ValueError, match="'type' is missing"):
        unit_from_values({"device": [{"id": "rng"}]})
    assert unit_from_values({"machine": {"append": "50%i"}}).machine.append == "50%i"
