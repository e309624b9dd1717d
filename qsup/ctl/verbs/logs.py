"""``logs``: what QEMU wrote to its standard output and error.

Decides: how many lines are shown, and whether more are awaited.
Must not: show the guest's console (that is ``console``).
"""

from __future__ import annotations

import sys

from qsup.api.protocol import instance_path
from qsup.ctl.client import decode
from qsup.ctl.connection import Deadline
from qsup.ctl.names import add_name
from qsup.ctl.render import clean, document
from qsup.errors import DaemonUnreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.api.wire import Log
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser


def options(parser: Parser, verb: str) -> None:
    """Declare ``logs NAME [-n LINES] [-f]``."""
    add_name(parser)
    parser.add_argument("-n", "--lines", type=int, default=100, metavar="N", help="lines to show (default: 100)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new lines as they come")


def run(client: Client, options: Options) -> int:
    """Print the lines, oldest first."""
    path = instance_path(options.name, f"/log?lines={max(0, options.lines)}")
    if options.follow:
        return _follow(client, f"{path}&follow=1", options.output)
    log: Log = client.get(path)
    if options.output == "json":
        sys.stdout.write(document(log, "json"))
    else:
        for line in log["lines"]:
            _print(line, options.output)
    return 0


def _follow(client: Client, path: str, style: str) -> int:
    with client.stream(path) as stream:
        for line in stream.lines(Deadline(None)):
            _print(decode(line)["line"], style)
            sys.stdout.flush()
    raise DaemonUnreachable("the daemon ended the stream of the log")


def _print(line: str, style: str) -> None:
    sys.stdout.write(f"{clean(line)}\n" if style == "table" else document({"line": line}, "jsonl"))
