"""The JSON Schema of a unit file, made from the model.

Decides: how sections become JSON Schema (draft 2020-12); each key's own schema is in its kind.
Must not: know any section or key by name.

``python -m qsup.unit.schema`` prints it; ``--check FILE`` compares. A unit file names it for editors with
``#:schema ./unit.schema.json`` in its first line. It describes single keys; rules between keys are `qsup.unit.check`'s.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import attrs

from qsup.unit.generated import print_or_check
from qsup.unit.keys import Key, keys_of, sections_of
from qsup.unit.model import Unit
from qsup.unit.specifier import SPECIFIERS


def unit_schema() -> dict[str, Any]:
    """The schema of a whole unit, as a JSON value."""
    letters = "".join(sorted(specifier[1] for specifier in SPECIFIERS))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "qsup unit",
        "description": "A virtual machine, as qsup reads it from a unit file.",
        **_table(Unit),
        "$defs": {
            "specifier": {
                "description": "A text with a specifier, which stands for something else in each VM.",
                "type": "string",
                "pattern": f"%[{letters}]",
            }
        },
    }


def _table(cls: type[Any]) -> dict[str, Any]:
    keys, sections = keys_of(cls), sections_of(cls)
    properties: dict[str, Any] = {name: _key(attribute, facts) for name, (attribute, facts) in keys.items()}
    for name, (_, nested, section) in sections.items():
        table = {"description": section.doc, **_table(nested)}
        properties[name] = (
            {"description": section.doc, "type": "array", "items": _table(nested)} if section.many else table
        )
    required = [name for name, (attribute, _) in keys.items() if attribute.default is attrs.NOTHING]
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": required} if required else {})


def _key(attribute: attrs.Attribute[Any], facts: Key) -> dict[str, Any]:
    schema = _or_specifier(facts.kind.schema) if facts.kind.specifiers else dict(facts.kind.schema)
    default = {} if attribute.default is attrs.NOTHING else {"default": facts.kind.format(attribute.default)}
    return {"description": facts.doc.replace("`", ""), **schema, **default}


def _or_specifier(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema, where a text in the place of a restricted string may instead hold a specifier."""
    if "pattern" in schema or "anyOf" in schema:
        return {"anyOf": [*schema.get("anyOf", [dict(schema)]), {"$ref": "#/$defs/specifier"}]}
    if "items" in schema:
        return {**schema, "items": _or_specifier(schema["items"])}
    return dict(schema)


def main() -> int:
    """Print the schema, or compare it with a file."""
    return print_or_check(json.dumps(unit_schema(), indent=2, ensure_ascii=False) + "\n", "qsup.unit.schema", sys.argv)


if __name__ == "__main__":
    sys.exit(main())
