"""``enable`` and ``disable``: whether VMs start with the daemon.

Decides: what ``--now`` adds.
Must not: write a unit file; the daemon does.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import PREFIX, instance_path, quote
from qsup.ctl.client import new_token
from qsup.ctl.connection import Deadline
from qsup.ctl.failures import for_each
from qsup.ctl.names import add_names, targets
from qsup.ctl.render import documents
from qsup.ctl.verbs.power import finish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.api.wire import Operation, UnitWire
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

_NOW = {"enable": "start", "disable": "stop"}


def options(parser: Parser, verb: str) -> None:
    """Declare ``enable NAME... [--now]`` and ``disable NAME... [--now]``."""
    add_names(parser)
    parser.add_argument("--now", action="store_true", help=f"also {_NOW[verb]} them, and wait for it")


def run(client: Client, options: Options) -> int:
    """Set each; with ``--now`` then start or stop each."""
    units: list[UnitWire] = []
    operations: dict[str, Operation] = {}

    def switch(name: str) -> None:
        units.append(client.post(f"{PREFIX}/units/{quote(name)}/{options.verb}"))
        if options.now:
            path = instance_path(name, f"/{_NOW[options.verb]}")
            operations[name] = client.post(path, key=new_token())

    code = for_each(targets(client, options), switch)
    code = max(code, finish(client, operations, Deadline(None)))
    if options.output != "table":
        sys.stdout.write(documents(units, options.output, "units"))
    return code
