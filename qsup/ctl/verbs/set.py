"""``set`` and ``apply``: keys of a VM, while it runs and from its next start on.

Decides: how what becomes of each key is shown.
Must not: know keys or their values; the daemon does.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_OK, instance_path
from qsup.ctl.client import error_from, new_token
from qsup.ctl.connection import Deadline
from qsup.ctl.failures import complain
from qsup.ctl.lasting import add_force_after, add_lasting, force_after, query
from qsup.ctl.names import add_name
from qsup.ctl.parser import seconds
from qsup.ctl.render import clean, documents, spelled, table
from qsup.ctl.verbs.power import wait_operation
from qsup.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from qsup.api.wire import Operation
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

_HEADER = ("KEY", "COUNTS", "OLD", "NEW")
#: How `applied` reads.
COUNTS = {
    "live": "now",
    "daemon": "now",
    "reset": "at the guest's next reset",
    "start": "at the next start",
    "refused": "never",
}
EPILOG = (
    "KEY is cpu.vcpus, or vcpus where no other key is called so, or disk.data.cache for the disk with the id data.\n"
    "Memory and vCPUs come and go as fast as the guest does it; qsupctl operations --cancel ends what takes long.\n"
    "Exit code: 0 every key was changed, 1 one was refused and none changed, 2 wrong usage, 4 no such VM."
)


def options(parser: Parser, verb: str) -> None:
    """Declare ``set NAME KEY=VALUE...`` and ``apply NAME``."""
    add_name(parser)
    if verb == "set":
        parser.add_argument("values", nargs="+", metavar="KEY=VALUE", help="such as vcpus=4 disk.data.cache=none")
        add_lasting(parser)
        parser.add_argument(
            "--next-start", action="store_true", help="change the unit, and leave a VM that runs as it is"
        )
    else:
        add_force_after(parser)
    parser.add_argument("--dry-run", action="store_true", help="only show what would become of each key")
    parser.add_argument("--no-block", action="store_true", help="do not wait for the end of the operation")
    parser.add_argument("--timeout", type=seconds, metavar="TIME", help="how long to wait for the end, such as 90s")


def run(client: Client, options: Options) -> int:
    """Change them, and show what became of each."""
    if options.verb == "apply":
        wanted = "&".join(["dry-run=1"] * options.dry_run + force_after(options))
        path = instance_path(options.name, f"/apply?{wanted}" if wanted else "/apply")
        return end(client, client.post(path, key=new_token()), options)
    changes = ["dry-run=1"] * options.dry_run + ["next-start=1"] * options.next_start
    path = instance_path(options.name) + query(options, *changes)
    operation: Operation = client.patch(path, {"keys": assignments(options.values)}, key=new_token())
    return end(client, operation, options)


def end(client: Client, operation: Operation, options: Options) -> int:
    """Wait for a change of keys and show what became of each; raises what it failed for."""
    if not options.no_block:
        try:
            operation = wait_operation(client, operation, Deadline(options.timeout))
        except KeyboardInterrupt:
            complain("qsupctl: interrupted; what was begun goes on (qsupctl operations)")
            raise
    if options.output != "table":
        sys.stdout.write(documents([operation], options.output, "operations"))
    else:
        sys.stdout.write(describe(keys_of(operation)))
    if operation["error"] is not None:
        raise error_from(operation["error"], operation["target"])
    return EXIT_OK


def describe(keys: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each key, and below all why some do not count at once: a narrow terminal cuts what is in a table."""
    whys = [(clean(key), clean(said["why"])) for key, said in keys.items() if said.get("why")]
    whys += [
        (clean(key), f"the guest has {said['online']} of them online") for key, said in keys.items() if _lacks(said)
    ]
    lines = [f"{why}\n" if why.startswith(key) else f"{key}: {why}\n" for key, why in whys]
    return table(_HEADER, [_row(key, said) for key, said in keys.items()]) + "".join(lines)


def _lacks(said: Mapping[str, Any]) -> bool:
    """Whether the guest does not use all vCPUs that it has been given."""
    online = said.get("online")
    return isinstance(online, int) and online != said.get("vcpus")


def assignments(words: Sequence[str], such_as: str = "vcpus=4") -> dict[str, str]:
    """Texts by the names of keys; ``such_as``: an example of one.

    >>> assignments(["vcpus=4", "append=a=b"])
    {'vcpus': '4', 'append': 'a=b'}
    """
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r} is no KEY=VALUE", hint=f"such as {such_as}")
        if key in values:
            raise UsageError(f"{key!r} is there twice", hint="say it once")
        values[key] = value
    return values


def keys_of(operation: Operation) -> Mapping[str, Mapping[str, Any]]:
    """What became of each key, or would."""
    found: Mapping[str, Any] = operation["result"] or operation["error"] or {}
    keys = found.get("keys")
    return keys if isinstance(keys, dict) else {}


def _row(key: str, said: Mapping[str, Any]) -> tuple[str, ...]:
    applied = str(said.get("applied"))
    return (key, COUNTS.get(applied, applied), spelled(said.get("old")), spelled(said.get("new")))
