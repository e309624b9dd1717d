"""``operations``: what the daemon does or did, newest first.

Decides: the columns.
Must not: wait for one.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import PREFIX, quote
from qsup.ctl.render import age, documents, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from qsup.api.wire import Operation
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

_HEADER = ("ID", "VM", "KIND", "SUBJECT", "STATE", "STARTED", "PROGRESS")
#: How many keys are named of one that changes many.
_NAMED = 3


def options(parser: Parser, verb: str) -> None:
    """Declare ``operations [ID...] [--cancel]``."""
    parser.add_argument("ids", nargs="*", metavar="ID", help="only these operations")
    parser.add_argument("--cancel", action="store_true", help="end what a guest still works on; it keeps what it has")


def run(client: Client, options: Options) -> int:
    """Print them, after ending them where that is asked for."""
    if options.cancel and not options.ids:
        from qsup.errors import UsageError

        raise UsageError("operations: which one is to be cancelled?", hint="qsupctl operations lists them")
    found: list[Operation] = []
    for operation_id in options.ids:
        path = f"{PREFIX}/operations/{quote(operation_id)}"
        found.append((client.delete(path) if options.cancel else None) or client.get(path))
    if not options.ids:
        found.extend(client.pages(f"{PREFIX}/operations", "operations"))
    if options.output == "table":
        sys.stdout.write(table(_HEADER, [_row(operation) for operation in found]))
    else:
        sys.stdout.write(documents(found, options.output, "operations"))
    return 0


def _row(operation: Operation) -> tuple[str, ...]:
    error = operation["error"]
    progress = error["detail"] if error is not None else operation["progress"]
    started = f"{age(operation['created'])} ago"
    named = operation["id"], operation["target"], operation["kind"], subject(operation["arguments"])
    return (*named, operation["state"], started, progress)


def subject(arguments: Mapping[str, Any]) -> str:
    """What of a VM a change is about: an entry of its unit, or keys, in as few words as say it.

    >>> subject({"entry": "disk.data", "force": False})
    'disk.data'
    >>> subject({"changes": {"disk": [{"id": "data", "path": "a.img"}], "cpu": {"vcpus": 4}}})
    'disk.data, cpu.vcpus'
    """
    if "entry" in arguments:
        return str(arguments["entry"])
    found = []
    for section, said in (arguments.get("changes") or {}).items():
        if isinstance(said, list):
            found += [f"{section}.{entry.get('id')}" for entry in said if isinstance(entry, dict)]
        else:
            found += [f"{section}.{key}" for key in said] if isinstance(said, dict) else [section]
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more
