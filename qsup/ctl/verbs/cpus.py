"""``cpus``: the threads of a VM's QEMU, and which CPUs of the host they run on.

Decides: what is shown of a thread.
Must not: judge where one should be; the daemon sees to that.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_OK, instance_path
from qsup.ctl.names import add_name
from qsup.ctl.render import clean, document, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.api.wire import Cpus
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

EPILOG = """PIN is where a thread is to run ([cpu] pin and emulator-pin of its unit, pin of its iothreads),
ALLOWED where it may, ON where it ran last. WAITED is how long it was ready to run while others did: of a
vCPU, what its guest calls steal."""
_HEADER = (">THREAD", "NAME", "VCPU", "IOTHREAD", "PIN", "ALLOWED", ">ON", ">SECONDS", ">WAITED")


def options(parser: Parser, verb: str) -> None:
    """Declare ``cpus NAME [--explain]``."""
    add_name(parser)
    parser.add_argument("--explain", action="store_true", help="say why its CPUs were chosen")


def run(client: Client, options: Options) -> int:
    """Print its threads."""
    cpus: Cpus = client.get(instance_path(options.name, "/cpus"))
    if options.output != "table":
        sys.stdout.write(document(cpus, options.output))
        return EXIT_OK
    if options.explain:
        lines = cpus["explanation"] or ['nothing was chosen for it: its unit has no pin = "auto"']
        sys.stdout.write("".join(f"{clean(line)}\n" for line in lines))
        return EXIT_OK
    rows = [
        (
            str(thread["thread"]),
            thread["name"],
            ",".join(map(str, thread["vcpus"])),
            thread["iothread"],
            thread["pin"],
            thread["allowed"],
            str(thread["cpu"]),
            f"{thread['seconds']:.2f}",
            "" if thread["waited"] is None else f"{thread['waited']:.2f}",
        )
        for thread in cpus["threads"]
    ]
    sys.stdout.write(table(_HEADER, rows))
    if left := cpus["count"] - len(rows):
        sys.stdout.write(f"and {left} more\n")
    if cpus["drifts"]:
        sys.stdout.write(f"Threads that were moved by somebody, and put back: {cpus['drifts']}\n")
    return EXIT_OK
