"""``topology``: the host, drawn on the terminal or as a picture.

Decides: which form it has, and how wide it is.
Must not: look at the host itself; it may be another one than the daemon's.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_OK, PREFIX
from qsup.ctl.hostpicture import HostPicture
from qsup.ctl.render import document, terminal_width, unicode_wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.api.hostwire import Topology
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

#: Columns where there is no terminal that has any.
_WIDTH = 80

EPILOG = """The bar of a node's CPUs is how much of them is given away: exclusive ones, and one for each vCPU that
shares the others. That of its memory is what is used, and lighter what more was promised to VMs that were
placed there. A core's CPUs stand in brackets; cores stand together that share a package, a die and their
last cache. A VM stands in the node that its vCPUs are on. On a wide terminal nodes stand beside each other.
The drawing is plain ASCII unless the locale is one of UTF-8."""


def options(parser: Parser, verb: str) -> None:
    """Declare ``topology [--brief] [--svg FILE]``."""
    parser.add_argument("--brief", action="store_true", help="only how full each node is")
    parser.add_argument("--svg", metavar="FILE", help="write it to a file as a picture; - is standard output")


def run(client: Client, options: Options) -> int:
    """Draw the host, or write its picture and print the file's name."""
    topology: Topology = client.get(f"{PREFIX}/topology")
    if options.svg is not None:
        _write_picture(HostPicture(topology), options)
    elif options.output != "table":
        sys.stdout.write(document(topology, options.output))
    else:
        from qsup.ctl.hosttext import ASCII, UNICODE, draw

        signs = UNICODE if unicode_wanted() else ASCII
        sys.stdout.write(draw(HostPicture(topology), signs, terminal_width() or _WIDTH, brief=options.brief))
    return EXIT_OK


def _write_picture(host: HostPicture, options: Options) -> None:
    from qsup.ctl.files import write_file
    from qsup.ctl.hostsvg import draw

    picture = draw(host)
    if options.svg == "-":
        sys.stdout.write(picture)
        return
    write_file(options.svg, picture.encode("ascii"))
    written = {"file": options.svg}
    sys.stdout.write(f"{options.svg}\n" if options.output == "table" else document(written, options.output))
