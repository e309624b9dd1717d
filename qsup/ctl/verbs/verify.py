"""``verify``: check unit files without a daemon.

Decides: how what is wrong is shown, and the exit code.
Must not: look at the host; a unit is right or wrong wherever it is read.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_FAILURE, EXIT_OK
from qsup.ctl.failures import complain
from qsup.ctl.render import clean, documents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser


def options(parser: Parser, verb: str) -> None:
    """Declare ``verify FILE...``."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="unit files, or directories of them")


def run(client: Client, options: Options) -> int:
    """Print every error of every file on standard error; silence means that all are right."""
    from qsup.unit.verify import verify_files  # the unit parser is heavy, and only two verbs need it

    diagnostics = verify_files(options.files)
    if options.output == "table":
        complain(*(clean(diagnostic) for diagnostic in diagnostics))
    else:
        found = [diagnostic.as_dict() for diagnostic in diagnostics]
        sys.stdout.write(documents(found, options.output, "diagnostics"))
    return EXIT_FAILURE if diagnostics else EXIT_OK
