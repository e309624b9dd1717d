"""The JSON Schema of a unit, and the unit reference: both made from the model, neither adrift."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings

from qsup.unit.document import Document
from qsup.unit.generated import print_or_check
from qsup.unit.model import Unit
from qsup.unit.parse import parse_document
from qsup.unit.reference import reference
from qsup.unit.schema import unit_schema
from qsup.unit.specifier import SpecifierContext
from qsup.unit.verify import verify_files
from qsup.unit.write import values_of
from tests.unit.strategies import tables

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMA = REPOSITORY / "units/unit.schema.json"
REFERENCE = REPOSITORY / "docs/units.md"
VALIDATOR = jsonschema.Draft202012Validator(unit_schema())


def test_the_schema_is_a_schema() -> None:
    """The schema is valid by its own standard."""
    jsonschema.Draft202012Validator.check_schema(unit_schema())


@pytest.mark.parametrize(("module", "file"), [("qsup.unit.schema", SCHEMA), ("qsup.unit.reference", REFERENCE)])
def test_nothing_has_drifted(module: str, file: Path) -> None:
    """The committed files are what the commands print now."""
    command = [sys.executable, "-m", module, "--check", str(file)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_drift_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that differs, or is missing, fails with the command that makes it."""
    file = tmp_path / "x"
    assert print_or_check("new", "some.module", ["", "--check", str(file)]) == 1
    file.write_text("old")
    assert print_or_check("new", "some.module", ["", "--check", str(file)]) == 1
    assert capsys.readouterr().err.count(f"python -m some.module > {file}") == 2
    assert print_or_check("new", "some.module", ["", "--what"]) == 2
    assert print_or_check("new", "some.module", [""]) == 0
    assert capsys.readouterr().out == "new"


@settings(max_examples=50)
@given(tables(Unit))
def test_what_the_parser_takes_the_schema_takes(values: dict[str, Any]) -> None:
    """Values of the right kinds are valid."""
    VALIDATOR.validate(values)


def test_defaults_are_valid() -> None:
    """A unit that says every default is valid, and so is one with specifiers where texts are restricted."""
    VALIDATOR.validate(values_of(Unit()))
    VALIDATOR.validate({"unit": {"after": ["db@%i"]}, "nic": [{"id": "lan", "forward": ["22%i:22"], "mac": "52:%i"}]})


def test_example_units_are_valid() -> None:
    """The example units are valid, for the schema and for the parser."""
    paths = sorted((REPOSITORY / "units").glob("**/*.toml"))
    assert paths
    for path in paths:
        VALIDATOR.validate(tomllib.loads(path.read_text()))
    assert verify_files(paths) == ()


@pytest.mark.parametrize(
    "text",
    [
        "vcpus = 2",
        "[cpus]",
        "[cpu]\nvcpu = 2",
        "[cpu]\nvcpus = '2'",
        "[cpu]\nvcpus = 0",
        "[cpu.topology]\nclusters = 1",
        "[memory]\nsize = 2048",
        "[memory]\nsize = '2048'",
        "[memory]\nsize = '2GB'",
        "[service]\nstop-timeout = '90'",
        "[service]\nstop-methods = ['shutdown']",
        "[service]\nready = 'booted'",
        "[service]\nready = { port = 22, serial = 'x' }",
        "[machine]\naccel = 'xen'",
        "[machine]\nfirmware = 'uefy'",
        "[machine]\nemulator = ''",
        "[disk]\nid = 'root'",
        "[[disk]]\npath = 'a'",
        "[[disk]]\nid = 'a b'",
        "[[disk]]\nid = 'a'\n[[disk.backing]]\npath = 'b'",
        "[[nic]]\nid = 'a'\nmac = '52-54-00-12-34-56'",
        "[[nic]]\nid = 'a'\nforward = ['22']",
        "[[device]]\nid = 'a'\ntype = 'sound'",
    ],
)
def test_what_the_schema_refuses_the_parser_refuses(text: str) -> None:
    """The usual mistakes are invalid, and each is an error of the parser too."""
    values = tomllib.loads(text)
    assert not VALIDATOR.is_valid(values)
    table, diagnostics = parse_document(Document(file="x", text=text, values=values), SpecifierContext(name="x"))
    missing = table.items.keys() & {"disk"}
    assert diagnostics or missing


def test_the_committed_schema_is_json() -> None:
    """What editors read is the schema that the daemon serves."""
    assert json.loads(SCHEMA.read_text()) == unit_schema()


def test_the_reference_names_every_key() -> None:
    """Every section and key of the model has its line."""
    text = reference()
    for name, table in values_of(Unit()).items():
        assert f"[{name}]" in text
        keys = table if isinstance(table, dict) else {}
        assert all(f"| `{key}` |" in text for key, value in keys.items() if not isinstance(value, dict))
