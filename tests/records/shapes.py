"""The shape of every record that the daemon keeps on disk, as text to compare.

Decides: which records there are, and what of a record is its shape: its fields with their types, through all records
within it; of a unit, every key with its kind.
Must not: assert anything.

``python -m tests.records.shapes > tests/records/shapes.json`` takes the present shapes as those of their versions.
"""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

import attrs

from qsup.host.codec import Record
from qsup.host.records import IdentityRecord, RunRecord
from qsup.instance.ended import Ended
from qsup.instance.operation_record import OperationRecord
from qsup.instance.probe import ProbeRecord
from qsup.instance.record import Running
from qsup.unit.keys import keys_of, sections_of
from qsup.unit.model import Unit

#: Every kind of record, by the name of its samples.
KINDS: Mapping[str, type[Record]] = {
    "run": RunRecord,
    "running": Running,
    "identity": IdentityRecord,
    "ended": Ended,
    "operation": OperationRecord,
    "capabilities": ProbeRecord,
}


def shapes() -> dict[str, Any]:
    """All of them."""
    found: dict[str, Any] = {
        kind: {"schema": record.SCHEMA, "fields": _fields(record)} for kind, record in KINDS.items()
    }
    found["running"]["unit"] = found["ended"]["unit"] = dict(_keys(Unit, ""))
    return found


def _fields(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {
        item.name: _shape(hints[item.name]) | ({} if item.default is attrs.NOTHING else {"optional": True})
        for item in attrs.fields(cls)
    }


def _shape(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return _shape(inner) | {"null": True}
    if attrs.has(hint):
        return {"record": _fields(hint)}
    if origin is None:
        return {"type": getattr(hint, "__name__", str(hint))}
    items = [argument for argument in arguments if argument is not Ellipsis]
    return {"type": origin.__name__, "of": [_shape(item) for item in items]}


def _keys(cls: type[Any], path: str) -> typing.Iterator[tuple[str, str]]:
    for name, (_, facts) in keys_of(cls).items():
        yield f"{path}{name}", facts.kind.word
    for name, (_, nested, _facts) in sections_of(cls).items():
        yield from _keys(nested, f"{path}{name}.")


def text() -> str:
    """As the golden file holds them."""
    return json.dumps(shapes(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
