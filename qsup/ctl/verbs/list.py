"""``list``: the VMs, one per line.

Decides: the columns.
Must not: ask for more than the one list where a script reads it; a person is told of problems, too.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import PREFIX
from qsup.ctl.names import add_names, instances, matcher
from qsup.ctl.render import age, documents, is_named_by_cause, size, table
from qsup.ctl.words import STATES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.api.wire import Health, Instance
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

_HEADER = ("NAME", "STATE", "SUBSTATE", "CAUSE", ">PID", ">CPUS", ">MEMORY", "SINCE", "DESCRIPTION")


def options(parser: Parser, verb: str) -> None:
    """Declare ``list [NAME...] [--state STATE] [--no-legend]``."""
    add_names(parser, optional=True)
    meaning = "only those in this state or substate, such as failed"
    parser.add_argument("--state", choices=STATES, metavar="STATE", help=meaning)
    parser.add_argument("--no-legend", action="store_true", help="neither header nor summary")


def run(client: Client, options: Options) -> int:
    """Print them; finding none is no failure."""
    found = list(instances(client, options.state or ""))
    if options.names:
        wanted = matcher(options.names)
        found = [instance for instance in found if wanted(instance["name"])]
    if options.output != "table":
        sys.stdout.write(documents(found, options.output, "instances"))
        return 0
    legend = not options.no_legend
    sys.stdout.write(table(_HEADER, [_row(instance) for instance in found], coloured="STATE", titled=legend))
    if legend and sys.stdout.isatty():
        sys.stdout.write(_summary(found) + _problems(client))
    return 0


def _row(instance: Instance) -> tuple[str, ...]:
    cause = instance["cause"]
    return (
        instance["name"],
        instance["state"],
        instance["substate"],
        cause["text"] if cause is not None and is_named_by_cause(instance) else "",
        str(instance["pid"] or ""),
        str(instance["cpus"]["vcpus"]),
        size(instance["memory"]["size"]),
        age(instance["since"]),
        instance["unit"]["description"],
    )


def _problems(client: Client) -> str:
    """That something is wrong, such as a unit file whose VM is therefore not listed; ``""`` where nothing is."""
    health: Health = client.get(f"{PREFIX}/health")
    count = len(health["problems"])
    return f"{count} problem{'s' if count > 1 else ''}: see `qsupctl health`.\n" if count else ""


def _summary(found: list[Instance]) -> str:
    if not found:
        return "No VMs. Unit files in the daemon's unit directories become VMs at `qsupctl reload`.\n"
    active = sum(instance["state"] == "active" for instance in found)
    return f"\n{len(found)} VM{'s' if len(found) > 1 else ''}, {active} active.\n"
