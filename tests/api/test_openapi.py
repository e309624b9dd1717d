"""The OpenAPI document and the guide: complete, valid, and up to date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from qsup import errors
from qsup.api import openapi, reference
from qsup.api.routes.table import ENDPOINTS

DOCS = Path(__file__).resolve().parents[2] / "docs"
METHODS = {"get", "put", "post", "delete", "patch"}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every operation of the document: path, method, operation."""
    for path, item in openapi.document()["paths"].items():
        for method in METHODS & item.keys():
            yield path, method, item[method]


def test_document_is_up_to_date() -> None:
    """``docs/openapi.json`` is what ``python -m qsup.api.openapi`` prints."""
    assert (DOCS / "openapi.json").read_text(encoding="utf-8") == openapi.text()


def test_guide_is_up_to_date() -> None:
    """The tables of ``docs/api.md`` are what ``python -m qsup.api.reference docs/api.md`` fills in."""
    guide = (DOCS / "api.md").read_text(encoding="utf-8")
    assert reference.regions(guide) == {"routes", "agent", "errors"}
    assert guide == reference.fill_in(guide)


def test_every_route_is_in_the_document() -> None:
    """Path, method, operation id and role are those of the table."""
    found = {
        (path, method.upper(), operation["operationId"], operation["x-role"])
        for path, method, operation in operations()
    }
    assert found == {(e.pattern, e.method, e.id, e.role.label) for e in ENDPOINTS}


def test_every_schema_is_valid() -> None:
    """Each schema is one, and each reference leads to one."""
    document = openapi.document()
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    referred = set(re.findall(r'"#/components/schemas/(\w+)"', openapi.text()))
    assert referred <= document["components"]["schemas"].keys()


def test_path_parameters_are_declared() -> None:
    """What stands in braces in a path is a parameter of its operations."""
    for path, _, operation in operations():
        declared = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path))


@pytest.mark.parametrize(
    ("name", "required", "optional"),
    [
        ("Problem", {"type", "title", "status", "detail", "code", "request_id"}, {"instance", "hint"}),
        ("QmpRequest", {"execute"}, {"arguments", "timeout"}),
        ("PowerRequest", set(), {"timeout"}),
    ],
)
def test_optional_members_are_optional(name: str, required: set[str], optional: set[str]) -> None:
    """``NotRequired`` and ``total=False`` are seen, although annotations are text."""
    schema = openapi.document()["components"]["schemas"][name]
    assert set(schema["required"]) == required
    assert schema["properties"].keys() == required | optional


def test_every_error_of_the_tree_is_in_the_guide() -> None:
    """The table has each code once, with the status of its class."""
    guide = (DOCS / "api.md").read_text(encoding="utf-8")
    for error in reference.error_classes():
        assert len(re.findall(rf"^\| `{error.code}` \| {error.status} \|", guide, re.MULTILINE)) == 1, error


def test_error_classes_are_those_of_the_module() -> None:
    """Classes that other modules derive for their own use, and qsupctl's own errors, are not part of the contract."""
    tree = {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.QsupError)}
    assert set(reference.error_classes()) == {one for one in tree if not issubclass(one, errors.ClientError)}


def test_fill_in_touches_nothing_else() -> None:
    """What is written by hand around a region stays, and an unknown region is a mistake."""
    filled = reference.fill_in("before\n<!-- generated: agent -->\nold\n<!-- end -->\nafter\n")
    assert filled.startswith("before\n<!-- generated: agent -->\n\n| agent command")
    assert filled.endswith("<!-- end -->\nafter\n")
    assert "old" not in filled
    with pytest.raises(KeyError):
        reference.fill_in("<!-- generated: nothing -->\n<!-- end -->")
