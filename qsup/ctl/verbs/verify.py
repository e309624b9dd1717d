"""``verify``: check unit files without a daemon.

Decides: which files a directory stands for, and the exit code.
Must not: look at the host; a unit is right or wrong wherever it is read.
"""

from __future__ import annotations

import os
import sys

from qsup.api.protocol import EXIT_FAILURE, EXIT_OK
from qsup.ctl.failures import complain
from qsup.ctl.render import clean, documents
from qsup.errors import from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser


def options(parser: Parser, verb: str) -> None:
    """Declare ``verify FILE...``."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="unit files, or directories of them")


def run(client: Client, options: Options) -> int:
    """Print every error of every file on standard error; silence means that all are right."""
    from qsup.unit.verify import verify_files  # the unit parser is heavy, and only two verbs need it

    diagnostics = verify_files(_unit_files(options.files))
    if options.output == "table":
        complain(*(clean(diagnostic) for diagnostic in diagnostics))
    else:
        found = [diagnostic.as_dict() for diagnostic in diagnostics]
        sys.stdout.write(documents(found, options.output, "diagnostics"))
    return EXIT_FAILURE if diagnostics else EXIT_OK


def _unit_files(paths: Iterable[str]) -> list[str]:
    files: list[str] = []
    for path in paths:
        if not os.path.isdir(path) or path.rstrip("/").endswith(".toml"):
            # a directory named as a unit file is one that cannot be read, and is told as such
            files.append(path)
            continue
        try:
            files += sorted(os.path.join(path, name) for name in os.listdir(path) if name.endswith(".toml"))
        except OSError as error:
            raise from_oserror(error, f"could not read {path}") from error
    return files
