"""``reload``: the daemon reads all unit files again.

Decides: how the outcome reads, and that a broken unit file makes the command fail.
Must not: check a unit file itself (that is ``verify``).
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_FAILURE, EXIT_OK, PREFIX
from qsup.ctl.failures import complain, diagnostic_line
from qsup.ctl.render import clean, document
from qsup.ctl.verbs.diff import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.api.wire import Reload
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser


def options(parser: Parser, verb: str) -> None:
    """``reload`` has none of its own."""


def run(client: Client, options: Options) -> int:
    """Print what came, changed and went, and what that means for VMs that run; errors go to standard error."""
    found: Reload = client.post(f"{PREFIX}/reload")
    if options.output != "table":
        sys.stdout.write(document(found, options.output))
    else:
        changes = (("added", found["added"]), ("changed", found["changed"]), ("removed", found["removed"]))
        sys.stdout.write("".join(f"{word}: {clean(', '.join(names))}\n" for word, names in changes if names))
        sys.stdout.write("".join(describe(diff) for diff in found["running"] if diff["changes"]))
    complain(*(f"qsupctl: {clean(diagnostic_line(dict(diagnostic)))}" for diagnostic in found["diagnostics"]))
    return EXIT_FAILURE if found["diagnostics"] else EXIT_OK
