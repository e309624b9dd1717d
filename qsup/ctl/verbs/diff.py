"""``diff``: running VMs against their units.

Decides: how a difference reads, and diff(1)'s exit codes.
Must not: find differences itself; the daemon does.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_FAILURE, EXIT_OK, instance_path
from qsup.ctl.failures import for_each
from qsup.ctl.names import add_names, targets
from qsup.ctl.render import bold, clean, document, documents, spelled, table
from qsup.ctl.verbs.attach import absent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.api.wire import ChangeWire, Diff
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

_HEADER = ("KEY", "RUNNING", "UNIT", "NEEDS")
EPILOG = "Exit code: 0 they run as their units say (or do not run), 1 something differs or is wrong, 4 no such VM."


def options(parser: Parser, verb: str) -> None:
    """Declare ``diff NAME...``."""
    add_names(parser)


def run(client: Client, options: Options) -> int:
    """Print what differs of each; the exit code is the worst."""
    shown: list[Diff] = []

    def show(name: str) -> int:
        diff: Diff = client.get(instance_path(name, "/diff"))
        if options.output == "table":
            sys.stdout.write(describe(diff))
        elif options.output == "jsonl":
            sys.stdout.write(document(diff, "jsonl"))
        shown.append(diff)
        return EXIT_FAILURE if diff["changes"] else EXIT_OK

    code = for_each(targets(client, options), show)
    if options.output == "json":
        sys.stdout.write(documents(shown, "json", "diffs"))
    return code


def describe(diff: Diff) -> str:
    """A line on the VM, and one for each key."""
    changes = diff["changes"]
    if not diff["running"]:
        words = "does not run: there is nothing to compare, and its next start takes the unit as it is"
    elif not changes:
        words = "runs as its unit says"
    elif any(change["needs"] == "restart" for change in changes):
        words = "was started with another unit; a restart applies it"
        if any(change["needs"] == "live" for change in changes):
            words += f", or qsupctl apply {clean(diff['instance'])} what is live"
    elif any(change["needs"] == "live" for change in changes):
        words = f"was started with another unit; qsupctl apply {clean(diff['instance'])} applies what differs"
    else:
        words = "was started with another unit; what differs counts without a restart"
    rows = [(change["key"], spelled(change["old"]), spelled(change["new"]), change["needs"]) for change in changes]
    hints = [absent(diff["instance"], change["key"]) for change in changes if _comes(change)]
    return f"{bold(clean(diff['instance']))} {words}\n" + table(_HEADER, rows) + "".join(hints)


def _comes(change: ChangeWire) -> bool:
    """Whether it is a whole entry that the VM has not, and can have while it runs."""
    return change["old"] is None and change["needs"] == "live"
