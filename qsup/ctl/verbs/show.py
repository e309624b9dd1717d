"""``show`` and ``cat``: a unit's effective keys, and its files.

Decides: how nested keys are written on one line.
Must not: read a unit file itself: the daemon's view counts.
"""

from __future__ import annotations

import json
import sys

from qsup.api.protocol import PREFIX, quote
from qsup.ctl.failures import for_each
from qsup.ctl.names import add_names, targets
from qsup.ctl.render import clean, clean_lines, document, documents
from qsup.errors import ClientError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from qsup.api.wire import UnitWire
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser


def options(parser: Parser, verb: str) -> None:
    """Declare ``cat NAME...`` and ``show NAME... [-p KEY] [--value]``."""
    add_names(parser)
    if verb == "show":
        parser.add_argument("-p", "--property", action="append", default=[], metavar="KEY", help="only these keys")
        parser.add_argument("--value", action="store_true", help="only the values")


def run(client: Client, options: Options) -> int:
    """Print each unit, separated by an empty line."""
    units: list[UnitWire] = []

    def show(name: str) -> None:
        unit: UnitWire = client.get(f"{PREFIX}/units/{quote(name)}")
        if options.output == "table":
            text = clean_lines(unit.get("text", "")) if options.verb == "cat" else _keys(unit, options)
            sys.stdout.write("\n" * bool(units) + text)
        elif options.output == "jsonl":
            sys.stdout.write(document(unit, "jsonl"))
        units.append(unit)

    code = for_each(targets(client, options), show)
    if options.output == "json":
        sys.stdout.write(documents(units, "json", "units"))
    return code


def _keys(unit: UnitWire, options: Options) -> str:
    wanted = [key for keys in options.property for key in keys.split(",") if key]
    values = unit.get("unit")
    if values is None:
        raise ClientError("the daemon knows no effective values of it", instance=unit["name"], hint="use cat")
    pairs = dict(flatten(values))
    missing = [key for key in wanted if not any(_is_below(name, key) for name in pairs)]
    if missing:
        raise UsageError(f"a unit has no key {missing[0]!r}", hint=f"qsupctl show {unit['name']} lists the keys")
    shown = {name: text for name, text in pairs.items() if not wanted or any(_is_below(name, key) for key in wanted)}
    return "".join(f"{text}\n" if options.value else f"{name}={text}\n" for name, text in shown.items())


def _is_below(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.")


def flatten(values: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each key by its dotted name, with its value as text; tables of an array go by their ``id``.

    >>> dict(flatten({"cpu": {"vcpus": 2}, "disk": [{"id": "root", "format": "raw"}]}))
    {'cpu.vcpus': '2', 'disk.root.id': 'root', 'disk.root.format': 'raw'}
    """
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, list) and values and all(isinstance(entry, dict) for entry in values):
        for position, entry in enumerate(values):
            yield from flatten(entry, f"{prefix}.{entry.get('id', position)}")
    else:
        yield clean(prefix), clean(values if isinstance(values, str) else json.dumps(values))
