"""``help``: the verbs, or one verb's command line.

Decides: how the overview reads.
Must not: need a daemon.
"""

from __future__ import annotations

import sys

from qsup.ctl.main import VERBS, parser_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

_USAGE = """usage: qsupctl [--socket PATH | --root DIR | --user] [-o table|json|jsonl] VERB ...

Talks to qsupd, which supervises QEMU virtual machines.

"""
_END = """
qsupctl VERB --help explains a verb.
Exit codes: 0 done, 1 failed, 2 wrong command line, 3 status of a VM that is not active, 4 no such VM,
5 no daemon, 130 interrupted.
"""


def options(parser: Parser, verb: str) -> None:
    """Declare ``help [VERB]``."""
    parser.add_argument("about", nargs="?", choices=tuple(VERBS), metavar="VERB", help="the verb to explain")


def run(client: Client, options: Options) -> int:
    """Print the overview, or what ``VERB --help`` prints."""
    if options.about:
        sys.stdout.write(parser_for(options.about)[0].help())
    else:
        width = max(map(len, VERBS)) + 2
        lines = [f"  {verb:<{width}}{summary}\n" for verb, (_, summary) in VERBS.items()]
        sys.stdout.write(_USAGE + "".join(lines) + _END)
    return 0
