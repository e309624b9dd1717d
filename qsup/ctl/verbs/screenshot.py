"""``screenshot``: a VM's screen as a PNG file.

Decides: the file's name.
Must not: write a picture onto a terminal.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import instance_path
from qsup.ctl.names import add_name
from qsup.ctl.render import document
from qsup.errors import UsageError, from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser


def options(parser: Parser, verb: str) -> None:
    """Declare ``screenshot NAME [-f FILE|-]``."""
    add_name(parser)
    parser.add_argument(
        "-f", "--file", metavar="FILE", help="where to write it; - is standard output (default: NAME.png)"
    )


def run(client: Client, options: Options) -> int:
    """Write the picture and print its file's name."""
    if options.file == "-" and sys.stdout.isatty():
        raise UsageError("screenshot: standard output is a terminal", hint="-f FILE names a file")
    picture = client.exchange("GET", instance_path(options.name, "/screenshot"))
    if options.file == "-":
        sys.stdout.buffer.write(picture)
        return 0
    path = options.file or f"{options.name}.png".replace("/", "_")
    try:
        with open(path, "wb") as file:
            file.write(picture)
    except OSError as error:
        raise from_oserror(error, f"could not write {path}") from error
    sys.stdout.write(f"{path}\n" if options.output == "table" else document({"file": path}, options.output))
    return 0
