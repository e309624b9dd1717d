"""``cmdline``: QEMU's argv, quoted for a shell.

Decides: where its lines are broken.
Must not: change an argument.
"""

from __future__ import annotations

import shlex
import sys

from qsup.api.protocol import instance_path
from qsup.ctl.names import add_name
from qsup.ctl.render import clean, document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsup.api.wire import CommandLine
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser


def options(parser: Parser, verb: str) -> None:
    """Declare ``cmdline NAME [--one-line]``."""
    add_name(parser)
    parser.add_argument("--one-line", action="store_true", help="all of it on one line")


def run(client: Client, options: Options) -> int:
    """Print the command line it runs with, or was last started with."""
    line: CommandLine = client.get(instance_path(options.name, "/cmdline"))
    if options.output != "table":
        sys.stdout.write(document(line, options.output))
    elif options.one_line:
        sys.stdout.write(f"{clean(shlex.join(line['argv']))}\n")
    else:
        sys.stdout.write(" \\\n  ".join(clean(option) for option in by_option(line["argv"])) + "\n")
    return 0


def by_option(argv: Sequence[str]) -> list[str]:
    """One shell-quoted text per option, its value beside it; the program comes first.

    >>> by_option(["qemu", "-S", "-m", "1G"])
    ['qemu', '-S', '-m 1G']
    """
    lines: list[str] = []
    for argument in argv:
        word = shlex.quote(argument)
        takes_value = len(lines) > 1 and " " not in lines[-1] and lines[-1].startswith("-")
        if takes_value and not argument.startswith("-"):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
