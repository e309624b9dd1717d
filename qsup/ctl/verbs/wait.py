"""``wait``: until VMs are as wanted.

Decides: the words for what can be waited for, and which states end a wait as hopeless.
Must not: poll.
"""

from __future__ import annotations

import sys

from qsup.ctl.connection import Deadline
from qsup.ctl.failures import for_each
from qsup.ctl.names import add_names, targets
from qsup.ctl.parser import seconds
from qsup.ctl.render import documents
from qsup.ctl.watch import wait_for
from qsup.ctl.words import DOWN_STATES, UP_STATES
from qsup.errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.api.wire import Instance
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

EPILOG = """What can be waited for:
  ready        it is active: the guest runs and is ready, as its unit defines it (the default)
  agent        somebody in the guest has opened the guest agent's channel
  any state    active, inactive, failed ...
  any substate running, paused, auto-restart, crashed ...
A wait for a VM that has failed ends at once with code 1, unless a state of a stopped VM is waited for."""
UP_WORDS = ("ready", "agent", *UP_STATES)


def options(parser: Parser, verb: str) -> None:
    """Declare ``wait NAME... [--for STATE] [--timeout TIME]``."""
    add_names(parser)
    parser.add_argument(
        "--for", dest="state", default="ready", choices=(*UP_WORDS, *DOWN_STATES), metavar="STATE", help="see below"
    )
    parser.add_argument("--timeout", type=seconds, default=300.0, metavar="TIME", help="how long (default: 5min)")


def run(client: Client, options: Options) -> int:
    """Wait for each; all of them share the time."""
    deadline = Deadline(options.timeout)
    reached: list[Instance] = []

    def wait(name: str) -> None:
        reached.append(wait_for(client, name, lambda view: is_reached(view, options.state), deadline=deadline))

    code = for_each(targets(client, options), wait)
    if options.output != "table":
        sys.stdout.write(documents(reached, options.output, "instances"))
    return code


def is_reached(instance: Instance, wanted: str) -> bool:
    """Whether a VM is as wanted; `ClientError` when it failed and so never will be."""
    if wanted == "ready":
        reached = instance["state"] == "active"
    elif wanted == "agent":
        reached = instance["agent"]["connected"]
    else:
        reached = wanted in (instance["state"], instance["substate"])
    if not reached and instance["state"] == "failed" and wanted in UP_WORDS:
        cause = instance["cause"]
        why = (cause["detail"] or cause["text"]) if cause is not None else instance["substate"]
        raise ClientError(f"it failed: {why}", instance=instance["name"])
    return reached
