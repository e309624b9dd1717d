"""``resize``, ``insert`` and ``eject``: the disks and CD drives of a VM.

Decides: how these are asked for, and that a size which was reached is told.
Must not: judge what a disk can be; the daemon does.
"""

from __future__ import annotations

from qsup.api.protocol import instance_path, quote
from qsup.ctl.client import new_token
from qsup.ctl.connection import Deadline
from qsup.ctl.lasting import add_lasting, query
from qsup.ctl.names import add_name, name_of_vm
from qsup.ctl.verbs.attach import add_waiting
from qsup.ctl.verbs.power import see_through

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.api.wire import Operation
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser


def options(parser: Parser, verb: str) -> None:
    """Declare ``resize NAME DISK SIZE``, ``insert NAME DISK PATH``, ``eject NAME DISK``."""
    add_name(parser)
    parser.add_argument("disk", type=name_of_vm, metavar="DISK", help="its id")
    if verb == "resize":
        parser.add_argument("size", metavar="SIZE", help="such as 20G; never less than it has")
    elif verb == "insert":
        parser.add_argument("path", metavar="PATH", help="of the image, as in a unit")
        parser.add_argument(
            "--format", choices=("raw", "qcow2"), default="raw", metavar="FORMAT", help="the image's, raw unless said"
        )
    if verb != "resize":
        parser.add_argument("--force", action="store_true", help="also where the guest has locked the tray")
        add_lasting(parser)
    add_waiting(parser)


def run(client: Client, options: Options) -> int:
    """Begin, and wait for the end."""
    path = instance_path(options.name, f"/disks/{quote(options.disk.removeprefix('disk.'))}")
    key = new_token()
    operation: Operation
    if options.verb == "resize":
        operation = client.patch(path, {"size": options.size}, key=key)
    elif options.verb == "insert":
        body = {"path": options.path, "format": options.format, "force": options.force}
        operation = client.post(f"{path}/insert{query(options)}", body, key=key)
    else:
        operation = client.post(f"{path}/eject{query(options)}", {"force": options.force}, key=key)
    return see_through(client, {options.name: operation}, options, Deadline(options.timeout))
